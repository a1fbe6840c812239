"""Slides of the simulated hospital: stained tissue on white, written as Aperio-style pyramidal JPEG TIFF."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from extractors.simulate.record import DAY

TILE = 256
WHITE = 243
QUALITY = 80

STAIN_RGB = ((224, 130, 170), (120, 80, 165), (165, 110, 60), (80, 140, 165))
"""Mean colour of the tissue, by class: eosin, haematoxylin, DAB, methyl blue."""
NUCLEUS_PERIOD_UM = (48.0, 32.0, 20.0, 12.0)
"""Distance between nuclei, by class."""

Pixels = NDArray[np.uint8]


def tissue(rng: np.random.Generator, image_class: int, size: tuple[int, int], mpp: float) -> Pixels:
    """One piece of stained tissue on a white ground; (height, width, 3) at `mpp` micrometres a pixel."""
    height, width = size
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    lobes, phase = int(rng.integers(3, 6)), float(rng.uniform(0, 2 * np.pi))
    edge = 0.78 + 0.08 * np.sin(lobes * np.arctan2(y, x) + np.float32(phase))
    inside = x**2 + y**2 < edge**2
    period = NUCLEUS_PERIOD_UM[image_class] / mpp
    waves_y = np.sin(2 * np.pi * (np.arange(height, dtype=np.float32) / period + rng.random()))[:, None]
    waves_x = np.sin(2 * np.pi * (np.arange(width, dtype=np.float32) / period + rng.random()))[None, :]
    # Coarse noise (4 px) looks like tissue and costs JPEG less than noise in every pixel.
    coarse = rng.normal(0, 9, ((height + 3) // 4, (width + 3) // 4)).astype(np.float32)
    shade = coarse.repeat(4, axis=0)[:height].repeat(4, axis=1)[:, :width] - 34.0 * (waves_y * waves_x > 0.35)
    tint = rng.normal(0, 5, 3)
    image = np.full((height, width, 3), WHITE, dtype=np.uint8)
    stained = np.empty_like(shade)
    for channel, mean in enumerate(STAIN_RGB[image_class]):
        np.add(shade, np.float32(mean + tint[channel]), out=stained)
        np.clip(stained, 0, 255, out=stained)
        np.copyto(image[..., channel], stained, where=inside, casting="unsafe")
    return image


def write_slide(path: Path, image: Pixels, mpp: float, scanned: int, say_mpp: bool = True) -> None:
    """Writes the pyramid: each level a top-level page (a level in a SubIFD would not be seen), tiled, JPEG.

    Args:
        image: (height, width, 3) uint8, a multiple of 4 in both directions.
        mpp: micrometres a pixel of the first level; 0.5 is written as 20x, 0.25 as 40x.
        scanned: time of the scan, seconds since 1970; not the time of collection.
        say_mpp: False leaves MPP out of the description, as some scanners do.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width, _ = image.shape
    when = datetime.fromtimestamp(scanned, UTC)
    title = f"Aperio Image Library v12.0.0\r\n{width}x{height}"
    details = [f"AppMag = {round(10 / mpp)}"] + ([f"MPP = {mpp:.4f}"] if say_mpp else [])
    details += [when.strftime("Date = %m/%d/%y"), when.strftime("Time = %H:%M:%S")]
    with tifffile.TiffWriter(path) as writer:
        level = image
        for number in range(3):
            rows, columns, _ = level.shape
            shape = f" [0,0 {width}x{height}] (256x256) JPEG/RGB Q={QUALITY}"
            shape += "" if number == 0 else f" -> {columns}x{rows}"
            writer.write(
                level,
                tile=(TILE, TILE),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": QUALITY},
                subfiletype=0 if number == 0 else 1,
                description="|".join([title + shape, *details]),
                software=False,
                metadata=None,
            )
            level = _halved(level)


def scan_time(collected: int, rng: np.random.Generator) -> int:
    """Slides are scanned days after the specimen was taken."""
    return collected + int(rng.integers(2, 9)) * DAY


def _halved(level: Pixels) -> Pixels:
    wide = level.astype(np.uint16)
    rows = wide[0::2] + wide[1::2]
    mean: Pixels = ((rows[:, 0::2] + rows[:, 1::2] + 2) // 4).astype(np.uint8)
    return mean
