"""How fast packs become batches: this project's reader against np.memmap by hand, litdata and MosaicML's MDS.

    python benchmarks/loader.py [--quick] [--work DIR]

Everybody reads the same packs in random order, warm, one process. `ids`: batches of int64 ids. `rows`: ids, segment
and position ids, cu_seqlens, times, token types, loss mask and image references (position, modality, key), by this
project and by a loader of thirty lines over np.memmap files with the same tensors. `images`: rows with the images'
vectors attached, against rows without, for all subjects (0.1 % of the tokens are images, as in MEHRT's stage 1) and for
those with images alone (0.8 %, as in its stages 2 and 3). A process searches for a vector once: `..._first_epoch` are
the rates of the epoch in which it does, with all that both open then. `..._limit` is what the rate with vectors would
be if nothing but a copy of them were added: as many rows of the same widths, taken at random from one array in memory
by numpy. litdata and MDS run in an environment of their own under --work. Rates are the best of many passes, taken in
turns, by the clock or by the process's own time, whichever is less. The last line is JSON.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import loader_data
import loader_peers
import numpy as np
import torch
from measure import work_folder

from warehouse import Release
from warehouse.embeddings.store import close_stores
from warehouse.readers.dataset import ShardDataset

LITDATA, MDS = "litdata==0.2.76", "mosaicml-streaming==0.13.0"
# What the two need to read local files; torch and numpy are this environment's (see `_peer_environment`).
BESIDE = ("lightning-utilities", "brotli", "zstd", "python-snappy", "cramjam", "obstore", "boto3", "botocore")
BESIDE += ("s3transfer", "jmespath", "catalogue")
BATCH = 64
FIRST = """
import sys, time, torch, warehouse.readers.dataset
from warehouse import Release
start = time.perf_counter()
next(iter(Release.open(sys.argv[1]).shards("mehrt", split="train", seed=1).batches(int(sys.argv[2]))))
print(time.perf_counter() - start)
"""


def memmap_files(dataset: "ShardDataset[Any]", folder: Path) -> None:
    """The dataset's packs as plain arrays: what the hand-written loader and the peers are made from."""
    folder.mkdir(parents=True)
    whole = [dataset.load(step) for step in dataset.steps(256, "ragged")]

    def save(name: str, arrays: list[Any], dtype: str) -> None:
        np.concatenate([np.asarray(array) for array in arrays]).astype(dtype).tofile(folder / name)

    save("ids.bin", [batch.input_ids for batch in whole], "<u2")
    save("types.bin", [batch.token_type for batch in whole], "u1")
    save("times.bin", [batch.time_us for batch in whole], "<i8")
    save("segments.bin", [np.diff(batch.cu_seqlens) for batch in whole], "<i4")
    save("subjects.bin", [batch.subject_ids for batch in whole], "<i8")
    save("segments_of_pack.bin", [batch.segments_per_pack for batch in whole], "<i8")
    images, counts = [], []
    for batch in whole:
        order = sorted(
            (int(row), int(place), number, key)
            for number, modality in enumerate(batch.item_keys)
            for (row, place), key in zip(batch.item_positions[modality], batch.item_keys[modality], strict=True)
        )
        images += [(place, number, key) for _, place, number, key in order]
        counts.append(np.bincount([row for row, *_ in order], minlength=len(batch)))
    np.array(images, dtype=[("place", "<i4"), ("modality", "<i4"), ("key", "U40")]).tofile(folder / "images.bin")
    save("images_of_pack.bin", counts, "<i8")


class MemmapRows:
    """Full rows as one writes it by hand over np.memmap: columns by fancy indexing, ragged ones by offsets."""

    def __init__(self, folder: Path, context: int) -> None:
        def column(name: str, dtype: Any, *shape: int) -> Any:
            return np.memmap(folder / name, dtype, mode="r").reshape(-1, *shape)

        self.ids = column("ids.bin", np.uint16, context)
        self.types = column("types.bin", np.uint8, context)
        self.times = column("times.bin", np.int64, context)
        self.lengths = column("segments.bin", np.int32).ravel()
        self.subjects = column("subjects.bin", np.int64).ravel()
        image = [("place", "<i4"), ("modality", "<i4"), ("key", "U40")]
        self.images = column("images.bin", image).ravel()
        self.segment_edges = np.concatenate([[0], np.cumsum(column("segments_of_pack.bin", np.int64).ravel())])
        self.image_edges = np.concatenate([[0], np.cumsum(column("images_of_pack.bin", np.int64).ravel())])
        self.targets = np.array([False, True, True, False, False])

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, rows: Any) -> dict[str, Any]:
        ids = self.ids[rows].astype(np.int64)
        types, times = self.types[rows], self.times[rows]
        segment = np.concatenate([np.arange(self.segment_edges[row], self.segment_edges[row + 1]) for row in rows])
        counts = self.segment_edges[rows + 1] - self.segment_edges[rows]
        lengths = self.lengths[segment].astype(np.int64)
        local = np.concatenate([np.arange(count) for count in counts])
        ends = np.cumsum(lengths)
        filled = np.add.reduceat(lengths, np.cumsum(counts) - counts)
        real = np.arange(ids.shape[1]) < filled[:, None]
        segment_ids = np.full(ids.shape, -1, dtype=np.int32)
        segment_ids[real] = np.repeat(local, lengths)
        position_ids = np.zeros(ids.shape, dtype=np.int64)
        position_ids[real] = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
        loss_mask = self.targets[types] & (ids > 3) & (position_ids > 0)
        image = np.concatenate([np.arange(self.image_edges[row], self.image_edges[row + 1]) for row in rows])
        found = self.images[image]
        row_of = np.repeat(np.arange(len(rows)), self.image_edges[rows + 1] - self.image_edges[rows])
        tensors = {
            "input_ids": ids,
            "token_type": types,
            "time_us": times,
            "segment_ids": segment_ids,
            "position_ids": position_ids,
            "loss_mask": loss_mask,
            "cu_seqlens": np.concatenate([[0], ends]).astype(np.int32),
            "subject_ids": self.subjects[segment],
            "image_positions": np.stack([row_of, found["place"]], axis=1),
            "image_modality": found["modality"],
        }
        return {name: torch.from_numpy(array) for name, array in tensors.items()} | {"keys": found["key"].tolist()}


