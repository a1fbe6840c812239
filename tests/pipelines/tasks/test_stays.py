"""Tasks of stays in hospital and in intensive care: each fault of real stays has its right outcome."""

from datetime import datetime, timedelta
from pathlib import Path

import pytest

from tests.support.label_cases import DAY0, Event, label, on, write_bucket

TASKS = ("hospital_mortality", "icu_mortality", "icu_admission", "icu_readmission")
DIED = "MEDS_DEATH"


def stay(
    subject: int, start: float, end: float | None, visit: int | None = None, kind: str = "HOSPITAL"
) -> list[Event]:
    names = {"visit_id": visit}
    events: list[Event] = [(subject, start, f"{kind}_ADMISSION/X", names)]
    return events if end is None else [*events, (subject, end, f"{kind}_DISCHARGE/X", names)]


def icu(subject: int, start: float, end: float | None, visit: int | None = None) -> list[Event]:
    return stay(subject, start, end, visit, "ICU")


def days(labels: dict[tuple[int, datetime], bool]) -> dict[tuple[int, float], bool]:
    return {(subject, (moment - DAY0) / timedelta(days=1)): value for (subject, moment), value in labels.items()}


def found(folder: Path, events: list[Event], task: str) -> tuple[dict[tuple[int, float], bool], dict[str, int]]:
    labels, left_out = label(write_bucket(folder, events), task)
    return days(labels), left_out


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("hospital_mortality", {(1, 0): False, (2, 0): True, (3, 0): False}),
        ("icu_mortality", {(1, 1): False, (2, 1): True, (3, 1): False, (3, 4): False}),
        ("icu_admission", {(1, 0): True, (2, 0): True, (3, 0): True}),
        ("icu_readmission", {(1, 2): False, (3, 2): True}),
    ],
)
def test_each_task_by_hand(tmp_path: Path, task: str, expected: dict[tuple[int, float], bool]) -> None:
    """Home again; dead in intensive care; twice in intensive care."""
    events = [*stay(1, 0, 5, 10), *icu(1, 1, 2, 10), *stay(2, 0, 3, 20), *icu(2, 1, 3, 20), (2, 3, DIED)]
    events += [*stay(3, 0, 6, 30), *icu(3, 1, 2, 30), *icu(3, 4, 5, 30)]
    assert found(tmp_path, events, task)[0] == expected


@pytest.mark.parametrize("task", TASKS)
def test_an_admission_without_an_end_does_not_take_the_next_patients(tmp_path: Path, task: str) -> None:
    events = [*stay(1, 0, None, 10), *icu(1, 1, None, 10), *stay(2, 2, 3, 20), *icu(2, 2.1, 3, 20), (2, 3, DIED)]
    labels, _ = found(tmp_path, events, task)
    assert not [subject for subject, day in labels if subject == 1 and (task, day) != ("icu_admission", 0)]
    assert task != "icu_admission" or labels == {(1, 0): True, (2, 2): True}


def test_an_admission_without_an_end_is_counted_or_ends_with_death(tmp_path: Path) -> None:
    events = [*stay(1, 0, None, 10), *stay(2, 0, None, 20), (2, 4, DIED), *stay(3, 0, None, 30), *stay(3, 9, 10, 31)]
    labels, left_out = found(tmp_path, events, "hospital_mortality")
    assert labels == {(2, 0): True, (3, 9): False}
    assert left_out["censored"] == 2


def test_death_behind_a_later_stay_does_not_end_an_open_one(tmp_path: Path) -> None:
    events = [*stay(1, 0, None, 10), *stay(1, 9, 12, 11), (1, 11, DIED)]
    assert found(tmp_path, events, "hospital_mortality")[0] == {(1, 9): True}


@pytest.mark.parametrize("end", [-1, 0])
def test_a_stay_that_does_not_end_after_it_began_is_counted_and_has_no_label(tmp_path: Path, end: float) -> None:
    labels, left_out = found(tmp_path, [*stay(1, 0, end, 10), *stay(1, 5, 6, 11)], "hospital_mortality")
    assert labels == {(1, 5): False}
    assert left_out["bad_order"] == 1


def test_stays_inside_stays_are_one(tmp_path: Path) -> None:
    events = [
        *stay(1, 0, 6, 10),
        *stay(1, 2, 3, 11),
        *stay(1, 5, 8, 12),
        (1, 8, DIED),
        *stay(2, 0, 1, 20),
        *stay(2, 1, 2, 21),
    ]
    labels, left_out = found(tmp_path, events, "hospital_mortality")
    assert labels == {(1, 0): True, (2, 0): False, (2, 1): False}, "stays that touch are two"
    assert left_out["inside_another_stay"] == 2


