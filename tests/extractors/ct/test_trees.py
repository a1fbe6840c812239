"""Folders as hospitals have them: archives, multi-frame objects, reconstructions, changed and unreadable files."""

import bz2
import gzip
import io
import lzma
import os
import shutil
import tarfile
import tracemalloc
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from extractors.ct import header
from extractors.ct import read as dicom_read
from extractors.ct.index import index_ct, read_ct_units, read_volume
from extractors.ct.reconstructions import ReconstructionConfig
from extractors.dicom import files
from extractors.items import FoundItem, UnitRequest, VerdictError, file_on_disk
from tests.support.images.ct_phantoms import write_enhanced
from tests.support.images.phantoms import disc, write_series

ALL = ReconstructionConfig(keep="all")


def verdicts(root: Path, **options: Any) -> Counter[str]:
    return Counter(item.verdict for item in index_ct(root, **options))


def usable(root: Path, **options: Any) -> FoundItem:
    (item,) = [item for item in index_ct(root, **options) if item.verdict == "ok"]
    return item


def pixels_of(item: FoundItem, root: Path) -> np.ndarray:
    return np.stack(list(read_volume(item.paths, root, item.geometry)))


def request(item: FoundItem, root: Path, start: int = 0, stop: int | None = None) -> UnitRequest:
    return UnitRequest(root, item.paths, item.geometry, start, stop)


# Spans ---------------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("change", [touch, other_pixels, cut])
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
    assert {item.paths: item.verdict for item in index_ct(tmp_path)}[("closed",)] == "failed_unreadable"


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


# Archives ------------------------------------------------------------------------------------------------------------


def zipped(folder: Path, target: Path) -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.iterdir(), reverse=True):
            archive.write(path, f"study/{path.name}")
    shutil.rmtree(folder)
    return target


def tarred(folder: Path, target: Path) -> Path:
    mode = {".tar": "w", ".gz": "w:gz", ".bz2": "w:bz2", ".xz": "w:xz"}[target.suffix]
    with tarfile.open(target, mode) as archive:
        for path in sorted(folder.iterdir(), reverse=True):
            archive.add(path, f"study/{path.name}")
    shutil.rmtree(folder)
    return target


@pytest.mark.parametrize("name", ["s.zip", "s.tar", "s.tar.gz", "s.tar.bz2", "s.tar.xz", "no-extension"])
def test_an_archive_holds_the_volume_that_its_files_hold(tmp_path: Path, name: str) -> None:
    write_series(tmp_path / "plain")
    expected = usable(tmp_path / "plain")
    pixels = pixels_of(expected, tmp_path / "plain")
    tree = tmp_path / "tree"
    write_series(tree / "s")
    (tree / "s" / "readme.txt").write_text("hello")
    (zipped if "tar" not in name else tarred)(tree / "s", tree / name)
    item = usable(tree)
    assert item.identity == expected.identity
    assert item.paths == tuple(f"{name}!/study/IM{index:03d}" for index in range(6))
    assert np.array_equal(pixels_of(item, tree), pixels)
    assert verdicts(tree) == {"ok": 1, "refused_not_dicom": 1}
    assert [path.name for path in tree.iterdir()] == [name]
    assert file_on_disk(tree, item.paths[0]) == (tree / name, "study/IM000")


