"""Which files of a tree are slides, by content, and which files make one slide (MRXS, DICOM)."""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from extractors.dicom.elements import quiet
from extractors.items import VerdictError
from extractors.trees import Entry, walk
from extractors.wsi.tiff import MAGIC

SLIDE_ENDINGS = frozenset(
    (".svs", ".svslide", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".czi")
)  # a broken file of these names was meant to be a slide
_WSI_CLASS = "1.2.840.10008.5.1.4.1.1.77.1.6"
_NO_LEVEL = frozenset(("LABEL", "OVERVIEW", "LOCALIZER", "THUMBNAIL"))
_CZI = b"ZISRAWFILE"
_TAGS = ["SOPClassUID", "SeriesInstanceUID", "ImageType", "BurnedInAnnotation", "TotalPixelMatrixColumns"]
_NAMES = {"study_uid": "StudyInstanceUID", "series_uid": "SeriesInstanceUID", "accession_number": "AccessionNumber"}


@dataclass(frozen=True)
class Instance:
    """What a DICOM slide's instance says of itself that decides here; `names` never leave the private folder.

    Attributes:
        names: what a crosswalk may match it by.
    """

    series: str
    volume: bool
    burned_in: bool
    width: int
    names: Mapping[str, str]


def instance_of(path: Path) -> Instance | None:
    """The instance in a file, or None where it is no DICOM whole-slide image. Reads no pixels."""
    import pydicom

    try:
        with path.open("rb") as file:
            if file.read(132)[128:] != b"DICM":
                return None
        with quiet():  # pydicom's warnings quote values
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=[*_TAGS, *_NAMES.values()])
            if str(header.get("SOPClassUID", "")) != _WSI_CLASS:
                return None
            return Instance(
                series=str(header.get("SeriesInstanceUID", "")),
                volume=_NO_LEVEL.isdisjoint(str(part).upper() for part in header.get("ImageType") or ()),
                burned_in=str(header.get("BurnedInAnnotation") or "").strip().upper() == "YES",
                width=int(header.get("TotalPixelMatrixColumns") or 0),
                names={name: str(header.get(keyword) or "").strip() for name, keyword in _NAMES.items()},
            )
    except Exception:  # whatever a damaged header makes the parser raise: it is no slide that could be read
        return None


def names_of(path: Path) -> Mapping[str, str]:
    """What a crosswalk may match a slide by; nothing where it is no DICOM."""
    instance = instance_of(path)
    return {} if instance is None else instance.names


def file_inside(root: Path, relative: str) -> Path:
    """The file that a manifest names; a name that leaves the tree is as good as missing.

    Raises:
        VerdictError: failed_missing_file, failed_unreadable.
    """
    parts = PurePosixPath(relative)
    try:
        if not relative or parts.is_absolute() or ".." in parts.parts or not (root / parts).is_file():
            raise VerdictError("failed_missing_file")
    except (OSError, ValueError) as error:  # a folder that may not be entered; a name with a NUL
        raise VerdictError("failed_unreadable") from error
    return root / parts


def files_of(path: Path) -> list[Path]:
    """The files of a slide: itself first, then MRXS's folder of data, or the rest of a DICOM series in its folder.

    Raises:
        VerdictError: refused_burned_in where an instance of a DICOM series says so; failed_unreadable.
    """
    try:
        if path.suffix.lower() == ".mrxs":
            return [path, *(part for part in sorted(path.with_suffix("").glob("*")) if part.is_file())]
        instance = instance_of(path)
        if instance is None:
            return [path]
        beside = [
            (part, instance_of(part)) for part in sorted(path.parent.iterdir()) if part != path and part.is_file()
        ]
    except OSError as error:
        raise VerdictError("failed_unreadable") from error
    series = [(part, other) for part, other in beside if other is not None and other.series == instance.series]
    if instance.burned_in or any(other.burned_in for _, other in series):
        raise VerdictError("refused_burned_in")
    return [path, *(part for part, _ in series)]


@dataclass(frozen=True)
class Found:
    """What a folder holds.

    Attributes:
        slides: paths, posix, sorted, of everything that is a slide or has a slide's name.
        beside: what is no file and may hide slides, as `extractors.trees.walk` names it.
    """

    slides: list[str]
    beside: list[Entry]


def find_slides(root: Path) -> list[str]:
    """The slides below `root`, see `search`."""
    return search(root).slides


def search(root: Path) -> Found:
    """The slides below `root`, and what keeps others from being found.

    One path stands for a slide of many files: an MRXS file for its folder, a DICOM series' largest image of the
    pyramid for the series. Hidden files are passed over; links to folders are not followed.
    """
    found: list[str] = []
    beside: list[Entry] = []
    series: dict[tuple[str, str], tuple[bool, int, str]] = {}
    for entry in walk(root, hidden=False):
        # A name that is no UTF-8 can stand in no manifest: it is listed as a file that cannot be found.
        relative = os.fsencode(entry.path).decode("utf-8", "replace")
        path = root / entry.path
        if entry.kind != "file":
            beside.append(Entry(relative, entry.kind))
            continue
        # A link to nowhere is a slide that is missing; a pipe is none.
        if path.name.startswith(".") or not (path.is_file() or path.is_symlink()):
            continue
        if path.suffix.lower() in SLIDE_ENDINGS or _magic(path):
            found.append(relative)
        elif (instance := instance_of(path)) is not None:
            key, rank = (relative.rpartition("/")[0], instance.series), (instance.volume, instance.width)
            if key not in series or rank > series[key][:2]:
                series[key] = (*rank, relative)
    return Found(sorted(found + [relative for *_, relative in series.values()]), beside)


def not_listed(root: Path, slides: Sequence[str], listed: Collection[str]) -> list[str]:
    """Those of `slides` that no path in `listed` names, be it by another file of the same slide."""
    known = set(listed) & set(slides)
    for path in set(listed) - known:
        try:
            known |= {part.relative_to(root).as_posix() for part in files_of(file_inside(root, path))}
        except VerdictError:
            continue
    return [path for path in slides if path not in known]


def _magic(path: Path) -> bool:
    """Whether a file without a slide's name is a TIFF or a CZI; one that may not be read is judged by its name."""
    try:
        with path.open("rb") as file:
            start = file.read(len(_CZI))
    except OSError:
        return path.suffix.lower() in (".tif", ".tiff")
    return start[:4] in MAGIC or start == _CZI
