"""OME-TIFF: the pixel size that its XML says, and pyramids whose levels are SubIFDs, which OpenSlide does not see.

OME-TIFF specification 6.0 (2016-06 schema): the first page's description is the XML; each level of the pyramid is a
SubIFD of the full-size page.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from extractors.items import VerdictError
from extractors.wsi.plan import Slide, TilePlan, open_slide
from extractors.wsi.tiff import TiledPage, tiled_pages
from extractors.wsi.tiles import SAMPLES, DirectTiles, corner_of, decodable, equals_openslide
from extractors.wsi.tissue import Bytes

# Micrometres of each unit of length that says one; "pixel" and "reference frame" say none. The micro sign has two code
# points, and so has the angstrom sign.
UNITS = {
    "m": 1e6, "dm": 1e5, "cm": 1e4, "mm": 1e3, "\u00b5m": 1.0, "\u03bcm": 1.0, "um": 1.0, "nm": 1e-3, "pm": 1e-6,
    "\u00c5": 1e-4, "\u212b": 1e-4, "in": 25_400.0, "ft": 304_800.0, "thou": 25.4, "li": 25_400 / 12,
    "pt": 25_400 / 72,
}  # fmt: skip
BLOCK = 16  # pixels of a level that are averaged before it is compared with the full-size page
LEVEL_TOLERANCE = 12.0  # grey levels between such means: levels are made by many filters, and encoded anew


class OmeSlide:
    """A pyramid of SubIFDs with the methods and properties of OpenSlide that are used here."""

    def __init__(self, path: Path, pages: Sequence[TiledPage], mpp: tuple[float, float] | None) -> None:
        self.pages = pages
        self._path = path
        self._levels = [DirectTiles(path, page, (255, 255, 255)) for page in pages]
        self.level_dimensions = tuple((page.width, page.height) for page in pages)
        self.dimensions = self.level_dimensions[0]
        self.level_count = len(pages)
        width, height = self.dimensions
        self.level_downsamples = tuple((width / w + height / h) / 2 for w, h in self.level_dimensions)
        sizes = (
            {} if mpp is None else {f"openslide.mpp-{axis}": str(size) for axis, size in zip("xy", mpp, strict=True)}
        )
        self.properties = {"openslide.vendor": "ome-tiff", **sizes}

    def read_region(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> Image.Image:
        """As OpenSlide's: `location` in level-0 pixels. Raises OSError where a tile cannot be decoded."""
        factor = self.level_downsamples[level]
        pixels: Bytes = np.empty((size[1], size[0], 3), np.uint8)
        if not self._levels[level].read((round(location[0] / factor), round(location[1] / factor)), pixels):
            raise OSError("a tile cannot be decoded")
        return Image.fromarray(pixels).convert("RGBA")

    def close(self) -> None:
        """Closes the file."""
        for level in self._levels:
            level.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def open_pyramid(path: Path) -> Slide:
    """A slide as OpenSlide opens it, or its SubIFDs where they make the pyramid of an OME-TIFF.

    Raises:
        VerdictError: failed_unreadable, failed_implausible_size, refused_not_rgb.
    """
    pages = tiled_pages(path)
    if not pages or not pages[0].ome:
        return open_slide(path)
    mpp = stated_mpp(pages)
    levels = _levels(pages[0])
    return OmeSlide(path, levels, mpp) if len(levels) > 1 else open_slide(path)


def _levels(page: TiledPage) -> list[TiledPage]:
    """The full-size page and those of its SubIFDs that have its shape; none where it is not decodable."""
    if not decodable(page):
        return []
    levels = [page]
    for level in sorted(page.levels, key=lambda level: -level.width):
        across, down = page.width / level.width, page.height / level.height
        # A side of a level is its true side rounded, up or down.
        alike = abs(across - down) <= max(across, down) * (1.5 / level.width + 1.5 / level.height)
        if decodable(level) and level.width < levels[-1].width and alike:
            levels.append(level)
    return levels


