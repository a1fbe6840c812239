"""A NIfTI file's header (NIfTI-1 and NIfTI-2, one file): how its voxels are stored, and where they lie in the patient.

nibabel reads the fields. Which of them hold is decided here: nibabel's own checks mend a header without a word, and
where no form is set it makes an orientation up.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from extractors.items import VerdictError

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Header

Floats = npt.NDArray[np.float64]

ENDINGS = (".nii", ".nii.gz")
_MM = {"mm": 1.0, "unknown": 1.0, "meter": 1000.0, "micron": 0.001}
_BYTES = {1: 348, 2: 540}  # of a header, by NIfTI's version
_SPACING_SHARE = 0.01
_CORNER_SHARE = 0.5  # of the smallest side of a voxel
_VOLUME = 1e-9  # mm3; a voxel of less has lost an axis


@dataclass(frozen=True)
class NiftiHeader:
    """Voxels and their place.

    Attributes:
        shape: along the file's axes, the first of which runs fastest (3,).
        dtype: of the stored values, with their byte order.
        offset: bytes before the first voxel.
        slope, intercept: what makes values of stored ones; 1 and 0 where the file gives none.
        affine: from voxels to the patient in mm, (4, 4); x to the left, y to the back, z to the head, as in DICOM.
        form: which of the file's two says so, `sform` or `qform`.
        forms_disagree: both are set, and put a corner of the volume at two places.
        spacing_differs: the voxels' sides by the affine are not those of pixdim.
        codes: the file's sform_code and qform_code.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    offset: int
    slope: float
    intercept: float
    affine: Floats
    form: str
    forms_disagree: bool
    spacing_differs: bool
    codes: tuple[int, int]

    @property
    def bytes_needed(self) -> int:
        """Bytes of a whole file."""
        return self.offset + math.prod(self.shape) * self.dtype.itemsize


def version_of(head: bytes) -> int | None:
    """NIfTI's version, 1 or 2, by a file's first bytes; None where it is none, or its voxels lie in another file."""
    if head[344:348] == b"n+1\0":
        return 1
    return 2 if head[4:12] == b"n+2\0\r\n\x1a\n" else None


def is_named_nifti(path: str) -> bool:
    """Whether a file is called as NIfTI files are."""
    return path.lower().endswith(ENDINGS)


def read_nifti_header(file: BinaryIO, size: int) -> NiftiHeader:
    """The header of a file of `size` bytes.

    Raises:
        VerdictError: failed_unreadable, where the file is none, or shorter than its header says;
            refused_several_volumes; refused_not_hu, where voxels are no plain numbers; failed_no_orientation;
            failed_missing_geometry.
    """
    fields = _fields(file)
    shape = _shape(fields)
    dtype = _dtype(fields)
    slope, intercept = _scaling(fields)
    affine, form, disagree = _placed(fields, shape)
    header = NiftiHeader(
        shape=shape,
        dtype=dtype,
        offset=_offset(fields),
        slope=slope,
        intercept=intercept,
        affine=affine,
        form=form,
        forms_disagree=disagree,
        spacing_differs=_spacing_differs(fields, affine),
        codes=(int(fields["sform_code"]), int(fields["qform_code"])),
    )
    if header.bytes_needed > size:
        raise VerdictError("failed_unreadable")
    return header


def _fields(file: BinaryIO) -> "Nifti1Header":
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    file.seek(0)
    head = file.read(max(_BYTES.values()))
    version = version_of(head)
    if version is None or len(head) < _BYTES[version]:
        raise VerdictError("failed_unreadable")
    kind = Nifti1Header if version == 1 else Nifti2Header
    return kind(head[: _BYTES[version]], check=False)


def _shape(fields: "Nifti1Header") -> tuple[int, int, int]:
    """Three axes. Further ones of length 1 hold nothing, nor do those of length 0, of which files come too."""
    axes = [int(length) for length in fields["dim"]]
    if not 1 <= axes[0] <= 7:
        raise VerdictError("failed_unreadable")
    lengths = axes[1 : axes[0] + 1]
    if any(length > 1 for length in lengths[3:]):
        raise VerdictError("refused_several_volumes")
    first, second, third = (lengths + [1, 1])[:3]
    if min(first, second, third) < 1 or any(length < 0 for length in lengths):
        raise VerdictError("failed_unreadable")
    return first, second, third


