"""Tables to events: times, templates, joins, values; and every raw row accounted for, whatever the file looks like."""

import csv
import gzip
import io
import random
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_tables import align_one, aligned_events, convert, convert_text, csv_text, source_of

from extractors import tables
from extractors.deid import load_key
from extractors.source import SOURCES, Source, TimeRule, load_source
from extractors.tables import BLOCK_BYTES, RawFile, table_files
from extractors.times import parse_times
from pipelines import meds
from pipelines.config import RunConfig
from pipelines.engine import LocalEngine, RunContext, StageReport, run_stage
from pipelines.fingerprints import Fingerprints
from warehouse.errors import TimeloomError
from warehouse.layout import Layout
from warehouse.manifest import TaskEntry

LAST = 999_999


def parsed(values: list[str | None], **rule: Any) -> tuple[list[Any], list[Any], list[bool]]:
    times = parse_times(pl.DataFrame({"x": values}, schema={"x": pl.String}), TimeRule(column=["x"], **rule))
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
        ("2020-01-01 00:00:00", datetime(2020, 1, 1), "s"),
    ],
)
def test_the_usual_formats(raw: str, time: datetime, precision: str) -> None:
    assert parsed([raw]) == ([time], [precision], [False])


@pytest.mark.parametrize(
    "raw",
    [
        "2019-02-29",
        "2020-13-01",
        "2020-01-01 24:00:00",
        "x",
        "20-01-01",
        "9999-12-31",
        "2020-01-01 10:00:00Z",
        "2020-01-01 oops",
        "0",
    ],
)
def test_what_no_format_fits_is_unreadable(raw: str) -> None:
    assert parsed([raw, None, "  "]) == ([None] * 3, [None] * 3, [True, False, False])


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


def test_a_zone_gives_utc() -> None:
    assert parsed(["2020-01-01 00:30:00+0200"], formats="%Y-%m-%d %H:%M:%S%z")[0] == [datetime(2019, 12, 31, 22, 30)]


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


def test_the_first_column_that_is_not_empty_is_taken() -> None:
    frame = pl.DataFrame({"exact": ["2020-01-01 05:00:00", " ", None], "day": ["2021-01-01", "2021-01-01", None]})
    times = parse_times(frame, TimeRule(column=["exact", "day"]))
    assert times.time.to_list() == [datetime(2020, 1, 1, 5), datetime(2021, 1, 1, 23, 59, 59, LAST), None]
    assert times.precision.to_list() == ["s", "day", None]
    assert times.present == 2
    assert not times.unreadable.any()


def event(code: str = "X", **keys: Any) -> dict[str, Any]:
    return {"code": code, **keys}


def table(*events: dict[str, Any], **keys: Any) -> dict[str, Any]:
    return {"events": list(events), **keys}


def test_templates_filters_and_defaults(tmp_path: Path) -> None:
    rule = table(event("ICD10CM/{code:icd}", time="at"), event("W/{ward:upper|UNKNOWN}/{bed:strip|NONE}", time="at"))
    rows = [(1, "2020-01-01", " r11.10 ", "icu", " 7 "), (2, "2020-01-01", None, " ", None)]
    found, counts = convert_text(tmp_path, rule, csv_text(["pid", "at", "code", "ward", "bed"], rows))
    assert sorted(found["code"]) == ["ICD10CM/R1110", "W/ICU/7", "W/UNKNOWN/NONE"]
    assert (counts["raw"], counts["events"], counts["quarantined"]) == (2, 2, {})


def test_where_and_derive_are_sql_over_text(tmp_path: Path) -> None:
    rule = table(
        event("KIND/{kind}", time="at", where="status <> 'CANCELLED'"),
        derive={"kind": "CASE WHEN version = '10' THEN 'NEW' WHEN version = '9' THEN 'OLD' END"},
    )
    rows = [
        (1, "2020-01-01", "10", "DONE"),
        (1, "2020-01-01", "9", "DONE"),
        (1, "2020-01-01", "8", "DONE"),
        (1, "2020-01-01", "10", "CANCELLED"),
        (1, "2020-01-01", "10", None),
    ]
    found, counts = convert_text(tmp_path, rule, csv_text(["pid", "at", "version", "status"], rows))
    assert sorted(found["code"]) == ["KIND/NEW", "KIND/OLD"]
    assert counts["quarantined"] == {"missing_code": 1, "no_rule_applies": 2}


