"""What is measured of the annotations of events (availability, flags, conflicts) and of the files that explain them:
descriptions of codes, the list of quarantined rows, lags. Aggregates only.
"""

import polars as pl

from extractors.events.converted import REASONS
from extractors.events.values import FLAGS
from pipelines.aligning.conflicts import CONFLICTS
from validation.measure.measures import Measures
from validation.measure.reading import collect, gather, scan
from warehouse.layout import ReleaseLayout
from warehouse.schemas import LAGS, QUARANTINE

# How `available_time` may be known; null for a static fact, which has none.
KNOWN = ("recorded", "time", "estimated")
# Why a row made nothing that is found before buckets are aligned: quarantine.parquet has each of these rows.
LISTED = (*REASONS, "malformed_row", "repeated_header")
FAULTS = (
    "availability_unknown", "availability_of_static", "unavailable",
    "value_flag_unknown", "value_flag_alone", "conflict_unknown",
)  # fmt: skip
COUNTED = ("rows", "image_rows", "timed", "static", *KNOWN, *(f"conflict_{name}" for name in CONFLICTS), *FAULTS)


def count_annotations(marks: pl.DataFrame) -> pl.DataFrame:
    """One row per source.

    Columns: source, rows, image_rows, timed, static; how many timed events are recorded, time, estimated; `conflict_*`
    of each known conflict; and FAULTS: annotations that no event may have, or that stand where they may not.

    Args:
        marks: a row for each combination that occurs of `source`, `availability`, `value_flag`, `conflict`, and of
            whether it is an `image`, is `timed`, says when it was `available`, and has the `whole` of its value, number
            and text; `rows`, how often it occurs.
    """
    timed = pl.col("timed")
    availability, flag, conflict = (pl.col(name) for name in ("availability", "value_flag", "conflict"))
    flagged = {
        "rows": pl.lit(True),
        "image_rows": pl.col("image"),
        "timed": timed,
        "static": ~timed,
        **{name: timed & (availability == name) for name in KNOWN},
        **{f"conflict_{name}": conflict == name for name in CONFLICTS},
        "availability_unknown": timed & ~availability.is_in(KNOWN).fill_null(False),
        "availability_of_static": ~timed & availability.is_not_null(),
        "unavailable": timed & ~pl.col("available"),
        "value_flag_unknown": flag.is_not_null() & ~flag.is_in(FLAGS),
        "value_flag_alone": flag.is_not_null() & ~pl.col("whole"),
        "conflict_unknown": conflict.is_not_null() & ~conflict.is_in(CONFLICTS),
    }
    sums = [pl.col("rows").filter(which.fill_null(False)).sum().alias(name) for name, which in flagged.items()]
    return marks.group_by("source").agg(sums).select("source", *COUNTED)


def uncounted_conflicts(annotations: pl.DataFrame, ledger: pl.DataFrame) -> int:
    """By how many events the annotations of events and the ledger's counts of conflicts disagree.

    The ledger counts every conflict of an event, but the event bears only the first of them. So a count may be larger
    than the annotations, by no more than the number of events that bear an earlier conflict.

    Args:
        annotations: as `count_annotations` gives them.
    """
    counts = dict(ledger.filter(pl.col("outcome") == "conflict").group_by("reason").agg(pl.col("rows").sum()).rows())
    wrong = before = 0
    for name in CONFLICTS:
        written, counted = int(annotations[f"conflict_{name}"].sum()), int(counts.get(name, 0))
        wrong += max(written - counted, counted - written - before, 0)
        before += written
    return wrong


def listed_rows(measures: Measures) -> pl.DataFrame:
    """What `read_listed` found."""
    return measures.counted("quarantine", ["listed"], of="table", within="reason")


def read_listed(tree: ReleaseLayout) -> pl.DataFrame:
    """`table`, `reason`, `listed`: the rows of quarantine.parquet."""
    listed = gather([tree.quarantine], QUARANTINE, ["table", "reason"])
    return listed.group_by("table", "reason").agg(pl.len().cast(pl.Int64).alias("listed"))


def unlisted_rows(listed: pl.DataFrame, ledger: pl.DataFrame) -> pl.DataFrame:
    """`table`, `quarantine_unlisted`: rows by which quarantine.parquet and the ledger differ, over all reasons.

    Args:
        listed: as `read_listed` gives it.
    """
    counted = ledger.filter((pl.col("outcome") == "quarantined") & pl.col("reason").is_in(LISTED))
    return (
        listed.join(counted.select("table", "reason", "rows"), on=["table", "reason"], how="full", coalesce=True)
        .with_columns(pl.col("listed", "rows").fill_null(0))
        .group_by("table")
        .agg((pl.col("listed") - pl.col("rows")).abs().sum().alias("quarantine_unlisted"))
    )


def changed_lags(tree: ReleaseLayout, before: ReleaseLayout) -> int:
    """Lags of the release before that this one does not have as they were."""
    known, now = (gather([release.lags], LAGS, LAGS.names) for release in (before, tree))
    return known.join(now, on=LAGS.names, how="anti").height


def repeated_codes(tree: ReleaseLayout) -> int:
    """Codes that metadata/codes.parquet describes more than once."""
    counts = pl.col("code").len() - pl.col("code").n_unique()
    return int(collect(scan(tree.codes).select(counts.cast(pl.Int64)), tree.codes).item())


def list_codes(measures: Measures) -> pl.DataFrame:
    """What `measure_codes` found, the largest namespace first."""
    found = measures.counted("codes", ["codes", "described", "with_parents"], of="namespace")
    return found.sort(["codes", "namespace"], descending=[True, False])


def measure_codes(tree: ReleaseLayout) -> pl.DataFrame:
    """`namespace`, `codes`, `described`, `with_parents`.

    A code's namespace is what stands before its first slash.
    """
    parents = pl.col("parent_codes").list.len().fill_null(0) > 0
    return collect(
        scan(tree.codes)
        .group_by(pl.col("code").str.split("/").list.first().alias("namespace"))
        .agg(
            pl.len().cast(pl.Int64).alias("codes"),
            (pl.col("description").fill_null("") != "").sum().cast(pl.Int64).alias("described"),
            parents.sum().cast(pl.Int64).alias("with_parents"),
        ),
        tree.codes,
    )
