"""Numbers as quantiles of their code and unit, fitted on train and frozen.

Sources: inner quantiles of train's values made unique, and a value equal to a break falls below it (ETHOS-ARES,
quantization.py); values without a unit have breaks of their own. A value that was written as `> 5` counts as just above
5, all others as their number; a null has no quantile at all.
"""

import numpy as np
import polars as pl

from pipelines.profiles.events import Part
from warehouse.arrays import F32, I64
from warehouse.tokens import VALUE


def value_tokens(quantiles: int) -> list[str]:
    """`VALUE/Q1` and on."""
    return [f"{VALUE}/Q{number}" for number in range(1, quantiles + 1)]


def compared(part: Part, rows: I64) -> F32:
    """The numbers that rows are compared by (m,); not finite where there is none."""
    assert part.value is not None and part.flag is not None
    value = part.value[rows]
    above = part.flag.take(rows).is_text(">")
    if above.any():
        # Not beyond the largest, which would be no number any more.
        with np.errstate(over="ignore"):
            higher = np.minimum(np.nextafter(value, np.float32(np.inf)), np.finfo(np.float32).max)
        value = np.where(above, higher, value)
    return value


def fit(values: pl.DataFrame, known: pl.DataFrame, bins: int, least: int) -> pl.DataFrame:
    """Breaks of every code and unit that has enough values and no breaks yet, behind those that are known.

    Args:
        values: columns code, unit, value, count: train's values, in any order.
        known: columns of QUANTILES.
        bins: quantiles; one break less.
        least: values below which there are no breaks.

    Returns:
        Columns of QUANTILES: breaks are linear quantiles at 1/bins, 2/bins, …, made unique, of which null units have
        their own.
    """
    new = (
        values.join(known.select("code", "unit"), on=["code", "unit"], how="anti", nulls_equal=True)
        .group_by("code", "unit", "value")
        .agg(pl.col("count").sum())
        .sort("code", "unit", "value")
        .with_columns(
            pl.col("count").sum().over("code", "unit").alias("total"),
            pl.col("count").cum_sum().over("code", "unit").alias("up_to"),
        )
        .filter(pl.col("total") >= least)
    )
    if new.is_empty():
        return known
    # The k-th smallest value (from 0) is the first whose running count exceeds k.
    starts = np.flatnonzero(new.select(pl.struct("code", "unit").is_first_distinct()).to_series().to_numpy())
    groups = new[starts].select("code", "unit", "total")
    value = new["value"].cast(pl.Float64).to_numpy()
    offset = np.concatenate([[0], np.cumsum(groups["total"].to_numpy())])
    up_to = new["up_to"].to_numpy() + np.repeat(offset[:-1], np.diff(np.append(starts, len(new))))
    place = (groups["total"].to_numpy() - 1)[:, None] * (np.arange(1, bins) / bins)[None, :]
    low = np.floor(place).astype(np.int64)
    high = np.minimum(low + 1, (groups["total"].to_numpy() - 1)[:, None])
    below = value[np.searchsorted(up_to, low + offset[:-1, None], side="right")]
    above = value[np.searchsorted(up_to, high + offset[:-1, None], side="right")]
    breaks = below + (above - below) * (place - low)
    fitted = groups.with_columns(
        pl.Series("breaks", breaks, pl.Array(pl.Float64, bins - 1)).arr.to_list().list.unique().list.sort(),
        pl.col("total").cast(pl.Int64).alias("train_values"),
    )
    return pl.concat([known, fitted.select(known.columns)])


class Breaks:
    """Breaks as one matrix, to look up many values at once.

    Args:
        quantiles: columns of QUANTILES.
    """

    def __init__(self, quantiles: pl.DataFrame) -> None:
        lists = quantiles["breaks"]
        width = 1
        while width - 1 < (lists.list.len().max() or 0):  # type: ignore[operator]
            width *= 2
        self._step = width // 2
        self._matrix = np.full((len(quantiles) + 1, max(width, 1)), np.inf)
        lengths = lists.list.len().to_numpy().astype(np.int64)
        flat = lists.explode().drop_nulls().to_numpy()
        rows = np.repeat(np.arange(len(lengths)), lengths)
        columns = np.arange(len(flat)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        self._matrix[rows, columns] = flat

    def bins(self, values: F32, rows: I64) -> I64:
        """The bin (m,), from 0: how many breaks of the row's quantiles lie below the value."""
        flat, width = self._matrix.ravel(), self._matrix.shape[1]
        base, found, step = rows * width, np.zeros(len(rows), np.int64), self._step
        while step:
            found += np.where(flat[base + found + step - 1] < values, step, 0)
            step //= 2
        return found
