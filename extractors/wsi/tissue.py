"""What of a slide's overview is tissue: by luminance and saturation, beside glass, black, pure white and marker ink.

Luminance is the mean of RGB and saturation that of HSV, (max - min) / max, as in CLAM (Lu et al. 2021). The threshold
is Otsu's (1979) of luminance, GigaPath's rule, over what can be glass or tissue: what was never scanned is black or
pure white, ink is told by its hue, and neither may move the threshold. Grey is no stain: edges, shadows and dust are
not tissue.
"""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from extractors.items import VerdictError

# Method and version of the mask: part of the name of the store of tiles' vectors. Raise it when a tile comes or goes.
MASK = "otsu-saturation-ink-1"

MarkerColour = Literal["black", "blue", "green", "red"]
MARKER_COLOURS: tuple[MarkerColour, ...] = get_args(MarkerColour)

MIN_CONTRAST = 10.0  # grey levels between tissue and background; below, Otsu only splits the noise of an empty slide
MIN_SATURATION = 0.05
GLASS_PERCENTILE, GLASS_DEPTH = 95, 30  # grey levels below the lightest grey: farther down it is shadow, dust, an edge
TINT_SATURATION = 0.1  # where most of the lighter class has more, it is no clear glass
STAIN_SATURATION = 0.15  # and no glass at all
BLACK_MOST = 24  # of any channel: what no light came through, with the noise of its JPEG
WHITE_LEAST = 254  # of every channel
WHITE_SHARE = 0.02  # from which on pure white may be the glass
GROWTH = 3  # pixels by which ink grows into paler ink of its hue: the edge of a stroke is mixed with glass
ALL_INK = 0.95  # of the coloured pixels: from here on ink may be the stain
STAIN_TEXTURE = 2.5  # grey levels between neighbours inside a stain; ink is flat at this scale
DARK_LUMINANCE, DARK_SHARE = 64, 0.5  # more of a slide is dark than this: perhaps dark-field
LIGHT_LUMINANCE, LIGHT_SATURATION, LIGHT_SHARE = 200, 0.15, 0.1  # glass, as a share of what is not dark

Bytes = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Channel = npt.NDArray[np.int16]


@dataclass(frozen=True)
class SlideMask:
    """Pixels (h, w) of an overview: `tissue`, `black` (never scanned), `ink` (a marker's)."""

    tissue: Mask
    black: Mask
    ink: Mask


def otsu(counts: npt.NDArray[np.int64]) -> tuple[float, float]:
    """Otsu's threshold (1979) of a histogram (256,) of grey levels, and the distance of the two classes' means.

    >>> counts = np.bincount([10, 12, 11, 240, 238], minlength=256)
    >>> threshold, contrast = otsu(counts)
    >>> 12 < threshold <= 238, round(contrast)
    (True, 228)
    """
    centres = np.arange(256) + 0.5
    below, mass = np.cumsum(counts)[:-1].astype(np.float64), np.cumsum(counts * centres)[:-1]
    above, total = counts.sum() - below, (counts * centres).sum()
    valid = (below > 0) & (above > 0)
    if not valid.any():
        return 0.0, 0.0
    gap = np.zeros(255)
    gap[valid] = (total - mass[valid]) / above[valid] - mass[valid] / below[valid]
    best = int(np.argmax(below * above * gap**2))
    return float(best + 1), float(gap[best])


def slide_mask(rgb: Bytes, damaged: Mask, marker_colours: Collection[str] = MARKER_COLOURS) -> SlideMask:
    """The mask of an overview (h, w, 3) uint8.

    Args:
        damaged: (h, w), what could not be decoded. It counts as tissue, so that its tiles are tried and, if they fail
            too, counted.
        marker_colours: inks that are looked for; a site that stains in such a colour names the others.

    Raises:
        VerdictError: refused_dark_field.
    """
    look = _Look.of(rgb)
    known = ~damaged
    _refuse_dark_field(look, known)
    black = (look.largest <= BLACK_MOST) & known
    white = (look.largest - look.chroma >= WHITE_LEAST) & known
    ink = _ink(rgb, marker_colours) & known
    black = _grown(black, ink)  # its edge is as dark as ink
    ink &= ~black
    tissue = _tissue(look, known & ~black & ~ink, white)
    if ink.any() and tissue.sum() < (1 - ALL_INK) * (tissue.sum() + ink.sum()) and _textured(look.luminance, ink):
        ink = np.zeros_like(ink)  # all that has a colour has this one, and structure: it is the stain
        tissue = _tissue(look, known & ~black, white)
    return SlideMask(tissue | damaged, black, ink)


