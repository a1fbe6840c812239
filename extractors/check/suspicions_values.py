"""Values that another way of writing would make numbers, letters that are units or flags, and what stands for nothing.

A value or a date is named where eleven or more subjects share it, or where programs are known to write it for nothing.
"""

import re
from collections.abc import Iterator
from datetime import date

import numpy as np
import polars as pl

from extractors.check.suspicions_rows import FEW, SHOWN_SUBJECTS, Sample
from extractors.check.suspicions_yaml import Suspicion, key_of, times_of
from extractors.events.units import CONTRADICTS
from extractors.events.values import Writing, parse_values
from extractors.origins import value_reading
from extractors.source import EventRule, Source
from warehouse.arrays import F64

# Ways of writing numbers, those that say least first.
WRITINGS = (
    Writing(".", ","), Writing(",", None), Writing(",", "."), Writing(".", " "), Writing(",", " "), Writing(".", "'"),
    Writing(",", "'"),
)  # fmt: skip
# A value that so many rows share, of so many rows and subjects, may stand for nothing.
SHARED, ROWS, SUBJECTS = 0.1, 20, 3
# Days that programs write where they have none: the first of Excel, SQL Server, Unix and of forms that ask for one.
_NO_DAYS = {
    date(1, 1, 1), date(1600, 1, 1), date(1700, 1, 1), date(1753, 1, 1), date(1800, 1, 1), date(1840, 12, 31),
    date(1850, 1, 1), date(1899, 12, 30), date(1899, 12, 31), date(1900, 1, 1), date(1900, 1, 2), date(1901, 1, 1),
    date(1911, 11, 11), date(1970, 1, 1),
}  # fmt: skip
_LAST_YEAR = 2200
# So many other numbers make a range that one can lie outside of.
_MANY = 10
_APART_DAYS = 2 * 365
_NINES = re.compile(r"-?9{3,}(?:\.9+)?")
_KNOWN = re.compile(r"-1|-?9{2,}(?:\.9+)?")
_WORDS = ("null", "(null)", "<null>", r"\n", "nan", "na", "n/a", "#n/a", "<na>", "nat")


def in_values(source: Source, sample: Sample) -> Iterator[Suspicion]:
    """What shows in the values and times of one table."""
    if sample.frame.is_empty():
        return
    for name in dict.fromkeys(event.value for event in sample.rule.events if event.value):
        texts = sample.frame[name].str.strip_chars().replace("", None).drop_nulls()
        if len(texts):
            yield from _otherwise(source, sample, name, texts)
            yield from _words(sample, name, texts)
        if sample.doubtful.get(name):
            yield Suspicion(
                "unit_or_flag", sample.table, name,
                "letters behind its numbers, such as L, are taken for units and may be flags",
                f"say `flags: true` or `flags: false` of {name} in `reading`, or give the rule a `unit`",
            )  # fmt: skip
    for number, event in enumerate(sample.rule.events):
        if event.value:
            yield from _values(sample, event, sample.events.filter(pl.col("rule") == number))
    yield from _days(source, sample)


def _otherwise(source: Source, sample: Sample, name: str, texts: pl.Series) -> Iterator[Suspicion]:
    """Texts that most of them would be numbers if other signs divided them."""
    reading = value_reading(source, sample.table, name)
    used = Writing(reading.decimal_sign, reading.thousands, reading.flags is not False)
    counted = texts.value_counts()
    text, rows = counted[texts.name], counted["count"]
    read = _numbers(text, used)
    by = {writing: _numbers(text, writing) for writing in WRITINGS if writing != used}
    # Texts that are numbers in some way of writing.
    written = pl.select(~read & pl.any_horizontal(list(by.values()))).to_series()
    unread = int(rows.filter(written).sum())
    if unread < FEW or unread < 0.01 * len(texts):
        return
    best = max(by, key=lambda writing: int(rows.filter(by[writing]).sum()))
    if int(rows.filter(by[best] & written).sum()) <= unread / 2:
        return
    keys = [f'decimal: "{best.decimal}"'] if best.decimal != "." else []
    keys += [f'thousands: "{best.thousands}"'] if best.thousands else []
    yield Suspicion(
        "numbers_written_otherwise", sample.table, name,
        f"texts that would be numbers with `{', '.join(keys)}`, and numbers that may be read wrongly without",
        f"say so in `reading`: `tables: {{{sample.table}: {{columns: {{{name}: {{{', '.join(keys)}}}}}}}}}`",
    )  # fmt: skip


