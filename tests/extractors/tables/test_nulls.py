"""What stands for nothing: for a source, a table or a column, in every kind of file, in all its spellings."""

import gzip
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from extractors.reading import ColumnReading, Reading
from extractors.source import Source, load_source
from extractors.tables.export import Export
from tests.support.raw.raw_tables import convert, source_of
from warehouse.errors import TimeloomError

ROWS = {
    "pid": ["1", "2", "3", "4", "5", "6"],
    "left": ["1900-01-01", "1900-01-01 00:00:00", "2021-02-03", "1900-01-01T00:00:00Z", "1900-01-02", "NULL"],
    "val": ["-1", "-1.0", "9999999", "9999999.00", "-10", "7"],
    "other": ["-1", "NULL", "x", "null", "~", "NA"],
}
KINDS = ("csv", "csv.gz", "parquet", "duckdb")


def written(folder: Path, kind: str, rows: dict[str, list[Any]]) -> tuple[Path, Path]:
    """A table `t` in a file of one kind: the export and the file."""
    folder.mkdir(parents=True, exist_ok=True)
    frame, path = pl.DataFrame(rows), folder / f"t.{kind}"
    if kind == "parquet":
        frame.write_parquet(path)
    elif kind == "duckdb":
        duckdb = pytest.importorskip("duckdb")
        with duckdb.connect(str(path)) as connection:
            connection.register("frame", frame.to_arrow())
            connection.execute("CREATE TABLE t AS SELECT * FROM frame")
        return path, path
    elif kind == "csv.gz":
        path.write_bytes(gzip.compress(frame.write_csv().encode()))
    else:
        frame.write_csv(path)
    return folder, path


def read(folder: Path, kind: str, reading: str, rows: dict[str, list[Any]] = ROWS) -> dict[str, list[str | None]]:
    export, path = written(folder, kind, rows)
    source = Source.model_validate(
        {"name": "s", "subject": "pid", "tables": {"t": {"events": [{"code": "X", "time": "left"}]}}}
    ).read_as(Reading.model_validate(yaml.safe_load(reading) or {}))
    blocks = Export(export, source).open(path, "t").blocks()
    return pl.concat(block.frame for block in blocks).to_dict(as_series=False)


