"""Values that are likely read otherwise than meant: found where they are, named where eleven share them, and not where
they are not."""

from pathlib import Path
from typing import Any

import pytest

from extractors.check.explain import explain
from extractors.check.suspicions_yaml import Suspicion
from extractors.reading import Reading
from extractors.tables.export import Export
from tests.support.raw.raw_tables import csv_text, source_of

DAY = "2021-02-03 04:05:06"


def findings(
    work: Path, rows: list[tuple[object, ...]], reading: dict[str, Any] | None = None, **rule: Any
) -> list[Suspicion]:
    """What is found in rows of a subject, a time, a value and a unit."""
    (work / "t.csv").write_text(csv_text(["pid", "at", "val", "unit"], rows), encoding="utf-8")
    event = {"code": "X", "time": "at", "value": "val", **rule}
    source = source_of(t={"events": [event]}).read_as(Reading.model_validate(reading or {}))
    return [found for found in explain(source, Export(work, source)).suspicions if found.check != "value_without_unit"]


def checks(found: list[Suspicion]) -> list[str]:
    return [suspicion.check for suspicion in found]


def of_values(values: list[str], unit: str = "g") -> list[tuple[object, ...]]:
    return [(number, DAY, value, unit) for number, value in enumerate(values)]


@pytest.mark.parametrize(
    ("values", "keys"),
    [
        (["14,3", "13,9", "12", "8,25", "7,1", "0,5"], 'decimal: ","'),
        (["14,3", "12.500", "1.250", "0,5", "7,1", "9,9", "2,2"], 'decimal: ",", thousands: "."'),
        (["25,000", "12.5", "1,000", "5,000", "10,000", "2,500"], 'thousands: ","'),
        (["1 250", "12 500", "900", "1 000", "2 000", "3 500"], 'thousands: " "'),
        (["1 250,5", "12 500", "7,5", "1 000", "2 000", "3 500"], 'decimal: ",", thousands: " "'),
        (["1'250", "12'500.5", "900", "1'000", "2'000", "3'500"], """thousands: "'\""""),
        (["< 5,0", "14,3 H", "2,5 g", "5,0-6,0", "++", "neg", "7,5"], 'decimal: ","'),
    ],
)
def test_numbers_of_another_convention_are_found_with_the_keys(tmp_path: Path, values: list[str], keys: str) -> None:
    found = [finding for finding in findings(tmp_path, of_values(values)) if finding.check.startswith("numbers_")]
    assert len(found) == 1 and f"`{keys}`" in found[0].what
    assert f"tables: {{t: {{columns: {{val: {{{keys}}}}}}}}}" in found[0].remedy


def test_with_the_keys_nothing_is_found(tmp_path: Path) -> None:
    rows = of_values(["14,3", "12.500", "1.250", "0,5", "7,1", "9,9", "2,2"])
    columns = {"columns": {"val": {"decimal": ",", "thousands": "."}}}
    assert findings(tmp_path, rows, {"tables": {"t": columns}}) == []


@pytest.mark.parametrize(
    "values",
    [
        ["positive", "negative", "1:40", "111/65", "2020-01-02", "A1", "++"],
        ["12.500", "1.250", "7", "8.5", "3", "4"],
        ["14,3", "12", "13", "14", "15", "16"],
        ["1,2,3", "2,3,4", "1,2,3,4", "5,6,7", "2,4,6", "3,6,9"],
    ],
)
def test_other_texts_and_single_slips_are_no_convention(tmp_path: Path, values: list[str]) -> None:
    assert findings(tmp_path, of_values(values)) == []


def test_letters_that_nothing_settles_are_found(tmp_path: Path) -> None:
    rows = [(number, DAY, f"{number}.5 L", None) for number in range(12)]
    assert checks(findings(tmp_path, rows)) == ["unit_or_flag"]
    assert checks(findings(tmp_path, [*rows, (99, DAY, "17 H", None)])) == []
    assert checks(findings(tmp_path, [(*row[:3], "g/dL") for row in rows], unit="unit")) == []
    for flags in (True, False):
        assert checks(findings(tmp_path, rows, {"columns": {"val": {"flags": flags}}})) == []


def test_units_that_differ_are_found(tmp_path: Path) -> None:
    rows = [(number, DAY, f"{number}.5 mg/L", "g/L") for number in range(12)]
    assert checks(findings(tmp_path, rows, unit="unit")) == ["value_unit_differs"]
    assert checks(findings(tmp_path, [(*row[:3], "mg / l") for row in rows], unit="unit")) == []


