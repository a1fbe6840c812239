"""Fixtures of the engines' tests."""

from pathlib import Path

import pytest


@pytest.fixture
def inputs(tmp_path: Path) -> list[Path]:
    """Five input files."""
    folder = tmp_path / "raw"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.txt").write_text("".join(f"{(7 * line) % 11} {number}\n" for line in range(11)))
    return sorted(folder.iterdir())
