"""Vectors in HDF5, as TRIDENT and CLAM write them: `features` and `coords`, which say how patches were cut."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from extractors.items import VerdictError
from extractors.vectors.files import Array, Held, sliced
from extractors.vectors.settings import ImportedConfig

# Attributes of coords that say how patches were cut; others name the slide and its folder, and are never read.
_PATCHING = (
    "patch_size", "patch_size_level0", "patch_level", "level0_magnification", "target_magnification", "overlap",
    "downsample",
)  # fmt: skip


class Hdf5File:
    """One open HDF5 file. A member is the group that an item's data sets stand in."""

    def __init__(self, path: Path, imported: ImportedConfig) -> None:
        self._imported = imported
        self._file = h5py.File(path, "r", locking=False)

    def __enter__(self) -> "Hdf5File":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def held(self) -> Iterator[Held]:
        """The item of the file, or one for each group that has vectors."""
        if not self._imported.many:
            yield self._of(self._file, "")
            return
        groups: list[str] = []

        def note(name: str, found: Any) -> None:
            if isinstance(found, h5py.Dataset) and name.rpartition("/")[2] == self._imported.features:
                groups.append(name.rpartition("/")[0])

        self._file.visititems(note)
        for name in groups:
            yield self._of(self._file[name or "/"], name)

    def _of(self, group: Any, name: str) -> Held:
        names = (self._imported.features, self._imported.coords)
        if any(isinstance(group.get(each, getlink=True), h5py.ExternalLink) for each in names if each):
            raise VerdictError("failed_unreadable")  # another file, which nobody has looked at
        features = group[self._imported.features]
        coords = None if self._imported.coords is None else group.get(self._imported.coords)
        return Held(
            name,
            name,
            tuple(features.shape),
            str(features.dtype.newbyteorder("=")),
            None if coords is None else tuple(coords.shape),
            None if coords is None else _patching(coords.attrs),
        )

    def rows(self, member: str, start: int, stop: int, leading: int) -> Array:
        return sliced(self._file[member or "/"][self._imported.features], start, stop, leading)

    def coords(self, member: str) -> Array:
        return np.asarray(self._file[member or "/"][self._imported.coords][:])


def _patching(attributes: Any) -> dict[str, float] | None:
    """What is said of how patches were cut; None where nothing is said."""
    said = {}
    for name in _PATCHING:
        if name in attributes:
            value = np.asarray(attributes[name]).ravel()
            if value.size and value.dtype.kind in "iuf" and np.isfinite(value[0]):
                said[name] = float(value[0])
    return said or None
