"""What the header of a DICOM x-ray says: what object it is, from which side, whose, when, and its grey scale."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from extractors.cxr.grey import GreyScale, Lut, Window
from extractors.dicom.elements import Header, quiet, text_of
from extractors.dicom.pixels import PixelFormat
from extractors.dicom.time import DATE_TIMES, PAIRS, Moment, moments_of
from extractors.items import OK

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

CR, RF = "1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.5.1.4.1.1.12.2"
DX, DX_RAW = "1.2.840.10008.5.1.4.1.1.1.1", "1.2.840.10008.5.1.4.1.1.1.1.1"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
MODALITIES = frozenset(("CR", "DX", "RF"))
_SCREENS = ("SCREEN SAVE", "SCREENSAVE", "SCREENSHOT")
_TIMES = (*DATE_TIMES, *(tag for pair in PAIRS for tag in pair), "TimezoneOffsetFromUTC")
_TAGS = [
    "SpecificCharacterSet", "ImageType", "SOPClassUID", "PresentationIntentType", "AccessionNumber", "Modality",
    "AnatomicRegionSequence", "PatientID", "IssuerOfPatientID", "BodyPartExamined", "ViewPosition",
    "ImagerPixelSpacing", "StudyInstanceUID", "SeriesInstanceUID", "Laterality", "ImageLaterality", "SamplesPerPixel",
    "PhotometricInterpretation", "NumberOfFrames", "PixelRepresentation", "BitsStored", "PixelSpacing",
    "PixelPaddingValue", "PixelPaddingRangeLimit", "BurnedInAnnotation", "WindowCenter", "WindowWidth",
    "VOILUTFunction", "RescaleIntercept", "RescaleSlope", "ModalityLUTSequence", "VOILUTSequence", "ViewCodeSequence",
    "PresentationLUTShape", *_TIMES,
]  # fmt: skip


@dataclass(frozen=True)
class FilmHeader:
    """A header's texts by keyword, its time, and its grey scale.

    Attributes:
        kind: `ok`, or the verdict of what is no x-ray, whatever a configuration says.
        capture, raw: it is a secondary capture of an x-ray; a detector's raw signal.
        view_code, region: the meanings of codes.
    """

    texts: Mapping[str, str]
    kind: str
    capture: bool
    raw: bool
    view_code: str
    region: str
    scale: GreyScale


def kind_of(header: Header) -> str:
    """`ok` for what may be an x-ray by its class, else the verdict; read without pydicom, as most of a tree is CT."""
    kind = header.text("SOPClassUID")
    if not kind:
        return "failed_unreadable"
    if kind == SECONDARY_CAPTURE or kind.startswith(SECONDARY_CAPTURE + "."):
        return OK if header.text("Modality").upper() in MODALITIES else "refused_secondary_capture"
    return OK if kind in (CR, RF, DX, DX_RAW) else "refused_not_cxr"


def read_header(header: Header, form: PixelFormat) -> FilmHeader:
    """The rest of a header whose class is an x-ray's; pydicom raises almost anything on damaged bytes."""
    import pydicom

    file: BinaryIO = header.file
    file.seek(0)
    marked = file.read(132)[128:] == b"DICM"
    file.seek(0)
    with quiet():
        dataset = pydicom.dcmread(file, stop_before_pixels=True, force=not marked, specific_tags=list(_TAGS))
        texts = {keyword: _text(dataset, keyword) for keyword in _TAGS if not keyword.endswith("Sequence")}
        scale = _scale(dataset, texts, form)
        view_code, region = (_meaning(dataset, name) for name in ("ViewCodeSequence", "AnatomicRegionSequence"))
    screen = any(word in texts["ImageType"].upper() for word in _SCREENS)
    return FilmHeader(
        texts=texts,
        kind="refused_secondary_capture" if screen else OK,
        capture=texts["SOPClassUID"].startswith(SECONDARY_CAPTURE),
        raw=texts["SOPClassUID"] == DX_RAW or texts["PresentationIntentType"].upper() == "FOR PROCESSING",
        view_code=view_code,
        region=region,
        scale=scale,
    )


def moments(header: FilmHeader, site_timezone: str | None) -> tuple[Moment, ...]:
    """The times that a header gives."""
    return moments_of({tag: header.texts[tag] for tag in _TIMES}, site_timezone)


def _text(dataset: "Dataset", keyword: str) -> str:
    """An element as text; empty where its value is none of its kind, as words for a number."""
    try:
        return text_of(dataset, keyword)
    except (ValueError, TypeError, ArithmeticError):
        return ""