def test_availability_is_never_before_time_nor_empty(tmp_path: Path) -> None:
    rows = [
        (1, "2020-01-02 00:00:00", "2020-01-01 00:00:00"),
        (2, "2020-01-02 00:00:00", "2020-01-03 00:00:00"),
        (3, "2020-01-02 00:00:00", None),
        (4, "2020-01-02 00:00:00", "rubbish"),
    ]
    rule = table(event(time="at", available="known"))
    found, counts = convert_text(tmp_path, rule, csv_text(["pid", "at", "known"], rows))
    assert [at.day for at in found.sort("subject_id")["available_time"]] == [2, 3, 2, 2]
    assert counts["partial"] == {"unknown_available_time": 1, "unparsable_available_time": 1}
    assert counts["events"] == 4


def test_numbers_become_float32_and_all_else_stays_text(tmp_path: Path) -> None:
    numbers = ["1", "-0.1", "3.14159265", "1e-30", "16777217", " 5 ", "+2"]
    others = ["<5", "111/65", "inf", "-inf", "nan", "1e39", "1,5", "POSITIVE", "___"]
    rows = [(1, "2020-01-01", value) for value in [*numbers, *others, None]]
    found, counts = convert_text(tmp_path, table(event(time="at", value="v")), csv_text(["pid", "at", "v"], rows))
    found = found.sort("row")
    assert found["numeric_value"].to_list()[: len(numbers)] == [float(np.float32(float(value))) for value in numbers]
    assert found["numeric_value"].null_count() == len(others) + 1
    assert found["text_value"].to_list() == [None] * len(numbers) + others + [None]
    assert counts["events"] == len(rows)


def test_minus_nought_is_nought(tmp_path: Path) -> None:
    rows = [(1, "2020-01-01", value) for value in ("-0", "0", "-0.0")]
    found, _ = convert_text(tmp_path, table(event(time="at", value="v")), csv_text(["pid", "at", "v"], rows))
    assert [str(value) for value in found["numeric_value"]] == ["0.0"] * 3


JOINED = {"events": [event("STAY", time="opened")]}


def write_stays(work: Path, *rows: tuple[object, ...]) -> None:
    (work / "raw").mkdir(exist_ok=True)
    (work / "raw" / "stays.csv").write_text(csv_text(["pid", "stay", "opened", "closed"], rows))


def with_join(columns: dict[str, str], **keys: Any) -> dict[str, Any]:
    return table(
        event("DX/{code}", time="closed"), joins=[{"table": "stays", "key": "stay", "columns": columns}], **keys
    )


def test_a_join_looks_up_and_a_missing_key_gives_nothing(tmp_path: Path) -> None:
    write_stays(tmp_path, (1, "s1", "2020-01-01", "2020-01-09 12:00:00"), (1, None, "2020-01-01", "2020-02-02"))
    text = csv_text(["pid", "stay", "code"], [(1, "s1", "A"), (1, "s9", "B"), (1, None, "C")])
    found, counts = convert_text(tmp_path, with_join({"closed": "closed"}), text, stays=JOINED)
    assert found.select("code", "time").rows() == [("DX/A", datetime(2020, 1, 9, 12))]
    assert counts["quarantined"] == {"missing_time": 2}


@pytest.mark.parametrize(("function", "day"), [("min", 3), ("max", 8)])
def test_min_and_max_over_several_rows_a_key(tmp_path: Path, function: str, day: int) -> None:
    write_stays(
        tmp_path, *((1, "s1", "2020-01-01", f"2020-01-0{day} 00:00:00") for day in (8, 3)), (1, "s1", "x", None)
    )
    text = csv_text(["pid", "stay", "code"], [(1, "s1", "A")])
    found, counts = convert_text(tmp_path, with_join({"closed": f"{function}(closed)"}), text, stays=JOINED)
    assert [at.day for at in found["time"]] == [day]
    assert counts["raw"] == counts["events"] == 1


