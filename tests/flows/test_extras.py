"""An extra brings what it says; a command that needs an absent one says which, in one line."""

import shutil
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from flows import extras
from flows.guard import PACKAGES
from tests.support.light_environments import HOME, LightEnvironment, build_wheel, declared, names
from tests.warehouse.test_light_reader import OPTIONAL as WHERE_INSTALLED
from tests.warehouse.test_light_reader import imported
from warehouse.errors import TimeloomError

OPTIONAL = declared()["optional-dependencies"]
INSTALLS = ("reader", "pipeline", "images", "beam", "trainers", "stores")


@pytest.mark.parametrize("extra", extras.MODULES)
def test_the_modules_of_an_extra_are_its_distributions(extra: str) -> None:
    owners = packages_distributions()
    brought = {canonicalize_name(owner) for module in extras.MODULES[extra] for owner in owners[module]}
    assert brought == names(OPTIONAL[extra])


def test_all_is_every_extra_that_runs_something() -> None:
    (everything,) = OPTIONAL["all"]
    assert everything == f"timeloom[{','.join(INSTALLS)}]"
    assert set(OPTIONAL) == {*INSTALLS, "dask", "all", "docs", "dev"}


@pytest.mark.whole
def test_what_the_rooms_import_is_declared() -> None:
    owners = packages_distributions()
    modules = set().union(*map(imported, PACKAGES)) - set(PACKAGES)
    asked = names(declared()["dependencies"]).union(*(names(OPTIONAL[extra]) for extra in (*INSTALLS, "dask")))
    undeclared = {
        module
        for module in modules - WHERE_INSTALLED
        if not {canonicalize_name(name) for name in owners[module]} & asked
    }
    assert undeclared == set()


def test_an_absent_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(extras.MODULES, "beam", ("absent_module",))
    with pytest.raises(TimeloomError) as caught:
        extras.require("beam", "runs on Beam")
    expected = "runs on Beam need absent_module, which is not installed; pip install 'timeloom[beam]'"
    assert str(caught.value) == expected


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


def installed(folder: Path, wheel: Path, *chosen: str) -> LightEnvironment:
    """An environment of `timeloom` with extras."""
    wanted = [text for extra in chosen for text in OPTIONAL[extra]]
    return LightEnvironment(folder / "env", wheel, [*declared()["dependencies"], *wanted])


def timeloom(environment: LightEnvironment, cwd: Path, command: str) -> tuple[int, str]:
    """Exit code and standard error of a command."""
    done = environment.run(["-m", "flows.cli", *command.split()], cwd)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


@pytest.mark.whole
def test_without_extras_each_command_says_what_it_needs(wheel: Path, demo_release: Path, tmp_path: Path) -> None:
    bare = installed(tmp_path, wheel)
    shutil.copytree(HOME / "docs" / "examples", tmp_path / "examples")
    needs = {
        "demo": "pipeline",
        "run examples/clinic.yaml": "pipeline",
        "meds examples/clinic.yaml --out meds": "pipeline",
        "serve examples/clinic.yaml": "pipeline",
        "verify": "pipeline",
        "repair examples/clinic.yaml": "pipeline",
        "check-source examples/clinic-source.yaml": "pipeline",
        "simulate hospital": "images",
        "index examples": "images",
    }
    for command, extra in needs.items():
        code, error = timeloom(bare, tmp_path, command)
        assert (code, error.count("\n")) == (1, 1), error
        assert error.endswith(f"which is not installed; pip install 'timeloom[{extra}]'\n")
    for command in ("status", "report"):
        assert timeloom(bare, tmp_path, f"{command} --root {demo_release}") == (0, "")


@pytest.mark.whole
def test_the_pipeline_alone_publishes_tables_and_names_what_the_rest_needs(wheel: Path, tmp_path: Path) -> None:
    tables = installed(tmp_path, wheel, "pipeline")
    shutil.copytree(HOME / "docs" / "examples", tmp_path / "examples")
    assert timeloom(tables, tmp_path, "run examples/clinic.yaml --root root --direct")[0] == 0
    assert timeloom(tables, tmp_path, "verify --root root")[0] == 0
    assert timeloom(tables, tmp_path, "repair examples/clinic.yaml --root root")[0] == 0
    code, error = timeloom(tables, tmp_path, "run examples/clinic.yaml --root root --direct --engine beam")
    assert (code, error) == (
        1, "timeloom: runs on Beam need apache_beam, which is not installed; pip install 'timeloom[beam]'\n",
    )  # fmt: skip
    code, error = timeloom(tables, tmp_path, "run examples/mimic-iv-demo.yaml --root other --direct")
    assert (code, error) == (
        1, "timeloom: images need pydicom, which is not installed; pip install 'timeloom[images]'\n",
    )  # fmt: skip
