"""What is tissue, beside black, white, ink and grey of every kind: masks of drawn overviews, and tiles of slides."""

from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image, ImageFilter

from extractors.items import FoundItem, VerdictError
from extractors.simulate.slides import STAIN_RGB, tissue
from extractors.wsi.focus import SHARP, laplacian_variance
from extractors.wsi.index import Limits, index_slides
from extractors.wsi.settings import WsiSettings
from extractors.wsi.tissue import MARKER_COLOURS, SlideMask, otsu, slide_mask
from tests.support.images.phantoms import write_tiff

# In `make test` alone: hundreds of slides are drawn.
pytestmark = pytest.mark.whole

SIDE = 256
SQUARE = slice(120, 230)
STAINS = {
    "eosin": (180, 90, 150), "pale": (230, 190, 215), "haematoxylin": (120, 80, 165), "dark": (80, 50, 120),
    "DAB": (165, 110, 60), "counterstain": (165, 170, 195),
}  # fmt: skip
FOREIGN = {
    "black": (0, 0, 0), "nearly black": (14, 12, 15), "white": (255, 255, 255), "grey": (150, 150, 150),
    "dark grey": (90, 91, 92), "black ink": (50, 47, 52), "blue ink": (30, 60, 180), "navy ink": (20, 35, 120),
    "light blue ink": (60, 130, 225), "green ink": (40, 140, 70), "bright green ink": (10, 180, 120),
    "red ink": (210, 25, 40),
}  # fmt: skip
INKS = [name for name in FOREIGN if name.endswith("ink")]


