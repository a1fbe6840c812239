"""Fingerprints: a raw file is read once while it stands as it is."""

from pathlib import Path

import pytest

from pipelines.engine import fingerprints
from pipelines.engine.fingerprints import Fingerprints
from warehouse.errors import TimeloomError
from warehouse.files import sha256_file


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read."""
    names: list[str] = []

    def noted(path: Path) -> str:
        names.append(path.name)
        return sha256_file(path)

    monkeypatch.setattr(fingerprints, "sha256_file", noted)
    return names


def test_files_that_were_read_ahead_are_known(tmp_path: Path, read: list[str]) -> None:
    paths = [tmp_path / f"{number}.csv" for number in range(9)]
    for number, path in enumerate(paths):
        path.write_text(f"id\n{number}\n")
    seen = Fingerprints(tmp_path / "private")
    seen.read_ahead(paths, 3)
    assert sorted(read) == [path.name for path in paths]
    assert [seen.of(path) for path in paths] == [sha256_file(path) for path in paths]
    assert len(read) == 9
    seen.save()
    paths[4].write_text("id\n44\n")
    later = Fingerprints(tmp_path / "private")
    later.read_ahead(paths, 3)
    assert later.of(paths[4]) == sha256_file(paths[4])
    assert read[9:] == ["4.csv"], "only what changed is read again"


def test_a_file_that_cannot_be_read_ahead_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(TimeloomError, match="a raw file cannot be read"):
        Fingerprints(tmp_path / "private").read_ahead([tmp_path / "gone.csv"], 2)
