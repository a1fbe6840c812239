"""What is measured of the events: the sum of what was counted in each bucket, held against metadata and items."""

from dataclasses import dataclass

import polars as pl

from validation.measure.annotations import COUNTED, FAULTS
from validation.measure.measures import Measures
from validation.measure.reading import collect, gather, scan
from warehouse.hashing import bucket_of
from warehouse.layout import ReleaseLayout
from warehouse.schemas import ITEMS

_SUMMED = (
    "rows", "empty_codes", "rows_out_of_order", "available_before_time", "implausible_times", "born_or_dead_twice",
    "repeated_codes",
)  # fmt: skip


@dataclass(frozen=True)
class EventMeasures:
    """What is known of data/.

    Attributes:
        summary: one row of counts, see `measure_events`.
        subjects: `subject_id`, `bucket`, `known`: one row for each subject and each file that holds rows of it.
        sources: a row per source, see `count_annotations`.
        item_events: `item_key`, `events`.
    """

    summary: pl.DataFrame
    subjects: pl.DataFrame
    sources: pl.DataFrame
    item_events: pl.DataFrame


def meds_breaks(measures: Measures) -> list[str]:
    """The files of a release that break their MEDS 0.4 schema, as `folder/file`."""
    return measures.counted("meds", ["schema_breaks"], of="file")["file"].to_list()


def misplaced_subjects(subjects: pl.DataFrame, buckets: int) -> int:
    """Subjects that lie in more than one file, or in one that is not their bucket's.

    Args:
        subjects: `subject_id`, `bucket`.
    """
    home = pl.Series("home", bucket_of(subjects["subject_id"].to_numpy(), buckets))
    # Of several files one at most is the bucket's.
    return subjects.filter(subjects["bucket"] != home)["subject_id"].n_unique()


def annotations(measures: Measures) -> pl.DataFrame:
    """A row per source, see `count_annotations`."""
    return measures.counted("source", COUNTED, of="source")


def item_events(measures: Measures) -> pl.DataFrame:
    """`item_key`, `events`: how many events name an image."""
    return measures.of("keys").group_by("item_key").agg(pl.col("events").sum())


def measure_events(tree: ReleaseLayout, buckets: int, measures: Measures) -> EventMeasures:
    """Measures data/ against itself, its metadata and the items.

    `summary` has the columns rows, subjects, empty_codes, rows_out_of_order, available_before_time,
    implausible_times (before 1850, after 2300), born_or_dead_twice, misplaced_subjects, undescribed_codes,
    repeated_codes, unknown_items, schema_breaks, and the FAULTS of count_annotations.

    Raises:
        TimeloomError: a file is damaged.
    """
    sources = annotations(measures)
    described = collect(scan(tree.codes).select("code"), tree.codes)
    codes = measures.counted("code", ["events"], of="code").filter(pl.col("events") > 0)
    keys = item_events(measures)
    known = gather((tree.items(bucket) for bucket in range(buckets)), ITEMS, ["item_key"])
    subjects = measures.of("subjects")
    summary = measures.counted("events", _SUMMED).with_columns(
        pl.lit(subjects["subject_id"].n_unique()).alias("subjects"),
        pl.lit(misplaced_subjects(subjects, buckets)).alias("misplaced_subjects"),
        *(pl.lit(int(sources[name].sum())).alias(name) for name in FAULTS),
        pl.lit(codes.join(described, on="code", how="anti").height).alias("undescribed_codes"),
        pl.lit(keys.join(known, on="item_key", how="anti").height).alias("unknown_items"),
        pl.lit(len(meds_breaks(measures))).alias("schema_breaks"),
    )
    return EventMeasures(summary, subjects, sources, keys)
