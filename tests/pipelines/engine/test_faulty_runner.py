"""Runners with faults: what is lost is named, what comes twice or in another order changes no byte."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

from pipelines.engine.beam import BeamEngine
from pipelines.engine.execute import execute
from pipelines.engine.local import LocalEngine
from pipelines.engine.run_stage import run_stage
from pipelines.engine.task import Result, Task
from pipelines.engine.workers import start_pool
from tests.pipelines.engine.test_engine import STAGE, context_of, tasks_of
from tests.support.nights import faulty_runner
from warehouse.errors import TimeloomError
from warehouse.files import atomic_write, sha256_file


def engine_with(fault: str) -> BeamEngine:
    return BeamEngine(faulty_runner.NAME, options=[f"--fault={fault}"])


def hashes(inputs: list[Path], staging: Path, engine: Any) -> dict[str, str]:
    return run_stage(STAGE, tasks_of(inputs, staging), context_of(staging, engine)).hashes()


@pytest.mark.parametrize("fault", ["none", "repeat", "reverse"])
def test_what_comes_twice_or_in_another_order_changes_no_byte(inputs: list[Path], tmp_path: Path, fault: str) -> None:
    expected = hashes(inputs, tmp_path / "calm", LocalEngine(1))
    assert hashes(inputs, tmp_path / fault, engine_with(fault)) == expected


@pytest.mark.parametrize(("fault", "named"), [("lose", "toy/4"), ("lose_all", "toy/0")])
def test_a_lost_task_is_named_and_the_next_run_makes_it(
    inputs: list[Path], tmp_path: Path, fault: str, named: str
) -> None:
    expected = hashes(inputs, tmp_path / "calm", LocalEngine(1))
    staging = tmp_path / fault
    with pytest.raises(TimeloomError, match=f"the engine lost the task {named}; run again; it resumes"):
        hashes(inputs, staging, engine_with(fault))
    report = run_stage(STAGE, tasks_of(inputs, staging), context_of(staging, LocalEngine(1)))
    assert report.hashes() == expected
    assert report.resumed == (4 if fault == "lose" else 0)


@pytest.mark.whole
def test_a_task_that_runs_twice_at_once_makes_the_same_bytes(inputs: list[Path], tmp_path: Path) -> None:
    expected = hashes(inputs, tmp_path / "calm", LocalEngine(1))
    assert hashes(inputs, tmp_path / "twice", engine_with("twice_at_once")) == expected


def meeting(params: dict[str, Any], base: Path) -> Result:
    """Writes a file slowly, beside another execution of the very task: neither is done before both have begun."""
    begun = Path(params["meeting"])
    (begun / str(os.getpid())).touch()
    with atomic_write(base / "out.txt") as temporary:
        for _ in range(200):
            with temporary.open("a", encoding="utf-8") as file:
                file.write("the same\n" * 50)
                file.flush()
            until = time.monotonic() + 30
            while len(list(begun.iterdir())) < 2 and time.monotonic() < until:
                time.sleep(0.01)
    return Result({"out.txt": None})


def meeting_task(tmp_path: Path) -> Task:
    (tmp_path / "meeting").mkdir()
    function = "tests.pipelines.engine.test_faulty_runner:meeting"
    params = {"meeting": str(tmp_path / "meeting")}
    return Task("toy", function, "m", str(tmp_path / "base"), str(tmp_path / "m.json"), params, "fingerprint")


@pytest.mark.whole
def test_two_processes_that_write_one_file_at_once_write_it_whole(tmp_path: Path) -> None:
    task = meeting_task(tmp_path)
    with start_pool(2) as pool:
        for done in [pool.submit(execute, task) for _ in range(2)]:
            assert done.result() == "m"
    assert len(list((tmp_path / "meeting").iterdir())) == 2, "both were at work at once"
    assert (tmp_path / "base" / "out.txt").read_text() == "the same\n" * 10_000
    assert [path.name for path in (tmp_path / "base").iterdir()] == ["out.txt"]
    assert not (tmp_path / "m.error").exists()


def test_processes_of_one_number_on_two_machines_do_not_share_a_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    with atomic_write(path) as first, atomic_write(path) as second:
        assert first != second
        second.write_text("whole\n")
        first.write_text("whole\n")
    assert path.read_text() == "whole\n"


class RefusedOnceEngine(LocalEngine):
    """Each task runs well, and once more, in which its fault stops it: it ends in both a record and a failure."""

    def __init__(self, spoilt: bool) -> None:
        super().__init__(1)
        self.spoilt = spoilt

    def map(self, tasks: Any, done: Any) -> None:
        """Runs the tasks, each twice."""
        super().map(tasks, done)
        for task in tasks:
            if self.spoilt:
                (Path(task.base) / f"sorted/{task.params['name']}.txt").write_text("other bytes\n")
            execute(Task(**{**vars(task), "params": {**task.params, "fault": "clear"}}))


@pytest.mark.parametrize("spoilt", [False, True])
def test_a_failure_counts_unless_what_another_try_made_stands(inputs: list[Path], tmp_path: Path, spoilt: bool) -> None:
    staging = tmp_path / "staging"
    if spoilt:
        with pytest.raises(TimeloomError, match="table labs lacks the column value"):
            hashes(inputs, staging, RefusedOnceEngine(spoilt))
        return
    made = hashes(inputs, staging, RefusedOnceEngine(spoilt))
    assert made == {name: sha256_file(staging / "release" / name) for name in made}
