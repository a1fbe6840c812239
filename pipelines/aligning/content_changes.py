"""What each subject of a bucket is made of, told from what it was made of: rows that are as they were are not read.

A segment never changes, so what a record says of a bucket beside what the record before said of it names the rows that
are gone and those that are new: of a segment that both name the blocks that are dead in one of them alone, of any other
all rows. Hashes are sums, so the one are taken out and the others added.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import polars as pl
import pyarrow as pa

from pipelines.aligning.contents import ContentSums, SegmentHashes
from pipelines.aligning.segments import DEAD, BucketPieces, SegmentReader, live_batches
from pipelines.carrying.cells import Contents
from warehouse.arrays import U32
from warehouse.errors import TimeloomError

_NONE: U32 = np.zeros(0, np.uint32)


class MadeOf(TypedDict):
    """What a bucket of the release before was made of.

    Attributes:
        segments: as a task is given them.
        lags: by source and code, microseconds.
        items: whether there is a file of its items.
    """

    segments: list[dict[str, Any]]
    lags: dict[str, dict[str, int]]
    items: bool


def contents_since(
    before: Contents,
    made_of: MadeOf,
    items_before: pl.DataFrame | None,
    segments: list[dict[str, Any]],
    items: pl.DataFrame | None,
    lags: dict[str, dict[str, int]],
) -> Contents | None:
    """What each subject is made of; None where that cannot be told from what it was, or the rows would be more or fewer
    than the records say, so that all are to be read.

    Args:
        before: what they were made of.
        items_before, items: of the bucket, each once.
        segments: of the bucket, as a task is given them.
        lags: by source and code, microseconds; what `made_of` says of them holds for all rows that are gone.
    """
    sums = ContentSums()
    sums.add_contents(before)
    expected, rows_before = (sum(each["rows"] for each in of) for of in (segments, made_of["segments"]))
    if items_before is not None:
        # Of whom no row was there, nothing is said.
        known = items_before.filter(pl.col("subject_id").is_in(before.subjects.tolist()))
        rows_before += sums.add_items(known, gone=True)
    if rows_before != int(before.rows.sum()):
        return None
    if items is not None:
        expected += sums.add_items(items)
    was, now = _without_equal(made_of["segments"], segments)
    try:
        parts_before, parts = _parts(was), _parts(now)
        for key in {**parts_before, **parts}:
            old, new = parts_before.get(key), parts.get(key)
            if old is not None and new is not None and old.places != new.places:
                return None
            if old is not None:
                _count(sums, old, new, made_of["lags"], gone=True)
            if new is not None:
                _count(sums, new, old, lags, gone=False)
    except TimeloomError:
        # Whoever reads all says what is damaged; of what is not needed any more nobody needs to know.
        return None
    total = sums.total()
    return total if int(total.rows.sum()) == expected else None


@dataclass(frozen=True)
class _Part:
    """A bucket's rows in one file.

    Attributes:
        path: of the file.
        dead: blocks (n,) whose rows are left out.
        segment: what the file is, or is a former one of.
    """

    path: Path
    places: BucketPieces
    dead: U32
    segment: dict[str, Any]


_Key = tuple[str, str, str]


def _parts(segments: list[dict[str, Any]]) -> dict[_Key, _Part]:
    """The files of segments, by path and by what makes the hash of a row."""
    found: dict[_Key, _Part] = {}
    for segment in segments:
        of = segment["source"], segment["rules"]
        if segment["pieces"]:
            places = BucketPieces(segment["pieces"], segment["spans"])
            found[segment["path"], *of] = _Part(Path(segment["path"]), places, _NONE, segment)
        formers = [former for former in segment["formers"] if former["pieces"]]
        with SegmentReader(Path(segment["path"])) as newest:
            for former in formers:
                dead = newest.frame(former["dead"], DEAD)["block"].to_numpy()
                places = BucketPieces(former["pieces"], former["spans"])
                found[former["path"], *of] = _Part(Path(former["path"]), places, dead, segment)
    return found


def _count(sums: ContentSums, part: _Part, other: _Part | None, lags: dict[str, dict[str, int]], *, gone: bool) -> None:
    """Counts a part's rows that another state of it has not: as gone, or as new."""
    path = Path(part.segment["path"])
    with SegmentReader(path) as newest:
        hashes = SegmentHashes(part.segment, newest.texts(part.segment["codes"]), lags)
    for batch in _rows(part, other):
        sums.add(batch.column("subject_id").to_numpy(), hashes.of(batch), gone=gone)


def _rows(part: _Part, other: _Part | None) -> Iterator[pa.RecordBatch]:
    with SegmentReader(part.path) as reader:
        if other is None:
            yield from live_batches(reader, part.places, part.dead)
        else:
            yield from live_batches(reader, part.places, np.setdiff1d(other.dead, part.dead), gone=True)


def _without_equal(
    before: list[dict[str, Any]], now: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Segments of two nights without those that have the same rows in both, wherever they lie."""

    def said(segment: dict[str, Any]) -> tuple[Any, ...]:
        return segment["source"], segment["rules"], segment["rows"], segment["hash"]

    left = [said(segment) for segment in before]
    kept = []
    for segment in now:
        if said(segment) in left:
            left.remove(said(segment))
        else:
            kept.append(segment)
    gone = []
    for segment in before:
        if said(segment) in left:
            left.remove(said(segment))
            gone.append(segment)
    return gone, kept
