"""Random raw tables: every row that a simple reader finds becomes events, or the run stops with one clear line."""

import csv
import gzip
import io
from datetime import datetime
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from extractors.deid import DeidConfig, Deidentifier
from extractors.events.times import parse_times
from extractors.events.values import parse_values
from extractors.tables import csv_reader
from extractors.tables.raw_table import RawTable
from extractors.time_rule import TimeRule
from tests.support.raw.raw_tables import (
    align_one,
    aligned_events,
    convert,
    csv_text,
    plan_meds,
    quarantine_of,
    run_meds,
    source_of,
)
from warehouse.errors import TimeloomError

# In `make test` alone: hundreds of tables.
pytestmark = pytest.mark.whole

SECRET = "SECRET"
Records = list[tuple[str, ...]]


def plain_records(text: str) -> tuple[Records, bool, set[int]]:
    """Reads a CSV letter by letter: its records without empty lines, whether a quoted field swallows others, and the
    numbers of the records in which text stands behind a closing quote.

    A field swallows records if its quote is never closed, or if it spans lines and its closing quote does not end the
    field.
    """
    records: Records = []
    record: list[str] = []
    field = ""
    begun = quoted = was_quoted = swallowed = False
    spoilt: set[int] = set()
    span = ""
    place = 0
    while place < len(text):
        letter, behind = text[place], text[place + 1 : place + 2]
        if quoted:
            if letter != '"':
                field, span = field + letter, span + letter
            elif behind == '"':
                field, place = field + '"', place + 1
            else:
                quoted = False
                if behind not in ("", ",", "\r", "\n"):
                    swallowed |= bool({*span} & {"\r", "\n"})
                    spoilt.add(len(records) + 1)
        elif letter in "\r\n":
            place += letter == "\r" and behind == "\n"
            if begun:
                records.append((*record, field))
            record, field, begun, was_quoted = [], "", False, False
        elif letter == ",":
            record, field, begun, was_quoted = [*record, field], "", True, False
        elif letter == '"' and not field and not was_quoted:
            quoted = begun = was_quoted = True
            span = ""
        else:
            field, begun = field + letter, True
        place += 1
    if begun:
        records.append((*record, field))
    return records, swallowed or quoted, spoilt


MESSY = st.text('ab,""\n\n\r\x00 é', max_size=40)


@settings(max_examples=200, deadline=None)
@given(MESSY)
def test_the_plain_reader_agrees_with_pythons(text: str) -> None:
    records, swallowed, _ = plain_records(text)
    if not swallowed:
        assert records == [tuple(row) for row in csv.reader(io.StringIO(text, newline="")) if row]


@settings(max_examples=300, deadline=None)
@given(MESSY, st.integers(4, 24) | st.just(1 << 20), st.booleans(), st.booleans())
def test_rows_are_those_of_a_plain_reader_wherever_a_chunk_ends(text: str, chunk: int, zipped: bool, bom: bool) -> None:
    data = ("\ufeff" if bom else "").encode() + f"p,q\n{text}".encode()
    records, swallowed, spoilt = plain_records(f"p,q\n{text}")
    records = records[1:]
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv_reader, "CHUNK_BYTES", max(chunk, 7 * bom))
        path = Path(folder) / "t.csv"
        path.write_bytes(gzip.compress(data) if zipped else data)
        raw = RawTable(path, "t", [""])
        rows: dict[int, tuple[str | None, ...]] = {}
        try:
            for block in raw.blocks():
                numbers = block.numbers(np.arange(len(block.frame))).tolist()
                assert not {*numbers} & {*rows}
                rows |= dict(zip(numbers, block.frame.rows(), strict=True))
        except TimeloomError as error:
            assert swallowed
            assert "never closed" in str(error)
        else:
            assert not swallowed
            plain = dict(enumerate(records, 1))
            good = {n: row for n, row in plain.items() if len(row) == 2 and n + 1 not in spoilt}
            assert rows == {n: tuple(cell or None for cell in row) for n, row in good.items()}
            assert raw.malformed == [n for n in plain if n not in good]


