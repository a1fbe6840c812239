"""Subjects as they were and as they are, in one pass: what is counted of each group is what is counted of it alone."""

from pathlib import Path

import polars as pl

from pipelines.papers.derive import LISTS, derived_events, values_of
from pipelines.papers.labels import Asked, labelled
from pipelines.tasks.attrition import mended_tables
from pipelines.tasks.definition import built_in
from pipelines.tasks.members import LabelCodes
from pipelines.tasks.settings import LabelsConfig
from tests.support.label_cases import Event, derived, treated, write_bucket
from warehouse.layout import ReleaseLayout

SETTINGS = LabelsConfig.model_validate({"tasks": {"case": built_in("mortality").model_dump()}})


def splits_of(**splits: str) -> pl.DataFrame:
    return pl.DataFrame({"subject_id": [1, 2, 3], "split": list(splits.values())})


def asked(tree: ReleaseLayout, splits: pl.DataFrame) -> Asked:
    return Asked(tree, splits, derived(tree, SETTINGS))


def test_each_group_is_counted_as_it_is_alone(tmp_path: Path) -> None:
    death: list[Event] = [(2, 5.0, "MEDS_DEATH")]
    later: list[Event] = [(subject, 900.0, "LOINC/718-7") for subject in (1, 3)]
    now = write_bucket(tmp_path / "now", [*treated(1), *treated(2), *death, *treated(3), *later])
    before = write_bucket(tmp_path / "before", [*treated(1), *treated(2), *later[:1]])
    codes, tasks = LabelCodes.of(now, SETTINGS), SETTINGS.read_tasks
    of_now = asked(now, splits_of(a="train", b="train", c="tuning"))
    of_before = asked(before, splits_of(a="train", b="held_out", c="train"))
    (labels, attrition), (alone, alone_attrition), (_, former) = (
        labelled(first, 0, tasks, codes, [], second)["case"]
        for first, second in ((of_now, of_before), (of_now, None), (of_before, None))
    )
    assert len(alone) > 1
    assert labels.equals(alone)
    tables = [attrition.table("case", group) for group in (0, 1)]
    assert tables[0].equals(alone_attrition.table("case"))
    assert tables[1].equals(former.table("case"))
    assert mended_tables(tables[1], tables[1], tables[0]).equals(tables[0])


def test_values_are_counted_without_deriving_anything(tmp_path: Path) -> None:
    values = [("LOINC/2160-0", 1.2, "mg/dL"), ("LOINC/2160-0", 9e9, "mg/dL"), ("LOINC/8310-5", 38.5, "Cel")]
    labs: list[Event] = [
        (subject, day, code, {"numeric_value": value, "unit": unit})
        for subject in (1, 2)
        for day, (code, value, unit) in enumerate(values)
    ]
    tree = write_bucket(tmp_path, labs)
    members = LabelCodes.of(tree, SETTINGS).members_of(0, LISTS)
    _, counts = derived_events(tree, 0, members, SETTINGS.derived)
    found = values_of(tree, 0, members, SETTINGS.derived)
    assert counts["creatinine"] == {"implausible": 2, "used": 2}
    assert {name: {reason: rows for reason, rows in said.items() if rows} for name, said in found.items()} == {
        name: counts[name] for name in ("creatinine", "neutrophils", "temperature")
    }
