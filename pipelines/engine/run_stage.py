"""Runs a stage over buckets: finds what is out of date, runs that here or on Beam, commits each task atomically.

A stage is a pure function `run(params, base) -> Result` from files to files. It knows nothing of its engine: tasks
carry references, storage carries rows, and what a task did is a record on disk that the engine checks, so that no
runner can lose a task unnoticed.
"""

import errno
import importlib
import json
import os
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from pipelines.engine.workers import quietly, start_pool
from warehouse.errors import TimeloomError
from warehouse.files import hash_file, link_or_copy, sha256_file, sha256_json, write_json

# What is heavy is imported by the functions that use it, so that workers can be started before it is.
if TYPE_CHECKING:
    from warehouse.manifest import Manifest, TaskEntry

Progress = Callable[[str, int, int], None]
# Set by --debug: a task's traceback goes to the terminal, never into a file, since it may quote a patient's value.
DEBUG_VARIABLE = "TIMELOOM_DEBUG"


class WorkerLostError(TimeloomError):
    """A process died and nobody knows why; the next try may succeed."""


@dataclass(frozen=True)
class Result:
    """What a stage function made.

    Attributes:
        files: path relative to the base directory, and its number of rows (None for what is no table).
        counts: JSON, summed and reported; never a patient's value.
    """

    files: dict[str, int | None]
    counts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """A stage's name, the version that a change of its output raises, and its function as `module:name`."""

    name: str
    version: int
    function: str


@dataclass(frozen=True)
class Task:
    """One unit of work: JSON all through, so that any runner can carry it.

    Attributes:
        key: a bucket, a file or a group; unique in its stage.
        base: the directory that outputs are relative to.
        record: where the task's record stands.
        params: what the function gets.
        fingerprint: changes with the stage's version, its settings and the content of its inputs.
        intact: `module:name` of a function (params, base) -> bool: whether what the task left outside its files, such
            as vectors in a store, is still there. An earlier outcome is reused only then.
        weight: how much work it is, against the others of its stage: the heaviest start first.
    """

    stage: str
    function: str
    key: str
    base: str
    record: str
    params: dict[str, Any]
    fingerprint: str
    intact: str | None = None
    weight: int = 0


def make_task(
    stage: Stage,
    key: str,
    staging: Path,
    *,
    settings: Any,
    inputs: Any,
    params: dict[str, Any],
    intact: str | None = None,
    weight: int = 0,
) -> Task:
    """A task whose outputs belong to the release.

    Args:
        settings: JSON that changes what the task makes.
        inputs: content hashes of what it reads.
        params: paths and settings, handed to the function.
    """
    return Task(
        stage=stage.name,
        function=stage.function,
        key=key,
        base=str(staging / "release"),
        record=str(staging / "tasks" / stage.name / f"{key.replace('/', '~')}.json"),
        params=params,
        fingerprint=sha256_json([stage.name, stage.version, settings, inputs]),
        intact=intact,
        weight=weight,
    )


def execute(task: Task) -> str:
    """Runs one task and leaves its record, or the reason why there is none; gives the task's key."""
    from polars.exceptions import PanicException

    from warehouse.manifest import FileEntry, TaskEntry

    record, failure = Path(task.record), Path(task.record).with_suffix(".error")
    failure.unlink(missing_ok=True)
    try:
        module, name = task.function.split(":")
        result: Result = getattr(importlib.import_module(module), name)(task.params, Path(task.base))
        files = {}
        for relative, rows in sorted(result.files.items()):
            path = Path(task.base) / relative
            strong, fast = hash_file(path)
            files[relative] = FileEntry(sha256=strong, bytes=path.stat().st_size, rows=rows, xxh3=fast)
        entry = TaskEntry(fingerprint=task.fingerprint, files=files, counts=result.counts)
        write_json(record, entry.model_dump(mode="json"))
    except (Exception, PanicException) as error:  # a panic of polars is no Exception
        if os.environ.get(DEBUG_VARIABLE):
            traceback.print_exc()
        reason = _describe(error)
        try:
            write_json(failure, reason)
        except OSError:  # a full disk takes no record either
            raise TimeloomError(reason["message"], reason["remedy"]) from None
    return task.key


def _describe(error: BaseException) -> dict[str, str]:
    """What went wrong without any value in it: a library's message may hold a patient's."""
    where = "".join(f"{frame.filename}:{frame.lineno}\n" for frame in traceback.extract_tb(error.__traceback__))
    clear = clear_error(error) or TimeloomError(f"{type(error).__name__} in the stage", "see the log; run with --debug")
    return {"message": clear.message, "remedy": clear.remedy, "where": where}


