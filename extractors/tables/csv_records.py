"""Where the records of CSV stand: its header, whole records at the front of a chunk, the bytes of each.

Where a chunk has quotes, a record's end is looked for behind every quoted stretch: at once where each quote stands at
the edge of a field, which is nearly always, else one by one.
"""

import csv
import io
import re
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa

from extractors.tables.block import UnclosedQuoteError
from warehouse.arrays import I64

LINE_ENDS = (b"\n", b"\r")
_BOM = b"\xef\xbb\xbf"
_LINE_END = re.compile(rb"\r\n|\n|\r")
_QUOTE = ord('"')
_EDGES = (b",", b"\n", b"\r", b"")
_EDGE = np.isin(np.arange(256), [ord(","), ord("\n"), ord("\r")])
# A quoted stretch: it starts where a field does; without its second quote it is not closed.
_QUOTED = re.compile(rb'(?<![^,\r\n])"(?:[^"]++|"")*+("?)')
_FIELD = rb'(?:"(?:[^"]++|"")*+"?)?[^,\r\n]*+'
_RECORD = re.compile(_FIELD + rb"(?:," + _FIELD + rb")*+")

Spans = tuple[I64, I64]
_NO_SPANS: Spans = (np.zeros(0, np.int64), np.zeros(0, np.int64))


@dataclass(frozen=True)
class Chunk:
    """Whole records: the first `end` bytes of some data, without a copy of them."""

    data: bytes
    end: int

    def check(self) -> None:
        """Looks at all at once, for a sixth of the time that it takes field by field.

        Raises:
            pa.ArrowInvalid: not UTF-8.
        """
        if not self.data.isascii():
            bounds = pa.py_buffer(np.array([0, self.end], np.int64))
            pa.LargeStringArray.from_buffers(1, bounds, pa.py_buffer(self.data)).validate(full=True)

    def records_alone(self) -> bytes | memoryview:
        """The records, before a mark of byte order another one: the reader takes the first for that of a file."""
        if self.data.startswith(_BOM):
            return _BOM + self.data[: self.end]
        return memoryview(self.data)[: self.end]

    def records(self, bounds: I64) -> pl.Series:
        """The records between n + 1 bounds, as bytes."""
        whole = pa.LargeBinaryArray.from_buffers(
            pa.large_binary(), len(bounds) - 1, [None, pa.py_buffer(bounds), pa.py_buffer(self.data)]
        )
        return pl.Series(pl.from_arrow(whole))


def records_of(chunk: Chunk, quoted: Spans) -> pl.Series:
    """The records of a chunk, each with its line end; empty lines are none.

    Args:
        quoted: the quoted stretches of the chunk, and perhaps of what is behind it.
    """
    letters = np.frombuffer(chunk.data, np.uint8, chunk.end)
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
    records = chunk.records(offsets)
    length = np.diff(offsets)
    empty = (length == 1) | ((length == 2) & (letters[offsets[:-1]] == ord("\r")))
    return records.filter(pl.Series(~empty)) if empty.any() else records


def header_of(data: bytes) -> tuple[list[str], bytes, int]:
    """Names of the header line, its line end, and where the rows begin; no names where the file is empty.

    Raises:
        UnclosedQuoteError: a quoted name swallows rows.
    """
    start = len(_BOM) if data.startswith(_BOM) else 0
    line = data[start:]
    match = _RECORD.match(line)
    line = match[0] if match else line
    if any(end > len(line) for end in quoted_one_by_one(line)[1]):
        raise UnclosedQuoteError
    names = next(csv.reader(io.StringIO(line.decode("utf-8", errors="replace"), newline="")), [])
    behind = start + len(line)
    line_end = _LINE_END.match(data, behind)
    return names, line_end[0] if line_end else b"\n", line_end.end() if line_end else behind


def records_end(data: bytes, ended: bool) -> tuple[int, Spans]:
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
    return quoted_one_by_one(data)


def quoted_one_by_one(data: bytes) -> Spans:
    """The same where a quote stands within a field that is not quoted, or is not closed."""
    starts, ends = [], []
    for match in _QUOTED.finditer(data):
        closed, end = match[1] == b'"', match.end()
        if closed and data[end : end + 1] not in _EDGES and _LINE_END.search(match[0]):
            raise UnclosedQuoteError
        starts.append(match.start())
        ends.append(end if closed else len(data) + 1)
    return np.array(starts, np.int64), np.array(ends, np.int64)
