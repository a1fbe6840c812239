"""A NIfTI's stored values, some slices at a time along any of its axes: no more of a volume is in memory."""

from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from extractors.items import VerdictError
from extractors.nifti.header import NiftiHeader

_CHUNK = 16 << 20


def stored_slices(file: BinaryIO, header: NiftiHeader, axis: int, start: int, stop: int) -> npt.NDArray[Any]:
    """Slices `start` up to `stop` of the file along `axis`, (n, rows, columns): rows along the later of the other two
    axes, columns along the earlier.

    Along the last axis a slice lies in one piece. Along another it lies all over the file, which is read once for all
    slices that are asked for.

    Raises:
        VerdictError: failed_unreadable, where the file ends before.
    """
    columns, rows, depth = header.shape
    if axis == 2:
        plane = columns * rows
        values = _read(file, header, start * plane, (stop - start) * plane)
        return values.reshape(stop - start, rows, columns)
    plane = columns * rows
    planes = max(1, _CHUNK // (plane * header.dtype.itemsize))
    taken = (depth, stop - start, columns) if axis == 1 else (depth, rows, stop - start)
    found = np.empty(taken, dtype=header.dtype)
    for first in range(0, depth, planes):
        last = min(first + planes, depth)
        part = _read(file, header, first * plane, (last - first) * plane).reshape(last - first, rows, columns)
        found[first:last] = part[:, start:stop] if axis == 1 else part[:, :, start:stop]
    return found.swapaxes(0, 1) if axis == 1 else found.transpose(2, 0, 1)


def _read(file: BinaryIO, header: NiftiHeader, first: int, count: int) -> npt.NDArray[Any]:
    values = np.empty(count, dtype=header.dtype)
    view = memoryview(values.view(np.uint8).data)
    file.seek(header.offset + first * header.dtype.itemsize)
    at = 0
    while at < len(view):
        got = file.readinto(view[at:])  # type: ignore[attr-defined]
        if not got:
            raise VerdictError("failed_unreadable")
        at += got
    return values
