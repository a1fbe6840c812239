"""Neutropenic fever, by codes and by measured values: neutropenia and fever in one visit, or near one another.

Sources: ICD-10-CM, D70 (`use additional code for any associated fever`) with R50.81; there is no single code. By
values: a temperature of 38.3 °C once, or of 38.0 °C for an hour, within a day of neutrophils below 1.0 × 10⁹/L.
"""

from collections import Counter
from collections.abc import Mapping

import numpy as np
import polars as pl

from pipelines.tasks.facts import NO_VISIT, Facts, Rows
from pipelines.tasks.instants import DAY
from pipelines.tasks.settings import FeverConfig, MeasuredConfig
from warehouse.arrays import F64, I64, Bools

CODE, CODE_OF_VALUES = "DERIVED//NEUTROPENIC_FEVER", "DERIVED//FEBRILE_NEUTROPENIA"
_HOUR, _MINUTE = 3_600_000_000, 60_000_000
# Degrees that are written with one decimal, and converted from Fahrenheit: 100.9 °F is 38.3 °C.
_DECIMALS = 1


def neutropenic_fever(rows: Rows, neutropenia: Bools, fever: Bools, days: int) -> pl.DataFrame:
    """`subject` (a place), `time`, `available`, `precision` of each pair, at the later of the two.

    Of two dates the days between them are counted; a date and a moment are as near as they may be.

    Args:
        neutropenia, fever: which rows (n,) are of each.
        days: at most so many lie between two that are not of one visit.
    """
    frame = _frame(rows)
    first, second = frame.filter(pl.Series(neutropenia)), frame.filter(pl.Series(fever))
    of_visit = first.filter(pl.col("visit") != NO_VISIT).join(
        second.filter(pl.col("visit") != NO_VISIT), on=["subject", "visit"], suffix="_other"
    )
    return _at_the_later(pl.concat([of_visit.select(_PAIR), _near(first, second, days * DAY)]))


def febrile_neutropenia(
    facts: Facts, neutrophils: I64, temperature: I64, rules: FeverConfig
) -> tuple[pl.DataFrame, dict[str, Counter[str]]]:
    """The same of measured values, at the later of the two; and of either list how many could not be used, by reason.

    Args:
        neutrophils, temperature: rows (n,) of each list.
    """
    counted, count = _in_unit(facts, neutrophils, rules.neutrophils)
    degrees, degree = _in_unit(facts, temperature, rules.temperature)
    rows = facts.rows
    low = _frame(rows.take(neutrophils[counted])).filter(pl.Series(count[counted] < rules.neutrophils_below))
    values = np.round(degree[degrees], _DECIMALS)
    hot = _held(_frame(rows.take(temperature[degrees])).with_columns(pl.Series("value", values)), rules)
    reasons = {
        name: _reasons(facts, places, usable, value)
        for name, places, usable, value in (
            ("neutrophils", neutrophils, counted, count), ("temperature", temperature, degrees, degree)
        )
    }  # fmt: skip
    return _at_the_later(_near(low, hot, rules.hours * _HOUR)), reasons


def reasons_of(facts: Facts, neutrophils: I64, temperature: I64, rules: FeverConfig) -> dict[str, Counter[str]]:
    """What `febrile_neutropenia` counts of measured values."""
    lists = (("neutrophils", neutrophils, rules.neutrophils), ("temperature", temperature, rules.temperature))
    return {name: _reasons(facts, places, *_in_unit(facts, places, unit)) for name, places, unit in lists}


def _frame(rows: Rows) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "subject": rows.subject,
            "time": rows.time,
            "low": rows.low("time"),
            "available": rows.available,
            "precision": rows.precision,
            "visit": rows.visit,
        }
    )


_PAIR = ["subject", *(f"{name}{end}" for end in ("", "_other") for name in ("time", "low", "available", "precision"))]


