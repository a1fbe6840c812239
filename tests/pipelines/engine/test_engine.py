"""Engines: the same bytes wherever tasks run, nothing lost unnoticed, nothing of a patient in what went wrong."""

import gc
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from flows.runs.log import RunLog
from flows.runs.settings import RunSettings, engine_ahead
from pipelines.engine.beam import BeamEngine
from pipelines.engine.context import RunContext, StageReport
from pipelines.engine.execute import execute
from pipelines.engine.local import LocalEngine
from pipelines.engine.run_stage import run_stage
from pipelines.engine.task import Engine, StageFunction, Task, WorkerLostError, make_task
from pipelines.engine.workers import uncollected
from tests.support.nights import toy_stage
from warehouse.errors import TimeloomError
from warehouse.files import sha256_file
from warehouse.layout import Layout
from warehouse.manifest import Manifest
from warehouse.publish import publish

# In `make test` alone: worker processes are started, killed and waited for.
pytestmark = pytest.mark.whole

STAGE = StageFunction("toy", 1, "tests.support.nights.toy_stage:run")
ENGINES: dict[str, Callable[[], Engine]] = {
    "local, 1 worker": lambda: LocalEngine(1),
    "local, 2 workers": lambda: LocalEngine(2),
    "local, 3 workers, one of them here": lambda: LocalEngine(3, in_this_process=True),
    "Beam in memory": lambda: BeamEngine(),
    "Beam, 2 processes": lambda: BeamEngine(workers=2),
}
BEAM_IS_SLOW = [pytest.param(name, marks=[pytest.mark.whole] if "Beam" in name else []) for name in ENGINES]

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def importable_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beam's worker processes inherit the environment, not the path of this process."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))


def tasks_of(
    inputs: list[Path], staging: Path, faults: dict[int, str] | None = None, settings: str = "s"
) -> list[Task]:
    """One task a file."""
    return [
        make_task(
            STAGE,
            path.stem,
            staging,
            settings=settings,
            inputs=sha256_file(path),
            params={"input": str(path), "name": path.stem, "fault": (faults or {}).get(number)},
        )
        for number, path in enumerate(inputs)
    ]


def context_of(staging: Path, engine: Engine, root: Path | None = None, previous: Manifest | None = None) -> RunContext:
    """A run without a release before it, or after `previous` in `root`."""
    path = Layout(root).releases / previous.release_id if root and previous else None
    return RunContext(engine=engine, staging=staging, previous=previous, previous_path=path)


def outcome(report: StageReport) -> tuple[int, int, int]:
    """Tasks run, linked and resumed."""
    return report.ran, report.linked, report.resumed


def publish_toy(root: Path, staging: Path, report: StageReport, name: str = "one") -> Manifest:
    """Publishes what the toy stage made."""
    files = {path: file for entry in report.entries.values() for path, file in entry.files.items()}
    manifest = toy_stage.toy_manifest(files, name).model_copy(
        update={"tasks": {f"toy/{key}": entry for key, entry in report.entries.items()}}
    )
    publish(Layout(root), staging / "release", manifest)
    return manifest


@pytest.mark.whole
def test_every_engine_makes_the_same_bytes(inputs: list[Path], tmp_path: Path) -> None:
    made = {}
    for number, (name, build) in enumerate(ENGINES.items()):
        staging = tmp_path / str(number)
        with build() as engine:
            report = run_stage(STAGE, tasks_of(inputs, staging), context_of(staging, engine))
        assert outcome(report) == (5, 0, 0)
        assert list(report.entries) == [path.stem for path in inputs], "entries come in the order of the tasks"
        assert report.total("lines") == 55
        on_disk = {path.name: sha256_file(path) for path in (staging / "release" / "sorted").iterdir()}
        assert {Path(path).name: digest for path, digest in report.hashes().items()} == on_disk
        made[name] = report.hashes()
    first = next(iter(made.values()))
    assert len(set(first.values())) == 5
    assert all(hashes == first for hashes in made.values()), made


