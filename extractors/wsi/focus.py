"""How many of a slide's tissue tiles are out of focus: the variance of the Laplacian (Pech-Pacheco et al. 2000)."""

import numpy as np
import numpy.typing as npt

from extractors.wsi.read import SlideReader

# Of tiles at 0.5 um/px. H&E in focus has 260 to 2,200; the same blurred by a Gaussian of 1 um (two pixels) 5 to 28, of
# 1.5 um less than 7.
SHARP = 25.0
FOCUS_TILES = 64  # of a slide with more, as many are looked at, spread evenly over it


def laplacian_variance(tile: npt.NDArray[np.uint8]) -> float:
    """Variance of the four-neighbour Laplacian of the mean of RGB; `tile` is (h, w, 3).

    >>> laplacian_variance(np.full((8, 8, 3), 90, np.uint8))
    0.0
    """
    red, green, blue = (tile[..., channel].astype(np.int16) for channel in range(3))
    triple = red + green + blue  # three times the mean: the Laplacian stays whole numbers below 3,061
    around = triple[:-2, 1:-1] + triple[2:, 1:-1] + triple[1:-1, :-2] + triple[1:-1, 2:]
    return float((4 * triple[1:-1, 1:-1] - around).var(dtype=np.float64)) / 9


def blurred_share(reader: SlideReader) -> tuple[float, int]:
    """The share of blurred tiles among those looked at, and how many these are; what cannot be read is left out."""
    units = len(reader.plan)
    chosen = np.unique(np.linspace(0, units - 1, min(units, FOCUS_TILES)).round().astype(int))
    blocks = [reader.block(index, index + 1).pixels for index in chosen.tolist()]
    sharp = [laplacian_variance(tile) >= SHARP for block in blocks for tile in block]
    return (1 - sum(sharp) / len(sharp) if sharp else 0.0), len(sharp)