@dataclass(frozen=True)
class _Look:
    """Largest channel, largest less smallest, and luminance, of each pixel; (h, w) uint8."""

    largest: Bytes
    chroma: Bytes
    luminance: Bytes

    @classmethod
    def of(cls, rgb: Bytes) -> "_Look":
        red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
        largest = np.maximum(np.maximum(red, green), blue)
        chroma = largest - np.minimum(np.minimum(red, green), blue)
        return cls(largest, chroma, ((red.astype(np.uint16) + green + blue) // 3).astype(np.uint8))

    def saturated(self, least: float) -> Mask:
        """Where the saturation is at least `least`; a black pixel has none."""
        chroma_of = np.maximum(np.ceil(np.arange(256) * least - 1e-9), 1).astype(np.uint8)
        found: Mask = self.chroma >= chroma_of[self.largest]
        return found


def _tissue(look: _Look, considered: Mask, white: Mask) -> Mask:
    """Coloured, and darker than Otsu's threshold of what is considered.

    Pure white counts only where it is all the glass; where there is no glass at all, what is coloured is tissue. Grey
    that is darker than glass is neither.
    """
    grey, seen = look.luminance, considered & ~white
    colourless = seen & ~look.saturated(MIN_SATURATION)
    if colourless.any():
        glass = float(np.percentile(grey[colourless], GLASS_PERCENTILE))
        seen &= ~colourless | (grey >= glass - GLASS_DEPTH)
    threshold, contrast = otsu(np.bincount(grey[seen], minlength=256))
    lighter = seen & (grey >= threshold)
    half = int(lighter.sum()) / 2
    if (lighter & look.saturated(TINT_SATURATION)).sum() > half:
        if white.sum() >= WHITE_SHARE * white.size:
            threshold, contrast = otsu(np.bincount(grey[seen | (white & considered)], minlength=256))
        elif (lighter & look.saturated(STAIN_SATURATION)).sum() > half:
            threshold, contrast = 256.0, 256.0
    if contrast < MIN_CONTRAST:
        return np.zeros_like(considered)
    return seen & (grey < threshold) & look.saturated(MIN_SATURATION)


def _refuse_dark_field(look: _Look, known: Mask) -> None:
    """Dark-field and fluorescence: light on dark, and no glass that light came through."""
    dark = known & (look.luminance < DARK_LUMINANCE)
    light = known & ~dark
    glass = light & (look.luminance >= LIGHT_LUMINANCE) & ~look.saturated(LIGHT_SATURATION)
    if dark.sum() > DARK_SHARE * known.sum() and light.sum() > 0 and glass.sum() < LIGHT_SHARE * light.sum():
        raise VerdictError("refused_dark_field")


def _ink(rgb: Bytes, marker_colours: Collection[str]) -> Mask:
    """Ink of the markers that pathologists write with, by hue and saturation, and its paler edges."""
    inks = _inks()
    coarse = rgb >> 2
    kinds = inks[(coarse[..., 0].astype(np.int32) << 12) | (coarse[..., 1].astype(np.int32) << 6) | coarse[..., 2]]
    found = np.zeros(kinds.shape, np.bool_)
    for colour in marker_colours:
        bit = MARKER_COLOURS.index(colour)
        strong = (kinds >> bit & 1).astype(np.bool_)
        if strong.any():
            found |= _grown(strong, (kinds >> bit + 4 & 1).astype(np.bool_))
    return found


@cache
def _inks() -> Bytes:
    """For each colour, in steps of four grey levels: a bit for each ink that it is, and four bits on for each ink that
    it is the edge of; (64 * 64 * 64,)."""
    levels = np.arange(64, dtype=np.int16) * 4 + 2
    red, green, blue = (channel.ravel() for channel in np.meshgrid(levels, levels, levels, indexing="ij"))
    found = np.zeros(len(red), np.uint8)
    for bit, colour in enumerate(MARKER_COLOURS):
        strong, pale = _of_colour(red, green, blue, colour)
        found |= strong.astype(np.uint8) << bit | pale.astype(np.uint8) << bit + 4
    return found


def _of_colour(red: Channel, green: Channel, blue: Channel, colour: str) -> tuple[Mask, Mask]:
    """Whether each pixel is ink of a colour, and whether it is the edge of such where it lies beside some.

    Hues are kept away from stains: blue ends at 246 degrees, haematoxylin begins at 250; red is within 20 degrees of 0
    and more saturated than eosin and blood, at 330 to 360.
    """
    largest = np.maximum(np.maximum(red, green), blue)
    chroma = largest - np.minimum(np.minimum(red, green), blue)
    if colour == "black":
        light = red + green + blue
        strong = (light < 240) & (5 * chroma < largest) | (light < 100)  # darker than any stain
        return strong, (light < 600) & (8 * chroma < largest)
    if colour == "blue":
        hue = (blue == largest) & (chroma > 0)
        cold = (red <= green) & (2 * chroma >= largest)
        violet = (10 * (red - green) <= chroma) & (5 * chroma >= 3 * largest)
        return hue & (cold | violet), hue & (red <= green) & (20 * chroma >= largest)
    if colour == "green":
        hue = (green == largest) & (blue < green) & (red < green)
        return hue & (20 * chroma >= 7 * largest), hue & (20 * chroma >= largest)
    hue = (red == largest) & (3 * np.abs(green - blue) <= chroma) & (chroma > 0)
    return hue & (4 * chroma >= 3 * largest) & (red >= 110), hue & (20 * chroma >= largest)


def _grown(strong: Mask, pale: Mask) -> Mask:
    for _ in range(GROWTH):
        beside = strong.copy()
        beside[1:] |= strong[:-1]
        beside[:-1] |= strong[1:]
        beside[:, 1:] |= strong[:, :-1]
        beside[:, :-1] |= strong[:, 1:]
        strong = strong | (beside & pale)
    return strong


def _textured(grey: Bytes, ink: Mask) -> bool:
    """Whether pixels inside differ from their neighbours' mean as tissue's do."""
    inner = ink[1:-1, 1:-1] & ink[:-2, 1:-1] & ink[2:, 1:-1] & ink[1:-1, :-2] & ink[1:-1, 2:]
    if not inner.any():
        return False
    around = grey[:-2, 1:-1].astype(np.float32) + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float(np.abs(grey[1:-1, 1:-1] - around / 4)[inner].mean()) >= STAIN_TEXTURE
