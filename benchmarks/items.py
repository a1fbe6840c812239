"""What items cost a reader: vectors and sequences of one modality and of five attached, against ids alone.

    python benchmarks/items.py [--quick] [--work DIR]

All read the same packs of 4,096 tokens in random order, 16 a batch, warm, in one process, without prefetching. Every
thousandth token is an item's: CT and slides as one vector each (1,024 and 1,536 numbers), chest x-rays, ECGs and notes
as sequences of up to 197, 100 and 256 units of 768 numbers in 16 bits. `pooled` attaches one vector an item, that is
the mean of a sequence; `sequences` its units. `by_time` takes the four most recent items a modality of each segment's
subject instead of those with tokens, and `masks` makes the strictly-before masks of all modalities besides. Rates are
the best of some passes, by the clock or by the process's own time, whichever is less. The last line is JSON.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import loader_data
from loader_data import Kind
from measure import work_folder

from warehouse import Release

BATCH, CONTEXT, K = 16, 4096, 4
KINDS = {
    "ct": Kind(1024, 0.3),
    "wsi": Kind(1536, 0.1),
    "cxr": Kind(768, 0.2, 197),
    "ecg": Kind(768, 0.2, 100),
    "note": Kind(768, 0.2, 256),
}


def best_of(passes: int, work: Callable[[], None]) -> float:
    """Seconds of the best pass, by the clock or by the process, whichever are fewer."""
    seconds = []
    for _ in range(passes + 1):  # the first warms caches and checks checksums
        clock, process = time.perf_counter(), time.process_time()
        work()
        seconds.append(min(time.perf_counter() - clock, time.process_time() - process))
    return min(seconds[1:])


def reading(release: Release, masks: bool = False, **options: Any) -> Callable[[], None]:
    """One epoch, every batch thrown away."""
    dataset = release.shards("mehrt", split="train", seed=1, **options)

    def work() -> None:
        for batch in dataset.batches(BATCH, prefetch=0):
            if masks:
                release.visible_by_modality(batch, K)

    return work


def run(work: Path, quick: bool) -> None:
    """Makes the release where it is not there yet, measures, and prints."""
    tokens, passes = (2_000_000, 3) if quick else (16_000_000, 5)
    root = work / f"items-{tokens}"
    if not (root / "current").exists():
        loader_data.make(root, tokens, CONTEXT, KINDS)
    release = Release.open(root)
    sequences = {name: "sequences" if kind.units else "pooled" for name, kind in KINDS.items()}
    ways: dict[str, dict[str, Any]] = {
        "ids": {"fields": "ids"},
        "rows": {"vectors": False},
        "ct_pooled": {"vectors": {"ct": "pooled"}},
        "cxr_sequences": {"vectors": {"cxr": "sequences"}},
        "five_pooled": {"vectors": "pooled"},
        "five_sequences": {"vectors": sequences},
        "five_sequences_by_time": {"vectors": sequences, "items_per_segment": K},
        "five_sequences_by_time_masks": {"vectors": sequences, "items_per_segment": K, "masks": True},
    }
    packs = len(release.shards("mehrt", split="train"))
    seconds = {name: best_of(passes, reading(release, **options)) for name, options in ways.items()}
    attached = 0
    for batch in release.shards("mehrt", split="train", vectors=sequences).batches(BATCH):
        attached += sum(units.nbytes for units in batch.item_units.values())
    rates = {name: packs * CONTEXT / taken / 1e6 for name, taken in seconds.items()}
    for name, rate in rates.items():
        print(f"{name:>30}: {rate:8,.1f} Mtok/s, {rate / rates['ids']:.4f} of ids alone")
    result = {f"{name}_mtok_s": round(rate, 1) for name, rate in rates.items()}
    result |= {f"{name}_vs_rows": round(rates[name] / rates["rows"], 3) for name in list(ways)[2:]}
    result["sequences_gb_s"] = round(attached / seconds["five_sequences"] / 1e9, 2)
    print(json.dumps(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 M tokens instead of 16 M: under a minute")
    parser.add_argument("--work", type=Path, help="where data is kept for the next time")
    options = parser.parse_args()
    with work_folder(options.work) as folder:
        run(folder, options.quick)


if __name__ == "__main__":
    main()