def stated_mpp(pages: Sequence[TiledPage]) -> tuple[float, float] | None:
    """Micrometres per pixel along x and y that the OME-XML of a TIFF says; None where there is none, or no size in it.

    Raises:
        VerdictError: refused_not_rgb for pages of single channels; failed_unreadable for XML that does not parse,
            declares entities, or is of an image of another size; failed_no_mpp for a size in no unit of length.
    """
    if not pages or not pages[0].ome:
        return None
    page = pages[0]
    if not page.rgb:
        raise VerdictError("refused_not_rgb")
    if b"<!DOCTYPE" in page.ome or b"<!ENTITY" in page.ome:
        raise VerdictError("failed_unreadable")
    try:
        root = ElementTree.fromstring(page.ome.rstrip(b"\0 \r\n"))
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise VerdictError("failed_unreadable") from error
    pixels = _pixels_of_first_page(root)
    if pixels is None:
        return None
    if (pixels.get("SizeX"), pixels.get("SizeY")) != (str(page.width), str(page.height)):
        raise VerdictError("failed_unreadable")
    sizes = [_micrometres(pixels, axis) for axis in "XY"]
    return None if sizes[0] is None or sizes[1] is None else (sizes[0], sizes[1])


def _pixels_of_first_page(root: ElementTree.Element) -> ElementTree.Element | None:
    """The image whose first plane is the file's first page; the first image where none says so."""
    found = root.findall("{*}Image/{*}Pixels")
    for pixels in found:
        planes = pixels.findall("{*}TiffData")
        if any(plane.get("IFD", "0").strip() == "0" for plane in planes):
            return pixels
    return found[0] if found else None


def _micrometres(pixels: ElementTree.Element, axis: str) -> float | None:
    text, unit = pixels.get(f"PhysicalSize{axis}"), pixels.get(f"PhysicalSize{axis}Unit", "\u00b5m")
    if text is None:
        return None
    try:
        return float(text) * UNITS[unit.strip()]
    except (ValueError, KeyError) as error:
        raise VerdictError("failed_no_mpp") from error


def proven_tiles(path: Path, slide: OmeSlide, plan: TilePlan, seed: str) -> DirectTiles | None:
    """The reader of a plan's level, after sampled windows of the full-size page were OpenSlide's, and sampled windows
    of the level showed what the full-size page shows; None where one did not.

    Args:
        seed: hex; of the slide's content, so that every process samples the same windows.
    """
    side = float(plan.tile)
    full = replace(plan, level=0, corners=plan.coordinates, extent=(side, side))
    whole = DirectTiles(path, slide.pages[0], (255, 255, 255))
    tiles = DirectTiles(path, slide.pages[plan.level], (255, 255, 255))
    try:
        with open_slide(path) as opened:
            if not equals_openslide(path, opened, whole, full, seed):
                return None
        return tiles if plan.level == 0 or _shows_the_same(slide, whole, tiles, plan) else None
    finally:
        whole.close()


def _shows_the_same(slide: OmeSlide, whole: DirectTiles, tiles: DirectTiles, plan: TilePlan) -> bool:
    """Whether means of blocks of sampled windows are those of the full-size page; undecodable ones are passed over."""
    factor = slide.level_downsamples[plan.level]
    side = BLOCK * max(1, int(min(plan.window)) // BLOCK)
    small: Bytes = np.empty((side, side, 3), np.uint8)
    large: Bytes = np.empty((round(side * factor), round(side * factor), 3), np.uint8)
    for index in np.unique(np.linspace(0, len(plan) - 1, SAMPLES).astype(int)).tolist():
        corner = corner_of(plan, index)
        if not tiles.read(corner, small) or not whole.read(
            (round(corner[0] * factor), round(corner[1] * factor)), large
        ):
            continue
        if np.abs(_means(small) - _means(large)).max() > LEVEL_TOLERANCE:
            return False
    return True


def _means(pixels: Bytes) -> "np.ndarray[tuple[int, int, int], np.dtype[np.float64]]":
    """Means of a grid of blocks of one sixteenth of a side each, (n, n, 3)."""
    count = len(pixels) // BLOCK if len(pixels) < BLOCK * BLOCK else BLOCK
    edges = np.linspace(0, len(pixels), count + 1).astype(int)
    sums = np.add.reduceat(np.add.reduceat(pixels.astype(np.float64), edges[:-1], axis=0), edges[:-1], axis=1)
    areas = np.outer(np.diff(edges), np.diff(edges))[..., None]
    means: np.ndarray[tuple[int, int, int], np.dtype[np.float64]] = sums / areas
    return means
