"""Demographic facts: which of them a timeline tells, in front of it or at their times, and the age at its first event.

Sources: MEHRT §2.1 leaves placement open, so they stand at the start; ETHOS-ARES (datasets/base.py) takes the last
value that was known at the start, `UNKNOWN` where none was, and tells the age by two digits of rounded years. A race is
often written down at the second contact, so that the built-in profiles take the first value that is ever known, but for
`ethos-paper`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from pipelines.profiles.events import Part, order_of
from pipelines.profiles.rules import ProfileConfig
from warehouse.arrays import I32, I64, NO_TIME, Bools

BIRTH = "MEDS_BIRTH"
OLDEST = 90
_DAY_US = 86_400_000_000
_DAYS_A_YEAR = {"bands": 365.2425, "digits": 365.25}
_AGES = {
    "bands": [*(f"DEMO/AGE/{first}-{first + 9}" for first in range(0, OLDEST, 10)), f"DEMO/AGE/{OLDEST}+"],
    "digits": [f"DEMO/AGE/{place}/{digit}" for place in ("TENS", "ONES") for digit in range(10)],
    "none": [],
}


@dataclass(frozen=True)
class Facts:
    """What demographic codes tell.

    Attributes:
        tokens: distinct tokens (f,) that may stand in front, those of facts in order, then those of ages.
        token: of each code (c,) its token's place there; 0 for a code that is none.
        attribute: of each code (c,) the number of what it is a value of.
        unstated: of each code (c,) whether its value is that nobody knows it.
        unknown: of attributes that stand as unknown where no value does, their number and token's place.
        ages: the place of the first token of ages.
    """

    tokens: pl.Series
    token: I64
    attribute: I64
    unstated: Bools
    unknown: Sequence[tuple[int, int]]
    ages: int

    def take(self, places: I64) -> "Facts":
        """What some of the codes tell, by their places."""
        return replace(self, token=self.token[places], attribute=self.attribute[places], unstated=self.unstated[places])


def facts_of(heads: pl.Series, profile: ProfileConfig) -> Facts:
    """Looks demographic codes up.

    Args:
        heads: the token of each demographic code (c,), null for every other.
    """
    lacking = pl.Series(
        [f"{unknown_demographic}/UNKNOWN" for unknown_demographic in profile.unknown_demographics], dtype=pl.String
    )
    known_tokens = pl.concat([heads.drop_nulls(), lacking]).unique().sort()
    attributes = known_tokens.to_frame("token").select(_attribute()).to_series().unique().sort().to_list()
    places = {token: place for place, token in enumerate(known_tokens.to_list())}
    token, attribute = np.zeros(len(heads), np.int64), np.zeros(len(heads), np.int64)
    of_fact = heads.is_not_null().to_numpy()
    fact_tokens = heads.drop_nulls().to_frame("token").with_columns(_attribute().alias("attribute"))
    token[of_fact] = [places[token_name] for token_name in fact_tokens["token"].to_list()]
    attribute[of_fact] = [attributes.index(name) for name in fact_tokens["attribute"].to_list()]
    return Facts(
        tokens=pl.concat([known_tokens, pl.Series(_AGES[profile.age], dtype=pl.String)]),
        token=token,
        attribute=attribute,
        unstated=heads.str.ends_with("/UNKNOWN").fill_null(False).to_numpy(),
        unknown=[(attributes.index(_attribute_of(token)), places[token]) for token in lacking.to_list()],
        ages=len(known_tokens),
    )


def _attribute() -> pl.Expr:
    """`DEMO/SEX` of `DEMO/SEX/F`, `MARITAL_STATUS` of `MARITAL_STATUS/SINGLE`."""
    parts = pl.col("token").str.splitn("/", 3)
    first, second = parts.struct.field("field_0"), parts.struct.field("field_1")
    return pl.when((first == "DEMO") & second.is_not_null()).then(first + "/" + second).otherwise(first)


def _attribute_of(token: str) -> str:
    return str(pl.DataFrame({"token": [token]}).select(_attribute()).item())


@dataclass(frozen=True)
class Demographics:
    """What a part's demographic events become.

    Attributes:
        subject: for each token in front (p,), its subject's place among the part's; a subject's together.
        token: its place among the facts' tokens (p,), in order.
        timed: places of the events that stay where they are (m,).
        repeated: places of events that tell nothing new (k,), ascending.
    """

    subject: I32
    token: I64
    timed: I64
    repeated: I64


def demographics_of(part: Part, rows: I64, facts: Facts, profile: ProfileConfig) -> Demographics:
    """Demographic events of a part as tokens.

    Args:
        rows: places of the demographic events, ascending (m,).
    """
    if profile.static == "none":
        return Demographics(part.subject[:0], rows[:0], rows[:0], rows[:0])
    ordered, at = order_of(part, rows, profile.order, images_first=False)
    subject, code = part.subject[ordered], part.code.place[ordered]
    token = facts.token[code]
    # One number for each subject's attribute.
    subject_attribute = subject.astype(np.int64) * (int(facts.attribute.max(initial=0)) + 1) + facts.attribute[code]
    if profile.static == "timed":
        kept = _changed(subject_attribute, token)
        front = np.flatnonzero(kept & (at == NO_TIME))
        timed = ordered[kept & (at != NO_TIME)]
    else:
        # That a value is not known is no value where another one is ever known.
        known = np.argsort(facts.unstated[code], kind="stable")
        if profile.demographic_value == "at_start":
            times = part.available if profile.order == "available_time" else part.time
            known = np.flatnonzero(at <= _first(part, times)[subject])[::-1]
        front = known[np.unique(subject_attribute[known], return_index=True)[1]]
        timed = ordered[:0]
        kept = np.zeros(len(subject_attribute), np.bool_)
        kept[front] = True
    subjects, tokens = [subject[front]], [token[front]]
    for attribute, place in facts.unknown:
        having = subject[front][facts.attribute[code[front]] == attribute]
        lacking = np.setdiff1d(np.arange(len(part.subjects), dtype=np.int32), having)
        subjects.append(lacking)
        tokens.append(np.full(len(lacking), place))
    aged, ages = _ages(part, profile)
    subjects += aged
    tokens += [age + facts.ages for age in ages]
    of, token = np.concatenate(subjects), np.concatenate(tokens)
    order = np.lexsort((token, of))
    return Demographics(of[order], token[order], timed, np.sort(ordered[~kept]))


def _changed(subject_attribute: I64, token: I64) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which facts (m,), in order, differ from the one before of the same subject and attribute."""
    order = np.argsort(subject_attribute, kind="stable")
    changed = np.ones(len(subject_attribute), np.bool_)
    again = (subject_attribute[order][1:] == subject_attribute[order][:-1]) & (token[order][1:] == token[order][:-1])
    changed[order[1:][again]] = False
    return changed


