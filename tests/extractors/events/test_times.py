"""Times as exports write them: what each format reads, which moment a date gets, and what is unreadable."""

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extractors.events.times import Times, parse_times
from extractors.reading import Reading
from extractors.source import Source
from extractors.time_rule import TimeRule
from pipelines import meds
from pipelines.engine.context import StageReport
from pipelines.metadata import ledger_rows
from tests.support.raw.raw_tables import convert, convert_text, csv_text, source_of
from warehouse.errors import TimeloomError
from warehouse.manifest import TaskEntry

LAST = 999_999
ZONED = "%Y-%m-%d %H:%M:%S%z"


def times_of(values: list[str | None], zone: str | None = None, **rule: Any) -> Times:
    return parse_times(pl.DataFrame({"x": values}, schema={"x": pl.String}), TimeRule(column=["x"], **rule), zone)


def parsed(values: list[str | None], **rule: Any) -> tuple[list[Any], list[Any], list[bool]]:
    times = times_of(values, **rule)
    return times.time.to_list(), times.precision.to_list(), times.unreadable.to_list()


@pytest.mark.parametrize(
    ("raw", "time", "precision"),
    [
        ("2020-02-29 10:11:12", datetime(2020, 2, 29, 10, 11, 12), "s"),
        ("2020-02-29T10:11:12", datetime(2020, 2, 29, 10, 11, 12), "s"),
        ("2020-02-29 10:11", datetime(2020, 2, 29, 10, 11), "min"),
        ("2020-02-29 10:11:12.5", datetime(2020, 2, 29, 10, 11, 12, 500_000), "us"),
        ("2020-02-29", datetime(2020, 2, 29, 23, 59, 59, LAST), "day"),
        (" 2020-02-29 ", datetime(2020, 2, 29, 23, 59, 59, LAST), "day"),
        ("1931-12-31", datetime(1931, 12, 31, 23, 59, 59, LAST), "day"),
        ("1931-12-31 00:00:00", datetime(1931, 12, 31), "s"),
        ("1900-02-28 23:59:59", datetime(1900, 2, 28, 23, 59, 59), "s"),
        ("2020-01-01 00:00:00", datetime(2020, 1, 1), "s"),
    ],
)
def test_the_usual_formats(raw: str, time: datetime, precision: str) -> None:
    assert parsed([raw]) == ([time], [precision], [False])


@pytest.mark.parametrize(
    "raw",
    [
        "2019-02-29",
        "2019-02-29 10:00:00",
        "1900-02-29",
        "2020-13-01",
        "2020-01-01 24:00:00",
        "x",
        "20-01-01",
        "9999-12-31",
        "2020-01-01 oops",
        "0",
    ],
)
def test_what_no_format_fits_is_unreadable(raw: str) -> None:
    assert parsed([raw, None, "  "]) == ([None] * 3, [None] * 3, [True, False, False])


# `%.f` also reads a time without a fraction, so it comes after the other formats.
FRACTION = "%Y-%m-%d %H:%M:%S%.f"
FORMATTED: dict[str, tuple[str, Callable[[datetime], datetime]]] = {
    FRACTION: ("us", lambda at: at.replace(microsecond=at.microsecond or 1)),
    "%Y-%m-%d %H:%M:%S": ("s", lambda at: at.replace(microsecond=0)),
    "%Y-%m-%dT%H:%M:%S": ("s", lambda at: at.replace(microsecond=0)),
    "%Y-%m-%d %H:%M": ("min", lambda at: at.replace(second=0, microsecond=0)),
    "%d/%m/%Y": ("day", lambda at: at.replace(hour=23, minute=59, second=59, microsecond=LAST)),
}


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.datetimes(datetime(1000, 1, 1), datetime(9899, 12, 31)), st.sampled_from(sorted(FORMATTED))),
        min_size=1,
        max_size=20,
    ),
    st.permutations(sorted({*FORMATTED} - {FRACTION})),
)
def test_formats_mixed_in_a_column_read_each_value_by_its_own(
    values: list[tuple[datetime, str]], formats: list[str]
) -> None:
    formats = [*formats, FRACTION]
    text = [FORMATTED[pattern][1](at).strftime(pattern.replace("%.f", ".%f")) for at, pattern in values]
    times = times_of([*text, None, "rubbish"], formats=formats)
    assert times.time.to_list()[:-2] == [FORMATTED[pattern][1](at) for at, pattern in values]
    assert times.precision.to_list()[:-2] == [FORMATTED[pattern][0] for _, pattern in values]
    assert times.unreadable.to_list() == [False] * (len(values) + 1) + [True]
    assert times.present == len(values) + 1
    assert times.formats == {
        format: number for format in formats if (number := sum(format == pattern for _, pattern in values))
    }