def _meaning(dataset: "Dataset", sequence: str) -> str:
    items = dataset.get(sequence) or []
    return text_of(items[0], "CodeMeaning") if len(items) else ""


def _scale(dataset: "Dataset", texts: Mapping[str, str], form: PixelFormat) -> GreyScale:
    modality = _lut(dataset, "ModalityLUTSequence", form, signed=form.signed)
    slope, intercept = _numbers(texts["RescaleSlope"]), _numbers(texts["RescaleIntercept"])
    rescale = (slope[0] if slope and slope[0] else 1.0, intercept[0] if intercept else 0.0)
    # What a VOI table takes is signed where the modality step can give values below zero.
    negative = modality is None and (form.signed or rescale[0] < 0 or rescale[1] < 0)
    windows, unusable = _windows(texts)
    photometric = texts["PhotometricInterpretation"].upper()
    return GreyScale(
        modality=rescale if modality is None else modality,
        voi=_lut(dataset, "VOILUTSequence", form, signed=negative),
        window=windows[0] if windows else None,
        unusable_windows=unusable,
        inverted="MONOCHROME1" in photometric or "INVERSE" in texts["PresentationLUTShape"].upper(),
        padding=_padding(texts, form),
    )


def _lut(dataset: "Dataset", sequence: str, form: PixelFormat, *, signed: bool) -> Lut | None:
    """The first table of a sequence (PS3.3 C.11.1.1, C.11.2.1.1); None where there is none that can be read."""
    items = dataset.get(sequence) or []
    if not len(items) or "LUTDescriptor" not in items[0] or "LUTData" not in items[0]:
        return None
    number, first, bits = (int(value) for value in items[0].LUTDescriptor)
    data = items[0].LUTData
    if isinstance(data, bytes):
        entries = np.frombuffer(data, "<u2" if form.little else ">u2").astype(np.float64)
    else:
        entries = np.atleast_1d(np.asarray(data, dtype=np.float64))
    number = number & 0xFFFF or 1 << 16  # where it is read as signed
    if bits <= 8 and len(entries) == (number + 1) // 2 < number:  # two entries of 8 bits in one of 16
        whole = entries.astype(np.int64)
        entries = np.stack([whole & 255, whole >> 8], axis=1).ravel()[:number].astype(np.float64)
    if not len(entries) or len(entries) < number:
        return None
    if signed and first >= 1 << 15:
        first -= 1 << 16
    entries = entries[:number] % (1 << 16)
    stated, needed = 1 << min(max(bits, 1), 16), 1 << int(entries.max()).bit_length()
    # Some say 16 bits of a table that has 12.
    return Lut(float(first), entries, float((stated if stated // 2 <= needed <= stated else needed) - 1))


def _windows(texts: Mapping[str, str]) -> tuple[list[Window], int]:
    """Windows that can be used, in order, and how many cannot."""
    centres, widths = _numbers(texts["WindowCenter"]), _numbers(texts["WindowWidth"])
    function = texts["VOILUTFunction"].upper() or "LINEAR"
    pairs = list(zip(centres, widths, strict=False))
    usable = [Window(centre, width, function) for centre, width in pairs if width > 0]
    return usable, len(pairs) - len(usable)


def _numbers(text: str) -> list[float]:
    """The finite numbers of a text of values; none of them where one is no number."""
    try:
        values = [float(part) for part in text.split("\\") if part.strip()]
    except ValueError:
        return []
    return values if np.isfinite(values).all() else []


def _padding(texts: Mapping[str, str], form: PixelFormat) -> tuple[float, float] | None:
    value, limit = _numbers(texts["PixelPaddingValue"]), _numbers(texts["PixelPaddingRangeLimit"])
    if not value:
        return None
    ends = np.array([value[0], limit[0] if limit else value[0]])
    # The tag is often written unsigned although the pixels are signed, or the other way round.
    half = 1 << (form.allocated - 1)
    ends = np.where(ends >= half, ends - 2 * half, ends) if form.signed else np.where(ends < 0, ends + 2 * half, ends)
    return float(ends.min()), float(ends.max())


def spacing_of(texts: Mapping[str, str]) -> tuple[list[float] | None, str]:
    """Millimetres a row and a column, and the tag that says so: at the patient where known, else at the detector."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing"):
        values = _numbers(texts[keyword])
        if len(values) == 2 and all(0.01 <= value <= 10 for value in values):
            return [round(value, 6) for value in values], keyword
    return None, ""