# --- whole conversions of damaged files

RULE: dict[str, Any] = {
    "events": [
        {
            "code": "X/{code:upper|NONE}",
            "time": "at",
            "value": "v",
            "text": "note",
            "where": "v IS NULL OR v <> 'skip'",
            "keep_empty": True,
        },
        {"code": "SEX/{sex}"},
    ]
}
FIELDS = ["pid", "at", "code", "v", "sex", "note", "unread"]
KEPT = Deidentifier(DeidConfig(mode="synthetic", subject_ids="keep", dates="keep"), b"")


@cache
def known_subject(text: str | None) -> int | None:
    found: int | None = KEPT.subject_ids(pl.Series([text], dtype=pl.String))[0]
    return found


@cache
def known_time(text: str | None) -> tuple[datetime | None, bool]:
    times = parse_times(pl.DataFrame({"x": [text]}, schema={"x": pl.String}), TimeRule(column=["x"]))
    return times.time[0], times.unreadable[0]


@cache
def known_value(text: str | None) -> tuple[float | None, str | None]:
    found = parse_values(pl.Series([text], dtype=pl.String))
    return found["number"][0], found["text"][0]


def plain_events(
    records: Records, header: list[str], spoilt: set[int]
) -> tuple[list[tuple[Any, ...]], list[tuple[int, str]]]:
    """Events, and quarantined rows with reasons, computed row by row."""
    events: list[tuple[Any, ...]] = []
    quarantined: list[tuple[int, str]] = []
    for number, record in enumerate(records, 1):
        if len(record) != len(header) or number in spoilt:
            quarantined.append((number, "malformed_row"))
            continue
        row = {name: value or None for name, value in zip(header, record, strict=True)}
        subject = known_subject(row["pid"])
        if subject is None:
            quarantined.append((number, "bad_subject_id"))
            continue
        time, unreadable = known_time(row["at"])
        applies = row["v"] != "skip"
        number_, text = known_value(row["v"])
        note = (row["note"] or "").strip() or None
        both = [fromkey for fromkey in dict.fromkeys((text, note)) if fromkey]
        if applies and time is not None:
            code = ((row["code"] or "").strip().upper()) or "NONE"
            events.append((number, subject, time, f"X/{code}", number_, "; ".join(both) or None))
        if row["sex"] is not None:
            events.append((number, subject, None, f"SEX/{row['sex']}", None, None))
        elif not (applies and time is not None):
            reason = "missing_code"
            if applies:
                reason = "unparsable_time" if unreadable else "missing_time"
            quarantined.append((number, reason))
    return events, quarantined


CELLS = st.tuples(
    st.sampled_from(["1", "2", "-7", "9223372036854775808", "", "abc", " 3 ", "007"]),
    st.sampled_from(["2020-01-01 10:00:00", "2020-02-29", "2019-02-29", "1931-05-05 00:00:00", "", SECRET]),
    st.sampled_from(["a", "B", "", SECRET, 'q"x', "x,y", "z\r\nz"]),
    st.sampled_from(["", "1.5", "<3", "5-10", "skip", "POS"]),
    st.sampled_from(["", "F"]),
    st.sampled_from(["", "fine", 'a "b"\nc']),
    st.sampled_from(["", "u", "\x00"]),
)
TOKENS = [
    "\n",
    "\r",
    "\r\n",
    '"',
    '""',
    ",",
    ",,",
    "\x00",
    "\ufeff",
    " ",
    "é",
    ";",
    "\t",
    "9,9\n",
    '"x\ny"',
    "pid",
    "-",
]
DAMAGE = st.tuples(
    st.sampled_from(["insert", "remove", "double"]), st.floats(0, 1), st.integers(0, 12), st.sampled_from(TOKENS)
)


def damaged(text: str, damages: list[tuple[str, float, int, str]]) -> str:
    for kind, share, length, token in damages:
        place = int(share * len(text))
        piece = {"insert": token, "remove": "", "double": text[place : place + length] * 2}[kind]
        text = text[:place] + piece + text[place + (0 if kind == "insert" else length) :]
    return text


