"""The layout of a tiled TIFF (classic or BigTIFF, either byte order): where the encoded tiles of its pages lie.

Reads directories only, never pixels. Nothing is allocated for what a file declares before the file is known to hold it.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from extractors.items import VerdictError

MAX_SIDE = 1 << 20  # 26 cm at 0.25 um/px
MAX_TILE_PIXELS = 1 << 24
MAX_PAGES = 1_000
MAX_TILES = 1 << 24  # encoded tiles of all pages
MAX_TABLES = 1 << 16
MAX_TAGS = 4_096
MAX_DESCRIPTION = 1 << 24  # bytes of OME-XML; of a slide it has some kilobytes
MAX_LEVELS = 64
MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_KINDS: Mapping[int, str] = {1: "u1", 2: "u1", 3: "u2", 4: "u4", 7: "u1", 13: "u4", 16: "u8", 18: "u8"}
_WIDTH, _LENGTH, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _PLANAR, _PREDICTOR = (
    256, 257, 258, 259, 262, 277, 284, 317,
)  # fmt: skip
_TILE_WIDTH, _TILE_LENGTH, _TILE_OFFSETS, _TILE_COUNTS, _TABLES = 322, 323, 324, 325, 347
_DESCRIPTION, _SUB_DIRECTORIES = 270, 330


@dataclass(frozen=True)
class TiledPage:
    """A tiled page. `offsets` and `counts`: (rows * columns,) uint64, row by row; a count of 0 is a missing tile."""

    width: int
    height: int
    tile_width: int
    tile_height: int
    compression: int
    photometric: int
    predictor: int
    plain: bool  # three samples of 8 bits, side by side
    rgb: bool  # three samples of 8 bits or more of them, however they lie
    tables: bytes | None  # JPEG tables that all tiles share
    offsets: npt.NDArray[np.uint64]
    counts: npt.NDArray[np.uint64]
    ome: bytes = b""  # the description, where it is OME-XML
    levels: "tuple[TiledPage, ...]" = ()  # tiled pages among its SubIFDs

    @property
    def columns(self) -> int:
        """Tiles in a row of tiles."""
        return -(-self.width // self.tile_width)

    @property
    def rows(self) -> int:
        """Rows of tiles."""
        return -(-self.height // self.tile_height)


def tiled_pages(path: Path) -> list[TiledPage]:
    """The tiled top-level pages of a TIFF, in order, with their SubIFDs.

    None where the file is no TIFF, or NDPI beyond 4 GiB.

    Raises:
        VerdictError: failed_implausible_size for a page or a tile larger than any scanner makes; failed_unreadable for
            directories that run in a circle, past the file's end, or whose tables do not fit the file.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) not in MAGIC:
                return []
            return _pages(file, file.seek(0, 2))
    except (OSError, struct.error) as error:
        raise VerdictError("failed_unreadable") from error


def _pages(file: BinaryIO, size: int) -> list[TiledPage]:
    file.seek(0)
    header = file.read(16)
    order = "<" if header[:2] == b"II" else ">"
    big = 43 in header[2:4]
    if not big and size > 1 << 32:
        return []  # only NDPI does so, with pointers of its own kind and no tiles: OpenSlide's
    place = struct.unpack_from(order + ("Q" if big else "I"), header, 8 if big else 4)[0]
    pages: list[TiledPage] = []
    seen: set[int] = set()
    while place:
        if place in seen or len(seen) >= MAX_PAGES:
            raise VerdictError("failed_unreadable")
        seen.add(place)
        tags, place = _directory(file, size, place, order, big)
        if _TILE_WIDTH in tags:
            pages.append(replace(_page(tags), levels=tuple(_levels(file, size, tags, order, big, seen))))
        if sum(len(level.offsets) for page in pages for level in (page, *page.levels)) > MAX_TILES:
            raise VerdictError("failed_implausible_size")
    return pages


def _levels(
    file: BinaryIO, size: int, tags: Mapping[int, npt.NDArray[Any]], order: str, big: bool, seen: set[int]
) -> Iterator[TiledPage]:
    """The tiled pages among a page's SubIFDs."""
    for place in tags.get(_SUB_DIRECTORIES, np.empty(0, np.uint64)).tolist():
        if place in seen or len(seen) >= MAX_PAGES:
            raise VerdictError("failed_unreadable")
        seen.add(place)
        level, _ = _directory(file, size, place, order, big)
        if _TILE_WIDTH in level:
            yield _page(level)


