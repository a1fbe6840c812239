"""Values as laboratories write them: numbers equal the source's as float32, and no part of a text is lost."""

from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extractors.events.values import READ_AS, parse_values
from extractors.source import Source
from tests.support.raw.raw_tables import convert, convert_text, csv_text, source_of


def event(**keys: Any) -> dict[str, Any]:
    return {"events": [{"code": "X", "time": "at", **keys}]}


def read(*values: str | None) -> list[tuple[float | None, str | None, str | None, str | None]]:
    """Number, flag, text and unit of each value."""
    found = parse_values(pl.Series(values, dtype=pl.String))
    return found.select("number", "flag", "text", "unit").rows()


def single(text: str) -> float:
    return float(np.float32(float(text)))


def test_numbers_become_float32_and_all_else_stays_text(tmp_path: Path) -> None:
    numbers = ["1", "-0.1", "3.14159265", "1e-30", "16777217", " 5 ", "+2", ".5", "5.", "1E5", "007"]
    others = ["111/65", "inf", "-inf", "nan", "NaN", "Infinity", "1e39", "-1e39", "1,5", "POSITIVE", "___", "1 2", "٣"]
    rows = [(1, "2020-01-01", value) for value in [*numbers, *others, None]]
    found, counts = convert_text(tmp_path, event(value="v"), csv_text(["pid", "at", "v"], rows))
    assert found["numeric_value"].to_list()[: len(numbers)] == [single(value) for value in numbers]
    assert found["numeric_value"].null_count() == len(others)
    assert found["text_value"].to_list() == [None] * len(numbers) + others
    assert found["value_flag"].null_count() == len(rows) - 1
    assert (counts["events"], counts["quarantined"]) == (len(rows) - 1, {"empty_value": 1})
    assert counts["values"] == {"v": {"present": len(rows) - 1, "numbers": len(numbers), "empty": 1}}


def test_minus_nought_is_nought(tmp_path: Path) -> None:
    rows = [(1, "2020-01-01", value) for value in ("-0", "0", "-0.0")]
    found, _ = convert_text(tmp_path, event(value="v"), csv_text(["pid", "at", "v"], rows))
    assert [str(value) for value in found["numeric_value"]] == ["0.0"] * 3


DECIMALS = st.one_of(
    st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**30), max_value=10**30, places=None).map(str),
    st.decimals(min_value=-1000, max_value=1000, places=3).map(str),
    st.integers(-(2**70), 2**70).map(str),
    st.floats(allow_nan=False, allow_infinity=False, width=32).map(repr),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    # Half-way between two float32 numbers, where rounding twice may give the wrong one.
    st.integers(2**24, 2**26).map(lambda number: f"{Decimal(number) + Decimal('0.5')}"),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(DECIMALS, min_size=1, max_size=20))
def test_a_number_is_float32_of_what_stands_there(texts: list[str]) -> None:
    with np.errstate(over="ignore"):
        expected = [single(text) for text in texts]
    for text, plain, (number, flag, kept, unit) in zip(texts, expected, read(*texts), strict=True):
        if np.isfinite(plain):
            assert (number, flag, kept, unit) == (plain, None, None, None)
        else:
            assert (number, flag, kept, unit) == (None, None, text, None)


NUMBERS = st.decimals(min_value=0, max_value=10**6, places=2).map(lambda number: str(number))
SIGNS = {"<": "<", ">": ">", "<=": "<=", ">=": ">=", "=<": "<=", "=>": ">=", "≤": "<=", "≥": ">="}
UNITS = ["mg/dL", "mmol/L", "%", "mL/min/1.73 m2", "IU/L", "10*3/uL", "mmHg", "g", "°C", "ng/mL"]


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(sorted(SIGNS)), NUMBERS, st.sampled_from(["", " "]), st.sampled_from(["", *UNITS]))
def test_a_comparator_is_flagged_and_its_number_kept(sign: str, number: str, blank: str, unit: str) -> None:
    text = f"{sign}{blank}{number}{' ' + unit if unit else ''}"
    assert read(text)[0][:3] == (single(number), SIGNS[sign], text)


@settings(max_examples=80, deadline=None)
@given(NUMBERS, NUMBERS, st.sampled_from(["-", " - ", "–", " to "]), st.sampled_from(["", *UNITS]))
def test_a_range_stands_for_its_middle(first: str, second: str, dash: str, unit: str) -> None:
    low, high = sorted((first, second), key=float)
    text = f"{low}{dash}{high}{' ' + unit if unit else ''}"
    assert read(text)[0][:3] == (float(np.float32((float(low) + float(high)) / 2)), "range", text)


