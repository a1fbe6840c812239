"""Times as exports write them: text in, microseconds and a precision out, and what could not be read counted."""

from dataclasses import dataclass

import polars as pl

from extractors.source import TimeRule

_DATES = (
    ("%d", "day"), ("%e", "day"), ("%j", "day"), ("%F", "day"), ("%D", "day"),
    ("%m", "month"), ("%b", "month"), ("%B", "month"), ("%h", "month"),
)  # fmt: skip
# A year of two digits, which %Y takes as one of the first century, and 9999, which stands for "no date" and which a
# shift moves past what Python can hold, are unreadable.
_FIRST_YEAR, _LAST_YEAR = 1000, 9900
_SPAN = {"day": "1d", "month": "1mo", "year": "1y"}


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
        precision: (n,) text, null where `time` is.
        unreadable: (n,) bool, a value stood there and no format fits.
        present: number of values that stood there.
    """

    time: pl.Series
    precision: pl.Series
    unreadable: pl.Series
    present: int


def _parse(values: pl.Series, time_format: str) -> pl.Series:
    precision = precision_of(time_format)
    if precision in ("month", "year"):
        completion = "-01" if precision == "month" else "-01-01"
        day_format = "-%d" if precision == "month" else "-%m-%d"
        return (values + completion).str.to_date(time_format + day_format, strict=False).cast(pl.Datetime("us"))
    if precision == "day":
        return values.str.to_date(time_format, strict=False, exact=True).cast(pl.Datetime("us"))
    parsed = values.str.to_datetime(time_format, time_unit="us", strict=False, exact=True)
    return parsed.dt.replace_time_zone(None)


def parse_times(frame: pl.DataFrame, rule: TimeRule) -> Times:
    """Reads the first of the rule's columns that is not null in each row.

    A date stands at the end of its day (23:59:59.999999), a year at its end, unless the rule anchors them at the start.
    """
    text = frame.select(
        pl.coalesce(pl.col(name).str.strip_chars().replace("", None) for name in rule.column)
    ).to_series()
    present = text.is_not_null()
    time = pl.Series("time", [None], dtype=pl.Datetime("us")).new_from_index(0, len(text))
    precision = pl.Series("precision", [None], dtype=pl.String).new_from_index(0, len(text))
    for time_format in rule.formats:
        open_rows = present & time.is_null()
        if not open_rows.any():
            break
        parsed = _parse(text.set(~open_rows, None), time_format)
        new = parsed.dt.year().is_between(_FIRST_YEAR, _LAST_YEAR).fill_null(False) & open_rows
        time = parsed.zip_with(new, time)
        label = pl.Series([precision_of(time_format)]).new_from_index(0, len(text))
        precision = label.zip_with(new, precision)
    if rule.midnight_is_date:
        midnight = (time.dt.truncate("1d") == time) & precision.is_in(["s", "min", "us"])
        precision = pl.Series(["day"]).new_from_index(0, len(text)).zip_with(midnight.fill_null(False), precision)
    if rule.anchor == "end":
        for coarse, span in _SPAN.items():
            at = (precision == coarse).fill_null(False)
            if at.any():
                time = _end(time, span).zip_with(at, time)
    return Times(
        time=time.alias("time"),
        precision=precision.alias("precision"),
        unreadable=(present & time.is_null()).alias("unreadable"),
        present=int(present.sum()),
    )


def _end(time: pl.Series, span: str) -> pl.Series:
    return pl.select(
        (pl.lit(time).dt.offset_by(span) - pl.duration(microseconds=1)).cast(pl.Datetime("us"))
    ).to_series()
