"""Times as exports write them: text in, microseconds and a precision out, and what could not be read counted."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import polars as pl

from extractors.origins import TimeReading
from extractors.source_model import names_utc
from extractors.tables.rows import TextColumn
from extractors.time_rule import TimeRule

_DATES = (
    ("%d", "day"), ("%e", "day"), ("%j", "day"), ("%F", "day"), ("%D", "day"),
    ("%m", "month"), ("%b", "month"), ("%B", "month"), ("%h", "month"),
)  # fmt: skip
# A year of two digits, which %Y takes as one of the first century, and 9999, which stands for "no date" and which a
# shift moves past what Python can hold, are unreadable.
_FIRST, _LAST = (
    (at - datetime(1970, 1, 1)) // timedelta(microseconds=1)
    for at in (datetime(1000, 1, 1), datetime(9900, 12, 31, 23, 59, 59, 999_999))
)
_SPAN = {"day": "1d", "month": "1mo", "year": "1y"}
_MOMENT = "%Y-%m-%d %H:%M:%S"
# Names of offset 0 behind a time; what else a name may mean hangs on who wrote it.
_UTC_NAMES = r"(?i)(\d|[ap]m)\s*(?:UTC|GMT|UT|Z)(\s|$)"
_WIDTHS = {"Y": 4, "m": 2, "d": 2, "H": 2, "M": 2, "S": 2, "z": 0}
_UNDIVIDED = re.compile("%[YmdHMS]%[YmdHMS]")
PRECISIONS = ("us", "s", "min", "day", "month", "year")
# The first of PRECISIONS that is no moment but a span of days.
MOMENTS = PRECISIONS.index("day")


def precision_of(time_format: str) -> str:
    """What a strptime format resolves: us, s, min, day, month or year."""
    for directive, precision in (("%.f", "us"), ("%f", "us"), ("%S", "s"), ("%T", "s"), ("%M", "min"), ("%R", "min")):
        if directive in time_format:
            return precision
    for directive, precision in _DATES:
        if directive in time_format:
            return precision
    return "year"


@dataclass(frozen=True)
class Times:
    """Parsed times of n rows.

    Attributes:
        time: (n,) datetime[us], null where missing or unreadable.
        precision: (n,) an enumeration of PRECISIONS, null where `time` is.
        unreadable: (n,) bool, a value stood there and no format fits.
        present: number of values that stood there.
        formats: how many values each format read.
        tried: the formats, in the order of their trial.
        read_by: (n,) uint8, which of `tried` read the value, null where none did.
    """

    time: pl.Series
    precision: pl.Series
    unreadable: pl.Series
    present: int
    formats: dict[str, int]
    tried: list[str]
    read_by: pl.Series

    def gather(self, places: pl.Series) -> "Times":
        """The times of some rows, or of the rows that ask for them; the numbers stay what they are."""
        return replace(
            self,
            time=self.time.gather(places),
            precision=self.precision.gather(places),
            unreadable=self.unreadable.gather(places),
            read_by=self.read_by.gather(places),
        )


def parse_times(frame: pl.DataFrame, rule: TimeRule, zone: str | None = None) -> Times:
    """Reads the first of the rule's columns that is not null in each row.

    A date stands at the end of its day (23:59:59.999999), a year at its end, unless the rule anchors them at the start.

    Args:
        zone: IANA name of the wall clock to which values with an offset are converted; UTC where None.
    """
    columns = rule.column
    text = frame[columns[0]] if len(columns) == 1 else frame.select(pl.coalesce(columns)).to_series()
    # Most columns are of one format and without a blank: tried first, since it costs a fraction of the rest.
    first = rule.formats[0]
    time = _readable(_parse(text, first, zone))
    present = len(text) - text.null_count()
    formats = {first: len(time) - time.null_count()}
    if formats[first] == present:
        return _of_one_format(time, rule)
    precision = _label(precision_of(first), len(text))
    read_by = pl.Series([0], dtype=pl.UInt8).new_from_index(0, len(text))
    # A blank is nothing: the next column is asked then.
    text = first_filled(frame.select(columns))
    for number, time_format in enumerate(rule.formats):
        open_rows = text.is_not_null() & time.is_null()
        if not open_rows.any():
            break
        parsed = _readable(_parse(text.set(~open_rows, None), time_format, zone))
        new = parsed.is_not_null()
        formats[time_format] = formats.get(time_format, 0) + int(new.sum())
        time = parsed.zip_with(new, time)
        precision = _label(precision_of(time_format), len(text)).zip_with(new, precision)
        read_by = read_by.set(new, number)
    return _settled(time, precision, text.is_not_null() & time.is_null(), read_by, formats, rule)


def times_as_read(frame: pl.DataFrame, readings: Sequence[TimeReading]) -> Times:
    """The same of columns that are not all written alike.

    Args:
        readings: what `extractors.origins.readings_of` gives for a rule.
    """
    if len(readings) == 1:
        return parse_times(frame, readings[0].rule, readings[0].zone)
    found: list[tuple[Times, pl.Series]] = []
    is_open = pl.Series([True]).new_from_index(0, len(frame))
    for reading in readings:
        text = first_filled(frame.select(reading.rule.column)).set(~is_open, None).alias("text")
        rule = reading.rule.model_copy(update={"column": ["text"]})
        found.append((parse_times(text.to_frame(), rule, reading.zone), text.is_not_null()))
        is_open &= text.is_null()
    times, _ = found[0]
    for other, stands in found[1:]:
        counted = {
            name: times.formats.get(name, 0) + other.formats.get(name, 0) for name in times.formats | other.formats
        }
        times = Times(
            time=other.time.zip_with(stands, times.time),
            precision=other.precision.zip_with(stands, times.precision),
            unreadable=other.unreadable | times.unreadable,
            present=times.present + other.present,
            formats=counted,
            tried=[*times.tried, *other.tried],
            read_by=(other.read_by + len(times.tried)).cast(pl.UInt8).zip_with(stands, times.read_by),
        )
    return times


def column_times(texts: TextColumn, rule: TimeRule, zone: str | None = None) -> Times:
    """The same of a column (n,) that holds what the rule's columns say: see `first_filled`.

    Where its values are numbered, numbers of values are those of the values.
    """
    if rule.formats[0] == _MOMENT and texts.texts is not None:
        moments = texts.texts.moments()
        if moments is not None and _readable(moments).null_count() == moments.null_count():
            return _of_one_format(moments, rule)
    times = parse_times(pl.DataFrame({"text": texts.values}), rule.model_copy(update={"column": ["text"]}), zone)
    return times if texts.places is None else times.gather(pl.Series(texts.places))


def first_filled(frame: pl.DataFrame) -> pl.Series:
    """In each row, the first of the columns (n,) that says something."""
    return frame.select(pl.coalesce(pl.all().str.strip_chars().replace("", None))).to_series()


def _of_one_format(time: pl.Series, rule: TimeRule) -> Times:
    """Times (n,) where the rule's first format read whatever stood there."""
    present, rows = len(time) - time.null_count(), len(time)
    nothing = pl.Series([False]).new_from_index(0, rows)
    read_by = pl.Series([0], dtype=pl.UInt8).new_from_index(0, rows)
    first = rule.formats[0]
    return _settled(time, _label(precision_of(first), rows), nothing, read_by, {first: present}, rule)


