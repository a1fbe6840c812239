"""What files are that no extractor reads."""

import gzip
import io
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from extractors.kinds import kind_of, kinds_of
from tests.support.images.phantoms import disc, write_slice


def picture(kind: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, kind)
    return out.getvalue()


def nifti(order: str = "little", magic: bytes = b"n+1\0") -> bytes:
    """A NIfTI-1 header: its length first, its magic at 344."""
    return (348).to_bytes(4, "little" if order == "little" else "big") + bytes(340) + magic + bytes(100)


def archive(kind: str) -> bytes:
    out = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(out, "w") as file:
            file.writestr("a", "b")
    else:
        with tarfile.open(fileobj=out, mode="w") as file:
            file.addfile(tarfile.TarInfo("a"))
    return out.getvalue()


HEA = b"100 2 360 650000\n100.dat 212 200 11 1024 995 -22131 0 MLII\n"
CASES = {
    "brain.nii": (nifti(), "NIfTI"),
    "other-end.bin": (nifti("big"), "NIfTI"),
    "pair": (nifti(magic=b"ni1\0"), "NIfTI"),
    "second": ((540).to_bytes(4, "little") + b"n+2\0\r\n\x1a\n" + bytes(400), "NIfTI"),
    "brain.nii.gz": (gzip.compress(nifti()), "NIfTI (gzip)"),
    "waves.h5": (b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5"),
    "slide.safetensors": ((40).to_bytes(8, "little") + b'{"features":{"dtype":"F16"}}', "safetensors"),
    "block.mat": (b"MATLAB 7.3 MAT-file".ljust(512) + b"\x89HDF\r\n\x1a\n", "HDF5"),
    "100.hea": (HEA, "WFDB"),
    "commented.hea": (b"# made by a device\n" + HEA, "WFDB"),
    "no.hea": (b"dear colleague, this is a letter\n", "other"),
    "picture": (picture("PNG"), "PNG"),
    "IM0001.dcm": (picture("JPEG"), "JPEG"),
    "x.bmp": (picture("BMP"), "BMP"),
    "x.gif": (picture("GIF"), "GIF"),
    "study": (archive("zip"), "ZIP"),
    "letter.docx": (archive("zip"), "Microsoft Office"),
    "study.tgz": (gzip.compress(archive("tar")), "tar (gzip)"),
    "t.csv.gz": (gzip.compress(b"a,b\n"), "CSV (gzip)"),
    "secret-name.gz": (gzip.compress(b"hello"), "gzip"),
    "cut.gz": (b"\x1f\x8b\x08", "gzip"),
    "notes.txt": (b"hello", "text"),
    "export": (b'\xef\xbb\xbf<?xml version="1.0"?><a/>', "XML"),
    "nothing": (b"", "empty file"),
    "JANE.DOE": (b"hello", "other"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_files_kind_is_told_by_its_bytes(name: str, tmp_path: Path) -> None:
    content, kind = CASES[name]
    (tmp_path / name).write_bytes(content)
    assert kind_of(tmp_path / name) == kind


def test_a_tree_is_counted_by_kind(tmp_path: Path) -> None:
    write_slice(tmp_path / "a" / "IM1", disc(), 0)
    tifffile.imwrite(tmp_path / "a" / "scan", np.zeros((8, 8), np.uint8))
    for name, content in {"100.hea": HEA, "100.dat": bytes(9), "101.dat": bytes(9)}.items():
        (tmp_path / name).write_bytes(content)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    found = kinds_of(tmp_path)
    assert found == {"DICOM": 1, "TIFF": 1, "WFDB": 2, "other": 3}
    assert kinds_of(tmp_path, left_out={"a/IM1"}) == {"TIFF": 1, "WFDB": 2, "other": 3}
