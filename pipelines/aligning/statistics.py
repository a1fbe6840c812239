"""What a release says of each subject: how many events, static facts and images, and how far apart."""

import numpy as np
import polars as pl

from pipelines.aligning.bucket_rows import BIRTH, BucketRows, BucketTexts
from warehouse.arrays import NO_TIME
from warehouse.modalities import INDEXED

NO_STATISTICS = pl.DataFrame(
    schema={"subject_id": pl.Int64, "events": pl.Int64, "static_events": pl.Int64, "mean_interval_days": pl.Float64}
)
_DAY_US = 86_400_000_000


def subject_statistics(events: BucketRows, texts: BucketTexts) -> pl.DataFrame:
    """Of events in the total order: per subject the timed ones, the static ones, mean days between distinct times.

    A birth is neither.
    """
    subject, time = events.subject, events.time
    starts = np.flatnonzero(np.concatenate([[True], subject[1:] != subject[:-1]]))
    known = time != NO_TIME
    is_timed = known & (events.code != texts.number_of(BIRTH))
    timed, has_time = (np.add.reduceat(counts, starts, dtype=np.int64) for counts in (is_timed, known))
    counted = {
        "subject_id": subject[starts],
        "events": timed,
        "static_events": np.diff(starts, append=len(subject)) - has_time,
    }
    at, with_time = time[is_timed], np.flatnonzero(timed)
    ends = np.cumsum(timed[with_time])
    firsts = ends - timed[with_time]
    distinct = np.concatenate([[True], at[1:] != at[:-1]]) if len(at) else np.zeros(0, np.bool_)
    distinct[firsts] = True
    gaps, span = np.zeros(len(starts), np.int64), np.zeros(len(starts), np.int64)
    if len(with_time):
        gaps[with_time] = np.add.reduceat(distinct, firsts, dtype=np.int64) - 1
        span[with_time] = at[ends - 1] - at[firsts]
    # By numpy: polars divides a single row, and by a constant, otherwise than many rows.
    days = span / np.where(gaps > 0, gaps, 1) / _DAY_US
    frame = pl.DataFrame(counted | {"mean_interval_days": days})
    return frame.with_columns(pl.when(pl.Series(gaps > 0)).then("mean_interval_days"))


def with_images(statistics: pl.DataFrame, items: pl.DataFrame | None) -> pl.DataFrame:
    """The statistics with each subject's usable images of each modality."""
    if items is None:
        return statistics.with_columns(pl.lit(0, pl.Int64).alias(modality) for modality in INDEXED)
    for modality in INDEXED:
        usable = items.filter((pl.col("verdict") == "ok") & (pl.col("modality") == modality))
        of_subject = usable.drop_nulls("subject_id").group_by("subject_id").agg(
            pl.len().cast(pl.Int64).alias(modality)
        )  # fmt: skip
        joined = statistics.join(of_subject, on="subject_id", how="left", maintain_order="left")
        statistics = joined.with_columns(pl.col(modality).fill_null(0))
    return statistics
