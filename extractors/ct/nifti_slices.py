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

AT_ONCE = 8
ALL_OVER = 32 << 20  # of stored bytes that are read at once where a slice lies all over the file


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


def slabs(
    file: BinaryIO, header: NiftiHeader, axial: Axial, start: int = 0, stop: int | None = None, at_once: int = AT_ONCE
) -> Iterator[Slab]:
    """Slices `start` up to `stop`, counted from the feet, `at_once` at a time.

    Raises:
        VerdictError: failed_unreadable, where the file ends before.
    """
    number = header.shape[axial.axis]
    stop = number if stop is None else min(stop, number)
    bytes_of_slice = header.dtype.itemsize * int(np.prod(header.shape)) // number
    slices = at_once * (1 if axial.axis == 2 else max(1, ALL_OVER // (bytes_of_slice * at_once)))
    for first in range(start, stop, slices):
        last = min(first + slices, stop)
        span = (first, last) if axial.upwards else (number - last, number - first)
        stored = stored_slices(file, header, axial.axis, *span)
        turned = canonical_axial(stored if axial.upwards else stored[::-1], axial.plane[:6], copy=False)
        for place in range(0, len(turned), at_once):
            yield _hounsfield(turned[place : place + at_once], header)


def _hounsfield(stored: npt.NDArray[np.generic], header: NiftiHeader) -> Slab:
    """Values of stored slices; slice by slice, so that each stays in the processor's cache."""
    values = np.empty(stored.shape, dtype=np.float32)
    not_finite = 0
    with np.errstate(all="ignore"):  # what is no number afterwards is counted
        for plane, kept in zip(values, stored, strict=True):
            if header.slope == 1 and header.intercept == 0:
                np.copyto(plane, kept, casting="unsafe")
            elif header.slope == 1:
                np.add(kept, np.float32(header.intercept), out=plane, dtype=np.float32, casting="unsafe")
            else:
                np.multiply(kept, np.float32(header.slope), out=plane, dtype=np.float32, casting="unsafe")
                plane += np.float32(header.intercept)
            if header.dtype.kind == "f":
                finite = np.isfinite(plane)
                if not finite.all():
                    not_finite += plane.size - int(np.count_nonzero(finite))
                    np.putmask(plane, ~finite, np.float32(AIR_HU))
    return Slab(values, not_finite)
