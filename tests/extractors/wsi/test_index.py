"""Which slides a folder has and the verdict of each: real, broken and hostile files; geometry computed by hand."""

import logging
import os
import shutil
import struct
import tracemalloc
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import polars as pl
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from extractors.dicom.elements import quiet
from extractors.items import FoundItem, UnitRequest, VerdictError
from extractors.wsi import tiff
from extractors.wsi.index import Limits, find_slides, index_slides, read_slide_units
from extractors.wsi.plan import MAX_TILES, plan_tiles
from extractors.wsi.settings import WSI
from extractors.wsi.tiff import tiled_pages
from extractors.wsi.tissue import MASK
from tests.support.images.phantoms import stained, write_tiff

WHEN = datetime(2020, 1, 2, 3, 4, 5)


def index(root: Path, *paths: str, mpp: float | None = None, **options: Any) -> list[FoundItem]:
    rows = [
        {"path": path, "raw_subject": "S1", "time": WHEN, "available_time": None, "mpp": mpp}
        for path in paths or find_slides(root)
    ]
    return index_slides(root, pl.DataFrame(rows, infer_schema_length=None), **options)


def verdict(root: Path, path: str, mpp: float | None = None) -> str:
    return index(root, path, mpp=mpp)[0].verdict


# For every file of the folder: the verdict, the number of tissue tiles at the file's own pixel size, and why.
REAL = {
    "cmu-1-small-region.svs": ("ok", 54, "a scan at 0.499 um/px"),
    "small.svs": ("failed_no_tissue", None, "16 x 16 pixels, all white"),
    "boxes.tiff": ("failed_implausible_pixel_size", None, "its resolution is 72 dots an inch"),
    "boxes_0.dcm": ("failed_no_tissue", None, "16 x 16 pixels of one colour"),
    "boxes_1.dcm": ("failed_no_tissue", None, "the thumbnail of the same series: the same slide"),
    "broken.svs": ("failed_unreadable", None, "its first bytes are no TIFF's"),
    "unopenable.tiff": ("failed_unreadable", None, "one stripped page in an unknown encoding"),
    "unreadable.svs": ("failed_unreadable", None, "its only tile cannot be decoded"),
    "dicom-sm/sm_image.dcm": ("failed_no_tissue", None, "50 x 50 pixels of noise without a background"),
    "dicom-sm/sm_image_jpegls.dcm": ("failed_unreadable", None, "OpenSlide has no JPEG-LS"),
    "README.txt": ("failed_unreadable", None, "no slide"),
}


@pytest.mark.parametrize("name", REAL)
def test_every_real_file_has_the_right_verdict(real_data: Path, name: str) -> None:
    item = index(real_data / "wsi", name)[0]
    assert (item.verdict, item.units_expected) == REAL[name][:2]


def test_the_table_names_every_real_file(real_data: Path) -> None:
    root = real_data / "wsi"
    assert {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()} == set(REAL)


def test_a_tree_is_searched_by_content_and_a_series_is_one_slide(real_data: Path, tmp_path: Path) -> None:
    found = find_slides(real_data / "wsi")
    assert set(REAL) - set(found) == {"README.txt", "boxes_1.dcm"} and found == sorted(found)
    shutil.copy(real_data / "wsi" / "cmu-1-small-region.svs", tmp_path / "no-ending")
    shutil.copy(real_data / "wsi" / "boxes_1.dcm", tmp_path / "a")
    shutil.copy(real_data / "wsi" / "boxes_0.dcm", tmp_path / "b")
    for name in ("._x.svs", "Data0001.dat", "notes.txt", "empty"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "c.mrxs").write_bytes(b"\xff\xd8")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "Slidedat.ini").write_text("[GENERAL]")
    assert find_slides(tmp_path) == ["b", "c.mrxs", "no-ending"]
    assert [item.verdict for item in index(tmp_path)] == ["failed_no_tissue", "failed_unreadable", "ok"]


def test_instances_of_one_series_are_one_item(real_data: Path) -> None:
    first, second = index(real_data / "wsi", "boxes_0.dcm", "boxes_1.dcm")
    assert first.identity == second.identity


