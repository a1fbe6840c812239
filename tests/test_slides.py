"""Slides: physical scale, tissue, damage, and images that must never be read."""

from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import polars as pl
import pytest
from phantoms import stained, write_tiff
from PIL import Image

from extractors import slides
from extractors.items import FoundItem, UnitRequest, VerdictError
from extractors.slides import (
    TilePlan,
    index_slides,
    open_slide,
    otsu,
    plan_for,
    plan_tiles,
    read_slide_units,
    read_tiles,
)

WHEN = datetime(2020, 1, 2, 3, 4, 5)


def manifest(*paths: str, **columns: Any) -> pl.DataFrame:
    values = {"raw_subject": "S1", "time": WHEN, "available_time": None, "mpp": None, **columns}
    return pl.DataFrame([{"path": path, **values} for path in paths], infer_schema_length=None)


def index_one(root: Path, path: str = "a.svs", **columns: Any) -> FoundItem:
    return index_slides(root, manifest(path, **columns))[0]


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    write_tiff(tmp_path / "a.svs", stained(), mpp=0.5)
    return tmp_path


def tiles_of(path: Path, plan: TilePlan, batch_size: int = 32) -> np.ndarray:
    return np.concatenate([batch.pixels for batch in read_tiles(path, plan, batch_size)])


def test_tissue_tiles_are_found_where_the_tissue_is(slide: Path) -> None:
    item = index_one(slide)
    assert (item.verdict, item.units_expected, item.time, item.time_source) == ("ok", 4, WHEN, "manifest")
    assert item.geometry["mpp_x"] == 0.5 and item.geometry["mpp_source"] == "file"
    plan = plan_for(slide / "a.svs", item.geometry)
    assert plan.coordinates.tolist() == [[0, 0], [256, 0], [0, 256], [256, 256]] and plan.level == 0
    tiles = tiles_of(slide / "a.svs", plan, batch_size=3)
    assert tiles.shape == (4, 256, 256, 3) and tiles.dtype == np.uint8
    assert np.abs(tiles.mean(axis=(0, 1, 2)) - (180, 90, 150)).max() < 3


def test_a_tile_is_as_wide_in_micrometres_whatever_the_scan(tmp_path: Path) -> None:
    """The same stripes of 32 um, scanned at three pixel sizes, have the same period in the tiles read."""
    for mpp in (0.25, 0.4, 0.5):
        side = int(1024 * 0.5 / mpp)
        x = np.arange(side) * mpp
        image = np.full((side, side, 3), 250, dtype=np.uint8)
        image[:, x < 256] = np.where(np.sin(x[x < 256] * 2 * np.pi / 32) > 0, 160, 60)[:, None]
        write_tiff(tmp_path / f"{mpp}.svs", image, mpp, levels=1)
        item = index_one(tmp_path, f"{mpp}.svs")
        tile = tiles_of(tmp_path / f"{mpp}.svs", plan_for(tmp_path / f"{mpp}.svs", item.geometry))[0]
        spectrum = np.abs(np.fft.rfft(tile[128, :, 0] - tile[128, :, 0].mean()))
        assert spectrum.argmax() == 4, mpp  # 128 um a tile, 32 um a stripe


def test_the_level_read_is_the_coarsest_that_is_fine_enough(tmp_path: Path) -> None:
    write_tiff(tmp_path / "a.svs", stained(4096), mpp=0.125, levels=3)  # levels at 0.125, 0.5 and 2 um
    plan = plan_for(tmp_path / "a.svs", index_one(tmp_path).geometry)
    assert plan.level == 1 and plan.extent == (256.0, 256.0)
    with open_slide(tmp_path / "a.svs") as opened:
        assert plan_tiles(opened, mpp_target=0.49).level == 0


def test_the_manifest_overrides_the_pixel_size_and_makes_another_item(slide: Path) -> None:
    own, other = index_one(slide), index_one(slide, mpp=0.25)
    assert (own.units_expected, other.units_expected, other.geometry["mpp_source"]) == (4, 1, "manifest")
    assert own.identity != other.identity


