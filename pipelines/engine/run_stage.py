"""Runs a stage over buckets: finds what is out of date, runs that here or on Beam, commits each task atomically.

A stage is a pure function `run(params, base) -> Result` from files to files. It knows nothing of its engine: tasks
carry references, storage carries rows, and what a task did is a record on disk that the engine checks, so that no
runner can lose a task unnoticed.
"""

import importlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.engine.context import RunContext, StageReport
from pipelines.engine.cost import elsewhere
from pipelines.engine.former import with_former
from pipelines.engine.task import StageFunction, Task
from warehouse.errors import TimeloomError
from warehouse.files import link_or_copy
from warehouse.sealed import sealed_bytes, write_sealed

# What is heavy is imported by the functions that use it, so that workers can be started before it is.
if TYPE_CHECKING:
    from warehouse.manifest import TaskEntry


def load_record(path: Path) -> "TaskEntry | None":
    """What a task left of itself; None where that is missing or damaged."""
    from warehouse.manifest import TaskEntry

    try:
        return TaskEntry.model_validate_json(sealed_bytes(path))
    except (OSError, ValueError):
        return None


def _intact(task: Task) -> bool:
    if task.intact is None:
        return True
    module, name = task.intact.split(":")
    return bool(getattr(importlib.import_module(module), name)(task.params, Path(task.base)))


def _finished(task: Task, *, every_byte: bool = False) -> "TaskEntry | None":
    """The record of an earlier run of this very task, if its files are whole.

    Files are read again, but for those that are checked piece by piece when their rows are read: what a damaged record
    or file says is never believed.

    Args:
        every_byte: those are read again too.
    """
    entry = load_record(Path(task.record))
    if entry is None or entry.fingerprint != task.fingerprint:
        return None
    for relative, file in entry.files.items():
        path = Path(task.base) / relative
        if task.checked_when_read and not every_byte and file.is_as_long_as(path):
            continue
        if not file.is_of(path):
            return None
    return entry if _intact(task) else None


def _linked(task: Task, context: RunContext) -> "TaskEntry | None":
    """The previous release's outputs of this very task, hard-linked into the staging tree.

    They are read once more before they are published once more: a flipped bit must not pass from release to release.
    """
    if context.previous is None or context.previous_path is None:
        return None
    entry = context.previous.tasks.get(f"{task.stage}/{task.key}")
    if entry is None or (entry.fingerprint != task.fingerprint and not task.would_repeat(entry)):
        return None
    for relative, file in entry.files.items():
        source = context.previous_path / relative
        if not file.is_of(source):
            context.note_damage(relative)
            return None
        context.whole.add(relative)
        link_or_copy(source, Path(task.base) / relative)
    if not _intact(task):
        context.unsound.append(f"{task.stage}/{task.key}")
        return None
    # What a power failure damages of it is not believed, and linked once more.
    write_sealed(Path(task.record), entry.model_dump(mode="json"), sync=False)
    return entry


def run_stage(
    stage: StageFunction,
    tasks: Sequence[Task],
    context: RunContext,
    prepare: Callable[[Sequence[Task]], None] | None = None,
    plan_anew: Callable[[], Sequence[Task]] | None = None,
) -> StageReport:
    """Brings every task up to date.

    Args:
        prepare: is given the tasks that are out of date, before they run.
        plan_anew: gives the tasks as they are now. It is asked once, where raw files changed while they were read;
            those of its tasks are run that are not done.

    Raises:
        TimeloomError: a task failed, or a runner ended without having run it.
    """
    report = StageReport(stage.name)
    todo = []
    for task in tasks:
        if (entry := _finished(task)) is not None:
            report.resumed += 1
        elif (entry := _linked(task, context)) is not None:
            report.linked += 1
        else:
            todo.append(task)
            continue
        report.entries[task.key] = entry
    finished = len(tasks) - len(todo)
    if context.progress:
        context.progress(stage.name, finished, len(tasks))

    def done(_key: str) -> None:
        nonlocal finished
        finished += 1
        if context.progress:
            context.progress(stage.name, finished, len(tasks))

    for task in todo:
        # What an earlier run left must not pass for this one's outcome, should the engine lose the task.
        Path(task.record).unlink(missing_ok=True)
        Path(task.record).with_suffix(".error").unlink(missing_ok=True)
    if todo:
        if prepare is not None:
            prepare(todo)
        context.engine.map([with_former(task, context) for task in todo], done)
    report.ran = len(todo)
    report.workers_seconds = elsewhere(_cost(task) for task in todo)
    changed = [task for task in todo if _failed(task).get("changed")] if plan_anew else []
    if plan_anew and changed:
        again = run_stage(stage, plan_anew(), context, prepare)
        ran = report.ran - len(changed) + again.ran
        worked = report.workers_seconds + again.workers_seconds
        return replace(again, ran=ran, linked=report.linked, resumed=report.resumed, workers_seconds=worked)
    for task in todo:
        report.entries[task.key] = _outcome(task)
    report.entries = {task.key: report.entries[task.key] for task in tasks}
    return report


def _cost(task: Task) -> dict[str, Any] | None:
    """What a task cost, as its record says beside what a release keeps of it; None where it left no record."""
    try:
        cost: dict[str, Any] | None = json.loads(sealed_bytes(Path(task.record))).get("cost")
    except (OSError, ValueError):
        return None
    return cost


def _failure(task: Task) -> dict[str, Any]:
    """Why a task left no record; empty where nothing says so."""
    failure = Path(task.record).with_suffix(".error")
    reason: dict[str, Any] = json.loads(failure.read_text(encoding="utf-8")) if failure.is_file() else {}
    return reason


def _failed(task: Task) -> dict[str, Any]:
    """As `_failure`; empty where an engine ran the task twice, and what one of the two made stands."""
    reason = _failure(task)
    return {} if reason and _finished(task, every_byte=True) is not None else reason


def _outcome(task: Task) -> "TaskEntry":
    if reason := _failed(task):
        error = TimeloomError(reason["message"], reason["remedy"])
        error.add_note(f"stage {task.stage}, {task.key}\n{reason['where']}")
        raise error
    entry = load_record(Path(task.record))
    if entry is None or entry.fingerprint != task.fingerprint:
        raise TimeloomError(f"the engine lost the task {task.stage}/{task.key}", "run again; it resumes")
    return entry
