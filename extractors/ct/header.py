"""What one file is: a DICOM object, of which the header says whether it can be a CT slice and whether it is whole, or a
NIfTI (`extractors.ct.nifti`).

Of DICOM, reading stops before the pixels. A verdict here is about the file alone (or one frame of it);
`extractors.ct.index` judges volumes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import xxhash

from extractors.ct.geometry import plausible_spacing
from extractors.ct.image_type import Derivation, derivation, refusal
from extractors.ct.multiframe import ENHANCED_CT, frames_of
from extractors.ct.nifti import NiftiVolume, examine_nifti
from extractors.dicom.elements import Header, numbers_of, quiet, read_elements
from extractors.dicom.files import MEMBER, SINGLE, archive_kind, disk_stamp, is_regular, members
from extractors.dicom.pixels import DECODERS, NATIVE, is_whole, pixel_format
from extractors.dicom.time import DATE_TIMES, PAIRS, Moment, clocks_of, moments_of
from extractors.items import BESIDE_FILES, EDGE_BYTES, OK, VerdictError, stream_fingerprint
from extractors.nifti.header import is_named_nifti, version_of
from extractors.trees import Entry

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"
LOSSY_JPEG = {f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 52, 53, 54, 55, 56)}
DICOM_SUFFIXES = {".dcm", ".dicom", ".dic", ".ima"}
SLOPES, MAX_INTERCEPT = (1e-4, 1e3), 1e6  # scanners write a slope of 1, sometimes 0.1 to 16, and -8,192 to 0
_TIME_TAGS = (*DATE_TIMES, *(tag for pair in PAIRS for tag in pair), "TimezoneOffsetFromUTC")


@dataclass(frozen=True)
class SliceHeader:
    """One slice's header, as far as it could be read: a DICOM file's, or one of its frames'."""

    path: str
    verdict: str  # of this slice alone
    fingerprint: str = ""
    pixels: str = ""  # of the pixel data's length and ends, the same in every copy of them
    syntax: str = ""  # how the pixels are stored
    stamp: str = ""  # of the file as it was, to see later whether it changed
    instance: str = ""
    number: int | None = None  # InstanceNumber
    series: str = ""
    owner: str = ""  # of a damaged slice without a series: the only series beside it
    study: str = ""
    accession: str = ""
    subject: str = ""
    issuer: str = ""  # of `subject`, in one spelling
    moments: tuple[Moment, ...] = ()
    clocks: tuple[float | None, ...] = ()  # when it was acquired, made, and its series, in seconds
    key: tuple[Any, ...] = ()  # what slices of one volume share: frame of reference, matrix, temporal position, stack
    acquisition: str = ""
    kernel: str = ""
    kind: tuple[str, ...] = ()  # what slices of one reconstruction share besides kernel and thickness
    cardiac: tuple[str, ...] = ()  # where in the heart's cycle
    derivation: Derivation = Derivation.ORIGINAL
    frame: int | None = None  # of a multi-frame object
    plane: npt.NDArray[np.float64] | None = None  # (8,) orientation and spacing
    position: npt.NDArray[np.float64] | None = None  # (3,) mm
    thickness: float | None = None


Found = SliceHeader | NiftiVolume


@dataclass(frozen=True)
class Findings:
    """What some files were: slices and volumes, fingerprints of files that are neither, and how many were read."""

    slices: list[Found]
    foreign: list[str]
    files: int


def examine(root: Path, entries: list[Entry], site_timezone: str | None) -> Findings:
    """The headers of some files of a tree, as `extractors.trees.walk` names them."""
    slices: list[Found] = []
    foreign: list[str] = []
    with quiet():
        for relative, kind in entries:
            if kind != "file":
                slices.append(SliceHeader(relative, BESIDE_FILES[kind]))
                continue
            found, others = _examine(root / relative, relative, site_timezone)
            slices += found
            foreign += others
    return Findings(slices, foreign, len(entries))


def _examine(path: Path, relative: str, site_timezone: str | None) -> tuple[list[Found], list[str]]:
    try:
        status = path.stat()
        if not is_regular(status):
            return [], [relative]
        with path.open("rb") as file:
            size, stamp = status.st_size, disk_stamp(status)
            kind = archive_kind(file.read(512))
            if kind is not None:
                return _archive(file, size, relative, stamp, site_timezone)
            fingerprint = stream_fingerprint(file, size)
            found = read_header(file, size, relative, fingerprint, stamp, site_timezone)
    except OSError:
        return [_unreadable(relative)], []
    return ([], [fingerprint] if found else []) if isinstance(found, bool) else (found, [])


def _unreadable(path: str, fingerprint: str = "", verdict: str = "failed_unreadable") -> Found:
    """A file of which nothing is known; one that is called NIfTI is no slice of the series beside it."""
    return (NiftiVolume if is_named_nifti(path) else SliceHeader)(path, verdict, fingerprint)


