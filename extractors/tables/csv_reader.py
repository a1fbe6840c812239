"""CSV as it comes: gzipped or not, any line ends, quoted line ends, and rows that are no rows.

Decompressing and splitting into columns are what a conversion spends most of its time on, so a file is read in chunks
of whole records: by compiled loops where a chunk is regular and the file large, else by Arrow's reader.
"""

import logging
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
from isal import igzip

from extractors.tables.block import TableBlock, UnclosedQuoteError, hash_of_columns
from extractors.tables.csv_records import LINE_ENDS, Chunk, Spans, header_of, records_end, records_of
from extractors.tables.rows import MOMENT_BYTES, TextColumn

if TYPE_CHECKING:
    from extractors.tables.csv_fields import FieldSplitter, Split
    from extractors.tables.csv_loops import Loops

_LOG = logging.getLogger(__name__)
CHUNK_BYTES = 16 << 20
# Compiled loops take half a second and 140 MB to load.
COMPILED_FROM = 64 << 20
# So many chunks one behind the other that are not regular, and the rest of the file is not tried.
_REFUSALS = 2
LONGEST_RECORD = 64 << 20
_GZIP = b"\x1f\x8b"
# Of text to its compressed form, about.
_GZIP_RATIO = 5

_TEXT = pa.string()
_NUMBERED = pa.dictionary(pa.int32(), _TEXT)
# Beyond this share of distinct texts numbering them costs more than it saves.
_DISTINCT = 0.5


class CsvReader:
    """A CSV file of one header line; see extractors.tables.block.TableReader."""

    def __init__(self, path: Path, null_values: list[str]) -> None:
        self._path, self._null_values = path, null_values
        self.malformed: list[int] = []
        self.fractions: list[str] = []
        with self._open() as stream:
            head = stream.read(1 << 20)
        self.columns, self._line_end, self._first = header_of(head)
        self._size = self._path.stat().st_size * (_GZIP_RATIO if self._gzipped() else 1)

    def _gzipped(self) -> bool:
        with self._path.open("rb") as file:
            return file.read(2) == _GZIP

    def _open(self) -> BinaryIO:
        if not self._gzipped():
            return self._path.open("rb")
        return cast(BinaryIO, igzip.IGzipFile(self._path, "rb"))  # type: ignore[no-untyped-call]

    def blocks(self, columns: list[str], seed: int | None, plain: Collection[str] | None) -> Iterator[TableBlock]:
        # Columns that are read as texts; the others are numbered, until most of their texts turn out to differ.
        texts = set(columns if plain is None else plain)
        compiled = _Compiled(self.columns, columns, self._null_values, texts, self._size)
        first = 1
        with self._open() as stream:
            stream.read(self._first)
            data = stream.read(CHUNK_BYTES)
            ended = False
            while not ended:
                more = stream.read(CHUNK_BYTES)
                ended = not more
                if ended and data and data[-1:] not in LINE_ENDS:
                    # Else the reader takes the last line end for that of a record, though it may stand in quotes.
                    data += self._line_end
                split = compiled.split(data, ended=ended)
                if split is not None:
                    chunk, data = Chunk(data, int(split.bounds[-1])), data[int(split.bounds[-1]) :] + more
                    hashes = None if seed is None else chunk.records(split.bounds).hash(seed=seed)
                    yield TableBlock(split.columns, first, (), hashes)
                    first += len(split.bounds) - 1
                    continue
                cut, quoted = records_end(data, ended)
                chunk, data = Chunk(data, cut), data[cut:] + more
                if not cut:
                    if len(data) > LONGEST_RECORD + CHUNK_BYTES:
                        raise UnclosedQuoteError
                    continue
                before = len(self.malformed)
                table = self._split(chunk, columns, texts, first)
                gaps = tuple(number - first for number in self.malformed[before:])
                if len(table):
                    hashes = None if seed is None else self._hashes(chunk, quoted, gaps, len(table), first, seed)
                    yield TableBlock(_columns_of(table, texts), first, gaps, hashes)
                first += len(table) + len(gaps)

    def _split(self, chunk: Chunk, columns: list[str], texts: Collection[str], first: int) -> pa.Table:
        def malformed(row: pacsv.InvalidRow) -> str:
            self.malformed.append(first + row.number - 1)
            return "skip"

        # Else the reader prints a traceback where it cannot decode a malformed row.
        chunk.check()
        return pacsv.read_csv(
            pa.BufferReader(chunk.records_alone()),
            read_options=pacsv.ReadOptions(column_names=self.columns, use_threads=False, block_size=chunk.end + 4),
            parse_options=pacsv.ParseOptions(invalid_row_handler=malformed),
            convert_options=pacsv.ConvertOptions(
                column_types={name: _TEXT if name in texts else _NUMBERED for name in columns},
                include_columns=columns,
                null_values=self._null_values,
                strings_can_be_null=True,
                check_utf8=False,
            ),
        )

    def _hashes(
        self, chunk: Chunk, quoted: Spans, gaps: tuple[int, ...], rows: int, first: int, seed: int
    ) -> pl.Series:
        """Hashes of the records as they stand: a fifth of the time that hashes of every column take."""
        records = records_of(chunk, quoted)
        if gaps:
            kept = np.ones(len(records), np.bool_)
            kept[[gap for gap in gaps if gap < len(records)]] = False
            records = records.filter(pl.Series(kept))
        if len(records) == rows:
            return records.hash(seed=seed)
        # The reader sees other records than we do: only what it made of them can be told apart.
        known = len(self.malformed)
        frame = pl.from_arrow(self._split(chunk, self.columns, self.columns, first))
        assert isinstance(frame, pl.DataFrame)
        del self.malformed[known:]
        return hash_of_columns(frame, seed)


