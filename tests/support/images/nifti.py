"""CT volumes in NIfTI that tests write themselves, with nibabel, and the same volumes as DICOM."""

import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.orientations import axcodes2ornt, ornt_transform

from tests.support.images.phantoms import write_series

Volume = npt.NDArray[np.float64]


def body(shape: tuple[int, int, int] = (40, 36, 20), seed: int = 0) -> Volume:
    """A body in air with a lung, fat and bone, no side of which is like another: (left, back, head), whole HU.

    The first axis runs to the patient's left, the second to the back, the third to the head.
    """
    x, y, z = np.meshgrid(*[(np.arange(length) + 0.5) / length - 0.5 for length in shape], indexing="ij")
    volume = np.full(shape, -1000.0)
    volume[(x / 0.45) ** 2 + (y / 0.38) ** 2 < 1] = -90
    volume[(x / 0.4) ** 2 + (y / 0.33) ** 2 < 1] = 45
    volume[((x - 0.18) / 0.12) ** 2 + ((y + 0.05) / 0.2) ** 2 + ((z - 0.1) / 0.4) ** 2 < 1] = -830
    volume[((x + 0.05) / 0.06) ** 2 + ((y - 0.25) / 0.06) ** 2 < 1] = 650 + 200 * seed
    volume[((x + 0.2) / 0.1) ** 2 + ((y + 0.1) / 0.08) ** 2 + ((z + 0.3) / 0.15) ** 2 < 1] = 160
    return np.rint(volume + np.random.default_rng(seed).normal(0, 6, shape))


def affine_of(spacing: tuple[float, float, float] = (1.0, 1.0, 2.0)) -> Volume:
    """From voxels of `body` to NIfTI's space, whose x runs to the right and whose y to the front."""
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    affine[:3, 3] = [16.0, 16.0, 0.0]
    return affine


def image_of(
    volume: npt.NDArray[Any],
    axes: str = "LPS",
    spacing: tuple[float, float, float] = (1.0, 1.0, 2.0),
    dtype: Any = np.int16,
) -> "nib.Nifti1Image":
    """An image whose array is stored along `axes`, as nibabel names them."""
    image = nib.Nifti1Image(volume.astype(dtype), affine_of(spacing))
    turned = image.as_reoriented(ornt_transform(axcodes2ornt("LPS"), axcodes2ornt(axes)))
    assert "".join(nib.aff2axcodes(turned.affine)) == axes
    return turned


def write_nifti(path: Path, volume: npt.NDArray[Any], axes: str = "LPS", **how: Any) -> Path:
    """Writes `body` or another volume; `how` as `image_of`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image_of(volume, axes, **how), path)
    return path


def edit(path: Path, **fields: Any) -> Path:
    """Overwrites header fields of a NIfTI-1 as they stand in the file; `srow` is all three rows of the sform."""
    packed = path.read_bytes()[:2] == b"\x1f\x8b"
    content = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
    header = np.frombuffer(content[:348], dtype=nib.Nifti1Header.template_dtype).copy()
    srow = fields.pop("srow", None)
    if srow is not None:
        for name, row in zip(("srow_x", "srow_y", "srow_z"), np.asarray(srow), strict=False):
            header[name] = row
    for name, value in fields.items():
        header[name] = value
    content = header.tobytes() + content[348:]
    path.write_bytes(gzip.compress(content, mtime=0) if packed else content)
    return path


def write_dicom(
    folder: Path, volume: Volume, spacing: tuple[float, float, float] = (1.0, 1.0, 2.0), **header: Any
) -> None:
    """The volume as a series of slices."""
    write_series(
        folder,
        volume.shape[2],
        lambda index: volume[:, :, index].T.astype(np.float32),
        gap=spacing[2],
        RescaleSlope=1,
        PixelSpacing=[spacing[1], spacing[0]],
        **header,
    )
