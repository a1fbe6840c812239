"""A bucket of a few events, written as a release has it, and what tasks make of it."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from pipelines.align import CODE_COUNTS
from pipelines.metadata import CODES
from pipelines.papers.derive import LISTS, derived_events
from pipelines.papers.labels import label_bucket
from pipelines.tasks.attrition import totals
from pipelines.tasks.definition import TaskConfig, built_in
from pipelines.tasks.members import LabelCodes
from pipelines.tasks.settings import LabelsConfig
from warehouse.layout import ReleaseLayout
from warehouse.order import sort_events
from warehouse.parquet import empty_frame, read_frame, write_table
from warehouse.schemas import EVENTS

DAY0 = datetime(2020, 1, 1)
CANCER, DRUG = "ICD10CM/C50911", "RXNORM/2555"
# One event: subject, days from DAY0 or a moment, code; then columns of EVENTS that are not the usual ones.
Event = tuple[int, float | datetime | None, str] | tuple[int, float | datetime | None, str, dict[str, Any]]


def when(day: float | datetime | None) -> datetime | None:
    """A moment; half a day is noon."""
    return DAY0 + timedelta(days=day) if isinstance(day, int | float) else day


def end_of(day: float) -> datetime:
    """The last microsecond of a day, where a fact stands of which only the day is known."""
    return DAY0 + timedelta(days=int(day) + 1) - timedelta(microseconds=1)


def on(subject: int, day: float, code: str, **columns: Any) -> Event:
    """An event of which only the day is known."""
    return subject, end_of(day), code, {"time_precision": "day", **columns}


def treated(subject: int, day: float = 0.0, drug: str = DRUG) -> list[Event]:
    """Somebody of fifty with a cancer ten days before his first treatment."""
    return [
        (subject, datetime(1970, 1, 1), "MEDS_BIRTH", {"time_precision": "year"}),
        (subject, day - 10, CANCER),
        (subject, day, drug),
    ]


def write_bucket(
    folder: Path, events: Sequence[Event], parents: dict[str, list[str]] | None = None, bucket: int = 0
) -> ReleaseLayout:
    """Writes the events as one bucket, and the metadata that labels read."""
    tree = ReleaseLayout(folder / "release")
    rows = []
    for subject, day, code, *others in events:
        moment = when(day)
        row: dict[str, Any] = {"subject_id": subject, "time": moment, "code": code, "available_time": moment}
        row |= {"time_precision": None if moment is None else "s", "kind": "clinical", "source": "test"}
        given = dict(others[0]) if others else {}
        given["available_time"] = when(given.get("available_time", moment))
        rows.append(row | given)
    frame = pl.concat(
        [empty_frame(EVENTS), pl.DataFrame(rows, schema_overrides=dict(empty_frame(EVENTS).schema))], how="diagonal"
    )
    write_table(tree.events(bucket), sort_events(frame), EVENTS, "data")
    counted = frame.group_by("code").agg(pl.len().cast(pl.Int64).alias("events")).sort("code")
    write_table(tree.codes_of(bucket), counted, CODE_COUNTS, "codes")
    known = counted.select(
        "code",
        pl.lit(None, pl.String).alias("description"),
        pl.Series("parent_codes", [(parents or {}).get(code) for code in counted["code"]], dtype=pl.List(pl.String)),
    )
    write_table(tree.codes, known, CODES, "codes")
    return tree


def derived(tree: ReleaseLayout, config: LabelsConfig | None = None, bucket: int = 0) -> pl.DataFrame:
    """The derived events of a bucket."""
    config = config or LabelsConfig(tasks={})
    codes = LabelCodes.of(tree, config)
    return derived_events(tree, bucket, codes.members_of(bucket, LISTS), config.derived)[0]


def label(
    tree: ReleaseLayout,
    task: TaskConfig | str,
    config: dict[str, Any] | None = None,
    splits: dict[int, str] | None = None,
    **keys: Any,
) -> tuple[dict[tuple[int, datetime], bool], dict[str, int]]:
    """What a task labels in bucket 0: the answer by subject and moment, and how many each rule leaves out, or leaves.

    Args:
        task: a task, or the name of a built-in one, of which `keys` override some.
    """
    definition = built_in(task, **keys) if isinstance(task, str) else task
    given = {**(config or {}), "tasks": {"case": definition.model_dump()}}
    settings = LabelsConfig.model_validate(given)
    codes = LabelCodes.of(tree, settings)
    subjects = read_frame(tree.events(0))["subject_id"].unique()
    of_subject = {subject: (splits or {}).get(subject, "train") for subject in subjects}
    frame = pl.DataFrame(
        {"subject_id": list(of_subject), "split": list(of_subject.values())},
        schema={"subject_id": pl.Int64, "split": pl.String},
    )
    made = label_bucket(tree, 0, settings.read_tasks, codes, frame, derived(tree, settings), [])
    labels, attrition = made["case"]
    summed = totals(attrition.table("case")).group_by("rule", maintain_order=True).agg(pl.col("removed", "left").sum())
    counted = {
        rule: left if rule in ("start", "positive", "negative") else removed
        for rule, removed, left in summed.iter_rows()
    }
    return {(subject, moment): value for subject, moment, value in labels.iter_rows()}, counted


def answers(labels: dict[tuple[int, datetime], bool]) -> dict[int, bool]:
    """The answer by subject, of a task with one label a subject at most."""
    assert len({subject for subject, _ in labels}) == len(labels)
    return {subject: value for (subject, _), value in labels.items()}
