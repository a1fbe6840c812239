"""One DICOM file's header: what kind of object it is, whether it can be a CT slice, and whether it is whole.

Reading stops before the pixels. A verdict here is about the file alone; `extractors.dicom` judges volumes.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from extractors.dicom_time import Moment, moments_of
from extractors.items import EDGE_BYTES, OK, file_fingerprint

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

MAX_SIDE = 4096  # pixels; the largest CT matrices are 2,048

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT = {"1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2"}
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"
SCREEN_WORDS = {"SCREEN SAVE", "SCREENSAVE", "SCREENSHOT", "DOSEINFO", "DOSE_INFO", "REF_SURVIEW"}
IMPLICIT_LITTLE_ENDIAN, DEFLATED = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1.99"
SEQUENCE_DELIMITER = b"\xfe\xff\xdd\xe0"
UNCOMPRESSED = {IMPLICIT_LITTLE_ENDIAN, "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"}
LOSSY_JPEG = {f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 52, 53, 54, 55, 56)}
DICOM_SUFFIXES = {".dcm", ".dicom", ".dic", ".ima"}

TAGS = [
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "PatientID", "Modality", "ImageType",
    "FrameAcquisitionDateTime", "AcquisitionDateTime", "AcquisitionDate", "AcquisitionTime", "SeriesDate",
    "SeriesTime", "StudyDate", "StudyTime", "TimezoneOffsetFromUTC", "AcquisitionNumber", "Rows", "Columns",
    "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "PixelSpacing",
    "ImagePositionPatient", "ImageOrientationPatient", "SliceThickness", "RescaleSlope", "RescaleIntercept",
    "RescaleType", "BurnedInAnnotation",
]  # fmt: skip


@dataclass(frozen=True)
class SliceHeader:
    """One DICOM file's header, as far as it could be read."""

    path: str
    verdict: str  # of this file alone
    fingerprint: str
    instance: str
    series: str
    subject: str
    moments: tuple[Moment, ...]
    key: tuple[Any, ...] = ()
    acquisition: str = ""
    plane: npt.NDArray[np.float64] | None = None  # (8,) orientation and spacing
    position: npt.NDArray[np.float64] | None = None  # (3,) mm
    thickness: float | None = None


@contextmanager
def quiet() -> Iterator[None]:
    """pydicom's warnings and log lines quote header values, which may identify a patient."""
    import logging

    import pydicom.config

    logger = logging.getLogger("pydicom")
    level, mode = logger.level, pydicom.config.settings.reading_validation_mode
    logger.setLevel(logging.CRITICAL + 1)
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        pydicom.config.settings.reading_validation_mode = mode


def read_header(path: Path, relative: str, site_timezone: str | None) -> "SliceHeader | bool":
    """A slice; or for what is no DICOM object, whether it counts as a foreign file (a DICOMDIR does not)."""
    import pydicom

    broken = SliceHeader(relative, "failed_unreadable", "", "", "", "", ())
    suspect = path.suffix.lower() in DICOM_SUFFIXES
    try:
        broken = SliceHeader(relative, "failed_unreadable", file_fingerprint(path), "", "", "", ())
        with path.open("rb") as file:
            start = file.read(132)
            marked = start[128:] == b"DICM"
            bare = start[:2] in (b"\x08\x00", b"\x02\x00")  # a data set without the 128-byte preamble
            suspect |= marked
            if not suspect and not bare:
                return True
            file.seek(0)
            dataset = pydicom.dcmread(file, stop_before_pixels=True, force=not marked, specific_tags=list(TAGS))
            if str(dataset.file_meta.get("MediaStorageSOPClassUID", "")) == MEDIA_DIRECTORY:
                return False
            if "SOPClassUID" not in dataset and not suspect:
                return True
            return _slice(dataset, file, broken, site_timezone)
    except Exception:  # pydicom raises almost anything on damaged bytes; the verdict says what matters
        return broken if suspect or not broken.fingerprint else True


