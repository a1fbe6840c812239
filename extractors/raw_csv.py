"""CSV as it comes: gzipped or not, any line ends, quoted line ends, and rows that are no rows.

Decompressing and splitting into columns are what a conversion spends most of its time on, so a file is read in chunks
of whole records. Where a chunk's quotes hold no line end, which is nearly always, it is split without looking for
records twice; from the first chunk on of which that cannot be said, a slower reader takes over that trusts no line end.
"""

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv as pacsv
from isal import igzip

from extractors.raw import Block, UnclosedQuoteError

CHUNK_BYTES = 16 << 20
_GZIP = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"
_LINE_END = re.compile(rb"\r\n|\n|\r")


class CsvReader:
    """A CSV file of one header line; see extractors.raw.Reader."""

    def __init__(self, path: Path, null_values: list[str]) -> None:
        self._path, self._null_values = path, null_values
        self.malformed: list[int] = []
        with self._open() as stream:
            self.columns = _header(stream.read(1 << 20))[0]

    def _open(self) -> BinaryIO:
        with self._path.open("rb") as file:
            gzipped = file.read(2) == _GZIP
        if not gzipped:
            return self._path.open("rb")
        return cast(BinaryIO, igzip.IGzipFile(self._path, "rb"))  # type: ignore[no-untyped-call]

    def blocks(self, columns: list[str]) -> Iterator[Block]:
        first = 1
        with self._open() as stream:
            data = stream.read(CHUNK_BYTES)
            data = data[_header(data)[1] :]
            ended = False
            while not ended:
                more = stream.read(CHUNK_BYTES)
                ended = not more
                cut = len(data) if ended else data.rfind(b"\n") + 1
                chunk, rest = data[:cut], data[cut:]
                if not _quotes_hold_no_line_end(chunk):
                    yield from self._guarded(_Chained(data + more, stream), columns, first)
                    return
                data = rest + more
                if not chunk:
                    continue
                before = len(self.malformed)
                frame = self._split(chunk, columns, first)
                gaps = tuple(number - first for number in self.malformed[before:])
                if len(frame):
                    yield Block(frame, first, gaps)
                first += len(frame) + len(gaps)

    def _convert_options(self, columns: list[str]) -> pacsv.ConvertOptions:
        return pacsv.ConvertOptions(
            column_types={name: pa.string() for name in self.columns},
            include_columns=columns,
            null_values=self._null_values,
            strings_can_be_null=True,
        )

    def _split(self, chunk: bytes, columns: list[str], first: int) -> pl.DataFrame:
        def malformed(row: pacsv.InvalidRow) -> str:
            self.malformed.append(first + row.number - 1)
            return "skip"

        table = pacsv.read_csv(
            pa.BufferReader(chunk),
            read_options=pacsv.ReadOptions(column_names=self.columns, use_threads=False, block_size=len(chunk) + 1),
            parse_options=pacsv.ParseOptions(invalid_row_handler=malformed),
            convert_options=self._convert_options(columns),
        )
        return _frame(table)

    def _guarded(self, stream: "_Chained", columns: list[str], first: int) -> Iterator[Block]:
        """The rest of the file, where a line end may stand in quotes, or a quote where none should."""
        swallowed = False
        met: list[int] = []

        def malformed(row: pacsv.InvalidRow) -> str:
            nonlocal swallowed
            met.append(row.number)
            text = row.text.strip()
            swallowed |= "\n" in text and text.count('"') % 2 == 1
            return "skip"

        # The last column, because that is where a quote that is never closed swallows the rest of the file.
        needed = [*columns, *(name for name in self.columns[-1:] if name not in columns)]
        last: str | None = None
        done = 0
        with pacsv.open_csv(
            pa.PythonFile(stream, mode="r"),
            read_options=pacsv.ReadOptions(column_names=self.columns, use_threads=False, block_size=CHUNK_BYTES),
            parse_options=pacsv.ParseOptions(newlines_in_values=True, invalid_row_handler=malformed),
            convert_options=self._convert_options(needed),
        ) as batches:
            for batch in batches:
                frame = _frame(pa.Table.from_batches([batch]))
                if frame.is_empty():
                    continue
                last = frame[self.columns[-1]][-1]
                # The reader is ahead of what it hands over: only malformed records among these rows are theirs.
                gaps: list[int] = []
                while len(gaps) < len(met) and met[len(gaps)] <= done + len(frame) + len(gaps):
                    gaps.append(met[len(gaps)] - done - 1)
                del met[: len(gaps)]
                self.malformed.extend(first + done + gap for gap in gaps)
                yield Block(frame.select(columns), first + done, tuple(gaps))
                done += len(frame) + len(gaps)
        self.malformed.extend(first - 1 + number for number in met)
        if swallowed or (last is not None and "\n" in last and not stream.tail.rstrip(b"\r\n").endswith(b'"')):
            raise UnclosedQuoteError


class _Chained(io.RawIOBase):
    """What was read already, then the rest of a stream; remembers how it ended."""

    def __init__(self, head: bytes, stream: BinaryIO) -> None:
        self._head: bytes | None = head
        self._stream = stream
        self.tail = b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if self._head:
            piece, self._head = (self._head, None) if size < 0 else (self._head[:size], self._head[size:])
        else:
            piece = self._stream.read(size)
        self.tail = (self.tail + piece)[-4:]
        return piece


def _header(data: bytes) -> tuple[list[str], int]:
    """Names of the header line, and where the rows begin; no names where the file is empty."""
    start = len(_BOM) if data.startswith(_BOM) else 0
    end, after = len(data), len(data)
    for match in _LINE_END.finditer(data, start):
        if data.count(b'"', start, match.start()) % 2 == 0:
            end, after = match.span()
            break
    names = next(csv.reader([data[start:end].decode("utf-8", errors="replace")]), [])
    return names, after


def _quotes_hold_no_line_end(chunk: bytes) -> bool:
    if b'"' not in chunk:
        return True
    letters = np.frombuffer(chunk, np.uint8)
    quotes = np.flatnonzero(letters == ord('"'))
    if len(quotes) % 2:
        return False
    ends = np.flatnonzero(letters == ord("\n"))
    return not (np.searchsorted(quotes, ends) % 2).any()


def _frame(table: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame
