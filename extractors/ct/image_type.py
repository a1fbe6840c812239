"""What ImageType says of a CT's pixels: slices as the scanner made them, made from those, or no slices at all.

Value 1 is ORIGINAL or DERIVED, value 2 PRIMARY or SECONDARY, value 3 AXIAL, LOCALIZER or a flavour (PS3.3 C.7.6.1.1.2,
C.8.2.1.1.1, C.8.15.2.1); what stands behind them are the words of vendors, and of Enhanced CT the derived pixel
contrast (C.8.16.2.1.4). A word counts wherever it stands. VolumeBasedCalculationTechnique says the same in words of its
own.
"""

import re
from collections.abc import Mapping
from enum import IntEnum
from functools import lru_cache

SCREEN_WORDS = {"SCREEN SAVE", "SCREENSAVE", "SCREENSHOT", "DOSEINFO", "DOSE_INFO", "REF_SURVIEW"}
# Values that no longer are the attenuation of one place in one scan: projections, renderings, differences, maps.
_CALCULATED = re.compile(
    r"\b(?:(?:MAX|MIN|M) ?IPS?\d*|MAXIMUM|MINIMUM|PROJECTIONS?|RAY ?SUM|VRT?|(?:VOLUME|SURFACE) RENDER\w*|SSD"
    r"|SUBTRACT\w*|DSA|R?CB[FV]|MTT|TTP|TMAX|TTD|BLOOD (?:FLOW|VOLUME)|PERMEABILITY|DIVISION|MULTIPLICATION|STD DEV"
    r"|QUANTITY|IODINE\w*|Z ?EFF\w*|EFF\w* Z|ELECTRON DENSITY)\b"
)
# Attenuation, at other places or of another slab than the scanner's: made anew from slices.
_REFORMATTED = re.compile(
    r"\b(?:MPRS?|CPR|REFORMAT\w*|MULTIPLANAR|CURVED|RESAMPLED|AVERAGED?|AVE?G?|AV[EG]? ?IP|MEAN|MEDIAN|ADDITION"
    r"|FILTERED|STITCH\w*)\b"
)
_COMPRESSED = re.compile(r"\b(?:LOSSY|JP2K|J2K|JPEG\w*|COMPRESSED)\b")


class Derivation(IntEnum):
    """How far pixels are from the scanner's own slices; of one acquisition the least is kept."""

    ORIGINAL = 0
    UNKNOWN = 1  # no ImageType; or derived by nothing but compression
    DERIVED = 2
    SECONDARY = 3
    REFORMATTED = 4


def refusal(values: Mapping[str, str]) -> str:
    """The verdict of what is no slice; empty for slices."""
    return _read(values.get("ImageType", ""), values.get("VolumeBasedCalculationTechnique", ""))[0]


def derivation(values: Mapping[str, str]) -> Derivation:
    """How far a slice's pixels are from the scanner's."""
    return _read(values.get("ImageType", ""), values.get("VolumeBasedCalculationTechnique", ""))[1]


@lru_cache(maxsize=1 << 10)  # slices share it with their series
def _read(image_type: str, technique: str) -> tuple[str, Derivation]:
    parts = [part.strip().upper() for part in image_type.split("\\")]
    # One blank between words: CSA_MIP and Min-IP as they are spoken.
    words = [re.sub(r"[^A-Z0-9]+", " ", part).strip() for part in (*parts, technique.upper())]
    return _refusal(parts, words), _derivation(parts, words)


def _refusal(parts: list[str], words: list[str]) -> str:
    if "LOCALIZER" in parts:
        return "refused_localizer"
    if SCREEN_WORDS.intersection(parts):
        return "refused_secondary_capture"
    return "refused_calculated" if any(_CALCULATED.search(text) for text in words) else ""


def _derivation(parts: list[str], words: list[str]) -> Derivation:
    if any(_REFORMATTED.search(text) for text in words):
        return Derivation.REFORMATTED
    if parts[0] == "ORIGINAL":
        return Derivation.ORIGINAL
    if parts[0] != "DERIVED" or any(_COMPRESSED.search(text) for text in words):
        return Derivation.UNKNOWN
    return Derivation.SECONDARY if parts[1:2] == ["SECONDARY"] else Derivation.DERIVED
