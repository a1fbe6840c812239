"""Rows of a raw table while they become events: a column as its values and, for each row, the place of its own.

An export says the same few texts over and over, so what a rule makes of a text is worked out once for each value.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from warehouse.arrays import U8
from warehouse.sort_keys import encode

# What they are called among a frame's columns: no column of a table is.
ROW, ROW_HASH = "_number of the record", "_hash of the record"

# Of a moment to the second, as exports write them.
MOMENT_BYTES = len("2020-02-29 13:00:00")
Places = npt.NDArray[np.uint32]
# Combinations of columns are numbered one column at a time, in integers of 63 bits.
_MOST = 1 << 62


class UnreadTexts(Protocol):
    """UnreadTexts (m,) as a reader has them, not yet a series."""

    def __len__(self) -> int: ...

    def series(self) -> pl.Series:
        """The texts, null where nothing stands."""

    def letters(self) -> U8:
        """The bytes of all texts, one behind the other."""

    def moments(self) -> pl.Series | None:
        """The texts as times, where they are all moments to the second or null: quickly, or not at all."""


class TextColumn:
    """A column of n rows.

    Args:
        given: (m,) what stands in it, null where nothing does.
        places: (n,) of each row its place in `given`, all of which is some row's; None where row i is value i.
    """

    def __init__(self, given: pl.Series | UnreadTexts, places: Places | None = None) -> None:
        self._given, self.places = given, places

    @classmethod
    def of_dictionary(cls, array: pa.DictionaryArray) -> "TextColumn":
        """A column of texts as a reader that numbers them gives it."""
        values, numbers = array.dictionary, array.indices
        if numbers.null_count:
            values = pa.concat_arrays([values, pa.nulls(1, values.type)])
            numbers = numbers.fill_null(len(values) - 1)
        return cls(pl.Series(pl.from_arrow(values)), numbers.to_numpy().view(np.uint32))

    @classmethod
    def of_some(cls, values: pl.Series, places: Places) -> "TextColumn":
        """A column of values (m,) at the rows' places (n,), not all of which need be some row's.

        What no row has is left out: a rule would be asked what to make of it, and it may be much more than the rows.
        """
        if 2 * len(values) > len(places):
            return cls(values.gather(pl.Series(places)))
        used = np.zeros(len(values), np.bool_)
        used[places] = True
        if used.all():
            return cls(values, places)
        return cls(values.filter(pl.Series(used)), (np.cumsum(used) - 1)[places].astype(np.uint32))

    def __len__(self) -> int:
        return len(self._given) if self.places is None else len(self.places)

    @cached_property
    def values(self) -> pl.Series:
        """(m,) what stands in the column; distinct or not."""
        return self._given if isinstance(self._given, pl.Series) else self._given.series()

    @property
    def texts(self) -> UnreadTexts | None:
        """(n,) the texts as the reader has them, where that is how they were given and each row has its own."""
        return None if self.places is not None or isinstance(self._given, pl.Series) else self._given

    @cached_property
    def rows(self) -> pl.Series:
        """(n,) what stands in each row."""
        return self.values if self.places is None else self.values.gather(pl.Series(self.places))

    def map(self, function: Callable[[pl.Series], pl.Series]) -> "TextColumn":
        """What a function makes of each row; it is asked once a value, and must not mind the others."""
        return TextColumn(function(self.values), self.places)

    def take(self, rows: npt.NDArray[np.intp]) -> "TextColumn":
        """Some of the rows."""
        if self.places is None:
            return TextColumn(self.values.gather(pl.Series(rows)))
        return TextColumn.of_some(self.values, self.places[rows])

    def numbered(self) -> "TextColumn":
        """The same column, with each value once."""
        if self.places is not None:
            return self
        values, places = encode(self.values)
        return TextColumn(values, places.astype(np.uint32))


def without(column: TextColumn, nothing: Collection[str] | None) -> TextColumn:
    """A column without the texts that mean "nothing" in it."""
    if not nothing:
        return column
    return column.map(lambda values: values.set(values.is_in(nothing).fill_null(False), None))


@dataclass(frozen=True)
class Rows:
    """n rows of a raw table.

    Attributes:
        columns: by name, (n,) each.
        number: (n,) int64, the record's number in its file.
        hashes: (n,) uint64, of everything in the record.
    """

    columns: Mapping[str, TextColumn]
    number: npt.NDArray[np.int64]
    hashes: npt.NDArray[np.uint64]

    @classmethod
    def of_frame(cls, frame: pl.DataFrame) -> "Rows":
        """Rows of a frame that `frame` gave, with further columns or without."""
        columns = {name: TextColumn(frame[name]) for name in frame.columns if name not in (ROW, ROW_HASH)}
        return cls(columns, frame[ROW].to_numpy(), frame[ROW_HASH].to_numpy())

    def frame(self) -> pl.DataFrame:
        """The rows as a frame, their numbers as ROW and their hashes as ROW_HASH."""
        columns = {name: column.rows for name, column in self.columns.items()}
        return pl.DataFrame({**columns, ROW: self.number, ROW_HASH: self.hashes})

    def __len__(self) -> int:
        return len(self.number)

    def take(self, rows: npt.NDArray[np.intp], names: Collection[str]) -> "Rows":
        """Some columns of some of the rows."""
        columns = {name: self.columns[name].take(rows) for name in names}
        return Rows(columns, self.number[rows], self.hashes[rows])

    def with_column(self, name: str, column: TextColumn) -> "Rows":
        """The rows with one column more, or another one."""
        return Rows({**self.columns, name: column}, self.number, self.hashes)

    def by(
        self, names: Sequence[str], function: Callable[[pl.DataFrame], pl.Series], *, distinct: bool = False
    ) -> TextColumn:
        """What a function makes of each row, asked for the distinct combinations of some columns.

        Args:
            function: gives (m,) of a frame of m rows, and must not mind the others.
            distinct: it is asked once a combination also where a column is not numbered, which costs more.
        """
        names = list(dict.fromkeys(names))
        columns = [self.columns[name] for name in names]
        if not names:
            return TextColumn(function(pl.DataFrame({"_nothing": [None]})), np.zeros(len(self), np.uint32))
        if distinct:
            columns = [column.numbered() for column in columns]
        if any(column.places is None for column in columns):
            return TextColumn(
                function(pl.DataFrame({name: column.rows for name, column in zip(names, columns, strict=True)}))
            )
        column_places, places = _combinations(columns)
        frame = pl.DataFrame(
            {
                name: column.values.gather(pl.Series(of))
                for name, column, of in zip(names, columns, column_places, strict=True)
            }
        )
        return TextColumn(function(frame), places)


def _combinations(columns: list[TextColumn]) -> tuple[list[Places], Places]:
    """Of numbered columns, the places (m,) in each that combinations have, and the combination of each row (n,)."""
    first, *others = columns
    assert first.places is not None
    column_places, places = [np.arange(len(first.values), dtype=np.uint32)], first.places
    for column in others:
        assert column.places is not None
        many = len(column.values)
        assert len(column_places[0]) * many < _MOST
        found = pc.dictionary_encode(pa.array(places.astype(np.int64) * many + column.places))
        before, added = np.divmod(found.dictionary.to_numpy(), max(many, 1))
        column_places = [*(of[before] for of in column_places), added.astype(np.uint32)]
        places = found.indices.to_numpy().view(np.uint32)
    return column_places, places
