"""DuckDB files read as text: values, names, batches, several readers, and files that are no database."""

import datetime
import math
import signal
import struct
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import duckdb
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from extractors.tables import database
from extractors.tables.database import database_columns, database_frames, database_tables
from warehouse.errors import TimeloomError


def make(path: Path, *statements: str) -> Path:
    with duckdb.connect(str(path)) as connection:
        for statement in statements:
            connection.execute(statement)
    return path


def texts(path: Path, table: str) -> dict[str, list[str | None]]:
    columns = database_columns(path, table)
    frame = pl.concat(database_frames(path, table, columns))
    assert set(frame.dtypes) <= {pl.String}
    return frame.to_dict(as_series=False)


def test_every_type_becomes_text_that_reads_as_the_same_value(tmp_path: Path) -> None:
    path = make(
        tmp_path / "a.duckdb",
        """CREATE TABLE t AS SELECT
            true AS yes, -9223372036854775807::BIGINT AS big, 5.10::DECIMAL(10, 3) AS exact, 0.1::FLOAT AS single,
            DATE '1969-02-28' AS day, TIMESTAMP '1969-12-31 23:59:59.000001' AS moment,
            TIMESTAMP '2020-02-29' AS midnight, TIMESTAMP_S '2020-01-02 03:04:05' AS seconds,
            TIMESTAMP_NS '2020-01-02 03:04:05.123456' AS nano, TIMESTAMPTZ '2020-01-02 03:04:05.5+02' AS zoned,
            'Ä "x", y' AS words, '' AS empty, NULL::INTEGER AS nothing, 'a'::ENUM ('a', 'b') AS chosen,
            170141183460469231731687303715884105727::HUGEINT AS huge""",
    )
    assert texts(path, "t") == {
        "yes": ["true"],
        "big": ["-9223372036854775807"],
        "exact": ["5.100"],
        "single": ["0.1"],
        "day": ["1969-02-28"],
        "moment": ["1969-12-31 23:59:59.000001"],
        "midnight": ["2020-02-29 00:00:00"],
        "seconds": ["2020-01-02 03:04:05"],
        "nano": ["2020-01-02 03:04:05.123456"],
        "zoned": ["2020-01-02 01:04:05.5+00:00"],
        "words": ['Ä "x", y'],
        "empty": [""],
        "nothing": [None],
        "chosen": ["a"],
        "huge": ["170141183460469231731687303715884105727"],
    }


def test_the_text_of_a_zoned_time_does_not_depend_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(tmp_path / "a.duckdb", "CREATE TABLE t AS SELECT TIMESTAMPTZ '2020-07-02 03:04:05+02' zoned")
    monkeypatch.setenv("TZ", "America/New_York")
    assert texts(path, "t") == {"zoned": ["2020-07-02 01:04:05+00:00"]}


@pytest.mark.whole
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    numbers=st.lists(st.floats(allow_nan=False) | st.integers(-(2**60), 2**60).map(float), min_size=1, max_size=50),
    moments=st.lists(
        st.datetimes(datetime.datetime(1000, 1, 1), datetime.datetime(9900, 1, 1)), min_size=1, max_size=50
    ),
)
def test_floats_and_moments_come_back_to_the_bit(
    tmp_path: Path, numbers: list[float], moments: list[datetime.datetime]
) -> None:
    path = tmp_path / "p.duckdb"
    path.unlink(missing_ok=True)
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE t (x DOUBLE)")
        connection.executemany("INSERT INTO t VALUES (?)", [[number] for number in numbers])
        connection.execute("CREATE TABLE m (x TIMESTAMP)")
        connection.executemany("INSERT INTO m VALUES (?)", [[moment] for moment in moments])
    back = [struct.pack("<d", float(str(text))) for text in texts(path, "t")["x"]]
    assert back == [struct.pack("<d", number) for number in numbers]
    assert [datetime.datetime.fromisoformat(str(text)) for text in texts(path, "m")["x"]] == moments


def test_whole_floats_are_written_as_the_ids_they_are(tmp_path: Path) -> None:
    path = make(
        tmp_path / "a.duckdb",
        "CREATE TABLE t AS SELECT unnest([974.0, -5.0, 0.0, '-0.0', 9007199254740991.0, 1e300, 'nan', 'inf', 1.5]) x",
    )
    first = ["974", "-5", "0", "-0.0", "9007199254740991", "1e+300", "nan", "inf", "1.5"]
    assert texts(path, "t")["x"] == first
    assert math.copysign(1, float(first[3])) == -1


def test_names_are_quoted_whatever_they_hold(tmp_path: Path) -> None:
    path = make(
        tmp_path / "a.duckdb", """CREATE TABLE "we""ird; DROP TABLE t" AS SELECT 1 AS "a""b; --", 2 AS "Select" """
    )
    assert database_tables(path) == ['we"ird; DROP TABLE t']
    assert texts(path, 'we"ird; DROP TABLE t') == {'a"b; --': ["1"], "Select": ["2"]}