def _ages(part: Part, profile: ProfileConfig) -> tuple[list[I32], list[I64]]:
    """The age at each subject's first event, 90 and more pooled: subjects, and places among the tokens of ages."""
    if profile.age == "none":
        return [], []
    born = np.full(len(part.subjects), NO_TIME)
    births = np.flatnonzero(part.code.is_text(BIRTH))[::-1]
    born[part.subject[births]] = part.time[births]
    first = _first(part, part.time)
    known = (born != NO_TIME) & (first != NO_TIME)
    if not known.any():
        return [], []
    # From the interval, which a date shift keeps, not from the two years, which it does not.
    days = (first[known] - born[known]) // _DAY_US
    years = np.maximum(days / _DAYS_A_YEAR[profile.age], 0)
    subject = np.flatnonzero(known).astype(np.int32)
    if profile.age == "digits":
        whole = np.minimum(np.rint(years).astype(np.int64), OLDEST)
        return [subject, subject], [whole // 10, 10 + whole % 10]
    return [subject], [np.minimum(years.astype(np.int64), OLDEST) // 10]


def _first(part: Part, times: I64) -> I64:
    """Each subject's earliest time (s,) but for birth, NO_TIME where there is none."""
    # One below the least of all numbers, which NO_TIME is, comes the greatest: no time is the latest of all.
    before = times - 1
    before[part.code.is_text(BIRTH)] = np.iinfo(np.int64).max
    first: I64 = np.minimum.reduceat(before, part.starts[:-1]) if len(before) else before
    return first + 1
