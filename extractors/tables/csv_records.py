"""Where the records of CSV stand: its header, whole records at the front of a chunk, the bytes of each.

Where a chunk has quotes, a record's end is looked for behind every quoted stretch: at once where each quote stands at
the edge of a field, which is nearly always, else one by one.
"""

import csv
import io
import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from extractors.tables.block import NotTextError, UnclosedQuoteError
from warehouse.arrays import I64

LINE_ENDS = (b"\n", b"\r")
BOM = b"\xef\xbb\xbf"
_LINE_END = re.compile(rb"\r\n|\n|\r")


@dataclass(frozen=True)
class Spans:
    """The quoted stretches of some data.

    Attributes:
        starts, ends: (n,) places of their first quotes, and behind their last ones.
        spoilt: places of those behind which text stands, where a field should end.
    """

    starts: I64
    ends: I64
    spoilt: tuple[int, ...] = ()


_NO_SPANS = Spans(np.zeros(0, np.int64), np.zeros(0, np.int64))


@dataclass(frozen=True)
class Chunk:
    """Whole records: the first `end` bytes of some data, without a copy of them."""

    data: bytes
    end: int

    def check(self) -> None:
        """Looks at all at once, for a sixth of the time that it takes field by field.

        Raises:
            NotTextError: not UTF-8.
        """
        if self.data.isascii():
            return
        bounds = pa.py_buffer(np.array([0, self.end], np.int64))
        try:
            pa.LargeStringArray.from_buffers(1, bounds, pa.py_buffer(self.data)).validate(full=True)
        except pa.ArrowInvalid as error:
            raise NotTextError(_valid(self.data[: self.end])) from error

    def records_alone(self) -> bytes | memoryview:
        """The records, before a mark of byte order another one: the reader takes the first for that of a file."""
        if self.data.startswith(BOM):
            return BOM + self.data[: self.end]
        return memoryview(self.data)[: self.end]

    def records(self, bounds: I64) -> pl.Series:
        """The records between n + 1 bounds, as bytes."""
        whole = pa.LargeBinaryArray.from_buffers(
            pa.large_binary(), len(bounds) - 1, [None, pa.py_buffer(bounds), pa.py_buffer(self.data)]
        )
        return pl.Series(pl.from_arrow(whole))


