"""A bucket's subjects in cells: neighbours by id that stand in one row group, and that are copied or made together.

Where a cell ends hangs on the ids around it alone, so that a subject that comes or goes moves the ends beside it and no
others; and on how many rows a subject has in the mean, by powers of two, so that hardly a night moves them all.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl

from warehouse.arrays import I64, U64, Bools
from warehouse.hashing import salt_of, splitmix64

# About so many rows a cell: with fewer, a row group costs more than what is in it; with more, more is made again.
CELL_ROWS = 4_000
_SALT = salt_of("timeloom cell")


def cell_starts(subjects: I64, rows: int) -> I64:
    """The places (c,) of the subjects that begin a cell.

    Args:
        subjects: ids (s,), ascending.
        rows: how many they have together.
    """
    if not len(subjects):
        return np.zeros(0, np.int64)
    reach = _reach(len(subjects), rows)
    begins = np.ones(len(subjects), np.bool_)
    if reach:
        # A subject begins a cell where its number is above those of the `reach` subjects on either side.
        number = splitmix64(subjects, _SALT)
        highest = _highest_ahead(np.append(number, np.zeros(reach, np.uint64)), reach)
        behind = np.concatenate([np.zeros(reach, np.uint64), highest])[: len(subjects)]
        begins = (number > behind) & (number > highest[1 : len(subjects) + 1])
        begins[0] = True
    return np.flatnonzero(begins)


def _reach(subjects: int, rows: int) -> int:
    """Half of the subjects of a cell, as a power of two; 0 where each is one."""
    wanted = CELL_ROWS * subjects / max(rows, 1) / 2
    return 0 if wanted < 0.75 else 1 << min(max(round(float(np.log2(wanted))), 0), 16)


def _highest_ahead(number: U64, reach: int) -> U64:
    """Of each place the highest number among it and the `reach` - 1 behind it; `reach` is a power of two."""
    highest, step = number.copy(), 1
    while step < reach:
        np.maximum(highest[:-step], highest[step:], out=highest[:-step])
        step *= 2
    return highest


@dataclass(frozen=True)
class Contents:
    """What the subjects of a bucket are made of.

    Attributes:
        subjects: ids (s,), ascending.
        hashes: (s, 2) of everything that their events are made of, whatever order it stands in.
        rows: (s,) how many rows were read of each.
        starts: (c,) the places of the subjects that begin a cell.
    """

    subjects: I64
    hashes: U64
    rows: I64
    starts: I64

    @classmethod
    def of(cls, subjects: I64, hashes: U64, rows: I64) -> "Contents":
        """With the cells that follow from them."""
        return cls(subjects, hashes, rows, cell_starts(subjects, int(rows.sum())))

    @classmethod
    def of_frame(cls, frame: pl.DataFrame) -> "Contents":
        """From columns of CONTENTS."""
        hashes = frame.select("low", "high").to_numpy()
        return cls.of(frame["subject_id"].to_numpy(), hashes, frame["rows"].to_numpy())

    def frame(self) -> pl.DataFrame:
        """Columns subject_id, rows, low and high of CONTENTS."""
        low, high = self.hashes[:, 0], self.hashes[:, 1]
        return pl.DataFrame({"subject_id": self.subjects, "rows": self.rows, "low": low, "high": high})

    def unchanged(self, before: "Contents") -> Bools:
        """Which subjects (s,) are as they were."""
        place = before.places(self.subjects)
        same: Bools = (
            (place >= 0) & (before.hashes[place] == self.hashes).all(axis=1)
            if len(before.subjects)
            else (np.zeros(len(self.subjects), np.bool_))
        )
        return same

    def places(self, subjects: I64) -> I64:
        """The place of each subject (n,), -1 for one that is not there."""
        if not len(self.subjects):
            return np.full(len(subjects), -1)
        place = np.minimum(np.searchsorted(self.subjects, subjects), len(self.subjects) - 1)
        return np.where(self.subjects[place] == subjects, place, -1)

    def kept_cells(self, before: "Contents") -> I64:
        """Of each cell (c,) the number of the same one before, -1 where a subject of it is another, or none was it."""
        ends, ends_before = (np.append(each.starts[1:], len(each.subjects)) for each in (self, before))
        if not len(before.starts) or not len(self.starts):
            return np.full(len(self.starts), -1)
        same = np.logical_and.reduceat(self.unchanged(before), self.starts)
        first, last = before.places(self.subjects[self.starts]), before.places(self.subjects[ends - 1])
        number = np.minimum(np.searchsorted(before.starts, first), len(before.starts) - 1)
        # The same first and last subject, and as many: with every one of them known from before, the same ones.
        same &= (before.starts[number] == first) & (ends_before[number] - 1 == last)
        same &= ends - self.starts == last - first + 1
        return np.where(same, number, -1)