@pytest.mark.parametrize("instance", ["boxes_0.dcm", "boxes_1.dcm"])
def test_burned_in_annotations_refuse_the_whole_series(real_data: Path, tmp_path: Path, instance: str) -> None:
    for name in ("boxes_0.dcm", "boxes_1.dcm"):
        header = pydicom.dcmread(real_data / "wsi" / name)
        header.BurnedInAnnotation = "YES" if name == instance else "NO"
        header.save_as(tmp_path / name)
    assert verdict(tmp_path, "boxes_0.dcm") == verdict(tmp_path, "boxes_1.dcm") == "refused_burned_in"


def ifd(entries: list[tuple[int, int, int, int]], following: int = 0) -> bytes:
    body = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return struct.pack("<H", len(entries)) + body + struct.pack("<I", following)


def page(width: int, height: int, side: int = 256, tiles: int = 1, **change: int) -> list[tuple[int, int, int, int]]:
    """A tiled RGB page; if there are several offsets and byte counts, they are at byte 400."""
    values = {256: width, 257: height, 259: 7, 262: 2, 277: 3, 322: side, 323: side, 254: 0}
    entries = [(tag, 4, 1, value) for tag, value in values.items()]
    place = change.get("place", 400)
    return [*entries, (258, 3, 1, 8), (324, 4, tiles, place), (325, 4, tiles, place)]