def _archive(
    file: BinaryIO, size: int, relative: str, stamp: str, site_timezone: str | None
) -> tuple[list[Found], list[str]]:
    """An archive's slices and volumes. One that is damaged gives none: what follows the damage would be missing from a
    volume.

    An archive without any object that is read is one file that is none, unless its name says that it is one.
    """
    kind = archive_kind(_head(file))
    slices: dict[str, list[Found]] = {}
    foreign: list[str] = []
    fingerprint = stream_fingerprint(file, size)
    failed = _unreadable(relative, fingerprint)
    if kind is None:
        return [failed], []
    try:
        for member in members(file, kind):
            path = f"{relative}{MEMBER}{member.name}"
            if member.file is None:
                slices[path] = [_unreadable(path)]
                continue
            inner = stream_fingerprint(member.file, member.size)
            if archive_kind(_head(member.file)) is not None:
                slices[path] = [SliceHeader(path, "refused_nested_archive", inner, series=relative)]
                continue
            found = read_header(member.file, member.size, path, inner, stamp, site_timezone)
            if not isinstance(found, bool):
                slices[path] = found
            elif found:
                foreign.append(inner)
    except VerdictError as error:
        return [_unreadable(relative, fingerprint, error.verdict)], []
    except Exception:  # zipfile, tarfile and their decompressors raise many things on damaged bytes
        return [failed], []
    nested = all(header.verdict == "refused_nested_archive" for part in slices.values() for header in part)
    if nested and not any(path.lower().endswith((".zip", ".tar", ".gz", ".bz2", ".xz", ".tgz")) for path in slices):
        return ([failed], []) if is_named_nifti(relative) and not slices else ([], [fingerprint])
    return [header for part in slices.values() for header in part], foreign


