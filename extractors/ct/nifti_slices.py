"""A NIfTI volume as axial slices in Hounsfield units, from feet to head, however its axes run in the file."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from extractors.ct.geometry import Floats, canonical_axial, heights_of
from extractors.ct.hounsfield import AIR_HU, Pixels
from extractors.nifti.header import NiftiHeader
from extractors.nifti.voxels import stored_slices

# Of stored bytes that are read at once: a few slices where each lies in one piece, as many as memory allows where each
# lies all over the file.
_IN_ONE_PIECE, _ALL_OVER = 4 << 20, 32 << 20


@dataclass(frozen=True)
class Axial:
    """How axial slices lie in a file: axes, and as DICOM says it orientation, spacing and positions.

    Attributes:
        axis: of the file, along which the slices follow each other: the one nearest to the patient's.
        upwards: whether the file's first slice is the lowest.
        plane: orientation (6,) and spacing (2,) of slices whose rows run along the later of the other axes.
        positions: of the slices in the file's order (n, 3), mm.
    """

    axis: int
    upwards: bool
    plane: Floats
    positions: Floats

    @property
    def swapped(self) -> bool:
        """Whether rows of the file are columns of a canonical slice."""
        return bool(abs(self.plane[1]) > abs(self.plane[0]))

    @property
    def spacing(self) -> Floats:
        """Height and width of a canonical slice's pixels, mm (2,)."""
        found: Floats = self.plane[6:][::-1] if self.swapped else self.plane[6:]
        return found

    def sides(self, shape: tuple[int, int, int]) -> tuple[int, int]:
        """Rows and columns of a canonical slice of a volume of some shape."""
        columns, rows = (length for place, length in enumerate(shape) if place != self.axis)
        return (columns, rows) if self.swapped else (rows, columns)


@dataclass(frozen=True)
class Slab:
    """Some slices (n, rows, columns) float32 HU, canonical axial, padding still in them; and how many values were no
    numbers, which are air here."""

    slices: Pixels
    not_finite: int


def axial_of(affine: Floats, shape: tuple[int, int, int]) -> Axial:
    """How axial slices lie in a volume of some shape."""
    from nibabel.orientations import io_orientation

    nearest = io_orientation(affine)[:, 0]
    axis = int(np.flatnonzero(nearest == 2)[0])
    earlier, later = (other for other in range(3) if other != axis)
    sides = np.linalg.norm(affine[:3, :3], axis=0)
    directions = affine[:3, :3] / sides
    plane = np.concatenate([directions[:, earlier], directions[:, later], [sides[later], sides[earlier]]])
    positions = affine[:3, 3] + np.arange(shape[axis])[:, None] * affine[:3, axis]
    ends = heights_of(plane[:6], positions[[0, -1]])
    return Axial(axis, bool(ends[1] >= ends[0]), plane, positions)


def slabs(file: BinaryIO, header: NiftiHeader, axial: Axial, start: int = 0, stop: int | None = None) -> Iterator[Slab]:
    """Slices `start` up to `stop`, counted from the feet, some at a time.

    Raises:
        VerdictError: failed_unreadable, where the file ends before.
    """
    number = header.shape[axial.axis]
    stop = number if stop is None else min(stop, number)
    bytes_of_slice = header.dtype.itemsize * int(np.prod(header.shape)) // number
    at_once = max(1, (_IN_ONE_PIECE if axial.axis == 2 else _ALL_OVER) // bytes_of_slice)
    for first in range(start, stop, at_once):
        last = min(first + at_once, stop)
        span = (first, last) if axial.upwards else (number - last, number - first)
        stored = stored_slices(file, header, axial.axis, *span)
        stored = stored if axial.upwards else stored[::-1]
        turned = canonical_axial(stored, axial.plane[:6], copy=False)
        yield _hounsfield(turned, header)


def _hounsfield(stored: npt.NDArray[np.generic], header: NiftiHeader) -> Slab:
    values = np.empty(stored.shape, dtype=np.float32)
    with np.errstate(all="ignore"):  # what is no number afterwards is counted
        if header.slope == 1:
            np.add(stored, np.float32(header.intercept), out=values, dtype=np.float32, casting="unsafe")
        else:
            np.multiply(stored, np.float32(header.slope), out=values, dtype=np.float32, casting="unsafe")
            values += np.float32(header.intercept)
    if header.dtype.kind != "f":
        return Slab(values, 0)
    lost = ~np.isfinite(values)
    np.putmask(values, lost, np.float32(AIR_HU))
    return Slab(values, int(np.count_nonzero(lost)))