@pytest.mark.parametrize(
    ("mpp", "override", "verdict"),
    [
        (None, None, "failed_no_mpp"),
        (None, 0.5, "ok"),
        (352.8, None, "failed_no_mpp"),
        (0.5, 0.0, "failed_no_mpp"),
        (0.5, float("nan"), "failed_no_mpp"),
        (2.0, None, "failed_mpp_too_coarse"),
    ],
)
def test_physical_scale(tmp_path: Path, mpp: float | None, override: float | None, verdict: str) -> None:
    write_tiff(tmp_path / "a.svs", stained(), mpp)
    assert index_one(tmp_path, mpp=override).verdict == verdict


@pytest.mark.parametrize("noise", [0, 3])
def test_an_empty_slide_has_no_tissue(tmp_path: Path, noise: int) -> None:
    rng = np.random.default_rng(0)
    image = (240 + rng.integers(-noise, noise + 1, (1024, 1024, 3))).astype(np.uint8)
    write_tiff(tmp_path / "a.svs", image, 0.5)
    assert index_one(tmp_path).verdict == "failed_no_tissue"


def test_what_is_past_the_edge_is_background_not_black(tmp_path: Path) -> None:
    write_tiff(tmp_path / "a.svs", np.ascontiguousarray(stained(640)[:320, :320]), 0.5, levels=1)
    plan = plan_for(tmp_path / "a.svs", index_one(tmp_path).geometry)
    corner = next(index for index, xy in enumerate(plan.coordinates.tolist()) if xy == [256, 0])
    tile = tiles_of(tmp_path / "a.svs", plan)[corner]
    assert tile[:, 80:].min() > 240 and tile[:, :56].mean() < 190


@pytest.mark.parametrize(
    ("columns", "verdict"),
    [({"raw_subject": None}, "failed_no_subject"), ({"time": None}, "failed_no_time"), ({}, "ok")],
)
def test_a_slide_needs_a_subject_and_a_time(slide: Path, columns: dict[str, Any], verdict: str) -> None:
    assert index_one(slide, **columns).verdict == verdict


@pytest.mark.parametrize(
    ("when", "precision"),
    [(WHEN, "s"), (WHEN.replace(microsecond=7), "us"), (datetime(2020, 1, 2), "day"), (date(2020, 1, 2), "day")],
)
def test_dates_have_day_precision(slide: Path, when: date, precision: str) -> None:
    assert index_one(slide, time=when).time_precision == precision
    assert index_one(slide, time=when, time_precision="min").time_precision == "min"


@pytest.mark.parametrize("path", ["absent.svs", "../outside.svs", "", "/etc/hostname"])
def test_files_outside_the_tree_are_missing(slide: Path, path: str) -> None:
    write_tiff(slide.parent / "outside.svs", stained(), 0.5)
    assert index_one(slide, path).verdict == "failed_missing_file"


def test_identity_is_of_content_not_of_name(slide: Path) -> None:
    before = index_one(slide).identity
    (slide / "a.svs").rename(slide / "b.svs")
    assert index_one(slide, "b.svs").identity == before
    write_tiff(slide / "b.svs", stained(seed=1), mpp=0.5)
    assert index_one(slide, "b.svs").identity != before


def damage(path: Path, tiles: int) -> None:
    """Overwrites the first encoded tiles of the first page with noise."""
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        where = list(zip(tiff.pages[0].dataoffsets, tiff.pages[0].databytecounts, strict=True))[:tiles]
    content = bytearray(path.read_bytes())
    for offset, size in where:
        content[offset : offset + size] = b"\xff\xd8" + b"\x11" * (size - 2)
    path.write_bytes(content)


