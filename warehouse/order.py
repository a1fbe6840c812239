"""The total order of events: the one place that says what comes before what."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow.compute as pc

KIND_RANK = {"visit_start": 0, "clinical": 1, "image": 2, "death": 3, "visit_end": 4}
PRECISION_RANK = {"us": 0, "s": 0, "min": 0, "day": 1, "month": 2, "year": 3}
# What stands for a time that there is none of, before every other.
NO_TIME = np.iinfo(np.int64).min

_TIES = (
    "numeric_value", "text_value", "unit", "visit_id", "item_key", "time_precision",
)  # fmt: skip
# The raw row stands last: what contradicts it is only found, and written beside it, in this order.
_LAST_TIES = ("availability", "value_flag", "conflict", "row_hash", "rule")
_BITS = 63
# So many distinct values are looked up faster than all are sorted.
_FEW = 1 << 12
# Values of so few bits are ticked off faster than they are sorted.
_BITMAP_BITS = 22
_HALF_SECOND = 500_000

I64 = npt.NDArray[np.int64]
# Whole numbers of any width: what is ranked is few enough for a narrow one.
Numbers = npt.NDArray[Any]


def sort_events(events: pl.DataFrame, by: str = "time") -> pl.DataFrame:
    """Sorts events by subject and the total order; nulls (static facts) first.

    At equal times: coarser precision last; visit start, clinical events, images, death, visit end; then code and
    source; then every remaining column, so that rows which still tie are equal and the order does not depend on the
    order of the input.

    Args:
        events: columns of warehouse.schemas.EVENTS, texts as strings or as enumerations in the order of their texts.
        by: `time`, as MEDS asks, or `available_time`, as timelines are ordered.
    """
    return events[order_events(events, by)[0]]


def order_events(events: pl.DataFrame, by: str = "time") -> tuple[I64, npt.NDArray[np.bool_]]:
    """The total order as row numbers (n,), and which of the ordered rows (n,) equal the one before in every column."""
    # The precision is that of `time`: a date-only fact that becomes available at a later moment stands exactly there.
    precision = ranks(events["time_precision"], PRECISION_RANK)
    if by != "time":
        precision = np.where(events["time"].eq_missing(events[by]).to_numpy(), precision, 0)

    def column(name: str, places: I64) -> Numbers | None:
        if name not in events.columns:
            return None
        values = events[name][places]
        if values.dtype == pl.Float32:
            return np.where(values.is_null().to_numpy(), NO_TIME, float_keys(values.fill_null(0).to_numpy()))
        if values.dtype.is_integer() or values.dtype.is_temporal():
            return values.to_physical().fill_null(values.to_physical().lower_bound().item()).to_numpy()
        return ranks(values)

    return total_order(
        events["subject_id"].to_numpy(),
        events[by].to_physical().fill_null(NO_TIME).to_numpy(),
        (precision, ranks(events["kind"], KIND_RANK), ranks(events["code"]), ranks(events["source"])),
        column,
        by,
    )


def total_order(
    subject: I64, at: I64, ranked: Sequence[Numbers], column: Callable[[str, I64], Numbers | None], by: str = "time"
) -> tuple[I64, npt.NDArray[np.bool_]]:
    """The total order of rows whose texts are numbers already, as `order_events` gives it.

    Args:
        at: microseconds (n,), NO_TIME for none.
        ranked: ranks (n,) each of precision, kind, code and source.
        column: gives numbers in the order of a column's values, null lowest, for some rows, or None where there is no
            such column; asked of the few rows that tie up to their source.
    """
    packed = pack([subject, steps(at), *ranked])
    order = np.argsort(packed)
    in_order = packed[order]
    equal = in_order[1:] == in_order[:-1]
    again = np.zeros(len(order), np.bool_)
    tied = again.copy()
    tied[:-1] |= equal
    tied[1:] |= equal
    names = [*_TIES, "available_time" if by == "time" else "time", *_LAST_TIES]
    places = np.flatnonzero(tied)
    # Whether a row differs from the one before by what has been looked at.
    differs = np.append(True, ~equal)[places]
    for name in names:
        if not len(places):
            break
        values = column(name, order[places])
        if values is None or not np.any(~differs[1:] & (values[1:] != values[:-1])):
            continue
        turn = _within(values, np.cumsum(differs))
        order[places], values = order[places[turn]], values[turn]
        differs[1:] |= values[1:] != values[:-1]
        still = ~(differs & np.append(differs[1:], True))
        places, differs = places[still], differs[still]
    again[places[~differs]] = True
    return order, again


def _within(values: Numbers, groups: I64) -> I64:
    """The places of values (n,) that sort them within their groups (n,), numbered in order."""
    by_value = np.argsort(values)
    # Sixteen bits are sorted by counting: together a seventh of the time of one sort by two keys.
    narrow = groups.astype(np.min_scalar_type(groups[-1]))
    return by_value[np.argsort(narrow[by_value], kind="stable")]


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
