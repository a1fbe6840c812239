"""The total order of events: the one place that says what comes before what."""

import polars as pl

KIND_RANK = {"visit_start": 0, "clinical": 1, "image": 2, "death": 3, "visit_end": 4}
PRECISION_RANK = {"us": 0, "s": 0, "min": 0, "hour": 0, "day": 1, "month": 2, "year": 3}

_TIES = ["code", "source", "numeric_value", "text_value", "unit", "visit_id", "item_key", "time_precision"]


def kind_rank() -> pl.Expr:
    """0..4 by `kind`."""
    return pl.col("kind").replace_strict(KIND_RANK, return_dtype=pl.UInt8)


def precision_rank() -> pl.Expr:
    """0 for an exact time, more for a coarser one, so that a date comes after the moments of its last second."""
    return pl.col("time_precision").replace_strict(PRECISION_RANK, default=0, return_dtype=pl.UInt8)


def sort_events(events: pl.DataFrame, by: str = "time") -> pl.DataFrame:
    """Sorts events by subject and the total order; nulls (static facts) first.

    At equal times: coarser precision last; visit start, clinical events, images, death, visit end; then code and
    source; then every remaining column, so that rows which still tie are equal and the order does not depend on the
    order of the input.

    Args:
        events: columns of warehouse.schemas.EVENTS.
        by: `time`, as MEDS asks, or `available_time`, as timelines are ordered.
    """
    other = "available_time" if by == "time" else "time"
    # The precision is that of `time`: a date-only fact that becomes available at a later moment stands exactly there.
    precision = pl.when(pl.col("time").eq_missing(pl.col(by))).then(precision_rank()).otherwise(pl.lit(0, pl.UInt8))
    return (
        events.with_columns(precision.alias("_precision"), kind_rank().alias("_kind"))
        .sort("subject_id", by, "_precision", "_kind", *_TIES, other, nulls_last=False)
        .drop("_precision", "_kind")
    )
