"""Files of vectors, whatever their format: which items a file holds, and their vectors in blocks of rows."""

import importlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from extractors.items import VerdictError
from extractors.vectors.settings import ImportedConfig

Array = npt.NDArray[Any]
BLOCK_BYTES = 8 << 20

_FORMATS: Mapping[str, str] = {
    "hdf5": "extractors.vectors.hdf5:Hdf5File",
    "safetensors": "extractors.vectors.tensors:TensorFile",
    "npy": "extractors.vectors.arrays:NpyFile",
    "parquet": "extractors.vectors.tables:TableFile",
}


@dataclass(frozen=True)
class Held:
    """What a file holds of one item, by its headers.

    Attributes:
        key: as the file names the item; empty where the file has one item alone.
        member: where in the file it lies, as text.
        shape, dtype: of its vectors, as they are stored.
        coords: shape of where its units lie; None where the file does not say it.
        patching: how the units were cut, as far as the file says it: numbers by their names.
        fault: a verdict that the format gives, as for two items of one name.
    """

    key: str
    member: str
    shape: tuple[int, ...]
    dtype: str
    coords: tuple[int, ...] | None = None
    patching: Mapping[str, float] | None = None
    fault: str = ""


class VectorFile(AbstractContextManager["VectorFile"], Protocol):
    """An open file of vectors."""

    def held(self) -> Iterator[Held]:
        """Every item of the file, in the order in which reading is cheap."""

    def rows(self, member: str, start: int, stop: int, leading: int) -> Array:
        """Rows `start` to `stop` of an item's vectors (n, width), `leading` axes of length 1 taken off before."""

    def coords(self, member: str) -> Array:
        """Where an item's units lie, as it is stored."""


def open_vectors(path: Path, imported: ImportedConfig) -> VectorFile:
    """Opens a file of vectors; what the format's library raises of a damaged file is passed on.

    Raises:
        VerdictError: failed_pickled.
    """
    module, name = _FORMATS[imported.format].split(":")
    opened: VectorFile = getattr(importlib.import_module(module), name)(path, imported)
    return opened


def leading_axes(shape: tuple[int, ...], imported: ImportedConfig) -> int:
    """How many axes of length 1 stand before those that the declared shape has.

    | declared | taken as it is | taken without its leading 1 |
    |---|---|---|
    | units | (n, width) | (1, n, width) |
    | item | (width,) | (1, width) |

    Raises:
        VerdictError: failed_empty_bag, failed_vector_width, failed_vector_shape.
    """
    if 0 in shape:
        raise VerdictError("failed_empty_bag")
    if not shape or shape[-1] != imported.width:
        raise VerdictError("failed_vector_width")
    leading = len(shape) - (2 if imported.shape == "units" else 1)
    if leading not in (0, 1) or (leading == 1 and shape[0] != 1):
        raise VerdictError("failed_vector_shape")
    return leading


def units_of(held: Held, imported: ImportedConfig) -> int:
    """How many vectors an item has, by its headers.

    Raises:
        VerdictError: what they say is not what was declared, or contradicts itself.
    """
    if held.fault:
        raise VerdictError(held.fault)
    if held.dtype != imported.dtype:
        raise VerdictError("failed_vector_dtype")
    leading = leading_axes(held.shape, imported)
    units = held.shape[leading] if imported.shape == "units" else 1
    if held.coords is not None:
        places = held.coords[1:] if len(held.coords) == 3 and held.coords[0] == 1 else held.coords
        if len(places) != 2 or places[0] != units or not 0 < places[1] <= 4:
            raise VerdictError("failed_coords")
    return units


def blocks_of(opened: VectorFile, held: Held, imported: ImportedConfig) -> Iterator[Array]:
    """An item's vectors (n, width), some MiB at a time, in order."""
    units, leading = units_of(held, imported), leading_axes(held.shape, imported)
    if imported.shape == "item":
        leading -= 1  # one vector is one row
    rows = max(1, BLOCK_BYTES // (8 * imported.width))
    for start in range(0, units, rows):
        yield opened.rows(held.member, start, min(start + rows, units), leading)


def places_of(opened: VectorFile, held: Held, units: int) -> Array:
    """(units, k) int32: where an item's units lie; their numbers (units, 1) where the file does not say it.

    Raises:
        VerdictError: failed_coords, no whole numbers, or too large.
    """
    if held.coords is None:
        return np.arange(units, dtype=np.int32)[:, None]
    coords = opened.coords(held.member)
    if coords.dtype.kind not in "iuf":
        raise VerdictError("failed_coords")
    coords = coords.reshape(units, -1)
    with np.errstate(invalid="ignore"):
        stored = coords.astype(np.int32)
    if not np.array_equal(stored, coords):
        raise VerdictError("failed_coords")
    return stored


def sliced(array: Any, start: int, stop: int, leading: int) -> Array:
    """Rows of what can be sliced, as `VectorFile.rows` gives them. `leading` is -1 where all of it is one row."""
    if leading < 0:
        return np.asarray(array[:])[None]
    part = array[start:stop] if leading == 0 else array[0:1, start:stop]
    found = np.asarray(part)
    return found.reshape(-1, found.shape[-1])