def _near(first: pl.DataFrame, second: pl.DataFrame, within: int) -> pl.DataFrame:
    """Pairs of one subject that lie at most so many µs apart: of each the nearest before it, or at its moment."""
    pairs = []
    for earlier, later in ((first, second), (second, first)):
        # The nearest before each: what the later of the two may have happened after it at the least.
        # Of several at one moment the last of the events' order is the nearest.
        nearest = later.sort("time", maintain_order=True).join_asof(
            earlier.sort("time", maintain_order=True),
            on="time",
            by="subject",
            strategy="backward",
            suffix="_other",
            coalesce=False,
            check_sortedness=False,
        )
        pairs.append(nearest.filter(pl.col("low") - pl.col("time_other") <= within).select(_PAIR))
    return pl.concat(pairs)


def _at_the_later(pairs: pl.DataFrame) -> pl.DataFrame:
    later = pairs.with_columns(
        pl.when(pl.col("time_other") > pl.col("time"))
        .then("precision_other")
        .otherwise("precision")
        .alias("precision"),
        pl.max_horizontal("time", "time_other").alias("time"),
        pl.max_horizontal("available", "available_other").alias("available"),
    )
    # Of the pairs that end at one moment the one that was known first.
    return (
        later.group_by("subject", "time")
        .agg(pl.col("available").min(), pl.col("precision").min())
        .select("subject", "time", "available", "precision")
        .sort("subject", "time")
    )


def _held(degrees: pl.DataFrame, rules: FeverConfig) -> pl.DataFrame:
    """Temperatures that are a fever: high enough alone, or since so many minutes, with none below in between.

    Two that lie more than `hours` apart do not tell what was between them.
    """
    # Of two at one moment the lower one comes first, whoever else is in the bucket.
    ordered = degrees.sort("subject", "time", "available", "value", maintain_order=True).with_columns(
        (
            (pl.col("value") < rules.temperature_held)
            | (pl.col("time").diff().over("subject") > rules.hours * _HOUR).fill_null(True)
        )
        .cum_sum()
        .over("subject")
        .alias("run")
    )
    run = ["subject", "run"]
    warm = ordered.filter(pl.col("value") >= rules.temperature_held)
    since = pl.col("time").min().over(run)
    held = pl.col("time") - since >= rules.held_minutes * _MINUTE
    alone = pl.col("value") >= rules.temperature_once
    # That it was held is known with the last of the values that say so.
    known = pl.when(alone).then("available").otherwise(pl.col("available").cum_max().over(run)).alias("available")
    return warm.with_columns(known).filter(alone | held)


def _in_unit(facts: Facts, places: I64, rules: MeasuredConfig) -> tuple[Bools, F64]:
    """Which rows (n,) can be used, and their values in the rules' unit (n,).

    The unit is that of the row; without one, that of its code.
    """
    rows = facts.rows.take(places)
    spelled = [unit.lower().replace("µ", "u").replace("μ", "u").replace(" ", "") for unit in facts.units]
    units = [rules.units.get(unit) for unit in spelled]
    scale = np.array([*(unit[0] if unit else np.nan for unit in units), 1.0])
    shift = np.array([*(unit[1] if unit else np.nan for unit in units), 0.0])
    scales, shifts = scale[rows.unit], shift[rows.unit]
    for code, unit in rules.of_codes.items():
        without = (facts.codes == code).to_numpy()[rows.code] & (rows.unit < 0)
        scales, shifts = (np.where(without, number, kept) for number, kept in zip(unit, (scales, shifts), strict=True))
    value = (rows.value + shifts) * scales
    least, most = rules.plausible
    return (value >= least) & (value <= most) & ~rows.flagged, value


def _reasons(facts: Facts, places: I64, usable: Bools, value: F64) -> Counter[str]:
    """How many of some rows were used, and how many could not be, by reason."""
    rows = facts.rows.take(places)
    reasons: Mapping[str, Bools] = {
        "used": usable,
        "flagged": rows.flagged,
        "no_number": np.isnan(rows.value),
        "unknown_unit": np.isnan(value),
        "implausible": np.ones(len(rows), np.bool_),
    }
    left, found = np.ones(len(rows), np.bool_), Counter[str]()
    for reason, holds in reasons.items():
        found[reason] = int((left & holds).sum())
        left &= ~holds
    return found
