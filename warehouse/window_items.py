"""Items of a segment's subject within the segment's time span, whether or not they have tokens in the pack.

REQUIREMENTS P-9: retrieved by subject within the window's time span, at most K a modality; which of more than K is left
open there: here the most recent ones, and how many were left out is counted.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from warehouse.collate import Collated, Items, ragged
from warehouse.reader import Release
from warehouse.shard_times import NO_TIME
from warehouse.shuffle import Ints
from warehouse.tokens import MODALITIES


@dataclass(frozen=True)
class _Index:
    """Items (n,) of one modality by subject and time; `ranks` are those of `instants`, the distinct times."""

    keys: pa.StringArray
    times: Ints
    subjects: Ints
    instants: Ints
    places: Ints

    def bounds(self, subjects: Ints, times: Ints, side: str) -> Ints:
        """Where (subject, time) would stand among the items."""
        number = np.searchsorted(self.subjects, subjects)
        rank = np.searchsorted(self.instants, times, side="left" if side == "left" else "right")
        return np.searchsorted(self.places, number * (len(self.instants) + 1) + rank, side="left")


class WindowItems:
    """The release's good items, ready to be found by subject and time; read when first used."""

    def __init__(self, release: Release) -> None:
        self.release = release
        encoders = release.manifest.encoders
        self.encoders = {name: (encoders[name].store, encoders[name].dim) for name in MODALITIES if name in encoders}

    def __getstate__(self) -> dict[str, Any]:
        return {"release": self.release, "encoders": self.encoders}

    @cached_property
    def _indices(self) -> dict[str, _Index]:
        good = pl.col("verdict") == "ok", pl.col("subject_id").is_not_null(), pl.col("time").is_not_null()
        when = pl.coalesce("available_time", "time").cast(pl.Int64).alias("us")
        found = self.release.items().filter(*good).select("subject_id", "modality", "store", "item_key", when).collect()
        return {name: _index(found, name, store) for name, (store, _) in self.encoders.items()}

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
                index.keys.take(pa.array(which)).to_pylist(),
                np.full((len(which), 2), -1, dtype=np.int64),
                np.repeat(np.arange(len(subjects)), end - kept),
                index.times[which],
            )
            dropped[modality] = int((kept - start).sum())
        return items, dropped


def _index(found: pl.DataFrame, modality: str, store: str) -> _Index:
    mine = found.filter(pl.col("modality") == modality, pl.col("store") == store).sort("subject_id", "us", "item_key")
    owners, times = mine["subject_id"].to_numpy(), mine["us"].to_numpy()
    subjects, number = np.unique(owners, return_inverse=True)
    instants, rank = np.unique(times, return_inverse=True)
    keys = pa.array(mine["item_key"].to_list(), pa.string())
    return _Index(keys, times, subjects, instants, number * (len(instants) + 1) + rank)
