"""CSV as it comes: gzipped or not, any line ends, quoted line ends, and rows that are no rows.

Decompressing and splitting into columns are what a conversion spends most of its time on, so a file is read in chunks
of whole records. Where one has quotes, its end is looked for behind every quoted stretch: at once where each quote
stands at the edge of a field, which is nearly always, else one by one.
"""

import csv
import io
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.csv as pacsv
from isal import igzip

from extractors.raw import Block, UnclosedQuoteError, hash_of_columns
from extractors.rows import Column

CHUNK_BYTES = 16 << 20
LONGEST_RECORD = 64 << 20
_GZIP = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"
_LINE_ENDS = (b"\n", b"\r")
_LINE_END = re.compile(rb"\r\n|\n|\r")
_QUOTE = ord('"')
_EDGES = (b",", b"\n", b"\r", b"")
_EDGE = np.isin(np.arange(256), [ord(","), ord("\n"), ord("\r")])
# A quoted stretch: it starts where a field does; without its second quote it is not closed.
_QUOTED = re.compile(rb'(?<![^,\r\n])"(?:[^"]++|"")*+("?)')
_FIELD = rb'(?:"(?:[^"]++|"")*+"?)?[^,\r\n]*+'
_RECORD = re.compile(_FIELD + rb"(?:," + _FIELD + rb")*+")

_TEXT = pa.string()
_NUMBERED = pa.dictionary(pa.int32(), _TEXT)
# Beyond this share of distinct texts numbering them costs more than it saves.
_DISTINCT = 0.5

I64 = npt.NDArray[np.int64]
Spans = tuple[I64, I64]
_NO_SPANS: Spans = (np.zeros(0, np.int64), np.zeros(0, np.int64))


class CsvReader:
    """A CSV file of one header line; see extractors.raw.Reader."""

    def __init__(self, path: Path, null_values: list[str]) -> None:
        self._path, self._null_values = path, null_values
        self.malformed: list[int] = []
        with self._open() as stream:
            head = stream.read(1 << 20)
        self.columns, self._line_end, self._first = _header(head)

    def _open(self) -> BinaryIO:
        with self._path.open("rb") as file:
            gzipped = file.read(2) == _GZIP
        if not gzipped:
            return self._path.open("rb")
        return cast(BinaryIO, igzip.IGzipFile(self._path, "rb"))  # type: ignore[no-untyped-call]

    def blocks(self, columns: list[str], seed: int | None, plain: Collection[str] | None) -> Iterator[Block]:
        kinds = _Kinds(columns, plain)
        first = 1
        with self._open() as stream:
            stream.read(self._first)
            data = stream.read(CHUNK_BYTES)
            ended = False
            while not ended:
                more = stream.read(CHUNK_BYTES)
                ended = not more
                cut, quoted = _records_end(data, ended)
                chunk, data = _Chunk(data, cut), data[cut:] + more
                if not cut:
                    if len(data) > LONGEST_RECORD + CHUNK_BYTES:
                        raise UnclosedQuoteError
                    continue
                if chunk.data[cut - 1 : cut] not in _LINE_ENDS:
                    # Else the reader takes the last line end for that of a record, though it may stand in quotes.
                    chunk = _Chunk(chunk.data[:cut] + self._line_end, cut + len(self._line_end))
                before = len(self.malformed)
                table = self._split(chunk, kinds.types, first)
                gaps = tuple(number - first for number in self.malformed[before:])
                if len(table):
                    hashes = None if seed is None else self._hashes(chunk, quoted, gaps, len(table), first, seed)
                    yield Block(kinds.columns_of(table), first, gaps, hashes)
                first += len(table) + len(gaps)

    def _split(self, chunk: "_Chunk", types: dict[str, pa.DataType], first: int) -> pa.Table:
        def malformed(row: pacsv.InvalidRow) -> str:
            self.malformed.append(first + row.number - 1)
            return "skip"

        # Once for the whole chunk, for a sixth of the time that it takes field by field; and where a malformed row cannot
        # be decoded, the reader prints a traceback.
        if chunk.is_not_utf8():
            raise pa.ArrowInvalid("not UTF-8")
        return pacsv.read_csv(
            pa.BufferReader(chunk.records),
            read_options=pacsv.ReadOptions(column_names=self.columns, use_threads=False, block_size=chunk.end + 1),
            parse_options=pacsv.ParseOptions(invalid_row_handler=malformed),
            convert_options=pacsv.ConvertOptions(
                column_types=types,
                include_columns=list(types),
                null_values=self._null_values,
                strings_can_be_null=True,
                check_utf8=False,
            ),
        )

    def _hashes(
        self, chunk: "_Chunk", quoted: Spans, gaps: tuple[int, ...], rows: int, first: int, seed: int
    ) -> pl.Series:
        """Hashes of the records as they stand: a fifth of the time that hashes of every column take."""
        records = _records(chunk, quoted)
        if gaps:
            kept = np.ones(len(records), np.bool_)
            kept[[gap for gap in gaps if gap < len(records)]] = False
            records = records.filter(pl.Series(kept))
        if len(records) == rows:
            return records.hash(seed=seed)
        # The reader sees other records than we do: only what it made of them can be told apart.
        known = len(self.malformed)
        frame = pl.from_arrow(self._split(chunk, dict.fromkeys(self.columns, _TEXT), first))
        assert isinstance(frame, pl.DataFrame)
        del self.malformed[known:]
        return hash_of_columns(frame, seed)