def _directory(file: BinaryIO, size: int, place: int, order: str, big: bool) -> tuple[dict[int, npt.NDArray[Any]], int]:
    """The whole-number tags of a directory that matter here, and where the next directory is."""
    counter, entry, pointer = ("Q", "HHQ", "Q") if big else ("H", "HHI", "I")
    inline = struct.calcsize(pointer)
    step = struct.calcsize(order + entry) + inline
    file.seek(place)
    (count,) = struct.unpack(order + counter, file.read(struct.calcsize(counter)))
    if count > MAX_TAGS:
        raise VerdictError("failed_unreadable")
    block = file.read(count * step + inline)
    tags: dict[int, npt.NDArray[Any]] = {}
    for start in range(0, count * step, step):
        tag, kind, values = struct.unpack_from(order + entry, block, start)
        if tag not in _WANTED or kind not in _KINDS:
            continue
        dtype = np.dtype(order + _KINDS[kind])
        declared = values * dtype.itemsize  # which decides whether they stand in the entry or elsewhere
        length = min(values, _most(tag, tags)) * dtype.itemsize
        at = start + step - inline
        if declared > inline:
            at = struct.unpack_from(order + pointer, block, at)[0]
            if at + length > size:
                raise VerdictError("failed_unreadable")
            file.seek(at)
            raw = file.read(length)
        else:
            raw = block[at : at + length]
        tags[tag] = np.frombuffer(raw, dtype).astype(np.uint8 if tag in (_TABLES, _DESCRIPTION) else np.uint64)
    return tags, struct.unpack_from(order + pointer, block, count * step)[0]


_WANTED = frozenset(
    (_WIDTH, _LENGTH, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _PLANAR, _PREDICTOR)
    + (_TILE_WIDTH, _TILE_LENGTH, _TILE_OFFSETS, _TILE_COUNTS, _TABLES, _DESCRIPTION, _SUB_DIRECTORIES)
)


_MOST: Mapping[int, int] = {_TABLES: MAX_TABLES, _DESCRIPTION: MAX_DESCRIPTION, _SUB_DIRECTORIES: MAX_LEVELS}


def _most(tag: int, tags: Mapping[int, npt.NDArray[Any]]) -> int:
    """How many values of a tag are read, whatever it declares; tags rise, so a page's size comes before its tiles."""
    if tag in _MOST:
        return _MOST[tag]
    if tag not in (_TILE_OFFSETS, _TILE_COUNTS):
        return 16
    sides = [tags.get(tag, np.zeros(1))[:1] for tag in (_WIDTH, _TILE_WIDTH, _LENGTH, _TILE_LENGTH)]
    width, wide, height, high = (int(side[0]) if len(side) else 0 for side in sides)
    planes = int(tags[_SAMPLES][0]) if _SAMPLES in tags and len(tags[_SAMPLES]) else 1
    return min(MAX_TILES, -(-width // max(wide, 1)) * -(-height // max(high, 1)) * planes)


def _page(tags: Mapping[int, npt.NDArray[Any]]) -> TiledPage:
    def first(tag: int, default: int = 0) -> int:
        values = tags.get(tag)
        return int(values[0]) if values is not None and len(values) else default

    width, height, tile_width, tile_height = (first(tag) for tag in (_WIDTH, _LENGTH, _TILE_WIDTH, _TILE_LENGTH))
    if not (width and height and tile_width and tile_height):
        raise VerdictError("failed_unreadable")
    if max(width, height) > MAX_SIDE or tile_width * tile_height > MAX_TILE_PIXELS:
        raise VerdictError("failed_implausible_size")
    nothing = np.empty(0, np.uint64)
    bits = tags.get(_BITS, nothing)
    bytes_each = len(bits) > 0 and bool((bits == 8).all())
    description = tags[_DESCRIPTION].tobytes() if _DESCRIPTION in tags else b""
    page = TiledPage(
        width=width,
        height=height,
        tile_width=tile_width,
        tile_height=tile_height,
        compression=first(_COMPRESSION, 1),
        photometric=first(_PHOTOMETRIC, 2),
        predictor=first(_PREDICTOR, 1),
        plain=bytes_each and first(_SAMPLES, 1) == 3 and first(_PLANAR, 1) == 1,
        rgb=bytes_each and first(_SAMPLES, 1) >= 3,
        tables=tags[_TABLES].tobytes() if _TABLES in tags else None,
        offsets=tags.get(_TILE_OFFSETS, nothing),
        counts=tags.get(_TILE_COUNTS, nothing),
        ome=description if b"<OME" in description[:4096] else b"",
    )
    planes = 1 if first(_PLANAR, 1) == 1 else first(_SAMPLES, 1)
    tiles = page.columns * page.rows * planes
    if len(page.offsets) < tiles or len(page.counts) < tiles:
        raise VerdictError("failed_unreadable")
    return page
