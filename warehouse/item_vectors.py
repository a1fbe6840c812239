"""Vectors of a batch's items out of LMDB: one transaction a store file, its keys in order, one row each."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from warehouse.embeddings import EmbeddingStore
from warehouse.errors import TimeloomError
from warehouse.hashing import bucket_of
from warehouse.layout import Layout
from warehouse.shuffle import Ints

Floats = npt.NDArray[np.float32]


def _by_file(layout: Layout, modality: str, store: str, buckets: Ints) -> Mapping[Path, list[int]]:
    """Which items lie in which file."""
    order = np.argsort(buckets, kind="stable")
    edges = np.flatnonzero(np.diff(buckets[order])) + 1
    groups = np.split(order, edges) if len(order) else []
    return {layout.embedding_bucket(modality, store, int(buckets[group[0]])): group.tolist() for group in groups}


def _lacking(path: Path) -> TimeloomError:
    name = "/".join(path.parts[-3:])
    return TimeloomError(f"embedding store {name} lacks an item of the release", remedy="run `timeloom verify`")


def pooled(
    layout: Layout, modality: str, store: str, width: int, keys: Sequence[str], subjects: Ints, buckets: int
) -> Floats:
    """(n, width) float32 of the items with `keys` of `subjects` (n,).

    Raises:
        TimeloomError: a store file is missing or damaged, or lacks one of the items.
    """
    result = np.empty((len(keys), width), dtype=np.float32)
    for path, rows in _by_file(layout, modality, store, bucket_of(subjects, buckets).astype(np.int64)).items():
        try:
            EmbeddingStore(path).fill_many([keys[row] for row in rows], rows, result)
        except KeyError:
            raise _lacking(path) from None
    return result


def sequences(
    layout: Layout, modality: str, store: str, width: int, keys: Sequence[str], subjects: Ints, buckets: int
) -> tuple[npt.NDArray[np.floating], Ints]:
    """The items' units one after the other (U, width) in the stored type, and how many each has (n,).

    An item stored as one vector is a sequence of one unit.

    Raises:
        TimeloomError: as `pooled`.
    """
    arrays: list[npt.NDArray[np.floating]] = [np.empty((0, width), np.float32)] * len(keys)
    for path, rows in _by_file(layout, modality, store, bucket_of(subjects, buckets).astype(np.int64)).items():
        try:
            found = EmbeddingStore(path).get_many([keys[row] for row in rows])
        except KeyError:
            raise _lacking(path) from None
        for row, array in zip(rows, found, strict=True):
            if array.ndim not in (1, 2) or array.shape[-1] != width:
                raise TimeloomError(
                    f"a {modality} item is stored as neither ({width},) nor (units, {width})",
                    remedy="run `timeloom verify`",
                )
            arrays[row] = array.reshape(-1, width)
    lengths = np.array([len(array) for array in arrays], dtype=np.int64)
    return np.concatenate(arrays) if arrays else np.empty((0, width), np.float32), lengths
