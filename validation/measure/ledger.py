"""What became of every raw row, held against the files that say so."""

import polars as pl

from validation.measure.annotations import unlisted_rows
from validation.measure.reading import gather
from warehouse.layout import ReleaseLayout
from warehouse.schemas import LEDGER

SUMMED = ("events", "static", "reference", "quarantined")
_STORED = ("image_rows", "timed", "estimated")


def read_ledger(tree: ReleaseLayout) -> pl.DataFrame:
    """The ledger, one row per table, outcome and reason; empty where there is none."""
    return gather([tree.ledger], LEDGER, LEDGER.names)


def balance(ledger: pl.DataFrame) -> pl.DataFrame:
    """One row per table: `raw`, `events`, `static`, `reference`, `quarantined`, `difference`, `emitted`.

    The difference must be zero: raw rows less events, static, reference and quarantined rows.
    """

    def rows(outcome: str) -> pl.Expr:
        return pl.col("rows").filter(pl.col("outcome") == outcome).sum().alias(outcome)

    made = pl.col("outcome").is_in(["events", "static", "reference"])
    # a line over all tables, such as that of conflicts, is no table
    return (
        ledger.filter((pl.col("outcome") == "raw").any().over("table"))
        .group_by("table")
        .agg(
            *(rows(name) for name in ("raw", *SUMMED, "partial", "conflict")),
            pl.col("events").filter(made).sum().alias("emitted"),
        )
        .with_columns((pl.col("raw") - pl.sum_horizontal(SUMMED)).alias("difference"))
        .sort("table")
    )


def measure_ledger(ledger: pl.DataFrame, sources: pl.DataFrame, listed: pl.DataFrame) -> pl.DataFrame:
    """`balance`, with each table's events in the release beside those that it is said to have made.

    A table that the events name and the ledger does not is listed with `raw` 0, unless all its events are images'.
    `events_unexplained` is by how many the two differ: rows that stand twice, and further births and deaths, are taken
    off in the ledger already. `estimated_share` is of the timed events. `quarantine_unlisted`: see
    `unlisted_rows`.

    Args:
        sources: as `count_annotations` gives them.
        listed: the rows of quarantine.parquet, as `read_listed` gives them.
    """
    stored = sources.select(pl.col("source").alias("table"), pl.col("rows").alias("stored"), *_STORED)
    tables = (
        balance(ledger)
        .join(stored, on="table", how="full", coalesce=True)
        .filter(pl.col("raw").is_not_null() | (pl.col("stored") > pl.col("image_rows")))
        .join(unlisted_rows(listed, ledger), on="table", how="left")
        .with_columns(pl.col(pl.Int64).fill_null(0))
    )
    return (
        tables.with_columns(
            (pl.col("emitted") - pl.col("stored")).alias("events_unexplained"),
            (pl.col("quarantined") / pl.col("raw").clip(lower_bound=1)).alias("quarantined_share"),
            (pl.col("estimated") / pl.col("timed").clip(lower_bound=1)).alias("estimated_share"),
        )
        .drop("image_rows")
        .sort("table")
    )
