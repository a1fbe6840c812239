"""One raw table as blocks of text columns, whatever it lies in: CSV, gzipped CSV, Parquet or a DuckDB file."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from isal.igzip_lib import IsalError

from extractors.tables.rows import Column
from warehouse.errors import TimeloomError

BATCH_ROWS = 1 << 17
DATABASE = ".duckdb"
# Its library declares the class of its errors as an instance of it.
_ISAL_ERROR = cast(type[Exception], IsalError)
_UNREADABLE = (OSError, EOFError, _ISAL_ERROR, pa.ArrowException, pl.exceptions.PolarsError)


@dataclass(frozen=True)
class Block:
    """Rows of a raw table, text columns.

    Attributes:
        columns: by name, (n,) each.
        first: number of the block's first record; records are counted from 1, the header apart.
        gaps: places, counted from the block's first record, of records that were malformed and are not in `columns`.
        hashes: of each row over everything that it holds, uint64; None where they were not asked for.
    """

    columns: Mapping[str, Column]
    first: int
    gaps: tuple[int, ...] = ()
    hashes: pl.Series | None = None

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


class Reader(Protocol):
    """What reads one kind of file.

    Attributes:
        columns: the table's columns, in its order.
        malformed: numbers of the records met so far whose number of fields is wrong.
    """

    columns: list[str]
    malformed: list[int]

    def blocks(self, columns: list[str], seed: int | None, plain: Collection[str] | None) -> Iterator[Block]:
        """The rows in the file's order, null where the export says nothing; with hashes where there is a seed.

        Columns may be numbered where `plain` names them not.
        """


class RawTable:
    """One file of a table.

    Args:
        table: the table's name; in a database it says which table.
        label: what errors and events call it.
        null_values: texts that mean "nothing", besides an empty field.
        lower_case: column names are taken in lower case.
        optional_columns: columns that are null where the file lacks them.
    """

    def __init__(
        self,
        path: Path,
        table: str,
        null_values: list[str],
        *,
        label: str | None = None,
        lower_case: bool = False,
        optional_columns: tuple[str, ...] = (),
    ) -> None:
        self.label = label or table
        self._optional = optional_columns
        try:
            self._reader = _reader_of(path, table, ["", *null_values])
        except UnclosedQuoteError as error:
            raise self._unclosed() from error
        except _UNREADABLE as error:
            raise self._refuse(
                "is not readable", "check the file: truncated, not what its name says, or not yours to read"
            ) from error
        names = [name.lower() if lower_case else name for name in self._reader.columns]
        if not any(names):
            raise self._refuse("has no header line", "export it again, or mark it `optional: true`")
        repeated = [number for number, name in enumerate(names, 1) if names.index(name) != number - 1]
        if repeated:
            # By number: without a header the first line is a patient's.
            first = names.index(names[repeated[0] - 1]) + 1
            raise self._refuse(
                f"has columns {first} and {repeated[0]} of one name", "rename one of them, or add the header line"
            )
        self._spelt = dict(zip(names, self._reader.columns, strict=True))
        self.columns = names

    @property
    def malformed(self) -> list[int]:
        """Numbers of the records met so far that have another number of fields than the header."""
        return self._reader.malformed

    def _refuse(self, what: str, remedy: str) -> TimeloomError:
        return TimeloomError(f"table {self.label}: {what}", remedy=remedy)

    def _unclosed(self) -> TimeloomError:
        return self._refuse("has a quoted field that is never closed", "export it again, its quotes doubled")

    def require(self, columns: set[str]) -> None:
        """Refuses the file where a column is missing.

        Raises:
            TimeloomError: names the column.
        """
        missing = sorted(columns - set(self.columns) - set(self._optional))
        if missing:
            alone = len(self.columns) == 1
            remedy = "separate its columns by commas" if alone else "mend the export, or the source's YAML"
            raise self._refuse(f"lacks the column {missing[0]}", remedy)

    def blocks(
        self, columns: list[str] | None = None, *, seed: int | None = None, plain: Collection[str] | None = None
    ) -> Iterator[Block]:
        """Blocks of the wanted columns, all where None, in the file's order; optional ones that are absent as nulls.

        Args:
            plain: columns whose every row is wanted as it stands; the others may be numbered. None for all.
            seed: gives a hash of each row as it stands in the file, wanted or not: equal rows have equal ones. Without
                the seed nobody can try which row has a hash.

        Raises:
            TimeloomError: truncated, not UTF-8, not what the name says, or with a quote that is never closed.
        """
        wanted = self.columns if columns is None else [name for name in columns if name in self._spelt]
        absent = [name for name in self._optional if name not in self._spelt and (columns is None or name in columns)]
        # To count the rows, a reader needs a column.
        spelt = [self._spelt[name] for name in wanted] or self._reader.columns[:1]
        kept = None if plain is None else [self._spelt[name] for name in wanted if name in plain]
        try:
            for block in self._reader.blocks(spelt, seed, kept):
                found = {name: block.columns[self._spelt[name]] for name in wanted}
                found |= {name: _nothing(len(block)) for name in absent}
                yield Block(found, block.first, block.gaps, block.hashes)
        except UnclosedQuoteError as error:
            raise self._unclosed() from error
        except _UNREADABLE as error:
            raise self._refuse(
                "breaks off or is not readable text", "check the file: truncated, not UTF-8, or not CSV"
            ) from error


def _nothing(rows: int) -> Column:
    """A column of nulls."""
    return Column(pl.Series([None], dtype=pl.String), np.zeros(rows, np.uint32))


class UnclosedQuoteError(Exception):
    """A quoted field swallowed the rows after its start."""


def _reader_of(path: Path, table: str, null_values: list[str]) -> Reader:
    if path.name.lower().endswith(".parquet"):
        return ParquetReader(path, null_values)
    if path.name.lower().endswith(DATABASE):
        return DatabaseReader(path, table, null_values)
    from extractors.tables.csv_reader import CsvReader

    return CsvReader(path, null_values)


class ParquetReader:
    """A Parquet file; every column as text."""

    def __init__(self, path: Path, null_values: list[str]) -> None:
        self._path, self._null_values = path, null_values
        self.columns = list(pq.read_schema(path).names)
        self.malformed: list[int] = []

    def blocks(self, columns: list[str], seed: int | None, plain: Collection[str] | None) -> Iterator[Block]:
        read = columns if seed is None else self.columns
        with pq.ParquetFile(self._path) as file:
            batches = (pl.from_arrow(batch) for batch in file.iter_batches(columns=read, batch_size=BATCH_ROWS))
            yield from _numbered(batches, self._null_values, columns, seed)


class DatabaseReader:
    """A table of a DuckDB file."""

    def __init__(self, path: Path, table: str, null_values: list[str]) -> None:
        from extractors.tables.database import database_columns

        self._path, self._table, self._null_values = path, table, null_values
        self.columns = database_columns(path, table)
        self.malformed: list[int] = []

    def blocks(self, columns: list[str], seed: int | None, plain: Collection[str] | None) -> Iterator[Block]:
        from extractors.tables.database import database_frames

        read = columns if seed is None else self.columns
        yield from _numbered(database_frames(self._path, self._table, read), self._null_values, columns, seed)


def _numbered(
    frames: Iterator[pl.DataFrame | pl.Series], null_values: list[str], columns: list[str], seed: int | None
) -> Iterator[Block]:
    first = 1
    for frame in frames:
        assert isinstance(frame, pl.DataFrame)
        text = frame.with_columns(_as_text(frame[name]) for name in frame.columns)
        text = text.with_columns(pl.when(~pl.all().is_in(null_values)).then(pl.all()))
        found = {name: Column(text[name]) for name in columns}
        yield Block(found, first, hashes=None if seed is None else hash_of_columns(text, seed))
        first += len(frame)


def _as_text(values: pl.Series) -> pl.Series:
    """Typed values as an export would write them."""
    dtype = values.dtype
    if dtype.is_float():
        # An id that some tool made a float is still that id; what is no number is nothing.
        whole = (values == values.round()) & (values.abs() < 2**53)
        return values.cast(pl.Int64, strict=False).cast(pl.String).zip_with(
            whole.fill_null(False), values.fill_nan(None).cast(pl.String)
        )  # fmt: skip
    if isinstance(dtype, pl.Datetime):
        zoned = dtype.time_zone is not None
        local = values.dt.convert_time_zone("UTC").dt.replace_time_zone(None) if zoned else values
        written = local.dt.cast_time_unit("us").dt.to_string("%Y-%m-%d %H:%M:%S%.f")
        return written + "+00:00" if zoned else written
    if dtype == pl.Binary:
        return values.bin.encode("hex")
    if dtype.is_nested():
        return values.to_frame().select(pl.struct(pl.all()).struct.json_encode()).to_series().alias(values.name)
    return values.cast(pl.String)


def hash_of_columns(rows: pl.DataFrame, seed: int) -> pl.Series:
    """A hash of each row (n,) uint64, whatever the order of its columns."""
    return rows.select(sorted(rows.columns)).hash_rows(seed=seed)
