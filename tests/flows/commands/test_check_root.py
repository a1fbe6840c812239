"""`timeloom check-root`: a line for each operation, exit code 1 where one fails, nothing left behind."""

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.commands import check_root
from warehouse import file_system
from warehouse.errors import TimeloomError
from warehouse.file_system import held


def run(*arguments: str | Path) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["check-root", *map(str, arguments)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, " ".join(done.output.split())


def test_it_says_what_works(tmp_path: Path) -> None:
    code, said = run(tmp_path)
    assert code == 0
    assert "ok flock between two processes" in said
    assert list(tmp_path.iterdir()) == []


def test_it_fails_where_something_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ignored(*_: object) -> None: ...

    monkeypatch.setattr(file_system.fcntl, "flock", ignored)
    code, said = run(tmp_path, "--json")
    assert code == 1
    (failed,) = [line for line in json.loads(said) if line["state"] == "FAIL"]
    assert failed["check"] == "flock between two processes"
    assert f"the file system of {tmp_path} loses locks" in failed["detail"]


def test_links_are_a_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(1, "no links")

    monkeypatch.setattr(os, "link", refused)
    code, said = run(tmp_path)
    assert code == 0
    assert "hint hard links: the file system of" in said


def test_a_file_system_of_a_network_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_root, "kind_of", lambda _: "nfs4")
    code, said = run(tmp_path)
    assert code == 0
    assert "hint kind: nfs4, which machines share" in said
    assert "set TIMELOOM_SCRATCH" in said
    monkeypatch.setenv("TIMELOOM_SCRATCH", str(tmp_path))
    assert "TIMELOOM_SCRATCH" not in run(tmp_path)[1]


def test_two_machines_are_held_against_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TimeloomError, match="no other machine holds a lock"):
        run(tmp_path, "--beside")
    with held(tmp_path):
        assert run(tmp_path, "--beside") == (0, "ok flock between two machines")
        monkeypatch.setattr(check_root, "is_held", lambda _: False)
        code, said = run(tmp_path, "--beside")
    assert code == 1
    assert "loses locks: another machine holds one, and this one got it too" in said


def test_it_holds_for_as_long_as_it_is_asked_to(tmp_path: Path) -> None:
    code, said = run(tmp_path, "--hold", "1")
    assert (code, said.split(";")[0]) == (0, "held for 1 s")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(TimeloomError, match="cannot be written or locked"):
        run(tmp_path / "absent", "--hold", "1")
