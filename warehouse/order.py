"""The total order of events: the one place that says what comes before what."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from warehouse.arrays import I64, NO_TIME
from warehouse.sort_keys import Numbers, float_keys, pack, ranks, steps

KIND_RANK = {"visit_start": 0, "clinical": 1, "image": 2, "death": 3, "visit_end": 4}
PRECISION_RANK = {"us": 0, "s": 0, "min": 0, "day": 1, "month": 2, "year": 3}

_TIES = (
    "numeric_value", "text_value", "unit", "visit_id", "item_key", "time_precision",
)  # fmt: skip
# The raw row stands last: what contradicts it is only found, and written beside it, in this order.
_LAST_TIES = ("availability", "value_flag", "conflict", "row_hash", "rule")


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
