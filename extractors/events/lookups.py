"""The right side of a join: by two 64-bit hashes of the key, what stands beside it. No two keys have both in common.

A lookup that would not fit into memory keeps its values in a file; which of them are read then hangs on what is asked.
"""

import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from extractors.tables.rows import Rows, TextColumn
from warehouse.arrays import I64, U64
from warehouse.sort_keys import encode

# What the hashes of a key are called among a lookup's columns: no column of a source is.
HASHES = ("_first hash", "_second hash")
# What each row of a stored lookup takes in memory, and a part of what it takes while the keys are put in order.
INDEX_BYTES = 16
_SEEDS = (11, 12)
_MARKS = pl.Series([None, "missed"], dtype=pl.String)
# A looked-up column is numbered where a sample of it holds at most this share of distinct texts.
_SAMPLE, _DISTINCT = 10_000, 0.1


def hashes_of(keys: pl.DataFrame) -> tuple[U64, U64]:
    """Two hashes of each row's key, whatever its columns are called."""
    named = keys.select(pl.col(name).alias(str(place)) for place, name in enumerate(keys.columns))
    first, second = (named.hash_rows(seed=seed).to_numpy() for seed in _SEEDS)
    return first, second


class _KeyIndex:
    """Where each of some hashes (n,) stands."""

    def __init__(self, first: U64) -> None:
        order = np.argsort(first)
        self._first, self._row = first[order], order.astype(np.uint32)

    @property
    def repeats(self) -> bool:
        """Whether a hash stands in several places."""
        return bool((self._first[1:] == self._first[:-1]).any())

    def find(self, first: U64) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.uint32]]:
        """Which of the asked hashes (m,) stand somewhere, and where."""
        if not len(self._first):
            return np.zeros(0, np.intp), self._row
        # In their order they are found in a fifth of the time.
        order = np.argsort(first)
        asked = first[order]
        place = np.minimum(np.searchsorted(self._first, asked), len(self._first) - 1)
        hit = self._first[place] == asked
        return order[hit], self._row[place[hit]]


@dataclass
class JoinCounts:
    """What became of the rows that a join was asked for.

    Attributes:
        asked: rows with a key.
        missed: those of them whose key the other table lacks.
    """

    asked: int = 0
    missed: int = 0


@dataclass(frozen=True)
class Asking:
    """How rows ask a lookup.

    Attributes:
        keys: their columns.
        no_link: values of a key that point nowhere.
        missed: the column that gets a mark in the rows whose key is not found.
        counts: what became of the rows, added to.
        note: is given the numbers of records that `asked`, and of those that `missed`.
    """

    keys: list[str]
    no_link: list[str] = field(default_factory=list)
    missed: str | None = None
    counts: JoinCounts = field(default_factory=JoinCounts)
    note: Callable[[str, I64], None] | None = None

    def hashed(self, rows: Rows) -> tuple[U64, U64, npt.NDArray[np.bool_]]:
        """Both hashes of each row's key, and whether it is one: with a null it is none, however it hashes."""
        columns = [rows.columns[name] for name in self.keys]
        if self.no_link:
            nowhere = pl.Series(self.no_link, dtype=pl.String).implode()
            columns = [column.map(lambda texts: texts.set(texts.is_in(nowhere), None)) for column in columns]
        asked = pl.DataFrame({name: column.rows for name, column in zip(self.keys, columns, strict=True)})
        first, second = hashes_of(asked)
        return first, second, asked.select(pl.all_horizontal(pl.all().is_not_null())).to_series().to_numpy()

    def attached(
        self, rows: Rows, columns: dict[str, TextColumn], known: npt.NDArray[np.bool_], found: npt.NDArray[np.intp]
    ) -> Rows:
        """The rows with looked-up columns, and with the mark.

        Args:
            known: which rows have a key.
            found: the rows whose key was found.
        """
        asked = int(np.count_nonzero(known))
        self.counts.asked += asked
        self.counts.missed += asked - len(found)
        misses = known.astype(np.uint32)
        misses[found] = 0
        marks = {self.missed: TextColumn.of_some(_MARKS, misses)} if self.missed is not None else {}
        if self.note is not None:
            self.note("asked", rows.number if asked == len(rows) else rows.number[known])
            self.note("missed", rows.number[misses != 0])
        return Rows({**rows.columns, **columns, **marks}, rows.number, rows.hashes)


