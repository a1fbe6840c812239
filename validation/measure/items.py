"""Items, their verdicts, and the events that they have."""

import polars as pl

from validation.measure.reading import gather
from warehouse.errors import TimeloomError
from warehouse.layout import ReleaseLayout
from warehouse.schemas import ITEMS


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
