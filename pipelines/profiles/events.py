"""A bucket's events as arrays, a range of subjects at a time: what tokens are made of, and no other columns.

Texts are dictionaries, so that a row costs a number; data/ is in the total order of `time`, which the rows keep.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from warehouse.arrays import I32, I64, NO_TIME, Bools, numbers_of
from warehouse.errors import TimeloomError
from warehouse.order import KIND_RANK, PRECISION_RANK
from warehouse.parquet import subjects_together

# So many rows are read and worked on at a time: what fits into a core's cache is done twice as fast.
PART_ROWS = 250_000
_TEXTS = ("code", "kind", "time_precision", "source", "item_key", "unit", "value_flag")
_VALUES = ("numeric_value", "unit", "value_flag")
_COLUMNS = ("subject_id", "time", "available_time", "code", "kind", "time_precision", "source")


@dataclass(frozen=True)
class TextPlaces:
    """A column of texts: the distinct ones, and each row's place among them, -1 for null."""

    distinct: pl.Series
    place: I32

    @classmethod
    def of(cls, column: pa.ChunkedArray) -> "TextPlaces":
        if column.null_count == len(column):
            return cls(pl.Series(dtype=pl.String), np.full(len(column), -1, np.int32))
        if not pa.types.is_dictionary(column.type):
            column = pc.dictionary_encode(column)
        chunks = column.unify_dictionaries().chunks
        distinct = pl.Series(values=chunks[0].dictionary.cast(pa.string()), dtype=pl.String)
        place: I32 = numbers_of(pa.chunked_array([chunk.indices.cast(pa.int32()) for chunk in chunks]), -1)
        return cls(distinct, place)

    def ranked(self, order: Mapping[str, int]) -> I64:
        """Each row's rank (n,) by `order`, 0 for what it lacks."""
        ranks = [order.get(text, 0) for text in self.distinct.to_list()]
        return np.array([*ranks, 0], np.int64)[self.place]

    def in_order(self) -> "TextPlaces":
        """The same texts, the distinct ones in order."""
        ordered = sorted(self.distinct.to_list())
        return self._with(pl.Series(ordered, dtype=pl.String))

    def among(self, texts: pl.Series) -> "TextPlaces":
        """The same texts as places among others, which hold them all."""
        return self._with(texts)

    def _with(self, texts: pl.Series) -> "TextPlaces":
        places = pc.index_in(self.distinct.to_arrow(), value_set=texts.to_arrow())
        if places.null_count:
            raise TimeloomError("codes/ lacks a code of the events", remedy="report this: a stage broke its contract")
        return TextPlaces(texts, np.append(places.to_numpy(), np.int32(-1))[self.place])

    def is_text(self, text: str) -> Bools:
        """Which rows (n,) are `text`."""
        found = (self.distinct == text).arg_max() if (self.distinct == text).any() else None
        return np.zeros(len(self.place), np.bool_) if found is None else self.place == found

    def take(self, rows: I64) -> "TextPlaces":
        return TextPlaces(self.distinct, self.place[rows])


