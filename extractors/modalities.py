"""How each modality's files become items and units: one line a modality."""

from collections.abc import Mapping
from typing import Any

from extractors.ct.settings import CT
from extractors.cxr.settings import CXR
from extractors.ecg.settings import ECG
from extractors.extractor import Extractor, ModalitySettings
from extractors.note.settings import NOTE
from extractors.vectors.settings import VECTORS, is_vectors
from extractors.wsi.settings import WSI
from warehouse.errors import TimeloomError

EXTRACTORS: dict[str, Extractor] = {
    "ct": CT,
    "wsi": WSI,
    "ecg": ECG,
    "cxr": CXR,
    "note": NOTE,
}


def extractor_of(modality: str) -> Extractor:
    """A modality's extractor.

    Raises:
        TimeloomError: nobody knows the modality; names those that are known.
    """
    if modality not in EXTRACTORS:
        raise TimeloomError(f"there is no modality {modality}", remedy=f"known are {', '.join(EXTRACTORS)}")
    return EXTRACTORS[modality]


def tree_reader(modality: str, settings: Mapping[str, Any]) -> tuple[Extractor, ModalitySettings]:
    """What reads a tree of a modality's files, or of its vectors, and the tree's settings, which are given as JSON."""
    extractor = VECTORS if is_vectors(settings) else extractor_of(modality)
    return extractor, extractor.settings.model_validate(settings)
