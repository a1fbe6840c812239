"""What is measured of the events, the ledger and the items: aggregates only, one bucket in memory at a time."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from validation.measure.annotations import FAULTS, NO_MARKS, count_marks, repeated_codes, unlisted_rows
from validation.measure.reading import collect, existing, gather, scan, unreadable
from warehouse.errors import TimeloomError
from warehouse.hashing import bucket_of
from warehouse.layout import ReleaseLayout
from warehouse.schemas import ITEMS, LEDGER

BIRTH, DEATH = "MEDS_BIRTH", "MEDS_DEATH"
EARLIEST, LATEST = datetime(1850, 1, 1), datetime(2300, 1, 1)
SURPLUS = "further_birth_or_death"
SUMMED = ("events", "static", "reference", "quarantined")


@dataclass(frozen=True)
class EventMeasures:
    """What one pass over data/ gives.

    Attributes:
        summary: one row of counts, see `measure_events`.
        subjects: `subject_id`, `bucket`: one row for each subject and each file that holds rows of it.
        sources: a row per source, see `count_marks`.
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
    marks = (
        scan(path)
        .filter(_is(BIRTH) | _is(DEATH))
        .group_by("subject_id")
        .agg(_is(BIRTH).sum().alias("births"), _is(DEATH).sum().alias("deaths"))
        .filter((pl.col("births") > 1) | (pl.col("deaths") > 1))
        .select(pl.len())
    )
    return int(collect(marks, path).item())


