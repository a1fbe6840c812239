"""Compiled loops split CSV just as the general reader does, or leave it to that one."""

import csv
import gzip
import io
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from extractors.events.times import column_times, parse_times
from extractors.tables import csv_reader
from extractors.tables.csv_fields import FieldSplitter, SpanTexts
from extractors.tables.csv_loops import compiled
from extractors.tables.raw_table import RawTable
from extractors.time_rule import TimeRule
from warehouse.errors import TimeloomError

NULLS = ["___", "NA"]
NEVER = 1 << 60


def read(data: bytes, chunk: int, compiled_from: int, plain: set[str] | None) -> tuple[list[object], str]:
    """What a reader makes of a file: rows with their numbers and hashes, malformed records; or its error."""
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = Path(folder) / "t.csv"
        path.write_bytes(data)
        patch.setattr(csv_reader, "CHUNK_BYTES", max(chunk, 1))
        patch.setattr(csv_reader, "COMPILED_FROM", compiled_from)
        patch.setattr(csv_reader._Compiled, "loops", None)
        patch.setattr(csv_reader, "_REFUSALS", NEVER)
        rows: list[object] = []
        try:
            raw = RawTable(path, "t", NULLS)
            for block in raw.blocks(seed=5, plain=plain):
                assert block.hashes is not None
                numbers = block.numbers(np.arange(len(block)))
                rows += zip(numbers.tolist(), block.hashes.to_list(), block.frame.rows(), strict=True)
            return [*rows, raw.columns, raw.malformed], ""
        except TimeloomError as error:
            return [], str(error)


FIELD = st.one_of(
    st.sampled_from(
        ["", "___", "NA", "1", "2.5", "sodium", "2020-02-29 13:00:00", "a longer text of some words", '"', "°F"]
    ),
    st.text(alphabet='ab",\n\r é1\ufeff', max_size=20),
)


@st.composite
def tables(draw: st.DrawFn) -> bytes:
    """CSV as a writer makes it: whatever stands in a field, quoted where it must be, or always."""
    columns = draw(st.integers(1, 4))
    rows = draw(st.lists(st.lists(FIELD, min_size=columns, max_size=columns), max_size=30))
    text = io.StringIO()
    quoting = draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
    end = draw(st.sampled_from(["\n", "\r\n"]))
    csv.writer(text, lineterminator=end, quoting=quoting).writerows([list("abcd"[:columns]), *rows])
    whole = text.getvalue()
    return (whole if draw(st.booleans()) else whole.removesuffix(end)).encode()


CHUNKS = st.integers(8, 400)
PLAIN = st.sampled_from([None, set(), {"a"}, {"b", "c"}])


@pytest.mark.whole
@settings(max_examples=200, deadline=None)
@given(tables(), CHUNKS, PLAIN)
def test_written_tables_are_read_alike(data: bytes, chunk: int, plain: set[str] | None) -> None:
    assert read(data, chunk, 0, plain) == read(data, chunk, NEVER, plain)


@pytest.mark.whole
@settings(max_examples=300, deadline=None)
@given(st.text(alphabet='a1,,\n\n"\r \ufeff', max_size=120), CHUNKS, PLAIN)
def test_anything_is_read_alike(text: str, chunk: int, plain: set[str] | None) -> None:
    data = b"a,b\n" + text.encode()
    assert read(data, chunk, 0, plain) == read(data, chunk, NEVER, plain)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 60))
@example(b"\r\x00\x80", 40)
def test_bytes_that_are_no_text_are_refused_alike(wild: bytes, place: int) -> None:
    good = b"a,b\n" + b"1,2020-01-01\n" * 5
    data = good[:4] + good[4 : 4 + place] + wild + good[4 + place :]
    assert read(data, 50, 0, None) == read(data, 50, NEVER, None)


def splitter(names: str = "abc", texts: str = "") -> FieldSplitter:
    return FieldSplitter(compiled(), list(names), list(names), set(texts), ["", *NULLS])


GOOD = b'1,"x, ""y""",z\n2,,___\n'


def test_regular_records_are_split() -> None:
    for texts in ("", "abc", "b"):
        found = splitter(texts=texts).split(GOOD + b'3,"unfinished', ended=False)
        # What lies within sixteen bytes of the end waits for more.
        assert found is not None and found.bounds.tolist() == [0, 15]
        found = splitter(texts=texts).split(GOOD, ended=True)
        assert found is not None and found.bounds.tolist() == [0, 15, len(GOOD)]
        rows = [found.columns[name].rows.to_list() for name in "abc"]
        assert rows == [["1", "2"], ['x, "y"', None], ["z", None]]


@pytest.mark.parametrize(
    "data",
    [b"1,2\n", b"1,2,3,4\n", b'1,2,"3" \n', b'1,2,"3\n', b"1,2,3\n\n", b"1,\r2,3\n", b"1,2,3\r4\n", b"\n1,2,3\n"],
)
def test_what_is_not_regular_is_left_to_the_general_reader(data: bytes) -> None:
    assert splitter().split(GOOD, ended=True) is not None
    assert splitter().split(GOOD + data, ended=True) is None


def test_an_empty_line_is_no_record_of_one_column() -> None:
    assert splitter("a").split(b"1\n\n2\n", ended=True) is None
    assert splitter("a").split(b"1\r\n\r\n2\r\n", ended=True) is None
    found = splitter("a").split(b'1\n""\n2\n', ended=True)
    assert found is not None and found.columns["a"].rows.to_list() == ["1", None, "2"]