def test_the_first_format_that_fits_is_taken() -> None:
    assert parsed(["03/04/2020", "30/04/2020"], formats=["%m/%d/%Y", "%d/%m/%Y"])[0] == [
        datetime(2020, 3, 4, 23, 59, 59, LAST), datetime(2020, 4, 30, 23, 59, 59, LAST),
    ]  # fmt: skip


def test_a_year_stands_at_its_end_or_start() -> None:
    assert parsed(["2020", "1931"], formats="%Y")[0] == [
        datetime(2020, 12, 31, 23, 59, 59, LAST),
        datetime(1931, 12, 31, 23, 59, 59, LAST),
    ]
    assert parsed(["2020"], formats="%Y", anchor="start") == ([datetime(2020, 1, 1)], ["year"], [False])
    assert parsed(["85"], formats="%Y")[2] == [True]


def test_a_month_stands_at_its_end() -> None:
    end = datetime(2020, 2, 29, 23, 59, 59, LAST)
    assert parsed(["2020-02"], formats="%Y-%m")[:2] == ([end], ["month"])
    assert parsed(["Feb 2020", "February 2020"], formats=["%b %Y", "%B %Y"])[:2] == ([end, end], ["month", "month"])


def test_years_months_days_and_moments_in_one_column() -> None:
    values: list[str | None] = ["2020", "2020-02", "2020-02-03", "2020-02-03 04:05:06"]
    times, precision, _ = parsed(values, formats=["%Y", "%Y-%m", "%Y-%m-%d", "%Y-%m-%d %H:%M:%S"])
    assert precision == ["year", "month", "day", "s"]
    assert [at.date() for at in times] == [date(2020, 12, 31), date(2020, 2, 29), date(2020, 2, 3), date(2020, 2, 3)]


# --- zones


def test_a_zone_gives_utc() -> None:
    assert parsed(["2020-01-01 00:30:00+0200"], formats=ZONED)[0] == [datetime(2019, 12, 31, 22, 30)]


@pytest.mark.parametrize("offset", ["Z", "+00:00", "+0000", "+00", "-00:00"])
def test_every_spelling_of_utc_is_read(offset: str) -> None:
    assert parsed([f"2020-01-01 12:00:00{offset}"], formats=ZONED)[0] == [datetime(2020, 1, 1, 12)]


@pytest.mark.parametrize("name", [" UTC", "UTC", " GMT", "GMT", "Z", " Z", " utc", "+00:00"])
@pytest.mark.parametrize("directive", ["%z", "%Z", " %z", " %Z"])
def test_names_of_offset_0_are_read_with_either_directive(name: str, directive: str) -> None:
    values: list[str | None] = [f"2020-07-01 10:00:00{name}", f"2020-01-01 10:00:00{name}", None]
    times = times_of(values, "Europe/Vienna", formats=f"%Y-%m-%d %H:%M:%S{directive}")
    # Summer time is two hours ahead of offset 0, winter time one.
    assert times.time.to_list() == [datetime(2020, 7, 1, 12), datetime(2020, 1, 1, 11), None]
    assert not times.unreadable.any()


@pytest.mark.parametrize("name", [" UTC", " GMT", "Z"])
def test_a_name_that_the_format_itself_says_is_offset_0_too(name: str) -> None:
    times = times_of([f"2020-07-01 10:00:00{name}"], "Europe/Vienna", formats=f"%Y-%m-%d %H:%M:%S{name}")
    assert times.time.to_list() == [datetime(2020, 7, 1, 12)]


@pytest.mark.parametrize("name", ["CET", "EST", "PDT", "UTC+2", "GMT-05:00", "BST"])
@pytest.mark.parametrize("directive", ["%z", "%Z"])
def test_another_name_of_a_zone_is_unreadable(name: str, directive: str) -> None:
    assert parsed([f"2020-07-01 10:00:00 {name}"], formats=f"%Y-%m-%d %H:%M:%S {directive}")[2] == [True]