def check_same(dataset: "ShardDataset[Any]", rows: MemmapRows) -> None:
    """Both loaders give the same tensors for the same packs."""
    packs = np.arange(0, len(rows), 7)[:BATCH]
    ours, theirs = dataset.load(next(iter(_step(packs)))), rows.batch(packs)
    for name in ("input_ids", "token_type", "time_us", "segment_ids", "position_ids", "loss_mask", "cu_seqlens"):
        assert torch.equal(getattr(ours, name), theirs[name]), name
    assert sorted(key for keys in ours.item_keys.values() for key in keys) == sorted(theirs["keys"])


def _step(packs: Any) -> Any:
    from warehouse.readers.stream import Step

    yield Step(packs, (0, 0))


def seconds(work: Callable[[], object]) -> float:
    """Seconds of the clock or of the process, whichever are fewer: what else the machine does then matters less."""
    clock, process = time.perf_counter(), time.process_time()
    work()
    return min(time.perf_counter() - clock, time.process_time() - process)


def drained(dataset: "ShardDataset[Any]", prefetch: int) -> Callable[[], object]:
    """One epoch of a dataset, every batch thrown away."""

    def work() -> None:
        for _ in dataset.batches(BATCH, prefetch=prefetch):
            pass

    return work


def memmap_ids(ids: Any) -> Callable[[], object]:
    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        order = np.random.default_rng(1).permutation(len(ids))
        for first in range(0, len(order), BATCH):
            packs = order[first : first + BATCH]
            yield torch.from_numpy(ids[packs].astype(np.int64)), torch.from_numpy(packs)

    def work() -> None:
        for _ in batches():  # held until the next is made, as a training loop holds a batch
            pass

    return work


def memmap_rows(rows: MemmapRows) -> Callable[[], object]:
    def work() -> None:
        order = np.random.default_rng(1).permutation(len(rows))
        for first in range(0, len(order), BATCH):
            rows.batch(order[first : first + BATCH])

    return work


def first_epoch(made: Callable[[], "ShardDataset[Any]"]) -> Callable[[], object]:
    """An epoch of a dataset that has opened nothing, nor has its process any store."""

    def work() -> None:
        close_stores()
        drained(made(), 0)()

    return work


def copies(dataset: "ShardDataset[Any]") -> Callable[[], object]:
    """As many vectors as each batch of an epoch has, copied at random from arrays that hold as many as there are."""
    counts = [{name: len(keys) for name, keys in batch.item_keys.items()} for batch in dataset.batches(BATCH)]
    random = np.random.default_rng(2)
    totals = {name: sum(counts_of_batch[name] for counts_of_batch in counts) for name in loader_data.DIMS}
    arrays = {
        name: random.standard_normal((totals[name], width), dtype=np.float32)
        for name, width in loader_data.DIMS.items()
    }
    wanted = [
        {name: random.integers(0, totals[name], count) for name, count in counts_of_batch.items()}
        for counts_of_batch in counts
    ]

    def batches() -> Iterator[dict[str, torch.Tensor]]:
        for batch_rows in wanted:
            yield {name: torch.from_numpy(arrays[name][rows]) for name, rows in batch_rows.items()}

    def work() -> None:
        for _ in batches():
            pass

    return work


def _peer_environment(name: str, requirement: str, work: Path) -> Path | None:
    """The Python of an environment with one peer in it, which takes torch and numpy from this one; None without."""
    folder = work / "envs" / name
    python = folder / "bin" / "python"
    if not (folder / "installed").is_file():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        site = next(folder.glob("lib/python*/site-packages"))
        ours = next(path for path in sys.path if path.endswith("site-packages"))
        (site / "ours.pth").write_text(ours + "\n", encoding="utf-8")
        install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", requirement, *BESIDE]
        if subprocess.run(install, capture_output=True).returncode:
            return None
        (folder / "installed").touch()
    return python


