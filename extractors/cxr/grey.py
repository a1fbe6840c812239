"""From stored values to what a radiologist sees: 0 is black, 65,535 white, and dense parts are bright.

The order is DICOM's (PS3.4 N.2): modality LUT or rescale, then VOI LUT or window, and inversion last. Where there is
neither table nor window, the bulk of the values is stretched. All of it is one table over the stored values, so that a
picture costs one look-up a pixel. Overlays are never looked at.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

WHITE = 65_535
# Between these percentages of the pixels grey values must differ, or the picture is blank; and a window must show some
# of it.
_BULK = (1.0, 99.0)
_FEWEST_LEVELS = 8
_LEAST_SHOWN = 0.02
_MOST_LEVELS = 1 << 22  # what is stored in 32 bits has no more

Values = npt.NDArray[np.float64]
Voi = Literal["table", "window", "stretch", "display"]


@dataclass(frozen=True)
class Lut:
    """A table of DICOM: `first` is the input of its first entry, entries lie between 0 and `top`."""

    first: float
    entries: Values
    top: float

    def of(self, values: Values) -> Values:
        """The entries of values; beyond its ends the first and the last."""
        places = np.clip(np.rint(values - self.first), 0, len(self.entries) - 1).astype(np.int64)
        return self.entries[places]


@dataclass(frozen=True)
class Window:
    """A window of DICOM (PS3.3 C.11.2.1.2)."""

    centre: float
    width: float
    function: str = "LINEAR"

    def of(self, values: Values) -> Values:
        """Values between 0 and 1."""
        if self.function == "SIGMOID":
            return np.asarray(1 / (1 + np.exp(np.clip(-4 * (values - self.centre) / self.width, -700, 700))))
        if self.function == "LINEAR_EXACT" or self.width < 1:
            return np.clip((values - self.centre) / self.width + 0.5, 0, 1)
        if self.width == 1:
            return np.where(values > self.centre - 0.5, 1.0, 0.0)
        return np.clip((values - (self.centre - 0.5)) / (self.width - 1) + 0.5, 0, 1)


@dataclass(frozen=True)
class GreyScale:
    """What a header says of its grey values.

    Attributes:
        modality: a table, or slope and intercept.
        voi: the first table, if there is one.
        window: the first window of a width above 0, if there is one.
        unusable_windows: windows whose width is 0 or less.
        inverted: bright is air: MONOCHROME1, or a presentation LUT of the shape INVERSE.
        padding: the lowest and highest stored value that is no part of the picture.
    """

    modality: Lut | tuple[float, float] = (1.0, 0.0)
    voi: Lut | None = None
    window: Window | None = None
    unusable_windows: int = 0
    inverted: bool = False
    padding: tuple[float, float] | None = None


@dataclass(frozen=True)
class Picture:
    """A picture, and how it came to be.

    Attributes:
        pixels: (rows, columns) uint16.
        voi: what chose the grey values.
        refused: the header's table or window showed next to nothing of the picture.
        contrast: the share of its largest value that the bulk of the stored values spans; 0 where there are few levels.
    """

    pixels: npt.NDArray[np.uint16]
    voi: Voi
    refused: bool
    contrast: float


def picture(
    stored: npt.NDArray[Any],
    scale: GreyScale,
    stretch: tuple[float, float],
    padded: npt.NDArray[np.bool_] | None = None,
) -> Picture:
    """The picture of stored values (rows, columns); what is no part of it is black.

    Args:
        stretch: without table and window, the percentages of the pixels that become black and white.
        padded: pixels that are no part of it although their values may be (rows, columns).

    Raises:
        ValueError: a range of values that no detector has.
    """
    places, levels = _levels(stored)
    inside = places if padded is None else places[~padded]
    counts = np.bincount(inside.ravel(), minlength=len(levels))
    shown = np.ones(len(levels), dtype=bool)
    if scale.padding is not None:
        shown = (levels < scale.padding[0]) | (levels > scale.padding[1])
        counts = np.where(shown, counts, 0)
    if not counts.any():
        return Picture(np.zeros(stored.shape, np.uint16), "stretch", False, 0.0)
    grey = scale.modality.of(levels) if isinstance(scale.modality, Lut) else (
        levels * scale.modality[0] + scale.modality[1]
    )  # fmt: skip
    voi, refused, light = _light(grey, counts, scale, stretch)
    if scale.inverted:
        light = 1 - light
    table = np.rint(np.where(shown, light, 0.0) * WHITE).astype(np.uint16)
    pixels = table[places]
    if padded is not None:
        pixels[padded] = 0
    return Picture(pixels, voi, refused, _contrast(levels, counts))


def contrast_of(stored: npt.NDArray[Any]) -> float:
    """The `contrast` of a picture that is shown as it is stored."""
    places, levels = _levels(stored)
    return _contrast(levels, np.bincount(places.ravel(), minlength=len(levels)))


def _levels(stored: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], Values]:
    """Every value that there may be, rising, and the place of each pixel's among them (rows, columns)."""
    last = int(stored.max())
    if stored.dtype.kind == "u" and stored.dtype.itemsize <= 2:
        return stored, np.arange(last + 1, dtype=np.float64)
    first = int(stored.min())
    if last - first > _MOST_LEVELS:
        raise ValueError("a range of values that no detector has")
    return stored.astype(np.int64) - first, np.arange(first, last + 1, dtype=np.float64)


def _light(
    grey: Values, counts: npt.NDArray[np.int64], scale: GreyScale, stretch: tuple[float, float]
) -> tuple[Voi, bool, Values]:
    """Of each level its light between 0 and 1, by a table before a window; what shows nothing is not used."""
    refused = False
    if scale.voi is not None:
        light = scale.voi.of(grey) / max(scale.voi.top, 1)
        if _spread(light, counts, _BULK) >= _LEAST_SHOWN:
            return "table", False, light
        refused = True
    if scale.window is not None:
        light = scale.window.of(grey)
        if _spread(light, counts, _BULK) >= _LEAST_SHOWN:
            return "window", refused, light
        refused = True
    low, high = _percentiles(grey, counts, stretch)
    return "stretch", refused, np.clip((grey - low) / ((high - low) or 1.0), 0, 1)


def _contrast(levels: Values, counts: npt.NDArray[np.int64]) -> float:
    low, high = _percentiles(levels, counts, _BULK)
    top = float(np.abs(levels[counts > 0]).max())
    return (high - low) / max(top, 1.0) if high - low >= _FEWEST_LEVELS else 0.0


def _spread(values: Values, counts: npt.NDArray[np.int64], percentages: tuple[float, float]) -> float:
    low, high = _percentiles(values, counts, percentages)
    return high - low


def _percentiles(
    values: Values, counts: npt.NDArray[np.int64], percentages: tuple[float, float]
) -> tuple[float, float]:
    """The values below which those percentages of the pixels lie."""
    order = np.argsort(values, kind="stable")
    summed = np.cumsum(counts[order])
    wanted = np.ceil(np.array(percentages) / 100 * summed[-1]).clip(1)
    low, high = values[order][np.searchsorted(summed, wanted)]
    return float(low), float(high)
