"""Vectors in safetensors: tensors `features` and `coords`, of many items `<item>/features` and `<item>/coords`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from extractors.vectors.files import Array, Held, sliced
from extractors.vectors.settings import ImportedConfig

_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}


class TensorFile:
    """One open safetensors file. A member is what stands before `features` in a tensor's name."""

    def __init__(self, path: Path, imported: ImportedConfig) -> None:
        self._imported = imported
        # numpy has no bfloat16.
        self._torch = imported.dtype == "bfloat16"
        opened: Any = safe_open  # whose methods have no types
        self._file = opened(path, framework="pt" if self._torch else "np")
        self._names: set[str] = set(self._file.keys())

    def __enter__(self) -> "TensorFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.__exit__(None, None, None)

    def held(self) -> Iterator[Held]:
        """The item of the file, or one for each tensor of vectors."""
        ending = self._imported.features
        if not self._imported.many:
            yield self._of("")
            return
        members = sorted(name[: -len(ending)] for name in self._names if name.endswith(f"/{ending}") or name == ending)
        for member in members:
            yield self._of(member)

    def _of(self, member: str) -> Held:
        features = self._file.get_slice(member + self._imported.features)
        name = f"{member}{self._imported.coords}"
        coords = None
        if self._imported.coords is not None and name in self._names:
            coords = tuple(self._file.get_slice(name).get_shape())
        dtype = features.get_dtype()
        return Held(member.removesuffix("/"), member, tuple(features.get_shape()), _DTYPES.get(dtype, dtype), coords)

    def rows(self, member: str, start: int, stop: int, leading: int) -> Array:
        found = self._file.get_slice(member + self._imported.features)
        return sliced(_AsNumpy(found) if self._torch else found, start, stop, leading)

    def coords(self, member: str) -> Array:
        found = self._file.get_tensor(f"{member}{self._imported.coords}")
        return np.asarray(found)


class _AsNumpy:
    """A slice of torch's as float32, which holds every bfloat16."""

    def __init__(self, found: Any) -> None:
        self._found = found

    def __getitem__(self, which: Any) -> Array:
        array: Array = self._found[which].float().numpy()
        return array
