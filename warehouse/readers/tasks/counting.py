"""How often each code was known by each prediction time: one bucket's events to sparse counts, by arrays alone.

A bucket's events are read a row group at a time, and only what was counted of them is kept.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from warehouse.arrays import F32, I32, I64, NO_TIME, Bools, numbers_of
from warehouse.errors import REPAIR, TimeloomError
from warehouse.parquet import row_groups
from warehouse.readers.tasks.labels import Clock

BIRTH = "MEDS_BIRTH"
# ICD-10-CM and ICD-10-PCS become their first three characters (MEHRT, appendix B).
_ICD10 = r"^(ICD10CM|ICD10PCS)/+([^/.]{3})[^/]*$"
_COLUMNS = ("subject_id", "time", "available_time", "code", "kind")


def units_of(codes: pl.Series) -> pl.Series:
    """What each code (n,) is counted as: itself, or an ICD-10 code's first three characters."""
    three = codes.str.to_uppercase().str.replace(_ICD10, "${1}/${2}")
    return pl.select(pl.when(codes.str.contains("(?i)" + _ICD10)).then(three).otherwise(codes)).to_series()


def within(codes: pl.Series, beginnings: Iterable[str]) -> Bools:
    """Which codes (n,) are one of the beginnings, or go on behind one with a slash."""
    found = np.zeros(len(codes), np.bool_)
    for name in beginnings:
        found |= (codes.eq(name) | codes.str.starts_with(f"{name}/")).to_numpy()
    return found


@dataclass(frozen=True)
class Units:
    """Codes of a release and what they are counted as.

    Attributes:
        codes: distinct codes (c,), in order.
        unit: of each code the place of its unit among `names`, -1 for a code that is not counted (c,).
        names: distinct units (u,), in order.
    """

    codes: pl.Series
    unit: I64
    names: pl.Series

    @classmethod
    def of(cls, codes: pl.Series, without: tuple[str, ...]) -> "Units":
        """Args:
        without: beginnings of codes that are not counted; see `within`.
        """
        ordered = codes.unique().sort()
        names = units_of(ordered)
        left_out = within(ordered, without)
        kept = names.filter(~left_out).unique().sort()
        place = pl.DataFrame({"name": names}).join(
            kept.to_frame("name").with_row_index("place"), on="name", how="left", maintain_order="left"
        )["place"]
        unit = place.cast(pl.Int64).fill_null(-1).to_numpy().copy()
        unit[left_out] = -1
        return cls(ordered, unit, kept)

    def places(self, column: pa.ChunkedArray) -> I64:
        """Of each event's code (n,) its place among `codes`.

        Raises:
            TimeloomError: a code that the release does not list.
        """
        chunks = pc.dictionary_encode(column).unify_dictionaries().chunks
        if not chunks:
            return np.empty(0, np.int64)
        found = pc.index_in(chunks[0].dictionary.cast(pa.large_string()), value_set=self.codes.to_arrow())
        if found.null_count:
            raise TimeloomError("metadata/codes.parquet lacks a code of the events", remedy=REPAIR)
        places = np.asarray(found, np.int64)
        each: I64 = places[np.concatenate([np.asarray(chunk.indices, np.int64) for chunk in chunks])]
        return each


@dataclass(frozen=True)
class EventRows:
    """Some events (n,) of a bucket.

    Attributes:
        time, known: when it was, and when it could be known, in µs or NO_TIME.
        code: its place among the units' codes.
        image: whether it stands for an item.
    """

    subject: I64
    time: I64
    known: I64
    code: I64
    image: Bools


def event_rows(path: Path, units: Units, clock: Clock, subjects: I64 | None = None) -> Iterator[EventRows]:
    """A bucket's events, some subjects at a time.

    Args:
        path: its content was compared with its checksum.
        clock: by which of its times an event is known; a fact without an available time is known at its time.
        subjects: ids, ascending, of those whose events are wanted; None for all.

    Raises:
        TimeloomError: the file is corrupt, or has a code that the release does not list.
    """
    try:
        with pq.ParquetFile(path, read_dictionary=["code", "kind"], pre_buffer=True) as file:
            for groups in row_groups(file):
                table = file.read_row_groups(groups, columns=list(_COLUMNS)).unify_dictionaries()
                if subjects is not None:
                    owners = table["subject_id"].to_numpy()
                    place = np.minimum(np.searchsorted(subjects, owners), max(len(subjects) - 1, 0))
                    wanted = subjects[place] == owners if len(subjects) else np.zeros(len(owners), np.bool_)
                    if not wanted.all():
                        table = table.filter(pa.array(wanted))
                if table.num_rows:
                    yield _row_group(table, units, clock)
    except (OSError, pa.ArrowException) as error:
        raise TimeloomError(f"cannot read {path.parent.name}/{path.name}", remedy=REPAIR) from error


def _row_group(table: pa.Table, units: Units, clock: Clock) -> EventRows:
    time = numbers_of(table["time"].cast(pa.int64()), NO_TIME)
    available = numbers_of(table["available_time"].cast(pa.int64()), NO_TIME)
    known = time if clock == "time" else np.where(available == NO_TIME, time, available)
    return EventRows(
        subject=table["subject_id"].to_numpy(),
        time=time,
        known=known,
        code=units.places(table["code"]),
        image=np.asarray(pc.fill_null(pc.equal(table["kind"], "image"), False)),
    )


