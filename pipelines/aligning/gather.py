"""A bucket's rows, gathered from every segment in their narrow form.

A large bucket is given out a range of subjects at a time, so that memory does not grow with it.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from extractors.events.converted import AT_TIME, AWAITED, ESTIMATED, LAG_STEP_US, LAG_STEPS, MISSED
from extractors.events.units import LETTER
from extractors.events.values import FLAGS
from pipelines.aligning.bound import within_bound
from pipelines.aligning.bucket_rows import KINDS, BucketRows, BucketTexts
from pipelines.aligning.columns import NONE_32, PieceColumns
from pipelines.aligning.contents import ContentSums, SegmentHashes
from pipelines.aligning.item_events import image_events
from pipelines.aligning.segments import DEAD, SCHEMA, BucketPieces, SegmentReader, live_batches
from pipelines.aligning.texts import unite, without_nulls
from pipelines.carrying.cells import Contents
from warehouse.arrays import I64, NO_TIME, U16, U64, Bools
from warehouse.modalities import MODALITIES

# Rows that are held at once in their full width.
RANGE_ROWS = 400_000

# Takes a reason, a table's name, and events of the table, each (n,): subject, hash and rule of the raw row, whether
# there is a time.
PutAside = Callable[[str, str, I64, U64, U16, Bools], None]


@dataclass(frozen=True)
class SourceRows:
    """Rows of one source that stand together: a segment's, or the images of a modality.

    Attributes:
        kinds: by rule.
        codes, units: what the numbers of the rows stand for.
    """

    source: str
    kinds: list[str]
    codes: pa.Array
    units: pa.Array
    part: slice


@dataclass(frozen=True)
class Wanted:
    """Subjects (s,) of whom alone rows are gathered, and how many rows these are."""

    subjects: I64
    rows: int

    def of(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The rows of a batch that are theirs."""
        kept = pc.is_in(batch.column("subject_id"), value_set=pa.array(self.subjects))
        return batch.filter(kept)


@dataclass(frozen=True)
class Gathered:
    """A bucket's rows, and what their numbers stand for."""

    rows: BucketRows
    texts: BucketTexts

    @classmethod
    def read(
        cls,
        segments: list[dict[str, Any]],
        items: pl.DataFrame | None,
        lags: dict[str, dict[str, int]],
        limit: str | None,
        put_aside: PutAside,
        *,
        sums: ContentSums | None = None,
        wanted: Wanted | None = None,
    ) -> "Gathered":
        """Reads every piece, leaving out the subjects outside `limit`, whose events go to `put_aside`.

        Args:
            lags: by source and code, microseconds.
            sums: gets the hashes of all that is read, where it is given.
            wanted: the subjects whose rows are kept; all where not given.
        """
        if items is not None and wanted is not None:
            items = items.filter(pl.col("subject_id").is_in(wanted.subjects))
        images, keys = image_events(items) if items is not None else ([], [])
        rows = sum(segment["rows"] for segment in segments) + len(keys) if wanted is None else wanted.rows
        columns = PieceColumns(rows)
        if sums is not None and items is not None:
            sums.add_items(items)
        blocks = []
        for segment in segments:
            start = columns.rows
            with SegmentReader(Path(segment["path"])) as reader:
                codes, units = reader.texts(segment["codes"]), reader.texts(segment["units"])
                hashes = SegmentHashes(segment, codes, lags) if sums is not None else None
                for batch in _batches(reader, segment, limit, put_aside):
                    if sums is not None and hashes is not None:
                        sums.add(batch.column("subject_id").to_numpy(), hashes.of(batch))
                    columns.add(batch if wanted is None else wanted.of(batch))
            blocks.append(SourceRows(segment["source"], segment["kinds"], codes, units, slice(start, columns.rows)))
        for modality, batch in images:
            start = columns.rows
            columns.add(batch)
            code, none = pa.array([MODALITIES[modality].event], pa.large_string()), pa.array([], pa.large_string())
            blocks.append(SourceRows(f"images/{modality}", ["image"], code, none, slice(start, columns.rows)))
        return cls._of(columns, blocks, pa.array(keys, pa.string()), lags)

    @classmethod
    def _of(
        cls, columns: PieceColumns, blocks: list[SourceRows], keys: pa.Array, lags: dict[str, dict[str, int]]
    ) -> "Gathered":
        rows = columns.rows
        read = {name: values[:rows] for name, values in columns.numbers.items()}
        codes = unite([(block.codes, read["code"][block.part]) for block in blocks], in_order=True)
        for block in blocks:
            without_nulls(block.units, read["unit"][block.part])
        units = unite([(block.units, read["unit"][block.part]) for block in blocks], in_order=True)
        sources = sorted({block.source for block in blocks})
        source, kind = np.empty(rows, np.uint16), np.empty(rows, np.uint8)
        for block in blocks:
            source[block.part] = sources.index(block.source)
            of_rule = np.array([KINDS.index(name) for name in block.kinds], np.uint8)
            kind[block.part] = of_rule.take(read["rule"][block.part])
        item, items = np.full(rows, NONE_32, np.uint32), keys.dictionary_encode()
        item[rows - len(keys) :] = items.indices.to_numpy()
        narrow = BucketRows(
            subject=read["subject_id"],
            time=read["time"],
            code=read["code"],
            number=read["numeric_value"],
            has_number=columns.known["numeric_value"][:rows],
            text=columns.text[:rows],
            available=read["available_time"],
            precision=read["precision"],
            kind=kind,
            unit=read["unit"],
            source=source,
            visit=read["visit_id"],
            has_visit=columns.known["visit_id"][:rows],
            item=item,
            availability=read["availability"],
            flag=read["flag"],
            rule=read["rule"],
            row_hash=read["row_hash"],
        )
        values = unite([(texts, columns.text[part]) for texts, part in columns.pieces], in_order=False)
        texts = BucketTexts(codes.cast(pa.string()), units.cast(pa.string()), sources, items.dictionary, values)
        _settle(narrow, texts, lags)
        return cls(narrow, texts)

    def ranges(self, cells: I64) -> Iterator[I64 | None]:
        """The rows of one range of subjects after the other; None for all of them.

        Args:
            cells: the first subject of each cell (c,), ascending; a cell lies in one range.
        """
        subjects = self.rows.subject
        if len(subjects) <= RANGE_ROWS:
            if len(subjects):
                yield None
            return
        cell = (np.searchsorted(cells, subjects, side="right") - 1).astype(np.uint32)
        part = (np.cumsum(np.bincount(cell, minlength=len(cells))) - 1) // RANGE_ROWS
        of_row = part[cell]
        for number in np.unique(part).tolist():
            places = np.flatnonzero(of_row == number)
            if len(places):
                yield places


