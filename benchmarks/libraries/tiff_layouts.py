"""TIFF layouts and tiles: ours against tifffile and OpenSlide."""

import logging
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from libraries.turns import Ratios, in_turns, versions


def tiff_files(quick: bool, work: Path, data: Path | None) -> dict[str, Path]:
    """A real slide where there is one, a written slide, and one of as many tiles as a whole section has."""
    import imagecodecs
    import imaging_slides
    import tifffile

    side, large = (4096, 25_600) if quick else (8192, 102_400)
    found = {"written slide": imaging_slides.write(work / f"slide-{side}.svs", side)}
    many = work / f"tiles-{large}.svs"
    if not many.is_file():
        tile = imagecodecs.jpeg8_encode(np.full((256, 256, 3), 200, np.uint8), level=80)
        with tifffile.TiffWriter(many, bigtiff=True) as tiff:
            for level in (0, 2, 4):
                wide = large >> level
                tiff.write(
                    iter([tile] * (-(-wide // 256)) ** 2), shape=(wide, wide, 3), dtype=np.uint8, tile=(256, 256),
                    photometric="ycbcr", compression="jpeg", subfiletype=min(level, 1), metadata=None,
                    description=f"Aperio Image Library v1\n{large}x{large}|AppMag = 20|MPP = 0.5",
                )  # fmt: skip
    found["slide of many tiles"] = many
    real = None if data is None else data / "wsi" / "cmu-1-small-region.svs"
    return ({"CMU-1-Small-Region": real} if real is not None and real.is_file() else {}) | found


def _tifffile_layout(path: Path) -> list[tuple[Any, ...]]:
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        return [
            (
                page.imagewidth, page.imagelength, page.tilewidth, page.tilelength,
                list(page.dataoffsets), list(page.databytecounts),
            )
            for page in tiff.pages
            if page.is_tiled
        ]  # fmt: skip


def _our_layout(path: Path) -> list[tuple[Any, ...]]:
    from extractors.wsi.tiff import tiled_pages

    return [
        (page.width, page.height, page.tile_width, page.tile_height, page.offsets.tolist(), page.counts.tolist())
        for page in tiled_pages(path)
    ]  # fmt: skip


def measure_tiff(quick: bool, work: Path, data: Path | None) -> Ratios:
    """Milliseconds to know where the tiles lie, and tiles a second."""
    import openslide
    import tifffile
    import torch

    from extractors.wsi.read import SlideReader
    from extractors.wsi.tiff import tiled_pages

    torch.set_num_threads(1)
    installed = versions("tifffile", "openslide-python", "openslide-bin", "imagecodecs")
    print(f"\nTIFF: milliseconds for a slide's layout, tiles a second at its native scale; versions {installed}")
    columns = ("timeloom", "tifffile", "openslide")
    print(f"{'':<22}{'tiles':>8}{'same':>6}" + "".join(f"{f'{name}, ms':>14}" for name in columns) + "".join(
        f"{f'{name}, tiles/s':>20}" for name in columns
    ))  # fmt: skip
    ratios: Ratios = {}
    for name, path in tiff_files(quick, work, data).items():
        same = _our_layout(path) == _tifffile_layout(path)

        def by_tifffile(path: Path = path) -> None:
            with tifffile.TiffFile(path) as tiff:
                for page in tiff.pages:
                    if page.is_tiled:
                        _ = page.dataoffsets, page.databytecounts

        def by_openslide(path: Path = path) -> None:
            openslide.OpenSlide(path).close()

        layout = in_turns(
            {"timeloom": lambda path=path: tiled_pages(path), "tifffile": by_tifffile, "openslide": by_openslide},
            5 if quick else 21,
        )
        tiles = sum(len(page.offsets) for page in tiled_pages(path))
        key = "tiff_" + name.lower().replace(" ", "_").replace("-", "_")
        line = f"{name:<22}{tiles:>8,}{'yes' if same else 'NO':>6}" + "".join(
            f"{1000 * layout[c]:>14.2f}" for c in columns
        )
        ratios |= {f"{key}_layout_vs_{peer}": round(layout[peer] / layout["timeloom"], 2) for peer in columns[1:]}
        ratios[f"{key}_layout_same"] = same
        if name != "slide of many tiles":
            reader = SlideReader(path, {"mpp_x": 0.5, "mpp_y": 0.5})
            count = min(len(reader.plan), 128 if quick else 512)
            rates = {
                kind: count / seconds for kind, seconds in _tile_seconds(path, reader, count, 3 if quick else 7).items()
            }
            line += "".join(f"{rates[kind]:>20,.0f}" for kind in columns)
            ratios |= {f"{key}_tiles_vs_{peer}": round(rates["timeloom"] / rates[peer], 2) for peer in columns[1:]}
        print(line)
    _damaged_tiffs(work)
    return ratios


def _tile_seconds(path: Path, reader: Any, count: int, repeats: int) -> dict[str, float]:
    """Seconds for the same windows of 0.5 um/px: the plan's tiles cut from what each library decodes."""
    import openslide
    import tifffile

    plan = reader.plan
    width, height = plan.window
    corners = plan.corners[:count].tolist()

    def by_openslide() -> None:
        with openslide.OpenSlide(path) as slide:
            for x, y in corners:
                np.asarray(slide.read_region((x, y), plan.level, (width, height)).convert("RGB"))

    def by_tifffile() -> None:
        # Tiles of the page, decoded once while windows of their row need them, as one writes it by hand.
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages[0]
            wide, high, across = page.tilewidth, page.tilelength, -(-page.imagewidth // page.tilewidth)
            kept: dict[int, Any] = {}

            def tile(number: int) -> Any:
                if number not in kept:
                    offset, length = page.dataoffsets[number], page.databytecounts[number]
                    tiff.filehandle.seek(offset)
                    data = tiff.filehandle.read(length)
                    kept[number] = page.decode(data, number, jpegtables=page.jpegtables)[0][0]
                return kept[number]

            for x, y in corners:
                window = np.full((height, width, 3), 255, np.uint8)
                for row in range(y // high, min(-(-(y + height) // high), -(-page.imagelength // high))):
                    for column in range(x // wide, min(-(-(x + width) // wide), across)):
                        part = tile(row * across + column)
                        top, left = max(row * high, y), max(column * wide, x)
                        bottom, right = (
                            min(row * high + part.shape[0], y + height),
                            min(column * wide + part.shape[1], x + width),
                        )
                        window[top - y : bottom - y, left - x : right - x] = part[
                            top - row * high : bottom - row * high, left - column * wide : right - column * wide
                        ]
                for number in [number for number in kept if number // across < y // high]:
                    del kept[number]

    return in_turns(
        {"timeloom": lambda: reader.block(0, count), "tifffile": by_tifffile, "openslide": by_openslide}, repeats
    )


def _damaged_tiffs(work: Path) -> None:
    """What each makes of a file whose header declares more than it holds: seconds, and MiB that Python allocates."""
    import struct
    import tracemalloc

    from extractors.wsi.tiff import tiled_pages

    def tag(number: int, kind: int, count: int, value: int) -> bytes:
        return struct.pack("<HHII", number, kind, count, value)

    side, tiles = 1 << 19, 1 << 26
    tags = [tag(256, 4, 1, side), tag(257, 4, 1, side), tag(258, 3, 1, 8), tag(259, 3, 1, 7), tag(262, 3, 1, 6)]
    tags += [
        tag(277, 3, 1, 3),
        tag(322, 3, 1, 64),
        tag(323, 3, 1, 64),
        tag(324, 4, tiles, 400),
        tag(325, 4, tiles, 400),
    ]
    circle = struct.pack("<2sHI", b"II", 42, 8) + struct.pack("<H", len(tags)) + b"".join(tags) + struct.pack("<I", 8)
    path = work / "declares-too-much.tif"
    path.write_bytes(circle.ljust(1024, b"\0"))

    def by_tifffile() -> None:
        import tifffile

        logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)
        with tifffile.TiffFile(path) as tiff:
            pages = sum(page.is_tiled for page in islice(tiff.pages, 200))
        raise RuntimeError(f"{pages:,} pages, and more to come")

    def by_openslide() -> None:
        import openslide

        openslide.OpenSlide(path).close()

    print("\nA file of 1 kB that declares 67 M tiles, its directories in a circle:")
    for name, read in {
        "timeloom": lambda: tiled_pages(path),
        "tifffile": by_tifffile,
        "openslide": by_openslide,
    }.items():
        tracemalloc.start()
        start = time.perf_counter()
        try:
            read()
            says = "opened"
        except Exception as error:  # each has errors of its own
            says = f"{type(error).__name__}: {str(error)[:60]}"
        peak = tracemalloc.get_traced_memory()[1] / 2**20
        tracemalloc.stop()
        print(f"{name:<12}{time.perf_counter() - start:>8.3f} s{peak:>9.1f} MiB  {says}")
