"""What kind of file a file is, by its first bytes, and by its ending only where bytes do not tell.

It serves to say what a tree holds that nobody reads. The answer is one of the names in this file, never a part of a
file's name.
"""

import re
import zlib
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath

from extractors.trees import folders_of

HEAD_BYTES = 1024
EMPTY, OTHER, UNREADABLE = "empty file", "other", "unreadable"

# By offset and bytes. The first that fits: what is more particular stands before what is less.
_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (128, b"DICM", "DICOM"), (344, b"n+1\0", "NIfTI"), (344, b"ni1\0", "NIfTI"),
    (4, b"n+2\0\r\n\x1a\n", "NIfTI"), (4, b"ni2\0\r\n\x1a\n", "NIfTI"),
    (0, b"\x89HDF\r\n\x1a\n", "HDF5"), (512, b"\x89HDF\r\n\x1a\n", "HDF5"), (0, b"MATLAB 5.0", "MATLAB"),
    (0, b"NRRD000", "NRRD"), (0, b"ObjectType = ", "MetaImage"), (0, b"CDF\x01", "NetCDF"), (0, b"CDF\x02", "NetCDF"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG"), (0, b"\xff\xd8\xff", "JPEG"), (0, b"\0\0\0\x0cjP  \r\n", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"), (0, b"GIF8", "GIF"), (8, b"WEBP", "WebP"), (0, b"ZISRAWFILE", "CZI"),
    (0, b"II*\0", "TIFF"), (0, b"MM\0*", "TIFF"), (0, b"II+\0", "TIFF"), (0, b"MM\0+", "TIFF"),
    (0, b"8BPS", "Photoshop"), (4, b"ftyp", "MP4"), (8, b"AVI ", "AVI"), (8, b"WAVE", "WAV"),
    (0, b"\x1aE\xdf\xa3", "Matroska"), (16, b"SCPECG", "SCP-ECG"), (0, b"\xffBIOSEMI", "BDF"),
    (0, b"0       ", "EDF"), (0, b"%PDF", "PDF"), (0, b"{\\rtf", "RTF"),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "Microsoft Office"), (0, b"PK\x03\x04", "ZIP"),
    (0, b"PK\x05\x06", "ZIP"), (0, b"7z\xbc\xaf\x27\x1c", "7-Zip"), (0, b"Rar!\x1a\x07", "RAR"), (0, b"BZh", "bzip2"),
    (0, b"\xfd7zXZ\0", "xz"), (0, b"\x28\xb5\x2f\xfd", "Zstandard"), (257, b"ustar", "tar"), (0, b"PAR1", "Parquet"),
    (0, b"ARROW1", "Arrow"), (8, b"DUCK", "DuckDB"), (0, b"SQLite format 3\0", "SQLite"), (0, b"\x93NUMPY", "NumPy"),
    (0, b"BM", "BMP"),
)  # fmt: skip
_GZIP = b"\x1f\x8b\x08"
# Kinds without bytes of their own, by the ending of a name in lower case.
_ENDINGS: Mapping[str, str] = {
    ".nii": "NIfTI", ".hdr": "Analyze", ".img": "Analyze", ".mhd": "MetaImage", ".mha": "MetaImage",
    ".raw": "raw pixels", ".mrxs": "MRXS", ".vms": "VMS", ".dcm": "DICOM", ".ima": "DICOM", ".hea": "WFDB",
    ".atr": "WFDB", ".edf": "EDF", ".xml": "XML", ".html": "HTML", ".json": "JSON", ".ndjson": "JSON", ".csv": "CSV",
    ".tsv": "CSV", ".yaml": "YAML", ".yml": "YAML", ".txt": "text", ".md": "text", ".log": "text",
    ".doc": "Microsoft Office", ".docx": "Microsoft Office", ".xlsx": "Microsoft Office", ".pptx": "Microsoft Office",
    ".npz": "NumPy", ".pt": "PyTorch", ".pth": "PyTorch", ".pkl": "pickle", ".exe": "program", ".dll": "program",
    ".mat": "MATLAB", ".safetensors": "safetensors",
}  # fmt: skip
# A WFDB header's first line: the record's name, the number of its signals, and perhaps their frequency and length.
_WFDB = re.compile(rb"(?:#[^\n]*\r?\n|\r?\n)*[\w/.-]+ +\d{1,4}(?: +\d[\d./()e+-]*(?: +\d+[^\n]*)?)?\r?\n")
_SIGNALS = (".dat", ".mat", ".xyz")  # of a WFDB header of the same name
_OFFICE_IN_ZIP, _GZIPPED = {".docx", ".xlsx", ".pptx", ".npz"}, " (gzip)"


def kinds_of(root: Path, left_out: Collection[str] = ()) -> Counter[str]:
    """How many files of each kind a tree holds.

    Args:
        left_out: paths below the root that are not counted.
    """
    found: Counter[str] = Counter()
    for folder in folders_of(root):
        records = {name[:-4].lower() for name in folder.files if name.lower().endswith(".hea")}
        for name in folder.files:
            if folder.inside(name) not in left_out:
                signal = PurePosixPath(name).suffix.lower() in _SIGNALS and name[:-4].lower() in records
                found["WFDB" if signal else kind_of(root / folder.inside(name))] += 1
    return found


def kind_of(path: Path) -> str:
    """What kind of file it is; EMPTY, OTHER or UNREADABLE where it is none that has a name here."""
    try:
        if not path.is_file():  # a pipe may give bytes for ever
            return OTHER
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError:
        return UNREADABLE
    return kind_of_bytes(head, path.name.lower()) if head else EMPTY


def kind_of_bytes(head: bytes, name: str) -> str:
    """What kind of file begins with `head`, HEAD_BYTES at best, and is called `name`, in lower case."""
    if head.startswith(_GZIP):
        inside = kind_of_bytes(_unzipped(head), name.removesuffix(".gz"))
        return "gzip" if inside in (OTHER, "gzip") else inside + _GZIPPED
    ending = PurePosixPath(name).suffix
    for offset, magic, kind in _MAGIC:
        if head.startswith(magic, offset):
            return _ENDINGS[ending] if kind == "ZIP" and ending in _OFFICE_IN_ZIP else kind
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<?xml"):
        return "XML"
    return OTHER if ending == ".hea" and not _WFDB.match(head) else _ENDINGS.get(ending, OTHER)


def _unzipped(head: bytes) -> bytes:
    try:
        return zlib.decompressobj(wbits=31).decompress(head, HEAD_BYTES)
    except zlib.error:
        return b""
