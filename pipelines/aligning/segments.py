"""A segment: what one raw file became, in pieces of one bucket each, kept while the file and its rules stand.

The file is a row of Arrow record batches, one after the other; where each lies, how long it is and its checksum stand
in the task's record. A bucket is then read by reading its pieces and nothing else.
"""

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import xxhash

from extractors.events.converted import AWAITED, CONVERTED, MISSED, RECORDED
from warehouse.arrays import U32, U64, Bools, numbers_of
from warehouse.errors import TimeloomError
from warehouse.hashing import bucket_of, splitmix64

# Enough rows that a bucket's share of them is worth a piece.
GATHERED_ROWS = 1 << 19
# Events of one subject in a row that are sooner copied together than gathered one by one.
_LONG_RUN = 64
# Of the blocks of a piece's rows no more are named: where a table stands in the order of its subjects, they are few.
_NAMED_BLOCKS = 64
_CODEC = "lz4"

Piece = tuple[int, int, int, str]
STORED: dict[str, pl.DataType] = {**CONVERTED, "block": pl.UInt32()}
"""What a segment holds of an event: also the block of the raw file that its row stands in, 0 where nobody knows."""
_EMPTY = pl.DataFrame(schema=STORED)


@dataclass
class BucketSums:
    """What is said of some rows of a bucket.

    Attributes:
        hashes: (2,) of which that of a segment is made; sums, so that the order of the rows does not matter and rows
            can be taken out again.
        awaited: numbers of the codes that await a lag.
    """

    rows: int = 0
    hashes: U64 = field(default_factory=lambda: np.zeros(2, np.uint64))
    awaited: set[int] = field(default_factory=set)

    @classmethod
    def of_index(cls, index: dict[str, Any], codes: dict[str, int]) -> "BucketSums":
        """What an index says of a bucket.

        Args:
            codes: their numbers.
        """
        halves = [int(index["hash"][start : start + 16], 16) for start in (0, 16)]
        return cls(index["rows"], np.array(halves, np.uint64), {codes[code] for code in index["awaited"]})

    def add(self, hashes: U64, codes: U32, waits: Bools) -> None:
        """Takes rows (n,): a hash of each, its code, and whether it awaits a lag."""
        self.rows += len(hashes)
        self.hashes += np.array([hashes.sum(dtype=np.uint64), splitmix64(hashes).sum(dtype=np.uint64)])
        if waits.any():
            self.awaited.update(np.unique(codes[waits]).tolist())

    def add_batch(self, batch: pa.RecordBatch) -> None:
        """Takes rows of a segment."""
        self.add(*_to_sum(batch))

    def index(self, codes: Sequence[str]) -> dict[str, Any]:
        """The rows, a hash of them that does not hang on their order, and the codes that await a lag."""
        return {
            "rows": self.rows,
            "hash": "".join(f"{int(half):016x}" for half in self.hashes),
            "awaited": sorted(codes[code] for code in self.awaited),
        }


def _to_sum(batch: pa.RecordBatch) -> tuple[U64, U32, Bools]:
    rule = batch.column("rule").to_numpy()
    hashes = batch.column("row_hash").to_numpy() ^ splitmix64(np.arange(int(rule.max()) + 1))[rule]
    how = numbers_of(batch.column("availability"), RECORDED)
    return hashes, batch.column("code").to_numpy(), (how == AWAITED) | (how == MISSED)


@dataclass
class BucketPieces:
    """Where a bucket's rows lie in a segment.

    Attributes:
        spans: of each of the pieces the blocks of its rows, in their order; the first and the last alone where they are
            many, so that all between them may be.
    """

    pieces: list[Piece] = field(default_factory=list)
    spans: list[tuple[int, ...]] = field(default_factory=list)

    def add(self, piece: Piece, blocks: U32) -> None:
        """Takes a piece, and the blocks of its rows (n,)."""
        self.pieces.append(piece)
        distinct = np.unique(blocks)
        few = 1 < len(distinct) <= _NAMED_BLOCKS
        self.spans.append(tuple((distinct if few else distinct[[0, -1]]).tolist()))


