"""Fields of regular CSV, found by compiled loops in a third of the time that a general reader takes.

Data is regular where every record has as many fields as the header, no line is empty, a quoted field ends before a
separator or a line end, and a carriage return stands before a line feed only. Anything else is for the general reader,
which says what is wrong with it.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
import pyarrow as pa

from extractors.tables.csv_loops import (
    IRREGULAR,
    MORE_ROWS,
    MORE_TEXTS,
    NO_QUOTE,
    NOT_A_MOMENT,
    NUMBERED,
    SKIPPED,
    TEXT,
    Loops,
)
from extractors.tables.csv_records import PLAIN, Grammar
from extractors.tables.rows import MOMENT_BYTES, TextColumn
from warehouse.arrays import I32, I64, U8

# The loops look at eight bytes at once, also behind the end of what they split.
_PADDING = b"\n" * 16
_FIRST_ROWS, _FIRST_TEXTS = 1 << 18, 1 << 14
# What is more would be no numbering.
_MOST_TEXTS = 1 << 18


@dataclass(frozen=True)
class Split:
    """Regular records at the front of some data.

    Attributes:
        bounds: (n + 1,) where each of the records begins, and where the last one ends.
        columns: by name, (n,) each.
        crowded: columns whose texts are too many to number; where there are any, nothing was split.
    """

    bounds: I64
    columns: dict[str, TextColumn]
    crowded: tuple[str, ...] = ()


class SpanTexts:
    """Texts that lie in a chunk of data, (n,); their quotes apart, doubled ones not yet made one.

    Args:
        loops: compiled.
        starts, widths: (n,) where each begins, and how many bytes it has: less than none where quotes are doubled.
        quote: the quote's byte, or NO_QUOTE.
    """

    def __init__(
        self,
        loops: Loops,
        data: bytes,
        starts: I64,
        widths: I32,
        null_values: Sequence[str],
        quote: int = ord('"'),
    ) -> None:
        self._loops, self._quote = loops, quote
        self._letters = np.frombuffer(data, np.uint8)
        self._starts, self._widths = starts, widths
        self._null_values = null_values

    def __len__(self) -> int:
        return len(self._starts)

    @cached_property
    def _copied(self) -> tuple[I64, U8]:
        """Where each text ends and the next begins, and their bytes."""
        bounds = np.zeros(len(self) + 1, np.int64)
        np.cumsum(np.abs(self._widths), out=bounds[1:])
        letters = np.empty(int(bounds[-1]), np.uint8)
        self._loops.copy_texts(self._letters, self._starts, self._widths, bounds, letters, self._quote)
        return bounds, letters[: bounds[-1]]

    def letters(self) -> U8:
        """The bytes of all texts, also of those that say nothing."""
        return self._copied[1]

    def series(self) -> pl.Series:
        """The texts, null where one says nothing."""
        bounds, letters = self._copied
        array = pa.LargeStringArray.from_buffers(len(self), pa.py_buffer(bounds), pa.py_buffer(letters))
        texts = pl.Series(pl.from_arrow(array))
        return texts.set(texts.is_in(self._null_values), None)

    def moments(self) -> pl.Series | None:
        """The texts as times where all are `2020-02-29 13:00:00` or nothing; else None."""
        if any(len(null_value.encode()) == MOMENT_BYTES for null_value in self._null_values):
            return None
        found = np.empty(len(self), np.int64)
        if not self._loops.read_moments(self._letters, self._starts, self._widths, found):
            return None
        missing = found == NOT_A_MOMENT
        moments = pl.Series(found)
        return (moments.set(pl.Series(missing), None) if missing.any() else moments).cast(pl.Datetime("us"))


class FieldSplitter:
    """Splits chunks of one table.

    Args:
        loops: compiled.
        names: the table's columns.
        wanted: those of them that are read.
        texts: those of them whose every row is wanted as it stands; the others are numbered.
        null_values: texts that say nothing.
        grammar: how the table is written; without an escape.
    """

    def __init__(
        self,
        loops: Loops,
        names: Sequence[str],
        wanted: Sequence[str],
        texts: Collection[str],
        null_values: Sequence[str],
        grammar: Grammar = PLAIN,
    ) -> None:
        self._loops = loops
        self._separator, self._quote = ord(grammar.separator), ord(grammar.quote) if grammar.quote else NO_QUOTE
        self._texts = [name for name in wanted if name in texts]
        self._numbered = [name for name in wanted if name not in texts]
        kinds = dict.fromkeys(self._texts, TEXT) | dict.fromkeys(self._numbered, NUMBERED)
        slots = {name: place for of in (self._texts, self._numbered) for place, name in enumerate(of)}
        self._kinds = np.array([kinds.get(name, SKIPPED) for name in names], np.int8)
        self._slots = np.array([slots.get(name, 0) for name in names], np.int64)
        self._null_values = null_values
        self._rows, self._distinct = _FIRST_ROWS, _FIRST_TEXTS

    def split(self, data: bytes, *, ended: bool) -> Split | None:
        """The whole records at the front of some data; None where it is not regular.

        Args:
            ended: whether the file ends with the data.
        """
        data = data + _PADDING if ended else data
        size = len(data) - len(_PADDING)
        if size <= 0:
            return None
        letters = np.frombuffer(data, np.uint8)
        words = np.lib.stride_tricks.as_strided(np.frombuffer(data, np.uint64, 1), (size + 8,), (1,))
        while True:
            bounds = np.empty(self._rows + 1, np.int64)
            starts = np.empty((len(self._texts), self._rows), np.int64)
            widths = np.empty((len(self._texts), self._rows), np.int32)
            numbers = np.empty((len(self._numbered), self._rows), np.uint32)
            first = np.empty((len(self._numbered), self._distinct), np.int64)
            length = np.empty((len(self._numbered), self._distinct), np.int32)
            table = np.full((len(self._numbered), 2 * self._distinct), -1, np.int32)
            counts = np.zeros(len(self._numbered), np.int64)
            status, rows = self._loops.split_fields(
                letters, words, size, ended, b"\r" in data, self._kinds, self._slots,
                bounds, starts, widths, numbers, first, length, table, counts, self._separator, self._quote,
            )  # fmt: skip
            if status == MORE_ROWS:
                self._rows *= 2
            elif status == MORE_TEXTS and self._distinct < _MOST_TEXTS:
                self._distinct *= 4
            else:
                break
        if status == MORE_TEXTS:
            full = [name for name, count in zip(self._numbered, counts, strict=True) if count == self._distinct]
            return Split(bounds[:1], {}, tuple(full))
        if status == IRREGULAR:
            return None
        columns = {
            name: TextColumn(
                SpanTexts(self._loops, data, starts[place, :rows], widths[place, :rows], self._null_values, self._quote)
            )
            for place, name in enumerate(self._texts)
        }
        for place, name in enumerate(self._numbered):
            count = counts[place]
            texts = SpanTexts(
                self._loops, data, first[place, :count], length[place, :count], self._null_values, self._quote
            )
            columns[name] = TextColumn(texts.series(), numbers[place, :rows])
        return Split(bounds[: rows + 1], columns)
