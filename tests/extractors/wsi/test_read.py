"""Slides: physical scale, tissue, spans, damage, and images that must not be read."""

import os
from collections.abc import Callable, Mapping
from datetime import date, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import polars as pl
import pytest
from PIL import Image

from extractors.items import FoundItem, UnitBatch, UnitRequest, VerdictError
from extractors.wsi import plan
from extractors.wsi import read as slide_read
from extractors.wsi.index import Limits, index_slides, read_slide_units
from extractors.wsi.plan import TilePlan, open_slide, plan_tiles
from extractors.wsi.read import SlideReader
from tests.support.images.phantoms import stained, write_tiff

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


def plan_for(path: Path, geometry: Mapping[str, Any]) -> TilePlan:
    with open_slide(path) as opened:
        return plan_tiles(opened, mpp=(geometry["mpp_x"], geometry["mpp_y"]))


def tiles_of(path: Path, geometry: Mapping[str, Any]) -> np.ndarray:
    reader = SlideReader(path, geometry)
    return reader.block(0, len(reader.plan)).pixels


def read(root: Path, item: FoundItem, size: int, start: int = 0, stop: int | None = None) -> list[UnitBatch]:
    return list(read_slide_units(UnitRequest(root, item.paths, item.geometry, start, stop), size))


def test_tissue_tiles_are_found_where_the_tissue_is(slide: Path) -> None:
    item = index_one(slide)
    assert (item.verdict, item.units_expected, item.time, item.time_source) == ("ok", 4, WHEN, "manifest")
    assert item.geometry["mpp_x"] == 0.5 and item.geometry["mpp_source"] == "file"
    plan = plan_for(slide / "a.svs", item.geometry)
    assert plan.coordinates.tolist() == [[0, 0], [256, 0], [0, 256], [256, 256]] and plan.level == 0
    tiles = tiles_of(slide / "a.svs", item.geometry)
    assert tiles.shape == (4, 256, 256, 3) and tiles.dtype == np.uint8
    assert np.abs(tiles.mean(axis=(0, 1, 2)) - (180, 90, 150)).max() < 3


@pytest.mark.whole
def test_a_tile_is_as_wide_in_micrometres_whatever_the_scan(tmp_path: Path) -> None:
    """The same stripes of 32 um, scanned at three pixel sizes, have the same period in the tiles."""
    for mpp in (0.25, 0.4, 0.5):
        side = int(1024 * 0.5 / mpp)
        x = np.arange(side) * mpp
        image = np.full((side, side, 3), 250, dtype=np.uint8)
        image[:, x < 256] = np.where(np.sin(x[x < 256] * 2 * np.pi / 32) > 0, 160, 60)[:, None] - (0, 50, 10)
        write_tiff(tmp_path / f"{mpp}.svs", image, mpp, levels=1)
        item = index_one(tmp_path, f"{mpp}.svs")
        tile = tiles_of(tmp_path / f"{mpp}.svs", item.geometry)[0]
        spectrum = np.abs(np.fft.rfft(tile[128, :, 0] - tile[128, :, 0].mean()))
        assert spectrum.argmax() == 4, mpp  # 128 um a tile, 32 um a stripe


def test_the_level_read_is_the_coarsest_that_is_fine_enough(tmp_path: Path) -> None:
    write_tiff(tmp_path / "a.svs", stained(4096), mpp=0.125, levels=3)  # levels at 0.125, 0.5 and 2 um
    plan = plan_for(tmp_path / "a.svs", index_one(tmp_path).geometry)
    assert plan.level == 1 and plan.extent == (256.0, 256.0)
    with open_slide(tmp_path / "a.svs") as opened:
        assert plan_tiles(opened, mpp_target=0.49).level == 0


def test_the_manifest_overrides_the_pixel_size_and_makes_another_item(slide: Path) -> None:
    item, overridden = index_one(slide), index_one(slide, mpp=0.25)
    assert (item.units_expected, overridden.units_expected, overridden.geometry["mpp_source"]) == (4, 1, "manifest")
    assert item.identity != overridden.identity


