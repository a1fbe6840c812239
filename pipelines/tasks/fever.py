"""Neutropenic fever: neutropenia and fever on different lines of one visit, or within some days of one another.

Source: ICD-10-CM, D70 (`use additional code for any associated fever`) with R50.81; there is no single code.
"""

import polars as pl

from pipelines.tasks.facts import NO_VISIT, Rows
from pipelines.tasks.instants import DAY
from warehouse.arrays import Bools

CODE = "DERIVED//NEUTROPENIC_FEVER"


def neutropenic_fever(rows: Rows, neutropenia: Bools, fever: Bools, days: int) -> pl.DataFrame:
    """`subject` (a place), `time`, `available`, `precision` of each pair, at the later of the two.

    Of two dates the days between them are counted; a date and a moment are as near as they may be.

    Args:
        neutropenia, fever: which rows (n,) are of each.
        days: at most so many lie between two that are not of one visit.
    """
    columns = {
        "subject": rows.subject,
        "time": rows.time,
        "low": rows.low("time"),
        "available": rows.available,
        "precision": rows.precision,
        "visit": rows.visit,
    }
    frame = pl.DataFrame(columns)
    first, second = frame.filter(pl.Series(neutropenia)), frame.filter(pl.Series(fever))
    if first.is_empty() or second.is_empty():
        return frame.select("subject", "time", "available", "precision").clear()
    of_visit = first.filter(pl.col("visit") != NO_VISIT).join(
        second.filter(pl.col("visit") != NO_VISIT), on=["subject", "visit"], suffix="_other"
    )
    pairs = [of_visit.drop("visit")]
    for earlier, later in ((first, second), (second, first)):
        # The nearest before each: what the later of the two may have happened after it at the least.
        nearest = later.sort("time").join_asof(
            earlier.sort("time"),
            on="time",
            by="subject",
            strategy="backward",
            suffix="_other",
            coalesce=False,
            check_sortedness=False,
        )
        near = nearest.filter(pl.col("low") - pl.col("time_other") <= days * DAY)
        pairs.append(near.select(of_visit.drop("visit").columns))
    later_first = pl.concat(pairs).with_columns(
        pl.when(pl.col("time_other") > pl.col("time"))
        .then("precision_other")
        .otherwise("precision")
        .alias("precision"),
        pl.max_horizontal("time", "time_other").alias("time"),
        pl.max_horizontal("available", "available_other").alias("available"),
    )
    # Of the pairs that end at one moment the one that was known first.
    return (
        later_first.group_by("subject", "time")
        .agg(pl.col("available").min(), pl.col("precision").min())
        .select("subject", "time", "available", "precision")
        .sort("subject", "time")
    )
