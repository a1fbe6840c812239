"""The plan of a slide: its physical scale, which of its tiles have tissue, and which level they are read from.

The scale is physical: a tile is `tile` x `mpp_target` micrometres wide whatever the magnification, read from the
coarsest level that is still at least as fine as the target and resampled (bicubic) by the exact factor.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from extractors.items import VerdictError
from extractors.wsi.tiff import MAX_SIDE

if TYPE_CHECKING:
    from openslide import OpenSlide
    from PIL.Image import Image

MPP_TARGET, TILE = 0.5, 256  # GigaPath's tile encoder: 256 px at 0.5 um/px
MPP_LEAST, MPP_MOST = 0.05, 10.0  # outside, the file's resolution is no microscope's (72 dpi is 353 um/px)
MPP_COARSEST = 1.0  # twice the target: beyond, resampling would invent what was not seen
TISSUE_SHARE = 0.1
MIN_CONTRAST = 10.0  # grey levels between tissue and background; below, Otsu only splits the noise of an empty slide
MAX_TILES = 200_000
OVERVIEW_PIXELS = 16_000_000
OVERVIEW_PX_PER_TILE = 4
STRIP_PIXELS = 8_000_000
PIECE = 256

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class TilePlan:
    """Where a slide's tissue tiles are and how to read one.

    `coordinates`: (n, 2) int64, x and y of the upper left corner in level-0 pixels. `corners`: (n, 2) int64, the same
    corner in pixels of `level`; it is what is read. `extent`: width and height of a tile in pixels of `level`, exact;
    `tile`: its side in pixels after resampling.
    """

    coordinates: npt.NDArray[np.int64]
    corners: npt.NDArray[np.int64]
    level: int
    extent: tuple[float, float]
    tile: int

    def __len__(self) -> int:
        return len(self.coordinates)

    @property
    def window(self) -> tuple[int, int]:
        """Width and height of the pixels of `level` that a tile touches."""
        return math.ceil(self.extent[0] - 1e-6), math.ceil(self.extent[1] - 1e-6)

    @property
    def native(self) -> bool:
        """Whether a tile is read as it is, without resampling."""
        return max(abs(side - self.tile) for side in self.extent) < 1e-6


def open_slide(path: Path) -> "OpenSlide":
    """Opens a slide; raises VerdictError failed_unreadable where OpenSlide cannot."""
    import openslide

    try:
        return openslide.OpenSlide(path)
    except (openslide.OpenSlideError, OSError) as error:
        raise VerdictError("failed_unreadable") from error


def physical_mpp(slide: "OpenSlide", override: float | None = None) -> tuple[float, float]:
    """Micrometres per level-0 pixel along x and y: the override, else the file's.

    Raises:
        VerdictError: failed_no_mpp, failed_mpp_too_coarse.
    """
    found = (override, override)
    if override is None:
        try:
            found = (float(slide.properties["openslide.mpp-x"]), float(slide.properties["openslide.mpp-y"]))
        except (KeyError, ValueError) as error:
            raise VerdictError("failed_no_mpp") from error
    x, y = (float("nan") if value is None else value for value in found)
    if not (MPP_LEAST <= x <= MPP_MOST and MPP_LEAST <= y <= MPP_MOST):
        raise VerdictError("failed_no_mpp")
    if max(x, y) > MPP_COARSEST:
        raise VerdictError("failed_mpp_too_coarse")
    return x, y


def plan_tiles(
    slide: "OpenSlide",
    mpp_target: float = MPP_TARGET,
    tile: int = TILE,
    mpp: tuple[float, float] | None = None,
    path: Path | None = None,
) -> TilePlan:
    """The tissue tiles of a slide, row by row, on a grid of exact physical pitch.

    Tissue: luminance (mean of RGB) below Otsu's threshold on the lowest level; a tile is kept if more than a tenth of
    its pixels are. Tiles at the right and lower edge reach past the slide; there is background. Corners lie on whole
    pixels of the level that is read.

    Args:
        slide: an open slide.
        mpp_target: micrometres per pixel of a tile.
        tile: a tile's side in pixels.
        mpp: micrometres per level-0 pixel along x and y; the file's own if omitted.
        path: the slide's, for new handles: with it, damaged parts of the lowest level are passed over. `slide` itself
            is of no use after a damaged part.

    Raises:
        VerdictError: failed_no_mpp, failed_mpp_too_coarse, failed_implausible_size, failed_too_many_units,
            failed_unreadable, failed_no_tissue.
    """
    x_mpp, y_mpp = mpp or physical_mpp(slide)
    if max(slide.dimensions) > MAX_SIDE:
        raise VerdictError("failed_implausible_size")
    pitch = np.array([tile * mpp_target / x_mpp, tile * mpp_target / y_mpp])  # level-0 pixels
    start, size = _bounds(slide)
    columns, rows = (int(count) for count in np.ceil(size / pitch))
    if columns * rows > MAX_TILES:
        raise VerdictError("failed_too_many_units")
    level = _level_at_most(slide, mpp_target / max(x_mpp, y_mpp))
    downsample = downsample_of(slide, level)
    luminance, scale = _overview(slide, pitch, path)
    if np.isnan(luminance).all():
        raise VerdictError("failed_unreadable")
    corners_x = start[0] + np.arange(columns + 1) * pitch[0]
    corners_y = start[1] + np.arange(rows + 1) * pitch[1]
    share = _tissue_share(_tissue(luminance), corners_x / scale[0], corners_y / scale[1])
    row, column = np.nonzero(share > TISSUE_SHARE)
    if not len(row):
        raise VerdictError("failed_no_tissue")
    corners = np.rint(np.stack([corners_x[column], corners_y[row]], axis=1) / downsample).astype(np.int64)
    coordinates = np.rint(corners * downsample).astype(np.int64)
    extent = pitch / downsample
    return TilePlan(coordinates, corners, level, (float(extent[0]), float(extent[1])), tile)


def _bounds(slide: "OpenSlide") -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Origin and size of the scanned area in level-0 pixels; the whole slide where the file names none."""
    names = ("openslide.bounds-x", "openslide.bounds-y", "openslide.bounds-width", "openslide.bounds-height")
    try:
        x, y, width, height = (int(slide.properties[name]) for name in names)
    except (KeyError, ValueError):
        (width, height), x, y = slide.dimensions, 0, 0
    return np.array([x, y], dtype=np.float64), np.array([width, height], dtype=np.float64)


