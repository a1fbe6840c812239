"""What is measured of the events: aggregates only, one bucket in memory at a time."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from validation.measure.annotations import FAULTS, NO_ANNOTATIONS, count_annotations, repeated_codes
from validation.measure.reading import collect, existing, gather, scan, unreadable
from warehouse.hashing import bucket_of
from warehouse.layout import ReleaseLayout
from warehouse.parquet import row_groups
from warehouse.schemas import ITEMS

BIRTH, DEATH = "MEDS_BIRTH", "MEDS_DEATH"
EARLIEST, LATEST = datetime(1850, 1, 1), datetime(2300, 1, 1)


@dataclass(frozen=True)
class EventMeasures:
    """What one pass over data/ gives.

    Attributes:
        summary: one row of counts, see `measure_events`.
        subjects: `subject_id`, `bucket`: one row for each subject and each file that holds rows of it.
        sources: a row per source, see `count_annotations`.
        item_events: `item_key`, `events`.
    """

    summary: pl.DataFrame
    subjects: pl.DataFrame
    sources: pl.DataFrame
    item_events: pl.DataFrame


def _is(code: str) -> pl.Expr:
    return (pl.col("code") == code) | pl.col("code").str.starts_with(f"{code}//")


def _counts(path: Path, latest: datetime) -> pl.DataFrame:
    """One row of counts of one bucket."""
    subject, time = pl.col("subject_id"), pl.col("time")
    same = (subject == subject.shift(1)).fill_null(False)
    before = time.shift(1)
    backwards = (same & ((time < before) | (time.is_null() & before.is_not_null()))).fill_null(False)
    return collect(
        scan(path).select(
            pl.len().cast(pl.Int64).alias("rows"),
            (pl.col("code").fill_null("").str.len_bytes() == 0).sum().cast(pl.Int64).alias("empty_codes"),
            # a subject whose rows stand in two places starts twice
            (backwards.sum().cast(pl.Int64) + (~same).sum().cast(pl.Int64) - subject.n_unique().cast(pl.Int64)).alias(
                "rows_out_of_order"
            ),
            (pl.col("available_time") < time).sum().cast(pl.Int64).alias("available_before_time"),
            ((time < EARLIEST) | (time > latest)).sum().cast(pl.Int64).alias("implausible_times"),
        ),
        path,
    )


def _twice(path: Path) -> int:
    """Subjects of one bucket that are born or die more than once."""
    repeated = (
        scan(path)
        .filter(_is(BIRTH) | _is(DEATH))
        .group_by("subject_id")
        .agg(_is(BIRTH).sum().alias("births"), _is(DEATH).sum().alias("deaths"))
        .filter((pl.col("births") > 1) | (pl.col("deaths") > 1))
        .select(pl.len())
    )
    return int(collect(repeated, path).item())


def _breaks(path: Path, validate: Callable[[pa.Table], None]) -> bool:
    """Whether any row group of a Parquet file breaks a MEDS schema."""
    try:
        file = pq.ParquetFile(path)
        tables = (file.read_row_groups(groups) for groups in row_groups(file)) if file.num_row_groups else [file.read()]
        for table in tables:
            validate(table)
    except (OSError, pa.ArrowException) as error:
        raise unreadable(path) from error
    except Exception:  # the meds package raises a type per kind of break; all of them mean the same here
        return True
    return False


def meds_breaks(tree: ReleaseLayout, buckets: int) -> list[str]:
    """The files of a release that break their MEDS 0.4 schema, as `folder/file`.

    Raises:
        TimeloomError: a file is damaged.
    """
    from meds.schema import CodeMetadataSchema, DataSchema, SubjectSplitSchema

    checks = [(tree.codes, CodeMetadataSchema.validate), (tree.subject_splits, SubjectSplitSchema.validate)]
    checks += [(path, DataSchema.validate) for path in existing(tree.events(bucket) for bucket in range(buckets))]
    return [f"{path.parent.name}/{path.name}" for path, check in checks if not path.is_file() or _breaks(path, check)]


def misplaced_subjects(subjects: pl.DataFrame, buckets: int) -> int:
    """Subjects that lie in more than one file, or in one that is not their bucket's.

    Args:
        subjects: `subject_id`, `bucket`.
    """
    home = pl.Series("home", bucket_of(subjects["subject_id"].to_numpy(), buckets))
    wrong = (
        subjects.with_columns(home)
        .group_by("subject_id")
        .agg(
            (pl.col("bucket").n_unique() > 1).alias("several"), (pl.col("bucket") != pl.col("home")).any().alias("away")
        )
    )
    return wrong.filter(pl.col("several") | pl.col("away")).height


def event_subjects(tree: ReleaseLayout, buckets: int) -> pl.DataFrame:
    """`subject_id`, `bucket` of every subject in every file of data/."""
    frames = [pl.DataFrame(schema={"subject_id": pl.Int64, "bucket": pl.Int64})]
    for bucket in range(buckets):
        for path in existing([tree.events(bucket)]):
            unique = collect(scan(path).select(pl.col("subject_id").unique()), path)
            frames.append(unique.with_columns(pl.lit(bucket, pl.Int64).alias("bucket")))
    return pl.concat(frames)


def measure_events(tree: ReleaseLayout, buckets: int, latest: datetime | None = None) -> EventMeasures:
    """Measures data/ against itself, its metadata and the items.

    `summary` has the columns rows, subjects, empty_codes, rows_out_of_order, available_before_time,
    implausible_times (before 1850, after `latest`), born_or_dead_twice, misplaced_subjects, undescribed_codes,
    repeated_codes, unknown_items, schema_breaks, and the FAULTS of count_annotations.

    Args:
        latest: the last moment that an event may have; 2300 where dates are shifted and no such moment is known.
    """
    paths = existing(tree.events(bucket) for bucket in range(buckets))
    counts = [_counts(path, latest or LATEST) for path in paths]
    sums = pl.concat(counts).sum() if counts else None
    annotations = (
        pl.concat([NO_ANNOTATIONS, *(count_annotations(path) for path in paths)])
        .group_by("source")
        .sum()
        .sort("source")
    )
    keys = [collect(scan(path).select("item_key").filter(pl.col("item_key").is_not_null()), path) for path in paths]
    codes = [collect(scan(path).select(pl.col("code").unique()), path) for path in paths]
    described = collect(scan(tree.codes).select("code"), tree.codes)
    undescribed = (
        pl.concat(codes).unique().filter(pl.col("code").is_not_null()).join(described, on="code", how="anti").height
        if codes
        else 0
    )
    item_events = (
        pl.concat([pl.DataFrame(schema={"item_key": pl.String}), *keys], how="vertical_relaxed")
        .group_by("item_key")
        .agg(pl.len().cast(pl.Int64).alias("events"))
    )
    known = gather((tree.items(bucket) for bucket in range(buckets)), ITEMS, ["item_key"])
    subjects = event_subjects(tree, buckets)
    zero = dict.fromkeys(("rows", "empty_codes", "rows_out_of_order", "available_before_time", "implausible_times"), 0)
    summary = (pl.DataFrame([zero]) if sums is None else sums).with_columns(
        pl.lit(subjects["subject_id"].n_unique()).alias("subjects"),
        pl.lit(sum(_twice(path) for path in paths)).alias("born_or_dead_twice"),
        pl.lit(misplaced_subjects(subjects, buckets)).alias("misplaced_subjects"),
        *(pl.lit(int(annotations[name].sum())).alias(name) for name in FAULTS),
        pl.lit(undescribed).alias("undescribed_codes"),
        pl.lit(repeated_codes(tree)).alias("repeated_codes"),
        pl.lit(item_events.join(known, on="item_key", how="anti").height).alias("unknown_items"),
        pl.lit(len(meds_breaks(tree, buckets))).alias("schema_breaks"),
    )
    return EventMeasures(summary, subjects, annotations, item_events)
