"""What a stage cost: seconds of processors wherever its tasks ran, each counted once, and none of it in a release."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.config import parse_config
from pipelines.engine import cost
from pipelines.engine.context import RunContext
from pipelines.engine.cost import Cost
from pipelines.engine.fingerprints import Fingerprints
from pipelines.engine.local import LocalEngine
from pipelines.engine.run_stage import load_record
from pipelines.engine.task import Engine, Task, make_task
from pipelines.night import Night, Stage, carry_out
from warehouse.layout import Layout
from warehouse.sealed import read_sealed

SECONDS = 0.2
BUSY = "tests.support.nights.toy_stage:busy"


def night_in(folder: Path, engine: Engine) -> Night:
    config = parse_config({"sources": [{"source": "omop", "path": "."}]}, folder, "run.yaml")
    layout = Layout(folder)
    context = RunContext(engine=engine, staging=folder / "work", previous=None, previous_path=None)
    return Night(config, folder, layout, context, Fingerprints(layout.private))


def busy_stage(name: str, number: int, *, child: bool = False, prepares: str | None = None) -> Stage:
    """A stage of `number` tasks that keep a processor busy for SECONDS each."""

    def plan(night: Night) -> list[Task]:
        params = {"seconds": SECONDS, "child": child}
        keys = map(str, range(number))
        return [make_task(stage, key, night.context.staging, settings="", inputs="", params=params) for key in keys]

    stage = Stage(name, 1, BUSY, plan=plan, prepares=prepares)
    return stage


def carried_out(folder: Path, engine: Callable[[], Engine], *stages: Stage) -> dict[str, Cost]:
    with engine() as running:
        night = night_in(folder, running)
        return {report.name: report.cost for report in carry_out(stages[-1], night, stages)}


@pytest.mark.parametrize("child", [False, True])
def test_tasks_of_this_process_count_once(tmp_path: Path, child: bool) -> None:
    found = carried_out(tmp_path, lambda: LocalEngine(1), busy_stage("toy", 2, child=child))["toy"]
    assert 2 * SECONDS <= found.cpu_seconds < 2 * SECONDS + 0.3
    assert found.seconds >= 2 * SECONDS


# In `make test` alone: worker processes are started.
@pytest.mark.whole
@pytest.mark.parametrize(
    "engine", [lambda: LocalEngine(2), lambda: LocalEngine(2, in_this_process=True)], ids=["pool", "shared"]
)
def test_tasks_of_workers_count_with_what_they_import(tmp_path: Path, engine: Callable[[], Engine]) -> None:
    found = carried_out(tmp_path, engine, busy_stage("toy", 6))["toy"]
    assert 6 * SECONDS <= found.cpu_seconds < 6 * SECONDS + 4


def test_a_stage_that_prepares_another_has_a_cost_of_its_own(tmp_path: Path) -> None:
    helper, main = busy_stage("helper", 2, prepares="main"), busy_stage("main", 1)
    start = time.monotonic()
    found = carried_out(tmp_path, lambda: LocalEngine(1), helper, main)
    taken = time.monotonic() - start
    assert 2 * SECONDS <= found["helper"].cpu_seconds < 2 * SECONDS + 0.15
    assert SECONDS <= found["main"].cpu_seconds < SECONDS + 0.15
    assert found["main"].seconds >= SECONDS
    assert found["main"].seconds + found["helper"].seconds <= taken, "no second counts for both"


def test_what_is_resumed_costs_nothing(tmp_path: Path) -> None:
    stage = busy_stage("toy", 2)
    carried_out(tmp_path, lambda: LocalEngine(1), stage)
    assert carried_out(tmp_path, lambda: LocalEngine(1), stage)["toy"].cpu_seconds < SECONDS


def test_other_processes_alone_are_added(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = [{"process": cost.PROCESS, "cpu_seconds": 9.0}, {"process": "x", "cpu_seconds": 1.5}, None]
    assert cost.elsewhere(costs) == 1.5
    used = iter([3.0, 3.25, 5.0])
    monkeypatch.setattr(cost, "_reported", 0.0)
    monkeypatch.setattr(cost, "processor_seconds", lambda: next(used))
    found = [cost.task_cost()["cpu_seconds"] for _ in range(3)]
    assert found == [3.0, 0.25, 1.75], "each with what it used since the task before"


def test_a_record_says_it_and_a_manifest_does_not(tmp_path: Path) -> None:
    carried_out(tmp_path, lambda: LocalEngine(1), busy_stage("toy", 1))
    path = tmp_path / "work" / "tasks" / "toy" / "0.json"
    assert read_sealed(path)["cost"]["process"] == cost.PROCESS
    entry = load_record(path)
    assert entry is not None
    assert "cost" not in entry.model_dump()
