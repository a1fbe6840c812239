"""Enhanced CT and Legacy Converted Enhanced CT: one set of texts per frame, as if each were a file of its own.

A frame's values come from its functional groups, else from the shared ones, else from the data set (PS3.3 C.7.6.16).
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from extractors.dicom.elements import Header, quiet, text_of
from extractors.items import VerdictError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

ENHANCED_CT = {"1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2"}

_CONVERTED = (
    "AcquisitionNumber", "AcquisitionDate", "AcquisitionTime", "AcquisitionDateTime", "ConvolutionKernel",
    "SliceThickness", "ImageType", "TemporalPositionIdentifier", "KVP", "TriggerTime", "ContentDate", "ContentTime",
    "InstanceNumber",
)  # fmt: skip
# Functional group macro → the elements of its one item that we read, and the single-frame keyword that they stand for.
_GROUPS: Mapping[str, Mapping[str, str]] = {
    "UnassignedSharedConvertedAttributesSequence": {name: name for name in _CONVERTED},
    "UnassignedPerFrameConvertedAttributesSequence": {name: name for name in _CONVERTED},
    "PlanePositionSequence": {"ImagePositionPatient": "ImagePositionPatient"},
    "PlaneOrientationSequence": {"ImageOrientationPatient": "ImageOrientationPatient"},
    "PixelMeasuresSequence": {"PixelSpacing": "PixelSpacing", "SliceThickness": "SliceThickness"},
    "PixelValueTransformationSequence": {
        "RescaleSlope": "RescaleSlope", "RescaleIntercept": "RescaleIntercept", "RescaleType": "RescaleType",
    },
    "CTImageFrameTypeSequence": {
        "FrameType": "ImageType", "VolumeBasedCalculationTechnique": "VolumeBasedCalculationTechnique",
    },
    "CTXRayDetailsSequence": {"KVP": "KVP"},
    "CardiacSynchronizationSequence": {
        "NominalPercentageOfCardiacPhase": "CardiacPhase", "NominalCardiacTriggerDelayTime": "TriggerTime",
    },
    "CTReconstructionSequence": {"ConvolutionKernel": "ConvolutionKernel"},
    "FrameContentSequence": {
        "FrameAcquisitionDateTime": "FrameAcquisitionDateTime", "FrameAcquisitionNumber": "AcquisitionNumber",
        "StackID": "StackID", "TemporalPositionIndex": "TemporalPositionIdentifier",
    },
}  # fmt: skip


def frames_of(header: Header) -> list[dict[str, str]]:
    """The texts of each frame, by the keywords of a single-frame CT, and StackID.

    Raises:
        VerdictError: failed_missing_geometry, where frames and functional groups differ in number.
    """
    import pydicom

    header.file.seek(0)
    groups = ["SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"]
    with quiet():
        dataset = pydicom.dcmread(header.file, stop_before_pixels=True, force=True, specific_tags=list(groups))
        shared, each = (dataset.get(name) or [] for name in groups)
        if len(each) != header.whole("NumberOfFrames", 1) or len(shared) > 1:
            raise VerdictError("failed_missing_geometry")
        common = {**header.values, **(_texts(shared[0]) if shared else {})}
        return [{**common, **_texts(frame)} for frame in each]


def _texts(group: "Dataset") -> dict[str, str]:
    texts = {}
    for macro, keywords in _GROUPS.items():
        for item in (group.get(macro) or [])[:1]:
            found = ((ours, text_of(item, theirs)) for theirs, ours in keywords.items())
            texts.update({ours: text for ours, text in found if text})
    return texts