def refusal(header: list[str]) -> bool:
    names = [*header]
    needed = {"pid", "at", "code", "v", "sex", "note"}
    return not needed <= {*names} or len({*names}) < len(names)


def compare(work: Path, data: bytes, name: str = "t.csv", deid: dict[str, Any] | None = None) -> str:
    """Converts a file, compares the outcome with the simple reader's, and returns which outcome it was."""
    text = data.decode(errors="surrogateescape").removeprefix("\ufeff")
    lines, swallowed, spoilt = plain_records(text)
    header, records = (list(lines[0]), lines[1:]) if lines and text[:1] not in "\r\n" else ([], [])
    path = work / name
    path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    try:
        found, counts = convert(work, source_of(t=RULE), "t", path, deid)
    except TimeloomError as error:
        assert str(error).startswith("table t: ")
        assert "\n" not in str(error)
        assert SECRET not in str(error)
        assert not list(work.glob("*.segment"))
        assert refusal(header) or swallowed or not text.isascii()
        return "refused"
    assert not refusal(header)
    assert not swallowed
    events, quarantined = plain_events(records, header, {number - 1 for number in spoilt})
    columns = ["row", "subject_id", "time", "code", "numeric_value", "text_value"]
    if deid is None:
        assert found.select(columns).rows() == events
        assert quarantine_of(work, counts) == quarantined
        reasons = [reason for _, reason in quarantined]
        assert counts["quarantined"] == {reason: reasons.count(reason) for reason in reasons}
    assert counts["raw"] == len(records)
    assert counts["raw"] == counts["events"] + counts["static"] + sum(counts["quarantined"].values())
    assert counts["emitted"] == len(found)
    assert SECRET not in str({name: count for name, count in counts.items() if name not in ("buckets", "blobs")})
    return "converted"


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(CELLS, max_size=12), st.lists(DAMAGE, max_size=3), st.integers(60, 200) | st.just(1 << 20),
    st.sampled_from(["\n", "\r\n", "\r"]), st.booleans(), st.permutations(FIELDS), st.booleans(),
)  # fmt: skip
def test_a_damaged_table_becomes_what_still_stands_there_or_one_line(
    rows: list[tuple[str, ...]],
    damages: list[tuple[str, float, int, str]],
    chunk: int,
    line_end: str,
    bom: bool,
    order: list[str],
    zipped: bool,
) -> None:
    table = [dict(zip(FIELDS, row, strict=True)) for row in rows]
    text = csv_text(order, [[row[name] for name in order] for row in table])
    text = damaged(text.replace("\n", line_end), damages)
    data = ("\ufeff" * bom + text).encode()
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        # A chunk is never shorter than the header line.
        patch.setattr(csv_reader, "CHUNK_BYTES", max(chunk, 120))
        outcome = compare(Path(folder), data, "t.csv.gz" if zipped else "t.csv")
    if not damages:
        assert outcome == "converted"


@settings(max_examples=40, deadline=None)
@given(st.lists(CELLS, min_size=1, max_size=8), st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=3)), max_size=3))
def test_bytes_that_are_no_text_are_refused_or_stand_where_nothing_reads_them(
    rows: list[tuple[str, ...]], strewn: list[tuple[float, bytes]]
) -> None:
    data = csv_text(FIELDS, rows).encode()
    for share, piece in strewn:
        place = int(share * len(data))
        data = data[:place] + piece + data[place:]
    with TemporaryDirectory() as folder:
        compare(Path(folder), data)


@settings(max_examples=25, deadline=None)
@given(st.lists(CELLS, max_size=10))
def test_hashed_ids_lose_no_row_that_has_one(rows: list[tuple[str, ...]]) -> None:
    with TemporaryDirectory() as folder:
        assert compare(Path(folder), csv_text(FIELDS, rows).encode(), deid={"mode": "expert"}) == "converted"
        found, counts = convert(Path(folder), source_of(t=RULE), "t", Path(folder) / "t.csv", {"mode": "expert"})
        named = [row for row in rows if row[0].strip()]
        assert counts["quarantined"].get("bad_subject_id", 0) == len(rows) - len(named)
        # The same raw id with any padding is one subject.
        expected = {row[0].strip() for row in named if row[4] or (row[3] != "skip" and known_time(row[1])[0])}
        assert found["subject_id"].n_unique() == len(expected)


