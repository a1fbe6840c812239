"""Visits of events: when each began and ended, and how many days after the one before."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import polars as pl

from warehouse.parquet import subjects_together

PART_ROWS = 250_000
_TEXTS = ("code", "kind", "source", "unit")
_VISIT = ("subject_id", "visit_id")
_DAY_US = 86_400_000_000


def read_events(path: Path, columns: Sequence[str], rows: int = PART_ROWS) -> Iterator[pl.DataFrame]:
    """Some columns of a bucket's events that have a time, whole subjects and about so many rows at a time.

    Raises:
        TimeloomError: the file is missing, truncated or corrupt.
    """
    texts = [name for name in columns if name in _TEXTS]
    wanted = list(columns)
    for table in subjects_together(
        path, lambda file, groups: file.read_row_groups(groups, columns=wanted), rows, texts
    ):
        frame = pl.from_arrow(table)
        assert isinstance(frame, pl.DataFrame)
        yield frame.with_columns(pl.col(texts).cast(pl.String)).filter(pl.col("time").is_not_null())


def visits_of(events: pl.DataFrame, days_from: Literal["end", "start"] = "end") -> pl.DataFrame:
    """A row a visit, by subject, start and visit_id.

    A visit begins at the first of its events of the kind `visit_start`, else at its first event, and ends at the last
    of the kind `visit_end`. Nothing is mended: `out_of_order` says that its end lies before its start.

    Args:
        events: columns subject_id, visit_id, time, available_time, code, kind, of whole subjects.
        days_from: whether days are counted from the latest end of the visits before, 0 where they overlap, or from the
            start of the one before. A visit without an end reaches as far as what was known of it before the next one
            began.

    Returns:
        subject_id, visit (its number among the subject's, from 0), visit_id, type, starts (the codes that begin it),
        start, end, last_time, out_of_order, days_since_prev (null for the first).
    """
    of_visit = events.drop_nulls("visit_id")
    begun = (
        of_visit.filter(pl.col("kind") == "visit_start")
        .sort("time", "code")
        .group_by(_VISIT, maintain_order=True)
        .agg(
            pl.col("code").first().alias("type"),
            pl.col("code").unique().sort().alias("starts"),
            pl.col("time").first().alias("begun"),
        )
    )
    visits = (
        of_visit.group_by(_VISIT)
        .agg(
            pl.col("time").min().alias("first_time"),
            pl.col("time").filter(pl.col("kind") == "visit_end").max().alias("end"),
            pl.col("time").max().alias("last_time"),
        )
        .join(begun, on=_VISIT, how="left")
        .with_columns(pl.coalesce("begun", "first_time").alias("start"))
        .sort("subject_id", "start", "visit_id")
    )
    start = pl.col("start")
    if days_from == "start":
        before = start.shift(1).over("subject_id")
    else:
        visits = _with_open(visits, of_visit)
        before = pl.max_horizontal(
            pl.max_horizontal("start", "end").cum_max().shift(1).over("subject_id"), "open_until"
        )
    days = (start - before).dt.total_microseconds() / _DAY_US
    return visits.with_columns(
        pl.int_range(pl.len(), dtype=pl.Int32).over("subject_id").alias("visit"),
        (pl.col("end") < start).fill_null(False).alias("out_of_order"),
        pl.max_horizontal(days, pl.when(days.is_not_null()).then(0.0)).cast(pl.Float32).alias("days_since_prev"),
    ).drop("open_until", strict=False)


def _with_open(visits: pl.DataFrame, of_visit: pl.DataFrame) -> pl.DataFrame:
    """Visits with `open_until`: when, before they start, something of a visit without an end was last known."""
    still_open = visits.filter(pl.col("end").is_null()).select(*_VISIT, begun_at="start")
    events = (
        of_visit.join(still_open, on=_VISIT)
        # What stands before its visit's start belongs to that start.
        .select("subject_id", open_until=pl.max_horizontal("time", "available_time", "begun_at"))
        .sort("open_until")
    )
    joined = visits.with_row_index("_row").sort("start", maintain_order=True)
    joined = joined.join_asof(
        events,
        left_on="start",
        right_on="open_until",
        by="subject_id",
        strategy="backward",
        allow_exact_matches=False,
        coalesce=False,
        check_sortedness=False,
    )
    return joined.sort("_row").drop("_row")
