"""Vectors of a batch's items, each in the store file of its subject's bucket."""

from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from warehouse.arrays import I64
from warehouse.embeddings.lookup import read_vectors
from warehouse.embeddings.store import EmbeddingStore
from warehouse.errors import REPAIR, TimeloomError
from warehouse.hashing import bucket_of
from warehouse.layout import Layout
from warehouse.readers.collate import Items

Floats = npt.NDArray[np.float32]


@lru_cache(maxsize=64)
def _stores(layout: Layout, modality: str, store: str, buckets: int) -> list[EmbeddingStore]:
    # Each holds a path and no descriptor, so that it may be kept and used in any process.
    return [EmbeddingStore(layout.embedding_bucket(modality, store, bucket)) for bucket in range(buckets)]


def _by_store(
    layout: Layout, modality: str, store: str, subjects: I64, buckets: int
) -> list[tuple[EmbeddingStore, list[int]]]:
    """The stores that hold items of `subjects` (n,), each with its items' rows."""
    stores = _stores(layout, modality, store, buckets)
    rows = defaultdict[int, list[int]](list)
    for row, bucket in enumerate(bucket_of(subjects, buckets).tolist()):
        rows[bucket].append(row)
    return [(stores[bucket], bucket_rows) for bucket, bucket_rows in sorted(rows.items())]


def pooled(layout: Layout, modality: str, store: str, width: int, items: Items, subjects: I64, buckets: int) -> Floats:
    """(n, width) float32 of `items` (n,) of `subjects` (n,).

    Raises:
        TimeloomError: a store file is missing or damaged, or lacks one of the items.
    """

    def stores(wanted: list[int]) -> list[tuple[EmbeddingStore, list[int]]]:
        by_store = _by_store(layout, modality, store, subjects[wanted], buckets)
        return [(file, [wanted[row] for row in rows]) for file, rows in by_store]

    return read_vectors(items.keys, width, items.marks, stores)


def sequences(
    layout: Layout, modality: str, store: str, width: int, keys: Sequence[str], subjects: I64, buckets: int
) -> tuple[npt.NDArray[np.floating], I64]:
    """The items' units one after the other (U, width) in the stored type, and how many each has (n,).

    An item stored as one vector is a sequence of one unit.

    Raises:
        TimeloomError: as `pooled`.
    """
    arrays: list[npt.NDArray[np.floating]] = [np.empty((0, width), np.float32)] * len(keys)
    for file, rows in _by_store(layout, modality, store, subjects, buckets):
        try:
            found = file.get_many([keys[row] for row in rows])
        except KeyError:
            raise file.lacking() from None
        for row, array in zip(rows, found, strict=True):
            if array.ndim not in (1, 2) or array.shape[-1] != width:
                raise TimeloomError(
                    f"a {modality} item is stored as neither ({width},) nor (units, {width})",
                    remedy=REPAIR,
                )
            arrays[row] = array.reshape(-1, width)
    lengths = np.array([len(array) for array in arrays], dtype=np.int64)
    return np.concatenate(arrays) if arrays else np.empty((0, width), np.float32), lengths