@pytest.mark.parametrize("columns", [{"closed": "closed"}, {"closed": "max(closed)", "opened": "opened"}])
def test_a_join_that_fans_out_is_refused(tmp_path: Path, columns: dict[str, str]) -> None:
    write_stays(tmp_path, (1, "s1", "2020-01-01", "2020-01-08"), (1, "s1", "2020-01-02", "2020-01-09"))
    with pytest.raises(TimeloomError, match="several rows a key"):
        convert_text(tmp_path, with_join(columns), csv_text(["pid", "stay", "code"], [(1, "s1", "A")]), stays=JOINED)


def test_equal_rows_of_a_lookup_are_no_fan_out(tmp_path: Path) -> None:
    write_stays(tmp_path, *[(1, "s1", "2020-01-01", "2020-01-08")] * 2)
    text = csv_text(["pid", "stay", "code"], [(1, "s1", "A")])
    assert convert_text(tmp_path, with_join({"closed": "closed"}), text, stays=JOINED)[1]["events"] == 1


def test_a_looked_up_column_replaces_the_rows_own(tmp_path: Path) -> None:
    write_stays(tmp_path, (1, "s1", "2020-01-01", "2020-01-08 00:00:00"))
    text = csv_text(["pid", "stay", "code", "closed"], [(1, "s1", "A", "1999-01-01 00:00:00")])
    found, _ = convert_text(tmp_path, with_join({"closed": "closed"}), text, stays=JOINED)
    assert found["time"].to_list() == [datetime(2020, 1, 8)]


# --- conservation, against a recomputation in plain Python

RULE = table(
    event("STATIC/{sex}"),
    event("LAB/{code:upper}", time="at", value="value", where="sex IS NULL OR sex <> 'skip'"),
    event("SEEN/{code}", time="seen"),
)
FIELDS = ("pid", "sex", "code", "at", "seen", "value")
TIMES = st.sampled_from(["", "2020-02-29", "2020-01-01 10:00:00", "2019-02-29", "nonsense", " "])
ROWS = st.lists(
    st.tuples(
        st.sampled_from(["1", "2", "3", "", "abc", " 4 "]), st.sampled_from(["", "F", "skip"]),
        st.sampled_from(["", "a", "b\nc", 'q"uote', "x,y"]), TIMES, TIMES, st.sampled_from(["", "1.5", "high"]),
    ),
    max_size=25,
)  # fmt: skip


def plain_time(text: str) -> str:
    """missing, bad or good, as datetime reads it."""
    if not text.strip():
        return "missing"
    try:
        datetime.fromisoformat(text.strip())
    except ValueError:
        return "bad"
    return "good"


def plain_outcome(row: dict[str, str]) -> tuple[str, int]:
    """What becomes of a row, and how many events it makes."""
    if not row["pid"].strip().isdigit():
        return "bad_subject_id", 0
    static = int(row["sex"] != "")
    lab, seen = plain_time(row["at"]), plain_time(row["seen"])
    applies = row["sex"] != "skip"
    coded = row["code"] != ""
    timed = int(applies and coded and lab == "good") + int(coded and seen == "good")
    if timed or static:
        return ("events" if timed else "static"), timed + static
    met = [lab] * applies + [seen]
    if "bad" in met:
        return "unparsable_time", 0
    if "missing" in met:
        return "missing_time", 0
    return "missing_code", 0


@settings(max_examples=60, deadline=None)
@given(ROWS, st.integers(0, 3))
def test_every_row_is_accounted_for_exactly(rows: list[tuple[str, ...]], repeats: int) -> None:
    text = csv_text(FIELDS, rows + rows[:repeats])
    expected: dict[str, int] = {}
    emitted = 0
    raw = list(csv.DictReader(io.StringIO(text, newline="")))
    for row in raw:
        outcome, events = plain_outcome(row)
        expected[outcome] = expected.get(outcome, 0) + 1
        emitted += events
    with TemporaryDirectory() as folder:
        work = Path(folder)
        found, counts = convert_text(work, RULE, text)
        assert counts["raw"] == len(raw)
        assert counts["raw"] == counts["events"] + counts["static"] + sum(counts["quarantined"].values())
        outcomes = {"events": counts["events"], "static": counts["static"], **counts["quarantined"]}
        assert {name: number for name, number in outcomes.items() if number} == expected
        assert counts["emitted"] == len(found) == emitted
        kept = {tuple(row.items()) for row in raw if plain_outcome(row)[1]}
        total = removed = 0
        for bucket in range(2):
            result = align_one(work, {"t-0.parquet": counts}, bucket)
            again = result.counts["set_aside"]["duplicate_row"].get("t", {"rows": 0, "events": 0})
            removed += again["rows"]
            total += len(aligned_events(work, bucket)) + again["events"]
        assert total == emitted
        assert removed == sum(1 for row in raw if plain_outcome(row)[1]) - len(kept)