class SegmentWriter:
    """Writes a segment; use as a context manager.

    Args:
        buckets: how many the root has.
    """

    def __init__(self, path: Path, buckets: int) -> None:
        self._file = path.open("wb")
        self.buckets = buckets
        self._codec = pa.Codec(_CODEC)
        self._gathered: list[pl.DataFrame] = []
        self._rows = self._copied = 0
        self._sums: dict[int, BucketSums] = defaultdict(BucketSums)
        self._pieces: dict[int, BucketPieces] = defaultdict(BucketPieces)

    def __enter__(self) -> "SegmentWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    @property
    def rows(self) -> int:
        """Events written so far."""
        return sum(bucket.rows for bucket in self._sums.values()) + self._rows + self._copied

    def write(self, events: pl.DataFrame) -> None:
        """Takes events, columns STORED and others."""
        self._gathered.append(events.select(STORED.keys()))
        self._rows += len(events)
        if self._rows >= GATHERED_ROWS:
            self._flush()

    def _flush(self) -> None:
        if not self._rows:
            return
        events, buckets = _by_bucket(pl.concat(self._gathered), self.buckets)
        self._gathered, self._rows = [], 0
        batch = events.to_arrow(compat_level=pl.CompatLevel.oldest()).combine_chunks().to_batches()[0]
        hashes, codes, waits = _to_sum(batch)
        blocks = batch.column("block").to_numpy()
        for number, start, end in buckets:
            self._sums[number].add(hashes[start:end], codes[start:end], waits[start:end])
            self._pieces[number].add(self.blob(batch.slice(start, end - start)), blocks[start:end])

    def copy(self, bucket: int, batch: pa.RecordBatch) -> None:
        """Takes rows of one bucket that another segment held, columns STORED; nothing is counted of them."""
        self._copied += batch.num_rows
        self._pieces[bucket].add(self.blob(batch), batch.column("block").to_numpy())

    def blob(self, batch: pa.RecordBatch) -> Piece:
        """Writes a record batch: where it lies, how long it is compressed and not, its checksum."""
        raw = batch.serialize()
        packed = self._codec.compress(raw, asbytes=True)
        place = self._file.tell()
        self._file.write(packed)
        return place, len(packed), len(raw), xxhash.xxh3_64_hexdigest(packed)

    def close(self) -> tuple[dict[int, BucketSums], dict[int, BucketPieces]]:
        """What is said of each bucket's rows, and where they lie."""
        self._flush()
        return self._sums, self._pieces

    def index(self, codes: Sequence[str]) -> dict[str, Any]:
        """By bucket what `BucketSums.index` says, and where the rows lie."""
        sums, pieces = self.close()
        return {str(number): bucket.index(codes) | asdict(pieces[number]) for number, bucket in sorted(sums.items())}


def _by_bucket(events: pl.DataFrame, buckets: int) -> tuple[pl.DataFrame, list[tuple[int, int, int]]]:
    """Events in the order of their buckets, and which bucket's stand from where to where."""
    subjects = events["subject_id"].to_numpy()
    begins = np.append(0, np.flatnonzero(subjects[1:] != subjects[:-1]) + 1)
    ends = np.append(begins[1:], len(subjects))
    bucket = bucket_of(subjects[begins], buckets)
    order = np.argsort(bucket, kind="stable")
    if len(begins) * _LONG_RUN <= len(subjects):
        # Exports stand in the order of their subjects, and to put long runs together is to copy memory.
        runs = zip(begins[order].tolist(), ends[order].tolist(), strict=True)
        ordered = pl.concat([events[begin:end] for begin, end in runs], rechunk=True)
    else:
        lengths = (ends - begins)[order]
        behind = np.cumsum(lengths)
        ordered = events[np.repeat(begins[order] - (behind - lengths), lengths) + np.arange(len(subjects))]
    numbers, first = np.unique(bucket[order], return_index=True)
    starts = (np.cumsum((ends - begins)[order]) - (ends - begins)[order])[first].tolist()
    return ordered, list(zip(numbers.tolist(), starts, [*starts[1:], len(subjects)], strict=True))


SCHEMA = _EMPTY.to_arrow(compat_level=pl.CompatLevel.oldest()).schema
DEAD = pl.DataFrame(schema={"block": pl.UInt32})
"""Blocks of a former segment that the raw file has no longer."""
TEXTS = pa.schema([pa.field("text", pa.large_string())])


