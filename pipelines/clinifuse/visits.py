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
    for table in subjects_together(path, lambda file, group: file.read_row_group(group, columns=wanted), rows, texts):
        frame = pl.from_arrow(table)
        assert isinstance(frame, pl.DataFrame)
        yield frame.with_columns(pl.col(texts).cast(pl.String)).filter(pl.col("time").is_not_null())


def visits_of(events: pl.DataFrame, days_from: Literal["end", "start"] = "end") -> pl.DataFrame:
    """A row a visit, by subject, start and visit_id.

    A visit begins at the first of its events of the kind `visit_start`, else at its first event, and ends at the last
    of the kind `visit_end`. Nothing is mended: `out_of_order` says that its end lies before its start.

    Args:
        events: columns subject_id, visit_id, time, code, kind, of whole subjects.
        days_from: whether days are counted from the latest end of the visits before, 0 where they overlap, or from the
            start of the one before. A visit without an end ends at its last event.

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
    start, reached = pl.col("start"), pl.max_horizontal("start", pl.coalesce("end", "last_time"))
    before = start.shift(1) if days_from == "start" else reached.cum_max().shift(1)
    days = (start - before.over("subject_id")).dt.total_microseconds() / _DAY_US
    return visits.with_columns(
        pl.int_range(pl.len(), dtype=pl.Int32).over("subject_id").alias("visit"),
        (pl.col("end") < start).fill_null(False).alias("out_of_order"),
        pl.max_horizontal(days, pl.when(days.is_not_null()).then(0.0)).cast(pl.Float32).alias("days_since_prev"),
    )
