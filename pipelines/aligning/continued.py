"""A raw file that changed: what an earlier segment holds of it is kept, and the rows of its new blocks go beside that.

A record then stands for several segments: the newest one, which also says everything of the whole file, and former
ones, of whose rows those count whose block the file still has. All that is said is what a conversion of the whole file
would say: sums by bucket and lags are those of the record before without the rows that are gone and with the new ones,
and the account is the sum over the blocks.
"""

import json
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from extractors.events.by_block import SILENT, BlockCounts
from extractors.events.convert import Converter
from extractors.events.converted import REASONS, Account
from extractors.events.lag_counts import LAGS, LagCounts, by_code
from extractors.tables.content_blocks import RecordBlocks
from pipelines.aligning.former_extract import BLOCKS, RECORDS, Followed, FormerExtract, FormerPart
from pipelines.aligning.segments import SCHEMA, BucketPieces, BucketSums, Piece, SegmentWriter, frame_batch
from warehouse.arrays import I64, U32
from warehouse.hashing import bucket_of
from warehouse.manifest import FileEntry

SUBJECTS = pl.DataFrame(schema={"subject_id": pl.Int64, "check": pl.Int64})
QUARANTINE = pl.DataFrame(schema={"row": pl.Int64, "reason": pl.String})
_SILENT = pl.DataFrame(schema={"part": pl.UInt16, **SILENT.schema})
# Rows of dead blocks are read with the others and left out by whoever reads a bucket, and take their place on the disk:
# beyond this share of the live ones all live ones are copied into one segment, which costs about as much as the reading
# of a whole bucket's rows for each bucket. A new row costs no more in a further segment than in the first one.
DEAD_SHARE = 1 / 4
# Whoever reads a bucket opens so many files more for each raw file.
MOST_FORMERS = 6
# Small pieces are put together to so many rows when they are copied.
_COPIED_ROWS = 1 << 16
# So many rows that are gone are looked at together.
_COUNTED_ROWS = 1 << 18


class NotContinuedError(Exception):
    """What an earlier segment holds of a raw file cannot be kept: the whole file is to be converted."""


@dataclass
class Closed:
    """What a record says of its segments.

    Attributes:
        index: by bucket what `BucketSums.index` says, and where its rows lie in the newest segment; as `formers` where
            they lie in the former ones.
        blobs: of the newest segment.
        made_before: the files of the former ones.
    """

    index: dict[str, Any]
    blobs: dict[str, Piece]
    account: Account
    followed: Followed | None = None
    formers: list[FormerPart] = field(default_factory=list)
    made_before: dict[str, FileEntry] = field(default_factory=dict)


@dataclass(frozen=True)
class Conversion:
    """What was made of the records of a file that no former segment holds, and is not yet closed.

    Attributes:
        blocks, counts: None where the file's blocks cannot be told.
        no_rows: numbers of the records that are no rows, by reason.
        mended: rows that were counted for something that had to be mended in them.
    """

    writer: SegmentWriter
    converter: Converter
    blocks: RecordBlocks | None
    counts: BlockCounts | None
    no_rows: dict[str, list[int]]
    mended: int

    def close(self, former: FormerExtract | None) -> Closed:
        """Writes what stands behind the rows.

        Args:
            former: what holds the known blocks.

        Raises:
            TimeloomError: a former segment is damaged.
            NotContinuedError: known blocks were left out, and what they decide with the others cannot be told.
        """
        converter, writer = self.converter, self.writer
        codes = converter.codes.texts
        converter.finish()
        frames = {
            "codes": pl.DataFrame({"text": codes}, schema={"text": pl.String}),
            "units": pl.DataFrame({"text": converter.units.texts}, schema={"text": pl.String}),
            "subjects": pl.concat([SUBJECTS, converter.subjects]).sort("subject_id", "check"),
            "lags": converter.lags(),
            "quarantine": self._quarantine(),
        }
        seen = self.blocks.seen if self.blocks is not None else []
        if self.blocks is None or self.counts is None or not self._is_followed(self.blocks):
            if any(place >= 0 for place in seen):
                raise NotContinuedError
            index = writer.index(codes)
            return Closed(index, self._blobs(frames), converter.account)
        lag_counts = converter.lag_counts
        frames["lags_stated"], frames["lags_joined"] = (lag_counts.frame(joined=joined) for joined in (False, True))
        number = len(self.blocks.lengths)
        followed = _followed(self.blocks, number)
        frames["blocks"] = _blocks_frame(self.blocks, self.counts)
        frames["silent"] = self.counts.silent().select(pl.lit(0, pl.UInt16).alias("part"), *SILENT.columns)
        if former is None or max(seen) < 0:
            closed = Closed(writer.index(codes), {}, converter.account, followed)
        else:
            closed = _Continuation(former, np.array(seen), converter, writer, frames).close(followed)
        followed["counted"] = frames["blocks"].columns[len(BLOCKS.columns) :]
        closed.blobs |= self._blobs(frames)
        return closed

    def _is_followed(self, blocks: RecordBlocks) -> bool:
        """Whether everything that was made is counted by block, and hangs on its own block alone."""
        blocks.close()
        units = self.converter.units
        alone = not units.settled and not self.mended and not any(self.no_rows.values())
        return alone and blocks.whole and bool(blocks.seen)

    def _quarantine(self) -> pl.DataFrame:
        rows = [
            pl.DataFrame({"row": np.sort(np.concatenate(numbers))}).with_columns(pl.lit(reason).alias("reason"))
            for reason, numbers in [
                *self.converter.quarantine.items(),
                *((reason, [np.array(numbers, np.int64)]) for reason, numbers in self.no_rows.items()),
            ]
            if numbers
        ]
        return pl.concat([QUARANTINE, *rows])

    def _blobs(self, frames: dict[str, pl.DataFrame]) -> dict[str, Piece]:
        return {name: self.writer.blob(frame_batch(frame)) for name, frame in frames.items()}