def test_stays_of_one_visit_inside_one_another_end_with_the_outermost(tmp_path: Path) -> None:
    """A unit and its beds, all of one visit; the first stay without an end takes none of another's."""
    unit = [*icu(1, 1, 4, 10), *icu(1, 1, 2, 10), *icu(1, 2, 3, 10), *icu(1, 6, 7, 10)]
    labels, left_out = found(tmp_path / "beds", [*stay(1, 0, 9, 10), *unit], "icu_readmission")
    assert labels == {(1, 4): True}
    assert (left_out["inside_another_stay"], left_out["not_the_first"], left_out["no_end"]) == (2, 1, 0)
    still_open = [*stay(1, 0, 9, 10), *icu(1, 1, None, 10), *icu(1, 2, 3, 10), (1, 2.5, DIED)]
    assert found(tmp_path / "open", still_open, "icu_mortality")[0] == {(1, 2): True}


def test_without_visits_the_next_end_is_the_stays(tmp_path: Path) -> None:
    events = [*stay(1, 0, 2), *stay(1, 5, None), *stay(1, 9, 10), (1, 9.5, DIED)]
    labels, left_out = found(tmp_path, events, "hospital_mortality")
    assert labels == {(1, 0): False, (1, 9): True}
    assert left_out["censored"] == 1


def test_an_admission_after_death_has_no_label(tmp_path: Path) -> None:
    """Organ donors are admitted a minute after they died."""
    minute = 1 / 1440
    events = [(1, 0, DIED), *stay(1, minute, 1, 10), *stay(2, 0, 3, 20), (2, 0, DIED)]
    labels, left_out = found(tmp_path, events, "hospital_mortality")
    assert (labels, left_out["not_alive"]) == ({}, 2)


def test_the_dead_do_not_come_back(tmp_path: Path) -> None:
    events = [*stay(1, 0, 6, 10), *icu(1, 1, 3, 10), (1, 3, DIED), *icu(1, 4, 5, 10)]
    labels, left_out = found(tmp_path, events, "icu_readmission")
    assert (labels, left_out["not_alive"]) == ({}, 1)


def test_a_date_of_death_on_the_day_of_discharge_is_in_the_stay(tmp_path: Path) -> None:
    events = [
        *stay(1, 0, 3.6, 10),
        on(1, 3, DIED),
        *stay(2, 0, 3.6, 20),
        on(2, 4, DIED),
        *stay(3, 0.5, 3, 30),
        on(3, 0, DIED),
    ]
    tree = write_bucket(tmp_path, events)
    assert days(label(tree, "hospital_mortality")[0]) == {(1, 0): True, (2, 0): False, (3, 0.5): True}
    by_hour = label(tree, "hospital_mortality", date_deaths="end_of_day")[0]
    assert days(by_hour) == {(1, 0): False, (2, 0): False, (3, 0.5): True}


@pytest.mark.parametrize(("day", "answer"), [(0, None), (1 / 86_400, True), (2, True), (2 + 1 / 86_400, False)])
def test_intensive_care_at_the_moment_of_admission_is_prior(tmp_path: Path, day: float, answer: bool | None) -> None:
    labels, _ = found(tmp_path, [*stay(1, 0, 2, 10), *icu(1, day, day + 1, 10)], "icu_admission")
    assert labels.get((1, 0)) is answer


def test_who_is_in_intensive_care_already_has_no_label(tmp_path: Path) -> None:
    labels, left_out = found(tmp_path, [*icu(1, -0.1, 1, 10), *stay(1, 0, 2, 10)], "icu_admission")
    assert (labels, left_out["prior_icu_start"]) == ({}, 1)


def test_an_earlier_stay_in_intensive_care_is_not_prior(tmp_path: Path) -> None:
    events = [*stay(1, 0, 2, 10), *icu(1, 1, 2, 10), *stay(1, 9, 12, 11), *icu(1, 10, 11, 11)]
    assert found(tmp_path, events, "icu_admission")[0] == {(1, 0): True, (1, 9): True}


def test_a_readmission_is_of_the_same_stay_and_counted_once(tmp_path: Path) -> None:
    events = [*stay(1, 0, 9, 10), *icu(1, 1, 2, 10), *icu(1, 3, 4, 10), *icu(1, 5, 6, 10)]
    events += [*stay(2, 0, 4, 20), *icu(2, 1, 2, 20), *stay(2, 5, 9, 21), *icu(2, 6, 7, 21)]
    labels, left_out = found(tmp_path, events, "icu_readmission")
    assert labels == {(1, 2): True, (2, 2): False, (2, 7): False}
    assert left_out["not_the_first"] == 2


def test_a_stay_inside_another_one_has_no_first_end(tmp_path: Path) -> None:
    events = [*stay(1, 0, 9, 10), *icu(1, 1, 4, 11), *icu(1, 2, 3, 12), *icu(1, 5, 6, 13)]
    labels, left_out = found(tmp_path, events, "icu_readmission")
    assert labels == {(1, 4): True}
    assert (left_out["inside_another_stay"], left_out["not_the_first"]) == (1, 1)