@pytest.mark.parametrize("cut", range(1, 60, 4))
def test_a_gzip_cut_anywhere_is_refused_and_never_half_a_table(tmp_path: Path, cut: int) -> None:
    rows = [("1", "2020-01-01", f"{n * 7919 % 1000}", "", "", "", "") for n in range(300)]
    data = gzip.compress(csv_text(FIELDS, rows).encode())
    path = tmp_path / "t.csv.gz"
    path.write_bytes(data[: len(data) * cut // 60])
    with pytest.raises(TimeloomError, match=r"table t: .*truncated") as caught:
        convert(tmp_path, source_of(t=RULE), "t", path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("*.segment"))


# --- files that are no tables

MAPPING = "{name: s, subject: pid, tables: {t: {events: [{code: X, time: at}]}}}"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda raw: (raw / "t.csv").mkdir(), r"t\.csv is a folder"),
        (lambda raw: (raw / "t.csv.gz").mkdir(), r"t\.csv\.gz is a folder"),
        (lambda raw: (raw / "t").mkdir(), "lacks the table t"),
        (lambda raw: (raw / "t.csv").write_bytes(b""), "table t: has no header line"),
        (lambda raw: (raw / "t.csv").write_bytes(b"PID,At\n1,2\n"), "table t: lacks the column at"),
        (lambda raw: (raw / "t.parquet").write_bytes(b"pid,at\n"), "table t: is not readable"),
        (lambda raw: (raw / "t.csv").symlink_to(raw / "nowhere"), "lacks the table t"),
        (lambda raw: (raw / "t.csv").write_text("pid:at\n1:2\n"), "lacks the column at; say in"),
    ],
)  # fmt: skip
def test_what_is_no_table_is_one_line_of_the_stage(tmp_path: Path, make: Any, says: str) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    make(raw)
    with pytest.raises(TimeloomError, match=says) as caught:
        run_meds(tmp_path, plan_meds(tmp_path, MAPPING))
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_what_is_one_is_converted(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "t.csv").write_text("pid,at\n1,2020-01-01\n")
    assert run_meds(tmp_path, plan_meds(tmp_path, MAPPING)).ran == 1


# --- equal rows, wherever they stand

NOTES = st.sampled_from(["x", 'q"', "l\nl", ""])


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("12"), st.sampled_from("ab"), NOTES), max_size=20),
    st.integers(24, 60) | st.just(1 << 20),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.booleans(),
)
def test_of_equal_rows_one_stays_wherever_they_stand(
    rows: list[tuple[str, str, str]], chunk: int, line_end: str, ended: bool
) -> None:
    rule = {"events": [{"code": "X/{code}", "time": "at"}]}
    lines = csv_text(["pid", "at", "code", "n"], [(pid, "2020-01-01", code, note) for pid, code, note in rows])
    header, _, body = lines.partition("\n")
    # Every row comes twice, with an empty and a malformed line between, with or without a last line end.
    text = f"{header}\n{body}\n1\n{body if ended else body[:-1]}"
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv_reader, "CHUNK_BYTES", chunk)
        work = Path(folder)
        (work / "t.csv").write_bytes(text.replace("\n", line_end).encode())
        _, counts = convert(work, source_of(t=rule), "t", work / "t.csv")
        repeated = left = 0
        for bucket in range(2):
            result = align_one(work, {"t-t.csv.segment": counts}, bucket)
            repeated += result.counts["set_aside"].get("duplicate_row", {}).get("t", {"rows": 0})["rows"]
            left += len(aligned_events(work, bucket))
    assert counts["quarantined"] == {"malformed_row": 1}
    assert left == len({*rows})
    assert repeated == 2 * len(rows) - left
