"""Vectors as other programs write them, and what the extractor finds in a tree of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from extractors.items import FoundItem
from extractors.trees import Entry, walk
from extractors.vectors.judge import KEY, examine, items
from extractors.vectors.settings import ImportedConfig, VectorSettings

Array = npt.NDArray[Any]
SECRET = "MEYER-HANS-1950"


def drawn(*shape: int, seed: int = 0, dtype: str = "float16") -> Array:
    """Vectors of a normal distribution."""
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def grid(units: int) -> Array:
    """(units, 2) int64 places of patches."""
    return np.stack([256 * np.arange(units), 512 * (np.arange(units) % 7)], axis=1).astype(np.int64)


def trident(path: Path, features: Array, coords: Array | None = None) -> Path:
    """A patch file of TRIDENT: growing data sets of one row a chunk, and attributes that name the slide."""
    said = {
        "patch_size": 512, "patch_size_level0": 512, "level0_magnification": 40, "target_magnification": 20,
        "overlap": 0, "name": SECRET, "savetodir": f"/home/{SECRET}",
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        places = grid(len(features)) if coords is None else coords
        for name, data in (("features", features), ("coords", places)):
            chunks, growing = (1, *data.shape[1:]), (None, *data.shape[1:])
            made = file.create_dataset(name, data=data, chunks=chunks if 0 not in data.shape else None,
                                       maxshape=growing if 0 not in data.shape else None)  # fmt: skip
            made.attrs["savetodir"] = f"/home/{SECRET}"
        for name, value in said.items():
            file["coords"].attrs[name] = value
    return path


def trident_slide(path: Path, vector: Array) -> Path:
    """A slide file of TRIDENT: one vector."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=vector).attrs["encoder"] = "titan"
    return path


def clam(path: Path, features: Array) -> Path:
    """A file of features of CLAM: coords without any attribute."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, data in (("features", features), ("coords", grid(len(features)))):
            file.create_dataset(name, data=data, chunks=(1, data.shape[1]), maxshape=(None, data.shape[1]))
    return path


def declared(path: Path, **keys: Any) -> ImportedConfig:
    """A declaration of HDF5 vectors of 8 float16."""
    usual = {"path": path, "format": "hdf5", "name": "uni2-h", "width": 8, "dtype": "float16"}
    return ImportedConfig.model_validate(usual | keys)


def settings(imported: ImportedConfig) -> VectorSettings:
    return VectorSettings(path=imported.path, modality="wsi", imported=imported)


def found(imported: ImportedConfig) -> dict[str, FoundItem]:
    """The items of a tree of vectors, by the names of their vectors."""
    tree = settings(imported)
    files: Sequence[Entry] = list(walk(imported.path))
    findings = [finding for entry in files for finding in examine(tree, entry).findings]
    return {item.names[KEY]: item for item in items(tree, findings)}


def verdicts(imported: ImportedConfig) -> dict[str, str]:
    return {name: item.verdict for name, item in found(imported).items()}
