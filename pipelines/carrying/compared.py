"""A bucket's file in two releases: whose rows differ, told from the bytes of both and from nothing that a stage says.

Row groups of the same bytes and the same description hold the same rows, and most are so, as stages copy those of
unchanged subjects. What the others hold is compared subject by subject, by a hash of every column of every row.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from pipelines.carrying.footer import Footer
from warehouse.arrays import I64, U64, Bools, numbers_of
from warehouse.hashing import splitmix64

# Rows that are held at a time, give or take a row group and a subject.
PART_ROWS = 1 << 18
# A file of no more rows is read once.
HELD_ROWS = 1 << 14
# No hospital's: ids are hashes or numbers from 0 on.
NO_SUBJECT = np.iinfo(np.int64).min


@dataclass(frozen=True)
class SubjectsFile:
    """A Parquet file of a bucket.

    Attributes:
        form: what the footer says of no row group: types, names, the library that wrote it.
        digests: (g,) of each row group's bytes and what the footer says of it, wherever it lies.
        ordered: rows stand by subject, ids ascending, and each names one.
        owners: (n,) each row's subject, NO_SUBJECT for none.
        subjects: ids (s,), ascending.
        edges: (g + 1,) the row at which each row group begins, the last being the number of rows.
        held: all of its rows, where they are few.
    """

    path: Path
    form: bytes
    digests: tuple[bytes, ...]
    ordered: bool
    owners: I64
    subjects: I64
    edges: I64
    schema: pa.Schema
    held: pa.Table | None

    @classmethod
    def read(cls, path: Path) -> "SubjectsFile":
        """Raises:
        OSError, KeyError, ValueError, ArrowException: it is no such file.
        """
        footer = Footer.read(path)
        with path.open("rb") as file:
            # As if each was the first of a file that begins with it.
            digests = tuple(
                xxhash.xxh3_128_digest(group.at(0, 0) + os.pread(file.fileno(), group.end - group.begin, group.begin))
                for group in footer.groups
            )
        with pq.ParquetFile(path, page_checksum_verification=True) as parquet:
            schema, few = parquet.schema_arrow, parquet.metadata.num_rows <= HELD_ROWS
            table = parquet.read(columns=None if few else ["subject_id"])
        owners = numbers_of(table["subject_id"], NO_SUBJECT)
        ordered = not (owners[1:] < owners[:-1]).any() and (not len(owners) or int(owners[0]) != NO_SUBJECT)
        runs = owners[np.append([True], owners[1:] != owners[:-1])[: len(owners)]]
        subjects = runs if ordered else np.setdiff1d(runs, [NO_SUBJECT])
        edges = np.append(0, np.cumsum([group.rows for group in footer.groups])).astype(np.int64)
        form, held = footer.head + footer.tail, table if few else None
        return cls(path, form, digests, ordered, owners, subjects, edges, schema, held)

    def in_groups(self, groups: Bools) -> I64:
        """The subjects with a row in some row groups (g,)."""
        if groups.all():
            return self.subjects
        parts = [self.owners[self.edges[group] : self.edges[group + 1]] for group in np.flatnonzero(groups).tolist()]
        return np.unique(np.concatenate([self.owners[:0], *parts]))

    def rows_of(self, subjects: I64) -> Iterator[pa.Table]:
        """The rows of some subjects in order, where the file is ordered all of a subject in one table.

        Args:
            subjects: ids, ascending.
        """
        rows = among(self.owners, subjects)
        if self.held is not None:
            if rows.any():
                yield self.held.filter(pa.array(rows))
            return
        before = np.append(0, np.cumsum(rows))
        groups = np.flatnonzero(before[self.edges[1:]] > before[self.edges[:-1]])
        if not len(groups):
            return
        with pq.ParquetFile(self.path, page_checksum_verification=True, pre_buffer=True) as file:
            for held in self._together(groups):
                kept = np.concatenate([rows[self.edges[group] : self.edges[group + 1]] for group in held])
                table = file.read_row_groups(held)
                yield table if kept.all() else table.filter(pa.array(kept))

    def _together(self, groups: I64) -> Iterator[list[int]]:
        """Row groups, as many at a time as have about PART_ROWS rows and end with a subject."""
        held: list[int] = []
        number = 0
        for group in groups.tolist():
            begin, end = int(self.edges[group]), int(self.edges[group + 1])
            held.append(group)
            number += end - begin
            whole = self.ordered and (end == len(self.owners) or self.owners[end] != self.owners[end - 1])
            if number >= PART_ROWS and whole:
                yield held
                held, number = [], 0
        if held:
            yield held

    def hashes(self, subjects: I64) -> tuple[I64, U64]:
        """The ids, ascending, of those of some subjects who have rows, and of each a hash of all of them in order."""
        parts = [(self.owners[:0], np.zeros(0, np.uint64))]
        for table in self.rows_of(subjects):
            frame = pl.from_arrow(table)
            assert isinstance(frame, pl.DataFrame)
            parts.append(_hashed(frame if self.ordered else frame.sort("subject_id", maintain_order=True)))
        ids, hashes = (np.concatenate(found) for found in zip(*parts, strict=True))
        return ids, hashes

    def naming(self, column: str, texts: pa.Array) -> I64:
        """The subjects, ascending, with a row in which a column has one of some texts."""
        if self.held is not None:
            named = self.held[column]
        else:
            with pq.ParquetFile(self.path, page_checksum_verification=True) as file:
                named = file.read(columns=[column])[column]
        return np.unique(self.owners[pc.is_in(named, value_set=texts.cast(named.type)).to_numpy()])


def changed_subjects(now: SubjectsFile, before: SubjectsFile) -> I64 | None:
    """The subjects (k,), ascending, whose rows differ; None where more than rows differs."""
    if now.form != before.form:
        return None
    if now.digests == before.digests:
        return np.zeros(0, np.int64)
    if now.ordered and before.ordered:
        known = {digest: place for place, digest in enumerate(before.digests)}
        if len(known) < len(before.digests) or len(set(now.digests)) < len(now.digests):
            return None
        place = np.array([known.get(digest, -1) for digest in now.digests], np.int64)
        same = place[place >= 0]
        if (same[1:] < same[:-1]).any():
            return None
        gone = np.ones(len(before.digests), np.bool_)
        gone[same] = False
        # A subject whose rows lie in several row groups is compared as a whole.
        both = np.union1d(now.in_groups(place < 0), before.in_groups(gone))
    else:
        both = np.union1d(now.subjects, before.subjects)
    (ids, hashes), (ids_before, hashes_before) = now.hashes(both), before.hashes(both)
    if not len(ids_before):
        return ids
    place = np.minimum(np.searchsorted(ids_before, ids), len(ids_before) - 1)
    same = ids[(ids_before[place] == ids) & (hashes_before[place] == hashes)]
    return np.setdiff1d(np.union1d(ids, ids_before), same, assume_unique=True)


def _hashed(frame: pl.DataFrame) -> tuple[I64, U64]:
    """Ids and hashes of subjects whose rows stand together."""
    ids = frame["subject_id"].to_numpy()
    starts = np.flatnonzero(np.append([True], ids[1:] != ids[:-1])[: len(ids)])
    place = np.arange(len(ids)) - np.repeat(starts, np.diff(np.append(starts, len(ids))))
    rows: U64 = frame.hash_rows().to_numpy() ^ splitmix64(place)
    # Sums modulo 2^64 of what is mixed once more, so that the same two changes in two rows do not cancel out.
    return ids[starts], np.add.reduceat(splitmix64(rows.view(np.int64)), starts) if len(ids) else rows


def among(ids: I64, wanted: I64) -> Bools:
    """Which ids (n,) are among others, ascending."""
    if not len(wanted):
        return np.zeros(len(ids), np.bool_)
    found: Bools = wanted[np.minimum(np.searchsorted(wanted, ids), len(wanted) - 1)] == ids
    return found