@dataclass(frozen=True)
class Part:
    """Events of some subjects, in the total order of `time`.

    Attributes:
        code: its distinct texts are in order, so that a place is a rank; so are those of `source`.
        subjects: ids (s,), in order.
        starts: each subject's first row (s + 1,), the last being n.
        subject: each row's place among the subjects (n,).
        time, available: µs (n,), NO_TIME where there is none.
        value: (n,), NaN where there is none; None where values were not read.
    """

    subjects: I64
    starts: I64
    subject: I32
    time: I64
    available: I64
    code: TextPlaces
    kind: TextPlaces
    precision: TextPlaces
    source: TextPlaces
    item_key: TextPlaces
    value: npt.NDArray[np.float32] | None = None
    unit: TextPlaces | None = None
    flag: TextPlaces | None = None

    def __len__(self) -> int:
        return len(self.subject)

    @classmethod
    def of(cls, table: pa.Table, codes: pl.Series | None = None) -> "Part":
        """From columns of EVENTS, a subject's rows together.

        Args:
            codes: distinct codes in order, among which are all of the table's; its own where not given.
        """
        ids = table["subject_id"].to_numpy()
        new = np.concatenate([np.zeros(min(len(ids), 1), np.int64), np.flatnonzero(ids[1:] != ids[:-1]) + 1])
        starts = np.append(new, len(ids)).astype(np.int64)
        texts = {name: TextPlaces.of(table[name]) for name in _TEXTS if name in table.column_names}
        texts["code"] = texts["code"].in_order() if codes is None else texts["code"].among(codes)
        texts["source"] = texts["source"].in_order()
        value = None
        if "numeric_value" in table.column_names:
            value = numbers_of(table["numeric_value"], np.nan)
        return cls(
            subjects=ids[new],
            starts=starts,
            subject=np.repeat(np.arange(len(new), dtype=np.int32), np.diff(starts)),
            time=numbers_of(table["time"].cast(pa.int64()), NO_TIME),
            available=numbers_of(table["available_time"].cast(pa.int64()), NO_TIME),
            code=texts["code"],
            kind=texts["kind"],
            precision=texts["time_precision"],
            source=texts["source"],
            item_key=texts["item_key"],
            value=value,
            unit=texts.get("unit"),
            flag=texts.get("value_flag"),
        )

    def slices(self, rows: int = PART_ROWS, firsts: I64 | None = None) -> Iterator["Part"]:
        """The part in pieces of about so many rows and whole subjects, views of its arrays.

        Args:
            firsts: ids, ascending, that a piece may begin at; every one where not given.
        """
        number = max(1, round(len(self) / rows))
        wanted = np.searchsorted(self.starts, np.arange(1, number) * (len(self) // number))
        if firsts is not None:
            ids = self.subjects[np.minimum(wanted, len(self.subjects) - 1)]
            wanted = np.searchsorted(self.subjects, firsts[np.searchsorted(firsts, ids, side="right") - 1])
        cuts = np.unique(np.concatenate([[0], wanted, [len(self.subjects)]]))
        for low, high in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
            begin, end = int(self.starts[low]), int(self.starts[high])
            taken = slice(begin, end)
            texts = {name: getattr(self, name) for name in ("code", "kind", "precision", "source", "item_key")}
            further = {name: getattr(self, name) for name in ("unit", "flag") if getattr(self, name) is not None}
            if (low, high) == (0, len(self.subjects)):
                yield self
                continue
            yield Part(
                subjects=self.subjects[low:high],
                starts=self.starts[low : high + 1] - begin,
                subject=self.subject[taken] - low,
                time=self.time[taken],
                available=self.available[taken],
                value=None if self.value is None else self.value[taken],
                **{name: TextPlaces(text.distinct, text.place[taken]) for name, text in (texts | further).items()},
            )


def read_parts(
    path: Path,
    codes: pl.Series,
    *,
    values: bool,
    rows: int = PART_ROWS,
    subjects: I64 | None = None,
    firsts: I64 | None = None,
) -> Iterator[Part]:
    """A bucket's events, some subjects at a time, checksums verified.

    Args:
        codes: the bucket's distinct codes, in order.
        values: whether numbers, units and flags are read.
        rows: about so many rows a part; a subject is never divided.
        subjects: ids, ascending, of those who are wanted; all where not given.
        firsts: ids, ascending, that a part may begin at; every one where not given.

    Raises:
        TimeloomError: the file is missing, truncated or corrupt.
    """
    columns = [*_COLUMNS, *(_VALUES if values else ())]

    def read(file: pq.ParquetFile, groups: list[int]) -> pa.Table:
        return _read_groups(file, groups, columns)

    for table in subjects_together(path, read, rows, _TEXTS, subjects, firsts):
        yield from Part.of(table, codes).slices(rows, firsts)


def _read_groups(file: pq.ParquetFile, groups: list[int], columns: Sequence[str]) -> pa.Table:
    """Columns of row groups, and the items of their events; only images are asked for theirs."""
    table = file.read_row_groups(groups, columns=columns)
    if any("image" in chunk.dictionary.to_pylist() for chunk in table["kind"].chunks):
        items = file.read_row_groups(groups, columns=["item_key"])["item_key"]
    else:
        items = pa.nulls(len(table), pa.dictionary(pa.int32(), pa.string()))
    return table.append_column("item_key", items)


def order_of(part: Part, rows: I64, by: str, *, images_first: bool) -> tuple[I64, I64]:
    """Rows in a timeline's order, and their times.

    At equal times: as warehouse.order says (coarser precision last; visit start, clinical events, death, visit end;
    code; source), but images behind everything, or before it; then as they stand in data/, so by their `time`.

    Args:
        rows: ascending places of the wanted events (m,).
        by: `available_time` or `time`.

    Returns:
        (rows in order (m,), their times in µs (m,), NO_TIME first).
    """
    at = (part.available if by == "available_time" else part.time)[rows]
    if not len(rows) or (by == "time" and not part.kind.is_text("image")[rows].any()):
        return rows, at
    subject = part.subject[rows]
    key = _on_one_axis(at, subject)
    order: I64 | None = None
    if (key[1:] < key[:-1]).any():
        order = np.argsort(key, kind="stable")
        key = key[order]
    again = key[1:] == key[:-1]
    mixed = again & _mixed(part, rows if order is None else rows[order])
    if mixed.any():
        # Moments whose events did not stand together in data/; what did stands right already.
        first = np.concatenate([[0], np.flatnonzero(~again) + 1])
        asked = np.flatnonzero(np.logical_or.reduceat(np.concatenate([[False], mixed]), first))
        sizes = np.diff(np.append(first, len(rows)))[asked]
        moment = np.repeat(np.arange(len(asked)), sizes)
        places = np.repeat(first[asked] - (np.cumsum(sizes) - sizes), sizes) + np.arange(len(moment))
        order = np.arange(len(rows)) if order is None else order
        mixed_rows = order[places]
        rank = _rank_at_a_time(part, rows[mixed_rows], by, images_first=images_first)
        order[places] = mixed_rows[_sorted_within(moment, rank)]
    return (rows, at) if order is None else (rows[order], at[order])


def _sorted_within(moment: I64, rank: I64) -> I64:
    """The order (m,) by moment, which ascends, then rank, then place."""
    size = len(moment)
    places, ranks = size.bit_length(), int(rank.max() - rank.min()).bit_length()
    moments = int(moment[-1] - moment[0]).bit_length()
    if places + ranks + moments > 63:
        return np.lexsort((rank, moment))
    # One integer with its place in its last bits: integers are sorted ten times as fast as they are ranked.
    packed: I64 = ((moment - moment[0]) << (ranks + places)) | ((rank - rank.min()) << places) | np.arange(size)
    packed.sort()
    return packed & ((1 << places) - 1)


def _mixed(part: Part, rows: I64) -> Bools:
    """Which of the rows but the first (m - 1,) differ from the one before: in time, in precision, in being an image."""
    time, precision = part.time[rows], part.precision.place[rows]
    image = part.kind.is_text("image")[rows]
    differs: Bools = (time[1:] != time[:-1]) | (precision[1:] != precision[:-1]) | (image[1:] != image[:-1])
    return differs


def _on_one_axis(at: I64, subject: I32) -> I64:
    """Times (m,) laid end to end, subject by subject: one integer whose order is that of subject and time."""
    if not len(at):
        return at
    starts = np.concatenate([[0], np.flatnonzero(subject[1:] != subject[:-1]) + 1])
    most = np.maximum.reduceat(at, starts)
    # One µs before a subject's first event stands what has no time: NO_TIME less 1 is the greatest number there is.
    least = np.where(most == NO_TIME, -1, np.minimum.reduceat(at - 1, starts))
    spans = np.where(most == NO_TIME, 0, most - least) + 1
    if float(spans.astype(np.float64).sum()) > 2.0**62:
        # More than 146,000 years of patients: ranks instead of times.
        ranks = np.unique(at, return_inverse=True)[1].astype(np.int64)
        return ranks + subject.astype(np.int64) * (int(ranks.max()) + 1)
    first = np.concatenate([[0], np.cumsum(spans)[:-1]])
    key: I64 = np.repeat(first - least, np.diff(np.append(starts, len(at))))
    key += at
    timeless = np.flatnonzero(at == NO_TIME)
    key[timeless] = first[np.searchsorted(starts, timeless, side="right") - 1]
    return key


def _rank_at_a_time(part: Part, rows: I64, by: str, *, images_first: bool) -> I64:
    kind = part.kind.take(rows).ranked(KIND_RANK)
    precision = part.precision.take(rows).ranked(PRECISION_RANK)
    if by != "time":
        # A date-only fact that becomes available at a later moment stands exactly there.
        coarse = np.flatnonzero(precision)
        elsewhere = part.time[rows[coarse]] != part.available[rows[coarse]]
        precision[coarse[elsewhere]] = 0
    # Behind what is known by day only, a death and the end of the visit, too: nothing is predicted from an image of its
    # own moment.
    behind = max(PRECISION_RANK.values()) + 1
    precision += np.where(kind == KIND_RANK["image"], -behind if images_first else behind, 0)
    codes, sources = len(part.code.distinct), len(part.source.distinct) + 1
    return ((precision * 8 + kind) * codes + part.code.place[rows]) * sources + part.source.place[rows]