@pytest.mark.parametrize("name", ["CET", "CEST", "EST", "MEZ"])
def test_a_format_that_names_another_zone_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"names the zone {name}, which nothing reads"):
        TimeRule(column=["x"], formats=[f"%Y-%m-%d %H:%M:%S {name}"])
    # The words around a time are no zones.
    TimeRule(column=["x"], formats=["%d.%m.%Y um %H:%M Uhr", "%Y-%m-%dT%H:%M", "%d-%b-%Y %I:%M %p"])


@pytest.mark.parametrize(
    ("raw", "time_format", "time"),
    [
        ("20200105", "%Y%m%d", datetime(2020, 1, 5, 23, 59, 59, LAST)),
        ("2020105", "%Y%m%d", None),
        ("202001051", "%Y%m%d", None),
        ("202001050304", "%Y%m%d%H%M", datetime(2020, 1, 5, 3, 4)),
        ("20201503", "%Y%d%m", datetime(2020, 3, 15, 23, 59, 59, LAST)),
        ("2020-1-5", "%Y-%m-%d", datetime(2020, 1, 5, 23, 59, 59, LAST)),
        ("1/5/2020 3:04", "%m/%d/%Y %H:%M", datetime(2020, 1, 5, 3, 4)),
    ],
)
def test_digits_that_no_sign_divides_must_all_be_there(raw: str, time_format: str, time: datetime | None) -> None:
    assert parsed([raw], formats=time_format)[0] == [time]


# --- how a site writes them

SITE = {"events": [{"code": "X", "time": ["exact", "day"]}]}
WRITTEN = [
    ("1", "3/4/2020 10:00", "x"),
    ("1", None, "04.03.2020"),
    ("1", None, None),
    ("1", "2020-03-04 10:00:00", "x"),
]


@pytest.mark.parametrize(
    "reading",
    [
        {"formats": ["%d/%m/%Y %H:%M", "%d.%m.%Y", "%Y-%m-%d %H:%M:%S"]},
        {"tables": {"t": {"formats": ["%d/%m/%Y %H:%M", "%d.%m.%Y", "%Y-%m-%d %H:%M:%S"]}}},
        {
            "formats": "%Y",
            "tables": {
                "t": {
                    "columns": {
                        "exact": {"formats": ["%d/%m/%Y %H:%M", "%Y-%m-%d %H:%M:%S"]},
                        "day": {"formats": "%d.%m.%Y"},
                    }
                }
            },
        },
    ],
    ids=["source", "table", "columns"],
)
def test_formats_beside_a_source_stand_in_place_of_the_rules(tmp_path: Path, reading: dict[str, Any]) -> None:
    (tmp_path / "t.csv").write_text(csv_text(["pid", "exact", "day"], WRITTEN))
    source = source_of(t=SITE).read_as(Reading.model_validate(reading))
    events, counts = convert(tmp_path, source, "t", tmp_path / "t.csv")
    assert events["time"].to_list() == [
        datetime(2020, 4, 3, 10), datetime(2020, 3, 4, 23, 59, 59, LAST), datetime(2020, 3, 4, 10),
    ]  # fmt: skip
    assert counts["times"] == {
        "exact|day": {"present": 3, "unreadable": 0, "%d/%m/%Y %H:%M": 1, "%d.%m.%Y": 1, "%Y-%m-%d %H:%M:%S": 1}
    }
    # Nothing else is told of what is not read: with the rule's own formats the day comes before the month, or never.
    assert convert(tmp_path, source_of(t=SITE), "t", tmp_path / "t.csv")[1]["quarantined"]["unparsable_time"] == 2


@pytest.mark.parametrize(
    "reading",
    [
        {"time_zone": "Europe/Vienna"},
        {"tables": {"t": {"time_zone": "Europe/Vienna"}}},
        {"time_zone": "Asia/Tokyo", "tables": {"t": {"columns": {"exact": {"time_zone": "Europe/Vienna"}}}}},
    ],
    ids=["source", "table", "column"],
)
def test_a_wall_clock_beside_a_source(tmp_path: Path, reading: dict[str, Any]) -> None:
    rows = [(1, "2020-07-01 10:00:00+00:00"), (1, "2020-01-01 10:00:00 UTC"), (1, "2020-01-01 10:00:00")]
    (tmp_path / "t.csv").write_text(csv_text(["pid", "exact"], rows))
    rule = {"events": [{"code": "X", "time": "exact"}]}
    source = source_of(t=rule).read_as(Reading.model_validate(reading))
    events, _ = convert(tmp_path, source, "t", tmp_path / "t.csv")
    assert [at.hour for at in events["time"]] == [12, 11, 10]