@settings(max_examples=80, deadline=None)
@given(NUMBERS, st.sampled_from(UNITS), st.sampled_from(["", " "]), st.sampled_from(["", "-", "+"]))
def test_a_number_with_its_unit_gives_both(number: str, unit: str, blank: str, sign: str) -> None:
    text = f"{sign}{number}{blank}{unit}"
    assert read(text) == [(single(sign + number), "unit", text, unit)]


@pytest.mark.parametrize(
    "text",
    [
        "111/65", "5 apples", "mg", "5-", "-", "<", "< ", "<x", "10-5", "5.0.1", "5 mg mg", "1e", "<5>", "<<5", "12:30",
        "2020-01-01", "3+", "1:40", "A1", "5 %x", "#5", "$5", "approx 5", "5-10-15", "<5-10", "b5 mg/L",
    ],
)  # fmt: skip
def test_what_is_no_value_stays_a_text(text: str) -> None:
    assert read(text) == [(None, None, text.strip(), None)]


@pytest.mark.whole
@settings(max_examples=150, deadline=None)
@given(st.lists(st.none() | st.text("0123456789.-+<>=eE/% mgL\u2264HAN*()", max_size=8), max_size=12))
def test_nothing_that_stood_there_is_lost(texts: list[str | None]) -> None:
    for text, (number, flag, kept, unit) in zip(texts, read(*texts), strict=True):
        plain = text and text.strip()
        if not plain:
            assert (number, flag, kept, unit) == (None, None, None, None)
        elif kept is None:
            assert (number, flag, unit) == (single(plain), None, None)
        else:
            assert kept == plain
            assert (flag is None) == (number is None)
            assert flag is None or flag in READ_AS
            assert unit is not None if flag in ("unit", "unit or flag") else flag is not None or unit is None
        # The result of a value does not depend on the other values in its block.
        assert read(text) == [(number, flag, kept, unit)]


# --- with a text column and a unit column


def converted(tmp_path: Path, rows: list[tuple[str | None, ...]], **units: str | None) -> list[tuple[Any, ...]]:
    (tmp_path / "t.csv").write_text(
        csv_text(["pid", "at", "v", "note", "u"], [(1, "2020-01-01", *row) for row in rows])
    )
    source: Source = source_of(t=event(value="v", text="note", unit="u", keep_empty=True)).model_copy(
        update={"units": units}
    )
    found, _ = convert(tmp_path, source, "t", tmp_path / "t.csv")
    return found.select("numeric_value", "text_value", "value_flag", "unit").rows()


def test_a_value_and_a_text_are_both_kept(tmp_path: Path) -> None:
    rows: list[tuple[str | None, ...]] = [
        ("5", "fine", None), ("5", None, None), ("<5", "fine", None), ("POS", "POS", None), ("___", "see note", None),
        (None, "note", None), ("  ", "  ", None), ("POS", None, None),
    ]  # fmt: skip
    assert [row[:3] for row in converted(tmp_path, rows)] == [
        (5.0, "fine", None), (5.0, None, None), (5.0, "<5; fine", "<"), (None, "POS", None),
        (None, "___; see note", None), (None, "note", None), (None, None, None), (None, "POS", None),
    ]  # fmt: skip


def test_the_units_column_says_more_than_the_value_and_spellings_are_made_one(tmp_path: Path) -> None:
    rows: list[tuple[str | None, ...]] = [
        ("5", None, "MG/DL"), ("5", None, " mg/dL "), ("5", None, "N/A"), ("5", None, None), ("5 mmol/L", None, None),
        ("5 mmol/L", None, "MG/DL"), ("<5 mmol/L", None, None), ("5 MG/DL", None, None),
    ]  # fmt: skip
    found = converted(tmp_path, rows, **{"MG/DL": "mg/dL", "N/A": None})
    assert [row[3] for row in found] == ["mg/dL", "mg/dL", None, None, "mmol/L", "mg/dL", "mmol/L", None]
    assert found[-1] == (None, "5 MG/DL", None, None)
    plain = converted(tmp_path, rows)
    assert [row[3] for row in plain][:3] == ["MG/DL", "mg/dL", "N/A"]
