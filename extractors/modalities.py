"""How each modality's files become items and units: one line a modality."""

from extractors.ct.settings import CT
from extractors.cxr.settings import CXR
from extractors.ecg.settings import ECG
from extractors.extractor import Extractor
from extractors.note.settings import NOTE
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
