"""The order of rooms and modules is checked, and the check names an import that breaks it."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from flows.guard import PACKAGES

HOME = Path(__file__).parents[1]
PROJECT = tomllib.loads((HOME / "pyproject.toml").read_text())["tool"]
ROOMS, TRAINERS, CIRCLES, WAREHOUSE = (contract["name"] for contract in PROJECT["importlinter"]["contracts"])


def lint(folder: Path) -> "subprocess.CompletedProcess[str]":
    """import-linter with the repository's contracts, on the packages in `folder`."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    environment = {"PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def broken(folder: Path) -> tuple[list[str], str]:
    """The contracts that the packages in `folder` break, and what import-linter prints."""
    done = lint(folder)
    names = [name for name in (ROOMS, TRAINERS, CIRCLES, WAREHOUSE) if f"{name} BROKEN" in done.stdout]
    assert done.returncode == bool(names), done.stdout + done.stderr
    return names, done.stdout


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A copy of the packages and their contracts, to plant imports in."""
    shutil.copy(HOME / "pyproject.toml", tmp_path)
    for package in PACKAGES:
        shutil.copytree(HOME / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def plant(module: Path, line: str) -> None:
    """Adds a line to a module, which need not exist."""
    text = module.read_text() if module.exists() else ""
    module.write_text(f"{text}\n{line}\n")


def test_imports_go_down_and_make_no_circle() -> None:
    done = lint(HOME)
    assert done.returncode == 0, done.stdout
    assert "4 kept, 0 broken" in done.stdout


def test_an_upward_import_between_rooms_is_caught(house: Path) -> None:
    assert broken(house)[0] == []
    plant(house / "warehouse" / "files.py", "def late() -> None:\n    import pipelines.engine.run_stage  # noqa")
    names, printed = broken(house)
    assert names == [ROOMS]
    assert "warehouse.files -> pipelines.engine.run_stage" in printed


def test_an_indirect_upward_import_is_caught(house: Path) -> None:
    plant(house / "extractors" / "planted.py", "from validation.planted import ANYTHING")
    plant(house / "validation" / "planted.py", "ANYTHING = 1")
    names, printed = broken(house)
    assert names == [ROOMS]
    assert "extractors.planted -> validation.planted" in printed


@pytest.mark.parametrize(
    "line",
    ["import pipelines.engine.task", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import extractors"],
)
def test_a_trainer_that_imports_more_than_the_warehouse_is_caught(house: Path, line: str) -> None:
    plant(house / "trainers" / "planted.py", f"import warehouse.tokens\n{line}")
    names, printed = broken(house)
    assert names == [TRAINERS]
    assert "trainers.planted -> " in printed


def test_nothing_imports_a_trainer(house: Path) -> None:
    plant(house / "trainers" / "planted.py", "import warehouse.tokens")
    plant(house / "flows" / "planted.py", "import trainers.planted")
    names, printed = broken(house)
    assert names == [ROOMS]
    assert "flows.planted -> trainers.planted" in printed


def test_a_circle_of_two_modules_is_caught(house: Path) -> None:
    plant(house / "pipelines" / "aligning" / "first.py", "import pipelines.aligning.second")
    plant(house / "pipelines" / "aligning" / "second.py", "def late() -> None:\n    import pipelines.aligning.first")
    names, printed = broken(house)
    assert names == [CIRCLES]
    assert "No cycles are allowed in pipelines.aligning." in printed
    assert ".first -> .second" in printed or ".second -> .first" in printed


def test_a_circle_of_two_folders_by_types_alone_is_caught(house: Path) -> None:
    plant(house / "extractors" / "tables" / "first.py", "import extractors.events.second")
    types_alone = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import extractors.tables.third"
    plant(house / "extractors" / "events" / "second.py", types_alone)
    plant(house / "extractors" / "tables" / "third.py", "ANYTHING = 1")
    names, printed = broken(house)
    assert names == [CIRCLES]
    assert "No cycles are allowed in extractors." in printed
    assert ".tables -> .events (1 import)" in printed


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        ("warehouse.shards.planted", "warehouse.readers.scaling"),
        ("warehouse.embeddings.planted", "warehouse.shards.times"),
        ("warehouse.hashing", "warehouse.embeddings.value"),
    ],
)
def test_an_upward_import_inside_the_warehouse_is_caught(house: Path, module: str, imported: str) -> None:
    plant(house.joinpath(*module.split(".")).with_suffix(".py"), f"import {imported}")
    names, printed = broken(house)
    assert WAREHOUSE in names
    assert f"{module} -> {imported}" in printed


def test_a_module_of_the_warehouse_without_a_place_is_caught(house: Path) -> None:
    plant(house / "warehouse" / "planted.py", "ANYTHING = 1")
    done = lint(house)
    assert done.returncode == 1
    assert "warehouse.planted" in done.stdout


def test_every_package_is_checked_and_installed() -> None:
    linter = PROJECT["importlinter"]
    layers = [room.strip() for layer in linter["contracts"][0]["layers"] for room in layer.split("|")]
    assert sorted(layers) == sorted(PACKAGES)
    assert list(PACKAGES) == linter["root_packages"] == linter["contracts"][2]["ancestors"]
    assert list(PACKAGES) == PROJECT["mypy"]["packages"]
    assert [f"{package}*" for package in PACKAGES] == PROJECT["setuptools"]["packages"]["find"]["include"]
    assert {*linter["contracts"][1]["forbidden_modules"], "trainers", "warehouse"} == set(PACKAGES)