def _breaks(path: Path, validate: Callable[[pa.Table], None]) -> bool:
    """Whether any row group of a Parquet file breaks a MEDS schema."""
    try:
        file = pq.ParquetFile(path)
        groups = range(file.metadata.num_row_groups)
        tables = (file.read_row_group(group) for group in groups) if groups else iter([file.read()])
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
    repeated_codes, unknown_items, schema_breaks, and the FAULTS of measure_marks.

    Args:
        latest: the last moment that an event may have; 2300 where dates are shifted and no such moment is known.
    """
    paths = existing(tree.events(bucket) for bucket in range(buckets))
    counts = [_counts(path, latest or LATEST) for path in paths]
    sums = pl.concat(counts).sum() if counts else None
    marks = pl.concat([NO_MARKS, *(count_marks(path) for path in paths)]).group_by("source").sum().sort("source")
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
        *(pl.lit(int(marks[name].sum())).alias(name) for name in FAULTS),
        pl.lit(undescribed).alias("undescribed_codes"),
        pl.lit(repeated_codes(tree)).alias("repeated_codes"),
        pl.lit(item_events.join(known, on="item_key", how="anti").height).alias("unknown_items"),
        pl.lit(len(meds_breaks(tree, buckets))).alias("schema_breaks"),
    )
    return EventMeasures(summary, subjects, marks, item_events)


def read_ledger(tree: ReleaseLayout) -> pl.DataFrame:
    """The ledger, one row per table, outcome and reason; empty where there is none."""
    return gather([tree.ledger], LEDGER, LEDGER.names)


def balance(ledger: pl.DataFrame) -> pl.DataFrame:
    """One row per table: `raw`, `events`, `static`, `reference`, `quarantined`, `difference`, `emitted`.

    The difference is what DESIGN.md promises to be zero: raw rows less events, static, reference and quarantined rows.
    """

    def rows(outcome: str) -> pl.Expr:
        return pl.col("rows").filter(pl.col("outcome") == outcome).sum().alias(outcome)

    made = pl.col("outcome").is_in(["events", "static", "reference"])
    # a line over all tables, such as the one of conflicts, is no table
    return (
        ledger.filter((pl.col("outcome") == "raw").any().over("table"))
        .group_by("table")
        .agg(
            *(rows(name) for name in ("raw", *SUMMED, "partial", "conflict")),
            pl.col("events").filter(made).sum().alias("emitted"),
        )
        .with_columns((pl.col("raw") - pl.sum_horizontal(SUMMED)).alias("difference"))
        .sort("table")
    )


def measure_ledger(tree: ReleaseLayout, ledger: pl.DataFrame, sources: pl.DataFrame) -> pl.DataFrame:
    """`balance`, with each table's events in the release beside those that it is said to have made.

    A table of the events that the ledger does not know stands here with `raw` 0, unless all its events are images'.
    `events_unexplained`, on every row, is what the tables' absolute differences add up to and the ledger does not
    explain for all tables together. `estimated_share` is of the timed events. `quarantine_unlisted`: see
    `unlisted_rows`.

    Args:
        sources: as `count_marks` gives them.
    """
    stored = sources.select(pl.col("source").alias("table"), pl.col("rows").alias("stored"), *_STORED)
    tables = (
        balance(ledger)
        .join(stored, on="table", how="full", coalesce=True)
        .filter(pl.col("raw").is_not_null() | (pl.col("stored") > pl.col("image_rows")))
        .join(unlisted_rows(tree, ledger), on="table", how="left")
        .with_columns(pl.col(pl.Int64).fill_null(0))
        .with_columns((pl.col("emitted") - pl.col("stored")).alias("events_difference"))
    )
    difference = int(tables["events_difference"].abs().sum())
    return (
        tables.with_columns(
            pl.lit(difference - _explained(ledger, difference), pl.Int64).alias("events_unexplained"),
            (pl.col("quarantined") / pl.col("raw").clip(lower_bound=1)).alias("quarantined_share"),
            (pl.col("estimated") / pl.col("timed").clip(lower_bound=1)).alias("estimated_share"),
        )
        .drop("image_rows")
        .sort("table")
    )


_STORED = ("image_rows", "timed", "estimated")


def _explained(ledger: pl.DataFrame, difference: int) -> int:
    """The difference, as near as second births and deaths come to it, of which align keeps the first.

    The ledger counts these events over all tables. Rows that made nothing else are in quarantine, and their one or two
    events are not said to be made.
    """
    surplus = pl.col("reason") == SURPLUS
    events, rows = (
        int(ledger.filter(surplus & (pl.col("outcome") == outcome))["rows"].sum())
        for outcome in ("conflict", "quarantined")
    )
    return min(max(difference, events - 2 * rows), events - rows)


def read_items(tree: ReleaseLayout, buckets: int) -> pl.DataFrame:
    """All items, with the columns that validation judges, and `bucket`."""
    columns = [name for name in ITEMS.names if name not in {"geometry", "time_source", "time_precision"}]
    frames = [
        gather([tree.items(bucket)], ITEMS, columns).with_columns(pl.lit(bucket, pl.Int64).alias("bucket"))
        for bucket in range(buckets)
    ]
    if not frames:
        raise TimeloomError("a release without buckets", remedy="give the number of buckets of the root")
    return pl.concat(frames)


def measure_items(items: pl.DataFrame, item_events: pl.DataFrame) -> pl.DataFrame:
    """One row per modality and verdict, with what is wrong in it.

    Columns: items, units_expected, units_encoded, units_failed, duplicate_keys, ok_incomplete (no subject, time, key,
    store, encoder or dim), ok_units_off (nothing encoded, or encoded + failed is not expected), ok_events_off (not
    exactly one event), failed_share (of the modality's items that should have been good).
    """
    ok = pl.col("verdict") == "ok"
    needed = ("subject_id", "time", "available_time", "store", "encoder", "dim")
    lacking = pl.any_horizontal(*(pl.col(name).is_null() for name in needed), pl.col("item_key") == "")
    units_off = (pl.col("units_encoded") <= 0) | (
        pl.col("units_encoded") + pl.col("units_failed") != pl.col("units_expected")
    ).fill_null(False)
    duplicate = pl.col("item_key").is_duplicated() & pl.col("item_key").is_first_distinct()
    failed = pl.col("verdict").str.starts_with("failed_")
    return (
        items.join(item_events, on="item_key", how="left")
        .with_columns(pl.col("events").fill_null(0), duplicate.alias("duplicate"))
        .with_columns((failed.sum() / (failed | ok).sum()).over("modality").fill_nan(0.0).alias("failed_share"))
        .group_by("modality", "verdict")
        .agg(
            pl.len().cast(pl.Int64).alias("items"),
            pl.col("units_expected", "units_encoded", "units_failed").cast(pl.Int64).sum(),
            pl.col("duplicate").sum().cast(pl.Int64).alias("duplicate_keys"),
            (ok & lacking).sum().cast(pl.Int64).alias("ok_incomplete"),
            (ok & units_off).sum().cast(pl.Int64).alias("ok_units_off"),
            (ok & (pl.col("events") != 1)).sum().cast(pl.Int64).alias("ok_events_off"),
            pl.col("failed_share").first(),
        )
        .sort("modality", "verdict")
    )