def _slice(dataset: "Dataset", file: BinaryIO, broken: SliceHeader, site_timezone: str | None) -> SliceHeader:
    verdict = _verdict(dataset)
    if verdict == OK and not _is_whole(dataset, file):
        verdict = "failed_unreadable"
    plane, position = numbers_of(dataset, ("ImageOrientationPatient", 6), ("PixelSpacing", 2)), None
    if plane is not None:
        position = numbers_of(dataset, ("ImagePositionPatient", 3))
    if verdict == OK and (plane is None or position is None or (plane[6:] <= 0).any()):
        verdict = "failed_missing_geometry"
    thickness = numbers_of(dataset, ("SliceThickness", 1))
    return SliceHeader(
        path=broken.path,
        verdict=verdict,
        fingerprint=broken.fingerprint,
        instance=text_of(dataset, "SOPInstanceUID"),
        series=text_of(dataset, "SeriesInstanceUID"),
        subject=text_of(dataset, "PatientID"),
        moments=moments_of({tag: text_of(dataset, tag) for tag in TAGS}, site_timezone),
        key=(text_of(dataset, "FrameOfReferenceUID"), dataset.get("Rows"), dataset.get("Columns")),
        acquisition=text_of(dataset, "AcquisitionNumber"),
        plane=plane,
        position=position,
        thickness=None if thickness is None else float(thickness[0]),
    )


def _is_whole(dataset: "Dataset", file: BinaryIO) -> bool:
    """Whether the pixel data, before which `file` stands, reach their end."""
    syntax = str(dataset.file_meta.get("TransferSyntaxUID", IMPLICIT_LITTLE_ENDIAN))
    left = os.fstat(file.fileno()).st_size - file.tell()
    if syntax == DEFLATED:  # inflated as a whole already: pydicom would have failed
        return True
    if syntax in UNCOMPRESSED:
        return left >= int(dataset.Rows * dataset.Columns * dataset.BitsAllocated // 8)
    file.seek(-min(left, EDGE_BYTES), os.SEEK_END)
    return SEQUENCE_DELIMITER in file.read()


def _verdict(dataset: "Dataset") -> str:
    """What one file is, from its header."""
    kind = text_of(dataset, "SOPClassUID")
    image_type = {part.strip().upper() for part in text_of(dataset, "ImageType").split("\\")}
    slope, intercept = numbers_of(dataset, ("RescaleSlope", 1)), numbers_of(dataset, ("RescaleIntercept", 1))
    if not kind:
        return "failed_unreadable"
    if kind == SECONDARY_CAPTURE or kind.startswith(SECONDARY_CAPTURE + "."):
        return "refused_secondary_capture"
    if kind in ENHANCED_CT:
        return "refused_enhanced_multiframe"
    if kind != CT_IMAGE:
        return "refused_not_ct"
    if "LOCALIZER" in image_type:
        return "refused_localizer"
    if image_type & SCREEN_WORDS:
        return "refused_secondary_capture"
    if text_of(dataset, "BurnedInAnnotation").upper() == "YES":
        return "refused_burned_in"
    if not dataset.get("Rows") or not dataset.get("Columns"):
        return "failed_unreadable"
    if text_of(dataset, "NumberOfFrames") not in ("", "1"):
        return "refused_enhanced_multiframe"
    if text_of(dataset, "PhotometricInterpretation") == "MONOCHROME1":
        return "refused_monochrome1"
    if text_of(dataset, "SamplesPerPixel") not in ("", "1") or text_of(dataset, "RescaleType").upper() not in (
        "",
        "HU",
    ):
        return "refused_not_hu"
    if slope is None or intercept is None or slope[0] == 0:
        return "refused_not_hu"
    if str(dataset.file_meta.get("TransferSyntaxUID", "")) in LOSSY_JPEG:
        return "refused_lossy_jpeg"
    if max(dataset.Rows, dataset.Columns) > MAX_SIDE:
        return "failed_implausible_size"
    return OK


def text_of(dataset: "Dataset", tag: str) -> str:
    """A header value as text, several joined by a backslash; empty where absent."""
    from pydicom.multival import MultiValue

    value = dataset.get(tag)
    if value is None:
        return ""
    return "\\".join(str(part) for part in value) if isinstance(value, MultiValue) else str(value).strip(" \0")


def numbers_of(dataset: "Dataset", *wanted: tuple[str, int]) -> npt.NDArray[np.float64] | None:
    """The values of some tags in one array; None where one is absent, of another length or not finite."""
    parts: list[float] = []
    for tag, length in wanted:
        try:
            values = [float(part) for part in text_of(dataset, tag).split("\\")]
        except ValueError:
            return None
        if len(values) != length:
            return None
        parts += values
    array = np.array(parts, dtype=np.float64)
    return array if np.isfinite(array).all() else None
