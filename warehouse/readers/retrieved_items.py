"""Items of a segment's subject within the segment's time span, whether or not they have tokens in the pack.

The paper of the multimodal EHR model (§2.2) retrieves at most K items of each modality, by subject, within the window's
time span. It does not say which K of more items it takes. This module takes the most recent K and counts the rest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from warehouse.arrays import I64, NO_TIME
from warehouse.embeddings.addresses import ArrayAddresses, no_marks
from warehouse.manifest import EncoderEntry
from warehouse.modalities import MODALITIES
from warehouse.readers.collate import Collated, Items, ragged
from warehouse.readers.item_rows import usable_rows
from warehouse.readers.pinned import PinnedRelease

_Row = tuple[str, str, int, int, str]
_COLUMNS = ("available_time", "time", "subject_id", "item_key", "modality", "store")


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
    """The release's items with a vector of some encoders, ready to be found by subject and time; read when first used.

    Args:
        encoders: by modality, the encoder.
    """

    def __init__(self, release: PinnedRelease, encoders: Mapping[str, EncoderEntry]) -> None:
        self.release = release
        self.encoders = {name: (entry.store, entry.dim) for name, entry in encoders.items() if name in MODALITIES}

    def __getstate__(self) -> dict[str, Any]:
        return {"release": self.release, "encoders": self.encoders}

    @cached_property
    def _indices(self) -> dict[str, _ItemIndex]:
        rows: list[_Row] = []
        for available, time, subject, key, modality, store in usable_rows(self.release, _COLUMNS):
            if subject is not None and time is not None:
                rows.append((modality, store, subject, time if available is None else available, key))
        return {name: _index(rows, name, store) for name, (store, _) in self.encoders.items()}

    def of(self, batch: Collated, most: Mapping[str, int]) -> tuple[dict[str, Items], dict[str, int]]:
        """By modality of `most`: the items of the batch's segments, at most so many, and how many were left out."""
        return self.between(batch.subjects, *batch.spans(), most)

    def between(
        self, subjects: I64, first: I64, last: I64, most: Mapping[str, int], *, last_too: bool = True
    ) -> tuple[dict[str, Items], dict[str, int]]:
        """By modality of `most`: each subject's (n,) most recent items of a span of time, and how many were left out.

        Args:
            last_too: whether an item at the last moment of the span is of it.
        """
        items, dropped = {}, {}
        for modality, index in self._indices.items():
            if modality not in most:
                continue
            start = index.bounds(subjects, first, "left")
            end = np.maximum(start, index.bounds(subjects, last, "right" if last_too else "left"))
            known = np.isin(subjects, index.subjects) & (first != NO_TIME)
            end = np.where(known, end, start)
            kept = np.maximum(start, end - most[modality])
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
