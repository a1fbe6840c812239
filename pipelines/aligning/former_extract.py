"""What earlier runs made of a raw file: the record of the latest one, and the segments that it stands for."""

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import polars as pl
import pyarrow as pa

from extractors.tables.content_blocks import Cutting, Known
from pipelines.aligning.segments import BucketPieces, Piece, SegmentReader, live_batches, read_frame_blob, read_texts
from pipelines.engine.run_stage import load_record
from warehouse.arrays import I64, U32, U64
from warehouse.manifest import TaskEntry

# Of each block of the file, in its order: in which of the segments its rows lie, its number in that one, its digest,
# the sum of the hashes of what was looked up for its rows. What was counted of it stands in further columns, named by
# the keys as JSON.
BLOCKS = pl.DataFrame(
    schema={
        "part": pl.UInt16,
        "block": pl.UInt32,
        "low": pl.UInt64,
        "high": pl.UInt64,
        "length": pl.Int64,
        "looked_up": pl.UInt64,
    }
)
RECORDS = json.dumps(["raw"])


class FormerPart(TypedDict):
    """A former segment: its name, how many blocks and rows it holds, and where the newest one lists the dead ones."""

    segment: str
    blocks: int
    rows: int
    dead: Piece


class Followed(TypedDict):
    """What is said of a file's blocks: how they are cut, how the file is written, how many the newest segment holds,
    and the columns of what was counted of each."""

    cutting: tuple[int, int, int]
    written: list[str | None]
    blocks: int
    counted: list[str]


class FormerExtract:
    """What an earlier run made of a raw file under the same rules."""

    def __init__(self, base: Path, entry: TaskEntry) -> None:
        self.base, self.entry = base, entry
        self._counts = entry.counts
        self._newest = base / entry.counts["segment"]

    @classmethod
    def find(cls, base: Path, line: str, segment: str) -> "FormerExtract | None":
        """The latest whole one whose files' names begin with `line`; not that of the segment itself, nor one that
        needs it: a file that is as it was some nights ago, whose record is gone, writes its segment anew."""
        records = [path for path in base.glob(f"{line}-*.json") if path.stem != Path(segment).stem]
        for path in sorted(records, key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True):
            entry = load_record(path)
            if entry is None or not entry.counts.get("followed") or segment in entry.files:
                continue
            if all(file.is_as_long_as(base / name) for name, file in entry.files.items()):
                return cls(base, entry)
        return None

    @cached_property
    def codes(self) -> list[str]:
        return read_texts(self._newest, self._counts["blobs"]["codes"])

    @cached_property
    def units(self) -> list[str]:
        return read_texts(self._newest, self._counts["blobs"]["units"])

    def frame(self, name: str, empty: pl.DataFrame) -> pl.DataFrame:
        """A frame among the blobs, with the columns of `empty`."""
        return read_frame_blob(self._newest, self._counts["blobs"][name], empty)

    @cached_property
    def blocks(self) -> pl.DataFrame:
        """The file's blocks in its order, columns of BLOCKS and what was counted."""
        counted = self._counts["followed"]["counted"]
        return self.frame("blocks", pl.DataFrame(schema={**BLOCKS.schema, **dict.fromkeys(counted, pl.Int64)}))

    @property
    def records(self) -> I64:
        """How many records each of the blocks has."""
        return self.blocks[RECORDS].to_numpy()

    @property
    def looked_up(self) -> U64:
        """Of each of the blocks the sum of the hashes of what was looked up for its rows."""
        return self.blocks["looked_up"].to_numpy()

    def known(self) -> Known:
        """The blocks, as a reader looks for them."""
        said: Followed = self._counts["followed"]
        halves = np.stack([self.blocks["high"].to_numpy(), self.blocks["low"].to_numpy()], axis=1).astype(">u8")
        digests = halves.tobytes()
        return Known(
            Cutting(*said["cutting"]),
            said["written"],
            self.blocks["length"].to_list(),
            [digests[start : start + 16] for start in range(0, len(digests), 16)],
        )

    @cached_property
    def parts(self) -> list[FormerPart]:
        """Its segments, the newest one last."""
        name, blocks = self._counts["segment"], self._counts["followed"]["blocks"]
        rows = self.entry.files[name].rows or 0
        return [*self._counts["formers"], FormerPart(segment=name, blocks=blocks, rows=rows, dead=(0, 0, 0, ""))]

    @property
    def joined(self) -> str:
        """A hash of the tables that were looked up in."""
        joined: str = self._counts["joined"]
        return joined

    @property
    def index(self) -> dict[str, Any]:
        index: dict[str, Any] = self._counts["buckets"]
        return index

    def places(self, bucket: str) -> list[BucketPieces]:
        """Where a bucket's rows lie in each of the segments."""
        of = self.index.get(bucket)
        if of is None:
            return [BucketPieces() for _ in self.parts]
        return [BucketPieces(**places) for places in (*of.get("formers", ()), _places_of(of))]

    def batches(self, bucket: str, dead: Sequence[U32], *, gone: bool = False) -> Iterator[tuple[int, pa.RecordBatch]]:
        """A bucket's rows, each batch with the number of its segment; see `live_batches`."""
        for part, places in enumerate(self.places(bucket)):
            if places.pieces and (len(dead[part]) or not gone):
                with SegmentReader(self.base / self.parts[part]["segment"]) as reader:
                    for batch in live_batches(reader, places, dead[part], gone=gone):
                        yield part, batch


def _places_of(index: dict[str, Any]) -> dict[str, Any]:
    return {name: index[name] for name in ("pieces", "spans")}