def test_formats_reach_what_is_looked_up_and_what_is_derived(tmp_path: Path) -> None:
    (tmp_path / "stays.csv").write_text("stay,ended\ns1,04.03.2020 18:00\n")
    (tmp_path / "t.csv").write_text("pid,stay,year,day\n1,s1,1950,03.03.2020\n1,s1,1951,\n")
    rule = {
        "joins": [{"table": "stays", "key": "stay", "columns": {"left": "ended"}}],
        "derive": {"when": "COALESCE(day, year)"},
        "events": [
            {"code": "X", "time": {"column": "when", "formats": ["%Y-%m-%d", "%Y"], "anchor": "start"}},
            {"code": "Y", "time": "left"},
        ],
    }
    source = source_of(t=rule, stays={"role": "reference"}).read_as(
        Reading.model_validate(
            {"tables": {"t": {"formats": "%d.%m.%Y"}, "stays": {"columns": {"ended": {"formats": "%d.%m.%Y %H:%M"}}}}}
        )
    )
    events, _ = convert(tmp_path, source, "t", tmp_path / "t.csv")
    assert events.select("code", "time").rows() == [
        ("X", datetime(2020, 3, 3)), ("Y", datetime(2020, 3, 4, 18)), ("X", datetime(1951, 1, 1)),
        ("Y", datetime(2020, 3, 4, 18)),
    ]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    st.datetimes(datetime(1970, 1, 2), datetime(2037, 12, 31)).map(lambda at: at.replace(microsecond=0)),
    st.integers(-23 * 60 - 59, 23 * 60 + 59),
    st.sampled_from([None, "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe"]),
)
def test_an_offset_is_converted_to_the_declared_zones_wall_clock(at: datetime, minutes: int, zone: str | None) -> None:
    moment = at.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    wall_clock = moment.astimezone(ZoneInfo(zone) if zone else UTC).replace(tzinfo=None)
    assert times_of([f"{moment:%Y-%m-%d %H:%M:%S%z}"], zone, formats=ZONED).time.to_list() == [wall_clock]


def test_the_hour_that_a_clock_skips_and_the_one_that_it_repeats() -> None:
    # 2021-03-28 in Berlin: 01:59:59 CET, then 03:00:00 CEST. 2021-10-31: 02:30 CEST, and an hour later 02:30 CET.
    values: list[str | None] = [
        "2021-03-28 00:59:59Z", "2021-03-28 01:00:00Z", "2021-10-31 02:30:00+02:00", "2021-10-31 02:30:00+01:00",
    ]  # fmt: skip
    assert times_of(values, "Europe/Berlin", formats=ZONED).time.to_list() == [
        datetime(2021, 3, 28, 1, 59, 59), datetime(2021, 3, 28, 3), datetime(2021, 10, 31, 2, 30),
        datetime(2021, 10, 31, 2, 30),
    ]  # fmt: skip
    # This is long before 1970, when that zone had no summer time.
    assert times_of(["1955-07-01 12:00:00Z"], "Europe/Berlin", formats=ZONED).time.to_list() == [
        datetime(1955, 7, 1, 13)
    ]
    # Without an offset the wall-clock time is kept, even in the skipped hour and in the repeated hour.
    plain: list[str | None] = ["2021-03-28 02:30:00", "2021-10-31 02:30:00"]
    times = times_of(plain, "Europe/Berlin")
    assert times.time.to_list() == [datetime(2021, 3, 28, 2, 30), datetime(2021, 10, 31, 2, 30)]
    assert not times.unreadable.any()


def test_a_sources_zone_reaches_its_events_and_an_unknown_one_is_refused(tmp_path: Path) -> None:
    rule = {"events": [{"code": "X", "time": {"column": "at", "formats": [ZONED, "%Y-%m-%d %H:%M:%S"]}}]}
    (tmp_path / "t.csv").write_text("pid,at\n1,2020-07-01 12:00:00Z\n2,2020-07-01 12:00:00\n")
    source = source_of(t=rule)
    for zone, hour in ((None, 12), ("Europe/Berlin", 14)):
        placed = source.model_copy(update={"time_zone": zone})
        events, _ = convert(tmp_path, placed, "t", tmp_path / "t.csv")
        assert [at.hour for at in events["time"]] == [hour, 12]
    with pytest.raises(ValueError, match="there is no time zone Europe/Berlinn"):
        Source.model_validate(source.model_dump() | {"time_zone": "Europe/Berlinn"})


# --- dates


