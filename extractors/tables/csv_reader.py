"""CSV as it comes: gzipped or not, any line ends, quoted line ends, and rows that are no rows.

Decompressing and splitting into columns are what a conversion spends most of its time on, so a file is read in chunks
of whole records: by compiled loops where a chunk is regular and the file large, else by Arrow's reader.
"""

import logging
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
from isal import igzip

from extractors.tables.block import (
    BrokenCsvError,
    NotTextError,
    TableBlock,
    UnclosedQuoteError,
    hash_of_columns,
)
from extractors.tables.content_blocks import Known, KnownRecords, RecordBlocks, UnknownRecords
from extractors.tables.csv_dialect import HEAD_BYTES, NOTHING_SAID, Recoded, Request, Stream, grammar_of, hint_of
from extractors.tables.csv_records import LINE_ENDS, Chunk, Grammar, Spans, numbers_at, records_of
from extractors.tables.rows import MOMENT_BYTES, TextColumn
from warehouse.arrays import U8

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
    """A CSV file of one header line; see extractors.tables.table_reader.TableReader.

    Args:
        request: what is said of how it is written, and what helps to find out.

    Attributes:
        noticed: in words what nobody said of how it is written, but its first rows show; empty where that is nothing.

    Raises:
        UnclosedQuoteError: a quoted name swallows rows.
        NotTextError: the header is no text.
    """

    def __init__(self, path: Path, null_values: list[str], request: Request = NOTHING_SAID) -> None:
        self._path, self._null_values = path, null_values
        encoding = request.reading.encoding
        self._encoding = None if encoding in (None, "utf-8") else encoding
        self.malformed: list[int] = []
        self.fractions: list[str] = []
        self.repeated: list[int] = []
        with self._open() as stream:
            head = self._text_of(stream).read(HEAD_BYTES)
        self._likely = hint_of(head)
        self._grammar, self.noticed = grammar_of(request, path.name, head)
        header, self._line_end, self._first = self._grammar.header_of(head)
        try:
            self.columns = self._grammar.names_of(header.decode())
        except UnicodeDecodeError as error:
            broken = NotTextError(record=0)
            broken.likely = self._likely
            raise broken from error
        self._size = self._path.stat().st_size * (_GZIP_RATIO if self._gzipped() else 1)
        self._followed: RecordBlocks | None = None
        self._records: type[UnknownRecords] = UnknownRecords

    def follow(self, seed: int, known: Known | None, *, known_alone: bool) -> RecordBlocks | None:
        grammar = self._grammar
        # Smaller files are soon read, and the general reader does not say where its records end.
        if grammar.escape or self._size < COMPILED_FROM:
            return None
        written = [self._encoding, grammar.separator, grammar.quote, repr(self._line_end), *self.columns]
        self._followed = RecordBlocks(seed, self._size, written, known)
        self._records = KnownRecords if known_alone else UnknownRecords
        return self._followed

    def _gzipped(self) -> bool:
        with self._path.open("rb") as file:
            return file.read(2) == _GZIP

    def _open(self) -> BinaryIO:
        if not self._gzipped():
            return self._path.open("rb")
        return cast(BinaryIO, igzip.IGzipFile(self._path, "rb"))  # type: ignore[no-untyped-call]

    def _text_of(self, stream: BinaryIO) -> Stream:
        return Recoded(stream, self._encoding) if self._encoding else stream

    def blocks(self, columns: list[str], seed: int | None, plain: Collection[str] | None) -> Iterator[TableBlock]:
        # Columns that are read as texts; the others are numbered, until most of their texts turn out to differ.
        texts = set(columns if plain is None else plain)
        compiled = _Compiled(self.columns, columns, self._null_values, texts, self._size, self._grammar)
        first = 1
        data = b""
        with self._open() as opened:
            try:
                stream = self._text_of(opened)
                stream.read(self._first)
                if self._followed is not None and self._followed.known is not None:
                    known = self._followed.known
                    stream = self._records(stream, known, self._followed, self._grammar, self._line_end)
                data = stream.read(CHUNK_BYTES)
                ended = False
                while not ended:
                    more = stream.read(CHUNK_BYTES)
                    ended = not more
                    if ended and data and data[-1:] not in LINE_ENDS:
                        # Else the reader takes the last line end for that of a record, though it may stand in quotes.
                        data += self._line_end
                    split = compiled.split(data, ended=ended)
                    if split is not None and not self._may_repeat(split.columns):
                        chunk, data = Chunk(data, int(split.bounds[-1])), data[int(split.bounds[-1]) :] + more
                        hashes = None if seed is None else chunk.records(split.bounds).hash(seed=seed)
                        if self._followed is not None and hashes is not None:
                            self._followed.take(chunk.data, split.bounds, hashes.to_numpy(), first)
                        yield TableBlock(split.columns, first, (), hashes)
                        first += len(split.bounds) - 1
                        continue
                    cut, quoted = self._grammar.records_end(data, ended)
                    # Else the reader prints a traceback where it cannot decode a malformed row.
                    Chunk(data, cut).check()
                    chunk, data = Chunk(data, cut), data[cut:] + more
                    if not cut:
                        if len(data) > LONGEST_RECORD + CHUNK_BYTES:
                            raise UnclosedQuoteError
                        continue
                    if self._followed is not None:
                        self._followed.drop()
                    block, records = self._general(chunk, quoted, columns, texts, first, seed)
                    if len(block):
                        yield block
                    first += records
            except BrokenCsvError as error:
                place = len(data) if error.place is None else error.place
                error.record = first + self._records_before(data, place)
                if isinstance(error, NotTextError):
                    error.likely = self._likely
                raise

    def _records_before(self, data: bytes, place: int) -> int:
        """How many whole records stand before a place in some data."""
        try:
            _, quoted = self._grammar.records_end(data[:place], ended=False)
        except UnclosedQuoteError as error:
            return self._records_before(data, error.place or 0)
        # Up to the place, and not to the last line end of one kind: what kinds there are hangs on where a chunk began.
        return len(records_of(Chunk(data, place), quoted))

    def _general(
        self, chunk: Chunk, quoted: Spans, columns: list[str], texts: set[str], first: int, seed: int | None
    ) -> tuple[TableBlock, int]:
        """A chunk as the general reader splits it, and how many records it holds."""
        places = np.array([place for place in quoted.spoilt if place < chunk.end], np.int64)
        spoilt = numbers_at(chunk, quoted, places) if len(places) else places
        chunk, quoted = self._grammar.without_escapes(chunk, quoted)
        table, malformed = self._split(chunk, columns, texts)
        records = len(table) + len(malformed)
        numbers = np.delete(np.arange(records), malformed)
        is_spoilt = np.isin(numbers, spoilt)
        is_header = self._says_header(table, chunk, columns) & ~is_spoilt
        kept = ~(is_spoilt | is_header)
        if not kept.all():
            table = _some_of(table, kept)
        self.malformed += sorted(first + number for number in {*malformed, *numbers[is_spoilt].tolist()})
        self.repeated += (first + numbers[is_header]).tolist()
        gaps = tuple(sorted({*malformed, *numbers[~kept].tolist()}))
        hashes = None if seed is None or not len(table) else self._hashes(chunk, quoted, gaps, kept, seed)
        return TableBlock(_columns_of(table, texts), first, gaps, hashes), records

    def _split(self, chunk: Chunk, columns: list[str], texts: Collection[str]) -> tuple[pa.Table, list[int]]:
        """A chunk's rows, and the numbers, from 0, of its records that have another number of fields."""
        malformed: list[int] = []

        def skipped(row: pacsv.InvalidRow) -> str:
            malformed.append(row.number - 1)
            return "skip"

        return pacsv.read_csv(
            pa.BufferReader(chunk.records_alone()),
            read_options=pacsv.ReadOptions(column_names=self.columns, use_threads=False, block_size=chunk.end + 4),
            parse_options=pacsv.ParseOptions(
                delimiter=self._grammar.separator,
                quote_char=self._grammar.quote or False,
                invalid_row_handler=skipped,
            ),
            convert_options=pacsv.ConvertOptions(
                column_types={name: _TEXT if name in texts else _NUMBERED for name in columns},
                include_columns=columns,
                null_values=self._null_values,
                strings_can_be_null=True,
                check_utf8=False,
            ),
        ), malformed

    def _may_repeat(self, columns: Mapping[str, TextColumn]) -> bool:
        """Whether a column says its own name somewhere, as all do in a record that says what the header says."""
        # The one of the fewest texts is soonest looked through.
        numbered = [name for name, column in columns.items() if column.places is not None]
        name = min(numbered, key=lambda name: len(columns[name].values), default=next(iter(columns), None))
        return name is not None and bool(columns[name].values.is_in(self._spellings(name)).any())

    def _spellings(self, name: str) -> list[str]:
        """What stands in a column where the header is repeated; before the first there may be a mark of byte order."""
        return [name, f"\ufeff{name}", f'\ufeff"{name}"'] if name == self.columns[0] else [name]

    def _says_header(self, table: pa.Table, chunk: Chunk, columns: list[str]) -> npt.NDArray[np.bool_]:
        """Which rows say what the header says."""
        found = np.ones(len(table), np.bool_)
        # A column whose texts are numbered is soonest looked through.
        telling = sorted(
            (name for name in columns if name not in self._null_values),
            key=lambda name: not pa.types.is_dictionary(table.schema.field(name).type),
        )[:1]
        for name in telling:
            found &= _holds(table.column(name), self._spellings(name))
        if not telling or not found.any():
            return np.zeros(len(table), np.bool_)
        whole, _ = self._split(chunk, self.columns, self.columns)
        for name in self.columns:
            column = whole.column(name)
            empty = name in self._null_values
            found &= pc.is_null(column).to_numpy() if empty else _holds(column, self._spellings(name))
        return found

    def _hashes(
        self, chunk: Chunk, quoted: Spans, gaps: tuple[int, ...], kept: npt.NDArray[np.bool_], seed: int
    ) -> pl.Series:
        """Hashes of the records as they stand: a fifth of the time that hashes of every column take.

        Args:
            gaps: numbers of the records that are no rows.
            kept: which of the rows that the reader found are rows.
        """
        records = records_of(chunk, quoted)
        if gaps:
            rows = np.ones(len(records), np.bool_)
            rows[[gap for gap in gaps if gap < len(records)]] = False
            records = records.filter(pl.Series(rows))
        if len(records) == kept.sum():
            return records.hash(seed=seed)
        # The reader sees other records than we do: only what it made of them can be told apart.
        frame = pl.from_arrow(self._split(chunk, self.columns, self.columns)[0])
        assert isinstance(frame, pl.DataFrame)
        return hash_of_columns(frame.filter(pl.Series(kept)), seed)


