"""Blocks of a CSV file's records, cut by their content, so that a file of the night before is known again.

A record ends a block where its hash says so: what is inserted or removed moves no other cut. Where last night's blocks
stand is first looked for at the place where each should be, which costs a hash of its bytes; only what is not there is
cut anew, and read. A block is known for sure by its bytes: it began where a record begins and its last record ended in
it when it was read, so that the same bytes behind the same end say the same.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import polars as pl
import xxhash

from extractors.tables.block import UnclosedQuoteError
from extractors.tables.csv_dialect import Stream
from extractors.tables.csv_records import LINE_ENDS, Chunk, Grammar, bounds_of
from warehouse.arrays import I64, U64

# Small beside what one changed row costs anyway, the reading of the file; large beside what a block is counted in.
LEAST_BYTES, USUAL_BYTES, MOST_BYTES = 32 << 10, 64 << 10, 256 << 10
# Blocks of larger files are larger: what is kept of each is held in memory.
MOST_BLOCKS = 1 << 16
_READ_BYTES = 4 << 20
_FIRST_SCAN, _LONGEST_SCAN = 128 << 10, 16 << 20
# So many bytes in which no block is known, or this share of the file if that is more, and nothing is looked for in the
# rest: cutting costs a tenth of reading.
_STRANGE_BYTES, _STRANGE_SHARE = 16 << 20, 1 / 32


@dataclass(frozen=True)
class Cutting:
    """Where blocks end.

    Attributes:
        least, most: bytes of a block; the last one may be smaller.
        odds: a power of two: in the long run one in so many records ends a block.
    """

    least: int
    most: int
    odds: int

    @classmethod
    def of(cls, size: int, record_bytes: float) -> "Cutting":
        """What suits a file of about that many bytes of text, with records of that many bytes."""
        scale = max(1.0, size / (USUAL_BYTES * MOST_BLOCKS))
        records = (USUAL_BYTES - LEAST_BYTES) * scale / record_bytes
        return cls(int(LEAST_BYTES * scale), int(MOST_BYTES * scale), 1 << max(0, round(np.log2(max(1.0, records)))))

    def ending(self, ends: I64, hashes: U64) -> I64:
        """The ends of those records (n,) that end a block if it is long enough."""
        ending: I64 = ends[hashes & np.uint64(self.odds - 1) == 0]
        return ending

    def end(self, start: int, ends: I64, ending: Sequence[int]) -> int | None:
        """Where the block that starts at a place ends; None where that is behind the ends (n,) that are known."""
        place = bisect_left(ending, start + self.least)
        found = ending[place] if place < len(ending) else None
        if found is None or found > start + self.most:
            last = int(np.searchsorted(ends, start + self.most))
            return int(ends[last]) if last < len(ends) else found
        return found


class RecordBlocks:
    """The blocks of the records that a reader finds; record numbers count from 1.

    Args:
        seed: keeps everybody else from trying which bytes have a digest.
        size: bytes of text that the file holds, or about that.
        written: how the file is written, JSON.
        known: the blocks of the night before, if there are any; they say nothing of a file that is written otherwise.

    Attributes:
        seen: of each block in the file's order its place among the known ones, -1 where it is not known; but for those
            at the end of which nobody knew before they were read.
        starts: of each block so far, the number of its first record; the last one may still grow.
        lengths, digests: of each block that has ended, its bytes and their hash.
        whole: every record lies in a block, and every block ends where a record does. Rows elsewhere are read wrongly
            by another division, so that nothing may be concluded from these blocks then.
    """

    def __init__(self, seed: int, size: int, written: Sequence[str | None], known: "Known | None" = None) -> None:
        self.seed, self.size, self.written = seed, size, written
        self.known = known if known is not None and list(known.written) == list(written) else None
        self.cutting = self.known.cutting if self.known else None
        self.seen: list[int] = []
        self.starts: list[int] = []
        self.lengths: list[int] = []
        self.digests: list[bytes] = []
        self.whole = True
        self._given: deque[tuple[int, bytes]] = deque()
        self._open = 0
        self._hasher = xxhash.xxh3_128(seed=seed)

    def expect(self, length: int, digest: bytes) -> None:
        """Takes a block that is not known, before its records come."""
        self.seen.append(-1)
        self._given.append((length, digest))

    def drop(self) -> None:
        """Records were met that nobody can divide."""
        self.whole = False

    def take(self, data: bytes, bounds: I64, hashes: U64, first: int) -> None:
        """Takes records, the first of that number, that lie between bounds (n + 1,) of some data; the first at 0."""
        if not self.whole or len(bounds) < 2:
            return
        if self.cutting is None:
            self.cutting = Cutting.of(self.size, int(bounds[-1]) / (len(bounds) - 1))
        ends, behind = bounds[1:], int(bounds[-1])
        stops = self._stops(ends, hashes)
        records = np.searchsorted(ends, stops)
        if (ends[np.minimum(records, len(ends) - 1)] != stops).any():
            self.whole = False
            return
        if not self._open:
            self.starts.append(first)
        self.starts += (first + 1 + records[records < len(ends) - 1]).tolist()
        edges = [-self._open, *stops]
        view = memoryview(data)
        for start, stop in pairwise(edges):
            if self._given:
                digest = self._given.popleft()[1]
            elif start < 0:
                self._hasher.update(view[:stop])
                digest = self._hasher.digest()
                self._hasher.reset()
            else:
                digest = xxhash.xxh3_128_digest(view[start:stop], seed=self.seed)
            self.digests.append(digest)
        self.lengths += np.diff(edges).tolist()
        self._open = behind - edges[-1]
        if self._open and not self._given:
            self._hasher.update(view[max(0, edges[-1]) : behind])

    def _stops(self, ends: I64, hashes: U64) -> list[int]:
        """Where blocks end among the ends (n,) of records."""
        assert self.cutting is not None
        stops: list[int] = []
        start, behind = -self._open, int(ends[-1])
        for length, _ in self._given:
            if start + length > behind:
                return stops
            start += length
            stops.append(start)
        ending = self.cutting.ending(ends, hashes).tolist() if start < behind else []
        while start < behind and (stop := self.cutting.end(start, ends, ending)) is not None:
            stops.append(stop)
            start = stop
        return stops

    def close(self) -> None:
        """Ends the last block, at the file's end."""
        if self._given:
            self.whole = False
        elif self._open:
            self.lengths.append(self._open)
            self.digests.append(self._hasher.digest())
        self.seen += [-1] * (len(self.lengths) - self.seen.count(-1))