HOSTILE = {
    "2^31 pixels wide": (ifd(page(1 << 31, 16)), "failed_implausible_size"),
    "2^32 - 1 pixels both ways": (ifd(page((1 << 32) - 1, (1 << 32) - 1)), "failed_implausible_size"),
    "one tile of 4 gigapixels": (ifd(page(1 << 16, 1 << 16, side=1 << 16)), "failed_implausible_size"),
    "a tiny file with 15 million tiles": (ifd(page(1_000_000, 1_000_000, tiles=15_265_000)), "failed_unreadable"),
    "a level with one tile for all": (ifd(page(100_000, 100_000)), "failed_unreadable"),
    "tables past the end": (ifd(page(512, 512, tiles=4, place=1 << 30)), "failed_unreadable"),
    "a directory that follows itself": (ifd(page(256, 256), following=8), "failed_unreadable"),
    "a directory past the end": (ifd(page(256, 256), following=1 << 30), "failed_unreadable"),
    "sixty thousand tags": (struct.pack("<H", 60_000), "failed_unreadable"),
    "tiles without a side": (ifd(page(256, 256, side=0)), "failed_unreadable"),
    "cut off after the header": (b"", "failed_unreadable"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_declares_more_than_it_holds_is_never_opened(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, expected = HOSTILE[name]
    (tmp_path / "a.svs").write_bytes(b"II*\0\x08\0\0\0" + content)
    assert verdict(tmp_path, "a.svs", mpp=0.5) == expected  # also where OpenSlide would look

    def opened(path: Path) -> None:
        raise AssertionError("OpenSlide was given a hostile file")

    monkeypatch.setattr(openslide, "OpenSlide", opened)
    with pytest.raises(VerdictError) as caught:
        tiled_pages(tmp_path / "a.svs")
    assert caught.value.verdict == expected


def test_tables_that_a_tag_declares_are_not_read_beyond_what_a_page_needs(tmp_path: Path) -> None:
    """A sparse file can hold tables of any length: of tiles, of JPEG tables, of bits."""
    most = 32 << 20
    with (tmp_path / "a.tif").open("wb") as file:
        entries = [entry for entry in page(256, 256) if entry[0] not in (258, 324, 325)]
        tables = [(258, 3, most // 2, 4096), (324, 4, most // 4, 4096), (325, 1, most, 4096), (347, 7, most, 4096)]
        file.write(b"II*\0\x08\0\0\0" + ifd([*entries, *tables]))
        file.truncate(most + 8192)
        file.seek(4096)
        file.write(b"\1\2\3\4")
    tracemalloc.start()
    try:
        (found,) = tiled_pages(tmp_path / "a.tif")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert found.counts.tolist() == [1, 2, 3] and found.offsets.tolist() == [0x04030201, 0, 0]
    assert len(found.tables or b"") == 1 << 16


def test_pydicom_says_nothing_of_what_lies_beside_slides(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """pydicom's warnings quote the wrong values."""
    with quiet():
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.77.1.6")
        meta.MediaStorageSOPInstanceUID = UID("1.2")
        dataset = FileDataset("x", {}, file_meta=meta, preamble=bytes(128))
        dataset.SOPClassUID = meta.MediaStorageSOPClassUID
        dataset.add_new(0x0020000E, "UI", "SECRET-PATIENT-1950")
        dataset.add_new(0x00080008, "CS", ["ORIGINAL", "PRIMARY", "VOLUME", "secret^name"])
        dataset.save_as(tmp_path / "a.dcm")
    with caplog.at_level(logging.DEBUG):
        assert find_slides(tmp_path) == ["a.dcm"]
        index(tmp_path, "a.dcm")
    said = caplog.text + "".join(str(warning.message) for warning in recwarn) + "".join(capfd.readouterr())
    assert "secret" not in said.lower()


def test_the_check_of_the_layout_lets_real_slides_pass(tmp_path: Path) -> None:
    write_tiff(tmp_path / "a.svs", stained(), 0.5)
    pages = tiled_pages(tmp_path / "a.svs")
    assert [(p.width, p.columns, p.rows) for p in pages] == [(1024, 4, 4), (256, 1, 1)]
    assert all(len(p.offsets) == p.columns * p.rows and (p.counts > 0).all() for p in pages)


def test_a_classic_tiff_beyond_four_gigabytes_is_left_to_openslide(tmp_path: Path) -> None:
    (tmp_path / "a.ndpi").write_bytes(b"II*\0\x08\0\0\0" + HOSTILE["a directory past the end"][0])
    os.truncate(tmp_path / "a.ndpi", (1 << 32) + 16)
    assert tiled_pages(tmp_path / "a.ndpi") == []


def test_what_openslide_alone_would_allocate_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiff(tmp_path / "a.svs", stained(), 0.5)
    monkeypatch.setattr(tiff, "MAX_SIDE", 1000)
    assert verdict(tmp_path, "a.svs") == "failed_implausible_size" and MAX_TILES == 200_000


@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_may_not_be_read_is_a_verdict(tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiff(tmp_path / "in" / "a.svs", stained(), 0.5)
    if os.geteuid() == 0:  # root may read everything: the refusal is made here

        def refused(self: Path, *given: Any, **named: Any) -> Any:
            raise PermissionError(13, "denied")

        monkeypatch.setattr(Path, "open" if what == "file" else "is_file", refused)
    else:
        (tmp_path / "in" / ("a.svs" if what == "file" else "")).chmod(0)
    assert verdict(tmp_path, "in/a.svs") == "failed_unreadable"
    monkeypatch.undo()
    (tmp_path / "in").chmod(0o755)


def test_processes_give_the_items_of_one_in_order(tmp_path: Path) -> None:
    names = [f"{number}.svs" for number in range(16)]
    write_tiff(tmp_path / names[0], stained(512), 0.5)
    for number, name in enumerate(names[1:]):
        shutil.copy(tmp_path / names[0], tmp_path / name)
        if number % 3 == 0:
            (tmp_path / name).write_bytes(b"broken")
    seen: list[int] = []
    both = index(tmp_path, *names, progress=seen.append, workers=2)
    assert both == index(tmp_path, *names, workers=1) and seen == list(range(1, 17))
    assert {item.verdict for item in both} == {"ok", "failed_unreadable"}


def test_an_unexpected_error_is_one_slides_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiff(tmp_path / "a.svs", stained(512), 0.5)

    def broken(*given: Any, **named: Any) -> None:
        raise RuntimeError("a codec's surprise")

    monkeypatch.setattr("extractors.wsi.read.plan_tiles", broken)
    assert verdict(tmp_path, "a.svs") == "failed_unreadable"


class Sketch:
    """A slide of given levels, with a dark left half and a white right half; it replaces OpenSlide in plans."""

    def __init__(self, *levels: tuple[int, int], **properties: str) -> None:
        self.level_dimensions, self.dimensions, self.level_count = levels, levels[0], len(levels)
        self.level_downsamples = [(levels[0][0] / w + levels[0][1] / h) / 2 for w, h in levels]
        self.properties = {
            name.replace("_", "-").replace("openslide-", "openslide."): v for name, v in properties.items()
        }

    def read_region(self, place: tuple[int, int], level: int, size: tuple[int, int]) -> Any:
        from PIL import Image

        pixels = np.full((size[1], size[0], 4), 255, np.uint8)
        pixels[:, : size[0] // 2, :3] = 160, 90, 140
        return Image.fromarray(pixels)


# By hand: a tile is 128 um; pitch = 128 / mpp level-0 pixels; extent = pitch / factor; the level is the coarsest whose
# factor is at most 0.5 / mpp. (levels, (mpp x, y)) -> level, extent, x of the third tile in the level and in level 0.
GOLDEN = [
    ([(2048, 2048)], (0.5, 0.5), 0, (256.0, 256.0), 512, 512),
    ([(4096, 4096)], (0.25, 0.25), 0, (512.0, 512.0), 1024, 1024),
    ([(4096, 4096), (2048, 2048)], (0.25, 0.25), 1, (256.0, 256.0), 512, 1024),
    ([(6000, 6000), (2000, 2000)], (0.125, 0.125), 1, (1024 / 3, 1024 / 3), 683, 2049),
    ([(8193, 8195), (2048, 2048)], (0.125, 0.125), 1, (256.0, 256.0), 512, 2048),
    ([(5000, 5000), (2000, 2000)], (0.2, 0.2), 1, (256.0, 256.0), 512, 1280),
    ([(4096, 4096), (2048, 2048)], (0.25, 0.26), 0, (512.0, 128 / 0.26), 1024, 1024),
    ([(2048, 2048)], (0.499, 0.499), 0, (128 / 0.499, 128 / 0.499), 513, 513),
]


@pytest.mark.whole
@pytest.mark.parametrize(("levels", "mpp", "level", "extent", "corner", "place"), GOLDEN)
def test_plans_by_hand(
    levels: list[tuple[int, int]],
    mpp: tuple[float, float],
    level: int,
    extent: tuple[float, float],
    corner: int,
    place: int,
) -> None:
    slide: Any = Sketch(*levels)
    plan = plan_tiles(slide, mpp=mpp)
    assert plan.level == level and plan.extent == pytest.approx(extent, rel=1e-12)
    row = plan.corners[:, 1] == 0
    assert plan.corners[row, 0][2] == corner and plan.coordinates[row, 0][2] == place


def test_geometry_says_how_a_slide_is_read_and_nothing_of_whose_it_is(tmp_path: Path) -> None:
    write_tiff(tmp_path / "a.svs", stained(), 0.25)
    item = index(tmp_path, "a.svs", limits=Limits(failed_tiles=0.05))[0]
    stamp, _, judged = (item.geometry.pop(name) for name in ("stamp", "state", "judged"))
    assert {"stamp", "state", "judged"} <= WSI.private_geometry and judged == "ok"
    assert len(stamp) == 32 and item.geometry == {
        "width": 1024, "height": 1024, "levels": 2, "mpp_x": 0.25, "mpp_y": 0.25, "mpp_source": "file",
        "max_failed_tiles": 0.05, "reader": "direct", "level": 0, "extent": [512.0, 512.0], "mask": MASK,
        "pen_share": 0.0, "blurred_share": 0.0, "focus_tiles": 1,
    }  # fmt: skip
    os.utime(tmp_path / "a.svs", ns=(1, 1))
    again = index(tmp_path, "a.svs")[0]
    assert again.identity == item.identity and again.geometry["stamp"] != stamp


@pytest.mark.parametrize("paths", [("gone.svs",), (), ("a.svs", "a.svs"), ("../a.svs",)])
def test_units_of_no_file_are_missing(tmp_path: Path, paths: tuple[str, ...]) -> None:
    with pytest.raises(VerdictError) as caught:
        list(read_slide_units(UnitRequest(tmp_path, paths, {"mpp_x": 0.5, "mpp_y": 0.5}), 8))
    assert caught.value.verdict == "failed_missing_file"


def test_a_name_that_is_no_utf8_is_a_missing_file(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/M\xfcller.svs")).write_bytes(b"II*\0")
    assert [item.verdict for item in index(tmp_path)] == ["failed_missing_file"]