@dataclass(frozen=True)
class LabelRows:
    """A bucket's labels, by subject and time.

    Attributes:
        subjects: distinct ids (s,), ascending.
        edges: each subject's first label (s + 1,), the last being n.
        subject: each label's place among the subjects (n,).
        time: prediction times in µs (n,).
    """

    subjects: I64
    edges: I64
    subject: I64
    time: I64

    @classmethod
    def of(cls, subject_ids: I64, time: I64) -> "LabelRows":
        subjects, edges, subject = np.unique(subject_ids, return_index=True, return_inverse=True)
        return cls(subjects, np.append(edges, len(subject_ids)), subject.astype(np.int64), time)

    def first_knowing(self, subject_ids: I64, known: I64) -> I64:
        """Of facts (n,), the first label of the subject whose prediction time is not before; -1 where there is none."""
        if not len(self.time):
            return np.full(len(known), -1, np.int64)
        instants, rank = np.unique(self.time, return_inverse=True)
        place = np.minimum(np.searchsorted(self.subjects, subject_ids), len(self.subjects) - 1)
        # One number whose order is that of subject and time.
        keys = self.subject * (len(instants) + 1) + rank
        row = np.searchsorted(keys, place * (len(instants) + 1) + np.searchsorted(instants, known))
        found: I64 = np.where((self.subjects[place] == subject_ids) & (row < self.edges[place + 1]), row, -1)
        return found

    def later(self, rows: I64) -> tuple[I64, I64]:
        """Every label of the same subject from each row on: (places among `rows` (m,), labels (m,))."""
        counts = self.edges[self.subject[rows] + 1] - rows
        places = np.repeat(np.arange(len(rows)), counts)
        return places, rows[places] + np.arange(len(places)) - (np.cumsum(counts) - counts)[places]


@dataclass(frozen=True)
class Counted:
    """Counts (m,) of units by label, each label and unit once, in no order; what is 0 is not there."""

    row: I64
    unit: I64
    count: I64


class BucketCounts:
    """Counts of a bucket's labels, gathered from its events."""

    def __init__(self, labels: LabelRows, units: Units) -> None:
        self._labels, self._units, self._parts = labels, units, [_nothing()]

    def add(self, events: EventRows) -> None:
        """Counts events: each at the first label of its subject that knows it."""
        unit = self._units.unit[events.code]
        wanted = np.flatnonzero((unit >= 0) & ~events.image)
        row = self._labels.first_knowing(events.subject[wanted], events.known[wanted])
        self._parts.append(_counted(row[row >= 0], unit[wanted][row >= 0], len(self._units.names)))

    def counted(self) -> Counted:
        """What every label knows: what it is the first to know, and what those before it of its subject knew."""
        row, unit, count = (np.concatenate([getattr(part, name) for part in self._parts]) for name in _NAMES)
        subject = self._labels.subject[row]
        order = np.lexsort((row, subject * max(len(self._units.names), 1) + unit))
        row, unit, count, subject = row[order], unit[order], count[order], subject[order]
        new = np.append(True, (unit[1:] != unit[:-1]) | (subject[1:] != subject[:-1]))[: len(row)]
        running = np.cumsum(count)
        # Of a unit's first label of a subject, what was counted of others.
        others = (running - count)[new]
        so_far = running - np.repeat(others, np.diff(np.append(np.flatnonzero(new), len(row))))
        # It is as many until the subject's next label that is the first to know more, or to the subject's last.
        upto = np.where(np.append(new, True)[1:], self._labels.edges[subject + 1], np.append(row, 0)[1:])
        times = upto - row
        each = np.repeat(np.arange(len(row)), times)
        rows = row[each] + np.arange(len(each)) - (np.cumsum(times) - times)[each]
        return Counted(rows, unit[each], so_far[each])


_NAMES = ("row", "unit", "count")


def _nothing() -> Counted:
    return Counted(*(np.empty(0, np.int64) for _ in _NAMES))


def _counted(row: I64, unit: I64, units: int) -> Counted:
    """How often each row and unit stand there."""
    keys, total = np.unique(row * max(units, 1) + unit, return_counts=True)
    return Counted(keys // max(units, 1), keys % max(units, 1), total)


def subjects_with(events: Iterator[EventRows], units: Units) -> npt.NDArray[np.int64]:
    """(u,) of each unit, how many subjects of a bucket have it at any time."""
    pairs = [np.empty((0, 2), np.int64)]
    for part in events:
        unit = units.unit[part.code]
        wanted = (unit >= 0) & ~part.image
        pairs.append(_distinct(part.subject[wanted], unit[wanted]))
    # A subject whose events lie in two row groups is one subject.
    whole = np.concatenate(pairs)
    return np.bincount(_distinct(whole[:, 0], whole[:, 1])[:, 1], minlength=len(units.names)).astype(np.int64)


def _distinct(subject: I64, unit: I64) -> I64:
    """(k, 2) distinct pairs."""
    subjects, place = np.unique(subject, return_inverse=True)
    width = int(unit.max(initial=0)) + 1
    keys = np.unique(place * width + unit)
    return np.stack([subjects[keys // width], keys % width], axis=1) if len(keys) else np.empty((0, 2), np.int64)


@dataclass(frozen=True)
class Sparse:
    """A matrix (n, m) by rows: scipy's csr_array takes (values, columns, edges)."""

    values: F32
    columns: I32
    edges: I64

    @classmethod
    def of(cls, row: I64, column: I64, values: npt.NDArray[np.floating], rows: int) -> "Sparse":
        order = np.lexsort((column, row))
        edges = np.zeros(rows + 1, np.int64)
        np.cumsum(np.bincount(row, minlength=rows), out=edges[1:])
        return cls(values[order].astype(np.float32), column[order].astype(np.int32), edges)

    @property
    def rows(self) -> I64:
        """Each value's row."""
        return np.repeat(np.arange(len(self.edges) - 1), np.diff(self.edges))
