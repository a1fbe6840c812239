"""Times that another format reads otherwise: found where they are, with how many rows, and not where they are not."""

from pathlib import Path
from typing import Any

import pytest

from extractors.check.explain import explain
from extractors.reading import Reading
from extractors.source import Source
from extractors.tables.export import Export
from tests.support.raw.raw_tables import csv_text, source_of

DAYS = [f"{day:02}/{month:02}/2021" for month in (1, 5, 9) for day in range(1, 29)]


def source(formats: Any) -> Source:
    return source_of(t={"events": [{"code": "X", "time": {"column": "at", "formats": formats}}]})


def findings(work: Path, given: Source, values: list[str]) -> list[tuple[str, str, str]]:
    (work / "t.csv").write_text(csv_text(["pid", "at"], [(number, value) for number, value in enumerate(values)]))
    suspicions = explain(given, Export(work, given)).suspicions
    return [(found.check, found.rule, found.what) for found in suspicions if found.check != "date_as_time"]


def test_two_formats_that_both_fit_are_found_with_the_rows_that_differ(tmp_path: Path) -> None:
    # Of each month the days to the twelfth fit both, and one of them is the same day in both.
    months = (1, 5, 9)
    differ = sum(day != month for month in months for day in range(1, 13))
    assert differ == 33
    (found,) = findings(tmp_path, source(["%m/%d/%Y", "%d/%m/%Y"]), DAYS)
    assert found[:2] == ("formats_both_fit", "at")
    assert "both fit 33 rows" in found[2]
    (few,) = findings(tmp_path, source(["%d/%m/%Y", "%m/%d/%Y"]), DAYS[:8])
    assert "both fit fewer than 11 rows" in few[2]


@pytest.mark.parametrize(
    ("formats", "values"),
    [
        (["%d/%m/%Y"], DAYS),
        (["%d/%m/%Y", "%Y-%m-%d"], DAYS),
        (["%m/%d/%Y", "%d/%m/%Y"], ["05/05/2021"] * 20),
        (["%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M:%S%.f"], ["2021-01-02 03:04:05"] * 20),
    ],
)
def test_what_reads_alike_or_does_not_fit_is_not_found(tmp_path: Path, formats: list[str], values: list[str]) -> None:
    assert findings(tmp_path, source(formats), values) == []


def test_an_order_of_day_and_month_that_is_guessed_is_found(tmp_path: Path) -> None:
    guess = source(["%Y-%m-%d", "%m/%d/%Y"])
    values = [f"0{month}/{day:02}/2021" for month in (1, 2) for day in range(1, 13)]
    ((check, _, what),) = findings(tmp_path, guess, values)
    assert check == "day_or_month_first"
    # All but the first of January and the second of February.
    assert "%d/%m/%Y fits as well as %m/%d/%Y, with other times in 22 rows" in what
    # One day that is no month settles it; so does a site that says what it writes.
    assert findings(tmp_path, guess, [*values, "01/13/2021"]) == []
    assert findings(tmp_path, guess.read_as(Reading(formats=["%m/%d/%Y"])), values) == []
