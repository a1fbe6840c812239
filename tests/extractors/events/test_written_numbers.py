"""Numbers as the world writes them: a site says which sign divides, and no other reading is taken in silence."""

from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extractors.events.values import Writing, parse_values
from extractors.source import Source, load_source
from flows.runs.convert import convert as convert_sources
from flows.runs.settings import RunSettings
from tests.support.raw.raw_tables import convert, csv_text
from warehouse.layout import ReleaseLayout

GERMAN, SWISS, FRENCH, AMERICAN = Writing(",", "."), Writing(".", "'"), Writing(",", " "), Writing(".", ",")


def numbers(writing: Writing, *values: str) -> list[float | None]:
    return parse_values(pl.Series(values, dtype=pl.String), writing)["number"].to_list()


@pytest.mark.parametrize(
    ("writing", "text", "number"),
    [
        (GERMAN, "14,3", 14.3), (GERMAN, "12.500", 12500), (GERMAN, "1.234.567,5", 1234567.5), (GERMAN, "-0,25", -0.25),
        (GERMAN, "<5,5", 5.5), (GERMAN, "2,5-3,5", 3), (GERMAN, "1.250 mg/L", 1250), (GERMAN, "14,3 H", 14.3),
        (GERMAN, "25000", 25000), (GERMAN, "5.25", 5.25), (GERMAN, "0.500", 0.5), (GERMAN, "1e3", 1000),
        (GERMAN, "1,2,3", None), (GERMAN, "1.23.456", None), (GERMAN, "12,500,5", None),
        (Writing(","), "14,3", 14.3), (Writing(","), "12.500", None), (Writing(","), "-1.250", None),
        (Writing(","), "12.5", 12.5), (Writing(","), "1234.500", 1234.5),
        (AMERICAN, "25,000", 25000), (AMERICAN, "1,234.5", 1234.5), (AMERICAN, "> 1,000", 1000),
        (AMERICAN, "14,3", None), (AMERICAN, "1,0000", None), (AMERICAN, "12.500", 12.5),
        (AMERICAN, "1,000-2,000 units", 1500),
        (SWISS, "1'234.5", 1234.5), (SWISS, "1’234", 1234), (SWISS, "12'34", None),
        (FRENCH, "1 234,5", 1234.5), (FRENCH, "1\N{NO-BREAK SPACE}234", 1234),
        (FRENCH, "12\N{NARROW NO-BREAK SPACE}500 mg", 12500), (FRENCH, "1 2", None),
        (Writing(), "14,3", None), (Writing(), "25,000", None), (Writing(), "\N{MINUS SIGN}3.5", -3.5),
    ],
)  # fmt: skip
def test_a_number_is_read_as_the_site_writes_it(writing: Writing, text: str, number: float | None) -> None:
    expected = None if number is None else float(np.float32(number))
    assert numbers(writing, text) == [expected]
    assert numbers(writing, f"  {text} ") == [expected]


@settings(max_examples=60, deadline=None)
@given(st.decimals(min_value=-(10**8), max_value=10**8, places=2), st.sampled_from([GERMAN, SWISS, FRENCH, AMERICAN]))
def test_what_python_groups_is_read_back(number: Decimal, writing: Writing) -> None:
    signs = str.maketrans({",": writing.thousands, ".": writing.decimal})
    assert numbers(writing, f"{number:,.2f}".translate(signs)) == [float(np.float32(float(number))) or 0.0]


def test_a_plain_number_leaves_no_text() -> None:
    parsed = parse_values(pl.Series(["14,3", "12.500", "x"]), GERMAN)
    assert parsed["text"].to_list() == [None, None, "x"] and parsed["flag"].null_count() == 3


RULE: dict[str, Any] = {"code": "X", "time": "at", "value": "val"}