class Known:
    """The blocks of a file as it was, in its order.

    Args:
        written: how the file was written; see RecordBlocks.
        lengths, digests: of each block.
    """

    def __init__(
        self, cutting: Cutting, written: Sequence[str | None], lengths: list[int], digests: list[bytes]
    ) -> None:
        self.cutting, self.written, self.lengths, self.digests = cutting, written, lengths, digests
        self._used = bytearray(len(lengths))
        self._places: dict[bytes, list[int]] = {}
        for place in range(len(lengths) - 1, -1, -1):
            self._places.setdefault(digests[place], []).append(place)

    def is_next(self, place: int) -> bool:
        """Whether there is a block at a place that nobody has taken."""
        return place < len(self.lengths) and not self._used[place]

    def take(self, place: int) -> None:
        """Takes a block, once."""
        self._used[place] = 1

    def without(self, places: Iterable[int]) -> "Known":
        """The blocks, of which nobody has taken any, but for some."""
        others = Known(self.cutting, self.written, self.lengths, self.digests)
        for place in places:
            others.take(place)
        return others

    def find(self, digest: bytes) -> int | None:
        """The place of a block that nobody has taken."""
        places = self._places.get(digest, [])
        while places:
            if not self._used[places[-1]]:
                return places[-1]
            places.pop()
        return None


