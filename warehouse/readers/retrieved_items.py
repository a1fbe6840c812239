"""Items of a segment's subject within the segment's time span, whether or not they have tokens in the pack.

The paper of the multimodal EHR model (§2.2) retrieves at most K items of each modality, by subject, within the window's
time span. It does not say which K of more items it takes. This module takes the most recent K and counts the rest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from warehouse.arrays import I64, NO_TIME
from warehouse.embeddings.addresses import ArrayAddresses, no_marks
from warehouse.modalities import MODALITIES
from warehouse.readers.collate import Collated, Items, ragged
from warehouse.readers.pinned import PinnedRelease

_Row = tuple[str, str, int, int, str]
_COLUMNS = ("available_time", "time", "subject_id", "item_key", "modality", "store", "verdict")


@dataclass(frozen=True)
class _ItemIndex:
    """Items (n,) of one modality by subject and time; `ranks` are those of `instants`, the distinct times.

    `marks` (n, 2) are written as their vectors are found, see warehouse.embeddings.addresses.
    """

    keys: list[str]
    times: I64
    subjects: I64
    instants: I64
    places: I64
    marks: I64

    def bounds(self, subjects: I64, times: I64, side: str) -> I64:
        """Where (subject, time) would stand among the items."""
        number = np.searchsorted(self.subjects, subjects)
        rank = np.searchsorted(self.instants, times, side="left" if side == "left" else "right")
        return np.searchsorted(self.places, number * (len(self.instants) + 1) + rank, side="left")


class WindowItems:
    """The release's good items, ready to be found by subject and time; read when first used."""

    def __init__(self, release: PinnedRelease) -> None:
        self.release = release
        encoders = release.manifest.encoders
        self.encoders = {name: (encoders[name].store, encoders[name].dim) for name in MODALITIES if name in encoders}

    def __getstate__(self) -> dict[str, Any]:
        return {"release": self.release, "encoders": self.encoders}

    @cached_property
    def _indices(self) -> dict[str, _ItemIndex]:
        layout, buckets = self.release.files, self.release.manifest.buckets
        rows: list[_Row] = []
        for path in self.release.present([layout.items(bucket) for bucket in range(buckets)]):
            # Not by polars, whose threads are not there in a forked worker.
            with pq.ParquetFile(self.release.checked(path), page_checksum_verification=True) as file:
                table = file.read(list(_COLUMNS), use_threads=False)
            numbers = [table[name].cast(pa.int64()).to_pylist() for name in ("available_time", "time")]
            others = [table[name].to_pylist() for name in _COLUMNS[2:]]
            for available, time, subject, key, modality, store, verdict in zip(*numbers, *others, strict=True):
                if verdict == "ok" and subject is not None and time is not None:
                    rows.append((modality, store, subject, time if available is None else available, key))
        return {name: _index(rows, name, store) for name, (store, _) in self.encoders.items()}

    def of(self, batch: Collated, k: int) -> tuple[dict[str, Items], dict[str, int]]:
        """By modality: the items of the batch's segments, and how many were left out."""
        subjects, (first, last) = batch.subjects, batch.spans()
        items, dropped = {}, {}
        for modality, index in self._indices.items():
            start, end = index.bounds(subjects, first, "left"), index.bounds(subjects, last, "right")
            known = np.isin(subjects, index.subjects) & (first != NO_TIME)
            end = np.where(known, end, start)
            kept = np.maximum(start, end - k)
            which = ragged(kept, end - kept)
            items[modality] = Items(
                [index.keys[item] for item in which.tolist()],
                np.full((len(which), 2), -1, dtype=np.int64),
                np.repeat(np.arange(len(subjects)), end - kept),
                index.times[which],
                ArrayAddresses(index.marks, which),
            )
            dropped[modality] = int((kept - start).sum())
        return items, dropped


def _index(rows: Sequence[_Row], modality: str, store: str) -> _ItemIndex:
    found = sorted((subject, time, key) for of, its, subject, time, key in rows if (of, its) == (modality, store))
    owners = np.array([subject for subject, _, _ in found], dtype=np.int64)
    times = np.array([time for _, time, _ in found], dtype=np.int64)
    subjects, number = np.unique(owners, return_inverse=True)
    instants, rank = np.unique(times, return_inverse=True)
    keys = [key for _, _, key in found]
    return _ItemIndex(keys, times, subjects, instants, number * (len(instants) + 1) + rank, no_marks(len(found)))
