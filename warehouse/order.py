"""The total order of events: the one place that says what comes before what."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow.compute as pc

KIND_RANK = {"visit_start": 0, "clinical": 1, "image": 2, "death": 3, "visit_end": 4}
PRECISION_RANK = {"us": 0, "s": 0, "min": 0, "day": 1, "month": 2, "year": 3}

_TIES = (
    "numeric_value", "text_value", "unit", "visit_id", "item_key", "time_precision",
)  # fmt: skip
# The raw row stands last: what contradicts it is only found, and written beside it, in this order.
_LAST_TIES = ("availability", "value_flag", "conflict", "row_hash", "rule")
_BITS = 63
# So many distinct values are looked up faster than all are sorted.
_FEW = 1 << 12

I64 = npt.NDArray[np.int64]


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
    """The total order as row numbers (n,), and which of the ordered rows (n,) equal a neighbour up to their source."""
    other = "available_time" if by == "time" else "time"
    at = _instants(events[by])
    # The precision is that of `time`: a date-only fact that becomes available at a later moment stands exactly there.
    precision = ranks(events["time_precision"], PRECISION_RANK)
    if by != "time":
        precision = np.where(events["time"].eq_missing(events[by]).to_numpy(), precision, 0)
    keys = [
        events["subject_id"].to_numpy(),
        at,
        precision,
        ranks(events["kind"], KIND_RANK),
        ranks(events["code"]),
        ranks(events["source"]),
    ]
    packed = pack(keys)
    order = np.argsort(packed)
    in_order = packed[order]
    equal = in_order[1:] == in_order[:-1]
    tied = np.zeros(len(order), np.bool_)
    tied[:-1] |= equal
    tied[1:] |= equal
    if tied.any():
        # Few rows tie so far: only they are compared in full.
        places = np.flatnonzero(tied)
        rest = [name for name in (*_TIES, other, *_LAST_TIES) if name in events.columns]
        subset = events.select(rest)[order[places]].with_columns(
            pl.Series("_packed", in_order[places]), pl.int_range(pl.len()).alias("_place")
        )
        settled = subset.sort("_packed", *rest, nulls_last=False)["_place"].to_numpy()
        order[places] = order[places][settled]
    return order, tied


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


def pack(keys: Sequence[I64]) -> I64:
    """One integer a row (n,) whose order is that of the keys, each (n,), the first being the most significant."""
    packed, bits = np.zeros(len(keys[0]), np.int64), 0
    if not len(packed):
        return packed
    for values in keys:
        low, width = _span(values)
        if bits + width > _BITS:
            packed, bits = _dense(packed)
        if bits + width > _BITS:
            values, width = _dense(values)
            low = 0
        packed = (packed << width) | (values - low)
        bits += width
    return packed


def _span(values: I64) -> tuple[int, int]:
    low = int(values.min())
    return low, (int(values.max()) - low).bit_length()


def _dense(values: I64) -> tuple[I64, int]:
    distinct = pl.Series(values).unique().to_numpy()
    if len(distinct) <= _FEW:
        distinct = np.sort(distinct)
        places = np.searchsorted(distinct, values)
    else:
        distinct, places = np.unique(values, return_inverse=True)
    return places.astype(np.int64), (len(distinct) - 1).bit_length()


def _instants(times: pl.Series) -> I64:
    """Microseconds, null before every other."""
    micros = times.to_physical()
    if micros.null_count():
        first = micros.min()
        micros = micros.fill_null(0 if first is None else int(str(first)) - 1)
    return micros.to_numpy()