def read(work: Path, reading: dict[str, Any], rule: dict[str, Any] = RULE, **table: Any) -> list[float | None]:
    """Numbers of three rows, in two columns."""
    work.mkdir(parents=True, exist_ok=True)
    rows = [(1, "2021-02-03", "14,3", "1.5"), (1, "2021-02-04", "12.500", "2.5"), (1, "2021-02-05", "7", "3.5")]
    (work / "t.csv").write_text(csv_text(["pid", "at", "val", "other"], rows))
    source = Source.model_validate(
        {"name": "s", "subject": "pid", "tables": {"t": {"events": [rule], **table}}, "reading": reading}
    )
    return convert(work, source, "t", work / "t.csv")[0]["numeric_value"].to_list()


COMMA = {"decimal": ",", "thousands": "."}


@pytest.mark.parametrize(
    "reading", [COMMA, {"tables": {"t": COMMA}}, {"tables": {"t": {"columns": {"val": COMMA}}}}, {"thousands": "."}]
)
def test_the_key_stands_for_a_source_a_table_or_a_column(tmp_path: Path, reading: dict[str, Any]) -> None:
    assert read(tmp_path, {}) == [None, 12.5, 7]
    assert read(tmp_path, reading) == [float(np.float32(14.3)), 12500, 7]


def test_a_key_of_another_column_changes_nothing(tmp_path: Path) -> None:
    assert read(tmp_path, {"tables": {"t": {"columns": {"other": COMMA}}}}) == [None, 12.5, 7]


def test_a_derived_value_is_written_as_what_it_comes_from(tmp_path: Path) -> None:
    keys = {"rule": {**RULE, "value": "made"}, "derive": {"made": "COALESCE(val, other)"}}
    reading = {"tables": {"t": {"columns": {"val": COMMA}}}}
    assert read(tmp_path, reading, **keys) == [float(np.float32(14.3)), 12500, 7]


@pytest.mark.parametrize("derive", [{}, {"made": "COALESCE(value_as_number, other)"}])
def test_a_column_of_values_is_no_id_whatever_it_is_called(tmp_path: Path, derive: dict[str, str]) -> None:
    rows = [(1, "2021-02-03", "1.000", ""), (1, "2021-02-04", "25.000", ""), (1, "2021-02-05", "1,50", "")]
    (tmp_path / "t.csv").write_text(csv_text(["pid", "at", "value_as_number", "other"], rows))
    rule = RULE | {"value": "made" if derive else "value_as_number"}
    source = Source.model_validate(
        {"name": "s", "subject": "pid", "tables": {"t": {"events": [rule], "derive": derive}}, "reading": COMMA}
    )
    assert convert(tmp_path, source, "t", tmp_path / "t.csv")[0]["numeric_value"].to_list() == [1000, 25000, 1.5]


@pytest.mark.parametrize("kind", ["parquet", "duckdb"])
def test_numbers_with_a_type_are_what_they_are(tmp_path: Path, kind: str) -> None:
    values = [14.5, 12.125, 7.0, None]
    frame = pl.DataFrame({"pid": [1] * 4, "at": ["2021-02-03"] * 4, "val": values, "text": ["1,5", "2.000", "3", None]})
    if kind == "parquet":
        path = tmp_path / "t.parquet"
        frame.write_parquet(path)
    else:
        duckdb = pytest.importorskip("duckdb")
        path = tmp_path / "export.duckdb"
        with duckdb.connect(str(path)) as connection:
            connection.register("frame", frame.to_arrow())
            connection.execute("CREATE TABLE t AS SELECT * FROM frame")
    rules = [RULE, {**RULE, "value": "text"}]
    source = Source.model_validate(
        {"name": "s", "subject": "pid", "tables": {"t": {"events": rules}}, "reading": COMMA}
    )
    folder = path if kind == "duckdb" else tmp_path
    found, _ = convert(tmp_path, source, "t", path, folder=folder)
    assert found.filter(pl.col("rule") == 0)["numeric_value"].to_list() == [14.5, 12.125, 7]
    assert found.filter(pl.col("rule") == 1)["numeric_value"].to_list() == [1.5, 2000, 3]


def test_heparins_dose_is_read_by_the_key_of_the_mapping() -> None:
    source = load_source("mimic-iv")
    reading = source.reading_of("hosp/prescriptions").of_column("dose_val_rx")
    assert numbers(Writing(reading.decimal_sign, reading.thousands), "25,000", "1.5") == [25000, 1.5]


