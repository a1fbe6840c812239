"""Parquet of every type becomes the text that its CSV would have, or the run stops with one clear line."""

from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extractors.tables.raw_table import RawTable
from tests.support.raw.raw_tables import convert, convert_text, csv_text, quarantine_of, source_of
from warehouse.errors import TimeloomError

PLAIN: dict[str, Any] = {"events": [{"code": "X", "time": "at"}]}


def test_parquet_reads_as_the_same_csv_does(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {"pid": [1, 2, 3], "at": [datetime(2020, 1, 1, 5), datetime(1931, 1, 1), None], "code": ["a", "", None]}
    )
    frame.write_parquet(tmp_path / "t.parquet")
    rule = {
        "events": [{"code": "X/{code|NONE}", "time": "at"}, {"code": "NULL", "time": "at", "where": "code IS NULL"}]
    }
    found, counts = convert(tmp_path, source_of(t=rule), "t", tmp_path / "t.parquet")
    text = csv_text(
        ["pid", "at", "code"], [(1, "2020-01-01 05:00:00", "a"), (2, "1931-01-01 00:00:00", ""), (3, "", "")]
    )
    other, same = convert_text(tmp_path, rule, text)
    columns = ["subject_id", "time", "code"]
    assert found.select(columns).sort(columns).equals(other.select(columns).sort(columns))
    assert counts["quarantined"] == same["quarantined"] == {"missing_time": 1}


PARQUET: dict[str, tuple[pa.Array, list[str | None]]] = {
    "int64": (pa.array([1, -(2**63), None]), ["1", "-9223372036854775808", None]),
    "uint64": (pa.array([1, 2**64 - 1, None], pa.uint64()), ["1", "18446744073709551615", None]),
    "whole floats": (pa.array([123.0, -7.0, None]), ["123", "-7", None]),
    "floats": (pa.array([0.1, 2.5e-7, None]), ["0.1", "2.5e-7", None]),
    "float32": (pa.array([0.1, 16777216.0, None], pa.float32()), ["0.1", "16777216", None]),
    "beyond float's whole numbers": (pa.array([1e300, float("nan"), None]), ["1e300", None, None]),
    "moments": (
        pa.array([datetime(2020, 1, 1, 5), datetime(1931, 1, 1, 0, 0, 0, 500_000), None], pa.timestamp("us")),
        ["2020-01-01 05:00:00.000000", "1931-01-01 00:00:00.500000", None],
    ),
    "dates": (pa.array([date(2020, 2, 29), date(1931, 1, 1), None]), ["2020-02-29", "1931-01-01", None]),
    "truth": (pa.array([True, False, None]), ["true", "false", None]),
    "dictionary": (pa.array(["a", "b", None]).dictionary_encode(), ["a", "b", None]),
    "large string": (pa.array(["a", "", None], pa.large_string()), ["a", None, None]),
    "decimal": (pa.array([Decimal("1.50"), Decimal("-2.00"), None]), ["1.50", "-2.00", None]),
}


@pytest.mark.parametrize("kind", PARQUET)
def test_parquet_of_every_type_is_text(tmp_path: Path, kind: str) -> None:
    column, text = PARQUET[kind]
    pq.write_table(pa.table({"x": column}), tmp_path / "t.parquet")
    raw = RawTable(tmp_path / "t.parquet", "t", [""])
    (block,) = raw.blocks()
    values = block.frame["x"].to_list()
    assert block.numbers(np.arange(3)).tolist() == [1, 2, 3]
    assert raw.malformed == []
    if kind.startswith(("float", "beyond")):
        # The library chooses how to write a float, so the numbers are compared.
        assert [value is None for value in values] == [cell is None for cell in text]
        number = np.float32 if kind == "float32" else float
        assert [repr(number(value)) for value in values if value] == [repr(number(cell)) for cell in text if cell]
    elif kind == "moments":
        read = [value and datetime.fromisoformat(value) for value in values]
        assert read == [cell and datetime.fromisoformat(cell) for cell in text]
    else:
        assert values == text


@pytest.mark.parametrize(
    "column",
    [
        pa.array([[1], [2, 3], None]),
        pa.array([{"a": 1}, {"a": 2}, None]),
        pa.array([b"a", b"\xff", None]),
        pa.array([time(1, 2), None, None]),
        pa.nulls(3),
    ],
    ids=["list", "struct", "binary", "time", "null"],
)
def test_parquet_columns_of_no_text_are_read_or_refused_in_one_line(tmp_path: Path, column: pa.Array) -> None:
    table = pa.table({"pid": [1, 2, 3], "at": ["2020-01-01"] * 3, "x": column})
    pq.write_table(table, tmp_path / "t.parquet")
    try:
        found, counts = convert(tmp_path, source_of(t=PLAIN), "t", tmp_path / "t.parquet")
    except TimeloomError as error:
        assert str(error).startswith("table t: ")
        assert "\n" not in str(error)
    else:
        assert found["subject_id"].to_list() == [1, 2, 3]
        assert counts["events"] == 3