def _numbers(text: pl.Series, writing: Writing) -> pl.Series:
    return parse_values(text, writing)["number"].is_not_null()


def _words(sample: Sample, name: str, texts: pl.Series) -> Iterator[Suspicion]:
    """Words for nothing, beside numbers."""
    found = texts.filter(texts.str.to_lowercase().is_in(_WORDS))
    if len(found) and parse_values(texts)["number"].is_not_null().any():
        yield Suspicion(
            "nothing_as_text", sample.table, name,
            f"words that stand for nothing are kept as texts: {', '.join(sorted(set(found.to_list())))}",
            "list them in `null_values`",
        )  # fmt: skip


def _values(sample: Sample, event: EventRule, events: pl.DataFrame) -> Iterator[Suspicion]:
    """A number that many rows share and that lies far from the others; units that differ."""
    assert event.value is not None
    flags = events["flag"]
    differ = int(((flags >= CONTRADICTS) & flags.is_not_null()).sum())
    if differ > 0.01 * len(events):
        yield Suspicion(
            "value_unit_differs", sample.table, event.value,
            f"units in its texts are others than those in {event.unit}",
            "check that the columns belong together, or spell the units alike with `units`",
        )  # fmt: skip
    numbers = events.select("code", "subject_id", value="numeric_value").drop_nulls("value")
    parts = [numbers, *(part for _, part in numbers.group_by("code", maintain_order=True))]
    for part in parts:
        shared = _shared(part)
        if shared is None:
            continue
        value, subjects = float(shared["value"].item()), shared["subjects"].item()
        others = part.filter(pl.col("value") != value)["value"].cast(pl.Float64).to_numpy()
        # Of a handful of values each is a category.
        if len(np.unique(others)) >= FEW and _stands_apart(value, others):
            text = f"{value:.10g}"
            known = _KNOWN.fullmatch(text) is not None
            yield _stand_in(sample, event.value, text, subjects, f"of the numbers of {event.code}", known=known)
            return


def _stands_apart(value: float, others: F64) -> bool:
    """Whether a number is none like the others."""
    if (value < 0 and (others >= 0).all()) or _NINES.fullmatch(f"{value:.10g}"):
        return True
    low, high = np.quantile(others, [0.05, 0.95])
    gap = max(others.min() - value, value - others.max())
    return bool(len(np.unique(others)) >= _MANY and gap > high - low)


def _days(source: Source, sample: Sample) -> Iterator[Suspicion]:
    """A date that many rows share and that lies far from the others."""
    said: set[str] = set()
    for rule in times_of(sample.rule):
        column = ", ".join(rule.column)
        subject = sample.frame[sample.rule.subject or source.subject]
        times = pl.DataFrame({"value": sample.times[key_of(rule)].time, "subject_id": subject}).drop_nulls("value")
        times = times.with_columns(pl.col("value").dt.date())
        shared = None if column in said else _shared(times)
        if shared is None:
            continue
        day, subjects = shared["value"].item(), shared["subjects"].item()
        others = times.filter(pl.col("value") != day)["value"].unique().sort()
        known = day in _NO_DAYS or day.year >= _LAST_YEAR
        if known or (len(others) >= FEW and _lies_apart(day, others)):
            said.add(column)
            yield _stand_in(sample, column, day.isoformat(), subjects, "of its dates", known=known)


def _lies_apart(day: date, others: pl.Series) -> bool:
    known = others.to_list()
    return bool((known[0] - day).days > _APART_DAYS or (day - known[-1]).days > _APART_DAYS)


def _shared(values: pl.DataFrame) -> pl.DataFrame | None:
    """The `value` that most rows have, how many `rows` and `subjects` do; None where it is not a tenth of them."""
    if len(values) < ROWS:
        return None
    counted = values.group_by("value").agg(pl.len().alias("rows"), pl.col("subject_id").n_unique().alias("subjects"))
    most = counted.sort(["rows", "value"], descending=[True, False]).head(1)
    return most if most["rows"].item() >= SHARED * len(values) and most["subjects"].item() >= SUBJECTS else None


def _stand_in(sample: Sample, column: str, value: str, subjects: int, of: str, *, known: bool) -> Suspicion:
    shown = subjects >= SHOWN_SUBJECTS or known
    named, listed = (value, value) if shown else ("one of them", "it")
    return Suspicion(
        "shared_by_many", sample.table, column,
        f"{named} stands in a tenth or more {of}, apart from the others: it may stand for nothing",
        f"list {listed} in `null_values` of the column, in `reading`",
    )  # fmt: skip