def _followed(blocks: RecordBlocks, number: int) -> Followed:
    cutting = blocks.cutting
    assert cutting is not None, "records were read"
    return Followed(
        cutting=(cutting.least, cutting.most, cutting.odds), written=list(blocks.written), blocks=number, counted=[]
    )


def _blocks_frame(blocks: RecordBlocks, counts: BlockCounts) -> pl.DataFrame:
    """The blocks that were read, as those of part 0."""
    number = len(blocks.lengths)
    counted = {("raw",): np.zeros(number, np.int64)} | counts.table(number)
    halves = np.frombuffer(b"".join(blocks.digests), ">u8").reshape(number, 2).astype(np.uint64)
    return pl.DataFrame(
        {
            "part": np.zeros(number, np.uint16),
            "block": np.arange(number, dtype=np.uint32),
            "low": halves[:, 1],
            "high": halves[:, 0],
            "length": np.array(blocks.lengths, np.int64),
            "looked_up": counts.looked_up(number),
            **{json.dumps(key): rows for key, rows in counted.items()},
        }
    )


class _Continuation:
    """Takes over what a former record says of the blocks that the file still has.

    Args:
        seen: of each block of the file, in its order, its place among the former ones; -1 of the new ones.
        frames: what is said of the new records; becomes what is said of all.
    """

    def __init__(
        self,
        former: FormerExtract,
        seen: I64,
        converter: Converter,
        writer: SegmentWriter,
        frames: dict[str, pl.DataFrame],
    ) -> None:
        self._former, self._seen, self._converter, self._writer, self._frames = former, seen, converter, writer, frames
        self._part = len(former.parts)
        old = former.blocks
        self._is_gone = np.ones(len(old), np.bool_)
        self._is_gone[seen[seen >= 0]] = False
        gone = old.filter(pl.Series(self._is_gone))
        self._gone = _by_part(gone, self._part)
        live = _by_part(old.filter(pl.Series(~self._is_gone)), self._part)
        self._dead = [
            np.setdiff1d(np.arange(part["blocks"], dtype=np.uint32), blocks)
            for part, blocks in zip(former.parts, live, strict=True)
        ]
        silent, place = former.frame("silent", _SILENT), ["part", "block"]
        self._kept_silent = silent.join(gone, on=place, how="anti")
        self._gone_subjects = set(silent.join(gone, on=place, how="semi")["subject_id"].unique().to_list())

    def close(self, followed: Followed) -> Closed:
        former, frames = self._former, self._frames
        new_sums, new_places = self._writer.close()
        sums, of_gone, lags = self._without_gone()
        lost = self._lost(sums, {number: of.awaited - new_sums[number].awaited for number, of in of_gone.items()})
        for number, new in new_sums.items():
            of = sums[number]
            of.rows, of.hashes, of.awaited = of.rows + new.rows, of.hashes + new.hashes, of.awaited | new.awaited
        sums = {number: of for number, of in sorted(sums.items()) if of.rows}
        new_rows = sum(new.rows for new in new_sums.values())
        frames["quarantine"] = self._quarantine()
        subjects = former.frame("subjects", SUBJECTS).filter(~pl.col("subject_id").is_in(sorted(lost)))
        frames["subjects"] = pl.concat([subjects, frames["subjects"]]).unique().sort(SUBJECTS.columns)
        frames["blocks"] = self._blocks()
        account = Account.of(
            {
                tuple(json.loads(name)): int(frames["blocks"][name].sum())
                for name in frames["blocks"].columns[len(BLOCKS.columns) :]
            }
        )
        self._add_lags(lags, account)
        frames["silent"] = pl.concat(
            [self._kept_silent, frames["silent"].with_columns(pl.lit(self._part, pl.UInt16).alias("part"))]
        )
        codes = self._converter.codes.texts
        rows = sum(of.rows for of in sums.values())
        dead_rows = sum(part["rows"] for part in former.parts) - (rows - new_rows)
        if self._part >= MOST_FORMERS or dead_rows > DEAD_SHARE * rows:
            followed["blocks"] = self._absorb()
            index = {str(number): of.index(codes) | _as_json(new_places[number]) for number, of in sums.items()}
            return Closed(index, {}, account, followed)
        index = {
            str(number): of.index(codes)
            | _as_json(new_places[number])
            | {"formers": [_as_json(places) for places in former.places(str(number))]}
            for number, of in sums.items()
        }
        parts = [
            FormerPart(
                segment=part["segment"],
                blocks=part["blocks"],
                rows=part["rows"],
                dead=self._writer.blob(frame_batch(pl.DataFrame({"block": dead}))),
            )
            for part, dead in zip(former.parts, self._dead, strict=True)
        ]
        files = {part["segment"]: former.entry.files[part["segment"]] for part in parts}
        return Closed(index, {}, account, followed, parts, files)

    def _without_gone(self) -> tuple[dict[int, BucketSums], dict[int, BucketSums], LagCounts]:
        """By bucket the sums of the former rows without those that are gone, the sums of these, and their lags."""
        former, converter = self._former, self._converter
        numbers = {code: number for number, code in enumerate(former.codes)}
        sums: dict[int, BucketSums] = defaultdict(BucketSums)
        of_gone: dict[int, BucketSums] = defaultdict(BucketSums)
        lags = converter.lag_counts.another()
        held: list[pa.RecordBatch] = []

        def count() -> None:
            events = _frame_of(held)
            lags.add_events(events)
            self._gone_subjects.update(events["subject_id"].unique().to_list())
            held.clear()

        rows = 0
        for bucket, index in former.index.items():
            of, dead = BucketSums.of_index(index, numbers), of_gone[int(bucket)]
            for _, batch in former.batches(bucket, self._gone, gone=True):
                dead.add_batch(batch)
                held.append(batch)
                rows += batch.num_rows
                if rows >= _COUNTED_ROWS:
                    count()
                    rows = 0
            of.rows, of.hashes = of.rows - dead.rows, of.hashes - dead.hashes
            sums[int(bucket)] = of
        count()
        return sums, of_gone, lags

    def _lost(self, sums: dict[int, BucketSums], lost_codes: dict[int, set[int]]) -> set[int]:
        """The subjects that no former row names any more; codes that none awaits leave the sums.

        Args:
            lost_codes: by bucket, codes that a row which is gone awaits and no new one.
        """
        subjects = self._former.frame("subjects", SUBJECTS)
        if subjects["subject_id"].is_duplicated().any():
            raise NotContinuedError
        maybe = subjects.filter(pl.col("subject_id").is_in(sorted(self._gone_subjects)))
        maybe = maybe.join(self._frames["subjects"], on=SUBJECTS.columns, how="anti")
        maybe = maybe.join(self._kept_silent, on="subject_id", how="anti")
        buckets = bucket_of(maybe["subject_id"].to_numpy(), self._writer.buckets)
        lost: dict[int, set[int]] = {number: set() for number in lost_codes}
        for subject, bucket in zip(maybe["subject_id"].to_list(), buckets.tolist(), strict=True):
            lost.setdefault(bucket, set()).add(subject)
        for bucket, sought in sorted(lost.items()):
            codes = set(lost_codes.get(bucket, ()))
            for _, batch in self._former.batches(str(bucket), self._dead) if sought or codes else ():
                still = BucketSums()
                still.add_batch(batch)
                codes -= still.awaited
                sought.difference_update(np.unique(batch.column("subject_id").to_numpy()).tolist() if sought else ())
                if not (codes or sought):
                    break
            sums[bucket].awaited -= codes
        return set().union(*lost.values())

    def _quarantine(self) -> pl.DataFrame:
        """The quarantine of the whole file: rows move with their blocks."""
        former, new = self._former, self._frames["blocks"]
        records = np.concatenate([former.blocks[RECORDS].to_numpy(), new[RECORDS].to_numpy()])
        order = self._order()
        starts = np.zeros(len(records), np.int64)
        starts[order] = np.cumsum(records[order]) - records[order]
        old = len(former.blocks)
        moved = [
            _moved(former.frame("quarantine", QUARANTINE), records[:old], starts[:old], self._is_gone),
            _moved(self._frames["quarantine"], records[old:], starts[old:], np.zeros(len(new), np.bool_)),
        ]
        ranks = {reason: rank for rank, reason in enumerate(REASONS)}
        return pl.concat(moved).sort(
            pl.col("reason").replace_strict(ranks, default=len(ranks), return_dtype=pl.Int64), "reason", "row"
        )

    def _order(self) -> I64:
        """The file's blocks as places among the former ones and the new ones behind them."""
        order = self._seen.copy()
        is_new = order < 0
        order[is_new] = len(self._former.blocks) + np.arange(is_new.sum())
        return order

    def _blocks(self) -> pl.DataFrame:
        new = self._frames["blocks"].with_columns(pl.lit(self._part, pl.UInt16).alias("part"))
        whole = pl.concat([self._former.blocks, new], how="diagonal")
        return whole.with_columns(pl.col(whole.columns[len(BLOCKS.columns) :]).fill_null(0))[self._order()]

    def _add_lags(self, gone: LagCounts, account: Account) -> None:
        for name, joined in (("lags_stated", False), ("lags_joined", True)):
            without = gone.frame(joined=joined).with_columns(-pl.col("rows"))
            self._frames[name] = by_code(self._former.frame(name, LAGS), self._frames[name], without)
        missed = account.partial["availability_join_missed"] > 0
        self._frames["lags"] = by_code(*(self._frames[name] for name in ("lags_stated", "lags_joined")[: 1 + missed]))

    def _absorb(self) -> int:
        """Copies the live rows of the former segments into the newest one; gives how many blocks that then holds."""
        blocks, silent = self._frames["blocks"], self._frames["silent"]
        is_new = (blocks["part"] == self._part).to_numpy()
        numbers = np.empty(len(blocks), np.uint32)
        numbers[is_new] = blocks["block"].to_numpy()[is_new]
        numbers[~is_new] = np.arange(is_new.sum(), len(blocks), dtype=np.uint32)
        renumbered = blocks.select("part", "block").with_columns(pl.Series("number", numbers))
        tables = [np.zeros(part["blocks"], np.uint32) for part in self._former.parts]
        for part, table in enumerate(tables):
            of = renumbered.filter(pl.col("part") == part)
            table[of["block"].to_numpy()] = of["number"].to_numpy()
        for bucket in sorted(map(int, self._former.index)):
            held: list[pl.DataFrame] = []
            for part, batch in self._former.batches(str(bucket), self._dead):
                events = _frame_of([batch])
                held.append(events.with_columns(pl.Series("block", tables[part][events["block"].to_numpy()])))
                if sum(map(len, held)) >= _COPIED_ROWS:
                    self._writer.copy(bucket, frame_batch(pl.concat(held)))
                    held = []
            if held:
                self._writer.copy(bucket, frame_batch(pl.concat(held)))
        self._frames["silent"] = silent.join(renumbered, on=["part", "block"], how="left").select(
            pl.lit(0, pl.UInt16).alias("part"), pl.col("number").alias("block"), "subject_id"
        )
        self._frames["blocks"] = blocks.with_columns(pl.lit(0, pl.UInt16).alias("part"), pl.Series("block", numbers))
        return len(blocks)


def _moved(rows: pl.DataFrame, records: I64, starts: I64, is_gone: Any) -> pl.DataFrame:
    """Quarantined rows of blocks (n,) that have moved.

    Args:
        records: of each block, in the order that the rows are numbered in.
        starts: how many records stand before each now.
        is_gone: blocks whose rows are left out.
    """
    before = np.cumsum(records) - records
    number = rows["row"].to_numpy() - 1
    block = np.searchsorted(before, number, side="right") - 1
    moved = rows.with_columns(pl.Series("row", starts[block] + number - before[block] + 1))
    return moved.filter(pl.Series(~is_gone[block], dtype=pl.Boolean))


def _by_part(blocks: pl.DataFrame, parts: int) -> list[U32]:
    """The numbers of some blocks by their segment, in their order."""
    return [np.sort(blocks.filter(pl.col("part") == part)["block"].to_numpy()) for part in range(parts)]


def _frame_of(batches: list[pa.RecordBatch]) -> pl.DataFrame:
    frame = pl.from_arrow(pa.Table.from_batches(batches, SCHEMA))
    assert isinstance(frame, pl.DataFrame)
    return frame


def _as_json(places: BucketPieces) -> dict[str, Any]:
    return {"pieces": places.pieces, "spans": places.spans}