def test_equal_rows_are_found_across_the_parts_of_a_table_and_other_rows_are_not(tmp_path: Path) -> None:
    source = source_of(t=table(event("X/{code}", time="at")))
    columns = ["pid", "code", "at", "note"]
    (tmp_path / "a.csv").write_text(csv_text(columns, [(1, "A", "2020-01-01", "n"), (1, "B", "2020-01-01", None)]))
    (tmp_path / "b.csv").write_text(csv_text(columns, [(1, "A", "2020-01-01", "n"), (1, "B", "2020-01-01", "other")]))
    accounts = {
        f"t-{part}.parquet": convert(tmp_path, source, "t", tmp_path / f"{name}.csv", first_row=part)[1]
        for part, name in ((0, "a"), (1 << 40, "b"))
    }
    (bucket,) = accounts["t-0.parquet"]["buckets"]
    result = align_one(tmp_path, accounts, int(bucket))
    assert result.counts["set_aside"]["duplicate_row"] == {"t": {"rows": 1, "events": 1, "timed": 1}}
    assert sorted(aligned_events(tmp_path, int(bucket))["code"]) == ["X/A", "X/B", "X/B"]


def test_rows_are_numbered_through_all_blocks_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "BLOCK_BYTES", 64)
    rows = [(1, f"2020-01-{day:02d} 00:00:00") for day in (*range(1, 21), 1, 2)]
    found, counts = convert_text(tmp_path, PLAIN, csv_text(["pid", "at"], rows))
    assert found["row"].to_list() == list(range(22))
    (bucket,) = counts["buckets"]
    assert len(counts["buckets"][bucket]["groups"]) > 1
    assert align_one(tmp_path, {"t-0.parquet": counts}, int(bucket)).counts["set_aside"]["duplicate_row"] == {
        "t": {"rows": 2, "events": 2, "timed": 2}
    }
    assert len(aligned_events(tmp_path, int(bucket))) == 20


def test_a_change_in_a_column_that_no_rule_reads_is_seen_by_the_index(tmp_path: Path) -> None:
    rule = table(event("X", time="at"))
    digests = [
        convert_text(tmp_path, rule, csv_text(["pid", "at", "n"], [(1, "2020-01-01", "a"), (1, "2020-01-01", other)]))
        for other in ("a", "b")
    ]
    assert digests[0][1]["buckets"] != digests[1][1]["buckets"]


def test_the_order_of_raw_rows_does_not_change_a_buckets_hash(tmp_path: Path) -> None:
    rows = [(number % 3, f"2020-01-{number + 1:02d}", number) for number in range(20)]
    shuffled = random.Random(1).sample(rows, len(rows))
    rule = table(event("X", time="at", value="v"))
    first, second = (
        convert_text(tmp_path, rule, csv_text(["pid", "at", "v"], some))[1]["buckets"] for some in (rows, shuffled)
    )
    assert {bucket: one["hash"] for bucket, one in first.items()} == {b: one["hash"] for b, one in second.items()}


# --- files as they come

GOOD = csv_text(["pid", "at"], [(number, "2020-01-01") for number in range(5)]).encode()
PLAIN = table(event(time="at"))


