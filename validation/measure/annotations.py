"""What is measured of the annotations of events (availability, flags, conflicts) and of the files that explain them:
descriptions of codes, the list of quarantined rows, lags. Aggregates only.
"""

from pathlib import Path

import polars as pl

from extractors.events.converted import REASONS
from extractors.events.values import FLAGS
from pipelines.aligning.conflicts import CONFLICTS
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
_COUNTED = ("rows", "image_rows", "timed", "static", *KNOWN, *(f"conflict_{name}" for name in CONFLICTS), *FAULTS)
NO_ANNOTATIONS = pl.DataFrame(schema={"source": pl.String(), **dict.fromkeys(_COUNTED, pl.Int64())})


def count_annotations(path: Path) -> pl.DataFrame:
    """One row per source of one bucket.

    Columns: source, rows, image_rows, timed, static; how many timed events are recorded, time, estimated; `conflict_*`
    of each known conflict; and FAULTS: annotations that no event may have, or that stand where they may not.
    """
    timed = pl.col("time").is_not_null()
    availability, flag, conflict = (pl.col(name) for name in ("availability", "value_flag", "conflict"))
    whole = pl.col("numeric_value").is_not_null() & pl.col("text_value").is_not_null()
    counted = {
        "image_rows": pl.col("item_key").is_not_null(),
        "timed": timed,
        "static": ~timed,
        **{name: timed & (availability == name) for name in KNOWN},
        **{f"conflict_{name}": conflict == name for name in CONFLICTS},
        "availability_unknown": timed & ~availability.is_in(KNOWN).fill_null(False),
        "availability_of_static": ~timed & availability.is_not_null(),
        "unavailable": timed & pl.col("available_time").is_null(),
        "value_flag_unknown": flag.is_not_null() & ~flag.is_in(FLAGS),
        "value_flag_alone": flag.is_not_null() & ~whole,
        "conflict_unknown": conflict.is_not_null() & ~conflict.is_in(CONFLICTS),
    }
    sums = [flagged.sum().cast(pl.Int64).alias(name) for name, flagged in counted.items()]
    summed = scan(path).group_by("source").agg(pl.len().cast(pl.Int64).alias("rows"), *sums)
    return collect(summed.select(NO_ANNOTATIONS.columns), path)


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


def unlisted_rows(tree: ReleaseLayout, ledger: pl.DataFrame) -> pl.DataFrame:
    """`table`, `quarantine_unlisted`: rows by which quarantine.parquet and the ledger differ, over all reasons."""
    listed = gather([tree.quarantine], QUARANTINE, ["table", "reason"])
    counted = ledger.filter((pl.col("outcome") == "quarantined") & pl.col("reason").is_in(LISTED))
    return (
        listed.group_by("table", "reason")
        .agg(pl.len().cast(pl.Int64).alias("listed"))
        .join(counted.select("table", "reason", "rows"), on=["table", "reason"], how="full", coalesce=True)
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


def measure_codes(tree: ReleaseLayout) -> pl.DataFrame:
    """`namespace`, `codes`, `described`, `with_parents`, the largest namespace first.

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
        )
        .sort(["codes", "namespace"], descending=[True, False]),
        tree.codes,
    )