def peer_seconds(name: str, requirement: str, work: Path, data: Path, context: int, passes: int) -> float | None:
    """Seconds a peer takes for all packs, the best of some passes; None where it cannot be installed or run."""
    python = _peer_environment(name, requirement, work)
    if python is None:
        return None
    script = str(Path(loader_peers.__file__))
    command = [
        str(python),
        script,
        name,
        str(data / "ids.bin"),
        str(data / name),
        str(context),
        str(BATCH),
        str(passes),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{name} failed: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return None
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="8 M tokens instead of 50 M")
    parser.add_argument("--work", type=Path, help="where environments and data are kept for the next time")
    options = parser.parse_args()
    with work_folder(options.work) as folder:
        run(folder, options.quick)


def run(work: Path, quick: bool) -> None:
    tokens, context, passes = (8_000_000, 4096, 40) if quick else (50_000_000, 4096, 8)
    data = work / f"loader-{tokens}"
    if not (data / "done").is_file():
        loader_data.make(data / "root", tokens, context)
        memmap_files(
            Release.open(data / "root").shards("mehrt", split="train", seed=None, vectors=False), data / "plain"
        )
        (data / "done").touch()
    release = Release.open(data / "root")

    def shards(**kwargs: Any) -> "ShardDataset[Any]":
        return release.shards("mehrt", split="train", seed=1, **kwargs)

    rows = MemmapRows(data / "plain", context)
    whole, imaging = shards(vectors=False), shards(vectors=False, plan="imaging")
    check_same(whole, rows)
    runs: dict[str, tuple[int, Callable[[], object]]] = {
        "memmap ids": (len(rows), memmap_ids(rows.ids)),
        "timeloom ids": (len(whole), drained(shards(fields="ids"), 0)),
        "memmap rows": (len(rows), memmap_rows(rows)),
        "timeloom rows": (len(whole), drained(whole, 0)),
        "timeloom rows, prefetching": (len(whole), drained(shards(vectors=False), 2)),
        "timeloom rows with vectors": (len(whole), drained(shards(), 0)),
        "timeloom imaging rows": (len(imaging), drained(imaging, 0)),
        "timeloom imaging rows with vectors": (len(imaging), drained(shards(plan="imaging"), 0)),
        "copies of vectors": (len(whole), copies(whole)),
        "copies of imaging vectors": (len(imaging), copies(imaging)),
    }
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(passes + 1):  # the first pass warms caches, checks checksums
        for name, (_, timed_work) in runs.items():
            best[name] = min(best[name], seconds(timed_work))
    for name, made in {
        "timeloom rows, first epoch": lambda: shards(vectors=False),
        "timeloom rows with vectors, first epoch": shards,
        "timeloom imaging rows, first epoch": lambda: shards(vectors=False, plan="imaging"),
        "timeloom imaging rows with vectors, first epoch": lambda: shards(plan="imaging"),
    }.items():
        runs[name] = len(made()), first_epoch(made)
        best[name] = min(seconds(runs[name][1]) for _ in range(5))
    rates = {name: runs[name][0] * context / best[name] / 1e6 for name in runs}
    for name, requirement in (("litdata", LITDATA), ("mds", MDS)):
        took = peer_seconds(name, requirement, work, data / "plain", context, passes)
        if took is not None:
            rates[f"{name} ids"] = len(rows) * context / took / 1e6
    command = [sys.executable, "-c", FIRST, str(data / "root"), str(BATCH)]
    firsts = [float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(3)]
    for name, rate in rates.items():
        print(f"{name:>47}: {rate:8,.0f} Mtok/s")

    def limit(rows: str, copied: str) -> float:
        return round(best[rows] / (best[rows] + best[copied]), 2)

    def ratio(ours: str, other: str) -> float | None:
        return round(rates[ours] / rates[other], 2) if other in rates else None

    result = {
        "ids_vs_memmap": ratio("timeloom ids", "memmap ids"),
        "ids_vs_litdata": ratio("timeloom ids", "litdata ids"),
        "ids_vs_mds": ratio("timeloom ids", "mds ids"),
        "rows_vs_memmap_rows": ratio("timeloom rows", "memmap rows"),
        "images_vs_none": ratio("timeloom rows with vectors", "timeloom rows"),
        "images_vs_none_limit": limit("timeloom rows", "copies of vectors"),
        "images_vs_none_first_epoch": ratio("timeloom rows with vectors, first epoch", "timeloom rows, first epoch"),
        "images_vs_none_imaging_only": ratio("timeloom imaging rows with vectors", "timeloom imaging rows"),
        "images_vs_none_imaging_only_limit": limit("timeloom imaging rows", "copies of imaging vectors"),
        "images_vs_none_imaging_only_first_epoch": ratio(
            "timeloom imaging rows with vectors, first epoch", "timeloom imaging rows, first epoch"
        ),
        "first_batch_s": round(min(firsts), 3),
        "ids_mtok_s": round(rates["timeloom ids"]),
        "rows_mtok_s": round(rates["timeloom rows"]),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
