"""Reads a slide's tissue tiles, in spans and blocks: RGB at the plan's physical scale."""

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from extractors.items import UnitBatch, UnitRequest, VerdictError, file_fingerprint, identity_of
from extractors.wsi.files import file_inside, files_of
from extractors.wsi.ome import OmeSlide, open_pyramid, proven_tiles
from extractors.wsi.plan import Slide, TilePlan, open_slide, plan_tiles, read_region
from extractors.wsi.tiles import DirectTiles, corner_of, direct_tiles
from extractors.wsi.tissue import MARKER_COLOURS, Bytes
from warehouse.files import signature_of

MAX_FAILED_TILES = 0.1
KEPT_OPEN = 2

Stamp = tuple[tuple[int, ...], ...]


def stamp_of(files: Sequence[Path]) -> tuple[str, str, Stamp]:
    """A digest of a slide's content, one of content and times that tells whether it has changed, files' signatures.

    The second mixes content and times, so that no time can be guessed from it; it is not the slide's identity.

    Raises:
        VerdictError: failed_unreadable.
    """
    try:
        stats = tuple(tuple(signature_of(part.stat())) for part in files)
        prints = [file_fingerprint(part) for part in files]
    except OSError as error:
        raise VerdictError("failed_unreadable") from error
    return identity_of(prints), identity_of([*prints, f"times:{stats}"])[:32], stats


class SlideReader:
    """An open slide with its plan, read directly or by OpenSlide. A tile's pixels depend on nothing but the files.

    Raises:
        VerdictError: failed_changed, failed_unreadable, and as `plan_tiles`.
    """

    def __init__(self, path: Path, geometry: Mapping[str, Any]) -> None:
        self._files = files_of(path)
        content, stamp, self._stats = stamp_of(self._files)
        if geometry.get("stamp", stamp) != stamp:
            raise VerdictError("failed_changed")
        self.path = path
        self._reopen: Callable[[], Slide] = partial(open_pyramid, path)
        self._slide = self._reopen()
        self.plan = self._planned(geometry)
        self._direct, self.how = self._tiles(content)
        if self._direct is None and isinstance(self._slide, OmeSlide):
            self._reopen = partial(open_slide, path)
            self._renew()
            self.plan = self._planned(geometry)
        if self._direct is None:
            self._renew()  # the proof may have met a tile that ends an OpenSlide handle
        width, height = self.plan.window
        self._window: Bytes = np.empty((height, width, 3), np.uint8)

    def _planned(self, geometry: Mapping[str, Any]) -> TilePlan:
        plan = plan_tiles(
            self._slide,
            mpp=(geometry["mpp_x"], geometry["mpp_y"]),
            reopen=self._reopen,
            marker_colours=geometry.get("marker_colours", MARKER_COLOURS),
        )
        self._renew()  # a damaged overview ends an OpenSlide handle
        return plan

    def _tiles(self, content: str) -> tuple[DirectTiles | None, str]:
        if not isinstance(self._slide, OmeSlide):
            return direct_tiles(self.path, self._slide, self.plan, content)
        tiles = proven_tiles(self.path, self._slide, self.plan, content)
        return tiles, "openslide:differs" if tiles is None else "direct"

    def _renew(self) -> None:
        self._slide.close()
        self._slide = self._reopen()

    def unchanged(self) -> None:
        """Raises VerdictError failed_changed where the files are no longer those that were opened."""
        try:
            stats = tuple(tuple(signature_of(part.stat())) for part in self._files)
        except OSError as error:
            raise VerdictError("failed_changed") from error
        if stats != self._stats:
            raise VerdictError("failed_changed")

    def block(self, start: int, stop: int) -> UnitBatch:
        """Tiles `start` to `stop` of the plan; what cannot be decoded is left out and counted."""
        side = self.plan.tile
        pixels: Bytes = np.empty((stop - start, side, side, 3), np.uint8)
        read: list[int] = []
        for index in range(start, stop):
            if self._tile(index, pixels[len(read)]):
                read.append(index)
        places = self.plan.coordinates[read].astype(np.int32).reshape(-1, 2)
        return UnitBatch(pixels[: len(read)], np.array(read, np.int64), places, stop - start - len(read))

    def _tile(self, index: int, into: Bytes) -> bool:
        corner = corner_of(self.plan, index)
        if self._direct is not None:
            window = into if self.plan.native else self._window
            if not self._direct.read(corner, window):
                return False
        else:
            try:
                window = read_region(self._slide, corner, self.plan.level, self.plan.window)
            except VerdictError:
                self._renew()  # after one error an OpenSlide handle fails for ever
                return False
        resample(window, self.plan, into)
        return True


def resample(window: Bytes, plan: TilePlan, into: Bytes) -> None:
    """A tile (tile, tile, 3) from the window of its level: PIL's bicubic filter over the exact extent.

    It is computed by torch's kernel for bytes, eight times as fast as PIL's. Its weights have 15 bits where PIL's have
    22: one value in two hundred is a grey level from PIL's, and at most two.
    """
    if window is into:
        return
    if plan.native:
        into[:] = window
        return
    import torch

    across, down = (plan.tile / side for side in plan.extent)
    with torch.inference_mode():
        source = torch.from_numpy(np.require(window, requirements="W")[None]).permute(0, 3, 1, 2)
        resampled = torch.from_numpy(into[None]).permute(0, 3, 1, 2)
        size = [plan.tile, plan.tile]
        torch.ops.aten._upsample_bicubic2d_aa.out(source, size, False, down, across, out=resampled)


_open: OrderedDict[tuple[Any, ...], SlideReader] = OrderedDict()


def _reader(path: Path, geometry: Mapping[str, Any]) -> SlideReader:
    """The open slide of this process, so that the spans of one slide are planned once."""
    wanted = (geometry.get(name) for name in ("stamp", "mpp_x", "mpp_y"))
    key = (os.getpid(), str(path), *wanted, *geometry.get("marker_colours", MARKER_COLOURS))
    reader = _open.pop(key, None)
    if reader is None:
        while len(_open) >= KEPT_OPEN:
            _open.popitem(last=False)  # whoever still reads it keeps it; the handle closes with the last reference
        reader = SlideReader(path, geometry)
    else:
        reader.unchanged()
    _open[key] = reader
    return reader


def read_slide_units(request: UnitRequest, batch_size: int) -> Iterator[UnitBatch]:
    """The tissue tiles [start, stop) of a slide in blocks of `batch_size`, (n, tile, tile, 3) uint8 RGB.

    A tile that cannot be decoded is left out and counted in its block's `failed`. The span's early end is the only
    judgement here: the item's share of failed tiles is for whoever has all its spans.

    Raises:
        VerdictError: failed_missing_file, failed_unreadable, failed_changed where the files are not those that were
            indexed, failed_too_many_bad_tiles as soon as this span alone has more failed tiles than
            `geometry["max_failed_tiles"]` allows the whole slide, and as `plan_tiles`.
    """
    if len(request.paths) != 1:
        raise VerdictError("failed_missing_file")
    reader = _reader(file_inside(request.root, request.paths[0]), request.geometry)
    units = len(reader.plan)
    allowed = float(request.geometry.get("max_failed_tiles", MAX_FAILED_TILES)) * units
    stop = units if request.stop is None else min(request.stop, units)
    failed = 0
    for start in range(request.start, stop, batch_size):
        block = reader.block(start, min(start + batch_size, stop))
        failed += block.failed
        if failed > allowed:
            raise VerdictError("failed_too_many_bad_tiles")
        reader.unchanged()
        yield block
