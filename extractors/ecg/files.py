"""Which files of a tree are ECGs, by content, and which belong to a WFDB record of another file."""

from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from extractors.ecg.dicom_waveform import may_be_waveform
from extractors.ecg.muse import is_muse
from extractors.ecg.recording import RefusedError
from extractors.ecg.wfdb_record import ENDING, GAP, header_of
from extractors.trees import Entry, walk

HEAD_BYTES = 16_384  # MUSE's root stands behind a declaration and a document type
Kind = str  # "wfdb", "dicom" or "muse"


@dataclass
class Found:
    """A tree's ECG files, in order, all others, and what keeps files from being found."""

    files: list[tuple[str, Kind]] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    beside: list[Entry] = field(default_factory=list)


def find_files(root: Path) -> Found:
    """Files of every name are looked into; WFDB headers are known by their ending, as their signals have no mark.

    A header that another one names as its segment is no record of its own, and neither is a signal that a header names.
    """
    found, named = Found(), set()
    others = []
    for entry in walk(root):
        path = entry.path
        if entry.kind != "file":
            found.beside.append(entry)
            continue
        kind = kind_of(root, path)
        if kind is None:
            others.append(path)
            continue
        found.files.append((path, kind))
        if kind == "wfdb":
            named |= _named_by(root, path)
    found.files = [(path, kind) for path, kind in found.files if path not in named]
    found.others = [path for path in others if path not in named]
    return found


def kind_of(root: Path, path: str) -> Kind | None:
    """What kind of ECG a file may be."""
    if path.endswith(ENDING):
        return "wfdb"
    try:
        file = root / path
        if not file.is_file():  # a pipe may give bytes for ever
            return None
        with file.open("rb") as opened:
            head = opened.read(HEAD_BYTES)
    except OSError:
        return None
    if may_be_waveform(file, head):
        return "dicom"
    return "muse" if is_muse(head) else None


def files_of(root: Path, path: str, kind: Kind) -> list[str]:
    """The files of a recording: its own, and what its header, or the headers of its segments, name beside it."""
    if kind != "wfdb":
        return [path]
    named = sorted(_named_by(root, path))
    signals = {signal for name in named if name.endswith(ENDING) for signal in _named_by(root, name)}
    return [path, *sorted({*named, *signals})]


def _named_by(root: Path, path: str) -> set[str]:
    """The files that a header names, beside it."""
    folder = PurePosixPath(path).parent
    try:
        header = header_of(root / path)
    except (RefusedError, OSError):
        return set()
    ending = ENDING if header.segments else ""
    return {(folder / (name + ending)).as_posix() for name in header.names if name != GAP}
