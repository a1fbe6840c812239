"""Compact times of shards: offsets from the first time of a segment, in the coarsest unit that keeps them exact.

Minutes from a segment's origin take 4 bytes where microseconds since 1970 take 8, and nothing is rounded: hospital
times are whole minutes or seconds, and where one is not, the unit is finer.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from warehouse.arrays import I64, NO_TIME

UNITS_US = (60_000_000, 1_000_000, 1_000, 1)
_CHUNK_TOKENS = 1 << 20
_TRIED = 1 << 12


@dataclass(frozen=True)
class CompactTimes:
    """Times of T tokens in S segments.

    Attributes:
        values: (T,) of dtype `dtype`; its least number stands for no time.
        origins: (S,) int64, microseconds since 1970.
        unit_us: microseconds a step: time = origin + value * unit_us.
        dtype: `int32`; `int64` where offsets are too long for it, then the unit is 1 and every origin 0.
    """

    values: npt.NDArray[Any]
    origins: I64
    unit_us: int
    dtype: str


def compact_times(times: I64, lengths: I64) -> CompactTimes:
    """Times (T,) in microseconds since 1970, NO_TIME for none, of segments that lie end to end with `lengths` (S,)."""
    lengths = lengths.astype(np.int64, copy=False)
    chunks = _chunks(lengths)
    origins = np.zeros(len(lengths), dtype=np.int64)
    for segments, tokens in chunks:
        chunk_times = times[tokens]
        starts = np.cumsum(lengths[segments]) - lengths[segments]
        first = np.minimum.reduceat(np.where(chunk_times == NO_TIME, np.iinfo(np.int64).max, chunk_times), starts)
        origins[segments] = np.where(first == np.iinfo(np.int64).max, 0, first)
    for unit in UNITS_US:
        values = np.empty(len(times), dtype=np.int32)
        if all(_fill(values[tokens], times[tokens], origins[part], lengths[part], unit) for part, tokens in chunks):
            return CompactTimes(values, origins, unit, "int32")
    return CompactTimes(times, np.zeros_like(origins), 1, "int64")


def _chunks(lengths: I64) -> list[tuple[slice, slice]]:
    """Runs of segments with about a million tokens each, and the tokens of each run."""
    edges = np.concatenate([[0], np.cumsum(lengths)])
    marks = np.searchsorted(edges, np.arange(_CHUNK_TOKENS, int(edges[-1]), _CHUNK_TOKENS))
    bounds = np.unique(np.concatenate([[0], marks, [len(lengths)]])).tolist()
    return [(slice(first, last), slice(int(edges[first]), int(edges[last]))) for first, last in pairwise(bounds)]


def _fill(into: npt.NDArray[np.int32], times: I64, origins: I64, lengths: I64, unit: int) -> bool:
    """Writes the offsets; False where they are not whole units, or too many."""
    none = np.flatnonzero(times == NO_TIME)
    offsets = times - np.repeat(origins, lengths)
    offsets[none] = 0
    # A unit that is too long for a chunk seldom fits its beginning.
    if (offsets[:_TRIED] % unit).any():
        return False
    values = offsets // unit
    # An offset that wrapped around is negative.
    if len(values) and (values.min() < 0 or values.max() > np.iinfo(np.int32).max):
        return False
    offsets -= values * unit
    if offsets.any():
        return False
    into[:] = values
    into[none] = np.iinfo(np.int32).min
    return True


def micros(time: npt.NDArray[Any], length: npt.NDArray[Any], segments: I64, origins: I64, unit_us: int) -> I64:
    """The times (P, L) of packs in microseconds since 1970, NO_TIME for none and behind the last token.

    Args:
        time: (P, L) as a shard holds it.
        length: (P,) tokens of each pack.
        segments: (S,) lengths of the packs' segments, one after the other.
        origins: (S,) where each segment counts from.
    """
    if not origins.any() and unit_us == 1 and time.dtype == np.int64:
        return time.astype(np.int64)
    real = np.arange(time.shape[1]) < length.astype(np.int64)[:, None]
    values = time[real].astype(np.int64)
    result = np.full(time.shape, NO_TIME, dtype=np.int64)
    none = values == np.iinfo(time.dtype).min
    result[real] = np.where(none, NO_TIME, values * unit_us + np.repeat(origins, segments))
    return result