def clear_error(error: BaseException) -> TimeloomError | None:
    """What a person can mend, if it is that: a clear error itself, a full disk, a forbidden file."""
    if isinstance(error, TimeloomError):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return TimeloomError("the disk is full", "free space and run again; it resumes")
    if isinstance(error, MemoryError):
        return WorkerLostError("a task ran out of memory", "run again with fewer workers; it resumes")
    if isinstance(error, PermissionError):
        return TimeloomError("a file may not be read or written", "mend the permissions")
    return None


class Engine(Protocol):
    """Where tasks run: `workers` at a time."""

    workers: int

    def __enter__(self) -> "Engine": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def map(self, tasks: Sequence[Task], done: Callable[[str], None]) -> None:
        """Executes every task, in any order, calling `done` as far as it can with each finished key."""


class LocalEngine:
    """Processes of this machine; one worker runs in this process.

    Args:
        workers: number of processes; the machine's cores where None.
        here: this process is one of them. It then has nothing else to do, and a task that takes it down takes the run
            down.
        modules: what the others import before their first task.
    """

    def __init__(self, workers: int | None = None, *, here: bool = False, modules: Sequence[str] = ()) -> None:
        self.workers = workers or os.cpu_count() or 1
        self._here = here
        self._modules = modules
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "LocalEngine":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def start(self) -> None:
        """Starts the other processes ahead of the first tasks."""
        if self.workers > 1 and self._pool is None:
            self._pool = start_pool(self._others, self._modules, at_once=True)

    @property
    def _others(self) -> int:
        return self.workers - self._here

    def _executor(self) -> ProcessPoolExecutor:
        if self._pool is None:
            self._pool = start_pool(self._others, self._modules)
        return self._pool

    def map(self, tasks: Sequence[Task], done: Callable[[str], None]) -> None:
        """Executes tasks; a process that dies ends the stage with one line."""
        tasks = sorted(tasks, key=lambda task: -task.weight)
        if self.workers == 1 or len(tasks) == 1:
            for task in tasks:
                done(execute(task))
            return
        try:
            if self._here:
                _share(self._executor(), self._others, tasks, done)
                return
            with quietly():
                futures = [self._executor().submit(execute, task) for task in tasks]
            for future in as_completed(futures):
                done(future.result())
        except BrokenProcessPool as error:
            self._pool = None
            raise WorkerLostError(
                "a worker process died, perhaps for lack of memory", "run again with fewer workers; it resumes"
            ) from error


def _share(pool: ProcessPoolExecutor, others: int, tasks: Sequence[Task], done: Callable[[str], None]) -> None:
    """Executes tasks, the first ones first, in a pool and in this process: whoever is free takes the next one."""
    waiting = deque(tasks)
    finished: SimpleQueue[Future[str]] = SimpleQueue()

    def take() -> Task | None:
        try:
            return waiting.popleft()
        except IndexError:
            return None

    def feed() -> None:
        if (task := take()) is not None:
            future = pool.submit(execute, task)
            future.add_done_callback(feed_again)
            future.add_done_callback(finished.put)

    def feed_again(_before: Future[str]) -> None:
        with suppress(RuntimeError):  # a broken or closed pool: what was in it says so
            feed()

    with quietly():
        for _ in range(others):
            feed()
    for _ in tasks:
        own = take() if finished.empty() else None
        done(finished.get().result() if own is None else execute(own))


class BeamEngine:
    """Any Beam runner. References are the elements, so every runner's basic primitives suffice.

    Args:
        runner: `FnApiRunner` runs here; DirectRunner would try to download another one.
        workers: with FnApiRunner, 1 runs in memory and more run as processes.
        options: further pipeline options, as on a command line.
    """

    def __init__(self, runner: str = "FnApiRunner", workers: int = 1, options: Iterable[str] = ()) -> None:
        self.runner = runner
        self.workers = workers
        self.options = list(options)

    def __enter__(self) -> "BeamEngine":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def map(self, tasks: Sequence[Task], done: Callable[[str], None]) -> None:
        """Runs one linear pipeline: Create, Reshuffle, Map. Threads of one process lose elements: never used."""
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions

        options = [f"--runner={self.runner}", "--default_sdk_harness_log_level=WARNING", *self.options]
        if self.runner == "FnApiRunner":
            mode = "multi_processing" if self.workers > 1 else "in_memory"
            options += [f"--direct_running_mode={mode}", f"--direct_num_workers={self.workers}"]
        elements = [json.dumps(asdict(task)) for task in tasks]
        try:
            with beam.Pipeline(options=PipelineOptions(options, save_main_session=False)) as pipeline:
                _ = pipeline | beam.Create(elements) | beam.Reshuffle() | beam.Map(execute_element)
        except Exception as error:
            raise TimeloomError(
                f"the Beam runner {self.runner} failed", "see its log; run again, it resumes"
            ) from error
        for task in tasks:
            done(task.key)


def execute_element(element: str) -> str:
    """`execute` on a task as JSON."""
    return execute(Task(**json.loads(element)))


