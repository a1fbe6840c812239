"""A bucket's events that lists of codes hold, as arrays, and what is known of each subject.

The file is read a row group at a time, with the columns that are needed and no others; texts are dictionaries, so that
a row that no list holds costs a comparison of numbers.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from extractors.events.times import PRECISIONS
from pipelines.aligning.columns import NONE_8
from pipelines.aligning.conflicts import earliest, latest
from pipelines.tasks.instants import NEVER
from warehouse.arrays import F64, I32, I64, NO_TIME, U8, Bools, numbers_of
from warehouse.errors import REPAIR, TimeloomError
from warehouse.parquet import of_subjects, row_groups

NO_VISIT = np.iinfo(np.int64).min
_COLUMNS = ("subject_id", "time", "available_time", "time_precision", "code", "visit_id")
_VALUES = ("numeric_value", "unit", "value_flag")


@dataclass(frozen=True)
class Rows:
    """Events with a time that some list holds.

    Attributes:
        subject: id, then place among the subjects (n,).
        time, available: µs (n,).
        precision: number in PRECISIONS (n,).
        code: place in the codes that were asked for (n,).
        visit: id (n,), NO_VISIT for none.
        value: (n,), NaN for none or where values were not read; of a flagged one (`<0.5`) NaN too.
        unit: place in `Facts.units` (n,), -1 for none.
        flagged: whether the number is not the whole value (n,).
    """

    subject: I64
    time: I64
    available: I64
    precision: U8
    code: I32
    visit: I64
    value: F64
    unit: I32
    flagged: Bools

    def __len__(self) -> int:
        return len(self.subject)

    def take(self, rows: I64 | Bools) -> "Rows":
        return Rows(*(getattr(self, field.name)[rows] for field in fields(self)))

    @classmethod
    def joined(cls, parts: "list[Rows]") -> "Rows":
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def low(self, clock: str, *, either: bool = False) -> I64:
        """The earliest moment (n,) that each fact may have by a clock: where only the day is known, its start.

        A date-only fact that becomes known at a moment stands exactly there.

        Args:
            either: by whichever clock comes first.
        """
        possible = earliest(self.time, self.precision)
        if clock == "time" or either:
            return possible
        return np.where(self.available == self.time, possible, self.available)

    def at(self, clock: str) -> I64:
        """When each fact (n,) counts by a clock."""
        return self.time if clock == "time" else self.available

    def latest(self) -> I64:
        """The latest moment (n,) that the time of each may have."""
        return latest(self.time, self.precision)


@dataclass(frozen=True)
class Facts:
    """A bucket.

    Attributes:
        subjects: ids (s,), in order where they are of one release.
        first, last: µs (s,), of the subject's first event with a time other than a birth, and of the last with a time;
            NEVER and NO_TIME without any.
        last_known: µs (s,), when the last of them became available.
        rows: those that were asked for.
        codes: that were asked for, in order.
        units: as the rows have them.
    """

    subjects: I64
    first: I64
    last: I64
    last_known: I64
    rows: Rows
    codes: pl.Series
    units: tuple[str, ...]

    def followed_by(self, others: "Facts") -> "Facts":
        """These subjects and then others, of whom the same codes were asked for; who is in both stands there twice."""
        units = tuple(dict.fromkeys([*self.units, *others.units]))
        # No unit has the place -1.
        unit = np.array([*(units.index(name) for name in others.units), -1], np.int32)
        moved = replace(others.rows, subject=others.rows.subject + len(self.subjects), unit=unit[others.rows.unit])
        return Facts(
            subjects=np.concatenate([self.subjects, others.subjects]),
            first=np.concatenate([self.first, others.first]),
            last=np.concatenate([self.last, others.last]),
            last_known=np.concatenate([self.last_known, others.last_known]),
            rows=Rows.joined([self.rows, moved]),
            codes=self.codes,
            units=units,
        )

    def holds(self, members: Iterable[str]) -> Bools:
        """Which rows (n,) have one of some codes."""
        wanted = self.codes.is_in(pl.Series(list(members), dtype=pl.String).implode()).to_numpy()
        found: Bools = np.append(wanted, False)[self.rows.code]
        return found


def read_facts(
    path: Path,
    codes: pl.Series,
    derived: pl.DataFrame | None = None,
    *,
    births: pl.Series | None = None,
    values: bool = False,
    subjects: I64 | None = None,
) -> Facts:
    """The events of some codes.

    Args:
        path: data/<bucket>.parquet.
        codes: distinct.
        derived: derived events of its subjects, columns of DERIVED, where they are wanted too.
        births: those of the codes that are a birth, with which no record begins.
        values: read numbers and units too.
        subjects: ids, ascending, of those who are wanted; all where not given.

    Raises:
        TimeloomError: a file is missing or damaged.
    """
    codes = codes.sort()
    units: dict[str, int] = {}
    born = np.zeros(len(codes), np.bool_) if births is None else codes.is_in(births.implode()).to_numpy()
    # A code that was not asked for has the place -1.
    born = np.append(born, False)
    statistics, parts = [], [_no_rows()]
    for table in _groups(path, subjects, values=values):
        code = _places(table["code"], codes.to_arrow().cast(pa.large_string()))
        statistics.append(_statistics(table, born[code]))
        parts.append(_rows(table, code, units))
    if derived is not None:
        table = of_subjects(derived.to_arrow(compat_level=pl.CompatLevel.oldest()), subjects)
        parts.append(_rows(table, _places(table["code"], codes.to_arrow().cast(pa.large_string())), units))
    everyone, first, last, known = _merged(statistics)
    rows = Rows.joined(parts)
    place = np.searchsorted(everyone, rows.subject)
    placed = Rows(place, *(getattr(rows, field.name) for field in fields(Rows)[1:]))
    return Facts(everyone, first, last, known, placed, codes, tuple(units))


def _groups(path: Path, subjects: I64 | None, *, values: bool) -> Iterator[pa.Table]:
    wanted = [*_COLUMNS, *(_VALUES if values else ())]
    texts = ["code", "time_precision", *(("unit", "value_flag") if values else ())]
    try:
        file = pq.ParquetFile(path, read_dictionary=texts, page_checksum_verification=True)
        columns = [name for name in wanted if name in file.schema_arrow.names]
        for groups in row_groups(file, subjects=subjects):
            yield of_subjects(file.read_row_groups(groups, columns=columns).unify_dictionaries(), subjects)
    except (OSError, pa.ArrowException) as error:
        raise TimeloomError(f"cannot read {path.parent.name}/{path.name}", remedy=REPAIR) from error


def _places(column: pa.ChunkedArray, values: pa.Array) -> I32:
    """The place of each text (n,) among `values`, -1 for what is not there."""
    chunks = []
    for chunk in column.chunks:
        if not pa.types.is_dictionary(chunk.type):
            chunk = pc.dictionary_encode(chunk)
        of_distinct = numbers_of(pc.index_in(chunk.dictionary.cast(pa.large_string()), value_set=values), -1)
        indices = numbers_of(chunk.indices.cast(pa.int32()), len(of_distinct))
        chunks.append(np.append(of_distinct, -1).astype(np.int32)[indices])
    return np.concatenate(chunks) if chunks else np.zeros(0, np.int32)


def _rows(table: pa.Table, code: I32, units: dict[str, int]) -> Rows:
    """The rows that are asked for; their subjects are ids.

    Args:
        code: of each row of the table (rows,) the place of its code, -1 for one that is not asked for.
    """
    ids = table["subject_id"].to_numpy()
    time = numbers_of(table["time"].cast(pa.int64()), NO_TIME)
    wanted = np.flatnonzero((code >= 0) & (time != NO_TIME))
    few = table.select([name for name in table.column_names if name not in ("subject_id", "code")]).take(wanted)
    available = numbers_of(few["available_time"].cast(pa.int64()), NO_TIME)
    place = _places(few["time_precision"], pa.array(PRECISIONS, pa.large_string()))
    visit = (
        numbers_of(few["visit_id"], NO_VISIT)
        if "visit_id" in few.column_names
        else np.full(len(wanted), NO_VISIT, np.int64)
    )
    value, unit = np.full(len(wanted), np.nan), np.full(len(wanted), -1, np.int32)
    flagged = np.zeros(len(wanted), np.bool_)
    if "numeric_value" in few.column_names and "unit" in few.column_names:
        value = numbers_of(few["numeric_value"], np.nan).astype(np.float64)
        flagged = few["value_flag"].is_valid().to_numpy()
        unit = _units(few["unit"], units)
    return Rows(
        subject=ids[wanted],
        time=time[wanted],
        available=np.where(available == NO_TIME, time[wanted], available),
        precision=np.where(place < 0, NONE_8, place).astype(np.uint8),
        code=code[wanted],
        visit=visit.astype(np.int64),
        value=value,
        unit=unit,
        flagged=flagged,
    )


def _units(column: pa.ChunkedArray, known: dict[str, int]) -> I32:
    for text in pc.unique(column).to_pylist():
        if text is not None:
            known.setdefault(text, len(known))
    return _places(column, pa.array(list(known), pa.large_string()))


def _statistics(table: pa.Table, born: Bools) -> tuple[I64, I64, I64, I64]:
    """Of each subject (s,) of a row group its id, first and last time, and when the last became available.

    Args:
        born: which rows (rows,) are a birth.
    """
    ids = table["subject_id"].to_numpy()
    if not len(ids):
        return ids, ids, ids, ids
    starts = np.concatenate([[0], np.flatnonzero(ids[1:] != ids[:-1]) + 1])
    time = numbers_of(table["time"].cast(pa.int64()), NO_TIME)
    known = np.maximum(time, numbers_of(table["available_time"].cast(pa.int64()), NO_TIME))
    first = np.minimum.reduceat(np.where((time == NO_TIME) | born, NEVER, time), starts)
    return ids[starts], first, np.maximum.reduceat(time, starts), np.maximum.reduceat(known, starts)


def _merged(statistics: list[tuple[I64, I64, I64, I64]]) -> tuple[I64, I64, I64, I64]:
    if not statistics:
        none = np.zeros(0, np.int64)
        return none, none, none, none
    ids, first, last, known = (np.concatenate(column) for column in zip(*statistics, strict=True))
    subjects, place = np.unique(ids, return_inverse=True)
    merged = [np.full(len(subjects), NEVER), np.full(len(subjects), NO_TIME), np.full(len(subjects), NO_TIME)]
    np.minimum.at(merged[0], place, first)
    np.maximum.at(merged[1], place, last)
    np.maximum.at(merged[2], place, known)
    return subjects, merged[0], merged[1], merged[2]


def _no_rows() -> Rows:
    none, few = np.zeros(0, np.int64), np.zeros(0, np.int32)
    return Rows(none, none, none, few.astype(np.uint8), few, none, np.zeros(0), few, few.astype(np.bool_))
