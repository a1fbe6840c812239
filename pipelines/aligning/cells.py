"""A bucket's events in cells, a row group each: those that are as they were are copied from the release before."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.aligning.bucket_rows import BucketRows, BucketTexts
from pipelines.carrying.cells import Contents
from pipelines.carrying.splice import splice
from warehouse.arrays import I64, numbers_of
from warehouse.files import atomic_write
from warehouse.parquet import write_tables
from warehouse.schemas import EVENTS

# A page of distinct texts has at most 2 GiB; a cell with more than this in its texts becomes several row groups.
TEXT_BYTES = 1 << 26


def row_group_bounds(events: BucketRows, texts: BucketTexts, firsts: I64) -> Iterator[tuple[int, int]]:
    """Where each row group of some events (n,), in the total order, begins and ends.

    Args:
        firsts: the first subject of each cell of the bucket, ascending.
    """
    cell = np.searchsorted(firsts, events.subject, side="right")
    new = np.append(True, cell[1:] != cell[:-1])
    lengths = pc.binary_length(texts.values).to_numpy() if len(texts.values) else np.zeros(1, np.int64)
    of_row = np.append(lengths, 0)[np.minimum(events.text, len(lengths))].astype(np.int64)
    begins = np.flatnonzero(new)
    total = np.cumsum(of_row)
    behind = total - np.repeat(total[begins] - of_row[begins], np.diff(begins, append=len(cell)))
    filled = behind // TEXT_BYTES
    new[1:] |= filled[1:] != filled[:-1]
    begins = np.flatnonzero(new)
    yield from zip(begins.tolist(), [*begins[1:].tolist(), len(cell)], strict=True)


@dataclass(frozen=True)
class KeptCells:
    """Which cells of a bucket are as they were.

    Attributes:
        now: what the subjects are made of.
        events: the bucket's events in the release before.
        kept: of each cell (c,) the number of the same one before, -1 where it is made anew.
        groups: of each cell before its row groups.
    """

    now: Contents
    events: Path
    kept: I64
    groups: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, now: Contents, before: Contents, events: Path) -> "KeptCells":
        """Those whose subjects are made of the same."""
        with pq.ParquetFile(events) as file:
            said = [file.metadata.row_group(group).column(0).statistics for group in range(file.num_row_groups)]
        firsts = np.array([statistics.min for statistics in said], np.int64)
        cell = np.searchsorted(before.subjects[before.starts], firsts, side="right") - 1
        bounds = np.searchsorted(cell, np.arange(len(before.starts) + 1))
        groups = tuple(tuple(range(a, b)) for a, b in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True))
        return cls(now, events, now.kept_cells(before), groups)

    @property
    def changed(self) -> I64:
        """The places (m,) of the subjects whose cells are made anew."""
        sizes = np.diff(self.now.starts, append=len(self.now.subjects))
        return np.flatnonzero(np.repeat(self.kept < 0, sizes))

    @property
    def kept_subjects(self) -> I64:
        """The ids (k,) of those whose cells are copied."""
        sizes = np.diff(self.now.starts, append=len(self.now.subjects))
        return self.now.subjects[np.repeat(self.kept >= 0, sizes)]

    def kept_groups(self) -> list[int]:
        """The row groups before that are copied."""
        return [group for number in self.kept[self.kept >= 0].tolist() for group in self.groups[number]]

    def write(self, path: Path, made: Iterable[pa.Table]) -> int:
        """Writes the bucket's events; gives the rows.

        Args:
            made: the row groups that are made anew, in order.
        """
        new = path.with_name(f"{path.name}.new")
        firsts: list[int] = []

        def noted() -> Iterator[pa.Table]:
            for table in made:
                firsts.append(table["subject_id"][0].as_py())
                yield table

        with atomic_write(new, sync=False) as temporary:
            write_tables(temporary, noted(), EVENTS, "data")
            cell = np.searchsorted(self.now.subjects[self.now.starts], np.array(firsts, np.int64), side="right") - 1
            order: list[tuple[bool, int]] = []
            for number, before in enumerate(self.kept.tolist()):
                if before >= 0:
                    order += [(True, group) for group in self.groups[before]]
                else:
                    order += [(False, group) for group in np.flatnonzero(cell == number).tolist()]
            rows = splice(path, temporary, self.events, order)
        new.unlink()
        return rows

    def counted(self, column: str) -> dict[str, int]:
        """How often each text of a column stands in what is copied."""
        groups = self.kept_groups()
        if not groups:
            return {}
        with pq.ParquetFile(self.events, read_dictionary=[column], page_checksum_verification=True) as file:
            texts = file.read_row_groups(groups, columns=[column])[column].unify_dictionaries()
        names = texts.chunk(0).dictionary.to_pylist()
        numbers = numbers_of(pa.chunked_array([chunk.indices for chunk in texts.chunks]), len(names))
        counted = np.bincount(numbers, minlength=len(names) + 1)[: len(names)]
        return {name: number for name, number in zip(names, counted.tolist(), strict=True) if number}