def test_a_corrupt_tile_is_counted_and_left_out(tmp_path: Path) -> None:
    image = np.ascontiguousarray(stained(2560)[:1280, :1280])
    image[::7, ::5] = 250  # some background, for Otsu to find
    write_tiff(tmp_path / "a.svs", image, 0.5)
    clean = plan_for(tmp_path / "a.svs", index_one(tmp_path).geometry)
    pixels = tiles_of(tmp_path / "a.svs", clean)
    damage(tmp_path / "a.svs", 2)
    item = index_one(tmp_path)
    assert (item.verdict, item.units_expected, len(clean)) == ("ok", 25, 25)
    batches = list(read_tiles(tmp_path / "a.svs", clean, 8))
    assert [batch.failed for batch in batches] == [2, 0, 0, 0]
    # Tiles after the corrupt ones are read by a new handle and are unharmed.
    assert np.array_equal(np.concatenate([batch.pixels for batch in batches]), pixels[2:])
    damage(tmp_path / "a.svs", 3)
    with pytest.raises(VerdictError) as caught:
        list(read_tiles(tmp_path / "a.svs", clean))
    assert caught.value.verdict == "failed_too_many_bad_tiles"


def test_giant_dimensions_are_refused_before_reading(slide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openslide.OpenSlide, "dimensions", property(lambda self: (10**6, 10**6)))
    assert index_one(slide).verdict == "failed_too_many_units"


def test_large_levels_are_averaged_in_strips_with_the_same_tiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiff(tmp_path / "a.svs", stained(2048), 0.5, levels=1)
    whole = plan_for(tmp_path / "a.svs", {"mpp_x": 0.5, "mpp_y": 0.5})
    monkeypatch.setattr(slides, "OVERVIEW_PIXELS", 20_000)
    monkeypatch.setattr(slides, "STRIP_PIXELS", 200_000)
    strips = plan_for(tmp_path / "a.svs", {"mpp_x": 0.5, "mpp_y": 0.5})
    assert np.array_equal(whole.coordinates, strips.coordinates) and len(whole) == 16


def test_otsu_splits_two_classes_and_not_one() -> None:
    rng = np.random.default_rng(0)
    both = np.concatenate([rng.normal(90, 8, 4000), rng.normal(230, 5, 9000)]).astype(np.float32)
    threshold, contrast = otsu(both)
    assert 115 < threshold < 215 and abs(contrast - 140) < 3
    assert otsu(np.full(10, 200, np.float32)) == (0.0, 0.0)


def test_label_and_macro_are_never_touched(real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(self: openslide.OpenSlide) -> None:
        raise AssertionError("associated images were read")

    monkeypatch.setattr(openslide.OpenSlide, "associated_images", property(forbidden))
    root = real_data / "wsi"
    item = index_one(root, "cmu-1-small-region.svs")
    assert item.verdict == "ok" and item.geometry["mpp_x"] == 0.499 and (item.units_expected or 0) > 30
    request = UnitRequest(root, item.paths, item.geometry)
    assert sum(len(batch.pixels) for batch in read_slide_units(request, 32)) == item.units_expected
    with open_slide(root / item.paths[0]) as opened, pytest.raises(AssertionError):
        _ = opened.associated_images


def test_real_tiles_match_a_direct_reading(real_data: Path) -> None:
    path = real_data / "wsi" / "cmu-1-small-region.svs"
    plan = plan_for(path, {"mpp_x": 0.499, "mpp_y": 0.499})
    x, y = plan.coordinates[20].tolist()
    with openslide.OpenSlide(path) as opened:
        region = opened.read_region((x, y), 0, (257, 257)).convert("RGB")
    side = 256 * 0.5 / 0.499
    expected = np.asarray(region.resize((256, 256), Image.Resampling.BICUBIC, box=(0, 0, side, side)))
    assert np.array_equal(tiles_of(path, plan)[20], expected)


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("broken.svs", "failed_unreadable"),
        ("unreadable.svs", "failed_unreadable"),
        ("unopenable.tiff", "failed_unreadable"),
        ("small.svs", "failed_no_tissue"),
        ("boxes.tiff", "failed_no_mpp"),
        ("boxes_0.dcm", "failed_no_tissue"),
        ("dicom-sm/sm_image_jpegls.dcm", "failed_unreadable"),
        ("README.txt", "failed_unreadable"),
    ],
)
def test_odd_and_broken_real_files(real_data: Path, name: str, verdict: str) -> None:
    assert index_one(real_data / "wsi", name).verdict == verdict
