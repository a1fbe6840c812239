"""Pictures of chest x-rays for encoders, as the index saw them."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from extractors.cxr.film import read_picture
from extractors.dicom.files import disk_stamp
from extractors.items import UnitBatch, UnitRequest, VerdictError


def read_views(request: UnitRequest, batch_size: int) -> Iterator[UnitBatch]:
    """The one view of an item: (1, rows, columns) uint16, 0 black and 65,535 white, dense parts bright.

    Raises:
        VerdictError: failed_changed where the file is not as it was indexed; failed_unreadable, and as
            `extractors.cxr.film.read_picture`.
    """
    (relative,) = request.paths
    path, stamp = request.root / relative, request.geometry.get("stamp")
    if request.start > 0 or (request.stop is not None and request.stop < 1):
        return
    _unchanged(path, stamp)
    low, high = request.geometry["stretch"]
    try:
        pixels = read_picture(path, relative, (low, high)).pixels
    except (VerdictError, MemoryError):
        raise
    except Exception as error:  # decoders raise almost anything on damaged bytes
        _unchanged(path, stamp)
        raise VerdictError("failed_unreadable") from error
    _unchanged(path, stamp)
    yield UnitBatch(pixels[None], np.zeros(1, np.int64), np.zeros((1, 1), np.int32))


def _unchanged(path: Path, stamp: str | None) -> None:
    """Raises VerdictError failed_changed where the file is no longer the one that was indexed."""
    try:
        found = disk_stamp(path.stat())
    except OSError as error:
        raise VerdictError("failed_changed") from error
    if stamp is not None and found != stamp:
        raise VerdictError("failed_changed")
