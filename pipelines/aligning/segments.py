"""A segment: what one raw file became, in pieces of one bucket each, kept while the file and its rules stand.

The file is a row of Arrow record batches, one after the other; where each lies, how long it is and its checksum stand
in the task's record. A bucket is then read by reading its pieces and nothing else.
"""

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import xxhash

from extractors.events.converted import AWAITED, CONVERTED, MISSED, RECORDED
from warehouse.errors import TimeloomError
from warehouse.hashing import bucket_of, splitmix64

# Enough rows that a bucket's share of them is worth a piece.
GATHERED_ROWS = 1 << 19
# Events of one subject in a row that are sooner copied together than gathered one by one.
_LONG_RUN = 64
_CODEC = "lz4"

Piece = tuple[int, int, int, str]
_EMPTY = pl.DataFrame(schema=CONVERTED)


@dataclass
class _Bucket:
    rows: int = 0
    hashes: npt.NDArray[np.uint64] = field(default_factory=lambda: np.zeros(2, np.uint64))
    pieces: list[Piece] = field(default_factory=list)
    awaited: set[int] = field(default_factory=set)


class SegmentWriter:
    """Writes a segment; use as a context manager.

    Args:
        buckets: how many the root has.
    """

    def __init__(self, path: Path, buckets: int) -> None:
        self._file = path.open("wb")
        self._number = buckets
        self._codec = pa.Codec(_CODEC)
        self._gathered: list[pl.DataFrame] = []
        self._rows = 0
        self._buckets: dict[int, _Bucket] = defaultdict(_Bucket)

    def __enter__(self) -> "SegmentWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    @property
    def rows(self) -> int:
        """Events written so far."""
        return sum(bucket.rows for bucket in self._buckets.values()) + self._rows

    def write(self, events: pl.DataFrame) -> None:
        """Takes events, columns CONVERTED and others."""
        self._gathered.append(events.select(CONVERTED.keys()))
        self._rows += len(events)
        if self._rows >= GATHERED_ROWS:
            self._flush()

    def _flush(self) -> None:
        if not self._rows:
            return
        events, buckets = _by_bucket(pl.concat(self._gathered), self._number)
        self._gathered, self._rows = [], 0
        rule = events["rule"].to_numpy()
        hashes = events["row_hash"].to_numpy() ^ splitmix64(np.arange(int(rule.max()) + 1))[rule]
        codes, how = events["code"].to_numpy(), events["availability"].fill_null(RECORDED).to_numpy()
        waits = (how == AWAITED) | (how == MISSED)
        batch = events.to_arrow(compat_level=pl.CompatLevel.oldest()).combine_chunks().to_batches()[0]
        for number, start, end in buckets:
            kept = self._buckets[number]
            kept.rows += end - start
            # Sums, so that the order of the rows in the raw file does not matter.
            bucket_hashes = hashes[start:end]
            kept.hashes += np.array(
                [bucket_hashes.sum(dtype=np.uint64), splitmix64(bucket_hashes).sum(dtype=np.uint64)]
            )
            kept.pieces.append(self.blob(batch.slice(start, end - start)))
            waiting = waits[start:end]
            if waiting.any():
                kept.awaited.update(np.unique(codes[start:end][waiting]).tolist())

    def blob(self, batch: pa.RecordBatch) -> Piece:
        """Writes a record batch: where it lies, how long it is compressed and not, its checksum."""
        raw = batch.serialize()
        packed = self._codec.compress(raw, asbytes=True)
        place = self._file.tell()
        self._file.write(packed)
        return place, len(packed), len(raw), xxhash.xxh3_64_hexdigest(packed)

    def index(self, codes: list[str]) -> dict[str, Any]:
        """By bucket: rows, a hash of them that does not hang on their order, pieces, and codes that await a lag."""
        self._flush()
        return {
            str(number): {
                "rows": bucket.rows,
                "hash": "".join(f"{int(half):016x}" for half in bucket.hashes),
                "pieces": bucket.pieces,
                "awaited": sorted(codes[code] for code in bucket.awaited),
            }
            for number, bucket in sorted(self._buckets.items())
        }


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
TEXTS = pa.schema([pa.field("text", pa.large_string())])


class SegmentReader:
    """Reads a segment; use as a context manager."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_RDONLY)
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
            TimeloomError: damaged; the record is removed, so that the next run extracts the file anew.
        """
        place, length, raw_length, checksum = piece
        packed = os.pread(self._file, length, place)
        if xxhash.xxh3_64_hexdigest(packed) != checksum:
            self._path.with_suffix(".json").unlink(missing_ok=True)
            raise TimeloomError("a segment is damaged", remedy="run again: its raw file is extracted anew")
        return pa.ipc.read_record_batch(self._codec.decompress(packed, raw_length), schema)

    def texts(self, piece: Piece) -> pa.Array:
        """A list of texts."""
        return self.blob(piece, TEXTS).column(0)


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
    schema = empty.to_arrow(compat_level=pl.CompatLevel.oldest()).schema
    frame = pl.from_arrow(pa.Table.from_batches([read_blob(path, piece, schema)], schema))
    assert isinstance(frame, pl.DataFrame)
    return frame
