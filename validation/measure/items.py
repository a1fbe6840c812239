"""Items, their verdicts, and the events that they have."""

import polars as pl

from extractors.items import WAITING
from validation.measure.reading import gather
from warehouse.errors import TimeloomError
from warehouse.items import each_once
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

    Of an item that several encoders were to read, one row is counted: a usable one, where there is one. The others are
    looked at for what is wrong with them.

    Columns: items, units_expected, units_encoded, units_failed, duplicate_keys (rows of one item and encoder),
    ok_incomplete (no subject, time, key, store, encoder or dim), ok_units_off (nothing encoded, or encoded + failed is
    not expected), ok_events_off (not exactly one event), failed_share and waiting_share (of the modality's items that
    should have been good).
    """
    ok = pl.col("verdict") == "ok"
    needed = ("subject_id", "time", "available_time", "store", "encoder", "dim")
    lacking = pl.any_horizontal(*(pl.col(name).is_null() for name in needed), pl.col("item_key") == "")
    units_off = (pl.col("units_encoded") <= 0) | (
        pl.col("units_encoded") + pl.col("units_failed") != pl.col("units_expected")
    ).fill_null(False)
    row = pl.struct("item_key", pl.col("store").fill_null(""))
    duplicate = row.is_duplicated() & row.is_first_distinct()
    failed, counted = pl.col("verdict").str.starts_with("failed_"), pl.col("counted")
    share = (failed & counted).sum() / ((failed | ok) & counted).sum()
    waits = pl.col("verdict") == WAITING
    waiting = (waits & counted).sum() / ((waits | failed | ok) & counted).sum()
    places = items.with_row_index("row")
    return (
        places.with_columns(pl.col("row").is_in(each_once(places)["row"].implode()).alias("counted"))
        .join(item_events, on="item_key", how="left")
        .with_columns(pl.col("events").fill_null(0), duplicate.alias("duplicate"))
        .with_columns(
            share.over("modality").fill_nan(0.0).alias("failed_share"),
            waiting.over("modality").fill_nan(0.0).alias("waiting_share"),
        )
        .group_by("modality", "verdict")
        .agg(
            counted.sum().cast(pl.Int64).alias("items"),
            pl.col("units_expected", "units_encoded", "units_failed").cast(pl.Int64).filter(counted).sum(),
            pl.col("duplicate").sum().cast(pl.Int64).alias("duplicate_keys"),
            (ok & lacking).sum().cast(pl.Int64).alias("ok_incomplete"),
            (ok & units_off).sum().cast(pl.Int64).alias("ok_units_off"),
            (ok & (pl.col("events") != 1)).sum().cast(pl.Int64).alias("ok_events_off"),
            pl.col("failed_share", "waiting_share").first(),
        )
        .sort("modality", "verdict")
    )


def measure_encoders(items: pl.DataFrame) -> pl.DataFrame:
    """One row per modality and encoder, by its store.

    Columns: encoder (its label), items (that it was to read), usable, failed, failed_here_alone (that another encoder
    of the modality made a vector of), items_not_given (items of other encoders that this one was not given),
    encoder_failed_share (of its items, those that failed; null where the modality has no other encoder).
    """
    read = items.drop_nulls("store").with_columns(
        (pl.col("verdict") == "ok").alias("usable"), (pl.col("verdict") != WAITING).alias("tried")
    )
    known, several = (pl.col(name).n_unique().over("modality") for name in ("item_key", "store"))
    elsewhere = pl.col("usable").any().over("item_key")
    return (
        read.with_columns(
            known.alias("known"),
            (several > 1).alias("several"),
            (pl.col("tried") & ~pl.col("usable") & elsewhere).alias("failed_here_alone"),
        )
        .group_by("modality", "store")
        .agg(
            pl.col("encoder").drop_nulls().first(),
            pl.len().cast(pl.Int64).alias("items"),
            pl.col("usable").sum().cast(pl.Int64),
            (pl.col("tried") & ~pl.col("usable")).sum().cast(pl.Int64).alias("failed"),
            pl.col("failed_here_alone").sum().cast(pl.Int64),
            (pl.col("known").first() - pl.col("item_key").n_unique()).cast(pl.Int64).alias("items_not_given"),
            (~pl.col("usable")).filter(pl.col("several") & pl.col("tried")).mean().alias("encoder_failed_share"),
        )
        .sort("modality", "store")
    )
