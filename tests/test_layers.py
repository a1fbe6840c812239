"""The order of the layers is checked, and the check would see an import that goes up."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flows.guard import PACKAGES

HOME = Path(__file__).parents[1]


def lint(folder: Path) -> "subprocess.CompletedProcess[str]":
    """import-linter with the repository's contracts, on the packages in `folder`."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    environment = {"PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The packages and their contracts in a folder of their own."""
    shutil.copy(HOME / "pyproject.toml", tmp_path)
    for package in PACKAGES:
        shutil.copytree(HOME / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_imports_go_down() -> None:
    done = lint(HOME)
    assert done.returncode == 0, done.stdout
    assert "1 kept, 0 broken" in done.stdout


def test_an_import_that_goes_up_is_caught(copy: Path) -> None:
    assert lint(copy).returncode == 0
    (copy / "warehouse" / "planted.py").write_text(
        "def late() -> None:\n    import pipelines.engine.run_stage  # noqa\n"
    )
    done = lint(copy)
    assert done.returncode == 1
    assert "warehouse.planted -> pipelines.engine.run_stage" in done.stdout


def test_an_indirect_import_that_goes_up_is_caught(copy: Path) -> None:
    (copy / "extractors" / "planted.py").write_text("from validation.planted import ANYTHING\n")
    (copy / "validation" / "planted.py").write_text("ANYTHING = 1\n")
    assert "extractors.planted -> validation.planted" in lint(copy).stdout


def test_every_package_is_in_the_contract() -> None:
    import tomllib

    linter = tomllib.loads((HOME / "pyproject.toml").read_text())["tool"]["importlinter"]
    assert set(linter["root_packages"]) == set(PACKAGES)
    assert set(linter["contracts"][0]["layers"]) == set(PACKAGES)
