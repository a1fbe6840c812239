"""Whole-slide images: which are usable, and their tissue tiles. Label, macro and thumbnail images are never touched.

The scale is physical: a tile is `tile` x `mpp_target` micrometres wide whatever the magnification, read from the
coarsest level that is still at least as fine as the target and resampled (bicubic) by the exact factor.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import numpy.typing as npt
import polars as pl

from extractors.items import (
    OK,
    FoundItem,
    TimePrecision,
    UnitBatch,
    UnitRequest,
    VerdictError,
    file_fingerprint,
    identity_of,
)

if TYPE_CHECKING:
    from openslide import OpenSlide
    from PIL.Image import Image

MODALITY = "wsi"
MPP_TARGET, TILE = 0.5, 256  # GigaPath's tile encoder: 256 px at 0.5 um/px
MPP_LEAST, MPP_MOST = 0.05, 10.0  # outside, the file's resolution is no microscope's (72 dpi is 353 um/px)
MPP_COARSEST = 1.0  # twice the target: beyond, resampling would invent what was not seen
TISSUE_SHARE = 0.1
MIN_CONTRAST = 10.0  # grey levels between tissue and background; below, Otsu only splits the noise of an empty slide
MAX_TILES = 200_000
MAX_BAD_SHARE = 0.1
OVERVIEW_PIXELS = 16_000_000
OVERVIEW_PX_PER_TILE = 4
STRIP_PIXELS = 8_000_000

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class TilePlan:
    """Where a slide's tissue tiles are and how to read one.

    `coordinates`: (n, 2) int64, x and y of the upper left corner in level-0 pixels. `extent`: width and height of a
    tile in pixels of `level`, exact; `tile`: its side in pixels after resampling.
    """

    coordinates: npt.NDArray[np.int64]
    level: int
    extent: tuple[float, float]
    tile: int

    def __len__(self) -> int:
        return len(self.coordinates)


def index_slides(root: Path, manifest: pl.DataFrame) -> list[FoundItem]:
    """One item per row of `manifest`, opened and judged, its tissue tiles counted.

    The time of a slide is the collection time that the manifest gives, never the scan date of the file. Without a
    column time_precision, a date, or midnight sharp, has day precision.

    Args:
        root: the folder that the manifest's paths are relative to.
        manifest: columns path, raw_subject, time, available_time, mpp (null: the file's own), and if at hand
            time_precision.
    """
    return [_index_slide(root, row) for row in manifest.iter_rows(named=True)]


def _index_slide(root: Path, row: Mapping[str, Any]) -> FoundItem:
    relative = str(row["path"] or "")
    collected, precision = _time(row["time"])
    if collected is not None and row.get("time_precision") in get_args(TimePrecision):
        precision = row["time_precision"]
    available, _ = _time(row["available_time"])
    mpp = None if row["mpp"] is None else float(row["mpp"])
    geometry: dict[str, Any] = {}
    identity, units = identity_of([f"absent:{relative}"]), None
    try:
        path = _inside(root, relative)
        # A manifest's mpp changes the pixels that are read, so it is part of what the item is.
        identity = identity_of([*_fingerprints(path), f"mpp:{mpp}"])
        if mpp is not None:
            geometry = {"mpp_x": mpp, "mpp_y": mpp, "mpp_source": "manifest"}
        geometry |= _geometry(path, mpp)
        units = len(plan_for(path, geometry))
        verdict = OK
    except VerdictError as error:
        verdict = error.verdict
    if verdict == OK and not row["raw_subject"]:
        verdict = "failed_no_subject"
    elif verdict == OK and collected is None:
        verdict = "failed_no_time"
    return FoundItem(
        modality=MODALITY,
        raw_subject=None if row["raw_subject"] is None else str(row["raw_subject"]),
        identity=identity,
        paths=(relative,),
        time=collected,
        time_source="" if collected is None else "manifest",
        time_precision=precision,
        available_time=available,
        verdict=verdict,
        units_expected=units,
        geometry=geometry,
    )


def _time(value: Any) -> tuple[datetime | None, TimePrecision]:
    if isinstance(value, datetime):
        precise: TimePrecision = "us" if value.microsecond else "s"
        return value.replace(tzinfo=None), "day" if value.time() == time() else precise
    if isinstance(value, date):
        return datetime.combine(value, time()), "day"
    return None, "day"


def _inside(root: Path, relative: str) -> Path:
    """The file that a manifest names; a name that leaves the tree is as good as missing."""
    parts = PurePosixPath(relative)
    if not relative or parts.is_absolute() or ".." in parts.parts or not (root / parts).is_file():
        raise VerdictError("failed_missing_file")
    return root / parts


def _fingerprints(path: Path) -> list[str]:
    """Of the file, and of the folder of data beside it that MRXS has."""
    beside = sorted(path.with_suffix("").glob("*")) if path.suffix.lower() == ".mrxs" else []
    try:
        return [file_fingerprint(part) for part in (path, *beside) if part.is_file()]
    except OSError as error:
        raise VerdictError("failed_unreadable") from error


def open_slide(path: Path) -> "OpenSlide":
    """Opens a slide; raises VerdictError failed_unreadable where OpenSlide cannot."""
    import openslide

    try:
        return openslide.OpenSlide(path)
    except (openslide.OpenSlideError, OSError) as error:
        raise VerdictError("failed_unreadable") from error


def _geometry(path: Path, mpp: float | None) -> dict[str, Any]:
    with open_slide(path) as slide:
        width, height = slide.dimensions
        x, y = physical_mpp(slide, mpp)
        return {
            "width": width,
            "height": height,
            "levels": slide.level_count,
            "mpp_x": x,
            "mpp_y": y,
            "mpp_source": "file" if mpp is None else "manifest",
        }


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


def plan_for(path: Path, geometry: Mapping[str, Any]) -> TilePlan:
    """The plan of the slide at `path` with the pixel size that its item recorded; raises as `plan_tiles`."""
    with open_slide(path) as slide:
        return plan_tiles(slide, mpp=(geometry["mpp_x"], geometry["mpp_y"]))


def plan_tiles(
    slide: "OpenSlide", mpp_target: float = MPP_TARGET, tile: int = TILE, mpp: tuple[float, float] | None = None
) -> TilePlan:
    """The tissue tiles of a slide, row by row, on a grid of exact physical pitch.

    Tissue: luminance (mean of RGB) below Otsu's threshold on the lowest level; a tile is kept if more than a tenth of
    its pixels are. Tiles at the right and lower edge reach past the slide; there is background.

    Args:
        slide: an open slide.
        mpp_target: micrometres per pixel of a tile.
        tile: a tile's side in pixels.
        mpp: micrometres per level-0 pixel along x and y; the file's own if omitted.

    Raises:
        VerdictError: failed_no_mpp, failed_mpp_too_coarse, failed_too_many_units, failed_unreadable, failed_no_tissue.
    """
    x_mpp, y_mpp = mpp or physical_mpp(slide)
    pitch = np.array([tile * mpp_target / x_mpp, tile * mpp_target / y_mpp])  # level-0 pixels
    start, size = _bounds(slide)
    columns, rows = (int(count) for count in np.ceil(size / pitch))
    if columns * rows > MAX_TILES:
        raise VerdictError("failed_too_many_units")
    luminance, scale = _overview(slide, pitch)
    corners_x = start[0] + np.arange(columns + 1) * pitch[0]
    corners_y = start[1] + np.arange(rows + 1) * pitch[1]
    share = _tissue_share(_tissue(luminance), corners_x / scale[0], corners_y / scale[1])
    row, column = np.nonzero(share > TISSUE_SHARE)
    if not len(row):
        raise VerdictError("failed_no_tissue")
    coordinates = np.stack([np.rint(corners_x[column]), np.rint(corners_y[row])], axis=1).astype(np.int64)
    level = _level_at_most(slide, mpp_target / max(x_mpp, y_mpp))
    extent = pitch / _downsample(slide, level)
    return TilePlan(coordinates, level, (float(extent[0]), float(extent[1])), tile)


def _bounds(slide: "OpenSlide") -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Origin and size of the scanned area in level-0 pixels; the whole slide where the file names none."""
    names = ("openslide.bounds-x", "openslide.bounds-y", "openslide.bounds-width", "openslide.bounds-height")
    try:
        x, y, width, height = (int(slide.properties[name]) for name in names)
    except (KeyError, ValueError):
        (width, height), x, y = slide.dimensions, 0, 0
    return np.array([x, y], dtype=np.float64), np.array([width, height], dtype=np.float64)


def _downsample(slide: "OpenSlide", level: int) -> npt.NDArray[np.float64]:
    return np.array(slide.dimensions, dtype=np.float64) / np.array(slide.level_dimensions[level], dtype=np.float64)


def _level_at_most(slide: "OpenSlide", downsample: float) -> int:
    """The coarsest level no coarser than `downsample`; one part in a thousand of rounding is forgiven."""
    fine = [level for level, factor in enumerate(slide.level_downsamples) if factor <= downsample * 1.001]
    return fine[-1] if fine else 0


def _overview(
    slide: "OpenSlide", pitch: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """Luminance (h, w) of the lowest level that still shows a tile in 4 x 4 pixels, and its level-0 pixels per pixel.

    Read in strips and averaged in blocks where the level is large, so that memory is bounded for any slide.
    """
    coarsest = float(pitch.min()) / OVERVIEW_PX_PER_TILE
    level = _level_at_most(slide, coarsest)
    width, height = slide.level_dimensions[level]
    downsample = _downsample(slide, level)
    block = max(1, min(math.ceil(math.sqrt(width * height / OVERVIEW_PIXELS)), int(coarsest / downsample.max())))
    strip = max(block, STRIP_PIXELS // width // block * block)
    parts = []
    for top in range(0, height, strip):
        rows = min(strip, height - top)
        region = _read(slide, (0, round(top * downsample[1])), level, (width, rows))
        parts.append(_block_mean(region.mean(axis=2, dtype=np.float32), block))
    return np.concatenate(parts), downsample * block


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
    threshold, contrast = otsu(luminance)
    return luminance < threshold if contrast >= MIN_CONTRAST else np.zeros(luminance.shape, dtype=np.bool_)


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


def _background(slide: "OpenSlide") -> tuple[int, int, int]:
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


def _read(slide: "OpenSlide", corner: tuple[int, int], level: int, size: tuple[int, int]) -> Bytes:
    """A region as (h, w, 3) RGB; raises VerdictError failed_unreadable."""
    import openslide

    try:
        return np.asarray(_flatten(slide.read_region(corner, level, size), _background(slide)))
    except (openslide.OpenSlideError, OSError) as error:
        raise VerdictError("failed_unreadable") from error


def read_tiles(path: Path, plan: TilePlan, batch_size: int = 32) -> Iterator[UnitBatch]:
    """A slide's tiles in the order of the plan, in batches (n, tile, tile, 3) uint8 RGB at the plan's physical scale.

    A tile that cannot be decoded is left out and counted in its batch's `failed`.

    Raises:
        VerdictError: failed_unreadable; failed_too_many_bad_tiles as soon as more than a tenth of the plan has failed.
    """
    slide = open_slide(path)
    failed = 0
    try:
        for start in range(0, len(plan), batch_size):
            tiles: list[Bytes] = []
            corners = plan.coordinates[start : start + batch_size].tolist()
            for x, y in corners:
                try:
                    tiles.append(_tile(slide, plan, (x, y)))
                except VerdictError:
                    failed += 1
                    if failed > MAX_BAD_SHARE * len(plan):
                        raise VerdictError("failed_too_many_bad_tiles") from None
                    slide.close()
                    slide = open_slide(path)  # after one error an OpenSlide handle fails for ever
            empty = np.empty((0, plan.tile, plan.tile, 3), np.uint8)
            yield UnitBatch(np.stack(tiles) if tiles else empty, len(corners) - len(tiles))
    finally:
        slide.close()


def _tile(slide: "OpenSlide", plan: TilePlan, corner: tuple[int, int]) -> Bytes:
    from PIL import Image

    width, height = plan.extent
    region = _read(slide, corner, plan.level, (math.ceil(width - 1e-6), math.ceil(height - 1e-6)))
    if region.shape[:2] == (plan.tile, plan.tile) and max(abs(width - plan.tile), abs(height - plan.tile)) < 1e-6:
        return region
    box = (0.0, 0.0, min(width, region.shape[1]), min(height, region.shape[0]))
    resized = Image.fromarray(region).resize((plan.tile, plan.tile), Image.Resampling.BICUBIC, box=box)
    return np.asarray(resized)


def read_slide_units(request: UnitRequest, batch_size: int) -> Iterator[UnitBatch]:
    """The tissue tiles of a slide in batches; raises as `plan_tiles` and `read_tiles`."""
    path = _inside(request.root, _only(request.paths))
    yield from read_tiles(path, plan_for(path, request.geometry), batch_size)


def _only(paths: Sequence[str]) -> str:
    if len(paths) != 1:
        raise VerdictError("failed_missing_file")
    return paths[0]
