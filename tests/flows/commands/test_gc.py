"""`timeloom gc` as a person and a program see it."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from flows.cli import app
from tests.support.nights.many_releases import make_root, name_of, releases
from warehouse.errors import TimeloomError
from warehouse.layout import Layout
from warehouse.publish import exclusive

NIGHTS = range(30, 40)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return make_root(tmp_path, NIGHTS)


def test_a_dry_run_then_the_removal(layout: Layout) -> None:
    options = ["--daily", "8", "--weekly", "0", "--monthly", "0"]
    shown = CliRunner().invoke(app, ["gc", str(layout.root), *options])
    assert shown.exit_code == 0
    lines = shown.stdout.splitlines()
    assert any(line.startswith(f"{name_of(30)} goes: ") for line in lines)
    assert f"{name_of(39)} stays: current" in lines
    assert lines[-1] == "nothing was removed: --yes removes it"
    assert len(releases(layout)) == len(NIGHTS)
    done = CliRunner().invoke(app, ["gc", str(layout.root), *options, "--yes", "--json"])
    found = json.loads(done.stdout)
    assert found["applied"]
    assert [part["name"] for part in found["gone"] if part["kind"] == "release"] == [name_of(31), name_of(30)]
    assert found["bytes"] == sum(part["bytes"] for part in found["gone"]) > 0
    assert releases(layout) == set(found["kept"]) == {name_of(night) for night in range(32, 40)}


def test_a_configuration_says_what_stays(layout: Layout, tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    config = {
        "root": str(layout.root),
        "sources": [{"source": "simulated-hospital", "path": "tables"}],
        "limits": {"window": 3},
        "keep": {"daily": 1, "weekly": 0, "monthly": 0, "releases": [name_of(31)]},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    done = CliRunner().invoke(app, ["gc", str(tmp_path / "run.yaml"), "--yes", "--json"])
    assert json.loads(done.stdout)["kept"] == {
        name_of(39): "current",
        name_of(38): "the one before it",
        name_of(37): "compared with the next night",
        name_of(31): "named",
    }
    assert releases(layout) == {name_of(night) for night in (31, 37, 38, 39)}


def test_what_cannot_be_done_is_a_line(layout: Layout, tmp_path: Path) -> None:
    def error(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["gc", *arguments])
        assert isinstance(done.exception, TimeloomError)
        return str(done.exception)

    with exclusive(layout):
        assert error(str(layout.root), "--yes").startswith("another run is working on warehouse; ")
    assert "there is no warehouse with releases" in error(str(layout.segments))
    assert "there is nothing at" in error(str(tmp_path / "absent.yaml"))
    assert releases(layout) == {name_of(night) for night in NIGHTS}