def _head(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read(512)


def read_header(
    file: BinaryIO, size: int, relative: str, fingerprint: str, disk: str, site_timezone: str | None
) -> "list[Found] | bool":
    """A data set's slices, or a NIfTI's volume; or for what is neither, whether it counts as a foreign file (a DICOMDIR
    does not).

    Args:
        disk: `disk_stamp` of the file on the disk.
    """
    stamp = stamp_of(disk, fingerprint)
    broken = SliceHeader(relative, "failed_unreadable", fingerprint, stamp=stamp)
    head = _head(file)
    nifti = version_of(head) is not None or is_named_nifti(relative.removesuffix(MEMBER + SINGLE))
    if nifti and head[128:132] != b"DICM":
        return [examine_nifti(file, size, NiftiVolume(relative, "failed_unreadable", fingerprint, stamp))]
    suspect = PurePosixPath(relative).suffix.lower() in DICOM_SUFFIXES or head[128:132] == b"DICM"
    bare = head[:2] in (b"\x08\x00", b"\x02\x00")  # a data set without the 128-byte preamble
    if not suspect and not bare:
        return True
    try:
        header = read_elements(file, size)
        if header.media_class == MEDIA_DIRECTORY:
            return False
        if not header.text("SOPClassUID") and not suspect:
            return True
        return [*_slices(header, replace(broken, pixels=_pixel_print(header), syntax=header.syntax), site_timezone)]
    except VerdictError as error:
        return [replace(broken, verdict=error.verdict)]
    except Exception:  # pydicom raises almost anything on damaged bytes; the verdict says what matters
        return [broken] if suspect else True


def _pixel_print(header: Header) -> str:
    """Length and xxh3 of the first and last 64 KiB of a data set's pixel data; empty where it has none."""
    if header.pixels is None:
        return ""
    at, length = header.pixels
    end = header.size if length is None else min(at + length, header.size)
    header.file.seek(at)
    first = header.file.read(min(EDGE_BYTES, end - at))
    header.file.seek(max(at, end - EDGE_BYTES))
    last = header.file.read(end - max(at, end - EDGE_BYTES))
    return f"{end - at}:{xxhash.xxh3_64_hexdigest(first)}:{xxhash.xxh3_64_hexdigest(last)}"


def stamp_of(disk: str, fingerprint: str) -> str:
    """What a file was when it was indexed. It stays in the private folder: a time of change may tell a date."""
    return f"{disk}:{xxhash.xxh3_64_hexdigest(fingerprint.encode())}"


def _slices(header: Header, broken: SliceHeader, site_timezone: str | None) -> list[SliceHeader]:
    values = header.values
    verdict = _kind(values)
    if verdict == OK and header.text("SOPClassUID") in ENHANCED_CT:
        verdict, frames = _pixels(header), [dict(values)]
        if verdict == OK:
            try:
                frames = frames_of(header)
            except VerdictError as error:
                verdict = error.verdict
        each = [_grey(frame) if verdict == OK else verdict for frame in frames]
        if len(set(each)) == 1 and each[0] != OK:
            return [_slice(frames[0], each[0], broken, site_timezone)]
        return [
            replace(_slice(frame, found, broken, site_timezone), frame=number)
            for number, (frame, found) in enumerate(zip(frames, each, strict=True))
        ]
    if verdict == OK:
        verdict = _grey(values)
    if verdict == OK:
        verdict = _pixels(header)
    if verdict == OK and header.whole("NumberOfFrames", 1) != 1:
        verdict = "failed_missing_geometry"
    return [_slice(values, verdict, broken, site_timezone)]


def _slice(values: Mapping[str, str], verdict: str, broken: SliceHeader, site_timezone: str | None) -> SliceHeader:
    plane, position = numbers_of(values, ("ImageOrientationPatient", 6), ("PixelSpacing", 2)), None
    if plane is not None:
        position = numbers_of(values, ("ImagePositionPatient", 3))
    if verdict == OK and (plane is None or position is None):
        verdict = "failed_missing_geometry"
    elif verdict == OK and plane is not None and not plausible_spacing(plane[6:]):
        verdict = "failed_implausible_pixel_size"
    number = numbers_of(values, ("InstanceNumber", 1))
    thickness = numbers_of(values, ("SliceThickness", 1))
    shared = ("FrameOfReferenceUID", "Rows", "Columns", "TemporalPositionIdentifier", "StackID")
    return replace(
        broken,
        verdict=verdict,
        instance=values.get("SOPInstanceUID", ""),
        number=None if number is None else int(number[0]),
        series=values.get("SeriesInstanceUID", ""),
        study=values.get("StudyInstanceUID", ""),
        accession=values.get("AccessionNumber", ""),
        subject=values.get("PatientID", ""),
        issuer=" ".join(values.get("IssuerOfPatientID", "").upper().split()),
        moments=moments_of({tag: values.get(tag, "") for tag in _TIME_TAGS}, site_timezone),
        clocks=clocks_of(values),
        key=tuple(values.get(keyword, "") for keyword in shared),
        acquisition=_plain(values.get("AcquisitionNumber", "")),
        kernel=values.get("ConvolutionKernel", ""),
        kind=(values.get("ImageType", ""), _plain(values.get("KVP", "")), _plain(values.get("SliceThickness", ""))),
        cardiac=tuple(_plain(values.get(keyword, "")) for keyword in ("CardiacPhase", "TriggerTime")),
        derivation=derivation(values),
        plane=plane,
        position=position,
        thickness=None if thickness is None else float(thickness[0]),
    )


def _plain(number: str) -> str:
    """A number in one spelling; another text as it is."""
    try:
        return f"{float(number):g}"
    except ValueError:
        return number


def _kind(values: Mapping[str, str]) -> str:
    """What object a file is, by its SOP class and what it says of itself."""
    kind = values.get("SOPClassUID", "")
    if not kind:
        return "failed_unreadable"
    if kind == SECONDARY_CAPTURE or kind.startswith(SECONDARY_CAPTURE + "."):
        return "refused_secondary_capture"
    if kind != CT_IMAGE and kind not in ENHANCED_CT:
        return "refused_not_ct"
    return refusal(values) or ("refused_burned_in" if values.get("BurnedInAnnotation", "").upper() == "YES" else OK)


def _grey(values: Mapping[str, str]) -> str:
    """Whether a slice's or a frame's grey values are Hounsfield units."""
    if found := refusal(values):
        return found
    if not values.get("Rows") or not values.get("Columns"):
        return "failed_unreadable"
    if values.get("PhotometricInterpretation") == "MONOCHROME1":
        return "refused_monochrome1"
    if values.get("SamplesPerPixel", "") not in ("", "1") or values.get("RescaleType", "").upper() not in ("", "HU"):
        return "refused_not_hu"
    slope, intercept = numbers_of(values, ("RescaleSlope", 1)), numbers_of(values, ("RescaleIntercept", 1))
    if slope is None or intercept is None:
        return "refused_not_hu"
    plausible = SLOPES[0] <= abs(slope[0]) <= SLOPES[1] and abs(intercept[0]) <= MAX_INTERCEPT
    return OK if plausible else "refused_not_hu"


def _pixels(header: Header) -> str:
    """Whether the pixels can be read, as far as the header and the ends of the file tell."""
    if header.syntax in LOSSY_JPEG:
        return "refused_lossy_jpeg"
    if header.syntax not in NATIVE and header.syntax not in DECODERS:
        return "failed_unreadable"
    try:
        form = pixel_format(header)
        return OK if is_whole(header, form, EDGE_BYTES) else "failed_unreadable"
    except VerdictError as error:
        return error.verdict
    except OSError:
        return "failed_unreadable"
