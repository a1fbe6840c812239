"""Demographic facts: which of them a timeline tells, in front of it or at their times, and the age at its first event.

Sources: MEHRT §2.1 leaves placement open, so they stand at the start; ETHOS-ARES (datasets/base.py) takes the last
value that was known at the start, `UNKNOWN` where none was, and tells the age by two digits of rounded years.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from pipelines.profiles.events import NO_TIME, Part, order_of
from pipelines.profiles.rules import ProfileConfig

BIRTH = "MEDS_BIRTH"
OLDEST = 90
_DAY_US = 86_400_000_000
_DAYS_A_YEAR = {"bands": 365.2425, "digits": 365.25}

I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Demographics:
    """What a part's demographic events become.

    Attributes:
        prefix: columns subject (place among the part's subjects), token; in order.
        timed: places of the events that stay where they are (m,), in the timeline's order.
        repeated: places of events that tell nothing new (k,).
    """

    prefix: pl.DataFrame
    timed: I64
    repeated: I64


def demographics_of(part: Part, rows: I64, tokens: pl.Series, profile: ProfileConfig) -> Demographics:
    """Demographic events of a part as tokens.

    Args:
        rows: places of the demographic events, ascending (m,).
        tokens: of each of the part's distinct codes the token (c,), null where it has none.
    """
    ordered, at = order_of(part, rows, profile.order, images_first=False)
    facts = pl.DataFrame(
        {
            "subject": part.subject[ordered],
            "row": ordered,
            "at": at,
            "token": tokens.gather(part.code.place[ordered]),
        },
        schema_overrides={"row": pl.Int64, "at": pl.Int64},
    ).with_columns(attribute_of("token").alias("attribute"))
    of_attribute = ["subject", "attribute"]
    nothing = np.empty(0, np.int64)
    if profile.static == "timed":
        before = pl.col("token").shift().over(of_attribute)
        told = facts.with_columns((before.is_null() | (before != pl.col("token"))).alias("told"))
        timeless = told.filter(pl.col("told") & (pl.col("at") == NO_TIME)).sort("subject", "token")
        timed = told.filter(pl.col("told") & (pl.col("at") != NO_TIME))["row"].to_numpy()
        repeated = told.filter(~pl.col("told"))["row"].to_numpy()
    else:
        timed = nothing
        if profile.demographic_value == "at_start":
            starts = pl.Series(
                "start", _first(part, part.available if profile.order == "available_time" else part.time)
            )
            known = facts.filter(pl.col("at") <= pl.lit(starts).gather(pl.col("subject")))
            timeless = known.unique(of_attribute, keep="last", maintain_order=True)
        else:
            timeless = facts.unique(of_attribute, keep="first", maintain_order=True)
        repeated = facts.join(timeless, on="row", how="anti")["row"].to_numpy()
    every = [timeless.select("subject", "token")]
    for attribute in profile.unknown_demographics:
        having = timeless.filter(pl.col("attribute") == attribute)["subject"].to_numpy()
        lacking = np.setdiff1d(np.arange(len(part.subjects), dtype=np.int32), having)
        every.append(pl.DataFrame({"subject": lacking}).with_columns(pl.lit(f"{attribute}/UNKNOWN").alias("token")))
    prefix = pl.concat([pl.concat(every).sort("subject", "token"), ages(part, profile)])
    return Demographics(prefix.sort("subject", maintain_order=True), timed, np.sort(repeated))


def attribute_of(column: str) -> pl.Expr:
    """`DEMO/SEX` of `DEMO/SEX/F`, `MARITAL_STATUS` of `MARITAL_STATUS/SINGLE`."""
    parts = pl.col(column).str.splitn("/", 3)
    first, second = parts.struct.field("field_0"), parts.struct.field("field_1")
    return pl.when((first == "DEMO") & second.is_not_null()).then(first + "/" + second).otherwise(first)


def ages(part: Part, profile: ProfileConfig) -> pl.DataFrame:
    """Columns subject and token: the age at each subject's first event, 90 and more pooled."""
    born = np.full(len(part.subjects), NO_TIME)
    births = np.flatnonzero(part.code.is_text(BIRTH))[::-1]
    born[part.subject[births]] = part.time[births]
    first = _first(part, part.time)
    known = (born != NO_TIME) & (first != NO_TIME)
    if profile.age == "none":
        known[:] = False
    # From the interval, which a date shift keeps, not from the two years, which it does not.
    days = (first[known] - born[known]) // _DAY_US
    years = np.maximum(days / _DAYS_A_YEAR.get(profile.age, 1.0), 0)
    subject = np.flatnonzero(known).astype(np.int32)
    if profile.age == "digits":
        whole = np.minimum(np.rint(years).astype(np.int64), OLDEST)
        digits = pl.DataFrame({"subject": subject, "tens": whole // 10, "ones": whole % 10}).select(
            "subject",
            pl.concat_list(
                pl.format("DEMO/AGE/TENS/{}", "tens"), pl.format("DEMO/AGE/ONES/{}", "ones")
            ).alias("token"),
        )  # fmt: skip
        return digits.explode("token")
    decade = np.floor(years).astype(np.int64) // 10 * 10
    frame = pl.DataFrame({"subject": subject, "decade": decade})
    band = pl.format("DEMO/AGE/{}-{}", "decade", pl.col("decade") + 9)
    oldest = pl.lit(f"DEMO/AGE/{OLDEST}+")
    return frame.select("subject", pl.when(pl.col("decade") >= OLDEST).then(oldest).otherwise(band).alias("token"))


def _first(part: Part, times: I64) -> I64:
    """Each subject's earliest time (s,) but for birth, NO_TIME where there is none."""
    latest = np.iinfo(np.int64).max
    counted = np.where((times == NO_TIME) | part.code.is_text(BIRTH), latest, times)
    first = np.minimum.reduceat(counted, part.starts[:-1]) if len(counted) else counted
    return np.where(first == latest, NO_TIME, first)
