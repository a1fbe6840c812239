"""From which side a chest x-ray was taken: what headers and tables say, in a few words of our own."""

from collections.abc import Mapping
from typing import Literal

View = Literal["frontal", "lateral", "other", "unknown"]
VIEWS: tuple[View, ...] = ("frontal", "lateral", "other", "unknown")

# View Position (DICOM PS3.3 C.8.1.3) as devices and MIMIC-CXR write it. A decubitus is a frontal projection.
_POSITIONS: Mapping[str, View] = {
    **dict.fromkeys(
        ("AP", "PA", "AP AXIAL", "PA AXIAL", "AP LLD", "AP RLD", "PA LLD", "PA RLD", "LLD", "RLD", "AP SUPINE",
         "AP ERECT", "PA ERECT", "AP PORTABLE", "LORDOTIC", "AP LORDOTIC"), "frontal",
    ),
    **dict.fromkeys(
        ("LL", "RL", "LATERAL", "LAT", "LLAT", "RLAT", "L LAT", "R LAT", "LEFT LATERAL", "RIGHT LATERAL",
         "XTABLE LATERAL", "ML", "LM"), "lateral",
    ),
    **dict.fromkeys(("LAO", "RAO", "LPO", "RPO", "OBLIQUE", "SWIMMERS", "TANGENTIAL"), "other"),
}  # fmt: skip
# Code meanings of the view (DICOM CID 4010), in lower case, without what they say of the side.
_MEANINGS: Mapping[str, View] = {
    **dict.fromkeys(("antero-posterior", "postero-anterior", "anteroposterior", "posteroanterior"), "frontal"),
    "lateral": "lateral",
    "oblique": "other",
}
_LATERALITIES = frozenset("LRUB")


def view_of(position: str, meaning: str = "") -> tuple[View, str]:
    """The view by View Position, else by the meaning of its code; and the position, empty where it is no known word.

    >>> view_of("LL"), view_of("", "postero-anterior"), view_of("CHEST")
    (('lateral', 'LL'), ('frontal', ''), ('unknown', ''))
    """
    words = " ".join(position.upper().replace("_", " ").split())
    if words in _POSITIONS:
        return _POSITIONS[words], words
    for text in (meaning, position):
        named = next((view for word, view in _MEANINGS.items() if word in text.lower()), None)
        if named is not None:
            return named, ""
    return "unknown", ""


def laterality_of(*texts: str) -> str:
    """L, R, U (unpaired) or B by the first text that is one of them; else empty."""
    return next((text.strip().upper() for text in texts if text.strip().upper() in _LATERALITIES), "")


def yes_or_no(text: str) -> str:
    """`yes`, `no`, or `unknown`."""
    return {"YES": "yes", "Y": "yes", "TRUE": "yes", "1": "yes", "NO": "no", "N": "no", "FALSE": "no", "0": "no"}.get(
        text.strip().upper(), "unknown"
    )
