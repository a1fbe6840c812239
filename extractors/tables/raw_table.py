"""One raw table as blocks of text columns, whatever it lies in: CSV, gzipped CSV, Parquet or a DuckDB file."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
import polars as pl
import pyarrow as pa
from isal.igzip_lib import IsalError

from extractors.ids import SubjectIds
from extractors.reading import TableReading
from extractors.tables.block import BATCH_ROWS, BrokenCsvError, NotTextError, TableBlock
from extractors.tables.content_blocks import Known, RecordBlocks
from extractors.tables.csv_dialect import Request
from extractors.tables.id_columns import IdKind, IdReader
from extractors.tables.rows import TextColumn, without
from extractors.tables.table_reader import TableReader
from extractors.tables.typed_readers import DatabaseReader, ParquetReader
from warehouse.errors import TimeloomError

DATABASE = ".duckdb"
# Its library declares the class of its errors as an instance of it.
_ISAL_ERROR = cast(type[Exception], IsalError)
_UNREADABLE = (OSError, EOFError, _ISAL_ERROR, pa.ArrowException, pl.exceptions.PolarsError)


class RawTable:
    """One file of a table.

    Args:
        table: the table's name; in a database it says which table.
        label: what errors call the table.
        part: gives which of the table's files it is, in words; asked where an error says so.
        null_values: texts that mean "nothing", besides an empty field.
        reading: how the table is written: separators, quotes, encoding, what means "nothing" in some columns alone, and
            where the comma divides.
        needed: columns that the source needs of it; they tell the separator where `reading` does not say it.
        detect: the header may show the separator.
        lower_case: column names are taken in lower case.
        optional_columns: columns that are null where the file lacks them.
        ids: columns that hold ids of subjects and visits; see extractors.tables.id_columns.
        subjects: how ids of subjects become one spelling.
        rows: of a block of a file that has types; a CSV is read by its bytes.
    """

    def __init__(
        self,
        path: Path,
        table: str,
        null_values: list[str],
        *,
        label: str | None = None,
        part: Callable[[], str] | None = None,
        reading: TableReading | None = None,
        lower_case: bool = False,
        optional_columns: tuple[str, ...] = (),
        needed: Collection[str] = (),
        detect: bool = True,
        ids: Mapping[str, IdKind] | None = None,
        subjects: SubjectIds | None = None,
        rows: int = BATCH_ROWS,
    ) -> None:
        self._table, self._part = label or table, part
        self._optional = optional_columns
        reading = reading or TableReading()
        self._nothing = {name: reading.of_column(name).nothing for name in reading.columns}
        self._encoding = reading.encoding
        request = Request(reading, frozenset(needed), lower_case, detect)
        self._ids = IdReader(ids or {}, subjects or SubjectIds())
        try:
            self._reader = _reader_of(path, table, ["", *null_values], request, rows)
        except BrokenCsvError as error:
            raise self._broken(error) from error
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
        fractions = (name for name in names if self._spelt[name] in self._reader.fractions)
        self._commas = {name for name in fractions if reading.of_column(name).decimal_sign == ","}
        self.columns = names

    @cached_property
    def label(self) -> str:
        """What errors call the file."""
        return f"{self._table}{self._part() if self._part else ''}"

    @property
    def malformed(self) -> list[int]:
        """Numbers of the records met so far that have another number of fields than the header, or text behind a
        closing quote."""
        return self._reader.malformed

    @property
    def repeated(self) -> list[int]:
        """Numbers of the records met so far that say what the header says: they are no rows."""
        return self._reader.repeated

    @property
    def no_rows(self) -> dict[str, list[int]]:
        """Numbers of the records met so far that are no rows, by reason."""
        return {"malformed_row": self.malformed, "repeated_header": self.repeated}

    @property
    def invisible(self) -> Counter[str]:
        """Rows met so far in whose ids something stood that nobody sees, by what they are counted under."""
        return self._ids.invisible

    @property
    def noticed(self) -> str:
        """In words, what nobody said of how the file is written, but its first rows show; empty where nothing."""
        return self._reader.noticed

    def _refuse(self, what: str, remedy: str) -> TimeloomError:
        return TimeloomError(f"table {self.label}: {what}", remedy=remedy)

    def _broken(self, error: BrokenCsvError) -> TimeloomError:
        where = f"record {error.record}" if error.record else "the header"
        if not isinstance(error, NotTextError):
            return self._refuse(
                f"{where} has a quoted field that is never closed",
                "export it again, its quotes doubled, or say in `reading` how it is written: `escape`, `quote: none`",
            )
        if self._encoding:
            return self._refuse(f"{where} is not {self._encoding}", "mend `encoding` in `reading`")
        return self._refuse(
            f"{where} is not UTF-8", f"say its encoding in `reading`, such as `encoding: {error.likely}`"
        )

    def require(self, columns: set[str]) -> None:
        """Refuses the file where a column is missing.

        Raises:
            TimeloomError: names the column.
        """
        missing = sorted(columns - set(self.columns) - set(self._optional))
        if missing:
            alone = len(self.columns) == 1
            remedy = "say in `reading` what separates its columns" if alone else "mend the export, or the source's YAML"
            raise self._refuse(f"lacks the column {missing[0]}", remedy)

    def follow(self, seed: int, known: Known | None = None, *, known_alone: bool = False) -> RecordBlocks | None:
        """What gets to know the file's blocks while `blocks` gives their rows, but for those of the known ones; None
        where the file is small, or none whose blocks can be told.

        Args:
            known_alone: `blocks` gives the rows of the known ones, and no others.
        """
        return self._reader.follow(seed, known, known_alone=known_alone)

    def blocks(
        self, columns: list[str] | None = None, *, seed: int | None = None, plain: Collection[str] | None = None
    ) -> Iterator[TableBlock]:
        """Blocks of the wanted columns, all where None, in the file's order; optional ones that are absent as nulls.

        Args:
            plain: columns whose every row is wanted as it stands; the others may be numbered. None for all.
            seed: gives a hash of each row as it stands in the file, wanted or not: equal rows have equal ones. Without
                the seed nobody can try which row has a hash.

        Raises:
            TimeloomError: truncated, not text, not what the name says, or with a quote that is never closed.
        """
        wanted = self.columns if columns is None else [name for name in columns if name in self._spelt]
        absent = [name for name in self._optional if name not in self._spelt and (columns is None or name in columns)]
        # To count the rows, a reader needs a column.
        spelt = [self._spelt[name] for name in wanted] or self._reader.columns[:1]
        kept = None if plain is None else [self._spelt[name] for name in wanted if name in plain]
        behind = 1
        try:
            for block in self._reader.blocks(spelt, seed, kept):
                behind = block.behind
                found = {name: self._read(name, block.columns[self._spelt[name]]) for name in wanted}
                found |= {name: _nothing(len(block)) for name in absent}
                yield TableBlock(found, block.first, block.gaps, block.hashes)
        except BrokenCsvError as error:
            raise self._broken(error) from error
        except _UNREADABLE as error:
            where = f"breaks off behind record {behind - 1}" if behind > 1 else "breaks off"
            raise self._refuse(
                f"{where} or is not readable text", "check the file: truncated, not UTF-8, or not CSV"
            ) from error

    def _read(self, name: str, column: TextColumn) -> TextColumn:
        """A column without what means "nothing" in it alone, its ids in one spelling, its typed numbers written as the
        table's others are."""
        column = without(column, self._nothing.get(name))
        if name in self._commas:
            column = column.map(lambda values: values.str.replace(".", ",", literal=True))
        return self._ids.read(name, column)


def _nothing(rows: int) -> TextColumn:
    """A column of nulls."""
    return TextColumn(pl.Series([None], dtype=pl.String), np.zeros(rows, np.uint32))


def _reader_of(path: Path, table: str, null_values: list[str], request: Request, rows: int) -> TableReader:
    if path.name.lower().endswith(".parquet"):
        return ParquetReader(path, null_values, rows)
    if path.name.lower().endswith(DATABASE):
        return DatabaseReader(path, table, null_values, rows)
    from extractors.tables.csv_reader import CsvReader

    return CsvReader(path, null_values, request)
