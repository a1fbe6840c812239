"""How each modality's units become an encoder's input: one line a modality."""

from embedders.inputs.common import PreprocessSpec
from embedders.inputs.ct import CtSpec
from embedders.inputs.cxr import CxrSpec
from embedders.inputs.ecg import EcgSpec
from embedders.inputs.note import NoteSpec
from embedders.inputs.wsi import TileSpec

SPECS: dict[str, PreprocessSpec] = {
    "ct": CtSpec(),
    "wsi": TileSpec(),
    "ecg": EcgSpec(),
    "cxr": CxrSpec(),
    "note": NoteSpec(),
}