def test_a_table_of_another_schema_goes_by_its_own_name_unless_two_share_it(tmp_path: Path) -> None:
    path = make(
        tmp_path / "a.duckdb",
        "CREATE SCHEMA cdm",
        "CREATE SCHEMA voc",
        "CREATE TABLE cdm.person AS SELECT 1 a",
        "CREATE TABLE voc.concept AS SELECT 2 a",
        "CREATE TABLE main.both AS SELECT 3 a",
        "CREATE TABLE cdm.both AS SELECT 4 a",
        "CREATE VIEW seen AS SELECT a + 1 AS a FROM cdm.person",
    )
    assert database_tables(path) == ["both", "cdm.both", "concept", "person", "seen"]
    values = {name: texts(path, name)["a"] for name in database_tables(path)}
    assert values == {"both": ["3"], "cdm.both": ["4"], "concept": ["2"], "person": ["1"], "seen": ["2"]}


def test_a_header_that_became_a_row_is_the_header_again(tmp_path: Path) -> None:
    path = make(
        tmp_path / "a.duckdb",
        "CREATE TABLE death AS SELECT 'PERSON_ID' AS column0, 'DEATH_DATE' AS column1",
        "CREATE TABLE data AS SELECT 'a b' AS column0, 'c' AS column1",
        "CREATE TABLE twice AS SELECT 'a' AS column0, 'A' AS column1",
        "CREATE TABLE numbers AS SELECT 1 AS column0, 2 AS column1",
        "CREATE TABLE named AS SELECT 'PERSON_ID' AS column0, 'DEATH_DATE' AS other",
        "CREATE TABLE wide AS SELECT " + ", ".join(f"'N{i}' AS column{i:02}" for i in range(12)),
    )
    assert texts(path, "death") == {"PERSON_ID": [None], "DEATH_DATE": [None]}, "the row stays a row, of nothing"
    assert [len(frame) for frame in database_frames(path, "death", ["DEATH_DATE"])] == [1]
    assert database_columns(path, "wide") == [f"N{i}" for i in range(12)]
    for table in ("data", "twice", "numbers"):
        assert database_columns(path, table) == ["column0", "column1"], table
    assert database_columns(path, "named") == ["column0", "other"]


@pytest.mark.whole
def test_batches_keep_the_order_and_the_memory_small(tmp_path: Path) -> None:
    rows = 1_500_000
    path = make(
        tmp_path / "a.duckdb",
        f"CREATE TABLE t AS SELECT i, md5(i::VARCHAR) AS s FROM range({rows}) r(i)",
    )
    script = f"""
        import resource, sys
        from pathlib import Path
        from extractors.tables.database import database_frames
        frames = database_frames(Path({str(path)!r}), "t", ["i", "s"])
        next(frames)
        before, at, largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, None, 0
        for frame in frames:
            numbers = frame["i"].cast(int)
            assert numbers.is_sorted() and (at is None or numbers[0] == at + 1)
            at, largest = numbers[-1], max(largest, len(frame))
        print(at, largest, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    last, largest, grown_mib = map(int, done.stdout.split())
    assert last == rows - 1
    assert largest <= 2 * database.BATCH_ROWS
    assert grown_mib < 100, "the table itself is some 70 MB of text, 140 with its numbers"


def test_no_columns_and_no_rows(tmp_path: Path) -> None:
    path = make(tmp_path / "a.duckdb", "CREATE TABLE t AS SELECT 1 a FROM range(5)", "CREATE TABLE none (a INTEGER)")
    assert sum(len(frame) for frame in database_frames(path, "t", [])) == 5
    assert database_columns(path, "none") == ["a"]
    assert sum(len(frame) for frame in database_frames(path, "none", ["a"])) == 0


def test_nothing_is_written_and_a_log_of_the_writer_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.duckdb"
    # The writer ends before its checkpoint, so the rows are in the log beside the file.
    script = f"""
        import duckdb, os
        connection = duckdb.connect({str(path)!r})
        connection.execute("SET checkpoint_threshold = '1GB'")
        connection.execute("CREATE TABLE t AS SELECT 1 a")
        os._exit(0)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert "a.duckdb.wal" in before
    assert texts(path, "t") == {"a": ["1"]}
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_several_processes_read_at_once(tmp_path: Path) -> None:
    path = make(tmp_path / "a.duckdb", "CREATE TABLE t AS SELECT 1 a FROM range(300000)")
    script = f"""
        import sys
        from pathlib import Path
        from extractors.tables.database import database_frames
        frames = database_frames(Path({str(path)!r}), "t", ["a"])
        rows = len(next(frames))
        print("open", flush=True)
        sys.stdin.read()
        print(rows + sum(len(frame) for frame in frames))
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    readers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for reader in readers:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "open\n"
    assert len(texts(path, "t")["a"]) == 300000, "and this process is the third"
    assert [reader.communicate()[0] for reader in readers] == ["300000\n", "300000\n"]


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Path]:
    """A database that another process has open for writing."""
    path = tmp_path / "busy.duckdb"
    script = f"""
        import duckdb, sys
        connection = duckdb.connect({str(path)!r})
        connection.execute("CREATE TABLE t AS SELECT 'SECRET' a")
        print("open", flush=True)
        sys.stdin.read()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    yield path
    process.send_signal(signal.SIGKILL)
    process.communicate()


