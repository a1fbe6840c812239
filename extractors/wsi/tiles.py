"""Direct decoding of a TIFF slide's tiles, without OpenSlide's compositing, and the proof that it gives the same.

A slide is read directly only where its level is one page of plain RGB tiles in an encoding listed in `_decoder`, and
sampled windows are equal to OpenSlide's. Only the page of the plan's level is ever touched.
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from extractors.items import VerdictError
from extractors.wsi.plan import Slide, TilePlan, background_of, open_slide, read_region
from extractors.wsi.tiff import TiledPage, tiled_pages
from extractors.wsi.tissue import Bytes

VENDORS = ("aperio", "generic-tiff")  # whose levels are plain grids of tiles; others overlap or shift them
TOLERANCE = 1  # grey levels; JPEG and LZW are bit-identical, JPEG 2000 in YCbCr rounds differently
SAMPLES = 8
KEPT_BYTES = 128 << 20
_RGB, _YCBCR = 2, 6
_TO_RGB = np.array([[1.0, 0.0, 1.402], [1.0, -0.344136, -0.714136], [1.0, 1.772, 0.0]], np.float32)

Decoder = Callable[[bytes, Bytes], None]


class DirectTiles:
    """The tiles of one page, decoded as they are asked for. A row of decoded tiles is kept while windows touch it."""

    def __init__(self, path: Path, page: TiledPage, background: tuple[int, int, int]) -> None:
        decoder = _decoder(page)
        if decoder is None:
            raise ValueError("no decoder for this page")
        self._decode = decoder
        self._page = page
        self._background = background
        self._file = os.open(path, os.O_RDONLY)
        self._rows: dict[int, dict[int, Bytes | None]] = {}
        self._scratch: Bytes = np.empty((page.tile_height, page.tile_width, 3), np.uint8)

    def close(self) -> None:
        """Closes the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    __del__ = close

    def read(self, corner: tuple[int, int], into: Bytes) -> bool:
        """Fills `into` (h, w, 3) with the window at `corner` (x, y); False where a tile of it cannot be decoded."""
        page, (x, y), (height, width) = self._page, corner, into.shape[:2]
        right, bottom = min(x + width, page.width), min(y + height, page.height)
        if x < 0 or y < 0 or right < x + width or bottom < y + height:
            into[:] = self._background
        x0, y0 = max(x, 0), max(y, 0)
        wide, high = page.tile_width, page.tile_height
        columns, rows = self._touched(corner, (width, height))
        if not columns or not rows:
            return True
        if (x, y, right - x, bottom - y) == (columns[0] * wide, rows[0] * high, wide, high) and (width, height) == (
            wide,
            high,
        ):
            return self._load(rows[0] * page.columns + columns[0], into)
        self._forget(rows, columns)
        for row in rows:
            top, low = max(row * high, y0), min(row * high + high, bottom)
            for column in columns:
                # Wholly above and left of the window's end, no later window needs it: one buffer stays in the cache.
                done = column * wide + wide <= x + width and row * high + high <= y + height
                tile = self._tile(row, column, keep=not done)
                if tile is None:
                    return False
                left, end = max(column * wide, x0), min(column * wide + wide, right)
                into[top - y : low - y, left - x : end - x] = tile[
                    top - row * high : low - row * high, left - column * wide : end - column * wide
                ]
        return True

    def _touched(self, corner: tuple[int, int], size: tuple[int, int]) -> tuple[range, range]:
        """Columns and rows of tiles under a window; none past the edge."""
        (x, y), (width, height), page = corner, size, self._page
        columns = range(max(x, 0) // page.tile_width, -(-min(x + width, page.width) // page.tile_width))
        return columns, range(max(y, 0) // page.tile_height, -(-min(y + height, page.height) // page.tile_height))

    def first_gap(self, plan: TilePlan) -> int | None:
        """The first tile of a plan under which the file leaves something out, if there is one."""
        if (self._page.counts > 0).all():
            return None
        for index in range(len(plan)):
            columns, rows = self._touched(corner_of(plan, index), plan.window)
            under = [row * self._page.columns + column for row in rows for column in columns]
            if (self._page.counts[under] == 0).any():
                return index
        return None

    def _forget(self, rows: range, columns: range) -> None:
        """Windows come row by row from left to right: what lies above, or left of the window, is not needed again,
        but for the lowest row of tiles, which the next row of windows may share."""
        for row in [row for row in self._rows if row not in rows]:
            del self._rows[row]
        for row in rows[:-1]:
            kept = self._rows.get(row, {})
            for column in [column for column in kept if column < columns[0]]:
                del kept[column]

    def _tile(self, row: int, column: int, keep: bool) -> Bytes | None:
        kept = self._rows.setdefault(row, {})
        if column in kept:
            return kept[column]
        tile = np.empty_like(self._scratch) if keep else self._scratch
        good = self._load(row * self._page.columns + column, tile)
        if keep:
            if (len(kept) + 1) * tile.nbytes > KEPT_BYTES:
                kept.clear()
            kept[column] = tile if good else None
        return tile if good else None

    def _load(self, number: int, into: Bytes) -> bool:
        count = int(self._page.counts[number])
        if count == 0:
            into[:] = self._background
            return True
        if count > 2 * into.nbytes + (1 << 16):
            return False  # no encoding makes a tile longer than its pixels
        try:
            data = os.pread(self._file, count, int(self._page.offsets[number]))
            if len(data) != count:
                return False
            self._decode(data, into)
        except (RuntimeError, ValueError, TypeError, OverflowError, OSError):
            return False
        return True


def _decoder(page: TiledPage) -> Decoder | None:
    """How a page's tiles are decoded: exactly as OpenSlide does, so a JPEG's colours are what the TIFF says they are,
    whatever markers it has."""
    import imagecodecs

    shape = (page.tile_height, page.tile_width, 3)
    if not page.plain:
        return None
    if page.compression == 7 and page.photometric in (_RGB, _YCBCR):
        colours = "RGB" if page.photometric == _RGB else "YCBCR"

        # Zero bytes that no stream of this size has: even a blank tile's blocks take two bits each.
        hole = bytes(3 * page.tile_width * page.tile_height // 256 + 64)

        def jpeg(data: bytes, into: Bytes) -> None:
            # libjpeg fills the rest of a stream that was cut with grey and only warns; OpenSlide refuses it.
            if data.rstrip(b"\0\xff")[-1:] != b"\xd9" or hole in data:
                raise ValueError("a tile that was cut")
            # `out` has imagecodecs refuse, before any allocation, a stream whose own size is another.
            imagecodecs.jpeg8_decode(data, tables=page.tables, colorspace=colours, outcolorspace="RGB", out=into)
            # libjpeg leaves blocks grey that the stream ended before, where OpenSlide refuses the tile. One that is
            # grey in earnest does not change with bytes behind its stream.
            if (into[-1, -1] == 128).all():
                end = data.rindex(b"\xff\xd9")
                longer = data[:end] + b"\x5a" * 64 + data[end:]
                again = imagecodecs.jpeg8_decode(longer, tables=page.tables, colorspace=colours, outcolorspace="RGB")
                if not np.array_equal(again, into):
                    raise ValueError("a tile that was cut")

        return jpeg
    if page.compression in (33003, 33005):

        def jpeg2000(data: bytes, into: Bytes) -> None:
            _same_size(data, shape)
            pixels = imagecodecs.jpeg2k_decode(data)
            if pixels.shape != shape or pixels.dtype != np.uint8:
                raise ValueError("a tile of another size")
            into[:] = pixels if page.compression == 33005 else _from_ycbcr(pixels)

        return jpeg2000
    if page.compression in (1, 5, 8, 32946) and page.photometric == _RGB and page.predictor in (1, 2):

        def plain(data: bytes, into: Bytes) -> None:
            raw: bytes | bytearray = data
            if page.compression == 5:
                raw = imagecodecs.lzw_decode(data, out=into.nbytes)
            elif page.compression != 1:
                raw = imagecodecs.zlib_decode(data, out=into.nbytes)
            pixels = np.frombuffer(raw, np.uint8, into.size).reshape(shape)
            into[:] = np.add.accumulate(pixels, axis=1, dtype=np.uint8) if page.predictor == 2 else pixels

        return plain
    return None


def _same_size(data: bytes, shape: tuple[int, int, int]) -> None:
    """The size in a JPEG 2000 codestream's header is the tile's; a header may declare gigabytes."""
    size = np.frombuffer(data, ">u4", 4, 8) if data[:4] == b"\xff\x4f\xff\x51" and len(data) > 24 else None
    components = data[40:51] == b"\0\x03" + b"\x07\x01\x01" * 3  # three, of 8 bits, none of them thinned out
    if size is None or not components or (int(size[1]) - int(size[3]), int(size[0]) - int(size[2])) != shape[:2]:
        raise ValueError("a tile of another size")


def _from_ycbcr(pixels: Bytes) -> Bytes:
    centred = pixels.astype(np.float32)
    centred[..., 1:] -= 128.0
    rgb: Bytes = np.clip(np.rint(centred @ _TO_RGB.T), 0, 255).astype(np.uint8)
    return rgb


def decodable(page: TiledPage) -> bool:
    """Whether a page's tiles are in an encoding that can be decoded directly."""
    return _decoder(page) is not None


def direct_tiles(path: Path, slide: Slide, plan: TilePlan, seed: str) -> tuple[DirectTiles | None, str]:
    """The direct reader of a plan's level, or None, and which reader it is: `direct`, `openslide:layout` where the
    layout is not supported, `openslide:differs` where sampled windows are not OpenSlide's.

    Args:
        seed: hex; of the slide's content, so that every process samples the same windows.
    """
    page = _page_of(path, slide, plan.level)
    if page is None or not decodable(page):
        return None, "openslide:layout"
    tiles = DirectTiles(path, page, background_of(slide))
    if equals_openslide(path, slide, tiles, plan, seed):
        return tiles, "direct"
    tiles.close()
    return None, "openslide:differs"


def _page_of(path: Path, slide: Slide, level: int) -> TiledPage | None:
    """The one tiled page of a level's size. Aperio paints missing tiles of lower levels from the level above: those
    levels are OpenSlide's."""
    vendor = slide.properties.get("openslide.vendor")
    if vendor not in VENDORS:
        return None
    pages = [page for page in tiled_pages(path) if (page.width, page.height) == slide.level_dimensions[level]]
    if len(pages) != 1 or (vendor == "aperio" and level > 0 and bool((pages[0].counts == 0).any())):
        return None
    return pages[0]


def equals_openslide(path: Path, slide: Slide, tiles: DirectTiles, plan: TilePlan, seed: str) -> bool:
    """Whether sampled windows are equal in both readers; a window that neither can read is equal too."""
    rng = np.random.default_rng(int(seed, 16))
    edges = np.linspace(0, len(plan), min(SAMPLES, len(plan)) + 1).astype(np.int64)
    chosen = set(rng.integers(edges[:-1], edges[1:]).tolist())
    chosen |= {int(plan.corners[:, axis].argmax()) for axis in (0, 1)}  # at the right and lower edge
    gap = tiles.first_gap(plan)
    chosen |= set() if gap is None else {gap}
    width, height = plan.window
    decoded: Bytes = np.empty((height, width, 3), np.uint8)
    opened = slide
    try:
        for index in sorted(chosen):
            corner = _aligned(opened, plan, index)
            if corner is None:
                return False
            good = tiles.read(corner, decoded)
            try:
                theirs = read_region(opened, corner, plan.level, (width, height))
            except VerdictError:
                if good:
                    return False
                opened = open_slide(path)  # after one error an OpenSlide handle fails for ever
                continue
            if not good or int(np.abs(decoded.astype(np.int16) - theirs).max()) > TOLERANCE:
                return False
    finally:
        if opened is not slide:
            opened.close()
    return True


def corner_of(plan: TilePlan, index: int) -> tuple[int, int]:
    """The corner of a tile of a plan in pixels of its level."""
    return int(plan.corners[index, 0]), int(plan.corners[index, 1])


def _aligned(slide: Slide, plan: TilePlan, index: int) -> tuple[int, int] | None:
    """The window nearest a tile that OpenSlide reads without interpolating: level-0 pixels are whole numbers, so not
    every pixel of a level can be asked for exactly where the level's factor is no whole number."""
    factor = slide.level_downsamples[plan.level]
    corner = []
    for place in corner_of(plan, index):
        near: npt.NDArray[np.int64] = np.arange(max(0, place - 4096), place + 1)[::-1]
        off = np.abs(near * factor - np.rint(near * factor)) / factor
        exact = near[off < 1 / 1024]
        if not len(exact):
            return None
        corner.append(int(exact[0]))
    return corner[0], corner[1]