def read_contents(
    segments: list[dict[str, Any]],
    items: pl.DataFrame | None,
    lags: dict[str, dict[str, int]],
) -> Contents:
    """What each subject is made of, without keeping a row; arguments are those of `Gathered.read`."""
    sums = ContentSums()
    if items is not None:
        sums.add_items(items)
    for segment in segments:
        with SegmentReader(Path(segment["path"])) as reader:
            hashes = SegmentHashes(segment, reader.texts(segment["codes"]), lags)
            for batch in _whole(reader, segment):
                sums.add(batch.column("subject_id").to_numpy(), hashes.of(batch))
    return sums.total()


def _batches(
    reader: SegmentReader, segment: dict[str, Any], limit: str | None, put_aside: PutAside
) -> Iterable[pa.RecordBatch]:
    batches = _whole(reader, segment)
    return batches if limit is None else _within(batches, limit, segment["source"], put_aside)


def _whole(reader: SegmentReader, segment: dict[str, Any]) -> Iterator[pa.RecordBatch]:
    """The rows of a segment, and those of former ones that the raw file still has.

    Raises:
        TimeloomError: they are more or fewer than the record says; all these segments are removed.
    """
    rows = 0
    for batch in chain(
        map(reader.blob, segment["pieces"]), *(_of_former(reader, former) for former in segment["formers"])
    ):
        rows += batch.num_rows
        yield batch
    if rows != segment["rows"]:
        raise reader.damaged(*(Path(former["path"]) for former in segment["formers"]))


def _of_former(newest: SegmentReader, former: dict[str, Any]) -> Iterator[pa.RecordBatch]:
    """The rows of a former segment that the raw file still has."""
    if former["pieces"]:
        dead = newest.frame(former["dead"], DEAD)["block"].to_numpy()
        with SegmentReader(Path(former["path"])) as reader:
            yield from live_batches(reader, BucketPieces(former["pieces"], former["spans"]), dead)


def _within(batches: Iterable[pa.RecordBatch], limit: str, source: str, put_aside: PutAside) -> list[pa.RecordBatch]:
    table = pa.Table.from_batches(batches, SCHEMA)
    inside = within_bound(pl.DataFrame({"subject_id": pl.from_arrow(table.column("subject_id"))}), limit).to_arrow()
    outside = table.filter(pc.invert(inside)).combine_chunks()
    subject, row_hash, rule = (outside.column(name).to_numpy() for name in ("subject_id", "row_hash", "rule"))
    put_aside("outside_limit", source, subject, row_hash, rule, outside.column("time").is_valid().to_numpy())
    kept: list[pa.RecordBatch] = table.filter(inside).to_batches()
    return kept


def _settle(rows: BucketRows, texts: BucketTexts, lags: dict[str, dict[str, int]]) -> None:
    """Facts that await a lag get theirs, in place, and letters that are no unit become flags.

    What has no lag is taken to be known at its time, but for what a join should have told: that gets the longest lag.
    """
    letters = np.flatnonzero(rows.flag == LETTER)
    rows.flag[letters] = np.where(rows.unit[letters] == NONE_32, FLAGS.index("flag"), FLAGS.index("unit"))
    waits = np.flatnonzero((rows.availability == AWAITED) | (rows.availability == MISSED))
    if not len(waits):
        return
    source, code = rows.source[waits].astype(np.int64), rows.code[waits]
    asked, places = np.unique(source * len(texts.codes) + code, return_inverse=True)
    names = texts.codes.take(pa.array(asked % len(texts.codes))).to_pylist()
    tables = (texts.sources[number] for number in (asked // len(texts.codes)).tolist())
    known = [lags.get(table, {}).get(name, -1) for table, name in zip(tables, names, strict=True)]
    lag = np.array(known, np.int64)[places]
    lag[(lag < 0) & (rows.availability[waits] == MISSED)] = LAG_STEPS * LAG_STEP_US
    rows.availability[waits] = np.where(lag < 0, AT_TIME, ESTIMATED)
    later = (lag > 0) & (rows.available[waits] != NO_TIME)
    rows.available[waits[later]] += lag[later]
