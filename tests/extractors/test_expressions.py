"""SQL of a source: what works, what is refused when the YAML is read, and what a row that it cannot take becomes."""

import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from extractors.expressions import expression
from extractors.source import load_source
from tests.support.raw.raw_tables import convert_text, csv_text, quarantine_of
from warehouse.errors import TimeloomError

AT, BACK = "2024-02-29 22:30:00", "2024-03-01 01:15:00"
ROW = {"name": " Ab-c.d ", "number": "12", "amount": "-7.5", "at": AT, "back": BACK, "none": None, "day": "29.02.2024"}
STAMP = "STRPTIME(at, '%Y-%m-%d %H:%M:%S')"
BACK_STAMP = "STRPTIME(back, '%Y-%m-%d %H:%M:%S')"
# What docs/sources.md lists, each function with a value that is worked out by hand.
WORKS = {
    "CASE WHEN number = '12' THEN 'dozen' ELSE name END": "dozen",
    "CASE number WHEN '12' THEN 'dozen' END": "dozen",
    "IF(number = '12', 'dozen', name)": "dozen",
    "COALESCE(none, number)": "12",
    "IFNULL(none, number)": "12",
    "NULLIF(number, '12')": None,
    "GREATEST('12', '7')": "7",
    "LEAST('12', '7')": "12",
    "number IN ('11', '12')": "true",
    "number BETWEEN '11' AND '13'": "true",
    "none IS NULL AND NOT number IS NULL": "true",
    "none IS NOT NULL OR number = '12'": "true",
    "number IS DISTINCT FROM none": "true",
    "name LIKE ' Ab%'": "true",
    "name ILIKE ' aB%'": "true",
    "REGEXP_LIKE(name, '[a-c]-')": "true",
    "STARTS_WITH(number, '1')": "true",
    "ENDS_WITH(number, '1')": "false",
    "UPPER(name)": " AB-C.D ",
    "LOWER(name)": " ab-c.d ",
    "INITCAP(LOWER(name))": " Ab-C.D ",
    "TRIM(name)": "Ab-c.d",
    "LTRIM(name)": "Ab-c.d ",
    "RTRIM(name)": " Ab-c.d",
    "LENGTH(name)": "8",
    "SUBSTR(name, 2, 2)": "Ab",
    "LEFT(name, 3)": " Ab",
    "RIGHT(name, 3)": ".d ",
    "REPLACE(name, '.', '')": " Ab-cd ",
    "REVERSE(number)": "21",
    "LPAD(number, 4, '0')": "0012",
    "RPAD(number, 4, '0')": "1200",
    "SPLIT_PART(name, '-', 2)": "c.d ",
    "STRPOS(name, '-')": "4",
    "number || '/' || amount": "12/-7.5",
    "CONCAT(number, none)": "12",
    "CONCAT_WS('; ', number, none, amount)": "12; -7.5",
    "CAST(number AS BIGINT) + 1": "13",
    "TRY_CAST(name AS DOUBLE)": None,
    "ABS(CAST(amount AS DOUBLE))": "7.5",
    "ROUND(CAST(amount AS DOUBLE))": "-8.0",
    "FLOOR(CAST(amount AS DOUBLE))": "-8.0",
    "CEIL(CAST(amount AS DOUBLE))": "-7.0",
    "SIGN(CAST(amount AS DOUBLE))": "-1.0",
    "MOD(CAST(number AS BIGINT), 5)": "2",
    "DIV(CAST(number AS BIGINT), 5)": "2",
    "POW(CAST(number AS BIGINT), 2)": "144",
    "SQRT(CAST(number AS BIGINT) + 4)": "4.0",
    "LN(CAST(number AS BIGINT) - 11)": "0.0",
    "EXP(CAST(number AS BIGINT) - 12)": "1.0",
    # Times: an end from a start, a span in minutes, parts of a time, another spelling.
    f"{STAMP} + INTERVAL '90 minutes'": "2024-03-01 00:00:00.000000",
    f"{STAMP} - INTERVAL '1 day'": "2024-02-28 22:30:00.000000",
    f"{STAMP} + CAST(number AS BIGINT) * INTERVAL '1 hour'": "2024-03-01 10:30:00.000000",
    f"CAST({BACK_STAMP} - {STAMP} AS BIGINT) / 60000000": "165.0",
    f"EXTRACT(YEAR FROM {STAMP})": "2024",
    f"DATE_PART('hour', {STAMP})": "22",
    f"STRFTIME({STAMP}, '%d.%m.%Y')": "29.02.2024",
    f"CAST({STAMP} AS DATE)": "2024-02-29",
    "DATE(day, '%d.%m.%Y')": "2024-02-29",
    "TIMESTAMP(day || ' 10:00', '%d.%m.%Y %H:%M')": "2024-02-29 10:00:00.000000",
}
PAGE = Path(__file__).parents[2] / "docs" / "sources.md"