@pytest.mark.parametrize(
    ("mpp", "override", "verdict"),
    [
        (None, None, "failed_no_mpp"),
        (None, 0.5, "ok"),
        (352.8, None, "failed_implausible_pixel_size"),
        (0.5, 0.0, "failed_implausible_pixel_size"),
        (0.5, float("nan"), "failed_implausible_pixel_size"),
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
    tile = tiles_of(tmp_path / "a.svs", {"mpp_x": 0.5, "mpp_y": 0.5})[corner]
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


@pytest.mark.parametrize("direct", [True, False])
def test_a_corrupt_tile_is_counted_and_left_out(tmp_path: Path, direct: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.ascontiguousarray(stained(2560)[:1280, :1280])
    image[-64:] = 250  # some background, for Otsu to find
    write_tiff(tmp_path / "a.svs", image, 0.5)
    before = index_one(tmp_path)
    pixels = np.concatenate([batch.pixels for batch in read(tmp_path, before, 8)])
    damage(tmp_path / "a.svs", 2)
    with pytest.raises(VerdictError) as changed:
        read(tmp_path, before, 8)
    assert changed.value.verdict == "failed_changed"
    if not direct:
        monkeypatch.setattr(slide_read, "direct_tiles", lambda *given: (None, "openslide:layout"))
    item = index_one(tmp_path)
    assert (item.verdict, item.units_expected, item.geometry["reader"] == "direct") == ("ok", 25, direct)
    batches = read(tmp_path, item, 8)
    assert [batch.failed for batch in batches] == [2, 0, 0, 0]
    assert [batch.indices[0] for batch in batches] == [2, 8, 16, 24] and batches[0].places[0].tolist() == [512, 0]
    # Tiles after the corrupt ones are read by a new handle and are unharmed.
    assert np.array_equal(np.concatenate([batch.pixels for batch in batches]), pixels[2:])
    assert [batch.failed for batch in read(tmp_path, item, 1, 0, 3)] == [1, 1, 0]
    damage(tmp_path / "a.svs", 3)
    with pytest.raises(VerdictError) as caught:
        read(tmp_path, index_one(tmp_path), 8)
    assert caught.value.verdict == "failed_too_many_bad_tiles"
    lenient = index_slides(tmp_path, manifest("a.svs"), limits=Limits(failed_tiles=0.2))[0]
    assert sum(len(batch.pixels) for batch in read(tmp_path, lenient, 8)) == 22


def test_spans_give_the_same_pixels_whatever_their_size(real_data: Path) -> None:
    item = index_one(real_data / "wsi", "cmu-1-small-region.svs")
    whole = read(real_data / "wsi", item, 64)[0]
    assert whole.indices.tolist() == list(range(54)) and whole.places.dtype == np.int32
    for size, cuts in ((7, (0, 20, 54)), (64, (0, 1, 52, 54)), (5, (30, 54))):
        for start, stop in pairwise(cuts):
            part = read(real_data / "wsi", item, size, start, stop)
            assert [len(batch.pixels) for batch in part][:-1] == [size] * (len(part) - 1)
            for name in ("pixels", "indices", "places"):
                joined = [getattr(batch, name) for batch in part]
                assert not joined or np.array_equal(np.concatenate(joined), getattr(whole, name)[start:stop])


def test_a_slide_is_planned_once_for_all_its_spans(slide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    item = index_one(slide)
    planned = []
    plan = slide_read.plan_tiles
    monkeypatch.setattr(slide_read, "plan_tiles", lambda *given, **named: planned.append(1) or plan(*given, **named))
    for start in range(4):
        assert len(read(slide, item, 1, start, start + 1)) == 1
    assert len(planned) == 1


def written_anew(path: Path) -> None:
    """The same bytes, and the time of the change set back: only the time of the entry's change tells it."""
    status = path.stat()
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("change", [lambda path: os.utime(path, ns=(1, 1)), written_anew])
def test_a_file_that_changes_while_it_is_read_is_given_up(slide: Path, change: Callable[[Path], None]) -> None:
    batches = read_slide_units(UnitRequest(slide, ("a.svs",), index_one(slide).geometry), 1)
    next(batches)
    change(slide / "a.svs")
    with pytest.raises(VerdictError) as caught:
        next(batches)
    assert caught.value.verdict == "failed_changed"


@pytest.mark.parametrize(
    ("size", "verdict"),
    [((10**6, 10**6), "failed_too_many_units"), ((1 << 31, 16), "failed_implausible_size")],
)
def test_giant_dimensions_are_refused_before_reading(
    slide: Path, size: tuple[int, int], verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openslide.OpenSlide, "dimensions", property(lambda self: size))
    assert index_one(slide).verdict == verdict


def test_large_levels_are_averaged_in_strips_with_the_same_tiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiff(tmp_path / "a.svs", stained(2048), 0.5, levels=1)
    whole = plan_for(tmp_path / "a.svs", {"mpp_x": 0.5, "mpp_y": 0.5})
    monkeypatch.setattr(plan, "STRIP_PIXELS", 200_000)
    strips = plan_for(tmp_path / "a.svs", {"mpp_x": 0.5, "mpp_y": 0.5})
    assert np.array_equal(whole.coordinates, strips.coordinates) and len(whole) == 16


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
    off = np.abs(tiles_of(path, {"mpp_x": 0.499, "mpp_y": 0.499})[20].astype(int) - expected)
    assert off.max() <= 1 and (off > 0).mean() < 0.01
