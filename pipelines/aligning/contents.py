"""What a subject's events are made of, as one number: so a night tells whose rows are as they were.

Of every row that is read the hash of the raw row, and of what was looked up for it, counts, with its table's rules and
the lag that it gets; of every item what its event is made of. The hashes are added up, so that the order of the rows,
and the files that they stand in, are no part of it.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from extractors.events.converted import AWAITED, MISSED
from pipelines.carrying.cells import Contents
from warehouse.arrays import I64, U64, Bools
from warehouse.hashing import salt_of, splitmix64

_LAG, _ITEM = salt_of("timeloom lag"), salt_of("timeloom item")
_SEEDS = (20, 16, 11, 30)


@dataclass
class ContentSums:
    """Adds up the hashes of rows, by subject."""

    _subjects: list[I64] = field(default_factory=list)
    _sums: list[U64] = field(default_factory=list)
    _rows: list[I64] = field(default_factory=list)

    def add(self, subject: I64, hashes: U64, events: Bools | None = None, *, gone: bool = False) -> None:
        """Adds some rows' hashes (n,) to those of their subjects (n,).

        Args:
            events: which of them (n,) are rows of events; all where not given.
            gone: takes them out instead.
        """
        if not len(subject):
            return
        # A subject's rows stand together in most exports: each run of them is added up first.
        starts = np.flatnonzero(np.concatenate([[True], subject[1:] != subject[:-1]]))
        sums = [np.add.reduceat(each, starts) for each in (hashes, splitmix64(hashes))]
        counted = np.diff(starts, append=len(subject))
        rows = counted if events is None else np.add.reduceat(events, starts, dtype=np.int64)
        self._subjects.append(subject[starts])
        self._sums.append(np.negative(np.stack(sums, axis=1)) if gone else np.stack(sums, axis=1))
        self._rows.append(-rows if gone else rows)

    def add_contents(self, contents: Contents) -> None:
        """Adds what was added up before."""
        self._subjects.append(contents.subjects)
        self._sums.append(contents.hashes)
        self._rows.append(contents.rows)

    def add_items(self, items: pl.DataFrame, *, gone: bool = False) -> int:
        """Adds a bucket's items, each once: all that events and statistics take of them; gives how many are events.

        Args:
            gone: takes them out instead.
        """
        taken = items.filter(~pl.col("verdict").str.starts_with("refused_")).drop_nulls("subject_id")
        columns = ("modality", "item_key", "time", "available_time", "time_precision")
        hashes = taken.select(*columns, pl.col("verdict") == "ok").hash_rows(*_SEEDS).to_numpy()
        happened = taken["time"].is_not_null().to_numpy()
        self.add(taken["subject_id"].to_numpy(), splitmix64(hashes, _ITEM), happened, gone=gone)
        return int(happened.sum())

    def total(self) -> Contents:
        """Of the subjects that have rows of events."""
        if not self._subjects:
            return Contents.of(np.zeros(0, np.int64), np.zeros((0, 2), np.uint64), np.zeros(0, np.int64))
        subject, place = np.unique(np.concatenate(self._subjects), return_inverse=True)
        order = np.argsort(place, kind="stable")
        starts = np.searchsorted(place[order], np.arange(len(subject)))
        sums = np.add.reduceat(np.concatenate(self._sums)[order], starts, axis=0)
        rows = np.add.reduceat(np.concatenate(self._rows)[order], starts)
        present = rows > 0
        return Contents.of(subject[present], sums[present], rows[present])


class SegmentHashes:
    """Hashes the rows of one segment.

    Args:
        segment: as the task is given it.
        codes: what the numbers of its rows' codes stand for.
        lags: by source and code, microseconds.
    """

    def __init__(self, segment: dict[str, Any], codes: pa.Array, lags: dict[str, dict[str, int]]) -> None:
        of_code = lags.get(segment["source"])
        salt = salt_of(f"{segment['source']}\n{segment['rules']}")
        self._of_rule = splitmix64(np.arange(len(segment["kinds"])), salt)
        self._lags: U64 | None = None
        if of_code:
            known = pc.index_in(codes, value_set=pa.array(list(of_code), codes.type)).fill_null(-1).to_numpy()
            # A row whose code has none hashes as where no code has one: it hangs on its own code alone.
            of_lag = splitmix64(np.array(list(of_code.values())), _LAG)
            self._lags = np.append(of_lag, np.uint64(0))[known]

    def of(self, batch: pa.RecordBatch) -> U64:
        """The hash of each row (n,), columns CONVERTED."""
        hashes: U64 = batch.column("row_hash").to_numpy() ^ self._of_rule.take(batch.column("rule").to_numpy())
        if self._lags is not None:
            how = batch.column("availability").fill_null(0).to_numpy()
            waits = np.flatnonzero((how == AWAITED) | (how == MISSED))
            hashes[waits] ^= self._lags[batch.column("code").to_numpy()[waits]]
        return hashes
