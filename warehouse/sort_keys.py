"""Keys to sort by: values of many kinds as integers, packed into as few 63-bit words as hold them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow.compute as pc

from warehouse.arrays import I64, NO_TIME

_BITS = 63
# So many distinct values are looked up faster than all are sorted.
_FEW = 1 << 12
# Values of so few bits are ticked off faster than they are sorted.
_BITMAP_BITS = 22
_HALF_SECOND = 500_000
# Whole numbers of any width: what is ranked is few enough for a narrow one.
Numbers = npt.NDArray[Any]


def float_keys(values: npt.NDArray[np.float32]) -> I64:
    """Whole numbers (n,) in the order of the values (n,): both zeros alike, NaN highest."""
    bits = np.where(np.isnan(values), np.float32(np.nan), values).view(np.int32).astype(np.int64)
    return np.where(bits < 0, np.iinfo(np.int32).min - bits, bits)


def ranks(texts: pl.Series, order: Mapping[str, int] | None = None) -> I64:
    """Each text's rank (n,) by `order`, 0 for what it lacks, or by the texts themselves, -1 for null."""
    if isinstance(texts.dtype, pl.Enum) and order is None:
        # In the order of their texts already.
        return texts.to_physical().cast(pl.Int64).fill_null(-1).to_numpy()
    if isinstance(texts.dtype, pl.Enum):
        distinct: list[str | None] = [*texts.cat.get_categories().to_list(), None]
        places = texts.to_physical().cast(pl.Int64).fill_null(len(distinct) - 1).to_numpy()
    else:
        values, places = encode(texts)
        distinct = values.to_list()
    if order is not None:
        of_distinct = [0 if text is None else order.get(text, 0) for text in distinct]
    else:
        by_text = {text: rank for rank, text in enumerate(sorted(text for text in distinct if text is not None))}
        of_distinct = [-1 if text is None else by_text[text] for text in distinct]
    ranked: I64 = np.array(of_distinct, np.int64)[places]
    return ranked


def encode(texts: pl.Series) -> tuple[pl.Series, I64]:
    """The distinct texts, null among them, and of each text (n,) its place there."""
    encoded = pc.dictionary_encode(texts.to_arrow(), null_encoding="encode")
    values, places = pl.Series(pl.from_arrow(encoded.dictionary)), pl.Series(pl.from_arrow(encoded.indices))
    return values.cast(pl.String), places.cast(pl.Int64).to_numpy()


def steps(at: I64) -> I64:
    """Numbers (n,) in the order of the times (n,), NO_TIME before every other.

    Most records know whole seconds, and the last microsecond of a day: those are numbered by half seconds, which
    leaves bits for the rest of a row's place.
    """
    absent = np.flatnonzero(at == NO_TIME)
    if len(absent) == len(at):
        return np.zeros(len(at), np.int64)
    if len(absent):
        at = at.copy()
        # Whatever stands there will do for now.
        at[absent] = at.max()
    seconds = (at + 1) // (2 * _HALF_SECOND)
    # 0 at a whole second, -1 just before it.
    beside = at - seconds * (2 * _HALF_SECOND)
    numbers = 2 * seconds + beside if not np.any((beside + 1).view(np.uint64) > 1) else at
    if len(absent):
        numbers[absent] = numbers.min() - 1
    return numbers


def pack(keys: Sequence[Numbers]) -> I64:
    """One integer a row (n,) whose order is that of the keys, each (n,), the first being the most significant."""
    rows = len(keys[0])
    if not rows:
        return np.zeros(0, np.int64)
    parts = [_Key.of(values) for values in keys]
    if sum(part.bits for part in parts) > _BITS:
        parts[0] = _by_runs(parts[0])
    if sum(part.bits for part in parts) > _BITS:
        parts = _narrower(parts)
    packed, bits = np.zeros(rows, np.int64), 0
    for part in parts:
        if bits + part.bits > _BITS:
            above = _Key(packed, 0, bits).dense()
            packed, bits = above.values.astype(np.int64), above.bits
        if bits + part.bits > _BITS:
            part = part.dense()
        packed <<= part.bits
        packed |= part.from_zero()
        bits += part.bits
    return packed


@dataclass(frozen=True)
class _Key:
    """Whole numbers (n,), the lowest of them, and how many bits tell them apart."""

    values: Numbers
    low: int
    bits: int

    @classmethod
    def of(cls, values: Numbers) -> "_Key":
        low = int(values.min())
        return cls(values, low, (int(values.max()) - low).bit_length())

    def from_zero(self) -> Numbers:
        return self.values - self.values.dtype.type(self.low) if self.low else self.values

    def dense(self) -> "_Key":
        """The places of the values among the distinct ones."""
        if self.bits > min(_BITMAP_BITS, len(self.values).bit_length() + 4):
            places, number = _places(self.values)
            return _Key(places, 0, (number - 1).bit_length())
        values, stands = self.from_zero(), np.zeros(1 << self.bits, np.bool_)
        stands[values] = True
        distinct = np.flatnonzero(stands)
        place_of = np.empty(len(stands), np.uint32)
        place_of[distinct] = np.arange(len(distinct), dtype=np.uint32)
        return _Key(place_of[values], 0, (len(distinct) - 1).bit_length())

    def above(self, lower: "_Key") -> "_Key":
        """Both as one, this being the more significant; few bits in all."""
        joined = (self.from_zero().astype(np.uint32) << np.uint32(lower.bits)) | lower.from_zero().astype(np.uint32)
        return _Key(joined, 0, self.bits + lower.bits)


def _narrower(keys: list[_Key]) -> list[_Key]:
    """Keys of the same order in fewer bits: the least significant ones joined, and counted through."""
    *rest, joined = keys
    while rest:
        if joined.bits + rest[-1].bits > _BITMAP_BITS:
            joined = joined.dense()
        if joined.bits + rest[-1].bits > _BITMAP_BITS:
            break
        joined = rest.pop().above(joined)
    return [*rest, joined.dense()]


def _by_runs(key: _Key) -> _Key:
    """The key made dense; rows of one subject stand together in most exports, so each run is looked at once."""
    values = key.values
    starts = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
    if len(starts) > len(values) // 4:
        return key.dense()
    of_runs = _Key(values[starts], key.low, key.bits).dense()
    return _Key(np.repeat(of_runs.values, np.diff(starts, append=len(values))), 0, of_runs.bits)


def _places(values: Numbers) -> tuple[I64, int]:
    """Of each value (n,) its place among the distinct ones, and how many these are."""
    distinct = pl.Series(values).unique().to_numpy()
    if len(distinct) <= _FEW:
        return np.searchsorted(np.sort(distinct), values), len(distinct)
    distinct, places = np.unique(values, return_inverse=True)
    return places, len(distinct)
