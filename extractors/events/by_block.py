"""What is counted of a table's rows, for each block of its file by itself: a block that goes takes its counts along."""

from bisect import bisect_right
from collections import defaultdict
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from warehouse.arrays import I64, U32, U64

Key = tuple[str, ...]
SILENT = pl.DataFrame(schema={"block": pl.UInt32, "subject_id": pl.Int64})


class Blocks(Protocol):
    """Blocks of records, as far as they have been read.

    Attributes:
        starts: of each, the number of its first record, in their order.
        whole: every record stands in one.
    """

    starts: list[int]
    whole: bool


class BlockCounts:
    """Counts rows by the block that they stand in; nothing where the blocks are not whole."""

    def __init__(self, blocks: Blocks) -> None:
        self._blocks = blocks
        self._counts: dict[Key, list[tuple[int, I64]]] = defaultdict(list)
        self._silent: list[pl.DataFrame] = []
        self._looked_up: list[tuple[int, U64]] = []
        self._last: tuple[I64, int, I64] | None = None

    def add(self, key: Key, numbers: I64) -> None:
        """Counts rows under a key, by the numbers (n,) of their records; none too, so that the key is known."""
        counts = self._counts[key]
        if len(numbers) and self._blocks.whole:
            counts.append(self._by_block(numbers))

    def of(self, numbers: I64) -> U32:
        """The block of each record (n,); 0 where the blocks are not whole."""
        if not (len(numbers) and self._blocks.whole):
            return np.zeros(len(numbers), np.uint32)
        if not _ascend(numbers):
            return self._search(numbers)
        first, counts = self._by_block(numbers)
        return np.repeat(np.arange(first, first + len(counts), dtype=np.uint32), counts)

    def add_silent(self, numbers: I64, subjects: I64) -> None:
        """Takes rows (n,) that made nothing although they name a subject."""
        if not (len(numbers) and self._blocks.whole):
            return
        blocks = self.of(numbers)
        new = np.append(True, (blocks[1:] != blocks[:-1]) | (subjects[1:] != subjects[:-1]))
        self._silent.append(pl.DataFrame({"block": blocks[new], "subject_id": subjects[new]}))

    def add_looked_up(self, numbers: I64, hashes: U64) -> None:
        """Adds up hashes (n,) of what was looked up for records of some numbers (n,)."""
        if len(numbers) and self._blocks.whole:
            blocks = self.of(numbers)
            first = int(blocks.min())
            self._looked_up.append((first, sums_of(blocks - np.uint32(first), hashes, int(blocks.max()) - first + 1)))

    def looked_up(self, blocks: int) -> U64:
        """The sums of what was looked up for each block (m,)."""
        found = np.zeros(blocks, np.uint64)
        for first, sums in self._looked_up:
            found[first : first + len(sums)] += sums
        return found

    def table(self, blocks: int) -> dict[Key, I64]:
        """By key, how many rows each block (m,) has."""
        found = {}
        for key, counted in sorted(self._counts.items()):
            found[key] = np.zeros(blocks, np.int64)
            for first, counts in counted:
                found[key][first : first + len(counts)] += counts
        return found

    def silent(self) -> pl.DataFrame:
        """The subjects of each block's rows that made nothing, columns of SILENT."""
        return pl.concat([SILENT, *self._silent]).unique().sort("block", "subject_id")

    def _by_block(self, numbers: I64) -> tuple[int, I64]:
        """A block, and how many of some records stand in it and in each of the next ones."""
        # Most that is counted of some rows holds for all of them.
        if self._last is None or self._last[0] is not numbers:
            self._last = (numbers, *self._counted(numbers))
        return self._last[1:]

    def _counted(self, numbers: I64) -> tuple[int, I64]:
        if not _ascend(numbers):
            blocks = self._search(numbers)
            first = int(blocks.min())
            return first, np.bincount(blocks - np.uint32(first))
        first = bisect_right(self._blocks.starts, int(numbers[0])) - 1
        behind = bisect_right(self._blocks.starts, int(numbers[-1]))
        edges = np.searchsorted(numbers, np.array(self._blocks.starts[first + 1 : behind], np.int64))
        return first, np.diff(edges, prepend=0, append=len(numbers))

    def _search(self, numbers: I64) -> U32:
        return (np.searchsorted(np.array(self._blocks.starts, np.int64), numbers, side="right") - 1).astype(np.uint32)


def sums_of(places: npt.NDArray[Any], hashes: U64, size: int) -> U64:
    """The sum of the hashes (n,) at each of `size` places (n,)."""
    sums = np.zeros(size, np.uint64)
    np.add.at(sums, places, hashes)
    return sums


def _ascend(numbers: I64) -> bool:
    return bool((numbers[1:] > numbers[:-1]).all())