def test_words_for_nothing_among_numbers_are_found(tmp_path: Path) -> None:
    found = findings(tmp_path, of_values(["1.5", "NULL", "2.5", "n/a", "3.5"]))
    assert checks(found) == ["nothing_as_text"] and "NULL, n/a" in found[0].what
    assert findings(tmp_path, of_values(["1.5", "none", "negative", "2.5"])) == []


# --- what a tenth of a column shares

SPREAD = [f"{4 + number % 37 / 10:g}" for number in range(120)]


def sharing(value: str, every: int = 8) -> list[str]:
    return [value if number % every == 0 else other for number, other in enumerate(SPREAD)]


@pytest.mark.parametrize("value", ["-1", "9999999", "999", "-9", "99", "0", "9999999.0"])
def test_a_number_that_stands_for_nothing_is_named(tmp_path: Path, value: str) -> None:
    (found,) = findings(tmp_path, of_values(sharing(value)))
    assert found.check == "shared_by_many" and found.rule == "val"
    assert f"{float(value):.10g} stands in a tenth" in found.what
    reading = {"columns": {"val": {"null_values": [int(float(value))]}}}
    assert findings(tmp_path, of_values(sharing(value)), reading) == []


def test_a_value_that_fewer_than_eleven_subjects_share_is_not_named(tmp_path: Path) -> None:
    rows = [(number % 7, DAY, value, "g") for number, value in enumerate(sharing("77.25", 5))]
    (found,) = findings(tmp_path, rows)
    assert found.check == "shared_by_many" and "77.25" not in f"{found.what} {found.remedy}"


@pytest.mark.parametrize(
    "values",
    [
        SPREAD,
        sharing("-1", 20),
        ["1", "2", "3", "1", "2"] * 20,
        [str(number % 11 - 5) for number in range(110)],
        sharing("4.5", 4),
        [["0", "1", "2.5", "5", "7.5", "10"][number % 6] for number in range(120)],
        [f"{-number % 23}" for number in range(115)],
        ["30" if number % 3 else str(number % 91) for number in range(150)],
    ],
)
def test_a_value_among_the_others_is_none(tmp_path: Path, values: list[str]) -> None:
    assert findings(tmp_path, of_values(values)) == []


def dates(value: str, every: int) -> list[tuple[object, ...]]:
    days = [f"202{number % 3}-0{1 + number % 9}-{10 + number % 18} 07:08:09" for number in range(90)]
    return [
        (number, value if number % every == 0 else day, "1.5" if number % 2 else "2.5", "g")
        for number, day in enumerate(days)
    ]


@pytest.mark.parametrize("value", ["1900-01-01", "1900-01-01 00:00:00", "2099-12-31 00:00:00", "1970-01-01 00:00:00"])
def test_a_date_that_stands_for_nothing_is_named(tmp_path: Path, value: str) -> None:
    found = [finding for finding in findings(tmp_path, dates(value, 6)) if finding.check == "shared_by_many"]
    assert len(found) == 1 and f"{value[:10]} stands in a tenth or more of its dates" in found[0].what


@pytest.mark.parametrize(("value", "every"), [("1900-01-01 00:00:00", 12), ("2021-05-05 00:00:00", 4)])
def test_few_or_ordinary_dates_are_no_finding(tmp_path: Path, value: str, every: int) -> None:
    assert "shared_by_many" not in checks(findings(tmp_path, dates(value, every)))


def test_what_means_nothing_in_a_looked_up_column_is_no_finding(tmp_path: Path) -> None:
    stays = [(number, "1900-01-01" if number % 2 else f"2021-02-{1 + number % 28:02}") for number in range(40)]
    (tmp_path / "stays.csv").write_text(csv_text(["pid", "left"], stays))
    (tmp_path / "t.csv").write_text(csv_text(["pid"], [(number,) for number in range(40)]))
    join = {"table": "stays", "key": "pid", "columns": {"left": "left"}}
    source = source_of(t={"joins": [join], "events": [{"code": "X", "time": "left"}]}, stays={"role": "reference"})

    def shared(reading: Reading) -> int:
        read = source.read_as(reading)
        return checks(explain(read, Export(tmp_path, read)).suspicions).count("shared_by_many")

    nulls = {"columns": {"left": {"null_values": "1900-01-01"}}}
    assert [shared(Reading.model_validate({"tables": tables})) for tables in ({}, {"t": nulls})] == [1, 0]
