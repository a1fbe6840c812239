"""Folders as hospitals have them: spans of a volume, changed and unreadable files, names that mislead."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from extractors.ct import header
from extractors.ct import read as dicom_read
from extractors.ct.index import index_ct, read_ct_units, read_volume
from extractors.items import VerdictError
from tests.support.images.ct_phantoms import write_enhanced
from tests.support.images.ct_trees import pixels_of, request, usable, verdicts, zipped
from tests.support.images.phantoms import disc, write_series


@pytest.mark.parametrize("multiframe", [False, True])
def test_spans_give_the_units_of_the_whole(tmp_path: Path, multiframe: bool) -> None:
    if multiframe:
        order = [3, 0, 5, 1, 4, 2, 6]
        write_enhanced(tmp_path / "e", [disc(inside=10.0 * k) for k in order], [2.0 * k for k in order])
    else:
        write_series(tmp_path, 7)
    item = usable(tmp_path)
    assert item.units_expected == 7
    whole = pixels_of(item, tmp_path)
    assert np.abs(whole[:, 16, 16] - 10 * np.arange(7)).max() <= 1
    batches = [batch for start in (0, 4) for batch in read_ct_units(request(item, tmp_path, start, start + 4), 3)]
    assert [batch.indices.tolist() for batch in batches] == [[0, 1, 2], [3], [4, 5, 6]]
    assert np.array_equal(np.concatenate([batch.pixels for batch in batches]), whole)
    assert all(batch.places.tolist() == [[k] for k in batch.indices] and batch.failed == 0 for batch in batches)


# Change --------------------------------------------------------------------------------------------------------------


def touch(path: Path) -> None:
    os.utime(path, (1, 1))


def other_pixels(path: Path) -> None:
    content = bytearray(path.read_bytes())
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=times)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:700])


def written_anew(path: Path) -> None:
    """The same bytes, and the time of the change set back: only the time of the entry's change tells it."""
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=times)


@pytest.mark.parametrize("change", [touch, other_pixels, cut, written_anew])
@pytest.mark.parametrize("archived", [False, True])
def test_a_file_that_changed_since_the_index_is_not_read(
    tmp_path: Path, change: Callable[[Path], None], archived: bool
) -> None:
    write_series(tmp_path / "s", 4)
    victim = tmp_path / "s" / "IM002"
    if archived:
        victim = zipped(tmp_path / "s", tmp_path / "s.zip")
    item = usable(tmp_path)
    if archived and change is other_pixels:
        change = touch
    change(victim)
    with pytest.raises(VerdictError, match="failed_changed"):
        pixels_of(item, tmp_path)


def test_a_file_that_changes_while_it_is_read_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_series(tmp_path, 4)
    item = usable(tmp_path)
    assert pixels_of(item, tmp_path).shape == (4, 32, 32)
    original = dicom_read.FrameReader.raw

    def raw(self: Any, number: int) -> Any:
        touch(tmp_path / item.paths[2])
        return original(self, number)

    monkeypatch.setattr(dicom_read.FrameReader, "raw", raw)
    reader = read_ct_units(request(item, tmp_path, 2, 3), 1)
    with pytest.raises(VerdictError, match="failed_changed"):
        next(reader)


def test_the_identity_does_not_know_when_a_file_was_written(tmp_path: Path) -> None:
    write_series(tmp_path, 4)
    before = usable(tmp_path)
    touch(tmp_path / "IM001")
    after = usable(tmp_path)
    assert before.identity == after.identity and before.geometry["stamps"] != after.geometry["stamps"]


def test_a_slice_of_another_size_than_the_volume_is_refused_in_any_span(tmp_path: Path) -> None:
    write_series(tmp_path, 5)
    item = usable(tmp_path)
    write_series(tmp_path / "x", 5, image=lambda _: disc(side=16))
    shutil.copy(tmp_path / "x" / "IM004", tmp_path / "IM004")
    geometry = {name: value for name, value in item.geometry.items() if name != "stamps"}
    with pytest.raises(VerdictError, match="failed_unreadable"):
        list(read_volume(item.paths, tmp_path, geometry, 4, 5))


# Unreadable ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["IM002", "notes.txt"])
def test_a_file_that_may_not_be_opened_is_unreadable_not_foreign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    write_series(tmp_path, 4)
    (tmp_path / "notes.txt").write_text("hello")
    assert verdicts(tmp_path) == {"ok": 1, "refused_not_dicom": 1}
    (tmp_path / name).chmod(0)
    if os.geteuid() == 0:  # root may open anything
        original = Path.open

        def denied(self: Path, *rest: Any, **options: Any) -> Any:
            if self.name == name:
                raise PermissionError
            return original(self, *rest, **options)

        monkeypatch.setattr(Path, "open", denied)
    found = verdicts(tmp_path)
    assert found["failed_unreadable"] == 1 and found["ok"] == 0


def test_a_folder_that_may_not_be_listed_is_an_item(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_series(tmp_path / "a", 4)
    (tmp_path / "closed").mkdir()
    original = os.scandir

    def denied(path: Any) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(13, "denied", str(path))
        return original(path)

    monkeypatch.setattr(os, "scandir", denied)
    assert {item.paths: item.verdict for item in index_ct(tmp_path)}[("closed",)] == "failed_unlisted_folder"


def test_a_pipe_and_a_link_to_nowhere_do_not_hang_or_vanish(tmp_path: Path) -> None:
    write_series(tmp_path / "a", 4)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert verdicts(tmp_path) == {"ok": 1, "refused_not_dicom": 1, "failed_unreadable": 1}


def test_uids_never_become_paths(tmp_path: Path) -> None:
    """Path tricks, and lengths that no file system takes, in every UID and in the patient's id."""
    trick = "../../../escaped\\x/../" + "9" * 300
    tree = tmp_path / "tree"
    write_series(tree, 4)
    for path in tree.iterdir():
        dataset = pydicom.dcmread(path)
        with header.quiet():
            for keyword in ("SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID", "PatientID"):
                setattr(dataset, keyword, trick)
            dataset.SOPInstanceUID = f"{trick}{path.name}"
            dataset.save_as(path)
    before = sorted(path for path in tmp_path.rglob("*"))
    item = usable(tree)
    assert pixels_of(item, tree).shape == (4, 32, 32)
    assert sorted(path for path in tmp_path.rglob("*")) == before
    assert "escaped" not in repr((item.identity, item.geometry, item.paths))