@pytest.mark.parametrize(
    "data",
    [
        GOOD,
        b"\xef\xbb\xbf" + GOOD,
        GOOD.replace(b"\n", b"\r\n"),
        GOOD.rstrip(b"\n"),
        GOOD.replace(b"0,2020-01-01", b'"0","2020-01-01"'),
        GOOD.replace(b"\n1,", b"\n\n1,"),
    ],
    ids=["plain", "bom", "crlf", "no last newline", "quoted", "blank line"],
)
def test_five_rows_are_five_rows(tmp_path: Path, data: bytes) -> None:
    found, counts = convert_text(tmp_path, PLAIN, data)
    assert sorted(found["subject_id"]) == [0, 1, 2, 3, 4]
    assert (counts["raw"], counts["events"], counts["quarantined"]) == (5, 5, {})


def test_commas_quotes_and_newlines_in_fields(tmp_path: Path) -> None:
    nasty = 'a, "b"\r\n\nc;\u2028é'
    rule = table(event(time="at", text="note"))
    found, counts = convert_text(tmp_path, rule, csv_text(["pid", "at", "note"], [(1, "2020-01-01", nasty)]))
    assert found["text_value"].to_list() == [nasty]
    assert counts["raw"] == 1


def test_malformed_rows_are_counted_in_every_block(tmp_path: Path) -> None:
    filler = b"7,2020-01-01 00:00:00\n"
    many = (BLOCK_BYTES + 1000) // len(filler)
    data = b"pid,at\n1,2,3\n" + filler * many + b"4\n" + filler
    path = tmp_path / "t.csv"
    path.write_bytes(data)
    raw = RawFile(path, "t", [""])
    blocks = [len(block) for block in raw.blocks()]
    assert len(blocks) > 1
    assert (sum(blocks), raw.malformed) == (many + 1, 2)


def test_malformed_rows_stand_in_the_account(tmp_path: Path) -> None:
    _, counts = convert_text(tmp_path, PLAIN, GOOD + b"9,2020-01-01,extra\n9\n")
    assert (counts["raw"], counts["events"], counts["quarantined"]) == (7, 5, {"malformed_row": 2})


def test_a_header_alone_is_an_empty_table(tmp_path: Path) -> None:
    _, counts = convert_text(tmp_path, PLAIN, b"pid,at\n")
    assert (counts["raw"], counts["buckets"]) == (0, {})


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is empty"),
        (b"pid,when\n1,2020-01-01\n", "lacks the column at"),
        (b"pid,at,at\n1,2,3\n", "has columns 2 and 3 of one name"),
        (b"pid,at\n1,\xff\xfe\n", "not UTF-8"),
        ("pid,at\n1,2020-01-01\n".encode("utf-16"), "lacks the column|not UTF-8"),
        (GOOD + b'5,"2020-01-01\n6,2020-01-01\n', "never closed"),
        (GOOD + b'"5,2020-01-01\n6,2020-01-01\n', "never closed"),
    ],
    ids=["empty", "column", "twice", "latin", "utf-16", "quote not closed", "quote not closed, short row"],
)
def test_a_bad_file_is_one_line(tmp_path: Path, data: bytes, says: str) -> None:
    with pytest.raises(TimeloomError, match=says) as caught:
        convert_text(tmp_path, PLAIN, data)
    assert str(caught.value).startswith("table t: ")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.glob("*.parquet")) == list(tmp_path.glob(".*")) == []


@pytest.mark.parametrize("cut", [1, 4, 9, 40])
def test_a_truncated_gzip_is_one_line(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(GOOD * 50)[:-cut])
    with pytest.raises(TimeloomError, match="truncated"):
        convert(tmp_path, source_of(t=PLAIN), "t", path)


def test_gzip_in_several_members_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(GOOD) + gzip.compress(b"5,2020-01-01\n"))
    assert convert(tmp_path, source_of(t=PLAIN), "t", path)[1]["raw"] == 6


