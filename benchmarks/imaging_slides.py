"""Slides: tiles a second of our reader and of OpenSlide, one process and one thread each, in turns.

    python benchmarks/imaging_slides.py [--quick] [--work DIR]

Native: the level has the encoder's 0.5 um/px. 40x to 20x: 0.25 um/px, no level between, so 512 pixels become 256. Peer:
`read_region`, RGB, and PIL's bicubic filter where the scale differs. Both read the tiles of one plan, ours from an open
reader, OpenSlide from a new handle, whose opening costs a hundredth; the files are in the page cache.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openslide
import tifffile
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from extractors.simulate.slides import tissue
from extractors.wsi.read import SlideReader

QUALITY = 80
BLOCK = 64
REAL = "wsi/cmu-1-small-region.svs"


def measure(quick: bool, work: Path) -> dict[str, float | None]:
    """The ratios of the issue: best of the repetitions, ours over OpenSlide's. Prints a table."""
    torch.set_num_threads(1)
    repetitions, side, tiles = (2, 4096, 128) if quick else (5, 12_288, 1024)
    slides = [
        ("written, 0.5 um/px", write(work / f"slide-{side}.svs", side), 0.5),
        ("written, 0.25 um/px", write(work / f"slide-{side}.svs", side), 0.25),
        ("written, 0.2521 um/px", write(work / f"slide-{side}.svs", side), 0.2521),
    ]
    real = Path(__file__).parents[2] / "shared" / "data" / REAL
    if real.is_file():
        slides += [("CMU-1-Small-Region as 0.5 um/px", real, 0.5), ("CMU-1-Small-Region as 0.25 um/px", real, 0.25)]
    table = Table("slide", "tiles", "reader", "ours, tiles/s", "OpenSlide, tiles/s", "ratio")
    ratios = []
    for name, path, mpp in slides:
        reader = SlideReader(path, {"mpp_x": mpp, "mpp_y": mpp})
        count = min(len(reader.plan), tiles)
        turns = [(seconds(ours, reader, count), seconds(theirs, reader, count)) for _ in range(repetitions)]
        our_rate, peer = (count / min(column) for column in zip(*turns, strict=True))
        ratios.append(round(our_rate / peer, 3))
        table.add_row(name, str(count), reader.how, f"{our_rate:,.0f}", f"{peer:,.0f}", f"{our_rate / peer:.2f}")
    Console(width=160).print(table)
    return {"tiles_vs_openslide": ratios[0], "tiles_40to20_vs_openslide": ratios[1]}


def write(path: Path, side: int) -> Path:
    """A slide of JPEG tiles of 256 pixels, quality 80, and an overview of a sixteenth; tissue-like texture."""
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    image = tissue(np.random.default_rng(0), 0, (side, side), 0.5)
    with tifffile.TiffWriter(path) as tiff:
        for level, step in enumerate((1, 16)):
            tiff.write(
                image[::step, ::step],
                tile=(256, 256),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": QUALITY},
                subfiletype=min(level, 1),
                description=f"Aperio Image Library v1\n{side}x{side}|AppMag = 20|MPP = 0.5",
                metadata=None,
            )
    return path


def seconds(read: Callable[[SlideReader, int], None], reader: SlideReader, count: int) -> float:
    start = time.perf_counter()
    read(reader, count)
    return time.perf_counter() - start


def ours(reader: SlideReader, count: int) -> None:
    """All blocks of the first `count` tiles."""
    for start in range(0, count, BLOCK):
        reader.block(start, min(start + BLOCK, count))


def theirs(reader: SlideReader, count: int) -> None:
    """The same tiles, as one would read them with openslide-python and PIL."""
    plan = reader.plan
    with openslide.OpenSlide(reader.path) as slide:
        for x, y in plan.coordinates[:count].tolist():
            region = slide.read_region((x, y), plan.level, plan.window).convert("RGB")
            if not plan.native:
                size = (plan.tile, plan.tile)
                region = region.resize(size, Image.Resampling.BICUBIC, box=(0, 0, *plan.extent))
            np.asarray(region)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small slide, two repetitions")
    parser.add_argument("--work", type=Path, default=Path("imaging-benchmark"), help="where the slide is written")
    arguments = parser.parse_args()
    print(measure(arguments.quick, arguments.work))


if __name__ == "__main__":
    main()