def _valid(data: bytes) -> int:
    """How many bytes at the front are UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.start
    return len(data)


def bounds_of(chunk: Chunk, quoted: Spans) -> tuple[I64, npt.NDArray[np.bool_]]:
    """Of n lines the n + 1 bounds, line ends in quotes apart, and which of them are not empty."""
    letters = np.frombuffer(chunk.data, np.uint8, chunk.end)
    is_end = letters == ord("\n")
    if b"\r" in chunk.data:
        alone = letters == ord("\r")
        alone[:-1] &= ~is_end[1:]
        is_end |= alone
    ends = np.flatnonzero(is_end)
    if len(quoted.starts):
        place = np.searchsorted(quoted.starts, ends, side="right") - 1
        ends = ends[(place < 0) | (quoted.ends[place] <= ends)]
    offsets = np.append(0, ends + 1)
    length = np.diff(offsets)
    empty = (length == 1) | ((length == 2) & (letters[offsets[:-1]] == ord("\r")))
    return offsets, ~empty


def records_of(chunk: Chunk, quoted: Spans) -> pl.Series:
    """The records of a chunk, each with its line end; empty lines are none.

    Args:
        quoted: the quoted stretches of the chunk, and perhaps of what is behind it.
    """
    offsets, present = bounds_of(chunk, quoted)
    records = chunk.records(offsets)
    return records if present.all() else records.filter(pl.Series(present))


def numbers_at(chunk: Chunk, quoted: Spans, places: I64) -> I64:
    """Of some places of a chunk the records that they stand in, counted from 0."""
    offsets, present = bounds_of(chunk, quoted)
    lines = np.searchsorted(offsets, places, side="right") - 1
    return np.append(0, np.cumsum(present))[np.minimum(lines, len(present))]


@dataclass(frozen=True)
class Grammar:
    """How the records of a CSV file are written.

    Attributes:
        separator: the sign between fields.
        quote: the sign around fields; None where there is none.
        escape: the sign before a quote, or before itself, in a quoted field, besides a quote before a quote.
    """

    separator: str = ","
    quote: str | None = '"'
    escape: str | None = None

    @cached_property
    def _edges(self) -> tuple[bytes, ...]:
        return self.separator.encode(), b"\n", b"\r", b""

    @cached_property
    def _edge(self) -> npt.NDArray[np.bool_]:
        return np.isin(np.arange(256), [ord(self.separator), ord("\n"), ord("\r")])

    @cached_property
    def _signs(self) -> tuple[bytes, bytes, bytes]:
        """Separator, quote and escape as patterns."""
        return tuple(re.escape(sign.encode()) for sign in (self.separator, self.quote or "", self.escape or ""))  # type: ignore[return-value]

    @cached_property
    def _inside(self) -> bytes:
        """A pattern of what stands in quotes."""
        _, quote, escape = self._signs
        if not escape:
            return rb"(?:[^%b]++|%b%b)*+" % (quote, quote, quote)
        return rb"(?:[^%b%b]++|%b[%b%b]?|%b%b)*+" % (quote, escape, escape, quote, escape, quote, quote)

    @cached_property
    def _quoted_stretch(self) -> re.Pattern[bytes]:
        """It starts where a field does; without its second quote it is not closed."""
        separator, quote, _ = self._signs
        return re.compile(rb"(?<![^%b\r\n])%b%b(%b?)" % (separator, quote, self._inside, quote))

    @cached_property
    def _record(self) -> re.Pattern[bytes]:
        separator, quote, _ = self._signs
        rest = rb"[^%b\r\n]*+" % separator
        field = rb"(?:%b%b%b?)?" % (quote, self._inside, quote) + rest if quote else rest
        return re.compile(field + rb"(?:%b" % separator + field + rb")*+")

    def names_of(self, line: str) -> list[str]:
        """The fields of a header line."""
        if self.quote is None:
            return line.split(self.separator) if line else []
        given = {"quotechar": self.quote, "delimiter": self.separator}
        return next(csv.reader(io.StringIO(line, newline=""), **given), [])  # type: ignore[arg-type]

    def header_of(self, data: bytes) -> tuple[bytes, bytes, int]:
        """The header line without a mark of byte order, its line end, and where the rows begin.

        Raises:
            UnclosedQuoteError: a quoted name swallows rows.
        """
        start = len(BOM) if data.startswith(BOM) else 0
        line = data[start:]
        match = self._record.match(line)
        line = match[0] if match else line
        if self.quote and any(end > len(line) for end in self._quoted_one_by_one(line).ends):
            raise UnclosedQuoteError
        behind = start + len(line)
        line_end = _LINE_END.match(data, behind)
        return line, line_end[0] if line_end else b"\n", line_end.end() if line_end else behind

    def records_end(self, data: bytes, ended: bool) -> tuple[int, Spans]:
        """Where the last whole record of some data ends; 0 where there is none, and the end where the file `ended`.

        Gives the quoted stretches of the records too.

        Raises:
            UnclosedQuoteError: a quoted field is not closed before the file's end, or only by what is no end of a field
                on another line, so that rows may be lost in it.
        """
        line_end = b"\n" if b"\n" in data else b"\r"
        if self.quote is None or self.quote.encode() not in data:
            return len(data) if ended else _after(data, line_end, len(data)), _NO_SPANS
        spans = self._quoted(data)
        if ended:
            if len(spans.starts) and spans.ends[-1] > len(data):
                raise UnclosedQuoteError(int(spans.starts[-1]))
            return len(data), spans
        cut = _after(data, line_end, len(data))
        while cut:
            place = int(np.searchsorted(spans.starts, cut)) - 1
            if place < 0 or spans.ends[place] <= cut:
                break
            cut = _after(data, line_end, int(spans.starts[place]))
        return cut, spans

    def _quoted(self, data: bytes) -> Spans:
        """Quoted stretches; the last one may end behind the data's end."""
        if self.escape:
            return self._quoted_one_by_one(data)
        letters = np.frombuffer(data, np.uint8)
        quotes = np.flatnonzero(letters == ord(self.quote or ""))
        starts, ends = quotes[::2], quotes[1::2] + 1
        if len(ends) < len(starts):
            ends = np.append(ends, len(data) + 1)
        # Two quotes within a field look like one stretch's end and the next one's start.
        doubled = ends[:-1] == starts[1:]
        before = self._edge[letters[starts - 1]] | (starts == 0)
        behind = self._edge[letters[np.minimum(ends, len(data) - 1)]] | (ends >= len(data))
        before[1:] |= doubled
        behind[:-1] |= doubled
        if before.all() and behind.all():
            return Spans(starts, ends)
        return self._quoted_one_by_one(data)

    def _quoted_one_by_one(self, data: bytes) -> Spans:
        """The same where a quote stands within a field that is not quoted, or is not closed."""
        starts, ends, spoilt = [], [], []
        for match in self._quoted_stretch.finditer(data):
            closed, end = bool(match[1]), match.end()
            if closed and data[end : end + 1] not in self._edges:
                if _LINE_END.search(match[0]):
                    raise UnclosedQuoteError(match.start())
                spoilt.append(match.start())
            starts.append(match.start())
            ends.append(end if closed else len(data) + 1)
        return Spans(np.array(starts, np.int64), np.array(ends, np.int64), tuple(spoilt))

    def without_escapes(self, chunk: Chunk, quoted: Spans) -> tuple[Chunk, Spans]:
        """A chunk in which quotes within fields are doubled, and its quoted stretches."""
        if not self.escape or not self.quote or self.escape.encode() not in chunk.data:
            return chunk, quoted
        escape, quote = self.escape.encode(), self.quote.encode()
        pieces = re.compile(rb"%b(%b|%b)" % tuple(re.escape(sign) for sign in (escape, quote, escape)))

        def doubled(stretch: re.Match[bytes]) -> bytes:
            return pieces.sub(lambda found: quote * 2 if found[1] == quote else escape, stretch[0])

        data = self._quoted_stretch.sub(doubled, chunk.data[: chunk.end])
        plain = Grammar(self.separator, self.quote)
        return Chunk(data, len(data)), plain.records_end(data, ended=True)[1]


PLAIN = Grammar()


def _after(data: bytes, line_end: bytes, before: int) -> int:
    """Behind the last line end before a place; a carriage return at the very end may be half of one."""
    if line_end == b"\r":
        before = min(before, len(data) - 1)
    return data.rfind(line_end, 0, before) + 1
