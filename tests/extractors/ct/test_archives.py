"""Volumes in archives, whole and damaged, and archives that unpack without end."""

import bz2
import gzip
import io
import lzma
import shutil
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from extractors.ct.index import index_ct
from extractors.dicom import files
from extractors.items import file_on_disk
from tests.support.images.ct_trees import pixels_of, tarred, usable, verdicts, zipped
from tests.support.images.phantoms import write_series


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
        (tmp_path / f"x.mgh{name}").write_bytes(pack(b"a volume of another kind" * 999))
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
