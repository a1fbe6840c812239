"""How alike splits are, and how long it takes: ours, a plain hash, and scikit-learn's stratified shuffle.

Subjects have the lengths of Table A1 of the MEHRT paper (mean 677, standard deviation 1,515 tokens, log-normal), mean
intervals of its quartiles (0.016, 0.361, 4.939 days, log-normal, at most 400) and images in 4 %, more often where
records are long. After the freeze 11 % new subjects come. The last line is JSON; figures are the largest of tuning and
held_out against train, before and after the growth. `cpu_seconds` are those of this process: `seconds` say little where
other work shares the machine.

    python benchmarks/splits.py [--quick] [--sklearn PYTHON]

Args:
    --quick: 200,000 subjects instead of 2.3 million.
    --sklearn: a Python that has numpy and scikit-learn, in an environment of its own.
"""

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from pipelines.split import assign
from pipelines.splitting.ledger import INHERITED, Freeze, no_ledger
from pipelines.splitting.order import order_of
from pipelines.splitting.strata import quartiles, strata
from validation.measure.cohort.splits import ks_statistic, smd
from warehouse.hashing import salt_of, splitmix64
from warehouse.schemas import SPLITS

FRACTIONS = (0.85, 0.05, 0.10)
MEAN, DEVIATION = 677.0, 1515.0
QUARTILES = (0.016, 0.361, 4.939)
IMAGING, GROWTH = 0.0425, 0.11

# What scikit-learn is asked for: the same strata, 85 % against 15 %, then these 5 to 10.
SKLEARN = """
import sys, time
import numpy as np
from sklearn.model_selection import train_test_split
strata = np.load(sys.argv[1])
start = time.perf_counter()
common = np.bincount(strata)[strata] >= 20
label = np.where(common, strata, strata.max() + 1)
rows = np.arange(len(strata))
train, rest = train_test_split(rows, test_size=0.15, stratify=label, random_state=0)
tuning, held = train_test_split(rest, test_size=2 / 3, stratify=label[rest], random_state=0)
split = np.zeros(len(strata), np.uint8)
split[tuning], split[held] = 1, 2
print(time.perf_counter() - start)
np.save(sys.argv[2], split)
"""


def simulate(number: int, seed: int = 0) -> pl.DataFrame:
    """Columns of SUBJECTS."""
    rng = np.random.default_rng(seed)
    sigma = np.sqrt(np.log1p((DEVIATION / MEAN) ** 2))
    length = np.maximum(2, rng.lognormal(np.log(MEAN) - sigma**2 / 2, sigma, number)).astype(np.int64)
    deviation = np.log(QUARTILES[2] / QUARTILES[0]) / (2 * 0.6745)
    interval = np.minimum(400, rng.lognormal(np.log(QUARTILES[1]), deviation, number))
    image = rng.random(number) / np.clip(length / MEAN, 0.2, 4)
    return pl.DataFrame(
        {
            "subject_id": splitmix64(np.arange(number), seed).view(np.int64) >> np.int64(1),
            "events": length,
            "static_events": np.ones(number, np.int64),
            "ct": (image < 0.8 * IMAGING).astype(np.int64),
            "wsi": ((image > 0.6 * IMAGING) & (image < IMAGING)).astype(np.int64),
            "mean_interval_days": interval,
        }
    )


def compare(subjects: pl.DataFrame, split: npt.NDArray[np.uint8]) -> dict[str, float]:
    """The largest figures of tuning and held_out against train."""
    kind = (subjects["ct"].to_numpy() > 0) * 1 + (subjects["wsi"].to_numpy() > 0) * 2
    length, interval = subjects["events"].to_numpy(), subjects["mean_interval_days"].to_numpy()
    train = split == 0
    share = np.bincount(kind[train], minlength=4) / train.sum()
    found: dict[str, float] = dict.fromkeys(("ks_length", "smd_log_length", "smd_interval", "modality_points"), 0.0)
    for other in (1, 2):
        of_split = split == other
        points = 100 * np.abs(np.bincount(kind[of_split], minlength=4) / of_split.sum() - share).max()
        figures = {
            "ks_length": ks_statistic(length[train], length[of_split]),
            "smd_log_length": abs(smd(np.log(length[train]), np.log(length[of_split]))),
            "smd_interval": abs(smd(interval[train], interval[of_split])),
            "modality_points": float(points),
        }
        found = {name: max(found[name], value) for name, value in figures.items()}
    return found


def codes(subjects: pl.DataFrame, ledger: pl.DataFrame) -> npt.NDArray[np.uint8]:
    """The split of each subject, as an index into SPLITS."""
    named = subjects.select("subject_id").join(ledger, on="subject_id", how="left", maintain_order="left")["split"]
    return named.replace_strict({name: code for code, name in enumerate(SPLITS)}, return_dtype=pl.UInt8).to_numpy()


def freeze_of(subjects: pl.DataFrame) -> Freeze:
    return Freeze("mehrt", dict(zip(SPLITS, FRACTIONS, strict=True)), quartiles(subjects))


