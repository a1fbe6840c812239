"""Hounsfield units of a CT volume's slices, in the order that the index found, from files, frames and archives."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import xxhash

from extractors.ct.geometry import canonical_axial, square, squared
from extractors.ct.header import stamp_of
from extractors.ct.hounsfield import AIR_HU, without_padding
from extractors.ct.multiframe import ENHANCED_CT, frames_of
from extractors.ct.nifti import FORMAT
from extractors.ct.nifti_slices import AT_ONCE, axial_of, slabs
from extractors.dicom.elements import Header, numbers_of, read_elements
from extractors.dicom.files import disk_stamp, tree
from extractors.dicom.pixels import FrameReader, PixelFormat, pixel_format, stored_values
from extractors.items import UnitBatch, UnitRequest, VerdictError, file_on_disk, stream_fingerprint
from extractors.nifti.header import read_nifti_header

# Below so many different values, volumes of different patients may be equal.
TELLING_VALUES = 64


def read_volume(
    paths: Sequence[str], root: Path, geometry: Mapping[str, Any] | None = None, start: int = 0, stop: int | None = None
) -> Iterator[npt.NDArray[np.float32]]:
    """Slices `start` up to `stop` of a volume, each (rows, columns) float32 in Hounsfield units.

    HU = stored value x slope + intercept of that slice; padding becomes air (-1,024). Pixels that are not square are
    resampled. Slices are turned into canonical axial orientation: columns run to the patient's left, rows to the back.

    Args:
        paths: the item's.
        geometry: the item's: `frames` says which frame of which path each slice is (default: one a path), `stamps` how
            each file was when it was indexed (default: not checked).

    Raises:
        VerdictError: failed_changed, where a file is not as indexed; failed_unreadable, where one slice cannot be
            decoded or differs in size from the volume's; failed_implausible_size.
    """
    geometry = geometry or {}
    stamps: Sequence[str] = geometry.get("stamps", ())
    if geometry.get("format") == FORMAT:
        for slices in _nifti_slices(root, paths[0], start, stop, stamps[0] if stamps else None):
            yield from slices
        return
    frames: Sequence[Sequence[int]] = geometry.get("frames") or [(number, 0) for number in range(len(paths))]
    # Which way round they are depends on the orientation, which all slices share.
    sides = sorted(geometry.get("square") or (geometry["rows"], geometry["columns"])) if "rows" in geometry else None
    shape: tuple[int, ...] | None = None
    wanted = list(frames[start:stop])
    at = 0
    while at < len(wanted):
        number = wanted[at][0]
        end = next((k for k in range(at, len(wanted)) if wanted[k][0] != number), len(wanted))
        stamp = stamps[number] if number < len(stamps) else None
        for pixels in _slices(root, paths[number], [frame for _, frame in wanted[at:end]], stamp):
            shape = shape or pixels.shape
            if pixels.shape != shape or (sides is not None and sorted(shape) != sides):
                raise VerdictError("failed_unreadable")
            yield pixels
        at = end


def read_ct_units(request: UnitRequest, batch_size: int) -> Iterator[UnitBatch]:
    """Slices of a volume in batches (n, rows, columns) of float32 HU; raises as `read_volume`."""
    geometry = request.geometry
    if geometry.get("format") == FORMAT:
        yield from _nifti_units(request, batch_size)
        return
    count = len(geometry.get("frames") or request.paths)
    stop = count if request.stop is None else min(request.stop, count)
    slices = read_volume(request.paths, request.root, geometry, request.start, stop)
    for first in range(request.start, stop, batch_size):
        numbers = np.arange(first, min(first + batch_size, stop))
        pixels: npt.NDArray[np.float32] | None = None
        for place in range(len(numbers)):
            pixels_of_slice = next(slices)
            if pixels is None:
                pixels = np.empty((len(numbers), *pixels_of_slice.shape), dtype=np.float32)
            pixels[place] = pixels_of_slice
        if pixels is not None:
            yield UnitBatch(pixels, numbers.astype(np.int64), numbers.astype(np.int32)[:, None])


def _nifti_units(request: UnitRequest, batch_size: int) -> Iterator[UnitBatch]:
    stamp = request.geometry["stamps"][0]
    first = request.start
    for pixels in _nifti_slices(request.root, request.paths[0], first, request.stop, stamp, batch_size):
        numbers = np.arange(first, first + len(pixels))
        yield UnitBatch(pixels, numbers.astype(np.int64), numbers.astype(np.int32)[:, None])
        first += len(pixels)


def pixel_digest(request: UnitRequest) -> str:
    """XXH3-128 of a volume's Hounsfield units; empty where a phantom or a mask has too few different ones to tell.

    Raises:
        VerdictError: as `read_volume`.
    """
    digest = xxhash.xxh3_128()
    values: set[float] = set()
    for pixels in read_volume(request.paths, request.root, request.geometry):
        digest.update(np.ascontiguousarray(pixels).data)
        if len(values) < TELLING_VALUES:
            values.update(np.unique(pixels).tolist())
    return digest.hexdigest() if len(values) >= TELLING_VALUES else ""


# What makes Hounsfield units of a data set's bytes, besides its syntax.
_MEANING = (
    "RescaleSlope", "RescaleIntercept", "PixelPaddingValue", "PixelPaddingRangeLimit", "PixelRepresentation",
    "BitsAllocated", "BitsStored", "HighBit", "Rows", "Columns", "ImageOrientationPatient", "PixelSpacing",
)  # fmt: skip


@lru_cache(maxsize=4)
def slice_digests(root: Path, path: str, stamp: str, decoded: bool) -> tuple[str, ...]:
    """XXH3-128 of each frame of one file: of its Hounsfield units, or, undecoded, of its only frame's bytes as stored.

    Args:
        stamp: how the file was when its header was read.

    Raises:
        VerdictError: as `read_volume`.
    """
    try:
        with tree(root).open(path) as (file, size, _):
            header = read_elements(file, size)
            frames = pixel_format(header).frames
            if not decoded and header.pixels is not None:
                at, length = header.pixels
                file.seek(at)
                digest = xxhash.xxh3_128(repr([header.text(keyword) for keyword in _MEANING]).encode())
                digest.update(file.read(size - at if length is None else length))
                return (digest.hexdigest(),)
    except VerdictError:
        raise
    except Exception as error:  # as in `_slices`
        raise VerdictError("failed_unreadable") from error
    found = _slices(root, path, range(frames), stamp)
    return tuple(xxhash.xxh3_128_hexdigest(np.ascontiguousarray(pixels).data) for pixels in found)


def _slices(root: Path, path: str, frames: Sequence[int], stamp: str | None) -> Iterator[npt.NDArray[np.float32]]:
    """Some frames of one DICOM file; it must be as its stamp says before and after each is read."""
    with _unchanged(root, path, stamp) as (file, size, check):
        header = read_elements(file, size)
        form = pixel_format(header)
        multiframe = header.text("SOPClassUID") in ENHANCED_CT
        values = frames_of(header) if multiframe else [header.values]
        if not multiframe and form.frames != 1:
            raise VerdictError("failed_unreadable")
        reader = FrameReader(header, form)
        for frame in frames:
            pixels = _hounsfield(reader.raw(frame), form, header, values[frame])
            check()
            yield pixels


def _nifti_slices(
    root: Path, path: str, start: int, stop: int | None, stamp: str | None, at_once: int = AT_ONCE
) -> Iterator[npt.NDArray[np.float32]]:
    """Some slices of a NIfTI, `at_once` at a time (n, rows, columns); it must be as its stamp says all the while."""
    with _unchanged(root, path, stamp) as (file, size, check):
        header = read_nifti_header(file, size)
        axial = axial_of(header.affine, header.shape)
        even = square(axial.spacing)
        for slab in slabs(file, header, axial, start, stop, at_once):
            check()
            pixels = without_padding(slab.slices)
            yield pixels if even else np.stack([squared(plane, axial.spacing) for plane in pixels])


@contextmanager
def _unchanged(root: Path, path: str, stamp: str | None) -> Iterator[tuple[BinaryIO, int, Callable[[], None]]]:
    """A file of the tree, its size, and what raises failed_changed where the file is no more as it was."""
    try:
        with tree(root).open(path) as (file, size, disk):
            status = disk_stamp(disk.stat())
            if stamp is not None and stamp != stamp_of(status, stream_fingerprint(file, size)):
                raise VerdictError("failed_changed")

            def check() -> None:
                if disk_stamp(disk.stat()) != status:
                    raise VerdictError("failed_changed")

            try:
                yield file, size, check
            except Exception:
                check()
                raise
    except (VerdictError, MemoryError):
        raise
    except Exception as error:  # decoders and decompressors raise almost anything on damaged bytes
        if stamp is not None and _moved_on(root, path, stamp):
            raise VerdictError("failed_changed") from None
        raise VerdictError("failed_unreadable") from error


def _moved_on(root: Path, path: str, stamp: str) -> bool:
    """Whether a file that cannot be read is there, and another than the one that was indexed."""
    disk, _ = file_on_disk(root, path)
    try:
        return not stamp.startswith(disk_stamp(disk.stat()) + ":")
    except OSError:
        return False


def _hounsfield(
    raw: npt.NDArray[Any], form: PixelFormat, header: Header, values: Mapping[str, str]
) -> npt.NDArray[np.float32]:
    slope, intercept = numbers_of(values, ("RescaleSlope", 1)), numbers_of(values, ("RescaleIntercept", 1))
    orientation = numbers_of(values, ("ImageOrientationPatient", 6))
    if slope is None or intercept is None or orientation is None:
        raise VerdictError("failed_missing_geometry")
    stored = stored_values(raw, form)
    if slope[0] == 1:
        hounsfield = np.add(stored, np.float32(intercept[0]), dtype=np.float32, casting="unsafe")
    else:
        hounsfield = np.multiply(stored, np.float32(slope[0]), dtype=np.float32, casting="unsafe")
        hounsfield += np.float32(intercept[0])
    padding = numbers_of(header.values, ("PixelPaddingValue", 1))
    if padding is not None:
        limit = numbers_of(header.values, ("PixelPaddingRangeLimit", 1))
        ends = np.concatenate([padding, padding if limit is None else limit])
        # The tag is often written unsigned although the pixels are signed, or the other way round.
        half = 1 << (form.allocated - 1)
        ends = (
            np.where(ends >= half, ends - 2 * half, ends) if form.signed else np.where(ends < 0, ends + 2 * half, ends)
        )
        # Padding may lie outside the range of BitsStored, where only the unmasked value still shows it.
        for shown in (stored, raw) if stored is not raw else (stored,):
            if ends.min() == ends.max():
                padded = shown == int(ends[0])
            else:
                padded = (shown >= ends.min()) & (shown <= ends.max())
            if padded.any():
                np.putmask(hounsfield, padded, np.float32(AIR_HU))
    spacing = numbers_of(values, ("PixelSpacing", 2))
    if spacing is not None and not square(spacing):
        hounsfield = squared(hounsfield, spacing)
    return canonical_axial(hounsfield, orientation)
