"""The site's own command is told of each release, once where it succeeds, and again where it does not."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from flows.announce import announce, announce_outcome
from flows.runs.log import RunLog
from flows.runs.run import Run, RunOutcome
from warehouse.layout import Layout

WRITES = "import os, sys; open(sys.argv[1], 'a').write(os.environ['TIMELOOM_RELEASE'] + '\\n')"


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "root")
    for name in ("first", "second"):
        (layout.releases / name).mkdir(parents=True)
    _point(layout, "first")
    return layout


def _point(layout: Layout, name: str) -> None:
    layout.current.unlink(missing_ok=True)
    layout.current.symlink_to(Path("releases") / name)


def test_each_release_is_told_once(layout: Layout, tmp_path: Path) -> None:
    said: list[str] = []
    heard = tmp_path / "heard"
    command = [sys.executable, "-c", WRITES, str(heard)]
    assert announce(layout, command, said.append)
    assert not announce(layout, command, said.append)
    _point(layout, "second")
    assert announce(layout, command, said.append)
    assert heard.read_text().splitlines() == [str(layout.releases / name) for name in ("first", "second")]
    assert said == []


def test_a_release_whose_announcement_was_lost_is_told_again(layout: Layout, tmp_path: Path) -> None:
    heard = tmp_path / "heard"
    command = [sys.executable, "-c", WRITES, str(heard)]
    announce(layout, command, print)
    layout.announced.write_bytes(b"damaged")
    assert announce(layout, command, print)
    assert len(heard.read_text().splitlines()) == 2


def test_a_command_that_fails_is_said_and_told_again(layout: Layout, tmp_path: Path) -> None:
    said: list[str] = []
    assert not announce(layout, [sys.executable, "-c", "raise SystemExit(3)"], said.append)
    assert not announce(layout, [str(tmp_path / "no-such-program")], said.append)
    assert said == [
        "on_publish ended with exit code 3; the next run tries again",
        "on_publish cannot be started (FileNotFoundError); the next run tries again",
    ]
    assert announce(layout, [sys.executable, "-c", ""], said.append)


def test_a_failure_is_in_the_outcome_and_the_log(layout: Layout, tmp_path: Path) -> None:
    log = RunLog(tmp_path / "run.log")
    config = SimpleNamespace(on_publish=[sys.executable, "-c", "raise SystemExit(3)"])
    run = cast(Run, SimpleNamespace(layout=layout, config=config, log=log))
    outcome = RunOutcome("first", published=True, quarantined=0, report=Path("report.html"), steps=[])
    said = "on_publish ended with exit code 3; the next run tries again"
    assert announce_outcome(run, outcome).unannounced == said
    assert announce_outcome(run, outcome).lines() == ["published release first", said, "report: report.html"]
    assert log.path.read_text().splitlines()[0].endswith(said)
    config.on_publish = [sys.executable, "-c", ""]
    assert announce_outcome(run, outcome) == outcome


def test_nothing_is_told_without_a_command_or_a_release(layout: Layout, tmp_path: Path) -> None:
    assert not announce(layout, [], print)
    assert not announce(Layout(tmp_path / "empty"), [sys.executable, "-c", ""], print)
    assert not layout.announced.exists()
