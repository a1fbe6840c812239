"""What was known of a bucket's labelled subjects, and when: read and ordered anew, without what readers do.

Moments are compared by their place among all moments at which anything of the bucket became known, so that a subject
and a moment are one number.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from validation.measure.reading import existing, unreadable
from warehouse.arrays import I64, NO_TIME, Bools, numbers_of
from warehouse.layout import ReleaseLayout
from warehouse.parquet import row_groups
from warehouse.readers.tasks.labels import Clock

_COLUMNS = ("subject_id", "time", "available_time", "code", "kind")


@dataclass(frozen=True)
class Asked:
    """Labels (n,), by subject and moment; each once.

    Attributes:
        subject: ids. at: prediction times in µs.
    """

    subject: I64
    at: I64

    @classmethod
    def of(cls, labels: pl.DataFrame) -> "Asked":
        return cls(labels["subject_id"].to_numpy(), labels["prediction_time"].to_physical().to_numpy())

    def part(self, first: int, number: int) -> "Asked":
        """Some labels, by their place."""
        return Asked(self.subject[first : first + number], self.at[first : first + number])


@dataclass(frozen=True)
class Known:
    """The events (e,) of labelled subjects (s,), by subject and by when each became known.

    Attributes:
        subjects: ids, ascending.
        instants: when anything became known, in µs, ascending; NO_TIME for always.
        owner: of each event the place of its subject.
        known: of each event the place of its moment among `instants`.
        time: in µs, NO_TIME for none.
        code: its place among the release's codes, -1 for one that it does not list.
        image: whether it stands for an item.
        items: item_key, and the place of the moment since which it could be seen.
    """

    clock: Clock
    subjects: I64
    instants: I64
    owner: I64
    known: I64
    time: I64
    code: I64
    image: Bools
    items: pl.DataFrame

    @classmethod
    def read(cls, tree: ReleaseLayout, bucket: int, subjects: I64, clock: Clock, codes: pa.Array) -> "Known":
        """Args:
        subjects: ids, ascending, each once.
        codes: every code of the release.

        Raises:
            TimeloomError: the events are damaged.
        """
        parts = [_none()]
        for path in existing([tree.events(bucket)]):
            try:
                with pq.ParquetFile(path, read_dictionary=["code", "kind", "item_key"], pre_buffer=True) as file:
                    for groups in row_groups(file, subjects=subjects):
                        table = file.read_row_groups(groups, columns=[*_COLUMNS, "item_key"]).unify_dictionaries()
                        parts.append(_part(table, subjects, clock, codes))
            except (OSError, pa.ArrowException) as error:
                raise unreadable(path) from error
        owner, when, time, code, image = (
            np.concatenate([part.numbers[name] for part in parts]) for name in _none().numbers
        )
        instants = np.sort(when)
        instants = instants[np.append([True], instants[1:] != instants[:-1])[: len(instants)]]
        known = np.searchsorted(instants, when).astype(np.int64)
        _, order = in_order(owner * len(instants) + known)
        items = pl.concat([part.items for part in parts]).group_by("item_key").agg(pl.col("known").min())
        places = np.searchsorted(instants, items["known"].to_numpy())
        return cls(
            clock,
            subjects,
            instants,
            owner[order],
            known[order],
            time[order],
            code[order],
            image[order] > 0,
            items.with_columns(pl.Series("known", places, pl.Int64)),
        )

    @property
    def never(self) -> int:
        """A place behind that of every moment."""
        return len(self.instants)

    def by(self, times: I64) -> I64:
        """How many of the moments were not after each time (n,): what became known at those was known by then."""
        return np.searchsorted(self.instants, times, side="right").astype(np.int64)

    def at(self, owner: I64, times: I64) -> I64:
        """The place of each time (n,) among the moments, if anything of the subject became known at it; else `never`.

        Args:
            owner: places of subjects.
        """
        place = np.minimum(np.searchsorted(self.instants, times), max(len(self.instants) - 1, 0))
        if not len(self.owner):
            return np.full(len(times), self.never, np.int64)
        keys = owner * self.never + place
        found = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        has_event = (self._keys[found] == keys) & (self.instants[place] == times)
        return np.where(has_event, place, self.never)

    def events_by(self, owner: I64, by: I64) -> I64:
        """Where the events begin of each subject (n,) that were not known yet, `by` as `by` gives it."""
        return np.searchsorted(self._keys, owner * self.never + by).astype(np.int64)

    @cached_property
    def _keys(self) -> I64:
        """Subject and moment of each event, ascending."""
        return self.owner * self.never + self.known

    def first(self, codes: I64) -> I64:
        """(s, c) since when each subject had an event of each code, `never` for none.

        Args:
            codes: distinct places among the release's codes.
        """
        column = np.full(max(int(self.code.max(initial=-1)), int(codes.max(initial=-1))) + 2, -1)
        column[codes] = np.arange(len(codes))
        # Of a code that is not listed, the last one.
        column[-1] = -1
        which = np.flatnonzero(column[self.code] >= 0)
        first = np.full((len(self.subjects), len(codes)), self.never)
        np.minimum.at(first, (self.owner[which], column[self.code[which]]), self.known[which])
        return first

    @cached_property
    def first_timed(self) -> I64:
        """(s,) since when each subject had an event with a time, `never` for none."""
        timed = np.flatnonzero(self.time != NO_TIME)
        first = np.full(len(self.subjects), self.never)
        np.minimum.at(first, self.owner[timed], self.known[timed])
        return first


def in_order(keys: I64) -> tuple[I64, I64]:
    """Numbers (n,) from 0 on, ascending, and the place that each had; of equal ones the first stands first."""
    bits = len(keys).bit_length()
    if int(keys.max(initial=0)).bit_length() + bits > 63:
        order = np.argsort(keys, kind="stable")
        return keys[order], order
    # Numbers without their places are sorted several times as fast.
    both = np.sort((keys << bits) | np.arange(len(keys)))
    return both >> bits, both & ((1 << bits) - 1)


@dataclass(frozen=True)
class _Part:
    numbers: dict[str, I64]
    items: pl.DataFrame


_ITEMS = {"item_key": pl.String, "known": pl.Int64}


def _none() -> _Part:
    names = ("owner", "when", "time", "code", "image")
    return _Part({name: np.empty(0, np.int64) for name in names}, pl.DataFrame(schema=_ITEMS))


def _part(table: pa.Table, subjects: I64, clock: Clock, codes: pa.Array) -> _Part:
    owners = table["subject_id"].to_numpy()
    place = np.minimum(np.searchsorted(subjects, owners), len(subjects) - 1)
    wanted = subjects[place] == owners
    if not wanted.all():
        table, place = table.filter(pa.array(wanted)), place[wanted]
    time = numbers_of(table["time"].cast(pa.int64()), NO_TIME)
    when = time
    if clock != "time":
        available = numbers_of(table["available_time"].cast(pa.int64()), NO_TIME)
        when = np.where(available == NO_TIME, time, available)
    image = np.asarray(pc.fill_null(pc.equal(table["kind"], "image"), False))
    keys = table["item_key"].filter(pa.array(image)).cast(pa.string())
    items = pl.DataFrame({"item_key": pl.Series(pl.from_arrow(keys), dtype=pl.String), "known": when[image]}, _ITEMS)
    numbers = {"owner": place, "when": when, "time": time, "code": _places(table["code"], codes), "image": image}
    return _Part({name: np.asarray(values, np.int64) for name, values in numbers.items()}, items)


def _places(column: pa.ChunkedArray, codes: pa.Array) -> I64:
    """Of each code (n,) its place among the release's; -1 for none."""
    array = column.combine_chunks()
    found = pc.index_in(array.dictionary.cast(codes.type), value_set=codes).fill_null(-1)
    # The last place is that of an event without a code.
    places = np.append(np.asarray(found, np.int64), -1)
    each: I64 = places[np.asarray(array.indices.fill_null(len(places) - 1), np.int64)]
    return each
