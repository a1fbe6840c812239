"""Stages of acute kidney injury by creatinine: KDIGO's criteria, a rise against the lowest that was BEFORE.

Source: KDIGO clinical practice guideline for acute kidney injury (2012), section 2.1; mimic-code's kdigo_stages, but
without its fixed 3.7 mg/dL, by which a rise from 3.9 to 5.0 is missed. Stage 3 from 4.0 mg/dL asks for a rise that is
of stage 1.
"""

from collections import Counter

import numpy as np
import polars as pl

from pipelines.tasks.facts import Facts
from pipelines.tasks.settings import KdigoConfig
from warehouse.arrays import F64, I64

CODE = "DERIVED//AKI_KDIGO//"
# Results have few decimals; as numbers of a computer 1.2 less 0.9 is a little under 0.3, which this makes good. It is
# less than the last digit of any result.
TOLERANCE = 1e-6
_DECIMALS = 4
_YEAR = 365


def in_mg_dl(facts: Facts, creatinine: I64, rules: KdigoConfig) -> tuple[I64, F64, Counter[str]]:
    """Rows (m,) of creatinine that can be used, their values in mg/dL (m,), and how many cannot be, by reason.

    The unit is that of the row; without one, that of its code.

    Args:
        creatinine: rows (n,) of the list.
    """
    rows = facts.rows.take(creatinine)
    spelled = [unit.lower().replace("µ", "u").replace("μ", "u").replace(" ", "") for unit in facts.units]
    factors = np.array([*(rules.units.get(unit, np.nan) for unit in spelled), np.nan])
    molar = facts.codes.is_in(pl.Series(rules.molar, dtype=pl.String).implode()).to_numpy()[rows.code]
    by_code = np.where(molar, rules.units.get("umol/l", np.nan), 1.0)
    unit_known = rows.unit >= 0
    factor = np.where(unit_known, factors[rows.unit], by_code)
    # A 32-bit number becomes the decimal that the laboratory printed.
    value = np.round(rows.value, _DECIMALS) * factor
    least, most = rules.plausible
    reasons = {
        "flagged": rows.flagged,
        "no_number": np.isnan(rows.value),
        "unknown_unit": np.isnan(factor),
        "implausible": ~((value >= least) & (value <= most)),
    }
    usable = np.ones(len(rows), np.bool_)
    counted: Counter[str] = Counter()
    for reason, holds in reasons.items():
        counted[reason] += int((usable & holds).sum())
        usable &= ~holds
    counted["used"] += int(usable.sum())
    counted["unit_unlike_its_code"] += int((usable & unit_known & ~np.isclose(factor, by_code)).sum())
    return creatinine[usable], value[usable], counted


def kdigo_stages(facts: Facts, creatinine: I64, rules: KdigoConfig) -> tuple[pl.DataFrame, Counter[str]]:
    """`subject` (a place), `time`, `available`, `precision`, `stage` of every creatinine that meets a criterion.

    A stage is known when the last value is that it is worked out from.

    Args:
        creatinine: rows (n,) of the list.
    """
    places, value, counted = in_mg_dl(facts, creatinine, rules)
    rows = facts.rows.take(places)
    frame = pl.DataFrame(
        {
            "subject": rows.subject,
            "time": pl.Series(rows.time).cast(pl.Datetime("us")),
            "available": rows.available,
            "precision": rows.precision,
            "value": value,
        }
    ).sort("subject", "time", "available", "value")
    days, longest = f"{rules.ratio_days}d", f"{max(rules.ratio_days * 24, rules.rise_hours)}h"

    def before(window: str) -> pl.Expr:
        return pl.col("value").rolling_min_by("time", window_size=window, closed="left").over("subject")

    frame = frame.with_columns(
        before(f"{rules.rise_hours}h").alias("lowest"),
        before(days).alias("baseline"),
        pl.col("available").rolling_max_by("time", window_size=longest, closed="both").over("subject"),
    )
    if rules.otherwise == "median_year":
        year, recent = _year_before(frame, rules.ratio_days), pl.col("baseline").is_not_null()
        frame = frame.with_columns(
            pl.coalesce("baseline", year["median"]).alias("baseline"),
            pl.when(recent)
            .then("available")
            .otherwise(pl.max_horizontal("available", year["known"]))
            .alias("available"),
        )
    near = 1 - TOLERANCE
    first, second, third = rules.ratios
    ratio = pl.col("value") / pl.col("baseline")
    risen = (pl.col("value") - pl.col("lowest") >= rules.rise - TOLERANCE) | (ratio >= first * near)
    severe = (pl.col("value") >= rules.severe - TOLERANCE) & risen
    stage = (
        pl.when((ratio >= third * near) | severe)
        .then(3)
        .when(ratio >= second * near)
        .then(2)
        .when(risen)
        .then(1)
        .otherwise(0)
    )
    found = frame.with_columns(stage.cast(pl.Int64).alias("stage")).filter(pl.col("stage") > 0)
    return found.select("subject", pl.col("time").to_physical(), "available", "precision", "stage"), counted


def _year_before(frame: pl.DataFrame, days: int) -> pl.DataFrame:
    """Of the values from a year before each value (n,) to `days` before it the `median`, and when the last of them was
    `known`; null where there is none."""
    return (
        frame.select("subject", "time", "value", "available")
        .rolling("time", period=f"{_YEAR - days}d", offset=f"-{_YEAR}d", closed="both", group_by="subject")
        .agg(pl.col("value").median().alias("median"), pl.col("available").max().alias("known"))
    )