def overview(stain: tuple[int, int, int] = STAINS["eosin"], noise: int = 6, glass: int = 242) -> np.ndarray:
    """A square of stain on glass, (SIDE, SIDE, 3)."""
    rng = np.random.default_rng(0)
    image = np.clip(glass + rng.integers(-2, 3, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
    inside = SQUARE, SQUARE
    image[inside] = np.clip(np.array(stain) + rng.integers(-noise, noise + 1, image[inside].shape), 0, 255)
    return image


def painted(image: np.ndarray, name: str, place: tuple[slice, slice]) -> np.ndarray:
    """With a foreign colour laid over a place; its edges are mixed with what lies beside, as in every lower level."""
    colour = np.full(image.shape, FOREIGN[name], np.uint8)
    cover = np.zeros(image.shape[:2], np.uint8)
    cover[place] = 255
    soft = np.asarray(Image.fromarray(cover).filter(ImageFilter.GaussianBlur(0.7)))[..., None] / 255
    mixed: np.ndarray = np.rint(image * (1 - soft) + colour * soft).astype(np.uint8)
    return mixed


def masked(image: np.ndarray, **options: Any) -> SlideMask:
    return slide_mask(image, np.zeros(image.shape[:2], np.bool_), **options)


def square() -> np.ndarray:
    inside = np.zeros((SIDE, SIDE), np.bool_)
    inside[SQUARE, SQUARE] = True
    return inside


@pytest.mark.parametrize("stain", STAINS)
@pytest.mark.parametrize("foreign", FOREIGN)
@pytest.mark.parametrize("rows", [5, 64, 100])
def test_tissue_is_the_square_whatever_lies_beside_it(stain: str, foreign: str, rows: int) -> None:
    image = painted(overview(STAINS[stain]), foreign, (slice(0, rows), slice(None)))
    found = masked(image)
    assert found.tissue[square()].mean() > 0.97 and found.tissue[~square()].mean() < 0.001
    share = found.ink.mean() if foreign in INKS else found.black.mean()
    if foreign in INKS or "black" in foreign:
        assert abs(share - rows / SIDE) < 0.02
    else:
        assert share < 0.005


@pytest.mark.parametrize("foreign", INKS)
def test_ink_over_tissue_is_no_tissue(foreign: str) -> None:
    """Ink takes light away from what lies under it: colours multiply."""
    image = overview()
    stroke = slice(160, 180), slice(60, 250)
    image[stroke] = np.rint(image[stroke] * np.array(FOREIGN[foreign]) / 255)
    found = masked(image)
    assert (found.ink | found.black)[stroke].mean() > 0.95 and found.tissue[stroke].mean() < 0.02
    assert found.tissue[SQUARE, SQUARE].mean() > 0.78  # 90 of 110 rows


def test_glass_that_is_pure_white_is_glass() -> None:
    image = overview(noise=25, glass=255)
    image[~square()] = 255
    found = masked(image)
    assert found.tissue[square()].mean() > 0.97 and not found.tissue[~square()].any()


@pytest.mark.parametrize("rows", [5, 64, 110])
def test_pure_white_moves_no_threshold(rows: int) -> None:
    """Glass that is a little yellow has a colour; only the threshold keeps it apart."""
    image = overview(STAINS["pale"])
    image[~square()] = 238, 234, 222
    image[:rows] = 255
    found = masked(image)
    assert found.tissue[square()].mean() > 0.97 and not found.tissue[~square()].any()


def test_a_slide_full_of_tissue_is_tissue() -> None:
    image = overview(noise=25)[SQUARE, SQUARE]
    assert masked(np.ascontiguousarray(image)).tissue.mean() > 0.99


@pytest.mark.parametrize("tint", [(242, 242, 242), (240, 235, 218), (255, 255, 255), (0, 0, 0), (200, 200, 200)])
def test_an_empty_slide_has_none(tint: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(1)
    image = np.clip(np.array(tint) + rng.integers(-3, 4, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
    assert not masked(image).tissue.any()


@pytest.mark.parametrize("foreign", INKS)
def test_a_slide_with_nothing_but_ink_has_none(foreign: str) -> None:
    glass = np.full((SIDE, SIDE, 3), 242, np.uint8)
    found = masked(painted(glass, foreign, (slice(20, 60), slice(30, 220))))
    assert not found.tissue.any() and found.ink.mean() > 0.1


@pytest.mark.parametrize("number", range(len(STAIN_RGB)))
def test_a_stain_of_a_markers_colour_is_tissue_where_it_is_all_there_is(number: int) -> None:
    """The last of the simulated stains is methyl blue."""
    image = tissue(np.random.default_rng(3), number, (SIDE, SIDE), 8.0)
    found = masked(image)
    inside = image.min(axis=2) < 230
    assert found.tissue[inside].mean() > 0.97 and not found.ink.any() and not found.tissue[~inside].any()


def test_inks_that_a_site_stains_with_are_not_looked_for() -> None:
    image = painted(overview(), "blue ink", (slice(0, 64), slice(None)))
    others = [colour for colour in MARKER_COLOURS if colour != "blue"]
    assert masked(image).tissue[:60].mean() < 0.001 < masked(image, marker_colours=others).tissue[:60].mean()


DARK_FIELD = {
    "green": (40, 210, 70),
    "blue": (40, 60, 200),
    "red": (220, 40, 60),
    "dim": (90, 110, 80),
    "grey": (180, 180, 180),
}


@pytest.mark.parametrize("colour", DARK_FIELD)
@pytest.mark.parametrize("ground", [0, 12, 40])
def test_light_on_dark_is_refused(colour: str, ground: int) -> None:
    image = overview(DARK_FIELD[colour])
    image[~square()] = np.random.default_rng(2).integers(ground, ground + 6, 3, np.uint8)
    with pytest.raises(VerdictError) as caught:
        masked(image)
    assert caught.value.verdict == "refused_dark_field"


def test_a_slide_that_is_mostly_not_scanned_is_no_dark_field() -> None:
    image = overview()
    image[:100], image[:, :100] = 0, 0
    assert masked(image).tissue[square()].mean() > 0.97


def test_otsu_splits_two_classes_and_not_one() -> None:
    rng = np.random.default_rng(0)
    both = np.concatenate([rng.normal(90, 8, 4000), rng.normal(230, 5, 9000)]).clip(0, 255).astype(int)
    threshold, contrast = otsu(np.bincount(both, minlength=256))
    assert 115 < threshold < 215 and abs(contrast - 140) < 3
    assert otsu(np.bincount([200] * 10, minlength=256)) == (0.0, 0.0)


def test_the_focus_measure_by_hand() -> None:
    """One white pixel in 3 x 3 inner pixels of black: its Laplacian is 1020, that of its four neighbours -255."""
    tile = np.zeros((5, 5, 3), np.uint8)
    tile[2, 2] = 255
    values = np.array([1020, -255, -255, -255, -255, 0, 0, 0, 0])
    assert laplacian_variance(tile) == pytest.approx(values.var())


def index_one(folder: Path, image: np.ndarray, **limits: Any) -> FoundItem:
    write_tiff(folder / "a.svs", image, 0.5)
    row = {"path": "a.svs", "raw_subject": "S1", "time": datetime(2020, 1, 2), "available_time": None, "mpp": None}
    return index_slides(folder, pl.DataFrame([row], infer_schema_length=None), limits=Limits(**limits))[0]


def large(blur: float = 0.0) -> np.ndarray:
    """1,536 pixels: sixteen tiles of structured tissue, four rows and columns, on glass."""
    rng = np.random.default_rng(4)
    image = np.full((1536, 1536, 3), 243, np.uint8)
    cells = rng.integers(-40, 40, (512, 512, 1)).repeat(2, axis=0).repeat(2, axis=1)
    image[256:1280, 256:1280] = np.clip(np.array(STAINS["eosin"]) + cells, 0, 255)
    if blur:
        soft = Image.fromarray(image[256:1280, 256:768]).filter(ImageFilter.GaussianBlur(blur))
        image[256:1280, 256:768] = np.asarray(soft)
    return image


@pytest.mark.parametrize(("blur", "share"), [(0.0, 0.0), (4.0, 0.5)])
def test_blurred_tiles_are_counted_and_refused_where_a_site_says_so(tmp_path: Path, blur: float, share: float) -> None:
    item = index_one(tmp_path, large(blur))
    assert (item.verdict, item.units_expected, item.geometry["focus_tiles"]) == ("ok", 16, 16)
    assert item.geometry["blurred_share"] == share
    refused = index_one(tmp_path, large(blur), blurred_tiles=0.4)
    assert refused.verdict == ("failed_out_of_focus" if share else "ok")
    assert refused.geometry["blurred_share"] == share and refused.identity == item.identity


def test_pen_tiles_are_left_out_counted_and_refused_where_a_site_says_so(tmp_path: Path) -> None:
    image = large()
    image[256:512, 0:1536] = FOREIGN["blue ink"]  # six tiles, four of them of tissue
    item = index_one(tmp_path, image)
    assert (item.verdict, item.units_expected, item.geometry["pen_share"]) == ("ok", 12, round(6 / 18, 4))
    assert index_one(tmp_path, image, pen_tiles=0.3).verdict == "failed_pen_marks"
    stained = index_one(tmp_path, image, marker_colours=("black", "green", "red"))
    assert stained.units_expected == 18 and stained.geometry["pen_share"] == 0
    assert stained.geometry["marker_colours"] == ["black", "green", "red"] and stained.identity != item.identity


@pytest.mark.parametrize(("foreign", "rows", "tiles"), [
    ("black", 64, 16), ("black", 176, 12), ("blue ink", 40, 16), ("blue ink", 96, 12),
])  # fmt: skip
def test_a_tile_that_is_half_black_or_a_quarter_ink_is_left_out(
    tmp_path: Path, foreign: str, rows: int, tiles: int
) -> None:
    image = large()
    image[560 : 560 + rows] = FOREIGN[foreign]
    item = index_one(tmp_path, image)
    assert (item.verdict, item.units_expected) == ("ok", tiles)
    # Of the row's six tiles all have more than a tenth of ink.
    assert item.geometry["pen_share"] == (round(6 / 18, 4) if "ink" in foreign else 0)


@pytest.mark.parametrize("band", [0.02, 0.1, 0.25])
@pytest.mark.parametrize("stain", ["eosin", "pale"])
@pytest.mark.parametrize("side", ["top", "left"])
def test_a_slide_with_a_band_that_was_not_scanned_has_the_tiles_of_its_tissue(
    tmp_path: Path, band: float, stain: str, side: str
) -> None:
    image = overview(STAINS[stain], noise=15).repeat(6, axis=0).repeat(6, axis=1)  # the square: 720 to 1,380
    width = int(band * len(image))
    image[(slice(width), slice(None)) if side == "top" else (slice(None), slice(width))] = 0
    item = index_one(tmp_path, image)
    # Of tiles 2.8 to 5.4 each way, four, less three corners with a twentieth.
    assert (item.verdict, item.units_expected) == ("ok", 13)


def test_the_order_of_colours_means_nothing(tmp_path: Path) -> None:
    settings = WsiSettings(path=tmp_path, marker_colours=tuple(reversed(MARKER_COLOURS)))
    assert Limits.of(settings).every_ink and Limits.of(settings) == Limits.of(WsiSettings(path=tmp_path))


def test_a_flat_tile_is_blurred_and_a_grainy_one_is_not() -> None:
    grain = np.random.default_rng(5).integers(100, 140, (64, 64, 1), np.uint8).repeat(3, axis=2)
    assert laplacian_variance(np.full((64, 64, 3), 120, np.uint8)) < SHARP < laplacian_variance(grain)