# --- empty cells

VITALS = "pid,at,pulse,weight,note\n1,2021-02-03,60,,\n1,2021-02-04,,80,\n1,2021-02-05,,,\n1,2021-02-06, ,,text\n"


def vitals(work: Path, *events: dict[str, Any]) -> tuple[list[tuple[Any, ...]], dict[str, Any]]:
    (work / "t.csv").write_text(VITALS)
    source = Source.model_validate({"name": "s", "subject": "pid", "tables": {"t": {"events": list(events)}}})
    found, counts = convert(work, source, "t", work / "t.csv")
    return found.select("row", "code", "numeric_value", "text_value").rows(), counts


def test_empty_cells_make_no_event_and_are_counted(tmp_path: Path) -> None:
    pulse, weight = ({"code": name.upper(), "time": "at", "value": name} for name in ("pulse", "weight"))
    found, counts = vitals(tmp_path, pulse, weight)
    assert found == [(1, "PULSE", 60, None), (2, "WEIGHT", 80, None)]
    assert (counts["raw"], counts["events"], counts["quarantined"]) == (4, 2, {"empty_value": 2})
    assert {name: seen["empty"] for name, seen in counts["values"].items()} == {"pulse": 3, "weight": 3}
    assert counts["emitted"] == 2


def test_a_text_beside_an_empty_value_is_an_event_and_keep_empty_keeps_the_rest(tmp_path: Path) -> None:
    pulse = {"code": "P", "time": "at", "value": "pulse", "text": "note"}
    assert [row[0] for row in vitals(tmp_path, pulse)[0]] == [1, 4]
    found, counts = vitals(tmp_path, {**pulse, "keep_empty": True})
    assert [row[0] for row in found] == [1, 2, 3, 4] and counts["quarantined"] == {}
    assert counts["values"] == {"pulse": {"present": 1, "numbers": 1, "empty": 0}}


def test_keep_empty_without_a_value_is_refused() -> None:
    with pytest.raises(ValueError, match="keep_empty asks for a value"):
        Source.model_validate(
            {"name": "s", "subject": "p", "tables": {"t": {"events": [{"code": "X", "keep_empty": True}]}}}
        )


def test_beside_a_source_the_configuration_says_how_values_are_written_and_the_ledger_counts_them(
    tmp_path: Path,
) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "t.csv").write_text(VITALS.replace(",60,", ',"60,5",').replace(",80,", ",8.000,"))
    (tmp_path / "source.yaml").write_text(
        "{name: s, subject: pid, tables: {t: {events: [{code: P, time: at, value: pulse}, "
        "{code: W, time: at, value: weight}, {code: N, time: at, value: note}]}}}"
    )
    (tmp_path / "run.yaml").write_text(
        "{name: n, deid: {mode: synthetic, subject_ids: keep, dates: keep}, buckets: 2, "
        "sources: [{source: source.yaml, path: raw, "
        "reading: {decimal: ',', tables: {t: {columns: {weight: {thousands: '.'}}}}}}]}"
    )
    tree = ReleaseLayout(tmp_path / "dataset")
    convert_sources(RunSettings(tmp_path / "run.yaml", workers=1), tree.path)
    events = pl.concat(pl.read_parquet(path) for path in tree.path.glob("data/*.parquet")).sort("time", "code")
    assert events.select("code", "numeric_value", "text_value").rows() == [
        ("P", 60.5, None), ("W", 8000, None), ("N", None, "text"),
    ]  # fmt: skip
    counted = pl.read_parquet(tree.ledger).filter(pl.col("outcome").is_in(["values", "numbers", "empty"]))
    assert {row[:3]: row[3] for row in counted.select("outcome", "reason", "table", "rows").iter_rows()} == {
        ("values", "pulse", "t"): 1, ("numbers", "pulse", "t"): 1, ("empty", "pulse", "t"): 3,
        ("values", "weight", "t"): 1, ("numbers", "weight", "t"): 1, ("empty", "weight", "t"): 3,
        ("values", "note", "t"): 1, ("numbers", "note", "t"): 0, ("empty", "note", "t"): 3,
    }  # fmt: skip
