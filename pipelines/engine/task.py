"""What an engine runs: a stage's function, its tasks, what a task gives back; and what an engine is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

from warehouse.errors import TimeloomError
from warehouse.files import sha256_json

if TYPE_CHECKING:
    from warehouse.manifest import FileEntry, TaskEntry

# Set by --debug: a task's traceback goes to the terminal, never into a file, since it may quote a patient's value.
DEBUG_VARIABLE = "TIMELOOM_DEBUG"
# Among the parts of a fingerprint, what a task goes on from.
BEFORE = "before"
# Bytes are the same only as these write them.
LIBRARIES = tuple(f"{name} {version(name)}" for name in ("pyarrow", "polars", "numpy"))


def short_hash(value: Any) -> str:
    """What tells that a JSON value is another one than before; no more than that."""
    return sha256_json(value)[:8]


class WorkerLostError(TimeloomError):
    """A process died and nobody knows why; the next try may succeed."""


class RawFile(TypedDict):
    """A raw file in words, and its `warehouse.files.signature`; None where there is to be no such file."""

    what: str
    signature: list[int] | None


@dataclass(frozen=True)
class Result:
    """What a stage function made.

    Attributes:
        files: path relative to the base directory, and its number of rows (None for what is no table).
        counts: JSON, summed and reported; never a patient's value.
        made_before: further files of the base directory that the outcome needs, as the records of earlier tasks have
            them.
    """

    files: dict[str, int | None]
    counts: Mapping[str, Any] = field(default_factory=dict)
    made_before: "Mapping[str, FileEntry]" = field(default_factory=dict)


@dataclass(frozen=True)
class StageFunction:
    """What an engine runs for a stage.

    Attributes:
        version: a change of the stage's output raises it: older outputs are then out of date.
        run: `module:name` of a function (params, base) -> Result.
        settings_are, inputs_are: what the elements of a task's settings and inputs are, in words; of one name, the
            whole of them. `timeloom status --why` tells them apart by it.
    """

    name: str
    version: int
    run: str
    settings_are: tuple[str, ...] = ("settings",)
    inputs_are: tuple[str, ...] = ("inputs",)

    def because(self, settings: Any, inputs: Any) -> dict[str, str]:
        """By what it is, a short hash of each part that a task's fingerprint is of; the version apart."""
        found: dict[str, str] = {}
        for names, parts in ((self.settings_are, settings), (self.inputs_are, inputs)):
            whole = len(names) == 1
            found |= {name: short_hash(part) for name, part in zip(names, [parts] if whole else parts, strict=True)}
        return found


@dataclass(frozen=True)
class Task:
    """One unit of work: as a runner gets it JSON all through, so that any can carry it.

    Attributes:
        key: a bucket, a file or a group; unique in its stage.
        base: the directory that outputs are relative to.
        record: where the task's record stands.
        params: what the function gets.
        fingerprint: changes with the stage's version, its settings and the content of its inputs.
        intact: `module:name` of a function (params, base) -> bool: whether what the task left outside its files, such
            as vectors in a store, is still there. An earlier outcome is reused only then.
        weight: how much work it is, against the others of its stage: the heaviest start first.
        raw_files: by path, the raw files that it reads, as they were before they were hashed. If one is not so after
            the task has run, the task leaves no record.
        because: by name, a short hash of each part of the fingerprint.
        checked_when_read: its files hold checksums that are compared whenever a part of them is read, so that only
            their sizes are looked at before they are reused.
        published: its files become part of a release, which are made durable together when it is published.
        carrying: gives what lets the task copy unchanged subjects. The engine asks for it, and fills in what follows,
            where the task is out of date; no runner gets it.
        rules: a hash of all that the outcome of every subject depends on besides the subject's own content. Where it
            is given, the function is called with a third argument, the task's `Former` outcome, or None.
        rules_before: what `rules` the former outcome must have, so that what it holds of an unchanged subject is what
            this task would make.
        reads_before: further files of the release before that the function reads then, relative to it.
        before: where the former outcome stands; filled in by the engine, see `pipelines.engine.former`.
        continued: by their path in a release, the hashes of the files of the release before that it goes on from, as a
            ledger; None where that one has no such file. They are part of the fingerprint.
        rest: the fingerprint without them.
    """

    stage: str
    function: str
    key: str
    base: str
    record: str
    params: Mapping[str, Any]
    fingerprint: str
    intact: str | None = None
    weight: int = 0
    raw_files: Mapping[str, RawFile] = field(default_factory=dict)
    because: Mapping[str, str] = field(default_factory=dict)
    checked_when_read: bool = False
    published: bool = False
    carrying: "Callable[[], Carrying] | None" = None
    rules: str | None = None
    rules_before: str | None = None
    reads_before: Sequence[str] = ()
    before: Mapping[str, Any] | None = None
    continued: Mapping[str, str | None] = field(default_factory=dict)
    rest: str = ""

    def would_repeat(self, entry: "TaskEntry") -> bool:
        """Whether an earlier outcome is what it would make once more: made of the same, and what the task goes on from
        is what that outcome left. What a task adds to such a file, it adds once."""
        left = {path: entry.files[path].sha256 if path in entry.files else None for path in self.continued}
        return (
            bool(left) and left == dict(self.continued) and entry.fingerprint == _going_on(self.rest, entry.continued)
        )