def downsample_of(slide: "OpenSlide", level: int) -> npt.NDArray[np.float64]:
    """Level-0 pixels per pixel of a level along x and y.

    A level's size is its true size rounded, so 4.0018 is 4 where a factor of 4 gives just that size; of factors that
    are no whole numbers the ratio of the sizes is all that the file says.
    """
    whole, part = (np.array(size, dtype=np.int64) for size in (slide.dimensions, slide.level_dimensions[level]))
    ratio: npt.NDArray[np.float64] = whole / part
    nearest = np.maximum(np.rint(ratio.mean()), 1).astype(np.int64)
    exact = (part >= whole // nearest) & (part <= -(-whole // nearest))
    return np.full(2, float(nearest)) if exact.all() else ratio


def _level_at_most(slide: "OpenSlide", downsample: float) -> int:
    """The coarsest level no coarser than `downsample`; one part in a thousand of rounding is forgiven."""
    levels = range(slide.level_count)
    fine = [level for level in levels if downsample_of(slide, level).max() <= downsample * 1.001]
    return fine[-1] if fine else 0


def _overview(
    slide: "OpenSlide", pitch: npt.NDArray[np.float64], path: Path | None
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """Luminance (h, w) of the lowest level that still shows a tile in 4 x 4 pixels, and its level-0 pixels per pixel.

    Read in strips and averaged in blocks where the level is large, so that memory is bounded for any slide.
    """
    coarsest = float(pitch.min()) / OVERVIEW_PX_PER_TILE
    level = _level_at_most(slide, coarsest)
    width, height = slide.level_dimensions[level]
    downsample = downsample_of(slide, level)
    block = max(1, min(math.ceil(math.sqrt(width * height / OVERVIEW_PIXELS)), int(coarsest / downsample.max())))
    strip = max(block, STRIP_PIXELS // width // block * block)
    parts = []
    for top in range(0, height, strip):
        luminance = _luminance(slide, path, level, top, (width, min(strip, height - top)))
        parts.append(_block_mean(luminance, block))
    return np.concatenate(parts), downsample * block


def _luminance(
    slide: "OpenSlide", path: Path | None, level: int, top: int, size: tuple[int, int]
) -> npt.NDArray[np.float32]:
    """A strip's mean of RGB (h, w); NaN where pieces of it cannot be decoded."""
    width, height = size
    try:
        whole: npt.NDArray[np.float32] = read_region(slide, (0, top), level, size).mean(axis=2, dtype=np.float32)
        return whole
    except VerdictError:
        if path is None:
            raise
    strip = np.full((height, width), np.nan, np.float32)
    opened = open_slide(path)  # after one error an OpenSlide handle fails for ever
    for y in range(0, height, PIECE):
        for x in range(0, width, PIECE):
            piece = min(PIECE, width - x), min(PIECE, height - y)
            try:
                pixels = read_region(opened, (x, top + y), level, piece)
            except VerdictError:
                opened.close()
                opened = open_slide(path)
                continue
            strip[y : y + piece[1], x : x + piece[0]] = pixels.mean(axis=2, dtype=np.float32)
    opened.close()
    return strip


def _block_mean(image: npt.NDArray[np.float32], block: int) -> npt.NDArray[np.float32]:
    if block == 1:
        return image
    rows, columns = (-size % block for size in image.shape)
    padded = np.pad(image, ((0, rows), (0, columns)), mode="edge")
    shape = (padded.shape[0] // block, block, padded.shape[1] // block, block)
    means: npt.NDArray[np.float32] = padded.reshape(shape).mean(axis=(1, 3), dtype=np.float32)
    return means


def otsu(luminance: npt.NDArray[np.float32]) -> tuple[float, float]:
    """Otsu's threshold (1979) of values 0-255 in 256 bins, and the distance of the two classes' means.

    >>> threshold, contrast = otsu(np.array([10, 12, 11, 240, 238], dtype=np.float32))
    >>> 12 < threshold <= 238, round(contrast)
    (True, 228)
    """
    counts = np.histogram(luminance, bins=256, range=(0, 256))[0].astype(np.float64)
    centres = np.arange(256) + 0.5
    below, mass = np.cumsum(counts)[:-1], np.cumsum(counts * centres)[:-1]
    above, total = counts.sum() - below, (counts * centres).sum()
    valid = (below > 0) & (above > 0)
    if not valid.any():
        return 0.0, 0.0
    gap = np.zeros(255)
    gap[valid] = (total - mass[valid]) / above[valid] - mass[valid] / below[valid]
    best = int(np.argmax(below * above * gap**2))
    return float(best + 1), float(gap[best])


def _tissue(luminance: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """What could not be decoded counts as tissue, so that its tiles are tried and, if they fail too, counted."""
    damaged = np.isnan(luminance)
    threshold, contrast = otsu(luminance[~damaged])
    return damaged | (luminance < threshold) if contrast >= MIN_CONTRAST else np.zeros(luminance.shape, np.bool_)


def _tissue_share(
    mask: npt.NDArray[np.bool_], corners_x: npt.NDArray[np.float64], corners_y: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """The share of tissue in each tile (rows, columns) of a grid whose corners are given in the mask's pixels."""
    table = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), dtype=np.int64)
    table[1:, 1:] = mask.cumsum(axis=0, dtype=np.int64).cumsum(axis=1)
    x, y = np.rint(corners_x).astype(np.int64), np.rint(corners_y).astype(np.int64)
    inner_x, inner_y = x.clip(0, mask.shape[1]), y.clip(0, mask.shape[0])
    at = table[np.ix_(inner_y, inner_x)]
    tissue = at[1:, 1:] - at[:-1, 1:] - at[1:, :-1] + at[:-1, :-1]
    area: npt.NDArray[np.float64] = np.outer(np.diff(y), np.diff(x)).astype(np.float64)
    share: npt.NDArray[np.float64] = tissue / np.maximum(area, 1.0)
    return share


def background_of(slide: "OpenSlide") -> tuple[int, int, int]:
    """The colour of what was not scanned and of what is past the edge; white where the file names none."""
    text = slide.properties.get("openslide.background-color", "FFFFFF")
    try:
        red, green, blue = bytes.fromhex(text)
    except ValueError:
        return 255, 255, 255
    return red, green, blue


def _flatten(region: "Image", background: tuple[int, int, int]) -> "Image":
    """RGBA to RGB on the background: plain conversion turns what was not scanned, and what is past the edge, black."""
    from PIL import Image

    canvas = Image.new("RGB", region.size, background)
    canvas.paste(region, mask=region.getchannel("A"))
    return canvas


def read_region(slide: "OpenSlide", corner: tuple[int, int], level: int, size: tuple[int, int]) -> Bytes:
    """A region as (h, w, 3) RGB from OpenSlide; `corner` in pixels of `level`, `size` = (w, h).

    OpenSlide takes level-0 pixels and one factor for both axes; where that is no whole number it lands within half a
    level-0 pixel of the corner.

    Raises:
        VerdictError: failed_unreadable. The handle is of no use afterwards.
    """
    import openslide

    try:
        factor = slide.level_downsamples[level]
        place = (round(corner[0] * factor), round(corner[1] * factor))
        return np.asarray(_flatten(slide.read_region(place, level, size), background_of(slide)))
    except (openslide.OpenSlideError, OSError) as error:
        raise VerdictError("failed_unreadable") from error
