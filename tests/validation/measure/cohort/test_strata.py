"""Patients of splits and labels of tasks by sex, ethnicity and age, against plain loops; small cells are hidden."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl

from tests.support.cohort import ETHNICITIES, SEXES, TASK, Fact, cohort, draw, split_of
from tests.support.releases import BUCKETS
from validation.measure.cohort.strata import LABELLED, PATIENTS, measure_strata, strata_of_bucket, tally_strata
from validation.measure.measures import Measures
from validation.measure.tally import Tally
from validation.report.cells import Cells
from validation.report.strata_tables import strata_table, task_strata_table
from validation.report.table import Table
from warehouse.layout import ReleaseLayout


def measured(tree: ReleaseLayout, splits: pl.DataFrame, *tasks: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """What every bucket adds up to."""
    tally = Tally()
    for bucket in range(BUCKETS):
        tally_strata(tally, *strata_of_bucket(tree, bucket, splits, tasks))
    measures = Measures(tree)
    measures.__dict__["counts"] = tally.table()
    return measure_strata(measures)


def value_of(facts: list[Fact], attribute: tuple[str, ...]) -> str:
    of_attribute = [fact for fact in facts if fact.code in attribute]
    if not of_attribute:
        return "unknown"
    first = min(of_attribute, key=lambda fact: (fact.code.endswith("UNKNOWN"), fact.known or -1, fact.code))
    return first.code.rpartition("/")[2].lower()


def age_of(facts: list[Fact]) -> str:
    """Sixty where a birth is known, as all are born sixty years before their first day."""
    born = any(fact.code == "MEDS_BIRTH" for fact in facts)
    timed = any(fact.time is not None and fact.code != "MEDS_BIRTH" for fact in facts)
    return "50-59" if born and timed else "unknown"


def test_each_patient_and_label_is_counted_once_by_each_attribute(tmp_path: Path) -> None:
    facts, labels = draw(8, subjects=60)
    release = cohort(tmp_path / "root", facts, labels, subjects=60)
    splits = pl.DataFrame([(s, split_of(s)) for s in range(1, 61)], schema=["subject_id", "split"], orient="row")
    found, of_tasks = measured(ReleaseLayout(release.path), splits, TASK)
    patients: Counter[tuple[str, str, str]] = Counter()
    labelled: dict[tuple[str, str, str], list[int]] = {}
    for subject in {fact.subject for fact in facts}:
        known = [fact for fact in facts if fact.subject == subject]
        values = {"sex": value_of(known, SEXES), "ethnicity": value_of(known, ETHNICITIES), "age": age_of(known)}
        values |= {"race": "unknown", "insurance": "private"}
        if not any(fact.code == "INSURANCE/PRIVATE" for fact in known):
            values["insurance"] = "unknown"
        for attribute, value in values.items():
            patients[attribute, value, split_of(subject)] += 1
            of_subject = [label for label in labels if label.subject == subject]
            counts = labelled.setdefault((TASK, attribute, value), [0, 0])
            counts[0] += sum(label.outcome for label in of_subject)
            counts[1] += sum(not label.outcome for label in of_subject)
    assert {row[:3]: row[3] for row in found.iter_rows()} == dict(patients)
    assert {row[:3]: list(row[3:]) for row in of_tasks.iter_rows()} == {k: v for k, v in labelled.items() if any(v)}
    assert set(found["value"]) >= {"f", "m", "a", "b", "unknown", "50-59", "private"}


def test_rare_values_are_one(tmp_path: Path) -> None:
    facts = [Fact(s, f"INSURANCE/{max(1, s - 6)}", 0, 0) for s in range(1, 25)]
    release = cohort(tmp_path / "root", [*facts, Fact(1, "IMAGE/CT", 0, 0, "ct", "ct-1-1")], [])
    splits = pl.DataFrame([(s, "train") for s in range(1, 25)], schema=["subject_id", "split"], orient="row")
    found = measured(ReleaseLayout(release.path), splits)[0].filter(attribute="insurance")
    counts = dict(found.select("value", "subjects").iter_rows())
    assert counts["1"] == 7 and counts["other"] == 6 and len(counts) == 13 and sum(counts.values()) == 24


def tables(sexes: dict[str, tuple[int, int]], *, is_open: bool) -> tuple[list[Any], list[Any]]:
    """The rows of both tables; of each sex how many are in train, all of them with a positive label, and in tuning."""
    patients = [("sex", name, split, number) for name, pair in sexes.items()
                for split, number in zip(("train", "tuning"), pair, strict=True)]  # fmt: skip
    labelled = [(TASK, "sex", name, train, 0) for name, (train, _) in sexes.items()]
    measurements: Any = SimpleNamespace(
        strata=pl.DataFrame(patients, schema=PATIENTS, orient="row"),
        task_strata=pl.DataFrame(labelled, schema=LABELLED, orient="row"),
    )
    total = sum(train for train, _ in sexes.values())
    known = Table("attrition", "", [], [{"task": TASK, "rule": "positive", "patients": total},
                                        {"task": TASK, "rule": "negative", "patients": 0}])  # fmt: skip
    cells = Cells(open=is_open)
    by_split = [[row[split] for split in ("train", "tuning")] for row in strata_table(measurements, (), cells).rows]
    return by_split, [row["positive"] for row in task_strata_table(measurements, known, cells).rows]


def test_small_cells_are_hidden_with_what_would_tell_them() -> None:
    sexes = {"f": (40, 30), "m": (50, 40), "unknown": (3, 0)}
    by_split, positive = tables(sexes, is_open=True)
    assert (by_split, positive) == ([[40, 30], [50, 40], [3, 0]], [40, 50, 3])
    by_split, positive = tables(sexes, is_open=False)
    hidden = [[isinstance(cell, int) for cell in row] for row in by_split]
    assert hidden == [[False, True], [True, True], [False, True]]
    assert [isinstance(cell, int) for cell in positive] == [False, True, False]


def test_what_no_event_tells_has_no_rows() -> None:
    assert tables({"unknown": (40, 30)}, is_open=True) == ([], [])
