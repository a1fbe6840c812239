"""A task's former outcome: told where the rules are the same, believed where every byte is."""

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.engine.former import whole_former, with_former, with_rules
from pipelines.engine.task import Carrying, StageFunction, Task, make_task
from warehouse.files import hash_file
from warehouse.manifest import FileEntry, TaskEntry

STAGE = StageFunction("toy", 1, "nowhere:run")


def entry_of(path: Path) -> FileEntry:
    strong, fast = hash_file(path)
    return FileEntry(sha256=strong, bytes=path.stat().st_size, xxh3=fast)


def task_of(rules: Any, before: Any = None, reads: tuple[str, ...] = ()) -> Task:
    carrying = partial(Carrying, rules, before, reads)
    task = make_task(STAGE, "k", Path("staging"), settings=rules, inputs=[], params={}, carrying=carrying)
    return with_rules(task)


def test_what_copies_unchanged_subjects_is_asked_for_where_a_task_is_out_of_date(tmp_path: Path) -> None:
    """An up-to-date task costs no hash of the release before."""
    asked: list[str] = []

    def carrying() -> Carrying:
        asked.append("")
        return Carrying(["r"])

    task = make_task(STAGE, "k", Path("staging"), settings=0, inputs=[], params={}, carrying=carrying)
    assert not asked and task.rules is None
    found = with_former(task, context_of(tmp_path, task_of(["r"]).rules))
    assert asked == [""] and found.before is not None
    assert json.loads(json.dumps(asdict(found))) and found.carrying is None


def context_of(folder: Path, rules: str | None, **files: str) -> Any:
    """A release before with a task of some rules that made `a`, and further files."""
    entries = {}
    for name, content in {"a": "made", **files}.items():
        (folder / name).write_text(content)
        entries[name] = entry_of(folder / name)
    made = TaskEntry(fingerprint="f", files={"a": entries["a"]}, counts={"n": 2}, rules=rules)
    return SimpleNamespace(previous=SimpleNamespace(tasks={"toy/k": made}, files=entries), previous_path=folder)


def test_the_former_outcome_of_the_same_rules_is_told(tmp_path: Path) -> None:
    found = with_former(task_of(["r"], reads=("b",)), context_of(tmp_path, task_of(["r"]).rules, b="read"))
    assert found.before is not None and sorted(found.before["files"]) == ["a", "b"]
    former = whole_former(found.before)
    assert former is not None and former.tree.path == tmp_path and former.counts == {"n": 2}


def test_no_outcome_of_other_rules_is_told(tmp_path: Path) -> None:
    assert with_former(task_of(["r"]), context_of(tmp_path, task_of(["s"]).rules)).before is None
    assert with_former(task_of(["r"]), context_of(tmp_path, None)).before is None
    newer = StageFunction("toy", 2, "nowhere:run")
    carrying = partial(Carrying, ["r"])
    other = with_rules(make_task(newer, "k", Path(), settings=0, inputs=0, params={}, carrying=carrying))
    assert other.rules != task_of(["r"]).rules, "another version has other rules"


def test_rules_may_be_held_against_others_than_tonights(tmp_path: Path) -> None:
    context = context_of(tmp_path, task_of(["before"]).rules)
    assert with_former(task_of(["now"], before=["before"]), context).before is not None
    assert with_former(task_of(["now"], before=["now"]), context).before is None


def test_nothing_is_told_without_a_file_that_is_read(tmp_path: Path) -> None:
    context = context_of(tmp_path, task_of(["r"]).rules)
    assert with_former(task_of(["r"], reads=("b",)), context).before is None


@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("damage", ["flipped", "gone", "longer"])
def test_a_damaged_file_is_not_believed(name: str, damage: str, tmp_path: Path) -> None:
    found = with_former(task_of(["r"], reads=("b",)), context_of(tmp_path, task_of(["r"]).rules, b="read"))
    path = tmp_path / name
    if damage == "gone":
        path.unlink()
    else:
        content = path.read_bytes()
        path.write_bytes(bytes([content[0] ^ 1]) + content[1:] if damage == "flipped" else content + b"x")
    assert whole_former(found.before) is None
