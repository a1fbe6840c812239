"""The model of a source: codes from templates, conditions and derived columns in SQL, and what broken YAML is told."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extractors.events.convert import code_expression
from extractors.source import SOURCES, Source, load_source, template_columns
from tests.support.raw.raw_tables import convert, convert_text, csv_text, source_of
from warehouse.errors import TimeloomError

MAPPING = "{name: s, subject: pid, tables: {t: {events: [{code: X, time: at}]}}}"


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


TEXT = st.none() | st.text("aZ .é/{", max_size=4)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=15))
def test_a_template_is_its_columns_between_its_texts(rows: list[tuple[str | None, str | None]]) -> None:
    frame = pl.DataFrame(rows, schema={"a": pl.String, "b": pl.String}, orient="row")
    made = frame.select(code_expression("X/{a}:{b:upper|NONE}")).to_series().to_list()
    plain = [f"X/{a}:{(b or '').strip().upper() or 'NONE'}" if a else None for a, b in rows]
    assert made == plain


def test_two_codes_of_one_row_that_are_equal_stay_two_events(tmp_path: Path) -> None:
    rule = table(event("{a}", time="at"), event("{b}", time="at"))
    found, counts = convert_text(tmp_path, rule, "pid,at,a,b\n1,2020-01-01,X,X\n1,2020-01-01,X,Y\n")
    assert found.select("row", "rule", "code").rows() == [(1, 0, "X"), (1, 1, "X"), (2, 0, "X"), (2, 1, "Y")]
    assert (counts["events"], counts["emitted"]) == (2, 4)


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


def test_a_derived_column_may_use_an_earlier_one_and_not_a_later_one(tmp_path: Path) -> None:
    derive = {"low": "LOWER(name)", "both": "low || '-' || name"}
    text = "pid,at,name\n1,2020-01-01,AB\n"
    found, _ = convert_text(tmp_path, table(event("{both}", time="at"), derive=derive), text)
    assert found["code"].to_list() == ["ab-AB"]
    backwards = dict(reversed(derive.items()))
    with pytest.raises(TimeloomError, match="lacks the column low"):
        convert_text(tmp_path, table(event("{both}", time="at"), derive=backwards), text)


def test_optional_columns_are_null_where_the_export_lacks_them(tmp_path: Path) -> None:
    rule = table(event("X/{new|OLD}", time="at"), optional_columns=["new"])
    assert convert_text(tmp_path, rule, "pid,at\n1,2020-01-01\n")[0]["code"].to_list() == ["X/OLD"]
    assert convert_text(tmp_path, rule, "pid,at,new\n1,2020-01-01,N\n")[0]["code"].to_list() == ["X/N"]
    with pytest.raises(TimeloomError, match="lacks the column new"):
        convert_text(tmp_path, rule | {"optional_columns": []}, "pid,at\n1,2020-01-01\n")


def test_names_in_another_case_are_taken_where_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "Raw").mkdir()
    (tmp_path / "Raw" / "T.CSV").write_text("PID,At,Code\n1,2020-01-01,aB\n")
    plain = source_of(t=table(event("X/{code}", time="at")))
    folded = plain.model_copy(update={"case_insensitive": True})
    found, _ = convert(tmp_path, folded, "t", tmp_path / "Raw" / "T.CSV")
    assert found["code"].to_list() == ["X/aB"]
    with pytest.raises(TimeloomError, match="lacks the column"):
        convert(tmp_path, plain, "t", tmp_path / "Raw" / "T.CSV")


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
        (MAPPING.replace("{events:", "{derive: {a: 'b +'}, events:"), "is no SQL expression"),
        (MAPPING.replace("{events:", "{joins: [{table: away, key: a, columns: {}}], events:"), "unknown table away"),
        (MAPPING.replace("{events: [{code: X, time: at}]}", "{}"), "needs at least one event"),
        (MAPPING.replace("name: s", "name: s, time_zone: Mars"), "there is no time zone Mars"),
        (MAPPING.replace("name: s", "name: s, codes: [{code: X, table: away}]"), "codes names the unknown table away"),
        (
            MAPPING.replace(
                "name: s", "name: s, codes: [{code: X, table: t, joins: [{table: c, key: a, columns: {}}]}]"
            ),
            "codes names the unknown table c",
        ),
        (MAPPING.replace("name: s", "name: s, codes: [{code: X, table: t, parents: 'Y/{'}]"), "placeholder"),
        (MAPPING.replace("time: at", "time: at, available: {column: a, otherwise: never}"), r"available\.otherwise"),
        (MAPPING.replace("time:", "tiem:"), r"the key tables\.t\.events\.0\.tiem is unknown, did you mean time\?"),
        (MAPPING.replace("time: at", "time: {colunm: at}"), r"did you mean column\?"),
        (MAPPING.replace("{events:", "{joins: [{tabel: t, key: a, columns: {}}], events:"), r"did you mean table\?"),
        (MAPPING.replace("name: s", "name: s, reading: {decimals: ','}"), r"did you mean decimal\?"),
        (MAPPING.replace("name: s", "name: s, xxxxxx: 1"), "the key xxxxxx is unknown, known keys are name, "),
        ("[1, 2", r"line 2, column 1: did not find .*, while parsing a flow sequence of line 1;"),
        ("name: s\ntables:\n\tlabs: {}\n", r"is no YAML: line 3, column 1: found character "),
        ("name: s\n  subject: pid\n", r"is no YAML: line 2, column 10: mapping values are not allowed"),
        ("name: s\nsubject: pid\nname: t\n", r"is no YAML: line 3, column 1: the key name stands twice"),
        ("name: s\nsubject: 'pid\n", r"is no YAML: line 3, column 1: found unexpected end of stream"),
        ("name: !site s\n", r"is no YAML: line 1, column 7: could not determine a constructor"),
        ("name: s\nsubject: \x01pid\n", r"is no YAML: line 2"),
        ("", "source"),
    ],
)  # fmt: skip
def test_a_broken_mapping_is_one_line(tmp_path: Path, broken: str, says: str) -> None:
    (tmp_path / "mine.yaml").write_text(broken)
    with pytest.raises(TimeloomError, match=says) as caught:
        load_source("mine.yaml", tmp_path)
    assert "\n" not in str(caught.value)


def test_the_mapping_that_they_break_loads(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(MAPPING)
    assert load_source("mine.yaml", tmp_path).needed_columns("t") == {"pid", "at"}


def test_an_unknown_source_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(TimeloomError, match=r"there is no source nowhere; .*mimic-iv"):
        load_source("nowhere", tmp_path)


def test_the_columns_a_table_needs_are_its_own_and_those_of_joins_and_descriptions() -> None:
    join = {"table": "stays", "key": {"stay": "stay_id"}, "columns": {"closed": "max(end)"}}
    source = Source.model_validate(
        {
            "name": "test",
            "subject": "pid",
            "tables": {
                "t": table(event("DX/{code}", time="closed", available="known"), joins=[join], visit="stay"),
                "stays": table(event(time="opened"), optional_columns=["ward"]),
                "items": {"role": "reference"},
            },
            "crosswalks": {"loinc": {"columns": ["code", "loinc"]}},
            "codes": [
                {"code": "DX/{id}", "table": "items", "where": "kind = 'dx'", "description": "{label}"},
                {"code": "W/{ward}", "table": "stays", "parents": ["W/{site}"]},
            ],
        }
    )
    assert source.needed_columns("t") == {"pid", "stay", "code", "known"}
    assert source.needed_columns("stays") == {"pid", "opened", "stay_id", "end", "site"}
    assert source.needed_columns("items") == {"id", "kind", "label"}
    assert source.needed_columns("crosswalk/loinc") == {"code", "loinc"}
    assert template_columns("X/{a}-{b:icd|NONE}/{a}") == ["a", "b", "a"]
