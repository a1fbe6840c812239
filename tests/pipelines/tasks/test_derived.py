"""Derived events: kidney injury by creatinine, neutropenic fever, lines of therapy, each by hand."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipelines.tasks.settings import LabelsConfig
from tests.support.label_cases import DAY0, Event, derived, label, on, treated, write_bucket

CREATININE, MOLAR = "LOINC/2160-0", "LOINC/14682-9"


def lab(day: float, value: float, code: str = CREATININE, **columns: Any) -> Event:
    return 1, day, code, {"numeric_value": value, "unit": "mg/dL" if code == CREATININE else None, **columns}


def days_of(frame: pl.DataFrame, column: str = "time") -> list[float]:
    return [(moment - DAY0) / timedelta(days=1) for moment in frame[column]]


def stages(folder: Path, labs: list[Event], rules: dict[str, Any] | None = None) -> dict[float, int]:
    """The stage by day."""
    config = LabelsConfig.model_validate({"tasks": {}, "derived": {"kdigo": rules or {}}})
    frame = derived(write_bucket(folder, labs), config).filter(pl.col("code").str.contains("KDIGO"))
    assert frame["code"].to_list() == [f"DERIVED//AKI_KDIGO//{stage:.0f}" for stage in frame["numeric_value"]]
    return {
        (time - DAY0) / timedelta(days=1): int(stage)
        for time, stage in frame.select("time", "numeric_value").iter_rows()
    }


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (0.9, 1.2, 1),  # 0.29999999999999993 as doubles
        (1.0, 1.3, 1),  # 0.29999995 as 32-bit numbers
        (0.9, 1.19, None),
        (1.0, 1.29, None),
        (0.6, 0.9, 1),
        (0.7, 1.05, 1),  # one and a half times
        (0.7, 1.04, 1),  # by the rise of 0.34
        (0.4, 0.6, 1),
        (0.4, 0.59, None),
        (1.0, 2.0, 2),
        (1.0, 1.99, 1),
        (1.0, 3.0, 3),
        (1.1, 3.3, 3),
        (3.9, 5.0, 3),  # a limit of 3.7 for the value before would miss it
        (3.8, 4.1, 3),
        (3.8, 4.0, None),  # 4.0 without an acute rise
        (3.6, 3.9, 1),
        (1.2, 0.9, None),
    ],
)
def test_a_rise_within_two_days(tmp_path: Path, before: float, after: float, expected: int | None) -> None:
    assert stages(tmp_path, [lab(0, before), lab(1, after)]) == ({1.0: expected} if expected else {})


def test_the_lowest_is_of_what_was_before(tmp_path: Path) -> None:
    """A later fall makes no earlier value high, and values of one moment are not before each other."""
    assert stages(tmp_path, [lab(0, 1.2), lab(1, 0.8), lab(2, 1.0)]) == {}
    assert stages(tmp_path, [lab(0, 1.2), lab(0, 0.8)]) == {}


@pytest.mark.parametrize(("day", "expected"), [(2, 1), (2 + 1 / 86_400, None)])
def test_the_window_of_the_rise_is_48_hours(tmp_path: Path, day: float, expected: int | None) -> None:
    assert stages(tmp_path, [lab(0, 1.0), lab(day, 1.35)], {"otherwise": "none"}) == (
        {day: expected} if expected else {}
    )


@pytest.mark.parametrize(("day", "expected"), [(7, 1), (7 + 1 / 86_400, None)])
def test_the_window_of_the_ratio_is_seven_days(tmp_path: Path, day: float, expected: int | None) -> None:
    assert stages(tmp_path, [lab(0, 1.0), lab(day, 1.6)], {"otherwise": "none"}) == (
        {day: expected} if expected else {}
    )


def test_outpatients_have_the_median_of_a_year(tmp_path: Path) -> None:
    labs = [lab(-200, 0.8), lab(-150, 1.0), lab(-100, 1.4), lab(0, 1.6)]
    assert stages(tmp_path / "a", labs) == {-100.0: 1, 0.0: 1}, "1.4 is 1.56 times 0.9, 1.6 is 1.6 times 1.0"
    assert stages(tmp_path / "b", labs, {"otherwise": "none"}) == {}
    assert stages(tmp_path / "c", [lab(-400, 0.8), lab(0, 1.6)]) == {}


@pytest.mark.parametrize(("day", "known"), [(-100, 3), (-1, 3), (-366, 0)])
def test_a_stage_is_known_when_its_baseline_is(tmp_path: Path, day: float, known: float) -> None:
    labs = [lab(day, 1.0, available_time=3), lab(-200, 1.0), lab(0, 1.6)]
    frame = derived(write_bucket(tmp_path, labs))
    assert (days_of(frame), days_of(frame, "available_time")) == ([0.0], [known])


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((88.4, {}), (114.92, {}), 1),
        ((80.0, {}), (106.0, {}), None),  # a rise of 26.0 µmol/L is under 26.52
        ((80.0, {}), (107.0, {}), 1),
        ((100.0, {"unit": "umol/L"}), (150.0, {"unit": "µmol/L"}), 1),
        ((95.0, {}), (142.5, {}), 1),
    ],
)
def test_molar_values_are_converted(
    tmp_path: Path, before: tuple[float, dict[str, Any]], after: tuple[float, dict[str, Any]], expected: int | None
) -> None:
    labs = [lab(0, before[0], MOLAR, **before[1]), lab(1, after[0], MOLAR, **after[1])]
    assert stages(tmp_path, labs) == ({1.0: expected} if expected else {})


def test_units_may_change_between_values(tmp_path: Path) -> None:
    assert stages(tmp_path, [lab(0, 1.0), lab(1, 88.4, MOLAR), lab(2, 176.8, MOLAR)]) == {2.0: 2}


@pytest.mark.parametrize(
    "wrong",
    [
        lab(1, 88.0),  # µmol/L among mg/dL
        lab(1, 88.0, unit=None),
        lab(1, 0.0),
        lab(1, 2.0, unit="pmol/L"),
        lab(1, 2.0, value_flag="<"),
        (1, 1, CREATININE, {"unit": "mg/dL"}),
    ],
)
def test_what_cannot_be_a_creatinine_is_set_aside(tmp_path: Path, wrong: Event) -> None:
    """It is no rise, and no baseline that makes the next value one."""
    assert stages(tmp_path, [lab(0, 1.0), wrong, lab(2, 1.1)]) == {}


def test_mimics_item_has_no_loinc(tmp_path: Path) -> None:
    assert stages(tmp_path, [lab(0, 1.0, "MIMIC_LAB/50912", unit="mg/dL"), lab(1, 1.5, "MIMIC_LAB/50912")]) == {1.0: 1}


def test_a_stage_is_known_when_its_last_value_is(tmp_path: Path) -> None:
    labs = [lab(0, 1.0, available_time=3), lab(1, 1.5, available_time=1.1), lab(2, 1.6)]
    frame = derived(write_bucket(tmp_path, labs))
    assert days_of(frame, "available_time") == [3.0, 3.0]


def test_another_patients_creatinine_is_no_baseline(tmp_path: Path) -> None:
    other: Event = (2, 1, CREATININE, {"numeric_value": 2.0, "unit": "mg/dL"})
    assert stages(tmp_path, [lab(0, 1.0), other]) == {}


@pytest.mark.parametrize(
    ("neutropenia", "fever", "day"),
    [
        ((0, {}), (0, {}), 0.0),
        ((0, {}), (3, {}), 3.0),
        ((3, {}), (0, {}), 3.0),
        ((0, {}), (3.01, {}), None),
        ((0, {"visit_id": 7}), (9, {"visit_id": 7}), 9.0),
        ((0, {"visit_id": 7}), (9, {"visit_id": 8}), None),
        ((0, {}), (9, {}), None),
    ],
)
def test_neutropenic_fever_within_a_visit_or_three_days(
    tmp_path: Path, neutropenia: tuple[float, dict[str, Any]], fever: tuple[float, dict[str, Any]], day: float | None
) -> None:
    events: list[Event] = [
        (1, neutropenia[0], "ICD10CM/D701", neutropenia[1]),
        (1, fever[0], "ICD10CM/R5081", fever[1]),
    ]
    frame = derived(write_bucket(tmp_path, events))
    found = days_of(frame)
    assert found == ([] if day is None else [day])


def test_dates_three_days_apart_are_within_three_days(tmp_path: Path) -> None:
    near = [on(1, 0, "ICD10CM/D701"), on(1, 3, "ICD10CM/R5081"), on(2, 0, "ICD10CM/D701"), on(2, 4, "ICD10CM/R5081")]
    assert derived(write_bucket(tmp_path, near))["subject_id"].to_list() == [1]


def test_two_patients_make_no_fever(tmp_path: Path) -> None:
    events: list[Event] = [(1, 0, "ICD10CM/D701", {"visit_id": 7}), (2, 0, "ICD10CM/R5081", {"visit_id": 7})]
    assert derived(write_bucket(tmp_path, events)).is_empty()


def test_pancytopenia_is_a_switch(tmp_path: Path) -> None:
    tree = write_bucket(tmp_path, [(1, 0, "ICD10CM/D61810"), (1, 1, "ICD10CM/R5081")])
    assert derived(tree).is_empty()
    rules = {"tasks": {}, "derived": {"neutropenic_fever": {"pancytopenia": True}}}
    assert derived(tree, LabelsConfig.model_validate(rules)).height == 1


def given(day: float, *drugs: str) -> list[Event]:
    return [(1, day, f"RXNORM/{drug}") for drug in drugs]


@pytest.mark.parametrize(
    ("course", "begins"),
    [
        ([(0, "2555")], [0]),
        ([(0, "2555"), (60, "2555")], [0]),
        ([(0, "2555"), (27, "56946"), (60, "56946")], [0]),
        ([(0, "2555"), (28, "56946")], [0, 28]),
        ([(0, "2555"), (60, "56946"), (61, "4179"), (200, "2555")], [0, 60, 200]),
        ([(0, "2555"), (60, "161")], [0]),
    ],
)
def test_lines_of_therapy(tmp_path: Path, course: list[tuple[float, str]], begins: list[float]) -> None:
    events = [event for day, drug in course for event in given(day, drug)]
    frame = derived(write_bucket(tmp_path, events))
    assert frame["code"].to_list() == [f"DERIVED//LOT//{line}" for line in range(1, len(begins) + 1)]
    assert days_of(frame) == begins


def test_a_product_of_two_ingredients_and_a_class(tmp_path: Path) -> None:
    """The class says nothing new where the ingredient is known."""
    parents = {
        "NDC/1": ["RXNORM/2555", "ATC/L01XA01"],
        "NDC/2": ["RXNORM/2555", "RXNORM/4179"],
        "NDC/3": ["ATC/L01BC05"],
    }
    events: list[Event] = [
        (1, 0, "NDC/1"),
        (1, 40, "RXNORM/2555"),
        (1, 60, "NDC/2"),
        (1, 100, "NDC/3"),
        (1, 150, "NDC/3"),
    ]
    frame = derived(write_bucket(tmp_path, events, parents))
    assert days_of(frame) == [0, 60, 100]


def test_derived_events_count_when_they_could_be_known(tmp_path: Path) -> None:
    events: list[Event] = [*treated(1), (1, 400, "LOINC/718-7"), lab(-1, 0.9), lab(-0.1, 1.2, available_time=0.1)]
    assert list(label(write_bucket(tmp_path, events), "aki_kdigo")[0].values()) == [True]
    assert label(write_bucket(tmp_path, events), "aki_kdigo", clock="time")[0] == {}


NEUTROPHILS, DEGREES = "LOINC/751-8", "LOINC/8310-5"
HOUR = 1 / 24


def measured(day: float, code: str, value: float, unit: str | None = None, **columns: Any) -> Event:
    return 1, day, code, {"numeric_value": value, "unit": unit, **columns}


@pytest.mark.parametrize(
    ("count", "temperatures", "day"),
    [
        (measured(0, NEUTROPHILS, 0.9), [measured(0.5, DEGREES, 38.3, "Cel")], 0.5),
        (measured(0.5, NEUTROPHILS, 0.9), [measured(0, DEGREES, 38.3, "Cel")], 0.5),  # whichever is later
        (measured(0, NEUTROPHILS, 1.0), [measured(0.5, DEGREES, 39, "Cel")], None),  # below 1.0
        (measured(0, NEUTROPHILS, 0.9), [measured(0.5, DEGREES, 38.2, "Cel")], None),
        (measured(0, NEUTROPHILS, 0.9), [measured(1, DEGREES, 39, "Cel")], 1),  # a day apart
        (measured(0, NEUTROPHILS, 0.9), [measured(1 + HOUR / 60, DEGREES, 39, "Cel")], None),
        # 38.0 for an hour, not for less, and not where it fell in between.
        (measured(0, NEUTROPHILS, 0.9), [measured(h * HOUR, DEGREES, 38.0, "Cel") for h in (2, 3)], 3 * HOUR),
        (measured(0, NEUTROPHILS, 0.9), [measured(h * HOUR, DEGREES, 38.0, "Cel") for h in (2, 2.9)], None),
        (
            measured(0, NEUTROPHILS, 0.9),
            [measured(h * HOUR, DEGREES, value, "Cel") for h, value in ((2, 38.1), (2.5, 37.9), (3, 38.1))],
            None,
        ),
        # Of two values that lie days apart nobody knows what was between them.
        (measured(3, NEUTROPHILS, 0.9), [measured(day, DEGREES, 38.0, "Cel") for day in (0, 3)], None),
        # Units: 900 in a µL; 100.9 °F is 38.3 °C; codes of MIMIC-IV without a unit.
        (measured(0, NEUTROPHILS, 900, "/uL"), [measured(0.5, DEGREES, 100.9, "[degF]")], 0.5),
        (measured(0, "MIMIC_LAB/52075", 0.9, "K/uL"), [measured(0.5, "CHART/223761", 100.9)], 0.5),
        (measured(0, NEUTROPHILS, 0.9), [measured(0.5, "CHART/223762", 38.3)], 0.5),
        (measured(0, NEUTROPHILS, 0.9), [measured(0.5, "CHART/223762", 100.9)], None),  # 100.9 °C
        (measured(0, NEUTROPHILS, 0.9, "%"), [measured(0.5, DEGREES, 39, "Cel")], None),
        (measured(0, NEUTROPHILS, 0.5, value_flag="<"), [measured(0.5, DEGREES, 39, "Cel")], None),
    ],
)
def test_neutropenic_fever_by_values(
    tmp_path: Path, count: Event, temperatures: list[Event], day: float | None
) -> None:
    frame = derived(write_bucket(tmp_path, [count, *temperatures]))
    assert set(frame["code"]) <= {"DERIVED//FEBRILE_NEUTROPENIA"}
    assert days_of(frame) == ([] if day is None else [pytest.approx(day)])


def test_a_fever_that_was_held_is_known_with_its_last_value(tmp_path: Path) -> None:
    warm = [
        measured(2 * HOUR, DEGREES, 38.0, "Cel", available_time=1.0),
        measured(3 * HOUR, DEGREES, 38.0, "Cel"),
    ]
    frame = derived(write_bucket(tmp_path, [measured(0, NEUTROPHILS, 0.2), *warm]))
    assert (days_of(frame), days_of(frame, "available_time")) == ([pytest.approx(3 * HOUR)], [1.0])


def test_which_of_two_values_of_one_moment_comes_first_hangs_on_nobody_else(tmp_path: Path) -> None:
    events: list[Event] = []
    for subject in range(1, 121):
        values = [measured(3, NEUTROPHILS, 0.9)]
        # Known in another order than they were taken in, so that the rows are put in order anew.
        values += [measured(1, DEGREES, 36 + number / 8, "Cel", available_time=2.9 - number / 8) for number in range(7)]
        values += [measured(3 + 2 * HOUR, DEGREES, 38.0, "Cel")]
        values += [measured(3 + 3 * HOUR, DEGREES, value, "Cel") for value in (38.1, 36.0)]
        events += [(subject, *event[1:]) for event in values]
    assert derived(write_bucket(tmp_path, events)).is_empty()


def test_a_task_takes_fever_by_codes_or_by_values(tmp_path: Path) -> None:
    events = [*treated(1), measured(30, NEUTROPHILS, 0.2), measured(30.5, DEGREES, 39, "Cel"), (1, 400, "LOINC/718-7")]
    tree = write_bucket(tmp_path, events)
    either = [{"codes": "neutropenic_fever"}, {"codes": "neutropenic_fever_lab"}]
    assert list(label(tree, "neutropenic_fever")[0].values()) == [False]
    assert list(label(tree, "neutropenic_fever", outcomes=either)[0].values()) == [True]