class _Compiled:
    """Splits regular chunks by compiled loops, in files that are worth their loading.

    Args:
        names: the table's columns.
        wanted: those of them that are read.
        texts: those that are not numbered; brought up to date.
        size: bytes of text that the file holds, or about that.
    """

    loops: "Loops | None" = None
    """What this process has loaded."""
    missing = False
    """Whether they cannot be had here."""

    def __init__(self, names: list[str], wanted: list[str], null_values: list[str], texts: set[str], size: int) -> None:
        self._names, self._wanted, self._null_values, self._texts = names, wanted, null_values, texts
        if size >= COMPILED_FROM:
            self._load()
        self._splitter: FieldSplitter | None = None
        self._refused = 0

    @classmethod
    def _load(cls) -> None:
        if cls.loops is not None or cls.missing:
            return
        try:
            from extractors.tables.csv_loops import compiled

            cls.loops = compiled()
        except ImportError:
            cls.missing = True
            _LOG.warning("numba cannot be imported: large CSV files are read by the slower reader")

    def split(self, data: bytes, *, ended: bool) -> "Split | None":
        """The records at the front of some data; None where that is not for the compiled loops.

        Raises:
            pa.ArrowInvalid: not UTF-8.
        """
        if self.loops is None or self._refused == _REFUSALS:
            return None
        from extractors.tables.csv_fields import FieldSplitter

        Chunk(data, data.rfind(b"\n") + 1).check()
        while True:
            if self._splitter is None:
                self._splitter = FieldSplitter(self.loops, self._names, self._wanted, self._texts, self._null_values)
            found = self._splitter.split(data, ended=ended)
            if found is None:
                self._refused += 1
                return None
            self._refused = 0
            rows = len(found.bounds) - 1
            crowded = {*found.crowded, *(name for name, column in found.columns.items() if _is_crowded(column, rows))}
            if crowded:
                self._texts |= crowded
                self._splitter = None
            if not found.crowded:
                return found


def _is_crowded(column: TextColumn, rows: int) -> bool:
    """Whether numbering the texts of some rows costs more than it saves."""
    return column.places is not None and len(column.values) > _DISTINCT * rows


def _columns_of(table: pa.Table, texts: set[str]) -> dict[str, TextColumn]:
    """The columns of a table; `texts` is brought up to date."""
    found = {}
    for name in table.column_names:
        array = table.column(name).combine_chunks()
        if name in texts:
            found[name] = TextColumn(ArrowTexts(array))
            continue
        found[name] = TextColumn.of_dictionary(array)
        if _is_crowded(found[name], len(array)):
            texts.add(name)
    return found


class ArrowTexts:
    """Texts (n,) as Arrow's reader gives them; see extractors.tables.rows.UnreadTexts."""

    def __init__(self, array: pa.StringArray) -> None:
        self._array = array

    def __len__(self) -> int:
        return len(self._array)

    def series(self) -> pl.Series:
        return pl.Series(pl.from_arrow(self._array))

    def moments(self) -> pl.Series | None:
        # Arrow reads dates, minutes and other separators too, so lengths and separators are looked at first.
        array = self._array
        offsets = np.frombuffer(array.buffers()[1], np.int32, len(array) + 1, array.offset * 4)
        lengths, present = np.diff(offsets), len(array) - array.null_count
        long_ones = np.count_nonzero(lengths == MOMENT_BYTES)
        if not present or long_ones != present or np.count_nonzero(lengths) != present:
            return None
        letters = np.frombuffer(array.buffers()[2], np.uint8, present * MOMENT_BYTES, int(offsets[0]))
        if (letters[10::MOMENT_BYTES] != ord(" ")).any():
            return None
        try:
            return pl.Series(pl.from_arrow(pc.cast(array, pa.timestamp("us"))))
        except pa.ArrowInvalid:
            return None
