"""Rows of a raw table as columns of texts, and how their reading may end."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import polars as pl

from extractors.tables.rows import TextColumn

BATCH_ROWS = 1 << 17


@dataclass(frozen=True)
class TableBlock:
    """Rows of a raw table, text columns.

    Attributes:
        columns: by name, (n,) each.
        first: number of the block's first record; records are counted from 1, the header apart.
        gaps: places, counted from the block's first record, of records that are none, and not in `columns`.
        hashes: of each row over everything that it holds, uint64; None where they were not asked for.
    """

    columns: Mapping[str, TextColumn]
    first: int
    gaps: tuple[int, ...] = ()
    hashes: pl.Series | None = None

    @property
    def behind(self) -> int:
        """Number of the record behind the block."""
        return self.first + len(self) + len(self.gaps)

    @cached_property
    def frame(self) -> pl.DataFrame:
        """The rows as a frame."""
        return pl.DataFrame({name: column.rows for name, column in self.columns.items()})

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()))) if self.columns else 0

    def numbers(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Record numbers of some rows."""
        if not self.gaps:
            return rows + self.first
        before = np.asarray(self.gaps) - np.arange(len(self.gaps))
        return rows + self.first + np.searchsorted(before, rows, side="right")


class BrokenCsvError(Exception):
    """CSV that cannot be read on.

    Attributes:
        place: where, in the data that was looked at; None is behind all of it.
        record: the number of the record that it stands in; 0 is the header, None not known.
    """

    def __init__(self, place: int | None = 0, record: int | None = None) -> None:
        super().__init__()
        self.place, self.record = place, record


class UnclosedQuoteError(BrokenCsvError):
    """A quoted field swallowed the rows after its start."""


class NotTextError(BrokenCsvError):
    """Bytes that are no text in the file's encoding.

    Attributes:
        likely: the encoding that they may be text in.
    """

    likely = "cp1252"


def hash_of_columns(rows: pl.DataFrame, seed: int) -> pl.Series:
    """A hash of each row (n,) uint64, whatever the order of its columns."""
    return rows.select(sorted(rows.columns)).hash_rows(seed=seed)
