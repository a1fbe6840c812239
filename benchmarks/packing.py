"""How full packs are, and how fast they are filled: best-fit in hash order against next-fit and against padding.

Timelines have the lengths of Table A1 of the MEHRT paper (mean 677, standard deviation 1,515 tokens, log-normal). The
stage is then run as the engine runs it, in this process and on one core: from timelines on disk to shards on disk,
synced and hashed, for several plans. The last line is JSON: the share of places filled, tokens lost, documents a second
of the choice of packs, and million tokens a second of the whole stage.

    python benchmarks/packing.py [--quick]
"""

import argparse
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from pipelines import pack
from pipelines.packing.lay import best_fit, cut
from pipelines.profiles.plans import PlanConfig
from warehouse.files import hash_file
from warehouse.hashing import splitmix64
from warehouse.layout import ReleaseLayout
from warehouse.parquet import write_table
from warehouse.schemas import SCHEME_SUBJECTS, TIMELINES
from warehouse.shards.packs import MAX_SEGMENTS
from warehouse.tokens import IMAGE_TOKENS, TokenType

PLANS = {
    "packed": PlanConfig(context=2048),
    "context 8192": PlanConfig(context=8192),
    "one subject a sequence": PlanConfig(context=2048, mode="one_subject_per_sequence"),
    "last 1024": PlanConfig(context=1024, mode="last_n"),
    "without images": PlanConfig(context=2048, images=False),
}
# As the engine's workers have it: one thread, and memory that a block needed is kept for the next one.
WORKER = {"POLARS_MAX_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(256 << 20)}
BUCKETS, REPEATS, YEAR_MINUTES = 4, 3, 60 * 24 * 365
MEAN, DEVIATION, CONTEXT = 677.0, 1515.0, 2048


def lengths(subjects: int) -> npt.NDArray[np.int64]:
    """Log-normal lengths of at least 2 tokens, in the order of the subjects' hashes."""
    sigma = np.sqrt(np.log1p((DEVIATION / MEAN) ** 2))
    drawn = np.random.default_rng(0).lognormal(np.log(MEAN) - sigma**2 / 2, sigma, subjects)
    order = np.argsort(splitmix64(np.arange(subjects)))
    return np.maximum(2, drawn).astype(np.int64)[order]


def next_fit(pieces: npt.NDArray[np.int64], context: int) -> int:
    """Packs used when a piece that does not fit opens a new pack."""
    packs, room = 0, 0
    for piece in pieces.tolist():
        if piece > room:
            packs, room = packs + 1, context
        room -= piece
    return packs


def write_timelines(tree: ReleaseLayout, subjects: int) -> tuple[int, list[str]]:
    """Timelines of so many subjects in four buckets: minutes in order, one token in 500 an image."""
    total, files = 0, []
    rng = np.random.default_rng(1)
    whole = np.array_split(lengths(subjects), BUCKETS)
    first = 0
    for bucket, sizes in enumerate(whole):
        number = int(sizes.sum())
        image = rng.random(number) < 0.002
        minutes = rng.integers(0, 60, number).cumsum() + 25 * YEAR_MINUTES
        frame = pl.DataFrame(
            {
                "subject_id": np.repeat(np.arange(first, first + len(sizes)), sizes),
                "token_id": np.where(image, IMAGE_TOKENS["ct"], 20 + rng.zipf(1.3, number) % 9000).astype(np.uint32),
                "type": np.where(image, int(TokenType.IMAGE), int(TokenType.STRUCTURED)).astype(np.uint8),
                "time": pl.Series(minutes * 60_000_000).cast(pl.Datetime("us")),
            }
        ).with_columns(
            pl.when(pl.Series(image)).then(pl.concat_str(pl.lit("ct-"), pl.int_range(pl.len()))).alias("item_key")
        )
        write_table(tree.timeline("mehrt", bucket), frame, TIMELINES, "timelines")
        files.append(str(tree.timeline("mehrt", bucket).relative_to(tree.path)))
        total, first = total + number, first + len(sizes)
    known = np.arange(first)
    split = np.array(["train", "tuning", "held_out"])[np.searchsorted([85, 90], splitmix64(known) % 100, side="right")]
    frame = pl.DataFrame({"subject_id": known, "split": split, "order": known / first})
    write_table(tree.scheme_subjects("mehrt"), frame, SCHEME_SUBJECTS, "subjects")
    return total, files


def stage_rate(tree: ReleaseLayout, files: Sequence[str], config: PlanConfig) -> tuple[float, float]:
    """CPU seconds and wall seconds of the stage on one group, with the hashing of what it wrote; the best of three."""
    header = {"profile": "mehrt", "token_dtype": "uint16", "vocabulary_hash": "", "vocabulary_size": 9020, "stores": {}}
    params = {"header": header, "plan": "p", "settings": config.model_dump(mode="json"), "scheme": "mehrt",
              "group": 0, "groups": 1, "timelines": list(files)}  # fmt: skip
    taken = []
    for _ in range(REPEATS):
        cpu, wall = time.process_time(), time.perf_counter()
        result = pack.run(params, tree.path)
        for file in result.files:
            hash_file(tree.path / file)
        taken.append((time.process_time() - cpu, time.perf_counter() - wall))
    return min(taken)


def measure_stage(subjects: int) -> dict[str, float]:
    """Million tokens a second of CPU, by plan."""
    with tempfile.TemporaryDirectory() as folder:
        tree = ReleaseLayout(Path(folder))
        # In a process of its own, so that the peak of memory is the stage's.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            total, files = pool.submit(write_timelines, tree, subjects).result()
        rates = {}
        for name, config in PLANS.items():
            cpu, wall = stage_rate(tree, files, config)
            rates[name] = total / cpu / 1e6
            print(f"{name:>22}: {rates[name]:5.1f} M tokens/s of CPU, {total / wall / 1e6:5.1f} M of wall")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{total:,} tokens, peak {peak:,.0f} MB")
        return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="200,000 subjects instead of 2,000,000")
    quick = parser.parse_args().quick
    subjects = 200_000 if quick else 2_000_000
    rates = measure_stage(15_000 if quick else 60_000)
    whole = lengths(subjects)
    start = time.perf_counter()
    _, _, pieces = cut(whole, CONTEXT)
    packs = best_fit(pieces, CONTEXT)
    seconds = time.perf_counter() - start
    used = int(packs.max()) + 1
    segments = int(np.bincount(packs).max())
    fill = {
        "best_fit": pieces.sum() / (used * CONTEXT),
        "next_fit": pieces.sum() / (next_fit(pieces, CONTEXT) * CONTEXT),
        "one_a_pack": pieces.sum() / (len(pieces) * CONTEXT),
    }
    for name, share in fill.items():
        print(f"{name:>10}: {share:.2%} of the places hold a token")
    print(
        f"{subjects:,} subjects, {whole.sum():,} tokens, {used:,} packs in {seconds:.1f} s, at most {segments} segments"
    )
    print(
        json.dumps(
            {
                "pack_fill": round(float(fill["best_fit"]), 5),
                "fill_vs_next_fit": round(float(fill["best_fit"] / fill["next_fit"]), 4),
                "tokens_lost": int(whole.sum() - pieces.sum()),
                "max_segments": segments,
                "max_segments_allowed": MAX_SEGMENTS,
                "documents_per_s": round(subjects / seconds),
                "pack_mtok_s_core": {name: round(rate, 1) for name, rate in rates.items()},
            }
        )
    )


if __name__ == "__main__":
    if any(name not in os.environ for name in WORKER):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | WORKER)
    main()