def _offset(fields: "Nifti1Header") -> int:
    """Bytes before the voxels; where the file says none, they follow its header and the word for extensions."""
    offset, header = float(fields["vox_offset"]), int(fields.template_dtype.itemsize)
    if not math.isfinite(offset) or (offset != 0 and offset < header):
        raise VerdictError("failed_unreadable")
    return int(offset) or header + 4


def _dtype(fields: "Nifti1Header") -> np.dtype[Any]:
    try:
        dtype = np.dtype(fields.get_data_dtype())
    except (KeyError, ValueError) as error:  # a code that no version has
        raise VerdictError("failed_unreadable") from error
    if dtype.kind not in "iuf":
        raise VerdictError("refused_not_hu")  # colours, complex numbers, bits
    stored: np.dtype[Any] = dtype.newbyteorder(fields.endianness)
    return stored


def _scaling(fields: "Nifti1Header") -> tuple[float, float]:
    """Slope and intercept; a slope of 0, or that is no number, says that there is neither."""
    slope, intercept = float(fields["scl_slope"]), float(fields["scl_inter"])
    if slope == 0 or not math.isfinite(slope):
        return 1.0, 0.0
    if not math.isfinite(intercept):
        raise VerdictError("refused_not_hu")
    return slope, intercept


def _placed(fields: "Nifti1Header", shape: tuple[int, int, int]) -> tuple[Floats, str, bool]:
    """The affine, which form it is of, and whether the other disagrees: the sform holds, without one the qform."""
    forms = {"sform": fields.get_sform(coded=True)[0], "qform": _qform(fields)}
    given = {name: form for name, form in forms.items() if form is not None and np.isfinite(form).all()}
    coded = [name for name in ("sform", "qform") if int(fields[f"{name}_code"]) > 0]
    if not coded:
        raise VerdictError("failed_no_orientation")
    usable = [name for name in coded if name in given and abs(np.linalg.det(given[name][:3, :3])) > _VOLUME]
    if not usable:
        raise VerdictError("failed_missing_geometry")
    affine = given[usable[0]]
    disagree = len(coded) == 2 and (len(usable) == 1 or _apart(affine, given[usable[1]], shape))
    to_dicom = np.diag([-1.0, -1.0, 1.0, 1.0])  # NIfTI's x runs to the right, its y to the front
    in_mm = _unit(fields)
    return to_dicom @ np.diag([in_mm, in_mm, in_mm, 1.0]) @ affine, usable[0], disagree


def _unit(fields: "Nifti1Header") -> float:
    """Of the file's lengths, in mm."""
    return _MM.get(fields.get_xyzt_units()[0], 1.0)


def _qform(fields: "Nifti1Header") -> Floats | None:
    from nibabel.spatialimages import HeaderDataError

    if fields["pixdim"][0] == 0:
        fields["pixdim"][0] = 1  # as the standard reads it
    try:
        form: Floats | None = fields.get_qform(coded=True)[0]
    except (HeaderDataError, ValueError):  # no rotation, or a side below 0
        return None
    return form


def _apart(first: Floats, second: Floats, shape: tuple[int, int, int]) -> bool:
    corners = np.array(np.meshgrid(*[(0, length - 1) for length in shape], [1], indexing="ij")).reshape(4, -1)
    off = np.linalg.norm((first - second)[:3] @ corners, axis=0).max()
    return bool(off > _CORNER_SHARE * sides_of(first).min())


def sides_of(affine: Floats) -> Floats:
    """The sides of a voxel, along the file's axes, mm (3,)."""
    sides: Floats = np.linalg.norm(affine[:3, :3], axis=0)
    return sides


def _spacing_differs(fields: "Nifti1Header", affine: Floats) -> bool:
    said = np.abs(np.asarray(fields["pixdim"][1:4], dtype=np.float64)) * _unit(fields)
    sides = sides_of(affine)
    return not bool((np.abs(said - sides) <= _SPACING_SHARE * sides).all())