def without(**places: list[int]) -> dict[str, list[str | None]]:
    """ROWS with nulls at places."""
    return {
        name: [None if place in places.get(name, []) else value for place, value in enumerate(values)]
        for name, values in ROWS.items()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_for_nothing_holds_for_a_source_a_table_or_a_column(tmp_path: Path, kind: str) -> None:
    assert read(tmp_path, kind, "") == ROWS
    whole = without(val=[0, 1, 2, 3], left=[0, 1, 3], other=[0])
    listed = "null_values: [-1, 9999999, 1900-01-01]"
    assert read(tmp_path / "1", kind, f"{{{listed}}}") == whole
    assert read(tmp_path / "2", kind, f"tables: {{t: {{{listed}}}}}") == whole
    column = f"tables: {{t: {{columns: {{val: {{{listed}}}}}}}}}"
    assert read(tmp_path / "3", kind, column) == without(val=[0, 1, 2, 3])
    assert read(tmp_path / "4", kind, f"columns: {{left: {{{listed}}}}}") == without(left=[0, 1, 3])


@pytest.mark.parametrize("kind", KINDS)
def test_yamls_own_null_is_what_it_is_spelt_as(tmp_path: Path, kind: str) -> None:
    assert read(tmp_path / "1", kind, "null_values: ~") == without(left=[5], other=[1, 3, 4])
    assert read(tmp_path / "2", kind, "null_values: [null, NA]") == without(left=[5], other=[1, 3, 4, 5])


@pytest.mark.parametrize("kind", ["parquet", "duckdb"])
def test_a_typed_number_or_moment_is_one_too(tmp_path: Path, kind: str) -> None:
    moments = pl.Series(["1900-01-01 00:00:00", "2021-02-03 04:05:06", None]).str.to_datetime()
    rows = {"pid": [1, 2, 3], "left": moments.to_list(), "val": [-1.0, 2.5, None], "other": [9999999, 5, None]}
    found = read(tmp_path, kind, "null_values: [-1, 9999999, 1900-01-01]", rows)
    assert found["val"] == [None, "2.5", None] and found["other"] == [None, "5", None]
    assert [value and value[:19] for value in found["left"]] == [None, "2021-02-03 04:05:06", None]


@pytest.mark.parametrize(
    ("listed", "same", "other"),
    [
        ("-1", ["-1", "-1.0", "-1.", "-1.000", "\N{MINUS SIGN}1"], ["1", "-10", "-1.01", "-1,000", " -1"]),
        ("9.5", ["9.5", "9.50", "+9.5"], ["95", "9.05", "9,5"]),
        ("007", ["007"], ["7", "7.0"]),
        (
            "1900-01-01",
            ["1900-01-01 00:00", "1900-01-01T00:00:00.000", "1900-01-01 00:00:00+00:00"],
            ["1900-01-01 00:01"],
        ),
        ("01.01.1900", ["01.01.1900", "01.01.1900 00:00:00"], ["1900-01-01"]),
        ("UNK", ["UNK"], ["unk", "UNK "]),
    ],
)
def test_spellings(listed: str, same: list[str], other: list[str]) -> None:
    nothing = ColumnReading(null_values=[listed]).nothing
    assert set(same) <= set(nothing) and not set(other) & set(nothing)


def test_a_thousand_is_not_a_sentinel_of_one() -> None:
    german = ColumnReading(null_values=["1"], decimal=",", thousands=".").nothing
    assert {"1", "1,0", "1,000", "1.0"} <= set(german) and "1.000" not in german


def test_what_yaml_reads_as_yes_or_no_is_asked_for_in_quotes() -> None:
    with pytest.raises(ValueError, match="put it into quotes"):
        ColumnReading.model_validate(yaml.safe_load("null_values: [no]"))


def test_a_column_that_is_not_there_is_not_said_in_vain(tmp_path: Path) -> None:
    with pytest.raises(TimeloomError, match="table t: lacks the column vaal"):
        read(tmp_path, "csv", "tables: {t: {columns: {vaal: {null_values: x}}}}")


def test_what_is_derived_or_looked_up_has_nothing_of_its_own_too(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("pid,key,val\n1,a,x-1\n2,b,x5\n3,c,x7\n")
    (tmp_path / "u.csv").write_text("key,left\na,1900-01-01 00:00:00\nb,2021-02-03\nc,2021-02-04\n")
    table = {
        "joins": [{"table": "u", "key": "key", "columns": {"left": "left"}}],
        "derive": {"number": "REPLACE(val, 'x', '')"},
        "events": [{"code": "A", "time": "left", "value": "number"}, {"code": "B", "value": "number"}],
    }
    columns = {"left": {"null_values": ["1900-01-01"]}, "number": {"null_values": ["-1", "5"]}}
    source = Source.model_validate(
        {
            "name": "s",
            "subject": "pid",
            "tables": {"t": table, "u": {"role": "reference"}},
            "reading": {"tables": {"t": {"columns": columns}}},
        }
    )
    found, counts = convert(tmp_path, source, "t", tmp_path / "t.csv")
    assert found.select("row", "code", "numeric_value").rows() == [(3, "A", 7), (3, "B", 7)]
    assert counts["quarantined"] == {"missing_time": 1, "empty_value": 1}


def test_a_table_that_the_source_has_not_is_refused(tmp_path: Path) -> None:
    text = "{name: s, subject: pid, tables: {t: {events: [{code: X}]}}, reading: {tables: {u: {decimal: ','}}}}"
    (tmp_path / "source.yaml").write_text(text)
    with pytest.raises(TimeloomError, match="reading names the unknown table u"):
        load_source("source.yaml", tmp_path)


def test_a_column_that_no_rule_reads_is_refused_for_all_tables_too() -> None:
    source = source_of(t={"events": [{"code": "X", "time": "at", "value": "val"}]})
    source.read_as(Reading.model_validate({"columns": {"val": {"null_values": [-1]}}}))
    with pytest.raises(TimeloomError, match="reads no column valeu"):
        source.read_as(Reading.model_validate({"columns": {"valeu": {"null_values": [-1]}}}))