@pytest.mark.parametrize("text", WORKS)
def test_what_the_page_lists_works(text: str) -> None:
    frame = pl.DataFrame(ROW, schema=dict.fromkeys(ROW, pl.String))
    assert frame.select(expression(text).made.cast(pl.String).alias("made"))["made"].to_list() == [WORKS[text]]


def test_every_function_that_is_tried_stands_on_the_page_and_the_other_way_round() -> None:
    section = PAGE.read_text(encoding="utf-8").partition("### SQL\n")[2].partition("\n## ")[0]
    listed = {
        word
        for cell in re.findall("`([^`]+)`", section.partition("\n\n```")[0])
        for word in re.findall("[A-Z_]{2,}", cell)
    }
    tried = {word for text in WORKS for word in re.findall(r"\b[A-Z_]{2,}\b", re.sub("'[^']*'|%[A-Z]", "", text))}
    kinds = {"BIGINT", "DOUBLE", "DATE", "YEAR"}
    assert tried - kinds <= listed
    assert listed - kinds <= tried


@pytest.mark.parametrize(
    "text",
    [
        "SUM(CAST(number AS BIGINT))",
        "MAX(name)",
        "COUNT(*)",
        "COUNT(name)",
        "FIRST(name)",
        "ROW_NUMBER() OVER (ORDER BY at)",
        "LAG(at) OVER (PARTITION BY name ORDER BY at)",
        "MIN(at) OVER (PARTITION BY name)",
        "RANK() OVER (ORDER BY at)",
        "STRING_AGG(name, ',')",
        "CASE WHEN MAX(name) = name THEN 'last' END",
        "UPPER(FIRST_VALUE(name) OVER (ORDER BY at))",
        "QUANTILE_CONT(CAST(number AS DOUBLE), 0.5)",
    ],
)
@pytest.mark.parametrize("key", ["derive", "where", "codes"])
def test_what_looks_at_other_rows_is_refused_when_the_yaml_is_read(tmp_path: Path, text: str, key: str) -> None:
    error = refused(tmp_path, key, f"{text} = 'x'" if key != "derive" and "SUM" not in text else text)
    assert "a block at a time" in error


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("number = 12", "does not fit its columns: they are texts"),
        ("number + 1", "does not fit its columns"),
        ("NO_SUCH(number)", "is no SQL expression"),
        ("number = ", "is no SQL expression"),
        ("CAST(at AS TIMESTAMP)", r"write STRPTIME\(column, format\)"),
        ("at::DATE", r"write STRPTIME\(column, format\)"),
        ("DATE(at)", "does not say how"),
        (f"{STAMP} - {BACK_STAMP}", "gives a duration"),
        ("STRING_TO_ARRAY(name, ',')", "gives a list"),
    ],
)
def test_what_does_not_fit_is_refused_when_the_yaml_is_read(tmp_path: Path, text: str, why: str) -> None:
    error = refused(tmp_path, "derive", text)
    assert re.search(why, error), error
    assert "the source own.yaml, tables.t: derive.made: `" in error


@pytest.mark.parametrize("text", ["number", "UPPER(name)", "CAST(number AS BIGINT)"])
def test_a_condition_must_be_true_or_false(tmp_path: Path, text: str) -> None:
    assert "is no condition" in refused(tmp_path, "where", text)


