"""Our packages have plain names: each has one owner, and an intruder of that name is refused."""

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from flows.guard import PACKAGES, check_ownership, owners
from warehouse.errors import TimeloomError

HOME = Path(__file__).parents[2]


@pytest.mark.whole
@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_is_ours_alone(package: str) -> None:
    module = importlib.import_module(package)
    assert module.__file__ is not None
    assert Path(module.__file__).resolve() == HOME / package / "__init__.py"
    assert set(packages_distributions()[package]) == {"timeloom"}


def test_the_path_is_clean_as_it_is() -> None:
    check_ownership()
    assert owners("flows") <= {HOME / "flows"}
    assert owners("flows", [str(HOME)]) == {HOME / "flows"}, "the check does find what is there"


def plant_package(folder: Path, package: str) -> None:
    """As a distribution from PyPI would bring it."""
    (folder / package).mkdir()
    (folder / package / "__init__.py").touch()


def plant_module(folder: Path, package: str) -> None:
    """A single file."""
    (folder / f"{package}.py").touch()


def plant_namespace(folder: Path, package: str) -> None:
    """A folder without __init__."""
    (folder / package).mkdir()
    (folder / package / "other.py").touch()


INTRUDERS = [plant_package, plant_module, plant_namespace]


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("plant", INTRUDERS)
def test_an_intruder_is_refused(
    plant: Callable[[Path, str], None], package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(tmp_path, package)
    with pytest.raises(TimeloomError) as caught:
        check_ownership([str(tmp_path)])
    assert str(caught.value) == (
        f"another installed package is called {package}; install timeloom in an environment of its own"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path / "absent"), str(tmp_path)])
    with pytest.raises(TimeloomError):
        check_ownership()


def test_a_folder_that_cannot_be_imported_in_our_place_is_none(tmp_path: Path) -> None:
    plant_namespace(tmp_path, "validation")
    check_ownership([str(tmp_path), str(HOME)])


# A module flows.py or warehouse.py cannot be refused in words: it stands before the guard itself is imported.
REFUSED = [(plant_package, package) for package in PACKAGES] + [
    (plant_module, package) for package in PACKAGES if package not in ("flows", "warehouse")
]


@pytest.mark.whole
@pytest.mark.parametrize(("plant", "package"), REFUSED)
def test_the_command_refuses_to_start_beside_an_intruder(
    plant: Callable[[Path, str], None], package: str, tmp_path: Path
) -> None:
    plant(tmp_path, package)
    command = [str(Path(sys.executable).with_name("timeloom")), "status"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        f"timeloom: another installed package is called {package}; install timeloom in an environment of its own\n"
    )