def test_more_rows_and_texts_than_there_was_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from extractors.tables import csv_fields

    monkeypatch.setattr(csv_fields, "_FIRST_ROWS", 2)
    monkeypatch.setattr(csv_fields, "_FIRST_TEXTS", 2)
    data = b"".join(b"%d,%d,x\n" % (number, number % 3) for number in range(50))
    found = splitter().split(data, ended=True)
    assert found is not None and found.crowded == ()
    assert found.columns["a"].rows.to_list() == [str(number) for number in range(50)]
    assert found.columns["b"].values.to_list() == ["0", "1", "2"]
    monkeypatch.setattr(csv_fields, "_MOST_TEXTS", 8)
    found = splitter().split(data, ended=True)
    assert found is not None and found.crowded == ("a",) and found.columns == {}
    found = splitter(texts="a").split(data, ended=True)
    assert found is not None and found.columns["a"].rows.to_list() == [str(number) for number in range(50)]


def test_texts_of_one_hash_s_place_stay_apart() -> None:
    texts = [f"{'x' * (number % 19)}{number}" for number in range(5000)]
    data = "".join(f"{text},1,2\n" for text in texts * 2).encode()
    found = splitter().split(data, ended=True)
    assert found is not None
    assert found.columns["a"].rows.to_list() == texts * 2
    assert found.columns["a"].values.to_list() == texts


MOMENT = st.one_of(
    st.datetimes().map(lambda at: at.replace(microsecond=0).isoformat(" ")),
    st.from_regex(r"\A[0-9]{4}[-/][0-3][0-9]-[0-3][0-9][ T][0-2][0-9]:[0-6][0-9]:[0-6][0-9]\Z"),
    st.just(""),
)


@pytest.mark.whole
@settings(max_examples=500, deadline=None)
@given(st.lists(MOMENT, min_size=1, max_size=3))
def test_moments_are_those_of_the_general_reader_or_left_to_it(texts: list[str]) -> None:
    data = "".join(texts).encode() + b"\n" * 16
    widths = np.array([len(text.encode()) for text in texts], np.int32)
    found = SpanTexts(compiled(), data, np.append(0, np.cumsum(widths)[:-1]).astype(np.int64), widths, [""]).moments()
    rule = TimeRule(column=["x"], formats=["%Y-%m-%d %H:%M:%S"])
    series = pl.Series("x", [text or None for text in texts], dtype=pl.String)
    expected = series.str.to_datetime("%Y-%m-%d %H:%M:%S", time_unit="us", strict=False)
    if found is None:
        assert expected.null_count() > series.null_count()
    else:
        # As numbers: Python has no year 0.
        assert found.to_physical().to_list() == expected.to_physical().to_list()
    assert parse_times(series.to_frame(), rule).present == len(series) - series.null_count()


@pytest.mark.parametrize("gzipped", [False, True])
def test_only_large_files_load_the_loops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gzipped: bool) -> None:
    text = b"a,b\n" + b"1,2\n" * 500
    path = tmp_path / "t.csv"
    path.write_bytes(gzip.compress(text) if gzipped else text)
    for limit, loaded in ((6 * path.stat().st_size, False), (path.stat().st_size, True)):
        monkeypatch.setattr(csv_reader, "COMPILED_FROM", limit)
        monkeypatch.setattr(csv_reader._Compiled, "loops", None)
        assert sum(map(len, RawTable(path, "t", []).blocks())) == 500
        assert (csv_reader._Compiled.loops is not None) is loaded


def test_a_null_value_that_looks_like_a_moment_is_none() -> None:
    data = b"1900-01-01 00:00:00,2,3\n2020-01-01 00:00:00,2,3\n"
    for nulls, expected in (([""], [1900, 2020]), (["", "1900-01-01 00:00:00"], [None, 2020])):
        found = FieldSplitter(compiled(), "abc", "abc", {"a"}, nulls).split(data, ended=True)
        assert found is not None
        times = column_times(found.columns["a"], TimeRule(column=["a"], formats=["%Y-%m-%d %H:%M:%S"]))
        assert [at and at.year for at in times.time] == expected


def test_without_numba_the_general_reader_reads_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(csv_reader, "COMPILED_FROM", 0)
    monkeypatch.setattr(csv_reader._Compiled, "loops", None)
    monkeypatch.setattr(csv_reader._Compiled, "missing", False)
    monkeypatch.setitem(sys.modules, "extractors.tables.csv_loops", None)
    (tmp_path / "t.csv").write_bytes(b"a,b\n1,2\n")
    for _ in range(2):
        assert [block.frame.rows() for block in RawTable(tmp_path / "t.csv", "t", []).blocks()] == [[("1", "2")]]
    assert [record.message for record in caplog.records] == [
        "numba cannot be imported: large CSV files are read by the slower reader"
    ]


READ_ONE = """
from extractors.tables.csv_fields import FieldSplitter
from extractors.tables.csv_loops import compiled
print(FieldSplitter(compiled(), "a", "a", "a", [""]).split(b"7\\n", ended=True).columns["a"].rows.to_list())
"""


@pytest.mark.whole
def test_a_damaged_cache_of_the_loops_is_passed_over(tmp_path: Path) -> None:
    def run() -> str:
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
        done = subprocess.run([sys.executable, "-c", READ_ONE], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run() == "['7']\n"
    kept = [path for path in tmp_path.rglob("*") if path.suffix in (".nbi", ".nbc")]
    assert len(kept) == 6
    for path in kept:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 if path.suffix == ".nbc" else 0])
    assert run() == "['7']\n"