def refusal(path: Path, table: str | None = None) -> str:
    with pytest.raises(TimeloomError) as caught:
        if table is None:
            database_tables(path)
        else:
            list(database_frames(path, table, database_columns(path, table)))
    message = str(caught.value)
    assert "\n" not in message
    assert str(path.parent) not in message
    assert "SECRET" not in message
    assert caught.value.remedy
    assert caught.value.__suppress_context__ or caught.value.__cause__ is None
    return message


def test_a_database_that_is_being_written_is_refused(writer: Path) -> None:
    assert "is being written by another program" in refusal(writer)


def test_files_that_are_no_database_are_refused(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "none.duckdb")
    (tmp_path / "folder.duckdb").mkdir()
    assert "does not exist" in refusal(tmp_path / "folder.duckdb")
    (tmp_path / "empty.duckdb").touch()
    assert "no DuckDB file" in refusal(tmp_path / "empty.duckdb")
    (tmp_path / "text.duckdb").write_text("SECRET,b\n1,2\n" * 1000)
    assert "no DuckDB file" in refusal(tmp_path / "text.duckdb")


def test_damage_is_refused_wherever_it_is(tmp_path: Path) -> None:
    path = make(
        tmp_path / "a.duckdb", "CREATE TABLE t AS SELECT i, 'SECRET' || md5(i::VARCHAR) AS s FROM range(200000) r(i)"
    )
    whole = path.read_bytes()
    for name, damaged in {
        "truncated": whole[: len(whole) // 2],
        "flipped": whole[: len(whole) // 2] + bytes(64) + whole[len(whole) // 2 + 64 :],
    }.items():
        broken = tmp_path / f"{name}.duckdb"
        broken.write_bytes(damaged)
        assert "cannot be read" in refusal(broken, "t"), name


def test_another_storage_version_is_named(tmp_path: Path) -> None:
    path = make(tmp_path / "a.duckdb", "CREATE TABLE t AS SELECT 1 a")
    header = bytearray(path.read_bytes())
    assert header[8:12] == b"DUCK"
    assert int.from_bytes(header[:8], "little") == checksum(header[8:4096])
    header[12:20] = (9999).to_bytes(8, "little")
    header[:8] = checksum(header[8:4096]).to_bytes(8, "little")
    path.write_bytes(header)
    assert "another version of DuckDB" in refusal(path)


def checksum(block: bytearray) -> int:
    """The checksum of a block as DuckDB computes it, so that only the version differs and the file is not damaged."""
    total = 5381
    for (word,) in struct.iter_unpack("<Q", block):
        total ^= word * 0xBF58476D1CE4E5B9 & (1 << 64) - 1
    return total


def test_what_is_not_in_the_database_is_named(tmp_path: Path) -> None:
    path = make(tmp_path / "a.duckdb", "CREATE TABLE t AS SELECT 1 a")
    assert "has no table person" in refusal(path, "person")
    with pytest.raises(TimeloomError, match="table t: lacks the column b"):
        list(database_frames(path, "t", ["a", "b"]))


def test_what_changed_since_the_last_look_is_seen(tmp_path: Path) -> None:
    path = make(tmp_path / "a.duckdb", "CREATE TABLE t AS SELECT 1 a")
    assert database_tables(path) == ["t"]
    make(path, "CREATE TABLE u AS SELECT 1 b", "ALTER TABLE t ADD COLUMN c INTEGER")
    assert database_tables(path) == ["t", "u"]
    assert database_columns(path, "t") == ["a", "c"]


def test_a_view_cannot_read_other_files(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a\nSECRET\n")
    path = make(tmp_path / "a.duckdb", f"CREATE VIEW v AS SELECT * FROM read_csv('{tmp_path / 'x.csv'}')")
    assert database_tables(path) == ["v"]
    assert "a view that reads other files" in refusal(path, "v")


def test_a_view_that_cannot_be_streamed_fails_rather_than_spills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(
        tmp_path / "a.duckdb", "CREATE VIEW v AS SELECT md5(i::VARCHAR) AS s FROM range(1000000) r(i) ORDER BY s"
    )
    monkeypatch.setitem(database._SETTINGS, "memory_limit", "16MB")
    assert "needs more memory" in refusal(path, "v")
    assert [file.name for file in tmp_path.iterdir()] == ["a.duckdb"]


def test_a_reader_that_stops_early_lets_go_of_the_file(tmp_path: Path) -> None:
    path = make(tmp_path / "a.duckdb", "CREATE TABLE t AS SELECT 1 a FROM range(500000)")
    frames = database_frames(path, "t", ["a"])
    next(frames)
    frames.close()  # type: ignore[attr-defined]
    make(path, "INSERT INTO t VALUES (2)")
    assert sum(len(frame) for frame in database_frames(path, "t", ["a"])) == 500001