def test_a_copy_of_a_series_in_an_archive_beside_it_changes_nothing(tmp_path: Path) -> None:
    write_series(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    zipped(tmp_path / "b", tmp_path / "b.zip")
    assert len(usable(tmp_path).paths) == 6


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz", ".tar"])
def test_a_damaged_archive_gives_one_verdict_and_no_shorter_volume(tmp_path: Path, suffix: str) -> None:
    write_series(tmp_path / "s", 30)
    path = (zipped if suffix == ".zip" else tarred)(tmp_path / "s", tmp_path / f"s{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    assert verdicts(tmp_path) == {"failed_unreadable": 1}


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz", ".tar.xz", ".tar.bz2"])
def test_archives_that_unpack_without_end_are_stopped(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "FREE_BYTES", 1 << 20)
    write_series(tmp_path / "s", 4)
    pack = zipped if suffix == ".zip" else tarred
    pack(tmp_path / "s", tmp_path / f"good{suffix}")
    assert verdicts(tmp_path) == {"ok": 1}
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "zeros").write_bytes(bytes(32 << 20))
    pack(tmp_path / "t", tmp_path / f"bomb{suffix}")
    assert verdicts(tmp_path) == {"ok": 1, "failed_archive_limits": 1}


def test_too_many_members_are_a_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_series(tmp_path / "s", 5)
    write_series(tmp_path / "t", 5, series="2")
    zipped(tmp_path / "s", tmp_path / "s.zip")
    tarred(tmp_path / "t", tmp_path / "t.tar")
    monkeypatch.setattr(files, "MAX_MEMBERS", 4)
    assert verdicts(tmp_path) == {"failed_archive_limits": 2}


def test_an_archive_in_an_archive_is_one_verdict(tmp_path: Path) -> None:
    write_series(tmp_path / "s")
    inner = zipped(tmp_path / "s", tmp_path / "inner.zip").read_bytes()
    (tmp_path / "inner.zip").unlink()
    write_series(tmp_path / "o", 4)
    (tmp_path / "o" / "a.zip").write_bytes(inner)
    (tmp_path / "o" / "b.zip").write_bytes(inner)
    zipped(tmp_path / "o", tmp_path / "outer.zip")
    assert verdicts(tmp_path) == {"ok": 1, "refused_nested_archive": 1}


def test_names_of_members_are_only_labels(tmp_path: Path) -> None:
    write_series(tmp_path / "s", 4)
    names = ["../../escape", "/absolute", "C:\\evil", "a!/b"]
    tree = tmp_path / "tree"
    tree.mkdir()
    with zipfile.ZipFile(tree / "s.zip", "w") as archive, tarfile.open(tree / "t.tar", "w") as tar:
        for path, name in zip(sorted((tmp_path / "s").iterdir()), names, strict=True):
            archive.writestr(name, path.read_bytes())
            entry = tarfile.TarInfo(name)
            entry.size = path.stat().st_size
            tar.addfile(entry, io.BytesIO(path.read_bytes()))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    (tree / "t.tar").rename(tmp_path / "t.tar")
    before = sorted(tmp_path.rglob("*"))
    item = usable(tree)
    assert item.paths == tuple(f"s.zip!/{name}" for name in names) and len(pixels_of(item, tree)) == 4
    shutil.move(tmp_path / "t.tar", tree / "s.zip")
    item = usable(tree)
    assert len(pixels_of(item, tree)) == 4
    assert len(before) == len(sorted(tmp_path.rglob("*"))) + 1


def test_archives_of_other_things_are_files_that_are_no_dicom(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "report.docx", "w") as archive:
        archive.writestr("word/document.xml", "<xml/>")
    for name, pack in PACKERS.items():
        (tmp_path / f"x.nii{name}").write_bytes(pack(b"a volume of another kind" * 999))
        (tmp_path / f"empty{name}").write_bytes(pack(b""))
    (found,) = index_ct(tmp_path)
    assert (found.verdict, found.units_expected) == ("refused_not_dicom", 7)


PACKERS: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


def packed_study(tmp_path: Path, slices: int = 12) -> bytes:
    """A tar of slices whose pixels are noise."""
    rng = np.random.default_rng(0)
    noise = [rng.integers(-500, 500, (32, 32)).astype(np.float32) * 2 for _ in range(slices)]
    write_series(tmp_path / "s", slices, image=lambda index: noise[index])
    content = tarred(tmp_path / "s", tmp_path / "s.tar").read_bytes()
    (tmp_path / "s.tar").unlink()
    return content


@pytest.mark.parametrize("suffix", sorted(PACKERS))
@pytest.mark.parametrize("damage", ["cut early", "cut late", "flipped early", "flipped late", "last bytes"])
def test_a_study_in_a_damaged_compressed_archive_is_never_foreign(tmp_path: Path, suffix: str, damage: str) -> None:
    content = bytearray(PACKERS[suffix](packed_study(tmp_path)))
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / f"study{suffix}").write_bytes(content)
    assert verdicts(tree) == {"ok": 1}
    at = {"early": 0.02, "late": 0.9, "bytes": 1.0}[damage.split()[1]] * len(content)
    if damage.startswith("cut"):
        del content[int(at) :]
    elif damage.startswith("flipped"):
        content[int(at)] ^= 255
        content[int(at) + 9] ^= 255
    else:
        del content[-6:]
    (tree / f"study{suffix}").write_bytes(content)
    assert verdicts(tree) == {"failed_unreadable": 1}


@pytest.mark.parametrize("damage", ["a header", "no end", "a cut at a member"])
@pytest.mark.parametrize("suffix", ["", *sorted(PACKERS)])
def test_damage_between_a_tars_members_is_not_its_end(tmp_path: Path, suffix: str, damage: str) -> None:
    """tarfile would return the members before the damage without an error, and the volume would be shorter."""
    content = bytearray(packed_study(tmp_path))
    pack = PACKERS.get(suffix, bytes)
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "x").write_bytes(pack(bytes(content)))
    assert verdicts(tree) == {"ok": 1}
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        places = [entry.offset for entry in tar]
        end = tar.offset
    if damage == "a header":
        content[places[7]] ^= 1
    else:
        del content[end - tarfile.BLOCKSIZE if damage == "no end" else places[8] :]
    (tree / "x").write_bytes(pack(bytes(content)))
    assert verdicts(tree) == {"failed_unreadable": 1}


