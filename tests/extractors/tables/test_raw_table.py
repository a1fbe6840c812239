"""Files as they come: CSV in every dress, gzip, Parquet, and what is told of a file that is none of them."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from extractors.tables import csv_reader
from extractors.tables.export import Export
from extractors.tables.raw_table import RawTable
from tests.support.raw.raw_tables import convert, convert_text, csv_text, quarantine_of, source_of
from warehouse.errors import TimeloomError

GOOD = csv_text(["pid", "at"], [(number, "2020-01-01") for number in range(5)]).encode()
PLAIN: dict[str, Any] = {"events": [{"code": "X", "time": "at"}]}
NOTED: dict[str, Any] = {"events": [{"code": "X", "time": "at", "text": "note"}]}


def all_rows(path: Path) -> tuple[list[tuple[int, tuple[str | None, ...]]], list[int]]:
    """Every row with its number, and the numbers of the malformed ones."""
    raw = RawTable(path, "t", [""])
    rows = []
    for block in raw.blocks():
        rows += list(zip(block.numbers(np.arange(len(block.frame))).tolist(), block.frame.rows(), strict=True))
    return rows, raw.malformed


@pytest.mark.parametrize(
    "data",
    [
        GOOD,
        b"\xef\xbb\xbf" + GOOD,
        GOOD.replace(b"\n", b"\r\n"),
        b"\xef\xbb\xbf" + GOOD.replace(b"\n", b"\r\n"),
        GOOD.replace(b"\n", b"\r"),
        GOOD.rstrip(b"\n"),
        GOOD.replace(b"\n", b"\r").rstrip(b"\r"),
        GOOD.replace(b"0,2020-01-01", b'"0","2020-01-01"'),
        GOOD.replace(b"pid,at", b'"pid","at"'),
        GOOD.replace(b"\n1,", b"\n\n1,"),
        GOOD.replace(b"2020-01-01\n", b'"2020-01-01"\n'),
        GOOD.replace(b"\n3,", b"\r\n3,").replace(b"\n4,", b"\r4,"),
    ],
    ids=[
        "plain", "bom", "crlf", "bom crlf", "cr", "no last newline", "cr, no last one", "quoted", "quoted header",
        "blank line", "quoted column", "every line end",
    ],
)  # fmt: skip
@pytest.mark.parametrize("chunk", [7, 16 << 20])
def test_five_rows_are_five_rows(tmp_path: Path, data: bytes, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Never less than the header line, of which a whole chunk always holds more.
    monkeypatch.setattr(csv_reader, "CHUNK_BYTES", max(chunk, data.find(b"0") + 1))
    found, counts = convert_text(tmp_path, PLAIN, data)
    assert found["subject_id"].to_list() == [0, 1, 2, 3, 4]
    assert (counts["raw"], counts["events"], counts["quarantined"]) == (5, 5, {})


def test_commas_quotes_and_newlines_in_fields(tmp_path: Path) -> None:
    nasty = 'a, "b"\r\n\nc;\u2028é'
    found, counts = convert_text(tmp_path, NOTED, csv_text(["pid", "at", "note"], [(1, "2020-01-01", nasty)]))
    assert found["text_value"].to_list() == [nasty]
    assert counts["raw"] == 1


@pytest.mark.whole
@pytest.mark.parametrize("chunk", range(14, 60))
def test_a_chunk_may_end_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(csv_reader, "CHUNK_BYTES", chunk)
    notes = ['5" tube', "two\r\nlines", 'she said ""no""', "x", 'a\n"b"\nc', ""]
    text = 'pid,at,note\n1,2020-01-01,5" tube\n' + csv_text(
        ["7", "short"], [(1, "2020-01-01", note) for note in notes[1:]]
    )
    found, counts = convert_text(tmp_path, NOTED, text)
    assert found["text_value"].to_list() == [*notes[:-1], None]
    assert found["row"].to_list() == [1, *range(3, 8)]
    assert quarantine_of(tmp_path, counts) == [(2, "malformed_row")]


def test_a_line_end_in_quotes_stays_whole_where_chunks_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = csv_text(["pid", "at", "note"], [(row, "2020-01-01", "a\r\nb\r\n\r\nc") for row in range(9)])
    for chunk in range(12, 48, 3):
        monkeypatch.setattr(csv_reader, "CHUNK_BYTES", chunk)
        found, _ = convert_text(tmp_path, NOTED, text)
        assert found["text_value"].unique().to_list() == ["a\r\nb\r\n\r\nc"]
        assert len(found) == 9


def test_nul_bytes_stay_in_a_text_and_go_from_an_id(tmp_path: Path) -> None:
    found, counts = convert_text(tmp_path, NOTED, b"pid,at,note\n1,2020-01-01,a\x00b\n\x002,2020-01-01,c\n")
    assert found.select("subject_id", "text_value").rows() == [(1, "a\x00b"), (2, "c")]
    assert quarantine_of(tmp_path, counts) == []
    assert counts["partial"] == {"invisible_in_subject_id": 1}


# --- rows that are no rows

FILLER = b"7,2020-01-01 00:00:00\n"


@pytest.mark.parametrize("chunk", [30, 64, 1000])
@pytest.mark.parametrize("quoted", [False, True])
def test_malformed_rows_are_numbered_in_every_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, quoted: bool
) -> None:
    monkeypatch.setattr(csv_reader, "CHUNK_BYTES", chunk)
    bad = {1: b"1,2,3\n", 2: b"1\n", 17: b"4\n", 40: b',"a\nb",\n' if quoted else b",,\n", 41: b'"9"\n', 80: b"9,9,9"}
    data = b"pid,at\n" + b"".join(bad.get(number, FILLER) for number in range(1, 81))
    path = tmp_path / "t.csv"
    path.write_bytes(data)
    rows, malformed = all_rows(path)
    assert malformed == sorted(bad)
    assert [number for number, _ in rows] == [number for number in range(1, 81) if number not in bad]
    assert {row for _, row in rows} == {("7", "2020-01-01 00:00:00")}


def test_quarantined_rows_behind_malformed_ones_have_their_own_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [
        b"pid,at",
        b"1,2020-01-01",
        b"1,2",
        b",2020-01-01",
        b"1,2,3",
        b"1,SECRET",
        b"",
        b"9",
        b"8,",
        b"2,2020-01-02",
    ]
    for chunk in (12, 25, 1 << 20):
        monkeypatch.setattr(csv_reader, "CHUNK_BYTES", chunk)
        found, counts = convert_text(tmp_path, PLAIN, b"\n".join(lines))
        assert found["row"].to_list() == [1, 8]
        assert quarantine_of(tmp_path, counts) == [
            (2, "unparsable_time"), (3, "bad_subject_id"), (4, "malformed_row"), (5, "unparsable_time"),
            (6, "malformed_row"), (7, "missing_time"),
        ]  # fmt: skip
        assert counts["raw"] == 8 == counts["events"] + sum(counts["quarantined"].values())
        assert b"SECRET" not in (tmp_path / counts["segment"]).read_bytes()
        assert "SECRET" not in str(counts)


def test_a_header_alone_is_an_empty_table(tmp_path: Path) -> None:
    for text in (b"pid,at\n", b"pid,at", b"\xef\xbb\xbfpid,at\r\n", b"pid,at\n\n\n"):
        _, counts = convert_text(tmp_path, PLAIN, text)
        assert (counts["raw"], counts["buckets"]) == (0, {})


# --- files that are none


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "has no header line"),
        (b"\xef\xbb\xbf", "has no header line"),
        (b"\n1,2020-01-01\n", "has no header line"),
        (b"pid,when\n1,2020-01-01\n", "lacks the column at"),
        (b"pid:at\n1:2020-01-01\n", "lacks the column at; say in `reading` what separates"),
        (b"pid,at,at\n1,2,3\n", "has columns 2 and 3 of one name"),
        (b"1,SECRET,1\n2,SECRET,2\n", "has columns 1 and 3 of one name"),
        (b"pid,at\n1,\xff\xfe\n", "not UTF-8"),
        ("pid,at\n1,2020-01-01\n".encode("utf-16"), "lacks the column|not UTF-8|no header"),
        (GOOD + b'5,"2020-01-01\n6,2020-01-01\n', "never closed"),
        (GOOD + b'"5,2020-01-01\n6,2020-01-01\n', "never closed"),
        (GOOD + b'5,"2020-01-01\n6,2020-01-01\n7,"2020-01-01\n', "never closed"),
        (GOOD + b'5,"', "never closed"),
        (GOOD + b'5,2020-01-01,"a\n\nb\n', "never closed"),
    ],
    ids=[
        "empty", "only a bom", "no header", "column", "colons", "twice", "no header, equal values", "latin",
        "utf-16", "quote not closed", "quote not closed, short row", "closed by another row's quote", "only a quote",
        "in a malformed row",
    ],
)  # fmt: skip
def test_a_bad_file_is_one_line(tmp_path: Path, data: bytes, says: str) -> None:
    with pytest.raises(TimeloomError, match=says) as caught:
        convert_text(tmp_path, PLAIN, data)
    assert str(caught.value).startswith("table t: ")
    assert "\n" not in str(caught.value)
    assert "SECRET" not in str(caught.value)
    assert list(tmp_path.glob("*.segment")) == list(tmp_path.glob(".*")) == []


def test_a_record_longer_than_any_is_a_quote_that_is_not_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_reader, "CHUNK_BYTES", 100)
    monkeypatch.setattr(csv_reader, "LONGEST_RECORD", 1000)
    long = csv_text(["pid", "at", "note"], [(1, "2020-01-01", "line\n" * 190)])
    assert convert_text(tmp_path, NOTED, long + "2,2020-01-01,x\n")[1]["events"] == 2
    with pytest.raises(TimeloomError, match="never closed"):
        convert_text(tmp_path, NOTED, 'pid,at,note\n1,2020-01-01,"x\n' + "2,2020-01-01,x\n" * 500)


def gzipped(work: Path, data: bytes) -> Path:
    path = work / "t.csv.gz"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("cut", [1, 4, 9, 40])
def test_a_truncated_gzip_is_one_line(tmp_path: Path, cut: int) -> None:
    path = gzipped(tmp_path, gzip.compress(GOOD * 50)[:-cut])
    with pytest.raises(TimeloomError, match="truncated"):
        convert(tmp_path, source_of(t=PLAIN), "t", path)
    assert list(tmp_path.glob("*.segment")) == []


@pytest.mark.parametrize("place", [12, 40, -6])
def test_a_damaged_gzip_is_one_line(tmp_path: Path, place: int) -> None:
    rows = csv_text(["pid", "at"], [(number * 7919 % 1000, "2020-01-01") for number in range(200)])
    data = bytearray(gzip.compress(rows.encode()))
    data[place] ^= 0xFF
    with pytest.raises(TimeloomError, match="truncated") as caught:
        convert(tmp_path, source_of(t=PLAIN), "t", gzipped(tmp_path, bytes(data)))
    assert "\n" not in str(caught.value)


def test_gzip_goes_by_the_files_first_bytes_and_not_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(gzip.compress(GOOD))
    assert convert(tmp_path, source_of(t=PLAIN), "t", tmp_path / "t.csv")[1]["events"] == 5
    (tmp_path / "t.csv").unlink()
    assert convert(tmp_path, source_of(t=PLAIN), "t", gzipped(tmp_path, GOOD))[1]["events"] == 5


def test_gzip_in_several_members_is_read_to_its_end(tmp_path: Path) -> None:
    path = gzipped(tmp_path, gzip.compress(GOOD) + gzip.compress(b"5,2020-01-01\n"))
    assert convert(tmp_path, source_of(t=PLAIN), "t", path)[1]["raw"] == 6


def test_an_empty_gzip_is_an_empty_file(tmp_path: Path) -> None:
    for data in (gzip.compress(b""), b""):
        with pytest.raises(TimeloomError, match=r"has no header line|not readable"):
            convert(tmp_path, source_of(t=PLAIN), "t", gzipped(tmp_path, data))


# --- where the files of a table lie


def test_a_folder_with_a_files_name_and_a_table_in_two_forms_are_refused(tmp_path: Path) -> None:
    source = source_of(a=PLAIN, b=PLAIN)
    (tmp_path / "a.csv").mkdir()
    with pytest.raises(TimeloomError, match=r"a\.csv is a folder"):
        Export(tmp_path, source).files("a")
    (tmp_path / "b.csv").write_bytes(GOOD)
    assert [path.name for path in Export(tmp_path, source).files("b")] == ["b.csv"]
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(GOOD))
    with pytest.raises(TimeloomError, match="the table b stands there twice"):
        Export(tmp_path, source).files("b")


def test_a_folder_of_parts_is_one_table(tmp_path: Path) -> None:
    parts = tmp_path / "t"
    parts.mkdir()
    for name in ("2.csv", "1.csv", "notes.txt"):
        (parts / name).write_bytes(GOOD)
    assert [path.name for path in Export(tmp_path, source_of(t=PLAIN)).files("t")] == ["1.csv", "2.csv"]
    (tmp_path / "t.csv").write_bytes(GOOD)
    with pytest.raises(TimeloomError, match="stands there twice"):
        Export(tmp_path, source_of(t=PLAIN)).files("t")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_rows_are_there_where_only_absent_columns_are_wanted(tmp_path: Path, suffix: str) -> None:
    frame = pl.DataFrame({"a": ["1", "2"], "b": ["3", None]})
    path = tmp_path / f"t.{suffix}"
    frame.write_csv(path) if suffix == "csv" else frame.write_parquet(path)
    for plain in (None, set[str]()):
        (block,) = RawTable(path, "t", [], optional_columns=("x",)).blocks(["x"], plain=plain)
        assert block.frame.rows() == [(None,), (None,)]