def off_quota(ledger: pl.DataFrame) -> float:
    """By how many subjects a split of a stratum is off its quota, at most."""
    counted = ledger.filter(pl.col("stratum") != INHERITED).group_by("stratum").agg(
        pl.len().alias("size"), *((pl.col("split") == name).sum().cast(pl.Int64).alias(name) for name in SPLITS)
    )  # fmt: skip
    off = [(counted[name] - counted["size"] * share).abs().max() for name, share in zip(SPLITS, FRACTIONS, strict=True)]
    return max(float(str(deviation)) for deviation in off)


def ours(number: int, seed: int = 0) -> dict[str, float]:
    """Freeze, growth by 11 %, and the figures of both."""
    everyone = simulate(round(number * (1 + GROWTH)), seed)
    subjects = everyone[:number]
    start, cpu = time.perf_counter(), time.process_time()
    ledger, _, freeze = assign(subjects, no_ledger(), freeze_of(subjects))
    order_of(ledger, freeze)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    before = compare(subjects, codes(subjects, ledger))
    prefix, random_prefix = prefixes(subjects, ledger, freeze)
    start = time.perf_counter()
    grown, _, _ = assign(everyone, ledger, freeze)
    growth_seconds = time.perf_counter() - start
    after = compare(everyone, codes(everyone, grown))
    moved = int((codes(subjects, grown) != codes(subjects, ledger)).sum()) + int(not grown[:number].equals(ledger))
    return {name: max(before[name], after[name]) for name in before} | {
        "off_quota": max(off_quota(ledger), off_quota(grown)),
        "moved": moved,
        "ks_prefix": prefix,
        "ks_random_prefix": random_prefix,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "growth_seconds": growth_seconds,
    }


def prefixes(subjects: pl.DataFrame, ledger: pl.DataFrame, freeze: Freeze) -> tuple[float, float]:
    """KS of length of a hundredth of train against all of it: the first of the order, and drawn by chance."""
    placed = ledger.with_columns(pl.Series("order", order_of(ledger, freeze))).filter(split="train").sort("order")
    length = placed.join(subjects, on="subject_id", how="left", maintain_order="left")["events"].to_numpy()
    prefix = max(10, len(length) // 100)
    drawn = np.random.default_rng(0).permutation(length)[:prefix]
    return ks_statistic(length[:prefix], length), ks_statistic(drawn, length)


def by_hash(subjects: pl.DataFrame) -> npt.NDArray[np.uint8]:
    """Splits by the hash of the id alone."""
    place = splitmix64(subjects["subject_id"].to_numpy(), salt_of("plain")).astype(np.float64) / 2**64
    return np.searchsorted(np.cumsum(FRACTIONS)[:2], place, side="right").astype(np.uint8)


def by_sklearn(python: Path, subjects: pl.DataFrame, folder: Path) -> tuple[npt.NDArray[np.uint8], float]:
    """scikit-learn's splits of our strata, and its seconds."""
    stratum = strata(subjects, quartiles(subjects)).to_physical().to_numpy()
    np.save(folder / "strata.npy", stratum.astype(np.int64))
    paths = [str(folder / name) for name in ("strata.npy", "split.npy")]
    done = subprocess.run([str(python), "-c", SKLEARN, *paths], capture_output=True, text=True, check=True)
    return np.load(paths[1]), float(done.stdout)


def show(name: str, figures: dict[str, float]) -> None:
    print(f"{name:>22}: " + ", ".join(f"{key} {value:.5g}" for key, value in figures.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="200,000 subjects instead of 2.3 million")
    parser.add_argument("--sklearn", type=Path, metavar="PYTHON", help="a Python that has scikit-learn")
    options = parser.parse_args()
    number = 200_000 if options.quick else 2_300_000
    result: dict[str, Any] = {"subjects": number, **ours(number)}
    show(f"ours, {number:,}", result)
    for label, size, draws in (("20k", 20_000, 10), ("500", 500, 10)):
        runs = [ours(size, seed) for seed in range(draws)]
        worst = {name: max(run[name] for run in runs) for name in runs[0]}
        show(f"ours, {size:,}, worst of {draws}", worst)
        result |= {f"{name}_{label}": worst[name] for name in ("ks_length", "off_quota", "moved")}
    subjects = simulate(number)
    peers = {"hash": compare(subjects, by_hash(subjects)), "hash_20k": compare(*_hashed(20_000))}
    if options.sklearn:
        with tempfile.TemporaryDirectory() as folder:
            split, seconds = by_sklearn(options.sklearn, subjects, Path(folder))
            more = simulate(round(number * (1 + GROWTH)))
            again, _ = by_sklearn(options.sklearn, more, Path(folder))
        peers["sklearn"] = compare(subjects, split) | {
            "moved": int((again[:number] != split).sum()),
            "seconds": seconds,
        }
    for name, figures in peers.items():
        show(name, figures)
        result |= {f"{key}_{name}": value for key, value in figures.items()}
    print(json.dumps({name: round(value, 6) for name, value in result.items()}))


def _hashed(number: int) -> tuple[pl.DataFrame, npt.NDArray[np.uint8]]:
    subjects = simulate(number)
    return subjects, by_hash(subjects)


if __name__ == "__main__":
    main()
