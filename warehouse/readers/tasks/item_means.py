"""The mean vector of all items of a modality that were available by each prediction time."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from warehouse.arrays import F32, I64, NO_TIME, numbers_of
from warehouse.embeddings.store import EmbeddingStore
from warehouse.errors import REPAIR, TimeloomError
from warehouse.manifest import EncoderEntry
from warehouse.parquet import read_columns
from warehouse.readers.pinned import PinnedRelease
from warehouse.readers.tasks.counting import LabelRows
from warehouse.readers.tasks.labels import Clock

# Vectors that are held at a time.
_HELD = 4096


@dataclass(frozen=True)
class Means:
    """Of labels (n,) of one modality.

    Attributes:
        vectors: (n, d), NaN where nothing was available.
        items: (n,) how many items each is the mean of.
    """

    vectors: F32
    items: I64


@dataclass(frozen=True)
class ItemRows:
    """A bucket's usable items (i,), each at the first label of its subject that could have it.

    They stand by label, then by time and key, so that a mean does not depend on the order of a file.

    Attributes:
        rows: the labels.
        keys, modalities, stores: of each item.
    """

    rows: I64
    keys: list[str]
    modalities: list[str]
    stores: list[str]

    @classmethod
    def read(cls, path: Path, labels: LabelRows, clock: Clock) -> "ItemRows":
        """Args:
        path: the bucket's items; its content was compared with its checksum.
        clock: by which of its times an item is available.
        """
        columns = ["subject_id", "modality", "item_key", "time", "available_time", "verdict", "store"]
        table = read_columns(path, columns)
        time = numbers_of(table["time"].cast(pa.int64()), NO_TIME)
        available = numbers_of(table["available_time"].cast(pa.int64()), NO_TIME)
        known = time if clock == "time" else np.where(available == NO_TIME, time, available)
        # An item without a time was available at no time.
        good = (known != NO_TIME) & (np.asarray(table["verdict"].to_pylist()) == "ok")
        subject = numbers_of(table["subject_id"], -1)
        row = np.where(good, labels.first_knowing(subject, known), -1)
        wanted = np.flatnonzero(row >= 0)
        keys = [table["item_key"][int(place)].as_py() for place in wanted]
        order = sorted(range(len(wanted)), key=lambda place: (row[wanted[place]], known[wanted[place]], keys[place]))
        ordered = pa.array(wanted[order], pa.int64())
        modalities, stores = (table[name].take(ordered).to_pylist() for name in ("modality", "store"))
        return cls(row[wanted][order].astype(np.int64), [keys[place] for place in order], modalities, stores)


class BucketItems:
    """A bucket's usable items, by modality."""

    def __init__(self, release: PinnedRelease, bucket: int, labels: LabelRows, clock: Clock) -> None:
        self._release, self._bucket, self._labels = release, bucket, labels
        self._items = ItemRows.read(release.checked(release.files.items(bucket)), labels, clock)

    def means(self, modality: str, encoder: EncoderEntry) -> Means:
        """The mean vectors of one modality by one of its encoders.

        Raises:
            TimeloomError: a store is missing or damaged, or lacks an item of the release.
        """
        size = len(self._labels.time)
        means = Means(np.full((size, encoder.dim), np.nan, np.float32), np.zeros(size, np.int64))
        kinds = zip(self._items.modalities, self._items.stores, strict=True)
        of_kind = np.array([place for place, kind in enumerate(kinds) if kind == (modality, encoder.store)], np.int64)
        if not len(of_kind):
            return means
        places, rows = self._labels.later(self._items.rows[of_kind])
        order = np.argsort(rows, kind="stable")
        places, rows = of_kind[places[order]], rows[order]
        found, starts, counts = np.unique(rows, return_index=True, return_counts=True)
        means.items[found] = counts
        path = self._release.layout.embedding_bucket(modality, encoder.store, self._bucket)
        store = EmbeddingStore.open(path)
        first = 0
        while first < len(found):
            # As many labels as have so many items, one at least.
            upto = max(first + 1, int(np.searchsorted(starts + counts, starts[first] + _HELD, side="right")))
            wanted = places[starts[first] : starts[upto - 1] + counts[upto - 1]]
            vectors = self._vectors(store, wanted, encoder.dim)
            sums = np.add.reduceat(vectors, starts[first:upto] - starts[first], axis=0, dtype=np.float64)
            means.vectors[found[first:upto]] = sums / counts[first:upto, None]
            first = upto
        return means

    def _vectors(self, store: EmbeddingStore, places: I64, dim: int) -> F32:
        """(n, d) one vector an item, the mean of its units where it is a sequence."""
        distinct, inverse = np.unique(places, return_inverse=True)
        try:
            arrays = store.get_many([self._items.keys[place] for place in distinct])
        except KeyError:
            raise store.lacking() from None
        vectors = np.empty((len(distinct), dim), np.float32)
        for place, array in enumerate(arrays):
            mean = array if array.ndim == 1 else array.mean(axis=0, dtype=np.float32)
            if mean.shape != (dim,):
                raise TimeloomError("an item is stored in another width than the release says", remedy=REPAIR)
            vectors[place] = mean
        return vectors[inverse]
