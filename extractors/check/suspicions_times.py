"""Times that another format of the rule, or the same one with day and month exchanged, would read otherwise."""

import re
from collections.abc import Iterator

import polars as pl

from extractors.check.suspicions_rows import FEW, Sample
from extractors.check.suspicions_yaml import Suspicion, key_of, times_of
from extractors.events.times import first_filled, parse_times
from extractors.origins import TimeReading, readings_of
from extractors.source import Source

# Counts below it are not shown.
_SHOWN_ROWS = 11
_DAY, _MONTH = re.compile("%-?d"), re.compile("%-?m")


def in_times(source: Source, sample: Sample) -> Iterator[Suspicion]:
    """What shows where the values of a table's times are read in every way that fits them."""
    said: set[tuple[str, ...]] = set()
    for rule in times_of(sample.rule):
        readings = readings_of(source, sample.table, rule)
        start = 0
        for reading in readings:
            formats = reading.rule.formats
            read_by = sample.times[key_of(rule)].read_by
            of_reading = (read_by >= start) & (read_by < start + len(formats))
            key = (*reading.rule.column, *formats)
            if of_reading.any() and len(formats) > 1 and key not in said:
                said.add(key)
                by = pl.select(pl.when(of_reading).then(read_by.cast(pl.Int64) - start)).to_series()
                yield from _ambiguous(sample, reading, by)
            start += len(formats)


def _ambiguous(sample: Sample, reading: TimeReading, read_by: pl.Series) -> Iterator[Suspicion]:
    """Findings of one reading.

    Args:
        read_by: (n,) which of its formats read the row's value, null where none did.
    """
    column = ", ".join(reading.rule.column)
    text = first_filled(sample.frame.select(reading.rule.column))
    formats = reading.rule.formats
    read = {time_format: _times(text, time_format, reading) for time_format in formats}
    for number, time_format in enumerate(formats):
        of_format = (read_by == number).fill_null(False)
        for other in formats:
            differs = of_format & (read[other] != read[time_format]).fill_null(False)
            if differs.any():
                yield Suspicion(
                    "formats_both_fit", sample.table, column,
                    f"{time_format} and {other} both fit {_rows(differs)}, which are other times under {other}",
                    "keep the format that the export writes; `reading` gives one to a table or column",
                )  # fmt: skip
        exchanged = _exchanged(time_format)
        if exchanged is None or exchanged in formats or int(of_format.sum()) < FEW:
            continue
        otherwise = _times(text, exchanged, reading)
        if otherwise.is_null().filter(of_format).any():
            continue
        differs = of_format & (otherwise != read[time_format])
        if differs.any():
            yield Suspicion(
                "day_or_month_first", sample.table, column,
                f"{exchanged} fits as well as {time_format}, with other times in {_rows(differs)}",
                "name the format that the export writes as the only one, in the rule or with `reading`",
            )  # fmt: skip


def _times(text: pl.Series, time_format: str, reading: TimeReading) -> pl.Series:
    rule = reading.rule.model_copy(
        update={"column": ["text"], "formats": [time_format], "anchor": "start", "midnight_is_date": False}
    )
    return parse_times(pl.DataFrame({"text": text}), rule, reading.zone).time


def _exchanged(time_format: str) -> str | None:
    """The format with day and month exchanged; None where nobody writes it so."""
    day, month = _DAY.search(time_format), _MONTH.search(time_format)
    if time_format.startswith("%Y") or day is None or month is None:
        return None
    return _DAY.sub("\0", time_format).replace(month[0], day[0]).replace("\0", month[0])


def _rows(marked: pl.Series) -> str:
    count = int(marked.sum())
    return f"{count:,} rows" if count >= _SHOWN_ROWS else f"fewer than {_SHOWN_ROWS} rows"
