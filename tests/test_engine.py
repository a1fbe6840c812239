"""Engines: the same bytes wherever tasks run, nothing lost unnoticed, nothing of a patient in what went wrong."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import toy_stage

from flows.log import RunLog
from pipelines.engine import (
    BeamEngine,
    Engine,
    LocalEngine,
    RunContext,
    Stage,
    StageReport,
    Task,
    execute,
    make_task,
    run_stage,
)
from warehouse.errors import TimeloomError
from warehouse.files import sha256_file
from warehouse.layout import Layout
from warehouse.manifest import Manifest
from warehouse.publish import publish

STAGE = Stage("toy", 1, "toy_stage:run")
ENGINES: dict[str, Callable[[], Engine]] = {
    "local, 1 worker": lambda: LocalEngine(1),
    "local, 2 workers": lambda: LocalEngine(2),
    "Beam in memory": lambda: BeamEngine(),
    "Beam, 2 processes": lambda: BeamEngine(workers=2),
}


@pytest.fixture(autouse=True)
def importable_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beam's worker processes inherit the environment, not the path of this process."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


@pytest.fixture
def inputs(tmp_path: Path) -> list[Path]:
    """Five input files."""
    folder = tmp_path / "raw"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.txt").write_text("".join(f"{(7 * line) % 11} {number}\n" for line in range(11)))
    return sorted(folder.iterdir())


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


@pytest.mark.parametrize("name", ENGINES)
def test_a_clear_error_arrives_as_it_was_raised(name: str, inputs: list[Path], tmp_path: Path) -> None:
    with ENGINES[name]() as engine, pytest.raises(TimeloomError) as caught:
        run_stage(STAGE, tasks_of(inputs, tmp_path, {2: "clear"}), context_of(tmp_path, engine))
    assert str(caught.value) == "table labs lacks the column value; export it"
    assert any("toy, 2" in note for note in caught.value.__notes__)
    assert len(list((tmp_path / "tasks" / "toy").glob("*.json"))) == 4, "the other tasks are done and will resume"


@pytest.mark.parametrize("name", ENGINES)
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
    newer = Stage("toy", 2, "toy_stage:run")
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
    monkeypatch.setattr(os, "fsync", os.fsync)  # undone afterwards, where the task runs in this process
    faults = dict.fromkeys(range(5), "full")
    with LocalEngine(workers) as engine, pytest.raises(TimeloomError) as caught:
        run_stage(STAGE, tasks_of(inputs, tmp_path, faults), context_of(tmp_path, engine))
    assert str(caught.value) == "the disk is full; free space and run again; it resumes"
    assert "MRN" not in repr(caught.value) + repr(caught.value.__cause__)
    assert not list((tmp_path / "release").rglob("*.*")), "nothing half-written stays"


def test_a_full_disk_does_not_hide_behind_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = RunLog(tmp_path / "log")

    def full(*_: object, **__: object) -> None:
        toy_stage.fill_disk()
        os.fsync(0)

    monkeypatch.setattr(os, "fsync", os.fsync)
    monkeypatch.setattr(Path, "open", full)
    log.failure(TimeloomError("the disk is full", "free space"))


def test_workers_end_when_the_run_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "main.py"
    script.write_text(
        "import os, time\n"
        "from concurrent.futures import wait\n"
        "from pipelines.engine import LocalEngine\n"
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