class _Compiled:
    """Splits regular chunks by compiled loops, in files that are worth their loading.

    Args:
        names: the table's columns.
        wanted: those of them that are read.
        texts: those that are not numbered; brought up to date.
        size: bytes of text that the file holds, or about that.
        grammar: how the file is written.
    """

    loops: "Loops | None" = None
    """What this process has loaded."""
    missing = False
    """Whether they cannot be had here."""

    def __init__(
        self, names: list[str], wanted: list[str], null_values: list[str], texts: set[str], size: int, grammar: Grammar
    ) -> None:
        self._names, self._wanted, self._null_values, self._texts = names, wanted, null_values, texts
        self._grammar = grammar
        if size >= COMPILED_FROM and not grammar.escape:
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
            NotTextError: not UTF-8.
        """
        if self.loops is None or self._grammar.escape or self._refused == _REFUSALS:
            return None
        from extractors.tables.csv_fields import FieldSplitter

        Chunk(data, data.rfind(b"\n") + 1).check()
        while True:
            if self._splitter is None:
                self._splitter = FieldSplitter(
                    self.loops, self._names, self._wanted, self._texts, self._null_values, self._grammar
                )
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


def _holds(column: pa.ChunkedArray, texts: list[str]) -> npt.NDArray[np.bool_]:
    """Which rows of a column hold one of some texts."""
    array = column.combine_chunks()
    if not pa.types.is_dictionary(array.type):
        found: npt.NDArray[np.bool_] = pc.is_in(array, pa.array(texts)).to_numpy(zero_copy_only=False)
        return found
    numbered = pc.is_in(array.dictionary, pa.array(texts)).to_numpy(zero_copy_only=False)
    if not numbered.any():
        return np.zeros(len(array), np.bool_)
    of_rows: npt.NDArray[np.bool_] = np.append(numbered, False)[array.indices.fill_null(len(numbered)).to_numpy()]
    return of_rows


def _some_of(table: pa.Table, kept: npt.NDArray[np.bool_]) -> pa.Table:
    """Some rows of a table; texts of the others are not among those that its columns number."""
    found = table.filter(pa.array(kept))
    numbered = [field.name for field in table.schema if pa.types.is_dictionary(field.type)]
    for name in numbered:
        texts = found.column(name).cast(_TEXT).combine_chunks().dictionary_encode()
        found = found.set_column(found.schema.get_field_index(name), name, texts)
    return found


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

    def letters(self) -> U8:
        array = self._array
        offsets = np.frombuffer(array.buffers()[1], np.int32, len(array) + 1, array.offset * 4)
        return np.frombuffer(array.buffers()[2] or b"", np.uint8)[offsets[0] : offsets[-1]]

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