def test_parquet_reads_as_the_same_csv_does(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {"pid": [1, 2, 3], "at": [datetime(2020, 1, 1, 5), datetime(1931, 1, 1), None], "code": ["a", "", None]}
    )
    frame.write_parquet(tmp_path / "t.parquet")
    rule = table(event("X/{code|NONE}", time="at"), event("NULL", time="at", where="code IS NULL"))
    found, counts = convert(tmp_path, source_of(t=rule), "t", tmp_path / "t.parquet")
    text = csv_text(
        ["pid", "at", "code"], [(1, "2020-01-01 05:00:00", "a"), (2, "1931-01-01 00:00:00", ""), (3, "", "")]
    )
    other, same = convert_text(tmp_path, rule, text)
    columns = ["subject_id", "time", "code"]
    assert found.select(columns).sort(columns).equals(other.select(columns).sort(columns))
    assert counts["quarantined"] == same["quarantined"] == {"missing_time": 1}


def test_a_damaged_parquet_is_one_line(tmp_path: Path) -> None:
    pl.DataFrame({"pid": ["1"], "at": ["2020"]}).write_parquet(tmp_path / "whole.parquet")
    (tmp_path / "t.parquet").write_bytes((tmp_path / "whole.parquet").read_bytes()[:-10])
    with pytest.raises(TimeloomError, match="table t: cannot be read"):
        convert(tmp_path, source_of(t=PLAIN), "t", tmp_path / "t.parquet")


def test_a_folder_with_a_files_name_and_a_table_in_two_forms_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").mkdir()
    with pytest.raises(TimeloomError, match=r"a\.csv is a folder"):
        table_files(tmp_path, "a")
    (tmp_path / "b.csv").write_bytes(GOOD)
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(GOOD))
    with pytest.raises(TimeloomError, match="the table b stands there twice"):
        table_files(tmp_path, "b")


def test_a_folder_of_parts_is_one_table(tmp_path: Path) -> None:
    parts = tmp_path / "t"
    parts.mkdir()
    for name in ("2.csv", "1.csv"):
        (parts / name).write_bytes(GOOD)
    assert [path.name for path in table_files(tmp_path, "t")] == ["1.csv", "2.csv"]


def plan(tmp_path: Path, mapping: str) -> list[Any]:
    (tmp_path / "source.yaml").write_text(mapping)
    config = RunConfig.model_validate(
        {"sources": [{"source": "source.yaml", "path": str(tmp_path / "raw")}], "deid": {"mode": "synthetic"}}
    )
    layout = Layout(tmp_path / "warehouse")
    load_key(config.deid, layout.private, create=True)
    return meds.plan(config, tmp_path, layout, Fingerprints(layout.private))


MAPPING = "{name: s, subject: pid, tables: {t: {events: [{code: X, time: at}]}}}"


