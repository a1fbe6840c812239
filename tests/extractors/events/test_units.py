"""Flags beside numbers, and units that the value says: whose they are does not hang on the rows of the same block."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from extractors.events.values import UNIT_OR_FLAG, parse_values
from extractors.source import Source
from extractors.tables import csv_reader
from tests.support.raw.raw_tables import align_one, aligned_events, convert, csv_text

LABS: dict[str, Any] = {"code": "LAB/{test}", "time": "at", "value": "val", "unit": "unit"}
Row = tuple[float | None, str | None, str | None, str | None]


def read(tmp_path: Path, rows: list[tuple[str, str | None]], **source: Any) -> tuple[list[Row], dict[str, Any]]:
    """Number, text, flag and unit of values beside a unit, and the account."""
    labs = [(number, "GLU", "2021-03-04 05:06:07", value, unit) for number, (value, unit) in enumerate(rows)]
    tmp_path.mkdir(parents=True, exist_ok=True)
    (tmp_path / "labs.csv").write_text(csv_text(["pid", "test", "at", "val", "unit"], labs), encoding="utf-8")
    keys = {"name": "test", "subject": "pid", "tables": {"labs": {"events": [LABS]}}} | source
    events, counts = convert(tmp_path, Source.model_validate(keys), "labs", tmp_path / "labs.csv")
    return events.select("numeric_value", "text_value", "value_flag", "unit").rows(), counts


def numbers(rows: list[Row]) -> list[float | None]:
    return [row[0] for row in rows]


# How each flag may stand beside 17.5, and what it is.
BESIDE = [
    "17.5 H", "17.5H", "17.5 (H)", "17.5 [HH]", "H 17.5", "(H) 17.5", "*17.5", "17.5*", "17.5 **", "17.5 LL",
    "17.5 L", "L 17.5", "17.5 l", "17.5 h", "17.5 hh", "17.5 A", "A 17.5", "17.5 (a)", "17.5 N", "17.5 C",
    "17.5 crit", "CRIT 17.5", "17.5 high", "Low 17.5", "17.5 *H", "17.5 H*", "17.5 g/dL H", "17.5 H g/dL",
    "17.5 (L) g/dL", "*17.5 g/dL", "17.5 ↑",
]  # fmt: skip


@pytest.mark.parametrize("text", BESIDE)
def test_beside_a_unit_of_the_row_a_flag_is_a_flag(tmp_path: Path, text: str) -> None:
    found, counts = read(tmp_path, [(text, "g/dL")])
    assert found == [(17.5, text, "flag", "g/dL")]
    assert counts["partial"] == {} and counts["values"]["val"] == {"present": 1, "numbers": 1, "empty": 0}


def test_a_rate_of_the_letter_is_measured_in_it(tmp_path: Path) -> None:
    found, _ = read(tmp_path, [("2 L", "L/min"), ("45 L", "mL/min/1.73m2"), ("12 h", "hours"), ("45 C", "mg/dL")])
    assert [row[2] for row in found] == ["unit", "flag", "unit", "flag"]


def test_a_unit_may_be_padded_with_zero_bytes(tmp_path: Path) -> None:
    found, _ = read(tmp_path, [("5", "mg\0\0"), ("8.1 L", None)])
    assert [row[3] for row in found] == ["mg\0\0", "L"]


def test_a_bound_and_a_range_keep_their_own_flag(tmp_path: Path) -> None:
    found, _ = read(tmp_path, [("<5 L", "g/dL"), (">= 20 H", "g/dL"), ("4-6 L", "g/dL")])
    assert found == [(5, "<5 L", "<", "g/dL"), (20, ">= 20 H", ">=", "g/dL"), (5, "4-6 L", "range", "g/dL")]


@pytest.mark.parametrize("text", ["A1", "3A", "H", "high", "B 17", "17 K", "N1", "H17b", "17 pH", "12 HHH", "L L 3"])
def test_what_is_no_flag_stays_a_text(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, [(text, "g/dL")])[0] == [(None, text, None, "g/dL")]


def test_a_letter_before_a_number_without_a_unit_is_a_stage_rather_than_a_flag(tmp_path: Path) -> None:
    assert read(tmp_path, [("N 1", None)])[0] == [(None, "N 1", None, None)]


LITRES = [("2.5 L", None), ("1.25 L", None), ("3", None)]


def test_a_letter_alone_is_a_unit_and_counted_as_doubtful(tmp_path: Path) -> None:
    found, counts = read(tmp_path, LITRES)
    assert found == [(2.5, "2.5 L", "unit", "L"), (1.25, "1.25 L", "unit", "L"), (3, None, None, None)]
    assert counts["partial"] == {"unit_or_flag": 2}
    renamed, _ = read(tmp_path, LITRES, units={"L": "litre"})
    assert [row[3] for row in renamed] == ["litre", "litre", None]


@pytest.mark.parametrize("other", ["9.5 H", "*9.5", "9.5 (HH)", "9.5 LL"])
def test_where_the_column_shows_other_flags_the_letter_is_one(tmp_path: Path, other: str) -> None:
    rows = [*LITRES, (other, None)]
    expected = [
        (2.5, "2.5 L", "flag", None),
        (1.25, "1.25 L", "flag", None),
        (3, None, None, None),
        (9.5, other, "flag", None),
    ]
    for number, order in enumerate((rows, rows[::-1])):
        found, counts = read(tmp_path / str(number), order)
        assert sorted(found, key=str) == sorted(expected, key=str)
        assert counts["partial"] == {}


def test_hours_are_hours_where_flags_are_capitals(tmp_path: Path) -> None:
    found, counts = read(tmp_path, [("5 h", None), ("17.5 H", None), ("5 L", None)])
    assert [row[2:] for row in found] == [("unit", "h"), ("flag", None), ("flag", None)]
    assert counts["partial"] == {"unit_or_flag": 1}


@pytest.mark.parametrize(("flags", "expected"), [(True, ("flag", None)), (False, ("unit", "L"))])
def test_a_site_says_what_letters_are(tmp_path: Path, flags: bool, expected: tuple[str, str | None]) -> None:
    reading = {"tables": {"labs": {"columns": {"val": {"flags": flags}}}}}
    found, counts = read(tmp_path, [("2.5 L", None), ("17.5 H", None)], reading=reading)
    assert found[0] == (2.5, "2.5 L", *expected) and counts["partial"] == {}
    assert found[1] == ((17.5, "17.5 H", "flag", None) if flags else (None, "17.5 H", None, None))


def test_the_mean_is_that_of_all_numbers(tmp_path: Path) -> None:
    values = [f"{8 + number / 2} {'L' if number < 6 else 'H'}" for number in range(20)]
    found, _ = read(tmp_path, [(value, "g/dL") for value in values])
    known = [number for number in numbers(found) if number is not None]
    assert len(known) == 20 and sum(known) / 20 == 12.75
    assert {row[3] for row in found} == {"g/dL"}


# --- another unit than the row's


@pytest.mark.whole
@pytest.mark.parametrize(
    ("text", "unit", "differs"),
    [
        ("5 mg/L", "g/L", True), ("5 mg/L", "mg/l", False), ("5 mg/L", "mg / L", False), ("5 mcg", "ug", False),
        ("5 µg", "μg", False), ("5 IU/L", "U/L", False), ("5 units", "U", False), ("5 mg", "mg/dL", False),
        ("5 sec", "s", False), ("5 °C", "C", False), ("5 C", "°C", False), ("37 C", "°F", True), ("2.5 L", "mL", True),
        ("2.5 L", "L", False), ("<5 mmol/L", "mg/dL", True), ("1-3 g", "mg", True), ("50 %", "g/L", True),
        ("2 L", "L/min", False), ("45 L", "mL/min/1.73m2", False), ("5 mg", "N/A", False),
        ("5 x10^9/L", "10*9/L", False), ("5 h", "min", True), ("5 hrs", "hours", False), ("4.5 g/dL H", "g/L", True),
    ],
)  # fmt: skip
def test_a_unit_in_the_value_that_is_not_the_rows_is_a_conflict(
    tmp_path: Path, text: str, unit: str, differs: bool
) -> None:
    found, counts = read(tmp_path, [(text, unit), ("7", unit)])
    assert found[0][0] is not None and [row[3] for row in found] == [unit, unit]
    events, conflicts = aligned(tmp_path, counts)
    assert sorted(events.select("numeric_value", "text_value", "value_flag", "unit").rows(), key=str) == sorted(
        found, key=str
    )
    assert conflicts == int(differs)
    assert events["conflict"].drop_nulls().to_list() == ["unit_differs"] * differs
    assert events.filter(pl.col("conflict").is_not_null())["text_value"].to_list() == [text] * differs


def test_letters_are_settled_when_buckets_are_aligned(tmp_path: Path) -> None:
    for name, rows, expected in [("units", LITRES, "unit"), ("flags", [*LITRES, ("9 H", None)], "flag")]:
        found, counts = read(tmp_path / name, rows)
        events, conflicts = aligned(tmp_path / name, counts)
        assert sorted(events.select("numeric_value", "text_value", "value_flag", "unit").rows(), key=str) == sorted(
            found, key=str
        )
        assert set(events["value_flag"].drop_nulls()) == {expected} and conflicts == 0


def aligned(work: Path, counts: dict[str, Any]) -> tuple[pl.DataFrame, int]:
    """Both buckets' events, and how many units differ."""
    results = [align_one(work, {counts["segment"]: counts}, bucket) for bucket in range(2)]
    events = pl.concat([aligned_events(work, bucket) for bucket in range(2)])
    return events, sum(result.counts["conflicts"]["unit_differs"] for result in results)


# --- blocks


def test_what_a_row_becomes_does_not_hang_on_its_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[tuple[str, str | None]] = [("2.5 L", None)] * 40 + [("17.5 H", None), ("A 3", "g"), ("A 3", None)] * 20
    whole = read(tmp_path / "whole", rows)
    monkeypatch.setattr(csv_reader, "CHUNK_BYTES", 64)
    assert read(tmp_path / "small", rows)[0] == whole[0]


def test_a_letter_by_itself_is_left_open() -> None:
    assert parse_values(pl.Series(["8.1 L"]))["flag"].to_list() == [UNIT_OR_FLAG]