@dataclass
class StageReport:
    """What a stage did: tasks run, linked from the release before, found finished by a killed run."""

    name: str
    ran: int = 0
    linked: int = 0
    resumed: int = 0
    entries: "dict[str, TaskEntry]" = field(default_factory=dict)

    def total(self, name: str) -> int:
        """The sum of a count over all tasks."""
        return sum(int(entry.counts.get(name, 0)) for entry in self.entries.values())

    def hashes(self) -> dict[str, str]:
        """File to content hash, over all tasks."""
        return {path: file.sha256 for entry in self.entries.values() for path, file in entry.files.items()}


@dataclass(frozen=True)
class Inherited:
    """A file of the release before, which this run's continues."""

    path: Path
    sha256: str


@dataclass
class RunContext:
    """What every stage of a run shares.

    Attributes:
        staging: `work/<run>`; `release/` below it becomes the release.
        previous: manifest and directory of the current release, or None.
    """

    engine: Engine
    staging: Path
    previous: "Manifest | None"
    previous_path: Path | None
    progress: Progress | None = None

    @property
    def damaged(self) -> bool:
        """Whether a file of the current release is not what it was, so that a whole release must replace it."""
        return self._damage.exists()

    def note_damage(self) -> None:
        """Remembers it in the run's folder: a run that takes over must know too."""
        self._damage.touch()

    @property
    def _damage(self) -> Path:
        return self.staging / "damaged"

    def inherited(self, relative: Path) -> Inherited | None:
        """A file of the release before, if there is one."""
        if self.previous is None or self.previous_path is None or str(relative) not in self.previous.files:
            return None
        return Inherited(self.previous_path / relative, self.previous.files[str(relative)].sha256)


def _load_record(path: Path) -> "TaskEntry | None":
    from warehouse.manifest import TaskEntry

    try:
        return TaskEntry.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _intact(task: Task) -> bool:
    if task.intact is None:
        return True
    module, name = task.intact.split(":")
    return bool(getattr(importlib.import_module(module), name)(task.params, Path(task.base)))


def _finished(task: Task, context: RunContext) -> "TaskEntry | None":
    """The record of an earlier run of this very task, if its files are whole.

    What a killed run left in the staging tree is read again; segments, which every night reuses, are known by size and
    checked page by page when their rows are read.
    """
    entry = _load_record(Path(task.record))
    if entry is None or entry.fingerprint != task.fingerprint:
        return None
    staged = Path(task.base).is_relative_to(context.staging)
    for relative, file in entry.files.items():
        path = Path(task.base) / relative
        if not path.is_file() or path.stat().st_size != file.bytes:
            return None
        if staged and sha256_file(path) != file.sha256:
            return None
    return entry if _intact(task) else None


def _linked(task: Task, context: RunContext) -> "TaskEntry | None":
    """The previous release's outputs of this very task, hard-linked into the staging tree.

    They are read once more before they are published once more: a flipped bit must not pass from release to release.
    """
    if context.previous is None or context.previous_path is None:
        return None
    entry = context.previous.tasks.get(f"{task.stage}/{task.key}")
    if entry is None or entry.fingerprint != task.fingerprint:
        return None
    for relative, file in entry.files.items():
        source = context.previous_path / relative
        if not source.is_file() or source.stat().st_size != file.bytes or sha256_file(source) != file.sha256:
            context.note_damage()
            return None
        link_or_copy(source, Path(task.base) / relative)
    if not _intact(task):
        return None
    write_json(Path(task.record), entry.model_dump(mode="json"))
    return entry


def run_stage(
    stage: Stage,
    tasks: Sequence[Task],
    context: RunContext,
    prepare: Callable[[Sequence[Task]], None] | None = None,
) -> StageReport:
    """Brings every task up to date.

    Args:
        prepare: is given the tasks that are out of date, before they run.

    Raises:
        TimeloomError: a task failed, or a runner ended without having run it.
    """
    report = StageReport(stage.name)
    todo = []
    for task in tasks:
        if (entry := _finished(task, context)) is not None:
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
        context.engine.map(todo, done)
    for task in todo:
        report.entries[task.key] = _outcome(task)
    report.ran = len(todo)
    report.entries = {task.key: report.entries[task.key] for task in tasks}
    return report


def _outcome(task: Task) -> "TaskEntry":
    failure = Path(task.record).with_suffix(".error")
    if failure.is_file():
        reason = json.loads(failure.read_text(encoding="utf-8"))
        error = TimeloomError(reason["message"], reason["remedy"])
        error.add_note(f"stage {task.stage}, {task.key}\n{reason['where']}")
        raise error
    entry = _load_record(Path(task.record))
    if entry is None or entry.fingerprint != task.fingerprint:
        raise TimeloomError(f"the engine lost the task {task.stage}/{task.key}", "run again; it resumes")
    return entry