class UnknownRecords:
    """A stream of a file's records without those in known blocks.

    Args:
        stream: begins with the first record.
        blocks: is told which blocks are there.
        line_end: of the header; the last record may lack its own.
    """

    def __init__(self, stream: Stream, known: Known, blocks: RecordBlocks, grammar: Grammar, line_end: bytes) -> None:
        self._stream, self._known, self._blocks = stream, known, blocks
        self._grammar, self._line_end = grammar, line_end
        self._data, self._at, self._base = b"", 0, 0
        self._ended = self._lost = False
        self._next = 0
        self._strange = 0
        self._most_strange = max(_STRANGE_BYTES, int(_STRANGE_SHARE * blocks.size))
        self._scanned, self._scan = 0, _FIRST_SCAN
        self._ends: I64 = np.zeros(0, np.int64)
        self._ending: list[int] = []

    def read(self, size: int) -> bytes:
        """The next bytes of records that are not known, about so many; none at the end."""
        parts: list[bytes] = []
        length = 0
        while length < size and (part := self._part(size - length)):
            parts.append(part)
            length += len(part)
        return b"".join(parts)

    def _part(self, size: int) -> bytes:
        while not self._lost and self._holds(1):
            if unknown := self._block():
                return unknown
        rest, self._data, self._at = self._data[self._at :], b"", 0
        return rest or (b"" if self._ended else self._stream.read(size))

    def _block(self) -> bytes:
        """Steps over the next block; gives its bytes if it is not known."""
        place = self._next
        if self._known.is_next(place) and self._stands(place):
            self._found(place)
            return b""
        length = self._cut()
        if length is None:
            self._lost = True
            return b""
        digest = self._digest(length)
        found = self._known.find(digest)
        if found is not None:
            self._found(found)
            return b""
        self._blocks.expect(length, digest)
        self._next += 1
        self._strange += length
        self._lost = self._strange > self._most_strange
        start, self._at = self._at, self._at + length
        return self._data[start : self._at]

    def _found(self, place: int) -> None:
        self._known.take(place)
        self._blocks.seen.append(place)
        self._at += self._known.lengths[place]
        self._next = place + 1
        self._strange, self._scan = 0, _FIRST_SCAN

    def _stands(self, place: int) -> bool:
        """Whether a known block stands at this place."""
        length = self._known.lengths[place]
        return self._holds(length) and self._digest(length) == self._known.digests[place]

    def _digest(self, length: int) -> bytes:
        block = memoryview(self._data)[self._at : self._at + length]
        return xxhash.xxh3_128_digest(block, seed=self._blocks.seed)

    def _holds(self, length: int) -> bool:
        """Whether so many bytes stand here, which are then held."""
        while len(self._data) - self._at < length and not self._ended:
            more = self._stream.read(max(_READ_BYTES, length))
            self._ended = not more
            if self._ended and len(self._data) > self._at and self._data[-1:] not in LINE_ENDS:
                more = self._line_end
            self._base += self._at
            self._data, self._at = self._data[self._at :] + more, 0
        return len(self._data) - self._at >= length

    def _cut(self) -> int | None:
        """How long the block here is; None where that cannot be told."""
        start = self._base + self._at
        while True:
            end = self._known.cutting.end(start, self._ends, self._ending) if self._scanned > start else None
            if end is not None:
                return end - start
            begin = max(self._scanned, start)
            if self._ended and begin == self._base + len(self._data):
                return begin - start
            if not self._look(begin, begin - start):
                return None

    def _look(self, begin: int, ahead: int) -> bool:
        """Looks for the ends of records behind a place, a further stretch each time; whether that can be done."""
        while True:
            # One byte more: only then is it known whether the file ends.
            self._holds(ahead + self._scan + 1)
            start = begin - self._base
            if start == len(self._data):
                return True
            data = self._data[start : start + self._scan]
            ended = self._ended and start + self._scan >= len(self._data)
            self._scan = min(2 * self._scan, _LONGEST_SCAN)
            try:
                end, quoted = self._grammar.records_end(data, ended)
            except UnclosedQuoteError:
                return False
            if end:
                break
            if len(data) == _LONGEST_SCAN:
                return False
        chunk = Chunk(data, end)
        offsets, present = bounds_of(chunk, quoted)
        if not present.all() or offsets[-1] != end:
            return False
        records = chunk.records(offsets)
        self._ends = begin + offsets[1:]
        self._ending = self._known.cutting.ending(self._ends, hashes_of(records, self._blocks.seed)).tolist()
        self._scanned = begin + end
        return True


class KnownRecords(UnknownRecords):
    """A stream of a file's records in known blocks, without all others."""

    def __init__(self, stream: Stream, known: Known, blocks: RecordBlocks, grammar: Grammar, line_end: bytes) -> None:
        super().__init__(stream, known, blocks, grammar, line_end)
        self._parts: list[bytes] = []
        self._length = 0

    def read(self, size: int) -> bytes:
        """The next bytes of records that are known, about so many; none at the end."""
        self._length, self._parts = 0, []
        while self._length < size and not self._lost and self._holds(1):
            self._block()
        return b"".join(self._parts)

    def _found(self, place: int) -> None:
        start = self._at
        super()._found(place)
        self._parts.append(self._data[start : self._at])
        self._length += self._at - start


def hashes_of(records: pl.Series, seed: int) -> U64:
    """The hashes of records (n,), as their rows get them."""
    return records.hash(seed=seed).to_numpy()
