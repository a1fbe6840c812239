"""A file of a bucket's subjects in cells, row groups each: those that are as they were are copied."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.carrying.cells import Contents
from pipelines.carrying.splice import splice
from warehouse.arrays import I64, numbers_of
from warehouse.files import atomic_write


@dataclass(frozen=True)
class KeptCells:
    """Which cells of a bucket are as they were.

    Attributes:
        now: what the subjects are made of.
        path: the bucket's file in the release before, with a subject's id as its first column.
        kept: of each cell (c,) the number of the same one before, -1 where it is made anew.
        groups: of each cell before its row groups.
    """

    now: Contents
    path: Path
    kept: I64
    groups: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, now: Contents, before: Contents, path: Path, changed: I64 | None = None) -> "KeptCells":
        """Those whose subjects are made of the same.

        Args:
            changed: subjects who are other than they were for another reason.
        """
        with pq.ParquetFile(path) as file:
            said = [file.metadata.row_group(group).column(0).statistics for group in range(file.num_row_groups)]
        firsts = np.array([statistics.min for statistics in said], np.int64)
        cell = np.searchsorted(before.subjects[before.starts], firsts, side="right") - 1
        bounds = np.searchsorted(cell, np.arange(len(before.starts) + 1))
        groups = tuple(tuple(range(a, b)) for a, b in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True))
        kept = now.kept_cells(before)
        if changed is not None:
            places = now.places(changed)
            kept[np.searchsorted(now.starts, places[places >= 0], side="right") - 1] = -1
        return cls(now, path, kept, groups)

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

    def write(self, path: Path, made: Iterable[pa.Table], write: Callable[[Path, Iterable[pa.Table]], int]) -> int:
        """Writes the bucket's file; gives the rows.

        Args:
            made: the row groups that are made anew, in order.
            write: writes a file of row groups.
        """
        new = path.with_name(f"{path.name}.new")
        firsts: list[int] = []

        def noted() -> Iterator[pa.Table]:
            for table in made:
                firsts.append(table["subject_id"][0].as_py())
                yield table

        with atomic_write(new, sync=False) as temporary:
            write(temporary, noted())
            cell = np.searchsorted(self.now.subjects[self.now.starts], np.array(firsts, np.int64), side="right") - 1
            order: list[tuple[bool, int]] = []
            for number, before in enumerate(self.kept.tolist()):
                if before >= 0:
                    order += [(True, group) for group in self.groups[before]]
                else:
                    order += [(False, group) for group in np.flatnonzero(cell == number).tolist()]
            rows = splice(path, temporary, self.path, order)
        new.unlink()
        return rows

    def numbers(self, column: str) -> npt.NDArray[Any]:
        """A column's numbers in what is copied; none of them is null."""
        groups = self.kept_groups()
        if not groups:
            return np.zeros(0, np.int64)
        with pq.ParquetFile(self.path, page_checksum_verification=True) as file:
            found: npt.NDArray[Any] = file.read_row_groups(groups, columns=[column])[column].to_numpy()
        return found

    def counted(self, column: str, before: Mapping[str, int]) -> dict[str, int]:
        """How often each text of a column stands in what is copied; of that and the rest, the smaller part is read.

        Args:
            before: how often each stood in all.
        """
        kept = self.kept_groups()
        rest = sorted(set(range(sum(map(len, self.groups)))) - set(kept))
        if len(kept) <= len(rest):
            return self._counted(column, kept)
        gone = self._counted(column, rest)
        return {name: left for name, number in before.items() if (left := number - gone.get(name, 0))}

    def _counted(self, column: str, groups: list[int]) -> dict[str, int]:
        """How often each text of a column stands in some row groups."""
        if not groups:
            return {}
        with pq.ParquetFile(self.path, read_dictionary=[column], page_checksum_verification=True) as file:
            texts = file.read_row_groups(groups, columns=[column])[column].unify_dictionaries()
        names = texts.chunk(0).dictionary.to_pylist()
        numbers = numbers_of(pa.chunked_array([chunk.indices for chunk in texts.chunks]), len(names))
        counted = np.bincount(numbers, minlength=len(names) + 1)[: len(names)]
        return {name: number for name, number in zip(names, counted.tolist(), strict=True) if number}