def test_nulls_inside_nested_parquet_are_null(tmp_path: Path) -> None:
    lists = pa.array([["a"], [None], None, [], ["null"], [None, "b"]])
    structs = pa.array([{"a": 1, "b": None}, {"a": None, "b": None}, None, {}, {"a": None, "b": "null"}, None])
    nested = pa.array([{"x": [{"y": None}]}, {"x": [None]}, {"x": None}, None, {"x": [{"y": 0}]}, {"x": []}])
    pq.write_table(pa.table({"l": lists, "s": structs, "n": nested}), tmp_path / "t.parquet")
    (block,) = RawTable(tmp_path / "t.parquet", "t", [""]).blocks()
    present = {name: [value is not None for value in block.frame[name]] for name in "lsn"}
    assert present == {
        "l": [True, False, False, False, True, True],
        "s": [True, False, False, False, True, False],
        "n": [False, False, False, False, True, False],
    }


def test_whole_floats_of_parquet_are_ids(tmp_path: Path) -> None:
    frame = pl.DataFrame({"pid": [1.0, 2.0, None, 2.5], "at": ["2020-01-01"] * 4})
    frame.write_parquet(tmp_path / "t.parquet")
    found, counts = convert(tmp_path, source_of(t=PLAIN), "t", tmp_path / "t.parquet")
    assert found["subject_id"].to_list() == [1, 2]
    assert quarantine_of(tmp_path, counts) == [(3, "bad_subject_id"), (4, "bad_subject_id")]


@pytest.mark.parametrize("cut", [slice(None, -10), slice(4, None), slice(None, 20), slice(0, 0)])
def test_a_damaged_parquet_is_one_line(tmp_path: Path, cut: slice) -> None:
    pl.DataFrame({"pid": ["1"], "at": ["2020"]}).write_parquet(tmp_path / "whole.parquet")
    (tmp_path / "t.parquet").write_bytes((tmp_path / "whole.parquet").read_bytes()[cut])
    with pytest.raises(TimeloomError, match=r"table t: .*not readable") as caught:
        convert(tmp_path, source_of(t=PLAIN), "t", tmp_path / "t.parquet")
    assert "\n" not in str(caught.value)


# --- the same table in another form

TYPES: dict[str, list[Any]] = {
    "pid": [
        pa.int64(),
        pa.int32(),
        pa.float64(),
        pa.string(),
        pa.large_string(),
        pa.dictionary(pa.int32(), pa.string()),
    ],
    "at": [pa.timestamp("s"), pa.timestamp("ms"), pa.timestamp("us"), pa.timestamp("ns"), pa.string()],
    "v": [pa.float64(), pa.float32(), pa.string(), pa.large_string(), pa.decimal128(25, 3), pa.int64()],
}
MOMENTS = st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1)).map(lambda at: at.replace(microsecond=0))
NUMBERS = st.integers(-(2**20), 2**20)


@pytest.mark.whole
@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.none() | st.integers(-9, 9), st.none() | MOMENTS, st.none() | NUMBERS), min_size=1, max_size=10
    ),
    st.fixed_dictionaries({name: st.sampled_from(types) for name, types in TYPES.items()}),
    st.sampled_from([1, 3, 1 << 17]),
)
def test_parquet_of_any_types_gives_the_events_of_its_text(
    rows: list[tuple[int | None, datetime | None, int | None]], types: dict[str, pa.DataType], group: int
) -> None:
    rule = {"events": [{"code": "X", "time": "at", "value": "v"}]}

    def column(values: tuple[Any, ...], kind: pa.DataType) -> pa.Array:
        as_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind)
        texts = [None if value is None else str(value) for value in values]
        return pa.array(texts).cast(kind) if as_text else pa.array(values).cast(kind)

    with TemporaryDirectory() as folder:
        work = Path(folder)
        named = dict(zip(("pid", "at", "v"), zip(*rows, strict=True), strict=True))
        table = pa.table({name: column(values, types[name]) for name, values in named.items()})
        pq.write_table(table, work / "t.parquet", row_group_size=group)
        found, counts = convert(work, source_of(t=rule), "t", work / "t.parquet")
        (work / "t.csv").write_text(csv_text(["pid", "at", "v"], rows))
        plain, same = convert(work, source_of(t=rule), "t", work / "t.csv")
    columns = ["row", "subject_id", "time", "code", "numeric_value", "text_value"]
    assert found.select(columns).rows() == plain.select(columns).rows()
    assert [counts[name] for name in ("raw", "events", "quarantined")] == [
        same[name] for name in ("raw", "events", "quarantined")
    ]
