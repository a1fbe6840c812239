"""Fingerprints: a raw file is read once while it stands as it is."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.engine import fingerprints
from pipelines.engine.fingerprints import Fingerprints
from warehouse.errors import TimeloomError
from warehouse.files import sha256_file, write_json


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


def changed_in_place(path: Path, text: str) -> None:
    """Writes other text of the same length, and sets the time of the change back."""
    before = path.stat()
    path.write_text(text)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def replaced(path: Path, text: str) -> None:
    """Puts another file of the same size and times in its place."""
    other = path.with_name("other")
    other.write_text(text)
    shutil.copystat(path, other)
    other.replace(path)


@pytest.mark.parametrize("change", [changed_in_place, replaced])
def test_other_content_of_the_same_size_and_time_is_seen(
    tmp_path: Path, read: list[str], change: Callable[[Path, str], None]
) -> None:
    path = tmp_path / "images" / "1.csv"
    path.parent.mkdir()
    path.write_text("id\n1\n")
    seen = Fingerprints(tmp_path / "private")
    before, tree = seen.of(path), Fingerprints.of_tree(path.parent)
    seen.save()
    change(path, "id\n2\n")
    assert Fingerprints(tmp_path / "private").of(path) != before
    assert Fingerprints.of_tree(path.parent) != tree
    assert read == ["1.csv", "1.csv"]


def test_a_copied_file_is_read_again_and_has_the_same_hash(tmp_path: Path, read: list[str]) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id\n1\n")
    seen = Fingerprints(tmp_path / "private")
    before = seen.of(path)
    seen.save()
    copy = tmp_path / "copy.csv"
    shutil.copy2(path, copy)
    copy.replace(path)
    assert Fingerprints(tmp_path / "private").of(path) == before
    assert read == ["a.csv", "a.csv"]


def test_rehash_reads_all_again_and_remembers_it(tmp_path: Path, read: list[str]) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id\n1\n")
    for rehash, times in ((False, 1), (False, 1), (True, 2), (False, 2)):
        seen = Fingerprints(tmp_path / "private", rehash=rehash)
        assert seen.of(path) == seen.of(path) == sha256_file(path)
        seen.save()
        assert len(read) == times


def test_what_an_earlier_version_remembered_is_read_again(tmp_path: Path, read: list[str]) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id\n1\n")
    status = path.stat()
    (tmp_path / "private").mkdir()
    remembered = {str(path): [status.st_size, status.st_mtime_ns, "an old hash"]}
    write_json(tmp_path / "private" / "fingerprints.json", remembered)
    assert Fingerprints(tmp_path / "private").of(path) == sha256_file(path)
    assert read == ["a.csv"]