class SegmentReader:
    """Reads a segment; use as a context manager."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = os.open(path, os.O_RDONLY)
        except FileNotFoundError as error:  # another reader found it damaged
            raise self.damaged() from error
        self._codec = pa.Codec(_CODEC)

    def __enter__(self) -> "SegmentReader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

    def blob(self, piece: Piece, schema: pa.Schema = SCHEMA) -> pa.RecordBatch:
        """One record batch: a bucket's piece, columns CONVERTED, or a blob of another schema.

        Raises:
            TimeloomError: damaged; segment and record are removed, so that the next run extracts the file anew, also
                where a later segment's record builds on this one.
        """
        place, length, raw_length, checksum = piece
        packed = os.pread(self._file, length, place)
        if xxhash.xxh3_64_hexdigest(packed) != checksum:
            raise self.damaged()
        return pa.ipc.read_record_batch(self._codec.decompress(packed, raw_length), schema)

    def frame(self, piece: Piece, empty: pl.DataFrame) -> pl.DataFrame:
        """A frame, with the columns of `empty`."""
        schema = empty.to_arrow(compat_level=pl.CompatLevel.oldest()).schema
        frame = pl.from_arrow(pa.Table.from_batches([self.blob(piece, schema)], schema))
        assert isinstance(frame, pl.DataFrame)
        return frame

    def damaged(self, *formers: Path) -> TimeloomError:
        """What to raise where the segment, or what it goes on from, is not what its record says: it is removed.

        Args:
            formers: further segments that are not believed.
        """
        for segment in (self._path, *formers):
            for path in (segment.with_suffix(".json"), segment):
                path.unlink(missing_ok=True)
        return TimeloomError("a segment is damaged", remedy="run again: its raw file is extracted anew")

    def texts(self, piece: Piece) -> pa.Array:
        """A list of texts."""
        return self.blob(piece, TEXTS).column(0)


def live_batches(
    reader: SegmentReader, places: BucketPieces, dead: U32, *, gone: bool = False
) -> Iterator[pa.RecordBatch]:
    """A bucket's rows of a segment, columns STORED, without those of blocks that the raw file has no longer.

    Args:
        dead: numbers of these blocks (n,), in their order.
        gone: gives the rows of these blocks, and no other.
    """
    for piece, span in zip(places.pieces, places.spans, strict=True):
        first, last = span[0], span[-1]
        inside = dead[slice(*np.searchsorted(dead, [first, last + 1]))]
        if len(span) > 2:
            inside = np.intersect1d(inside, np.array(span, np.uint32), assume_unique=True)
        if len(inside):
            marked = np.full(last + 1 - first, not gone)
            marked[inside - np.uint32(first)] = gone
            batch = reader.blob(piece)
            kept = batch.filter(pa.array(marked[batch.column("block").to_numpy() - np.uint32(first)]))
            if kept.num_rows:
                yield kept
        elif not gone:
            yield reader.blob(piece)


def read_blob(path: Path, piece: Piece, schema: pa.Schema) -> pa.RecordBatch:
    """One record batch of a segment; raises what `SegmentReader.blob` does."""
    with SegmentReader(path) as reader:
        return reader.blob(piece, schema)


def texts_batch(texts: Sequence[str | None]) -> pa.RecordBatch:
    """A list of texts, as a blob holds it."""
    return frame_batch(pl.DataFrame({"text": texts}, schema={"text": pl.String}))


def frame_batch(frame: pl.DataFrame) -> pa.RecordBatch:
    """A frame, as a blob holds it."""
    table = frame.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest())
    batches = table.to_batches()
    if batches:
        return batches[0]
    return pa.RecordBatch.from_arrays([pa.nulls(0, field.type) for field in table.schema], schema=table.schema)


def read_texts(path: Path, piece: Piece) -> list[str]:
    """A list of texts of a segment."""
    texts: list[str] = read_blob(path, piece, TEXTS).column(0).to_pylist()
    return texts


def read_frame_blob(path: Path, piece: Piece, empty: pl.DataFrame) -> pl.DataFrame:
    """A frame of a segment, with the columns of `empty`."""
    with SegmentReader(path) as reader:
        return reader.frame(piece, empty)