@pytest.mark.parametrize("task", TASKS)
def test_the_rules_of_a_bucket_do_not_hang_on_who_is_in_it(tmp_path: Path, task: str) -> None:
    """Tables of several buckets are added rule by rule: each has the same rules."""
    full = found(tmp_path / "full", [*stay(1, 0, 9, 10), *icu(1, 1, 4, 11)], task)[1]
    without = found(tmp_path / "without", [*icu(1, 1, 4, 11)], task)[1]
    assert list(without) == list(full) == list(found(tmp_path / "none", [(1, 0, "LOINC/718-7")], task)[1])


def test_a_death_in_hospital_that_is_recorded_later_is_no_survival(tmp_path: Path) -> None:
    died: Event = (1, 2, DIED, {"available_time": 4})
    labels, left_out = found(tmp_path, [*stay(1, 0, 3, 10), died, *stay(2, 0, 3, 20)], "hospital_mortality")
    assert (labels, left_out["censored"]) == ({(2, 0): False}, 1)


def test_who_leaves_hospital_from_intensive_care_has_no_window(tmp_path: Path) -> None:
    labels, left_out = found(tmp_path, [*stay(1, 0, 2, 10), *icu(1, 1, 2, 10)], "icu_readmission")
    assert (labels, left_out["hospital_stay_over"]) == ({}, 1)


def test_death_on_the_ward_is_a_policy(tmp_path: Path) -> None:
    tree = write_bucket(tmp_path, [*stay(1, 0, 6, 10), *icu(1, 1, 2, 10), (1, 5, DIED)])
    assert days(label(tree, "icu_readmission")[0]) == {(1, 2): False}
    assert label(tree, "icu_readmission", competing_death="exclude")[0] == {}


READMISSION = {
    "id": "test.readmission.v1",
    "title": "Back in hospital within 30 days of discharge",
    "proposal": "A test's own.",
    "index": {"stay": "hospital", "at": "end"},
    "outcomes": [{"codes": "hospital_start"}],
    "horizon_days": 30,
}


def test_readmission_within_thirty_days_has_three_outcomes(tmp_path: Path) -> None:
    """Back; not back and seen later; dead; lost: the last two are no `no`."""
    from pipelines.tasks.definition import TaskConfig

    events = [*stay(1, 0, 2, 10), *stay(1, 32, 33, 11), *stay(2, 0, 2, 20), (2, 40, "LOINC/718-7")]
    events += [*stay(3, 0, 2, 30), (3, 20, DIED), *stay(4, 0, 2, 40), (4, 9, "LOINC/718-7")]
    events += [*stay(5, 0, 2, 50), *stay(5, 32.1, 33, 51), *stay(5, 90, 91, 52)]
    labels, left_out = label(write_bucket(tmp_path, events), TaskConfig.model_validate(READMISSION))
    assert days(labels) == {(1, 2): True, (2, 2): False, (5, 2): False, (5, 33): False}
    # The last stay of 1 and of 5 is lost too.
    assert (left_out["competing_death"], left_out["censored"], left_out["positive"]) == (1, 3, 1)


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("VISIT_START/VISIT/IP", "VISIT_END/VISIT/IP"),
        ("VISIT_START/OMOP/262", "VISIT_END/OMOP/262"),
        ("ENCOUNTER_START/INPATIENT", "ENCOUNTER_END/INPATIENT"),
    ],
)
def test_stays_of_other_sources(tmp_path: Path, start: str, end: str) -> None:
    events: list[Event] = [(1, 0, start, {"visit_id": 1}), (1, 3, end, {"visit_id": 1}), (1, 2, DIED)]
    assert found(tmp_path, events, "hospital_mortality")[0] == {(1, 0): True}


def test_outpatients_are_no_stay(tmp_path: Path) -> None:
    events: list[Event] = [(1, 0, "VISIT_START/VISIT/OP"), (1, 3, "VISIT_END/VISIT/OP"), *stay(2, 0, 1, 9)]
    assert found(tmp_path, events, "hospital_mortality")[0] == {(2, 0): False}


def test_visits_by_date_begin_with_their_day_and_end_with_it(tmp_path: Path) -> None:
    """A visit of one date is a stay: its start stands at 00:00, its end and a death of that date at the day's end."""
    start, end = "VISIT_START/VISIT/IP", "VISIT_END/VISIT/IP"
    events: list[Event] = []
    for subject in (1, 2):
        events += [(subject, 4, start, {"visit_id": subject, "time_precision": "day"})]
        events += [on(subject, 4, end, visit_id=subject)]
    assert found(tmp_path, [*events, on(1, 4, DIED)], "hospital_mortality")[0] == {(1, 4): True, (2, 4): False}