def _going_on(rest: str, continued: Mapping[str, str | None]) -> str:
    """The fingerprint of a task that goes on from files of the release before."""
    return sha256_json([rest, dict(continued)])


@dataclass(frozen=True)
class Carrying:
    """What lets a task copy unchanged subjects from the release before.

    Attributes:
        rules: JSON, all that the outcome of every subject depends on besides the subject's own content.
        before: what `rules` are for the content of the release before; the same ones where not given.
        reads: files of the release before that the function reads besides those that the task made of it.
    """

    rules: Any
    before: Any = None
    reads: Sequence[str] = ()


def make_task(
    stage: StageFunction,
    key: str,
    staging: Path,
    *,
    settings: Any,
    inputs: Any,
    params: Mapping[str, Any],
    intact: str | None = None,
    weight: int = 0,
    raw_files: Mapping[str, RawFile] | None = None,
    carrying: Callable[[], Carrying] | None = None,
    continued: Mapping[str, str | None] | None = None,
) -> Task:
    """A task whose outputs belong to the release.

    Args:
        settings: JSON that changes what the task makes.
        inputs: content hashes of what it reads.
        params: paths and settings, handed to the function.
        carrying: where given, the function is handed the former outcome too. It is asked of a task that is out of
            date.
        continued: see `Task`; None where it goes on from nothing.
    """
    because = stage.because(settings, inputs)
    rest = fingerprint = sha256_json([stage.name, stage.version, settings, inputs])
    if continued is not None:
        because[BEFORE] = short_hash(dict(continued))
        fingerprint = _going_on(rest, continued)

    def carried() -> Carrying:
        found = carrying() if carrying is not None else Carrying(None)
        of_stage = [stage.name, stage.version, *LIBRARIES]
        rules = sha256_json([*of_stage, found.rules])
        before = rules if found.before is None else sha256_json([*of_stage, found.before])
        return Carrying(rules, before, tuple(found.reads))

    return Task(
        stage=stage.name,
        function=stage.run,
        key=key,
        base=str(staging / "release"),
        record=str(staging / "tasks" / stage.name / f"{key.replace('/', '~')}.json"),
        params=dict(params),
        fingerprint=fingerprint,
        intact=intact,
        weight=weight,
        raw_files=raw_files or {},
        published=True,
        carrying=None if carrying is None else carried,
        because=because,
        continued=continued or {},
        rest=rest,
    )


class Engine(Protocol):
    """Where tasks run: `workers` at a time."""

    workers: int

    def __enter__(self) -> "Engine": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def map(self, tasks: Sequence[Task], done: Callable[[str], None]) -> None:
        """Executes every task, in any order, calling `done` as far as it can with each finished key."""
