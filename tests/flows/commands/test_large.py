"""`timeloom simulate --large`: what it says, and what it refuses."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from warehouse.errors import TimeloomError


def test_it_says_what_it_wrote_and_who_changed(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["simulate", str(tmp_path / "h"), "--large", "--subjects", "30", "--night", "one"])
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())
    assert "30 patients" in said
    assert "vectors of ct" in said
    assert "patients changed: 1 visit" in said
    assert (tmp_path / "h" / "tables" / "labs.csv").is_file()


@pytest.mark.parametrize("options", [["--task-cases"], ["--modalities", "ct"]])
def test_what_the_small_hospital_has_is_refused(options: list[str], tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["simulate", str(tmp_path / "h"), "--large", *options])
    assert isinstance(done.exception, TimeloomError)
    assert "neither --modalities nor --task-cases" in str(done.exception)
    assert not (tmp_path / "h").exists()
