"""Tasks in the two-file form of ES-ACES, an independent extractor: positives without a test of follow-up, and negatives
with one, are joined. ACES reads one clock, so what is given to it has the task's clock as its time."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
import yaml
from aces.config import TaskExtractorConfig
from aces.predicates import get_predicates_df
from aces.query import query
from omegaconf import DictConfig

from pipelines.tasks.definition import DEATH, STAYS, TaskConfig

Labels = dict[tuple[int, datetime], bool]


def write_events(folder: Path, events: pl.DataFrame, clock: str) -> Path:
    """Events with the clock as their time, as ACES reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "events.parquet"
    timed = events.select("subject_id", pl.col(clock).alias("time"), "code").drop_nulls("time")
    timed.sort("subject_id", "time", "code").write_parquet(path)
    return path


def configurations(task: TaskConfig, lists: Mapping[str, list[str]]) -> list[dict[str, Any]]:
    """The configurations whose labels are joined.

    Args:
        lists: by list, its codes in the data.
    """
    used = {name: {"code": {"any": codes or ["NOWHERE"]}} for name, codes in lists.items() if name in task.lists()}
    if task.index.stay is not None:
        return [_of_stays(task, used)]
    outcome, days = task.outcomes[0].codes, task.horizon_days
    absent, present = "(None, 0)", "(1, None)"
    event = task.index.event
    (need,) = task.index.requires
    excluded = {name: absent for name in task.exclude if name in used}
    windows = {
        "first": {
            "start": None,
            "end": "trigger",
            "start_inclusive": True,
            "end_inclusive": False,
            "has": {event: absent},
        },
        "required": {
            "start": f"end - {need.within_days}d",
            "end": "trigger",
            "start_inclusive": True,
            "end_inclusive": True,
            "has": {need.codes: present},
        },
        "input": {
            "start": None,
            "end": "trigger",
            "start_inclusive": True,
            "end_inclusive": True,
            "index_timestamp": "end",
            "has": {outcome: absent, **excluded},
        },
        "target": {
            "start": "input.end",
            "end": f"start + {days}d",
            "start_inclusive": False,
            "end_inclusive": True,
            "label": outcome,
        },
    }
    if task.outcomes[0].grace_days:
        grace = {"start": "input.end", "end": f"start + {task.outcomes[0].grace_days}d", "start_inclusive": False}
        windows["grace"] = grace | {"end_inclusive": True, "has": {outcome: absent}}
    positive = windows | {"target": windows["target"] | {"has": {outcome: present}}}
    follow_up = {"start": "target.end", "end": None, "start_inclusive": False, "end_inclusive": True}
    negative = windows | {
        "target": windows["target"] | {"has": {outcome: absent}},
        "followup": follow_up | {"has": {"_ANY_EVENT": present}},
    }
    return [{"predicates": used, "trigger": event, "windows": chosen} for chosen in (positive, negative)]


def _of_stays(task: TaskConfig, used: dict[str, Any]) -> dict[str, Any]:
    stay = str(task.index.stay)
    start, end = STAYS[stay]
    outcomes = [outcome.codes for outcome in task.outcomes if outcome.codes in used]
    closing = STAYS["hospital"][1] if task.index.within else end
    until = dict.fromkeys([*outcomes, closing, *([DEATH] if DEATH in used else [])])
    predicates = used | {"until": {"expr": f"or({', '.join(until)})"}}
    label = outcomes[0]
    if len(outcomes) > 1:
        predicates["outcome"] = {"expr": f"or({', '.join(outcomes)})"}
        label = "outcome"
    target = {
        "start": "trigger",
        "end": "start -> until",
        "start_inclusive": False,
        "end_inclusive": True,
        "label": label,
    }
    windows: dict[str, Any] = {"target": target | {"index_timestamp": "start"}}
    if task.index.within:
        has = {end: "(None, 0)", closing: "(None, 0)"}
        windows["stay"] = {"start": "end <- hospital_start", "end": "trigger", "start_inclusive": True}
        windows["stay"] |= {"end_inclusive": False, "has": has}
    return {"predicates": predicates, "trigger": end if task.index.within else start, "windows": windows}


def aces_labels(events: Path, task: TaskConfig, lists: Mapping[str, list[str]]) -> Labels:
    """The answer by subject and prediction time, as ACES gives it."""
    found: Labels = {}
    for number, configuration in enumerate(configurations(task, lists)):
        path = events.with_name(f"task{number}.yaml")
        path.write_text(yaml.safe_dump(configuration, sort_keys=False))
        config = TaskExtractorConfig.load(path)
        data = DictConfig({"path": str(events), "standard": "meds", "ts_format": None})
        result = query(config, get_predicates_df(config, data))
        if result.is_empty():
            continue
        for subject, moment, label in result.select("subject_id", "index_timestamp", "label").iter_rows():
            assert (subject, moment) not in found
            found[subject, moment] = bool(label)
    return found