def test_a_format_with_an_hour_and_no_minute_is_refused() -> None:
    with pytest.raises(ValueError, match="an hour without minutes"):
        TimeRule(column=["x"], formats=["%Y-%m-%d %H"])


def test_midnight_is_a_date_where_it_is_said_so() -> None:
    raw: list[str | None] = ["2020-01-01 00:00:00", "2020-01-01 00:00:01", "1960-01-01 00:00:00"]
    times, precision, _ = parsed(raw, midnight_is_date=True)
    assert precision == ["day", "s", "day"]
    assert times == [
        datetime(2020, 1, 1, 23, 59, 59, LAST), datetime(2020, 1, 1, 0, 0, 1), datetime(1960, 1, 1, 23, 59, 59, LAST),
    ]  # fmt: skip
    assert parsed(raw, midnight_is_date=True, anchor="start")[0][0] == datetime(2020, 1, 1)
    assert parsed(raw)[1] == ["s", "s", "s"]


def test_the_first_column_that_is_not_empty_is_taken() -> None:
    frame = pl.DataFrame({"exact": ["2020-01-01 05:00:00", " ", None], "day": ["2021-01-01", "2021-01-01", None]})
    times = parse_times(frame, TimeRule(column=["exact", "day"]))
    assert times.time.to_list() == [datetime(2020, 1, 1, 5), datetime(2021, 1, 1, 23, 59, 59, LAST), None]
    assert times.precision.to_list() == ["s", "day", None]
    assert times.present == 2
    assert not times.unreadable.any()


# --- what the accounts and the ledger say of times

SEEN = {"events": [{"code": "X", "time": "at", "available": "known"}]}
ROWS = [
    (1, "2020-01-01 10:00:00", "2020-01-02"),
    (1, "2020-01-01 11:00:00", None),
    (1, "2020-01-01", "rubbish"),
    (1, "29.2.2020", "2020-01-02 10:00"),
]


def test_the_account_counts_values_by_column_and_format(tmp_path: Path) -> None:
    _, counts = convert_text(tmp_path, SEEN, csv_text(["pid", "at", "known"], ROWS))
    assert counts["times"] == {
        "at": {"present": 4, "unreadable": 1, "%Y-%m-%d %H:%M:%S": 2, "%Y-%m-%d": 1},
        "known": {"present": 3, "unreadable": 1, "%Y-%m-%d": 1, "%Y-%m-%d %H:%M": 1},
    }


def report_of(**accounts: dict[str, Any]) -> StageReport:
    entries = {name: TaskEntry(fingerprint="", files={}, counts=counts) for name, counts in accounts.items()}
    return StageReport("meds", entries=entries)


def test_the_ledger_says_what_each_format_read(tmp_path: Path) -> None:
    _, counts = convert_text(tmp_path, SEEN, csv_text(["pid", "at", "known"], ROWS))
    nothing = StageReport("align", entries={})
    ledger = {
        (outcome, reason): rows
        for table, outcome, reason, rows, _ in ledger_rows(report_of(a=counts, b=counts), nothing)
        if table == "t"
    }
    assert {reason: rows for (outcome, reason), rows in ledger.items() if outcome == "time_format"} == {
        "at %Y-%m-%d %H:%M:%S": 4, "at %Y-%m-%d": 2, "known %Y-%m-%d": 2, "known %Y-%m-%d %H:%M": 2,
    }  # fmt: skip
    assert ledger["quarantined", "unparsable_time"] == 2
    assert ledger["partial", "unparsable_available_time"] == 2


def test_too_many_unreadable_times_stop_the_run(tmp_path: Path) -> None:
    rows = [(number, "2020-01-01") for number in range(5)]
    rule = {"events": [{"code": "X", "time": "at"}]}
    _, counts = convert_text(tmp_path, rule, csv_text(["pid", "at"], [*rows, (9, "nonsense")]))
    meds.check_times(report_of(t=counts), 1 / 6)
    with pytest.raises(TimeloomError, match="table t: 1 of 6 times in at cannot be read") as caught:
        meds.check_times(report_of(t=counts), 0.16)
    assert "nonsense" not in str(caught.value)


@pytest.mark.parametrize("year", ["0000", "0999", "9901"])
def test_years_that_no_record_has_are_unreadable(year: str) -> None:
    times = times_of([f"{year}-01-01 10:00:00", "2020-01-01 10:00:00"])
    assert times.time.to_list() == [None, datetime(2020, 1, 1, 10)]
    assert times.unreadable.to_list() == [True, False]