@pytest.mark.parametrize("suffix", sorted(PACKERS))
def test_slices_that_are_compressed_one_by_one_are_the_volume(tmp_path: Path, suffix: str) -> None:
    write_series(tmp_path / "plain")
    expected = usable(tmp_path / "plain")
    tree = tmp_path / "tree"
    tree.mkdir()
    for path in (tmp_path / "plain").iterdir():
        (tree / f"{path.name}.dcm{suffix}").write_bytes(PACKERS[suffix](path.read_bytes()))
    item = usable(tree)
    assert item.identity == expected.identity and item.paths[0] == f"IM000.dcm{suffix}!/unpacked"
    assert np.array_equal(pixels_of(item, tree), pixels_of(expected, tmp_path / "plain"))
    victim = tree / f"IM003.dcm{suffix}"
    victim.write_bytes(victim.read_bytes()[:-40])
    assert verdicts(tree) == {"failed_unreadable": 1}


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_tars_long_headers_are_not_read_into_memory(tmp_path: Path, kind: bytes, suffix: str) -> None:
    header = tarfile.TarInfo("x")
    header.type, header.size = kind, 48 << 20
    content = PACKERS.get(suffix, bytes)(header.tobuf() + b"x" * header.size)
    (tmp_path / "a").write_bytes(content)
    tracemalloc.start()
    try:
        assert verdicts(tmp_path) == {"failed_archive_limits": 1}
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_long_names_and_attributes_of_members_are_read(tmp_path: Path) -> None:
    for style, name in ((tarfile.PAX_FORMAT, "pax"), (tarfile.GNU_FORMAT, "gnu")):
        tree = tmp_path / name
        write_series(tree / "s", 5)
        with tarfile.open(tree / "s.tar", "w", format=style, pax_headers={"comment": "x"}) as tar:
            for path in sorted((tree / "s").iterdir()):
                tar.add(path, f"{'long/' * 60}{path.name}")
        shutil.rmtree(tree / "s")
        assert len(pixels_of(usable(tree), tree)) == 5


def test_a_member_stored_with_holes_is_not_passed_over(tmp_path: Path) -> None:
    content = bytearray(packed_study(tmp_path))
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        at = list(tar)[7].offset
    entry = content[at : at + 512]
    entry[156:157], entry[148:156] = tarfile.GNUTYPE_SPARSE, b" " * 8
    entry[148:156] = b"%06o\0 " % sum(entry)
    content[at : at + 512] = entry
    (tmp_path / "x.tar").write_bytes(content)
    assert verdicts(tmp_path) == {"failed_unreadable": 1}


def test_an_encrypted_member_fails_its_volume(tmp_path: Path) -> None:
    write_series(tmp_path / "s", 5)
    path = zipped(tmp_path / "s", tmp_path / "s.zip")
    content = bytearray(path.read_bytes())
    central = content.rindex(b"PK\x01\x02")
    content[central + 8] |= 1
    path.write_bytes(content)
    assert verdicts(tmp_path) == {"failed_unreadable": 1}


# Multi-frame ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", [None, "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.80"])
def test_frames_and_files_of_the_same_slices_give_the_same_units(tmp_path: Path, syntax: str | None) -> None:
    write_series(tmp_path / "s")
    order = [4, 2, 0, 5, 1, 3]
    (tmp_path / "e").mkdir()
    write_enhanced(
        tmp_path / "e" / "x", [disc(inside=10.0 * k) for k in order], [2.0 * k for k in order], syntax=syntax
    )
    single, multi = usable(tmp_path / "s"), usable(tmp_path / "e")
    assert multi.paths == ("x",) and multi.units_expected == 6
    assert multi.time_source == "FrameAcquisitionDateTime"
    assert np.array_equal(pixels_of(single, tmp_path / "s"), pixels_of(multi, tmp_path / "e"))


def test_each_frame_is_rescaled_by_its_own_slope(tmp_path: Path) -> None:
    images = [disc(inside=40.0)] * 4
    write_enhanced(tmp_path / "x", images, range(4), [{"RescaleSlope": slope} for slope in (1, 2, 4, 8)])
    assert np.abs(pixels_of(usable(tmp_path), tmp_path)[:, 16, 16] - 40).max() <= 4