def test_a_table_that_no_rule_mentions_is_accounted_for(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    (raw / "deep").mkdir(parents=True)
    for name in ("t.csv", "deep/extra.csv", "extra.csv"):
        (raw / name).write_bytes(GOOD)
    (raw / "extra.csv.gz").write_bytes(gzip.compress(GOOD))
    tasks = plan(tmp_path, MAPPING)
    # By a hash: the name of a file that nobody mapped may be a patient's.
    names = sorted(task.params["table"] for task in tasks)
    assert names[0] == "t"
    assert all(name.startswith("unmapped-") for name in names[1:])
    assert len(set(names)) == 4
    assert len({task.key for task in tasks}) == len(tasks)
    for task in tasks:
        counts = meds.run(task.params, tmp_path).counts
        assert counts["raw"] == 5
        assert counts["quarantined"] == ({} if task.params["table"] == "t" else {"unmapped_table": 5})


def test_a_missing_table_is_named_unless_optional(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    with pytest.raises(TimeloomError, match=r"lacks the table t; .*optional"):
        plan(tmp_path, MAPPING)
    assert plan(tmp_path, MAPPING.replace("{events:", "{optional: true, events:")) == []


def run_tasks(tmp_path: Path, tasks: list[Any]) -> StageReport:
    with LocalEngine(1) as engine:
        return run_stage(meds.STAGE, tasks, RunContext(engine, tmp_path / "work", None, None))


def test_a_segment_is_used_again_until_its_raw_file_or_a_joined_one_changes(tmp_path: Path) -> None:
    write_stays(tmp_path, (1, "s1", "2020-01-01", "2020-01-09 12:00:00"))
    (tmp_path / "raw" / "t.csv").write_text(csv_text(["pid", "stay", "code"], [(1, "s1", "A")]))
    mapping = """{name: s, subject: pid, tables: {
        t: {joins: [{table: stays, key: stay, columns: {closed: closed}}], events: [{code: X, time: closed}]},
        stays: {events: [{code: Y, time: opened}]}}}"""
    assert run_tasks(tmp_path, plan(tmp_path, mapping)).ran == 2
    assert run_tasks(tmp_path, plan(tmp_path, mapping)).resumed == 2
    write_stays(tmp_path, (1, "s1", "2020-01-01", "2020-01-10 12:00:00"))
    assert run_tasks(tmp_path, plan(tmp_path, mapping)).ran == 2
    (tmp_path / "raw" / "t.csv").write_text(csv_text(["pid", "stay", "code"], [(1, "s1", "B")]))
    again = run_tasks(tmp_path, plan(tmp_path, mapping))
    assert (again.ran, again.resumed) == (1, 1)


def test_a_failing_expression_says_nothing_of_the_value(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "t.csv").write_text(csv_text(["pid", "at"], [(1, "SECRET-VALUE")]))
    mapping = MAPPING.replace("{events:", "{derive: {year: CAST(at AS BIGINT)}, events:")
    with pytest.raises(TimeloomError, match="in the stage") as caught:
        run_tasks(tmp_path, plan(tmp_path, mapping))
    assert "SECRET" not in str(caught.value) + "".join(caught.value.__notes__)
    below = tmp_path / "warehouse"
    assert all(b"SECRET" not in path.read_bytes() for path in below.rglob("*") if path.is_file())
    assert not list(below.rglob("*.parquet"))


def test_too_many_unreadable_times_stop_the_run(tmp_path: Path) -> None:
    _, counts = convert_text(tmp_path, PLAIN, GOOD + b"9,nonsense\n")
    report = StageReport("meds", entries={"t": TaskEntry(fingerprint="", files={}, counts=counts)})
    meds.check_times(report, 1 / 6)
    with pytest.raises(TimeloomError, match="table t: 1 of 6 times in at cannot be read"):
        meds.check_times(report, 0.16)


# --- mappings


@pytest.mark.parametrize("name", sorted(path.stem for path in SOURCES.glob("*.yaml")))
def test_built_in_sources_load(name: str) -> None:
    source = load_source(name)
    assert source.name == name
    assert source.tables


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (MAPPING.replace("subject:", "subjekt:"), "subject|subjekt"),
        (MAPPING.replace("time:", "tiem:"), r"tables\.t\.events\.0\.tiem"),
        (MAPPING.replace("time: at", "time: {column: at, format: '%Y'}"), r"time\.format"),
        (MAPPING.replace("code: X", "code: 'X/{a:lower}'"), "filter lower is none of"),
        (MAPPING.replace("code: X", "code: 'X/{a'"), "placeholder"),
        (MAPPING.replace("code: X", "code: X, kind: visit"), "kind visit is none of"),
        (MAPPING.replace("code: X", "code: X, where: 'a ='"), "is no SQL expression"),
        (MAPPING.replace("{events:", "{joins: [{table: away, key: a, columns: {}}], events:"), "unknown table away"),
        (MAPPING.replace("{events: [{code: X, time: at}]}", "{}"), "needs at least one event"),
        ("[1, 2", "is no YAML"),
        ("", "source"),
    ],
)  # fmt: skip
def test_a_broken_mapping_is_one_line(tmp_path: Path, broken: str, says: str) -> None:
    (tmp_path / "mine.yaml").write_text(broken)
    with pytest.raises(TimeloomError, match=says) as caught:
        load_source("mine.yaml", tmp_path)
    assert "\n" not in str(caught.value)


def test_an_unknown_source_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(TimeloomError, match=r"there is no source nowhere; .*mimic-iv"):
        load_source("nowhere", tmp_path)


def test_the_columns_a_table_needs_are_its_own_and_those_of_its_joins() -> None:
    source: Source = source_of(t=with_join({"closed": "max(end)"}, visit="stay"), stays=table(event(time="opened")))
    assert source.needed_columns("t") == {"pid", "stay", "code"}
    assert source.needed_columns("stays") == {"pid", "opened", "stay", "end"}
