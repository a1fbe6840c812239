"""OME-TIFF: sizes in every unit, pyramids of SubIFDs against tifffile's reading, and files that say what is not so."""

from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import tifffile
from PIL import Image

from extractors.items import FoundItem, VerdictError
from extractors.wsi import ome
from extractors.wsi.index import index_slides
from extractors.wsi.ome import OmeSlide, open_pyramid, stated_mpp
from extractors.wsi.read import SlideReader
from extractors.wsi.tiff import tiled_pages


def picture(side: int = 2048) -> np.ndarray:
    """Structured tissue in one quarter and a corner of another, so that no shift or turn looks the same."""
    rng = np.random.default_rng(0)
    image = np.full((side, side, 3), 243, np.uint8)
    cells = rng.integers(-40, 40, (side // 8, side // 8, 1)).repeat(4, axis=0).repeat(4, axis=1)
    image[: side // 2, : side // 2] = np.clip(np.array((180, 90, 150)) + cells, 0, 255)
    image[side // 2 :, side // 2 :][: side // 4, : side // 8] = 120, 80, 165
    return image


def write(
    path: Path, image: np.ndarray, size: Any = 0.25, unit: str | None = None, levels: int = 3, **options: Any
) -> None:
    """Each level half of the one above it, means of 2 x 2 pixels."""
    metadata: dict[str, Any] = {"axes": "YXS"}
    if size is not None:
        metadata |= {"PhysicalSizeX": size, "PhysicalSizeY": size}
    if unit is not None:
        metadata |= {"PhysicalSizeXUnit": unit, "PhysicalSizeYUnit": unit}
    options = {"tile": (256, 256), "photometric": "rgb", "compression": "jpeg", **options}
    with tifffile.TiffWriter(path, ome=True) as tiff:
        tiff.write(image, subifds=levels - 1, metadata=metadata, **options)
        for level in range(1, levels):
            side = len(image) >> level
            smaller = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BOX))
            tiff.write(smaller, subfiletype=1, metadata=None, **options)


def index_one(folder: Path, name: str = "a.ome.tif") -> FoundItem:
    row = {"path": name, "raw_subject": "S1", "time": datetime(2020, 1, 2), "available_time": None, "mpp": None}
    return index_slides(folder, pl.DataFrame([row], infer_schema_length=None))[0]


# By hand: each is a quarter of a micrometre.
QUARTERS = {
    None: 0.25, "µm": 0.25, "nm": 250, "mm": 0.00025, "cm": 0.000025, "m": 2.5e-7, "pm": 250_000, "Å": 2_500,
    "in": 0.25 / 25_400, "thou": 0.25 / 25.4, "pt": 0.25 * 72 / 25_400,
}  # fmt: skip


@pytest.mark.parametrize("unit", QUARTERS)
def test_the_size_is_read_in_its_unit(tmp_path: Path, unit: str | None) -> None:
    write(tmp_path / "a.ome.tif", picture(1024), QUARTERS[unit], unit, levels=1)
    assert stated_mpp(tiled_pages(tmp_path / "a.ome.tif")) == pytest.approx((0.25, 0.25), rel=1e-12)
    item = index_one(tmp_path)
    assert (item.verdict, item.units_expected) == ("ok", 1 + 1)
    assert item.geometry["mpp_x"] == pytest.approx(0.25) and item.geometry["mpp_source"] == "file"


@pytest.mark.parametrize(
    ("size", "unit", "verdict"),
    [
        (None, None, "failed_no_mpp"),
        (1, "pixel", "failed_no_mpp"),
        (1, "reference frame", "failed_no_mpp"),
        (0.25, "mm", "failed_implausible_pixel_size"),  # 250 um
        (0.0, None, "failed_implausible_pixel_size"),
        (2, None, "failed_mpp_too_coarse"),
    ],
)
def test_sizes_that_are_none(tmp_path: Path, size: Any, unit: str | None, verdict: str) -> None:
    write(tmp_path / "a.ome.tif", picture(1024), size, unit, levels=1)
    assert index_one(tmp_path).verdict == verdict


def test_the_xml_wins_over_the_resolution(tmp_path: Path) -> None:
    resolution = {"resolution": (10_000, 10_000), "resolutionunit": "CENTIMETER"}  # 1 um
    write(tmp_path / "a.ome.tif", picture(1024), 0.5, levels=1, **resolution)
    assert index_one(tmp_path).geometry["mpp_x"] == 0.5


ENCODINGS: dict[str, dict[str, Any]] = {
    "jpeg": {}, "lzw": {"compression": "lzw", "predictor": True}, "deflate": {"compression": "deflate"},
    "tiles of 240": {"tile": (240, 240)},
}  # fmt: skip


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_levels_in_subifds_are_read_as_tifffile_reads_them(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.ome.tif"
    write(path, picture(), 0.25, **ENCODINGS[encoding])
    with tifffile.TiffFile(path) as tiff:
        levels = [level.asarray() for level in tiff.series[0].levels]
    slide = open_pyramid(path)
    assert isinstance(slide, OmeSlide) and slide.level_dimensions == ((2048, 2048), (1024, 1024), (512, 512))
    for number, level in enumerate(levels):
        x, y = 100, 60
        region = np.asarray(slide.read_region((x << number, y << number), number, (300, 200)))[..., :3]
        assert np.array_equal(region, level[y : y + 200, x : x + 300])
    slide.close()
    item = index_one(tmp_path)
    assert (item.verdict, item.geometry["reader"], item.geometry["levels"], item.geometry["level"]) == (
        "ok",
        "direct",
        3,
        1,
    )
    reader = SlideReader(path, item.geometry)
    assert reader.plan.native and item.units_expected == 4 + 1
    tiles = reader.block(0, len(reader.plan)).pixels
    for tile, (x, y) in zip(tiles, (reader.plan.coordinates // 2).tolist(), strict=True):
        assert np.array_equal(tile, levels[1][y : y + 256, x : x + 256])


def test_levels_that_show_something_else_are_not_read(tmp_path: Path) -> None:
    """The pyramid of another slide: the full-size page alone counts, by OpenSlide."""
    image = picture()
    write(tmp_path / "right.ome.tif", image, 0.25, levels=1)
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as tiff:
        options: dict[str, Any] = {"tile": (256, 256), "photometric": "rgb", "compression": "jpeg"}
        size = {"axes": "YXS", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25}
        tiff.write(image, subifds=1, metadata=size, **options)
        turned = np.ascontiguousarray(image[::-2, ::2])
        tiff.write(np.where(turned > 240, np.uint8(170), turned), subfiletype=1, metadata=None, **options)
    item, right = index_one(tmp_path), index_one(tmp_path, "right.ome.tif")
    assert item.geometry["reader"] != "direct" or item.geometry["level"] == 0
    assert (item.verdict, item.units_expected) == ("ok", right.units_expected)
    found, expected = (
        SlideReader(tmp_path / name, item.geometry | {"stamp": entry.geometry["stamp"]}).block(0, 4).pixels
        for name, entry in (("a.ome.tif", item), ("right.ome.tif", right))
    )
    assert np.array_equal(found, expected)


def test_a_damaged_tile_of_a_level_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    write(path, picture(), 0.25)
    (page,) = tiled_pages(path)
    content = bytearray(path.read_bytes())
    start, count = int(page.levels[0].offsets[0]), int(page.levels[0].counts[0])
    content[start : start + count] = b"\x11" * count
    path.write_bytes(content)
    reader = SlideReader(path, index_one(tmp_path).geometry)
    assert reader.how == "direct" and reader.block(0, len(reader.plan)).failed == 1


def test_channels_of_their_own_are_no_rgb(tmp_path: Path) -> None:
    """Three fluorescence channels, and three planes of one colour each, look the same: nobody may guess."""
    planes = np.ascontiguousarray(picture(512).transpose(2, 0, 1))
    size = {"axes": "CYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
    tifffile.imwrite(tmp_path / "a.ome.tif", planes, ome=True, tile=(256, 256), photometric="minisblack", metadata=size)
    assert index_one(tmp_path).verdict == "refused_not_rgb"
    tifffile.imwrite(
        tmp_path / "a.ome.tif", picture(512).astype(np.uint16) * 200, ome=True, tile=(256, 256), photometric="rgb",
        metadata=size | {"axes": "YXS"},
    )  # fmt: skip
    assert index_one(tmp_path).verdict == "refused_not_rgb"


def with_xml(path: Path, old: str, new: str) -> None:
    content = path.read_bytes()
    assert old.encode() in content and len(old) == len(new)
    path.write_bytes(content.replace(old.encode(), new.encode(), 1))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('SizeX="1024"', 'SizeX="1025"'),
        ("<Image", "<Imaqe"),
        ('<?xml version="1.0" encoding="UTF-8"?>', "<!DOCTYPE x>".ljust(38)),
    ],
)
def test_xml_that_is_not_of_this_file_or_none_is_unreadable(tmp_path: Path, old: str, new: str) -> None:
    write(tmp_path / "a.ome.tif", picture(1024), levels=1)
    with_xml(tmp_path / "a.ome.tif", old, new)
    assert index_one(tmp_path).verdict == "failed_unreadable"


def test_subifds_in_a_circle_are_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    write(path, picture(1024), levels=3)
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tag = tiff.pages[0].tags["SubIFDs"]
        tag.overwrite([tag.value[0]] * 2)
    with pytest.raises(VerdictError) as caught:
        tiled_pages(path)
    assert caught.value.verdict == "failed_unreadable"


def test_the_micro_sign_of_either_code_point_is_one() -> None:
    assert ome.UNITS["\u00b5m"] == ome.UNITS["\u03bcm"] == 1.0