@pytest.mark.parametrize("keyword", ["TemporalPositionIndex", "StackID"])
def test_temporal_positions_and_stacks_are_volumes_of_their_own(tmp_path: Path, keyword: str) -> None:
    images = [disc(inside=10.0 * k) for k in range(8)]
    per_frame = [{keyword: 1 + k // 4 if keyword[0] == "T" else f"{k // 4}"} for k in range(8)]
    write_enhanced(tmp_path / "x", images, [k % 4 for k in range(8)], per_frame)
    items = index_ct(tmp_path, reconstruction=ALL)
    assert [(item.verdict, item.units_expected) for item in items] == [("ok", 4)] * 2
    centres = sorted(tuple(pixels_of(item, tmp_path)[:, 16, 16].round(-1).tolist()) for item in items)
    assert centres == [(0, 10, 20, 30), (40, 50, 60, 70)]
    write_enhanced(tmp_path / "x", images, [k % 4 for k in range(8)])
    assert verdicts(tmp_path) == {"failed_duplicate_position": 1}


@pytest.mark.parametrize(
    ("verdict", "per_frame", "header"),
    [
        ("refused_not_hu", {"RescaleType": "US"}, {}),
        ("refused_localizer", {"FrameType": ["ORIGINAL", "PRIMARY", "LOCALIZER", "NONE"]}, {}),
        ("refused_burned_in", {}, {"BurnedInAnnotation": "YES"}),
        ("failed_missing_geometry", {}, {"PerFrameFunctionalGroupsSequence": []}),
        ("failed_unreadable", {}, {"NumberOfFrames": 500}),
        ("failed_too_many_units", {}, {"NumberOfFrames": 50_000}),
        ("failed_implausible_size", {}, {"Rows": 60_000}),
    ],
)
def test_multiframe_verdict(tmp_path: Path, verdict: str, per_frame: dict[str, Any], header: dict[str, Any]) -> None:
    write_enhanced(tmp_path / "x", [disc()] * 5, range(5), [per_frame] * 5, **header)
    assert verdicts(tmp_path) == {verdict: 1}


# Reconstructions -----------------------------------------------------------------------------------------------------

KINDS: dict[str, dict[str, Any]] = {
    "thin soft": {"series": "1", "SliceThickness": 1.0, "ConvolutionKernel": "Br40d"},
    "thick soft": {"series": "2", "SliceThickness": 3.0, "ConvolutionKernel": "Br40d"},
    "thick sharp": {"series": "3", "SliceThickness": 3.0, "ConvolutionKernel": "Br64d"},
}


def study(root: Path, **header: Any) -> None:
    for name, kind in KINDS.items():
        write_series(root / name, 6, **{**kind, **header})


def chosen(root: Path, **config: Any) -> list[str]:
    items = index_ct(root, reconstruction=ReconstructionConfig(**config))
    assert {item.verdict for item in items} <= {"ok", "refused_other_reconstruction"}
    return sorted(item.paths[0].partition("/")[0] for item in items if item.verdict == "ok")


@pytest.mark.parametrize(
    ("config", "kept"),
    [
        ({}, ["thick soft"]),
        ({"thickness_mm": (0.5, 1.5)}, ["thin soft"]),
        ({"prefer_kernels": ("^br6",)}, ["thick sharp"]),
        ({"avoid_kernels": ("br40",)}, ["thick sharp"]),
        ({"keep": "all"}, sorted(KINDS)),
    ],
)
def test_one_reconstruction_is_chosen_as_configured(tmp_path: Path, config: dict[str, Any], kept: list[str]) -> None:
    study(tmp_path)
    assert chosen(tmp_path, **config) == kept
    groups = {item.geometry["reconstruction_group"] for item in index_ct(tmp_path)}
    assert len(groups) == 1 and {item.geometry["kernel"] for item in index_ct(tmp_path)} == {"Br40d", "Br64d"}


@pytest.mark.parametrize(
    "other",
    [
        {"AcquisitionNumber": 2},
        {"AcquisitionTime": "111500"},
        {"StudyInstanceUID": "2.25.7"},
        {"FrameOfReferenceUID": "2.25.8"},
        {"AcquisitionNumber": None, "AcquisitionTime": None, "AcquisitionDate": None},
    ],
)
def test_phases_and_other_studies_are_no_reconstructions(tmp_path: Path, other: dict[str, Any]) -> None:
    write_series(tmp_path / "a", **KINDS["thick soft"])
    write_series(tmp_path / "b", **{**KINDS["thin soft"], **other})
    numberless = {"AcquisitionNumber": None} if other.get("AcquisitionNumber", 1) is None else {}
    if numberless:
        write_series(tmp_path / "a", **{**KINDS["thick soft"], **other})
    assert chosen(tmp_path) == ["a", "b"]


def test_a_reconstruction_of_a_part_gives_way_to_the_whole(tmp_path: Path) -> None:
    write_series(tmp_path / "a", 10, **KINDS["thick sharp"])
    write_series(tmp_path / "b", 4, **KINDS["thick soft"])
    assert chosen(tmp_path) == ["a"]


def test_a_damaged_reconstruction_is_not_chosen(tmp_path: Path) -> None:
    study(tmp_path)
    (tmp_path / "thick soft" / "IM003").write_bytes(b"")
    kept = [item.paths[0] for item in index_ct(tmp_path) if item.verdict == "ok"]
    assert len(kept) == 1 and not kept[0].startswith("thick soft")


def test_a_bad_preference_is_refused() -> None:
    for bad in ({"thickness_mm": (5, 2)}, {"prefer_kernels": ("(",)}, {"kept": "one"}):
        with pytest.raises(ValueError, match=r"range|regular expression|Extra inputs"):
            ReconstructionConfig(**bad)


# Parallel ------------------------------------------------------------------------------------------------------------


def test_two_processes_find_what_one_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from extractors.ct import index as dicom

    monkeypatch.setattr(dicom, "_FILES_A_TASK", 3)
    study(tmp_path)
    zipped(tmp_path / "thick sharp", tmp_path / "z.zip")
    (tmp_path / "broken.dcm").write_bytes(b"garbage")
    for name in ("a copy", "y copy"):  # which of two copies is named depends on the order of findings
        shutil.copytree(tmp_path / "thick soft", tmp_path / name)
    write_series(tmp_path / "x", 20, series="9", StudyInstanceUID="2.25.4")
    counts: list[int] = []
    assert index_ct(tmp_path, counts.append, workers=2) == index_ct(tmp_path)
    assert counts == sorted(counts) and counts[-1] == 46


def test_what_leaves_the_private_folder_tells_no_time_of_change(tmp_path: Path) -> None:
    from extractors.deid import DeidConfig, Deidentifier
    from pipelines.index import _public

    study(tmp_path)
    item = usable(tmp_path)
    public = _public(item, Deidentifier(DeidConfig(), b"k" * 32))
    assert "stamps" in item.geometry and not {"stamps", "frames"} & set(public)
    assert public["reconstruction_group"] != item.geometry["reconstruction_group"] and public["kernel"] == "Br40d"


def test_slices_without_a_patient_are_nobodys(tmp_path: Path) -> None:
    write_series(tmp_path, slices=6, per_slice={number: {"PatientID": ""} for number in (1, 4)})
    (item,) = index_ct(tmp_path)
    assert item.verdict == "failed_no_subject"


@pytest.mark.parametrize("folders", [("a", "a"), ("a", "b")])
def test_slices_without_a_series_are_told_apart_by_study_and_folder(tmp_path: Path, folders: tuple[str, str]) -> None:
    for number, folder in enumerate(folders):
        study = {"StudyInstanceUID": f"2.25.6{number}" if folders[0] == folders[1] else "2.25.6"}
        names = f"{number}-{{}}".format
        write_series(
            tmp_path / folder,
            5,
            names=names,
            series=f"{number}",
            PatientID=f"P{number}",
            SeriesInstanceUID=None,
            **study,
        )
    items = index_ct(tmp_path, reconstruction=ALL)
    assert [(item.verdict, item.units_expected, item.raw_subject) for item in items] == [
        ("ok", 5, "P0"),
        ("ok", 5, "P1"),
    ]
    victim = tmp_path / folders[1] / "1-2"
    victim.write_bytes(victim.read_bytes()[:-100])
    found = verdicts(tmp_path, reconstruction=ALL)
    # With two studies in a folder, a damaged file is assigned to none; only the missing slice of its volume shows.
    spoilt = {"ok": 1, "failed_unreadable": 1} | ({"failed_missing_slice": 1} if folders[0] == folders[1] else {})
    assert found == spoilt


def test_a_kernel_that_is_no_kernel_stays_out_of_the_item(tmp_path: Path) -> None:
    write_series(tmp_path / "named", slices=5, ConvolutionKernel="BONEPLUS")
    write_series(tmp_path / "free", slices=5, series="2", ConvolutionKernel="DOE JANE 1950")
    kernels = {item.paths[0].partition("/")[0]: item.geometry["kernel"] for item in index_ct(tmp_path)}
    assert kernels == {"named": "BONEPLUS", "free": ""}
