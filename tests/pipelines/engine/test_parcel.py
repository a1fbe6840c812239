"""What travels to workers elsewhere: paths as they are there, no key, and a worker that does not fit refuses."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from pipelines.engine import parcel
from pipelines.engine.execute import execute_parcel
from pipelines.engine.parcel import PATHS_VARIABLE, WorkerRefusedError, pack, refusal_in, unpack
from pipelines.engine.run_stage import load_record
from pipelines.engine.task import RawFile, StageFunction, Task, make_task
from warehouse.errors import TimeloomError
from warehouse.files import signature

STAGE = StageFunction("toy", 1, "tests.support.nights.toy_stage:run")


@pytest.fixture
def task(tmp_path: Path) -> Task:
    raw = tmp_path / "raw.txt"
    raw.write_text("b\na\n")
    watched = {str(raw): RawFile(what="the table labs", signature=signature(raw))}
    params = {"input": str(raw), "name": "n"}
    return make_task(
        STAGE, "n", tmp_path / "staging", settings=0, inputs=0, params=params, raw_files=watched
    )  # fmt: skip


def as_json(task: Task) -> str:
    return json.dumps(asdict(task))


def moved(sent: str, before: Path, after: str) -> str:
    """A parcel as another machine would have packed it, on which a folder has another path."""
    assert str(before) in sent
    return sent.replace(str(before), after)


def test_a_task_comes_out_as_it_went_in(task: Task) -> None:
    assert as_json(unpack(pack(task))) == as_json(task)


def test_paths_are_as_they_are_on_the_worker(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PATHS_VARIABLE, f"/planned=/elsewhere:/planned/at={tmp_path}")
    sent = moved(pack(task), tmp_path, "/planned/at")
    assert as_json(unpack(sent)) == as_json(task), "the longest of two that fit, also where a path is a key"
    assert execute_parcel(sent) == "n"
    assert load_record(Path(task.record)) is not None


def test_a_path_is_moved_with_its_folder_alone(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PATHS_VARIABLE, "/a=/b")
    near = {"input": "/ab/c", "folder": "/a", "text": "see /a/x", "list": ["/a/x", 3, None]}
    sent = json.loads(pack(task))
    sent["task"]["params"] = near
    assert unpack(json.dumps(sent)).params == near | {"folder": "/b", "list": ["/b/x", 3, None]}


@pytest.mark.parametrize("value", ["/a", "a=b", "/a=/b=/c", "/a=/b:c"])
def test_a_list_of_paths_that_is_none_is_refused(task: Task, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(PATHS_VARIABLE, value)
    with pytest.raises(WorkerRefusedError, match="no list of paths; write TIMELOOM_PATHS="):
        unpack(pack(task))


def other_code(sent: dict[str, Any], _: Path) -> None:
    sent["code"]["code of timeloom"] = "0" * 12


def other_library(sent: dict[str, Any], _: Path) -> None:
    sent["code"]["polars"] = "0.1; alpha"


def no_root(sent: dict[str, Any], folder: Path) -> None:
    shutil.move(folder / "staging", folder / "away")


def another_root(sent: dict[str, Any], folder: Path) -> None:
    """As a copy, or the empty folder of a mount that failed."""
    shutil.move(folder / "staging", folder / "away")
    shutil.copytree(folder / "away", folder / "staging")


def no_export(sent: dict[str, Any], folder: Path) -> None:
    (folder / "raw.txt").unlink()


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (other_code, "has another code of timeloom, [0-9a-f]{12}, and the run was planned with 0{12}; install"),
        (other_library, "has another polars, .* planned with 0.1, alpha; install"),
        (no_root, "does not see the root that the run writes; mount it there"),
        (another_root, "does not see the root that the run writes; mount it there"),
        (no_export, "does not see the table labs; mount it there; where it has another path, set TIMELOOM_PATHS"),
    ],
)
def test_a_worker_that_does_not_fit_says_why_and_writes_nothing(
    task: Task, tmp_path: Path, fault: Callable[[dict[str, Any], Path], None], says: str
) -> None:
    sent = json.loads(pack(task))
    fault(sent, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(WorkerRefusedError, match=says) as caught:
        execute_parcel(json.dumps(sent))
    assert sorted(tmp_path.rglob("*")) == before
    assert str(tmp_path) not in str(caught.value)
    # As a runner passes it on: in a text of its own, wrapped into lines.
    passed_on = str(caught.value).replace(" ", "\n")
    found = refusal_in(f"RuntimeError: Traceback … {passed_on} [while running 'Map']")
    assert found is not None
    assert type(found) is TimeloomError
    assert (found.message, found.remedy) == (caught.value.message, caught.value.remedy)


def test_a_hash_of_the_code_changes_with_any_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = parcel.code_here()["code of timeloom"]
    (tmp_path / "warehouse").mkdir()
    (tmp_path / "warehouse" / "__init__.py").write_text("x = 1\n")

    def hashed() -> str:
        with monkeypatch.context() as patch:
            patch.setattr(parcel, "_folders", lambda: [("warehouse", tmp_path / "warehouse")])
            return parcel.code_here.__wrapped__()["code of timeloom"]

    first = hashed()
    (tmp_path / "warehouse" / "rules.yaml").write_text("a: 1\n")
    second = hashed()
    (tmp_path / "warehouse" / "rules.yaml").write_text("a: 2\n")
    assert len({here, first, second, hashed()}) == 4
