"""When images and waveforms were acquired: which DICOM tag says so, at what precision, on whose clock.

Order (never Content time, which is when the image was made): FrameAcquisitionDateTime, AcquisitionDateTime, Acquisition
date and time, Series, Study; and only where none of these has a time of day, the dates alone in the same order.

Times are kept as naive wall-clock times, as the EHR's are. A value that carries its own UTC offset is moved to the
header's TimezoneOffsetFromUTC; both are moved to the site's clock where one is named.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from functools import lru_cache
from zoneinfo import ZoneInfo

from extractors.items import TimePrecision

DATE_TIMES = ("FrameAcquisitionDateTime", "AcquisitionDateTime")
PAIRS = (("AcquisitionDate", "AcquisitionTime"), ("SeriesDate", "SeriesTime"), ("StudyDate", "StudyTime"))

_SOME_DAY = "19000101"
_KEPT = 1 << 10  # times that were parsed: slices share those of their series
_DATE = re.compile(r"(\d{4})[.\-]?(\d{2})[.\-]?(\d{2})$")
_TIME = re.compile(r"(\d{2}):?(\d{2})(?::?(\d{2})(?:\.(\d{1,6}))?)?$")
_OFFSET = re.compile(r"([+-])(\d{2}):?(\d{2})$")


@dataclass(frozen=True)
class Moment:
    """A naive time, the tag that gave it with its rank among tags, and the UTC offset of its clock if known."""

    rank: int
    time: datetime
    source: str
    precision: TimePrecision
    utc_offset_minutes: int | None = None


def moments_of(values: Mapping[str, str], site_timezone: str | None = None) -> tuple[Moment, ...]:
    """Every time that a header gives, from its tags' texts; what does not parse is left out.

    >>> moment = moments_of({"AcquisitionDateTime": "20160819140002.5+0800", "TimezoneOffsetFromUTC": "+0700"})[0]
    >>> moment.time.isoformat(), moment.source, moment.precision
    ('2016-08-19T13:00:02.500000', 'AcquisitionDateTime', 'us')
    """
    header_offset = _offset(values.get("TimezoneOffsetFromUTC", ""))
    candidates = [(tag, values.get(tag, "")[:8], values.get(tag, "")[8:]) for tag in DATE_TIMES]
    candidates += [(f"{day}+{clock}", values.get(day, ""), values.get(clock, "")) for day, clock in PAIRS]
    moments = []
    for rank, (source, day, clock) in enumerate(candidates):
        stated = _OFFSET.search(clock)
        parsed = _parse(day, clock[: stated.start()] if stated else clock)
        if parsed is None:
            continue
        time, precision = parsed
        if precision == "day":
            moments.append(Moment(rank + len(candidates), time, source.partition("+")[0], "day"))
            continue
        offset = _offset(stated.group()) if stated else header_offset
        time, offset = _on_clock(time, offset, header_offset, site_timezone)
        moments.append(Moment(rank, time, source, precision, offset))
    return tuple(moments)


def earliest(slices: Iterable[Iterable[Moment]]) -> Moment | None:
    """Over all slices, the earliest time of the best tag that any of them has."""
    moments = [moment for slice_moments in slices for moment in slice_moments]
    return min(moments, key=lambda moment: (moment.rank, moment.time), default=None)


def clocks_of(values: Mapping[str, str]) -> tuple[float | None, ...]:
    """When a slice was acquired, when its image was made, and its series', in seconds of the scanner's clock.

    They tell the phases of a series apart and nothing else: a time without a date will do.
    """
    texts = [(values.get(tag, "")[:8], values.get(tag, "")[8:]) for tag in DATE_TIMES]
    texts.append((values.get("AcquisitionDate", ""), values.get("AcquisitionTime", "")))
    acquired = next((clock for day, time in texts if (clock := _seconds(day, time)) is not None), None)
    others = ((values.get(f"{name}Date", ""), values.get(f"{name}Time", "")) for name in ("Content", "Series"))
    return acquired, *(_seconds(day, time) for day, time in others)


@lru_cache(maxsize=_KEPT)
def _seconds(day: str, clock: str) -> float | None:
    stated = _OFFSET.search(clock)
    parsed = _parse(day or _SOME_DAY, clock[: stated.start()] if stated else clock)
    return None if parsed is None or parsed[1] == "day" else (parsed[0] - datetime(1900, 1, 1)).total_seconds()


@lru_cache(maxsize=_KEPT)
def _parse(day: str, clock: str) -> tuple[datetime, TimePrecision] | None:
    date = _DATE.match(day.strip())
    if date is None:
        return None
    numbers = [int(part) for part in date.groups()]
    precision: TimePrecision = "day"
    match = _TIME.match(clock.strip())
    if match is not None:
        hour, minute, second, fraction = match.groups()
        numbers += [int(hour), int(minute), min(int(second or 0), 59), int((fraction or "0").ljust(6, "0"))]
        precision = "us" if fraction else "s" if second else "min"
    try:
        time = datetime(*numbers)  # type: ignore[arg-type]
    except ValueError:
        return None
    return (time, precision) if time.year >= 1900 else None


def _offset(text: str) -> int | None:
    match = _OFFSET.match(text.strip())
    if match is None:
        return None
    sign, hours, minutes = match.groups()
    total = int(hours) * 60 + int(minutes)
    return (-total if sign == "-" else total) if total <= 14 * 60 else None


def _on_clock(
    time: datetime, offset: int | None, header_offset: int | None, site_timezone: str | None
) -> tuple[datetime, int | None]:
    if offset is None:
        return time, None
    known = time.replace(tzinfo=timezone(timedelta(minutes=offset)))
    if site_timezone is not None:
        local = known.astimezone(ZoneInfo(site_timezone))
        shift = local.utcoffset() or timedelta(0)
        return local.replace(tzinfo=None), int(shift / timedelta(minutes=1))
    target = offset if header_offset is None else header_offset
    return (known.astimezone(UTC) + timedelta(minutes=target)).replace(tzinfo=None), target
