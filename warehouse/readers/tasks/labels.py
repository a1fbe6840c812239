"""Labels as the readers of tasks take them: a task of the release, or MEDS label files of anybody's."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from warehouse.errors import TimeloomError
from warehouse.hashing import bucket_of, salt_of, splitmix64
from warehouse.parquet import read_frame
from warehouse.readers.pinned import PinnedRelease, check_split
from warehouse.schemas import SPLITS

# A task of the release; a MEDS label file or a folder of them; or a frame with their columns.
Labels = str | Path | pl.DataFrame
# By which of its two times a fact is taken to be known.
Clock = Literal["available_time", "time"]

FOLDS = 5
SHARES = (0.01, 0.05, 0.10)
COLUMNS = ("subject_id", "prediction_time", "boolean_value")
_FOLD_SALT, _SHARE_SALT = salt_of("timeloom folds"), salt_of("timeloom few-shot subsets")


def read_labels(release: PinnedRelease, labels: Labels) -> pl.DataFrame:
    """subject_id, prediction_time and boolean_value, by bucket, subject and time.

    Raises:
        TimeloomError: no such task or file, or a column is missing, null or of another type.
    """
    if isinstance(labels, pl.DataFrame):
        found = labels
    elif isinstance(labels, Path):
        found = _of_files(labels)
    else:
        found = _of_task(release, labels)
    rows = _conformed(found)
    bucket = pl.Series("bucket", bucket_of(rows["subject_id"].to_numpy(), release.manifest.buckets))
    return rows.with_columns(bucket).sort("bucket", "subject_id", "prediction_time", maintain_order=True).drop("bucket")


def _of_task(release: PinnedRelease, task: str) -> pl.DataFrame:
    tasks = {name.split("/")[1] for name in release.manifest.files if name.startswith("labels/")}
    if task not in tasks:
        known = ", ".join(sorted(tasks)) or "none"
        raise TimeloomError(
            f"the release has no labels of {task}", remedy=f"choose one of: {known}; or give MEDS label files"
        )
    paths = [release.files.labels(task, bucket) for bucket in range(release.manifest.buckets)]
    return pl.concat([read_frame(path) for path in release.checked_all(paths)])


def _of_files(path: Path) -> pl.DataFrame:
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise TimeloomError("there is no label file", remedy="give a MEDS label file or a folder of them")
    frames = [read_frame(file) for file in files]
    return pl.concat([frame.select(name for name in COLUMNS if name in frame.columns) for frame in frames])


def _conformed(found: pl.DataFrame) -> pl.DataFrame:
    remedy = "MEDS' label schema has subject_id, prediction_time and boolean_value"
    lacking = [name for name in COLUMNS if name not in found.columns]
    if lacking:
        raise TimeloomError(f"the labels lack the column {lacking[0]}", remedy=remedy)
    try:
        rows = found.select(
            pl.col("subject_id").cast(pl.Int64),
            pl.col("prediction_time").cast(pl.Datetime("us")),
            pl.col("boolean_value").cast(pl.Boolean),
        )
    except pl.exceptions.PolarsError:
        raise TimeloomError("the labels have columns of other types", remedy=remedy) from None
    empty = [name for name in COLUMNS if rows[name].null_count()]
    if empty:
        raise TimeloomError(f"the labels have nulls in {empty[0]}", remedy=remedy)
    return rows


def with_splits(
    rows: pl.DataFrame, splits: pl.DataFrame, seed: int = 0, shares: Sequence[float] = SHARES
) -> pl.DataFrame:
    """Labels with `split` (null for a subject that has none), `fold` and `few_shot`; rows stay as they are.

    Args:
        rows: as `read_labels` gives them.
        splits: subject_id and split.
        seed: of folds and of few-shot subsets.
        shares: of the few-shot subsets.
    """
    placed = rows.join(splits, on="subject_id", how="left", maintain_order="left")
    for name, values in (("fold", fold_ids(placed, seed)), ("few_shot", few_shot(placed, shares, seed))):
        placed = placed.join(values.rename({"value": name}), on="subject_id", how="left", maintain_order="left")
    return placed


def fold_ids(placed: pl.DataFrame, seed: int = 0) -> pl.DataFrame:
    """subject_id and value: the fold, 0 to 4, of each labelled subject of train and tuning; others have no row.

    A subject's labels are all in one fold. Subjects with a positive label are dealt first, in an order drawn by the
    seed, then the others, so that folds differ by at most one subject of either kind, and by at most one in all.

    Args:
        placed: subject_id, boolean_value and split.
    """
    subjects = _subjects(placed, ("train", "tuning"), _FOLD_SALT, seed)
    return subjects.sort("positive", "drawn", "subject_id", descending=[True, False, False]).select(
        "subject_id", (pl.int_range(pl.len()) % FOLDS).cast(pl.Int32).alias("value")
    )


def few_shot(placed: pl.DataFrame, shares: Sequence[float] = SHARES, seed: int = 0) -> pl.DataFrame:
    """subject_id and value: the smallest share of train's labelled subjects that each belongs to; others have no row.

    Subsets are prefixes of one order, drawn by the seed, in which every prefix has about as large a part of positive
    subjects as the whole; so that of 1 % is in that of 5 %. A share has the whole subjects nearest to it, at least one.

    Args:
        placed: subject_id, boolean_value and split.

    Raises:
        TimeloomError: a share is not between 0 and 1, or they do not increase.
    """
    if not shares or any(not 0 < share <= 1 for share in shares) or list(shares) != sorted(set(shares)):
        raise TimeloomError("few-shot shares do not increase from above 0 to 1", remedy="give e.g. 0.01, 0.05, 0.1")
    subjects = _subjects(placed, ("train",), _SHARE_SALT, seed).sort("positive", "drawn", "subject_id")
    # Subjects of each kind spread evenly over the order: its place is where in its own kind a subject stands.
    rank, kind = pl.int_range(pl.len()).over("positive"), pl.len().over("positive")
    order = subjects.with_columns(((rank + 0.5) / kind).alias("place")).sort("place", "drawn", "subject_id")
    sizes = [max(1, round(share * len(order))) for share in shares]
    tier = np.searchsorted(sizes, np.arange(len(order)), side="right")
    return (
        order.with_columns(pl.Series("value", np.append(shares, np.nan)[tier], pl.Float64))
        .select("subject_id", pl.col("value").fill_nan(None))
        .drop_nulls("value")
    )


def _subjects(placed: pl.DataFrame, splits: Sequence[str], salt: int, seed: int) -> pl.DataFrame:
    """The labelled subjects of some splits: subject_id, positive (whether any label is) and a drawn number."""
    wanted = placed.filter(pl.col("split").is_in([check_split(split) for split in splits]))
    subjects = wanted.group_by("subject_id").agg(pl.col("boolean_value").any().alias("positive"))
    drawn = splitmix64(subjects["subject_id"].to_numpy(), salt, seed)
    return subjects.with_columns(pl.Series("drawn", drawn, pl.UInt64))


def check_clock(clock: str) -> Clock:
    """A clock by its name; raises TimeloomError where there is none."""
    if clock not in ("available_time", "time"):
        raise TimeloomError(f"there is no clock {clock}", remedy="choose available_time or time")
    return "time" if clock == "time" else "available_time"


def chosen_splits(splits: Sequence[str] | str | None) -> list[str]:
    """Names of splits, all of them for None; raises TimeloomError for another name."""
    if splits is None:
        return list(SPLITS)
    return [check_split(split) for split in ([splits] if isinstance(splits, str) else splits)]