def _settled(
    time: pl.Series,
    precision: pl.Series,
    unreadable: pl.Series,
    read_by: pl.Series,
    formats: dict[str, int],
    rule: TimeRule,
) -> Times:
    """Dates are put where the rule anchors them."""
    present = sum(formats.values()) + int(unreadable.sum())
    if rule.midnight_is_date:
        midnight = (time.dt.truncate("1d") == time) & precision.is_in(["s", "min", "us"])
        precision = _label("day", len(time)).zip_with(midnight.fill_null(False), precision)
    if rule.anchor == "end":
        for coarse, span in _SPAN.items():
            if (coarse == "day" and rule.midnight_is_date) or any(precision_of(format) == coarse for format in formats):
                time = _end(time, span).zip_with(precision == coarse, time)
    return Times(
        time=time.alias("time"),
        precision=(precision.set(time.is_null(), None) if time.null_count() else precision).alias("precision"),
        unreadable=unreadable.alias("unreadable"),
        present=present,
        formats={name: number for name, number in formats.items() if number},
        tried=rule.formats,
        read_by=read_by.set(time.is_null(), None) if time.null_count() else read_by,
    )


def _label(precision: str, rows: int) -> pl.Series:
    return pl.Series([precision], dtype=pl.Enum(PRECISIONS)).new_from_index(0, rows)


def _digits(time_format: str) -> int:
    """How many digits a value must have whose parts no sign divides; 0 where signs do, or digits vary."""
    parts = re.findall("%([A-Za-z])", time_format)
    if not _UNDIVIDED.search(time_format) or not set(parts) <= _WIDTHS.keys():
        return 0
    return sum(_WIDTHS[part] for part in parts)


def _parse(values: pl.Series, time_format: str, zone: str | None) -> pl.Series:
    digits = _digits(time_format)
    if digits:
        # 2020111 is the first of November as well as the eleventh of January.
        values = values.set(values.str.count_matches(r"\d") != digits, None)
    precision = precision_of(time_format)
    if precision in ("month", "year"):
        completion = "-01" if precision == "month" else "-01-01"
        day_format = "-%d" if precision == "month" else "-%m-%d"
        return (values + completion).str.to_date(time_format + day_format, strict=False).cast(pl.Datetime("us"))
    if precision == "day":
        return values.str.to_date(time_format, strict=False, exact=True).cast(pl.Datetime("us"))
    if "%z" not in time_format and "%Z" not in time_format:
        parsed = values.str.to_datetime(time_format, time_unit="us", strict=False, exact=True)
        return _on_the_wall(parsed.dt.replace_time_zone("UTC"), zone) if zone and names_utc(time_format) else parsed
    # ISO 8601 writes UTC as Z, which only the permissive directive reads; of zones' names no directive reads any.
    permissive = time_format.replace("%z", "%#z").replace("%Z", "%#z")
    parsed = values.str.to_datetime(permissive, time_unit="us", strict=False, exact=True)
    open_values = values.set(parsed.is_not_null(), None)
    if open_values.str.contains(_UTC_NAMES).any():
        named = open_values.str.replace(_UTC_NAMES, "${1}+00:00${2}")
        parsed = parsed.zip_with(
            parsed.is_not_null(), named.str.to_datetime(permissive, time_unit="us", strict=False, exact=True)
        )
    return _on_the_wall(parsed, zone)


def _on_the_wall(zoned: pl.Series, zone: str | None) -> pl.Series:
    return zoned.dt.convert_time_zone(zone or "UTC").dt.replace_time_zone(None)


def _readable(time: pl.Series) -> pl.Series:
    # As numbers: not every time in microseconds is one that Python has.
    micros = time.to_physical()
    first, last = micros.min(), micros.max()
    if first is None or (first >= _FIRST and last <= _LAST):  # type: ignore[operator]
        return time
    return time.set(~micros.is_between(_FIRST, _LAST).fill_null(True), None)


def _end(time: pl.Series, span: str) -> pl.Series:
    return pl.select(
        (pl.lit(time).dt.offset_by(span) - pl.duration(microseconds=1)).cast(pl.Datetime("us"))
    ).to_series()
