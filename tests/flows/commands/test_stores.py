"""`timeloom push` and `timeloom pull` as a person and a program see them."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from flows.cli import app
from tests.warehouse.remote.conftest import publish_night
from warehouse.errors import TimeloomError


def timeloom(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_a_release_goes_and_comes(tmp_path: Path) -> None:
    root, address, copy = publish_night(tmp_path / "clinic"), f"file://{tmp_path}/place", tmp_path / "copy"
    would = timeloom("push", address, "--root", root, "--dry-run")
    assert would.stdout.startswith("release one: would send at most ")
    assert not (tmp_path / "place").exists()
    sent = timeloom("push", address, "--root", root)
    assert sent.exit_code == 0
    first, second = sent.stdout.splitlines()
    assert first.startswith("release one: sent 5")
    assert first.endswith(", 0 (0.0 MB) were there")
    assert second == f"{address} names it as current"
    again = json.loads(timeloom("push", address, "--root", root, "--check", "--json").stdout)
    assert (again["objects"], again["mended"], again["current"]) == (0, 0, True)
    assert again["already"] >= 50
    got = timeloom("pull", address, "--root", copy)
    assert got.exit_code == 0
    assert got.stdout.splitlines()[1] == f"{copy}: it is current"
    assert json.loads(timeloom("pull", address, "--root", copy, "--json").stdout)["files"] == 0


def test_what_cannot_be_done_is_a_line(tmp_path: Path) -> None:
    for words, said in (
        (("push", "nothing://x", "--root", publish_night(tmp_path / "clinic")), "is no address of a known store"),
        (("push", f"file://{tmp_path}/place", "--root", tmp_path / "empty"), "empty has no published release"),
        (("pull", f"file://{tmp_path}/place", "--root", tmp_path / "copy"), "there is no bucket or folder for"),
        (("pull", f"file://{tmp_path}/place", "--root", "s3://bucket/copy"), "--root takes a folder of this machine"),
    ):
        with pytest.raises(TimeloomError, match=said):
            raise timeloom(*words).exception or AssertionError


@pytest.mark.parametrize("command", ["push", "pull"])
def test_help_says_what_a_command_does(command: str) -> None:
    helped = timeloom(command, "--help").stdout
    assert "s3://bucket/prefix" in helped
    assert "Exit codes: 0 the release is there, whole; 1 it is not" in " ".join(helped.split())