@pytest.mark.parametrize("name", BEAM_IS_SLOW)
def test_a_clear_error_arrives_as_it_was_raised(name: str, inputs: list[Path], tmp_path: Path) -> None:
    with ENGINES[name]() as engine, pytest.raises(TimeloomError) as caught:
        run_stage(STAGE, tasks_of(inputs, tmp_path, {2: "clear"}), context_of(tmp_path, engine))
    assert str(caught.value) == "table labs lacks the column value; export it"
    assert any("toy, 2" in note for note in caught.value.__notes__)
    assert len(list((tmp_path / "tasks" / "toy").glob("*.json"))) == 4, "the other tasks are done and will resume"


@pytest.mark.whole
@pytest.mark.parametrize("name", BEAM_IS_SLOW)
@pytest.mark.parametrize("fault", ["library", "chained"])
def test_no_value_leaves_a_failed_task(name: str, fault: str, inputs: list[Path], tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log")
    with ENGINES[name]() as engine, pytest.raises(TimeloomError) as caught:
        run_stage(STAGE, tasks_of(inputs, tmp_path, {0: fault}), context_of(tmp_path, engine))
    log.failure(caught.value)
    said = [str(caught.value), *caught.value.__notes__, log.path.read_text(), repr(caught.value.__cause__)]
    said += [path.read_text() for path in (tmp_path / "tasks").rglob("*.error")]
    assert "toy_stage.py" in "".join(said), "where it happened is said"
    for word in toy_stage.PATIENT_VALUE.split():
        assert not any(word in text for text in said), said


def test_a_log_keeps_no_value_of_a_library(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log")
    try:
        int(toy_stage.PATIENT_VALUE)
    except ValueError as error:
        log.failure(error)
    assert "ValueError" in log.path.read_text()
    assert "4711" not in log.path.read_text()


def test_a_killed_worker_is_one_line_and_the_next_run_resumes(inputs: list[Path], tmp_path: Path) -> None:
    with LocalEngine(2) as engine, pytest.raises(TimeloomError) as caught:
        run_stage(STAGE, tasks_of(inputs, tmp_path, {4: "killed"}), context_of(tmp_path, engine))
    assert str(caught.value).startswith("a worker process died")
    assert "\n" not in str(caught.value)
    assert caught.value.remedy
    with LocalEngine(2) as engine:
        report = run_stage(STAGE, tasks_of(inputs, tmp_path), context_of(tmp_path, engine))
    assert report.ran + report.resumed == 5
    assert report.ran >= 1


def test_a_killed_worker_is_one_line_while_this_process_works_too(inputs: list[Path], tmp_path: Path) -> None:
    tasks = tasks_of(inputs, tmp_path, {4: "killed"})
    tasks[4] = replace(tasks[4], weight=1)  # the heaviest goes to the other process
    with LocalEngine(2, in_this_process=True) as engine, pytest.raises(WorkerLostError) as caught:
        run_stage(STAGE, tasks, context_of(tmp_path, engine))
    assert caught.value.remedy
    with LocalEngine(2, in_this_process=True) as engine:
        report = run_stage(STAGE, tasks_of(inputs, tmp_path), context_of(tmp_path, engine))
    assert report.ran + report.resumed == 5
    assert report.ran >= 1


def test_this_process_and_a_worker_share_the_tasks(tmp_path: Path) -> None:
    done: list[str] = []
    with LocalEngine(2, in_this_process=True, modules=["tests.support.nights.toy_stage"]) as engine:
        engine.start()
        engine._executor().submit(os.getpid).result()  # it is there
        engine.map([pid_task(tmp_path, number) for number in range(30)], done.append)
    assert sorted(done) == sorted(str(number) for number in range(30)), "every task is told once"
    made_by = Counter((tmp_path / "release" / f"{number}.pid").read_text() for number in range(30))
    assert len(made_by) == 2
    assert 2 <= made_by[str(os.getpid())] <= 28, "whoever is free takes the next one"


def test_the_heaviest_task_starts_first(tmp_path: Path) -> None:
    done: list[str] = []
    LocalEngine(1).map([replace(pid_task(tmp_path, number), weight=number) for number in (1, 3, 2)], done.append)
    assert done == ["3", "2", "1"]


def pid_task(staging: Path, number: int) -> Task:
    """A task that takes a moment and writes down who did it."""
    stage = StageFunction("toy", 1, "tests.support.nights.toy_stage:who")
    return make_task(stage, str(number), staging, settings=0, inputs=0, params={"name": str(number)})


def test_an_error_of_the_progress_ends_the_work_of_the_pool_too(tmp_path: Path) -> None:
    def done(_key: str) -> None:
        raise ValueError("no terminal")

    with pytest.raises(ValueError, match="no terminal"), LocalEngine(2, in_this_process=True) as engine:
        engine.map([pid_task(tmp_path, number) for number in range(40)], done)
    assert len(list((tmp_path / "release").glob("*.pid"))) < 20, "what waited was not begun"


def test_workers_are_there_before_the_first_task(inputs: list[Path], tmp_path: Path) -> None:
    with LocalEngine(3, in_this_process=True) as engine:
        engine.start()
        engine.start()
        assert engine._pool is not None
        started = set(engine._pool._processes)
        assert len(started) == 2
        for process in started:  # Ctrl-C reaches every process of a terminal, and is the run's to hear
            while not _alive(process):
                time.sleep(0.01)
            os.kill(process, signal.SIGINT)
        run_stage(STAGE, tasks_of(inputs, tmp_path), context_of(tmp_path, engine))
        assert set(engine._pool._processes) == started
    assert not any(_alive(process) for process in started)


@pytest.mark.parametrize("modules", ["pipelines.engine.workers, pipelines.engine.run_stage", "flows.runs.settings"])
def test_nothing_heavy_is_imported_before_workers_start(modules: str) -> None:
    heavy = {"numpy", "polars", "pyarrow", "pydantic", "torch"}
    code = f"import sys, {modules}; print(*sorted({heavy!r} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""


@pytest.mark.parametrize(
    ("text", "workers"),
    [
        ("{workers: 3}", 3),
        ("{workers: '3'}", 3),
        ("{workers: 0}", None),
        ("{workers: -2}", None),
        ("{workers: many}", None),
        ("{workers: .inf}", None),
        ("{name: x}", None),
        ("[workers]", None),
        ("{workers: ", None),
        ("", None),
    ],
)
def test_the_workers_that_a_configuration_names(text: str, workers: int | None, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with engine_ahead(RunSettings(path), []) as engine:
        assert engine is not None
        assert engine.workers == (workers or os.cpu_count())
    with engine_ahead(RunSettings(path, workers=2), []) as engine:
        assert engine is not None
        assert engine.workers == 2
    with engine_ahead(RunSettings(path, engine="beam"), []) as engine:
        assert engine is None


def test_arrow_does_without_pandas_and_others_do_not(tmp_path: Path) -> None:
    code = (
        "import sys, numpy, pyarrow\n"
        "from pipelines.engine.workers import leave_out_pandas\n"
        "leave_out_pandas()\n"
        "array = pyarrow.array(numpy.arange(3))\n"
        "assert array.to_numpy().tolist() == [0, 1, 2]\n"
        "assert pyarrow.array(numpy.array(['2020-01-01'], 'M8[us]')).type == pyarrow.timestamp('us')\n"
        "assert 'pandas' not in sys.modules, 'Arrow took a fifth of a second to find it'\n"
        "import pandas\n"
        "assert pandas.Series([1]).sum() == 1\n"
    )
    pytest.importorskip("pandas")
    subprocess.run([sys.executable, "-c", code], check=True)


def test_garbage_is_collected_again_behind_imports() -> None:
    with uncollected():
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.unfreeze()


class ForgetfulEngine(LocalEngine):
    """Says that everything is done and leaves one task out."""

    def map(self, tasks: Sequence[Task], done: Callable[[str], None]) -> None:
        """Executes all but the last."""
        for task in tasks[:-1]:
            execute(task)
        for task in tasks:
            done(task.key)


def test_a_lost_task_is_noticed(inputs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(TimeloomError, match="the engine lost the task toy/4"):
        run_stage(STAGE, tasks_of(inputs, tmp_path), context_of(tmp_path, ForgetfulEngine()))


def test_a_lost_task_is_noticed_behind_the_record_of_an_earlier_run(inputs: list[Path], tmp_path: Path) -> None:
    run_stage(STAGE, tasks_of(inputs, tmp_path), context_of(tmp_path, LocalEngine(1)))
    (tmp_path / "release" / "sorted" / "4.txt").write_text("cut sh")
    with pytest.raises(TimeloomError, match="the engine lost the task toy/4"):
        run_stage(STAGE, tasks_of(inputs, tmp_path), context_of(tmp_path, ForgetfulEngine()))


def test_an_earlier_run_s_failure_is_not_reported_again(inputs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(TimeloomError, match="labs"):
        run_stage(STAGE, tasks_of(inputs, tmp_path, {4: "clear"}), context_of(tmp_path, LocalEngine(1)))
    with pytest.raises(TimeloomError, match="the engine lost the task toy/4"):
        run_stage(STAGE, tasks_of(inputs, tmp_path), context_of(tmp_path, ForgetfulEngine()))


def test_finished_tasks_resume_and_changed_ones_run_again(inputs: list[Path], tmp_path: Path) -> None:
    def again(**changes: str) -> tuple[int, int, int]:
        return outcome(run_stage(STAGE, tasks_of(inputs, tmp_path, **changes), context_of(tmp_path, LocalEngine(1))))

    assert again() == (5, 0, 0)
    assert again() == (0, 0, 5)
    assert again(settings="other") == (5, 0, 0)
    inputs[1].write_text("another line\n")
    assert again(settings="other") == (1, 0, 4)
    newer = StageFunction("toy", 2, "tests.support.nights.toy_stage:run")
    tasks = [
        make_task(newer, path.stem, tmp_path, settings="other", inputs=sha256_file(path), params=task.params)
        for path, task in zip(inputs, tasks_of(inputs, tmp_path), strict=True)
    ]
    assert outcome(run_stage(newer, tasks, context_of(tmp_path, LocalEngine(1)))) == (5, 0, 0), "a new version reruns"


@pytest.mark.parametrize("damage", ["cut", "same size", "gone", "record", "empty record"])
def test_what_is_damaged_in_staging_is_made_again(damage: str, inputs: list[Path], tmp_path: Path) -> None:
    first = run_stage(STAGE, tasks_of(inputs, tmp_path), context_of(tmp_path, LocalEngine(1)))
    file, record = tmp_path / "release" / "sorted" / "3.txt", tmp_path / "tasks" / "toy" / "3.json"
    text = file.read_text()
    if damage == "cut":
        file.write_text(text[:-4])
    elif damage == "same size":
        file.write_text("x" + text[1:])
    elif damage == "gone":
        file.unlink()
    else:
        record.write_text("" if damage == "empty record" else record.read_text()[:40])
    report = run_stage(STAGE, tasks_of(inputs, tmp_path), context_of(tmp_path, LocalEngine(1)))
    assert outcome(report) == (1, 0, 4)
    assert file.read_text() == text
    assert report.hashes() == first.hashes()


def test_unchanged_tasks_are_links_to_the_release_before(inputs: list[Path], tmp_path: Path) -> None:
    root, work = tmp_path / "root", tmp_path / "root" / "work"
    first = run_stage(STAGE, tasks_of(inputs, work / "1"), context_of(work / "1", LocalEngine(1)))
    manifest = publish_toy(root, work / "1", first)
    inputs[0].write_text("news\n")
    context = context_of(work / "2", LocalEngine(1), root, manifest)
    second = run_stage(STAGE, tasks_of(inputs, work / "2"), context)
    assert outcome(second) == (1, 4, 0)
    for name in ("1.txt", "4.txt"):
        old, new = Layout(root).releases / "one" / "sorted" / name, work / "2" / "release" / "sorted" / name
        assert old.samefile(new)
    assert not (work / "2" / "release" / "sorted" / "0.txt").samefile(
        Layout(root).releases / "one" / "sorted" / "0.txt"
    )
    changed = run_stage(STAGE, tasks_of(inputs, work / "3", settings="other"), context_of(
        work / "3", LocalEngine(1), root, manifest
    ))  # fmt: skip
    assert outcome(changed) == (5, 0, 0)


def test_a_rerun_never_writes_through_a_link_into_the_release_before(inputs: list[Path], tmp_path: Path) -> None:
    root, work = tmp_path / "root", tmp_path / "root" / "work"
    first = run_stage(STAGE, tasks_of(inputs, work / "1"), context_of(work / "1", LocalEngine(1)))
    manifest = publish_toy(root, work / "1", first)
    context = context_of(work / "2", LocalEngine(1), root, manifest)
    run_stage(STAGE, tasks_of(inputs, work / "2"), context)
    old = Layout(root).releases / "one" / "sorted" / "2.txt"
    before = old.read_text()
    inputs[2].write_text("other content\n")
    run_stage(STAGE, tasks_of(inputs, work / "2"), context)
    assert (work / "2" / "release" / "sorted" / "2.txt").read_text() == "other content\n"
    assert old.read_text() == before


def test_a_truncated_file_of_the_release_before_is_made_again(inputs: list[Path], tmp_path: Path) -> None:
    root, work = tmp_path / "root", tmp_path / "root" / "work"
    first = run_stage(STAGE, tasks_of(inputs, work / "1"), context_of(work / "1", LocalEngine(1)))
    manifest = publish_toy(root, work / "1", first)
    (Layout(root).releases / "one" / "sorted" / "2.txt").write_text("")
    second = run_stage(STAGE, tasks_of(inputs, work / "2"), context_of(work / "2", LocalEngine(1), root, manifest))
    assert outcome(second) == (1, 4, 0)
    assert second.hashes() == first.hashes()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_has_its_line(
    workers: int, inputs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("fsync", "replace"):  # undone afterwards, where the task runs in this process
        monkeypatch.setattr(os, name, getattr(os, name))
    faults = dict.fromkeys(range(5), "full")
    with LocalEngine(workers) as engine, pytest.raises(TimeloomError) as caught:
        run_stage(STAGE, tasks_of(inputs, tmp_path, faults), context_of(tmp_path, engine))
    assert str(caught.value) == "the disk is full; free space and run again; it resumes"
    assert "MRN" not in repr(caught.value) + repr(caught.value.__cause__)
    assert not list((tmp_path / "release").rglob("*.*")), "nothing half-written stays"


LIMITED = """
import resource, sys
import polars as pl
import pyarrow as pa
from pathlib import Path
from pipelines.engine.execute import clear_error
from warehouse.parquet import write_table

resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
folder = Path(sys.argv[1])
frame = pl.DataFrame({"x": [str(hash(number)) * 9 for number in range(20_000)]}).with_columns(pl.col("x").shuffle(1))
for write in (
    lambda: (folder / "plain").write_bytes(b"x" * 60_000),
    lambda: write_table(folder / "table", frame, pa.schema([("x", pa.large_string())]), "a table"),
    lambda: frame.write_parquet(folder / "frame", compression="uncompressed"),
):
    try:
        write()
    except Exception as error:
        print(clear_error(error))
"""


def test_a_limit_of_a_files_size_has_its_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    line = (
        "a file would be larger than this process or file system allows; raise the limit (`ulimit -f`) or use another "
        "file system, and run again; it resumes"
    )
    assert done.stdout.splitlines() == [line] * 3


def test_a_full_disk_does_not_hide_behind_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = RunLog(tmp_path / "log")

    def full(*_: object, **__: object) -> None:
        toy_stage.fill_disk()
        os.fsync(0)

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, getattr(os, name))
    monkeypatch.setattr(Path, "open", full)
    log.failure(TimeloomError("the disk is full", "free space"))


def test_workers_end_when_the_run_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "main.py"
    script.write_text(
        "import os, time\n"
        "from concurrent.futures import wait\n"
        "from pipelines.engine.local import LocalEngine\n"
        "if __name__ == '__main__':\n"
        "    pool = LocalEngine(2)._executor()\n"
        "    wait([pool.submit(time.sleep, 0.2) for _ in range(4)])\n"
        "    print(*pool._processes, flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        children = [int(word) for word in run.stdout.readline().split()]
        assert len(children) == 2
        run.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while any(_alive(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    left = [child for child in children if _alive(child)]
    for child in left:
        os.kill(child, signal.SIGKILL)
    assert not left, "workers outlive a killed run and hold its memory"


def _alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_progress_counts_every_task_once(inputs: list[Path], tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    context = context_of(tmp_path, LocalEngine(1))
    context.progress = lambda stage, done, total: seen.append((stage, done, total))
    run_stage(STAGE, tasks_of(inputs, tmp_path), context)
    assert seen == [("toy", number, 5) for number in range(6)]
