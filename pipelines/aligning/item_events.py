"""The images of a bucket as rows like those of a segment."""

import polars as pl
import pyarrow as pa

from extractors.events.converted import AT_TIME, CONVERTED, RECORDED
from extractors.events.times import PRECISIONS


def image_events(items: pl.DataFrame) -> tuple[list[tuple[str, pa.RecordBatch]], list[str]]:
    """One event per image that happened, usable or not; what is not the modality makes none.

    Gives by modality the rows, columns CONVERTED, which all have one code and one rule, and the key of every row, in
    their order.
    """
    happened = items.filter(
        pl.col("subject_id").is_not_null()
        & pl.col("time").is_not_null()
        & ~pl.col("verdict").str.starts_with("refused_")
    ).sort("modality", maintain_order=True)
    at_time = pl.col("available_time") == pl.col("time")
    events = happened.with_columns(
        pl.col("time_precision").cast(pl.Enum(PRECISIONS)).to_physical().alias("precision"),
        pl.when(at_time).then(AT_TIME).otherwise(RECORDED).alias("availability"),
        *(pl.lit(0).alias(name) for name in ("code", "rule", "row_hash")),
        *(pl.lit(None).alias(name) for name in ("numeric_value", "text_value", "unit", "visit_id", "flag")),
    )
    batches = []
    for (modality,), frame in events.group_by("modality", maintain_order=True):
        rows = frame.select(CONVERTED.keys()).cast(CONVERTED).rechunk()  # type: ignore[arg-type]
        (batch,) = rows.to_arrow(compat_level=pl.CompatLevel.oldest()).to_batches()
        batches.append((str(modality), batch))
    return batches, happened["item_key"].to_list()
