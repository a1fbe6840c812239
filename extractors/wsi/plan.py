"""The plan of a slide: its physical scale, which of its tiles have tissue, and which level they are read from.

The scale is physical: a tile is `tile` x `mpp_target` micrometres wide whatever the magnification, read from the
coarsest level that is still at least as fine as the target and resampled (bicubic) by the exact factor.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np
import numpy.typing as npt

from extractors.items import VerdictError
from extractors.wsi.tiff import MAX_SIDE
from extractors.wsi.tissue import MARKER_COLOURS, Bytes, slide_mask

if TYPE_CHECKING:
    from PIL.Image import Image

MPP_TARGET, TILE = 0.5, 256  # GigaPath's tile encoder: 256 px at 0.5 um/px
MPP_LEAST, MPP_MOST = 0.05, 10.0  # outside, the file's resolution is no microscope's (72 dpi is 353 um/px)
MPP_COARSEST = 1.0  # twice the target: beyond, resampling would invent what was not seen
TISSUE_SHARE = 0.1
BLACK_SHARE, INK_SHARE = 0.5, 0.25  # of a tile; with more it is left out
PEN_SHARE = 0.1  # of ink, from which on a tile counts as one with a pen's mark
MAX_TILES = 200_000
OVERVIEW_PX_PER_TILE = 4
MASK_PX_PER_TILE = 16  # 8 um a pixel, where a slide has such a level or a finer one: cells are no longer seen alone
STRIP_PIXELS = 8_000_000
PIECE = 256

Mask = npt.NDArray[np.bool_]
Scale = npt.NDArray[np.float64]


class Slide(Protocol):
    """What is used of OpenSlide; readers of other layouts have the same."""

    @property
    def dimensions(self) -> tuple[int, int]:
        """Width and height of level 0."""

    @property
    def level_count(self) -> int:
        """Levels of the pyramid."""

    @property
    def level_dimensions(self) -> tuple[tuple[int, int], ...]:
        """Width and height of each level."""

    @property
    def level_downsamples(self) -> tuple[float, ...]:
        """Level-0 pixels per pixel of each level."""

    @property
    def properties(self) -> Mapping[str, str]:
        """What the file says of itself, by OpenSlide's names."""

    def read_region(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> "Image":
        """RGBA at `location`, in level-0 pixels."""

    def close(self) -> None:
        """Closes the file."""

    def __enter__(self) -> Self:
        """The slide."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> bool | None:
        """Closes the file."""


@dataclass(frozen=True)
class TilePlan:
    """Where a slide's tissue tiles are and how to read one.

    `coordinates`: (n, 2) int64, x and y of the upper left corner in level-0 pixels. `corners`: (n, 2) int64, the same
    corner in pixels of `level`; it is what is read. `extent`: width and height of a tile in pixels of `level`, exact;
    `tile`: its side in pixels after resampling. `pen_share`: of the tiles with tissue or ink, those with ink.
    """

    coordinates: npt.NDArray[np.int64]
    corners: npt.NDArray[np.int64]
    level: int
    extent: tuple[float, float]
    tile: int
    pen_share: float = 0.0

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


def open_slide(path: Path) -> Slide:
    """Opens a slide; raises VerdictError failed_unreadable where OpenSlide cannot."""
    import openslide

    try:
        opened: Slide = openslide.OpenSlide(path)
        return opened
    except (openslide.OpenSlideError, OSError) as error:
        raise VerdictError("failed_unreadable") from error


def physical_mpp(
    slide: Slide, override: float | None = None, stated: tuple[float, float] | None = None
) -> tuple[float, float]:
    """Micrometres per level-0 pixel along x and y: the override, else what the file's XML states, else what OpenSlide
    finds.

    Raises:
        VerdictError: failed_no_mpp, failed_implausible_pixel_size, failed_mpp_too_coarse.
    """
    found: tuple[float | None, float | None] = (override, override)
    if override is None and stated is not None:
        found = stated
    elif override is None:
        try:
            found = (float(slide.properties["openslide.mpp-x"]), float(slide.properties["openslide.mpp-y"]))
        except (KeyError, ValueError) as error:
            raise VerdictError("failed_no_mpp") from error
    x, y = (float("nan") if value is None else value for value in found)
    if not (MPP_LEAST <= x <= MPP_MOST and MPP_LEAST <= y <= MPP_MOST):
        raise VerdictError("failed_implausible_pixel_size")
    if max(x, y) > MPP_COARSEST:
        raise VerdictError("failed_mpp_too_coarse")
    return x, y


def plan_tiles(
    slide: Slide,
    mpp_target: float = MPP_TARGET,
    tile: int = TILE,
    mpp: tuple[float, float] | None = None,
    reopen: Callable[[], Slide] | None = None,
    marker_colours: Collection[str] = MARKER_COLOURS,
) -> TilePlan:
    """The tissue tiles of a slide, row by row, on a grid of exact physical pitch.

    A tile is kept if more than a tenth of its pixels are tissue, no more than half are black and no more than a quarter
    ink, all on the lowest level that shows it (`extractors.wsi.tissue`). Tiles at the right and lower edge reach past
    the slide; there is background. Corners lie on whole pixels of the level that is read.

    Args:
        slide: an open slide.
        mpp_target: micrometres per pixel of a tile.
        tile: a tile's side in pixels.
        mpp: micrometres per level-0 pixel along x and y; the file's own if omitted.
        reopen: gives a new handle of the slide: with it, damaged parts of the lowest level are passed over. `slide`
            itself is of no use after a damaged part.
        marker_colours: inks that are looked for.

    Raises:
        VerdictError: failed_no_mpp, failed_implausible_pixel_size, failed_mpp_too_coarse, failed_implausible_size,
            failed_too_many_units, failed_unreadable, refused_dark_field, failed_no_tissue.
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
    rgb, damaged, scale = _overview(slide, pitch, reopen)
    if damaged.all():
        raise VerdictError("failed_unreadable")
    mask = slide_mask(rgb, damaged, marker_colours)
    corners_x = start[0] + np.arange(columns + 1) * pitch[0]
    corners_y = start[1] + np.arange(rows + 1) * pitch[1]
    tissue, black, ink = (
        _share(pixels, corners_x / scale[0], corners_y / scale[1]) for pixels in (mask.tissue, mask.black, mask.ink)
    )
    marked = ink > PEN_SHARE
    kept = (tissue > TISSUE_SHARE) & (black <= BLACK_SHARE) & (ink <= INK_SHARE)
    row, column = np.nonzero(kept)
    if not len(row):
        raise VerdictError("failed_no_tissue")
    corners = np.rint(np.stack([corners_x[column], corners_y[row]], axis=1) / downsample).astype(np.int64)
    coordinates = np.rint(corners * downsample).astype(np.int64)
    extent = pitch / downsample
    pen_share = float(marked.sum() / (marked | kept).sum())
    return TilePlan(coordinates, corners, level, (float(extent[0]), float(extent[1])), tile, pen_share)


def _bounds(slide: Slide) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Origin and size of the scanned area in level-0 pixels; the whole slide where the file names none."""
    names = ("openslide.bounds-x", "openslide.bounds-y", "openslide.bounds-width", "openslide.bounds-height")
    try:
        x, y, width, height = (int(slide.properties[name]) for name in names)
    except (KeyError, ValueError):
        (width, height), x, y = slide.dimensions, 0, 0
    return np.array([x, y], dtype=np.float64), np.array([width, height], dtype=np.float64)


def downsample_of(slide: Slide, level: int) -> npt.NDArray[np.float64]:
    """Level-0 pixels per pixel of a level along x and y.

    A level's size is its true size rounded, so 4.0018 is 4 where a factor of 4 gives just that size; of factors that
    are no whole numbers the ratio of the sizes is all that the file says.
    """
    whole, part = (np.array(size, dtype=np.int64) for size in (slide.dimensions, slide.level_dimensions[level]))
    ratio: npt.NDArray[np.float64] = whole / part
    nearest = np.maximum(np.rint(ratio.mean()), 1).astype(np.int64)
    exact = (part >= whole // nearest) & (part <= -(-whole // nearest))
    return np.full(2, float(nearest)) if exact.all() else ratio


def _level_at_most(slide: Slide, downsample: float) -> int:
    """The coarsest level no coarser than `downsample`; one part in a thousand of rounding is forgiven."""
    levels = range(slide.level_count)
    fine = [level for level in levels if downsample_of(slide, level).max() <= downsample * 1.001]
    return fine[-1] if fine else 0


def _overview(
    slide: Slide, pitch: npt.NDArray[np.float64], reopen: Callable[[], Slide] | None
) -> tuple[Bytes, Mask, Scale]:
    """RGB (h, w, 3) of the lowest level that still shows a tile in 4 x 4 pixels, where it could not be decoded (h, w),
    and its level-0 pixels per pixel.

    Read in strips and averaged in blocks where the level is finer than the mask needs, so that colours are those of
    tissue and not of single nuclei, and memory is bounded for any slide.
    """
    coarsest = float(pitch.min()) / OVERVIEW_PX_PER_TILE
    level = _level_at_most(slide, coarsest)
    width, height = slide.level_dimensions[level]
    downsample = downsample_of(slide, level)
    block = max(1, int(float(pitch.min()) / MASK_PX_PER_TILE / downsample.max() * 1.001))
    strip = max(block, STRIP_PIXELS // width // block * block)
    parts = []
    for top in range(0, height, strip):
        pixels, damaged = _strip(slide, reopen, level, top, (width, min(strip, height - top)))
        parts.append((_block_mean(pixels, block), _block_mean(damaged[..., None] * np.uint8(255), block)[..., 0] > 0))
    rgb, damaged = (np.concatenate(column) for column in zip(*parts, strict=True))
    return rgb, damaged, downsample * block


def _strip(
    slide: Slide, reopen: Callable[[], Slide] | None, level: int, top: int, size: tuple[int, int]
) -> tuple[Bytes, Mask]:
    """A strip's RGB (h, w, 3), and where pieces of it cannot be decoded."""
    width, height = size
    try:
        return read_region(slide, (0, top), level, size), np.zeros((height, width), np.bool_)
    except VerdictError:
        if reopen is None:
            raise
    strip, damaged = np.zeros((height, width, 3), np.uint8), np.ones((height, width), np.bool_)
    opened = reopen()  # after one error an OpenSlide handle fails for ever
    for y in range(0, height, PIECE):
        for x in range(0, width, PIECE):
            piece = min(PIECE, width - x), min(PIECE, height - y)
            place = slice(y, y + piece[1]), slice(x, x + piece[0])
            try:
                strip[place] = read_region(opened, (x, top + y), level, piece)
            except VerdictError:
                opened.close()
                opened = reopen()
                continue
            damaged[place] = False
    opened.close()
    return strip, damaged


def _block_mean(image: Bytes, block: int) -> Bytes:
    """Means of blocks of (h, w, n), rounded up: one damaged pixel shows."""
    if block == 1:
        return image
    rows, columns = (-size % block for size in image.shape[:2])
    padded = np.pad(image, ((0, rows), (0, columns), (0, 0)), mode="edge")
    shape = (padded.shape[0] // block, block, padded.shape[1] // block, block, image.shape[2])
    sums = padded.reshape(shape).sum(axis=(1, 3), dtype=np.uint32)
    means: Bytes = (-(-sums.astype(np.int64) // block**2)).astype(np.uint8)
    return means


def _share(mask: Mask, corners_x: npt.NDArray[np.float64], corners_y: npt.NDArray[np.float64]) -> Scale:
    """The share of a mask in each tile (rows, columns) of a grid whose corners are given in the mask's pixels."""
    table = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), dtype=np.int64)
    table[1:, 1:] = mask.cumsum(axis=0, dtype=np.int64).cumsum(axis=1)
    x, y = np.rint(corners_x).astype(np.int64), np.rint(corners_y).astype(np.int64)
    inner_x, inner_y = x.clip(0, mask.shape[1]), y.clip(0, mask.shape[0])
    at = table[np.ix_(inner_y, inner_x)]
    inside = at[1:, 1:] - at[:-1, 1:] - at[1:, :-1] + at[:-1, :-1]
    area: npt.NDArray[np.float64] = np.outer(np.diff(y), np.diff(x)).astype(np.float64)
    share: npt.NDArray[np.float64] = inside / np.maximum(area, 1.0)
    return share


def background_of(slide: Slide) -> tuple[int, int, int]:
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


def read_region(slide: Slide, corner: tuple[int, int], level: int, size: tuple[int, int]) -> Bytes:
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