class _Kinds:
    """Which columns are read as texts, and which as numbers of distinct ones.

    Args:
        plain: columns to be read as texts; None for all. Others are, too, once most of their texts turn out to differ.
    """

    def __init__(self, columns: list[str], plain: Collection[str] | None) -> None:
        self.types = {name: _TEXT if plain is None or name in plain else _NUMBERED for name in columns}

    def columns_of(self, table: pa.Table) -> dict[str, Column]:
        """The columns of a chunk."""
        found = {}
        for name in self.types:
            array = table.column(name).combine_chunks()
            if self.types[name] is _NUMBERED:
                found[name] = Column.of_dictionary(array)
                if len(array.dictionary) > _DISTINCT * len(array):
                    self.types[name] = _TEXT
            else:
                found[name] = Column(array)
        return found


@dataclass(frozen=True)
class _Chunk:
    """Whole records: the first `end` bytes of some data, without a copy of them."""

    data: bytes
    end: int

    @property
    def records(self) -> memoryview:
        return memoryview(self.data)[: self.end]

    def is_not_utf8(self) -> bool:
        if self.data.isascii():
            return False
        return bool(pl.Series([self.data[: self.end]]).cast(pl.String, strict=False).null_count())


def _records(chunk: _Chunk, quoted: Spans) -> pl.Series:
    """The records of a chunk, each with its line end; empty lines are none.

    Args:
        quoted: the quoted stretches of the chunk, and perhaps of what is behind it.
    """
    letters = np.frombuffer(chunk.records, np.uint8)
    is_end = letters == ord("\n")
    if b"\r" in chunk.data:
        alone = letters == ord("\r")
        alone[:-1] &= ~is_end[1:]
        is_end |= alone
    ends = np.flatnonzero(is_end)
    starts, closed = quoted
    if len(starts):
        place = np.searchsorted(starts, ends, side="right") - 1
        ends = ends[(place < 0) | (closed[place] <= ends)]
    offsets = np.append(0, ends + 1)
    whole = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(ends), [None, pa.py_buffer(offsets), pa.py_buffer(chunk.records)]
    )
    records = pl.Series(pl.from_arrow(whole))
    length = np.diff(offsets)
    empty = (length == 1) | ((length == 2) & (letters[offsets[:-1]] == ord("\r")))
    return records.filter(pl.Series(~empty)) if empty.any() else records


def _header(data: bytes) -> tuple[list[str], bytes, int]:
    """Names of the header line, its line end, and where the rows begin; no names where the file is empty.

    Raises:
        UnclosedQuoteError: a quoted name swallows rows.
    """
    start = len(_BOM) if data.startswith(_BOM) else 0
    line = data[start:]
    match = _RECORD.match(line)
    line = match[0] if match else line
    if any(end > len(line) for end in _quoted_one_by_one(line)[1]):
        raise UnclosedQuoteError
    names = next(csv.reader(io.StringIO(line.decode("utf-8", errors="replace"), newline="")), [])
    behind = start + len(line)
    line_end = _LINE_END.match(data, behind)
    return names, line_end[0] if line_end else b"\n", line_end.end() if line_end else behind


def _records_end(data: bytes, ended: bool) -> tuple[int, Spans]:
    """Where the last whole record of some records ends; 0 where there is none, and the end where the file `ended`.

    Gives the quoted stretches of the records too.

    Raises:
        UnclosedQuoteError: a quoted field is not closed before the file's end, or only by what is no end of a field
            on another line, so that rows may be lost in it.
    """
    line_end = b"\n" if b"\n" in data else b"\r"
    if b'"' not in data:
        return len(data) if ended else _after(data, line_end, len(data)), _NO_SPANS
    starts, ends = _quoted(data)
    if ended:
        if len(starts) and ends[-1] > len(data):
            raise UnclosedQuoteError
        return len(data), (starts, ends)
    cut = _after(data, line_end, len(data))
    while cut:
        place = int(np.searchsorted(starts, cut)) - 1
        if place < 0 or ends[place] <= cut:
            break
        cut = _after(data, line_end, int(starts[place]))
    return cut, (starts, ends)


def _after(data: bytes, line_end: bytes, before: int) -> int:
    """Behind the last line end before a place; a carriage return at the very end may be half of one."""
    if line_end == b"\r":
        before = min(before, len(data) - 1)
    return data.rfind(line_end, 0, before) + 1


def _quoted(data: bytes) -> Spans:
    """Where quoted stretches start, and the places behind their ends; the last one may lie behind the data's end."""
    letters = np.frombuffer(data, np.uint8)
    quotes = np.flatnonzero(letters == _QUOTE)
    starts, ends = quotes[::2], quotes[1::2] + 1
    if len(ends) < len(starts):
        ends = np.append(ends, len(data) + 1)
    # Two quotes within a field look like one stretch's end and the next one's start.
    doubled = ends[:-1] == starts[1:]
    before = _EDGE[letters[starts - 1]] | (starts == 0)
    behind = _EDGE[letters[np.minimum(ends, len(data) - 1)]] | (ends >= len(data))
    before[1:] |= doubled
    behind[:-1] |= doubled
    if before.all() and behind.all():
        return starts, ends
    return _quoted_one_by_one(data)


def _quoted_one_by_one(data: bytes) -> Spans:
    """The same where a quote stands within a field that is not quoted, or is not closed."""
    starts, ends = [], []
    for match in _QUOTED.finditer(data):
        closed, end = match[1] == b'"', match.end()
        if closed and data[end : end + 1] not in _EDGES and _LINE_END.search(match[0]):
            raise UnclosedQuoteError
        starts.append(match.start())
        ends.append(end if closed else len(data) + 1)
    return np.array(starts, np.int64), np.array(ends, np.int64)
