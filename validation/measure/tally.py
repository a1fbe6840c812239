"""Counts of many things in one table: what is added up over buckets to judge a release."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import polars as pl

from warehouse.arrays import I64

COUNTS = pl.Schema({"measure": pl.String, "of": pl.String, "within": pl.String, "split": pl.String, "count": pl.Int64})
_KEYS = ("of", "within", "split")


class Tally:
    """Gathers rows of `counts`; what stands there several times is added up."""

    def __init__(self) -> None:
        self._parts = [COUNTS.to_frame()]

    def add(self, area: str, counts: pl.DataFrame, **named: str) -> None:
        """Adds each number of a frame as a row `<area>.<column>`; zeros are left out.

        Args:
            named: which column of the frame is `of`, `within` or `split`.
        """
        keys = [
            (pl.col(named[key]).fill_null("") if key in named else pl.lit("")).cast(pl.String).alias(key)
            for key in _KEYS
        ]
        numbers = [name for name in counts.columns if name not in named.values()]
        rows = counts.select(*keys, *(pl.col(name).cast(pl.Int64).alias(f"{area}.{name}") for name in numbers))
        said = rows.unpivot(index=_KEYS, variable_name="measure", value_name="count")
        self._parts.append(said.filter(pl.col("count") != 0).select(COUNTS.names()))

    def count(self, area: str, numbers: Mapping[str, int], of: str = "") -> None:
        """Adds numbers, each as a row `<area>.<name>`."""
        rows = [(f"{area}.{name}", of, "", "", int(number)) for name, number in numbers.items() if number]
        self._parts.append(pl.DataFrame(rows, schema=COUNTS, orient="row"))

    def table(self) -> pl.DataFrame:
        """Every row once, in order."""
        return added_up(self._parts)


def added_up(parts: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """Tables of COUNTS as one, in order."""
    keys = ["measure", *_KEYS]
    return pl.concat([COUNTS.to_frame(), *parts]).group_by(keys).agg(pl.col("count").sum()).sort(keys)


def counted(counts: pl.DataFrame, area: str, columns: Sequence[str], **named: str) -> pl.DataFrame:
    """The rows `<area>.<column>` as a frame with these columns, zeros where there is no row.

    Args:
        counts: COUNTS.
        named: what the frame calls `of`, `within` and `split`; those that are not named are the same in every row.
    """
    keys = list(named)
    rows = counts.filter(pl.col("measure").is_in([f"{area}.{name}" for name in columns]))
    sums = [
        pl.col("count").filter(pl.col("measure") == f"{area}.{name}").sum().cast(pl.Int64).alias(name)
        for name in columns
    ]
    if not keys:
        return rows.select(sums)
    found = rows.group_by(keys).agg(sums).sort(keys)
    return found.rename(named)


def tabulated(columns: Mapping[str, tuple[I64, int]]) -> dict[str, I64]:
    """How often each combination of some small numbers stands there.

    Args:
        columns: (n,) numbers, and below what they all lie. The one of most different numbers should stand last.

    Returns:
        By column its number in each combination (m,) that occurs, and `n`, how often.
    """
    found: dict[str, I64] = {}
    keys: I64 | int = 0
    often = occurs = np.zeros(0, np.int64)
    for number, (name, (values, size)) in enumerate(columns.items(), 1):
        combined = keys * size + values
        often = np.bincount(combined, minlength=1)
        occurs = np.flatnonzero(often)
        found = {before: held[occurs // size] for before, held in found.items()} | {name: occurs % size}
        if number < len(columns):
            place = np.zeros(len(often), np.int64)
            place[occurs] = np.arange(len(occurs))
            keys = place[combined]
    return found | {"n": often[occurs]}
