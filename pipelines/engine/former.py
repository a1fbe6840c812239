"""What the release before has of a task: unchanged subjects are copied from it instead of being made again."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.engine.context import RunContext
from pipelines.engine.task import Task
from warehouse.layout import ReleaseLayout

if TYPE_CHECKING:
    from warehouse.manifest import FileEntry


@dataclass(frozen=True)
class Former:
    """A task's outcome in the release before, every byte of its files as it was published.

    Attributes:
        tree: that release.
        counts: what the task counted then.
        files: those of that release that were compared with what was published, relative to it: the task's outcome,
            and what it reads besides.
    """

    tree: ReleaseLayout
    counts: Mapping[str, Any]
    files: frozenset[str] = frozenset()


def with_rules(task: Task) -> Task:
    """The task as a runner gets it, with the hashes of what it takes to copy unchanged subjects: working them out costs
    more than an up-to-date task does."""
    if task.carrying is None:
        return task
    found = task.carrying()
    return replace(task, carrying=None, rules=found.rules, rules_before=found.before, reads_before=tuple(found.reads))


def with_former(task: Task, context: RunContext) -> Task:
    """As `with_rules`, told of its former outcome where the release before was made by the same rules."""
    task = with_rules(task)
    if task.rules is None or context.previous is None or context.previous_path is None:
        return task
    entry = context.previous.tasks.get(f"{task.stage}/{task.key}")
    if entry is None or entry.rules is None or entry.rules != task.rules_before:
        return task
    known = context.previous.files
    files: dict[str, FileEntry | None] = {**entry.files, **{name: known.get(name) for name in task.reads_before}}
    if None in files.values():
        return task
    said = {name: file.model_dump(mode="json") for name, file in files.items() if file is not None}
    return replace(task, before={"path": str(context.previous_path), "files": said, "counts": dict(entry.counts)})


def whole_former(before: Mapping[str, Any] | None) -> Former | None:
    """What `with_former` told of, if every file of it is what was published: a flipped bit must not pass from release
    to release."""
    from warehouse.manifest import FileEntry

    if before is None:
        return None
    path = Path(before["path"])
    whole = all(FileEntry(**file).is_of(path / name) for name, file in before["files"].items())
    return Former(ReleaseLayout(path), before["counts"], frozenset(before["files"])) if whole else None