def refused(work: Path, key: str, text: str) -> str:
    """What is said of a source with an expression at one of its keys."""
    event: dict[str, Any] = {"code": "X", "time": "at"}
    table: dict[str, Any] = {"events": [event]}
    source: dict[str, Any] = {"name": "own", "subject": "pid", "tables": {"t": table}}
    if key == "derive":
        table["derive"] = {"made": text}
    elif key == "where":
        event["where"] = text
    else:
        source["codes"] = [{"code": "X", "table": "t", "where": text}]
    (work / "own.yaml").write_text(yaml.safe_dump(source))
    with pytest.raises(TimeloomError) as caught:
        load_source(str(work / "own.yaml"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- rows that an expression cannot take

ROWS = [(1, "10", "a"), (1, "SECRET", "b"), (1, None, "c"), (1, "30", "d")]
DERIVES: dict[str, Any] = {
    "derive": {"more": "CAST(number AS BIGINT) + 1"},
    "events": [
        {"code": "X/{name}", "value": "more", "keep_empty": True},
        {"code": "BIG/{name}", "where": "CAST(number AS BIGINT) > 20"},
    ],
}


def test_a_cast_that_fails_is_a_counted_null(tmp_path: Path) -> None:
    found, counts = convert_text(tmp_path, DERIVES, csv_text(["pid", "number", "name"], ROWS))
    assert found.select("code", "numeric_value").rows() == [
        ("X/a", 11), ("X/b", None), ("X/c", None), ("X/d", 31), ("BIG/d", None),
    ]  # fmt: skip
    assert counts["partial"] == {"failed_cast": 1}
    assert (counts["static"], counts["quarantined"]) == (4, {})


def test_by_a_key_the_row_goes_to_quarantine(tmp_path: Path) -> None:
    rule = DERIVES | {"failed_casts": "quarantine"}
    found, counts = convert_text(tmp_path, rule, csv_text(["pid", "number", "name"], ROWS))
    assert found["code"].to_list() == ["X/a", "X/c", "X/d", "BIG/d"]
    assert counts["quarantined"] == {"failed_cast": 1}
    assert counts["partial"] == {}
    assert quarantine_of(tmp_path, counts) == [(2, "failed_cast")]


def test_a_row_that_makes_nothing_for_a_failed_cast_says_so(tmp_path: Path) -> None:
    rule = {"events": [{"code": "BIG", "where": "CAST(number AS BIGINT) > 5"}]}
    _, counts = convert_text(tmp_path, rule, csv_text(["pid", "number", "name"], ROWS))
    assert counts["quarantined"] == {"failed_cast": 1, "no_rule_applies": 1}


@pytest.mark.parametrize(
    "text",
    [
        "TRY_CAST(number AS BIGINT)",
        "COALESCE(CAST(number AS BIGINT), 0)",
        "CASE WHEN REGEXP_LIKE(number, '^[0-9]+$') THEN CAST(number AS BIGINT) ELSE 0 END",
    ],
)
def test_where_a_failed_cast_leaves_nothing_missing_none_is_counted(tmp_path: Path, text: str) -> None:
    rule = {"derive": {"more": text}, "events": [{"code": "X", "value": "more"}]}
    _, counts = convert_text(tmp_path, rule, csv_text(["pid", "number", "name"], ROWS))
    assert counts["partial"] == {}


@pytest.mark.parametrize("key", ["derive", "where"])
@pytest.mark.parametrize("row", [1, 7, 5000])
def test_a_mistake_names_source_table_key_and_row(tmp_path: Path, key: str, row: int) -> None:
    """A pattern that stands in the rows, one of which is none."""
    pattern = "REGEXP_LIKE('SECRET', name)"
    rule: dict[str, Any] = {"events": [{"code": "Y"}, {"code": "X/{made}"}], "derive": {"made": pattern}}
    if key == "where":
        rule = {"events": [{"code": "Y"}, {"code": "X", "where": pattern}]}
    text = csv_text(["pid", "name"], [(1, "(SECRET" if number == row else f"a{number}") for number in range(1, 5001)])
    with pytest.raises(TimeloomError) as caught:
        convert_text(tmp_path, rule, text)
    place = "derive.made" if key == "derive" else "events.1.where"
    assert str(caught.value).startswith(f"source test, table t: {place} fails at row {row}: `{pattern}`")
    assert "(SECRET" not in str(caught.value)
    assert caught.value.__cause__ is None