class Lookup:
    """A lookup in memory.

    Args:
        rows: (n) rows: HASHES, and columns of text.
    """

    def __init__(self, rows: pl.DataFrame) -> None:
        rows = rows.rechunk()
        first, self._second = (rows[name].to_numpy() for name in HASHES)
        self._index = _KeyIndex(first)
        self._columns = {name: _Looked.of(rows[name]) for name in rows.columns if name not in HASHES}

    @property
    def repeats(self) -> bool:
        """Whether two keys share their first hash."""
        return self._index.repeats

    def attach(self, rows: Rows, asking: Asking) -> Rows:
        """The rows with the looked-up columns, null where the key is not found; they replace columns of their name."""
        first, second, known = asking.hashed(rows)
        which, found = self._index.find(first)
        good = known[which] & (self._second[found] == second[which])
        places = np.full(len(rows), len(self._second), np.uint32)
        places[which[good]] = found[good]
        columns = {name: looked.at(places) for name, looked in self._columns.items()}
        return asking.attached(rows, columns, known, which[good])


@dataclass(frozen=True)
class _Looked:
    """A column of a lookup of n keys.

    Attributes:
        values: what stands in it, null at the end; each once where few texts say it all.
        numbers: where they do, (n + 1,) of each key, and of what is none, its place in `values`.
    """

    values: pl.Series
    numbers: npt.NDArray[np.uint32] | None

    @classmethod
    def of(cls, column: pl.Series) -> "_Looked":
        sample = column.head(_SAMPLE)
        if sample.n_unique() > _DISTINCT * len(sample):
            return cls(column.extend_constant(None, 1).rechunk(), None)
        values, numbers = encode(column)
        return cls(values.extend_constant(None, 1), np.append(numbers, len(values)).astype(np.uint32))

    def at(self, places: npt.NDArray[np.uint32]) -> TextColumn:
        if self.numbers is None:
            return TextColumn(self.values.gather(pl.Series(places)))
        return TextColumn.of_some(self.values, self.numbers[places])


class StoredLookup:
    """A lookup whose values lie in a file; use as a context manager, add all rows, then attach.

    Args:
        path: the file, which is made.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._firsts: list[U64] = []
        self._writer: pa.RecordBatchFileWriter | None = None
        self._mapped: mmap.mmap | None = None
        self.rows = 0

    def __enter__(self) -> "StoredLookup":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    def add(self, rows: pl.DataFrame) -> None:
        """Takes rows: HASHES, and columns of text."""
        if rows.is_empty():
            return
        table = rows.to_arrow(compat_level=pl.CompatLevel.oldest())
        if self._writer is None:
            self._writer = pa.ipc.new_file(self._path, table.schema)
        self._writer.write_batch(table.combine_chunks().to_batches()[0])
        self._firsts.append(rows[HASHES[0]].to_numpy())
        self.rows += len(rows)

    def seal(self) -> bool:
        """Ends the adding. Says whether each key stands there once: only then can rows ask."""
        assert self._writer is not None, "a lookup that is stored has rows"
        self._writer.close()
        with self._path.open("rb") as file:
            self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._file = pa.ipc.open_file(pa.py_buffer(self._mapped))
        self._starts = np.cumsum([0, *map(len, self._firsts)])
        self._index = _KeyIndex(np.concatenate(self._firsts))
        self._firsts = []
        return not self._index.repeats

    def frames(self) -> Iterator[pl.DataFrame]:
        """All rows that were added."""
        for number in range(self._file.num_record_batches):
            yield self._frame(self._file.get_batch(number))

    def attach(self, rows: Rows, asking: Asking) -> Rows:
        """What `Lookup.attach` gives."""
        first, second, known = asking.hashed(rows)
        which, found = self._index.find(first)
        # In the file's order: of rows that ask in an order like it, each part is then read once.
        order = np.argsort(found)
        which, found = which[order], found[order]
        ends = np.searchsorted(found, self._starts)
        parts = [
            self._file.get_batch(number).take(pa.array(found[start:end] - np.uint32(self._starts[number])))
            for number, (start, end) in enumerate(pairwise(ends))
            if start < end
        ]
        values = self._frame(*(parts or [self._file.get_batch(0).slice(0, 0)]))
        good = known[which] & (values[HASHES[1]].to_numpy() == second[which])
        places = np.full(len(rows), len(values), np.uint32)
        places[which[good]] = np.flatnonzero(good)
        self._forget()
        columns = {name: _Looked.of(values[name]).at(places) for name in values.columns if name not in HASHES}
        return asking.attached(rows, columns, known, which[good])

    @staticmethod
    def _frame(*batches: pa.RecordBatch) -> pl.DataFrame:
        frame = pl.from_arrow(pa.Table.from_batches(batches))
        assert isinstance(frame, pl.DataFrame)
        return frame

    def _forget(self) -> None:
        """The file's pages that were read are no longer this process's: they would count as its memory."""
        if self._mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._mapped.madvise(mmap.MADV_DONTNEED)
