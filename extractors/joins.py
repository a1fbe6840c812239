"""Columns looked up in other tables, in bounded memory.

A lookup is a table of key hashes in order, and the values beside them. One that would not fit is cut, and so are the
rows that ask it, by the hash of the key: the pieces are then joined one after the other.
"""

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from extractors.rows import Column, Rows
from extractors.source import JoinRule, aggregate
from extractors.tables import Export
from warehouse.errors import TimeloomError
from warehouse.order import encode

LOOKUP_BYTES = 80 << 20
PIECES = 32
BLOCK_ROWS = 1 << 17
SCRATCH = ".join-"
_SEEDS = (11, 12)
# A looked-up column is numbered where a sample of it holds at most this share of distinct texts.
_SAMPLE, _DISTINCT = 10_000, 0.1

U64 = npt.NDArray[np.uint64]


class Lookup:
    """The right side of a join, by two 64-bit hashes of the key: no two keys have both in common.

    Args:
        first, second: (n,) in any order.
        values: (n) rows of text columns.
    """

    def __init__(self, first: U64, second: U64, values: pl.DataFrame) -> None:
        order = np.argsort(first)
        self._first, self._second = first, second = first[order], second[order]
        # Hashes are spread evenly, so their leading bits say where to look.
        self._shift = np.uint64(64 - max(len(first) - 1, 1).bit_length())
        buckets = np.arange((1 << (64 - int(self._shift))) + 1, dtype=np.uint64)
        self._begins = np.searchsorted(first >> self._shift, buckets)
        self._longest = int(np.diff(self._begins).max(initial=0))
        self._columns = {name: _Looked.of(values[name], order) for name in values.columns}

    @property
    def repeated(self) -> tuple[bool, bool]:
        """Whether two keys share their first hash, and whether two share both."""
        shared = self._first[1:] == self._first[:-1]
        return bool(shared.any()), bool((shared & (self._second[1:] == self._second[:-1])).any())

    def attach(self, rows: Rows, keys: list[str]) -> Rows:
        """The rows with the looked-up columns, null where the key is not found; they replace columns of their name."""
        asked = pl.DataFrame({name: rows.columns[name].rows for name in keys})
        place = self._places(*_hashes(asked))
        # A null key is no key, however it hashes; what is not found has the place behind the last.
        place[~asked.select(pl.all_horizontal(pl.all().is_not_null())).to_series().to_numpy()] = len(self._first)
        found = {name: looked.at(place) for name, looked in self._columns.items()}
        return Rows({**rows.columns, **found}, rows.number, rows.hashes)

    def _places(self, first: U64, second: U64) -> npt.NDArray[np.uint32]:
        """Where each pair of hashes (n,) stands; the number of keys where it does not."""
        places = np.full(len(first), len(self._first), np.uint32)
        bucket = (first >> self._shift).astype(np.int64)
        at, end = self._begins[bucket], self._begins[bucket + 1]
        rows = np.arange(len(first))
        for _ in range(self._longest):
            within = at < end
            rows, at, end = rows[within], at[within], end[within]
            hit = (self._first[at] == first[rows]) & (self._second[at] == second[rows])
            places[rows[hit]] = at[hit]
            rows, at, end = rows[~hit], at[~hit] + 1, end[~hit]
        return places


@dataclass(frozen=True)
class _Looked:
    """A column of a lookup of n keys.

    Attributes:
        values: what stands in it, null at the end; each once where few texts say it all.
        numbers: (n + 1,) of each key in order, and of what is none, its place in `values`.
        numbered: whether `values` are few.
    """

    values: pl.Series
    numbers: npt.NDArray[np.uint32]
    numbered: bool

    @classmethod
    def of(cls, column: pl.Series, order: npt.NDArray[np.intp]) -> "_Looked":
        sample = column.head(_SAMPLE)
        values, numbers = column, order
        numbered = sample.n_unique() <= _DISTINCT * len(sample)
        if numbered:
            values, places = encode(column)
            numbers = places[order]
        return cls(values.extend_constant(None, 1), np.append(numbers, len(values)).astype(np.uint32), numbered)

    def at(self, places: npt.NDArray[np.uint32]) -> Column:
        column = Column(self.values, self.numbers[places])
        return column if self.numbered else Column(column.rows)


def attach_all(
    blocks: Iterator[pl.DataFrame], export: Export, joins: list[JoinRule], scratch: Path
) -> Iterator[pl.DataFrame]:
    """Frames with every join's columns attached: see `attach_rows`."""

    def as_rows(frame: pl.DataFrame) -> Rows:
        rows = len(frame)
        return Rows({name: Column(frame[name]) for name in frame.columns}, np.arange(rows), np.zeros(rows, np.uint64))

    for rows in attach_rows(map(as_rows, blocks), export, joins, scratch):
        yield pl.DataFrame({name: column.rows for name, column in rows.columns.items()})


def attach_rows(blocks: Iterator[Rows], export: Export, joins: list[JoinRule], scratch: Path) -> Iterator[Rows]:
    """Rows with every join's columns attached; in another order where a lookup did not fit into memory.

    Args:
        scratch: a private folder, with room for the rows that ask a large lookup: they are written there as they are.

    Raises:
        TimeloomError: a joined table is missing, or has several rows a key where no aggregate is given.
    """
    for join in joins:
        blocks = _attach(blocks, export, join, scratch, LOOKUP_BYTES // len(joins))
    return blocks


def _attach(blocks: Iterator[Rows], export: Export, join: JoinRule, scratch: Path, most: int) -> Iterator[Rows]:
    kept: pl.DataFrame | None = None
    rows = _lookup_rows(export, join)
    for piece in rows:
        kept = piece if kept is None else pl.concat([kept, piece])
        if kept.estimated_size() > most:
            kept = _one_row_a_key(kept, join)
            if kept.estimated_size() > most // 2:
                yield from _attach_by_pieces(blocks, _chain(kept, rows), join, scratch)
                return
    lookup = _lookup(kept, join)
    for block in blocks:
        yield lookup.attach(block, list(join.key))


def _chain(kept: pl.DataFrame, rows: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    yield kept
    yield from rows


def _keys(join: JoinRule) -> list[str]:
    """What the key's columns are called in a lookup: what is looked up may be one of them."""
    return [f"_key{place}" for place in range(len(join.key))]


def _lookup_rows(export: Export, join: JoinRule) -> Iterator[pl.DataFrame]:
    """The other table's distinct rows: its key, and what is looked up under the names that it gets."""
    files = export.files(join.table)
    if not files and not join.optional:
        raise TimeloomError(f"the joined table {join.table} is missing", remedy="export it, or mark the join optional")
    sought = {name: aggregate(spec)[1] for name, spec in join.columns.items()}
    needed = sorted({*join.key.values(), *sought.values()})
    for path in files:
        raw = export.open(path, join.table)
        raw.require(set(needed))
        for block in raw.blocks(needed):
            renamed = block.frame.select(
                *(pl.col(column).alias(key) for key, column in zip(_keys(join), join.key.values(), strict=True)),
                *(pl.col(column).alias(name) for name, column in sought.items()),
            )
            known = renamed.drop_nulls(_keys(join))
            # Mostly each row has a key of its own, and to find that out costs a fraction of comparing whole rows.
            yield known if known.select(_keys(join)).hash_rows().n_unique() == len(known) else known.unique()


def _one_row_a_key(rows: pl.DataFrame, join: JoinRule) -> pl.DataFrame:
    """Rows of one key made one: equal ones, and those that only differ in columns with an aggregate."""
    extremes = {name: function for name, spec in join.columns.items() if (function := aggregate(spec)[0])}
    if not extremes:
        return rows.unique()
    plain = [name for name in rows.columns if name not in extremes]
    return rows.group_by(plain).agg(getattr(pl.col(name), function)() for name, function in extremes.items())


def _lookup(rows: pl.DataFrame | None, join: JoinRule) -> Lookup:
    if rows is None or rows.is_empty():
        nothing = np.zeros(0, np.uint64)
        return Lookup(nothing, nothing, pl.DataFrame(schema=dict.fromkeys(join.columns, pl.String)))
    lookup = Lookup(*_hashes(rows.select(_keys(join))), rows.select(join.columns.keys()))
    if not lookup.repeated[0]:
        return lookup
    rows = _one_row_a_key(rows, join)
    lookup = Lookup(*_hashes(rows.select(_keys(join))), rows.select(join.columns.keys()))
    shared, equal = lookup.repeated
    if equal:
        raise TimeloomError(
            f"the join with {join.table} finds several rows a key", remedy="use min(column) or max(column) in the YAML"
        )
    if shared:
        raise TimeloomError(f"two keys of {join.table} share a hash", remedy="report this")
    return lookup


def _hashes(keys: pl.DataFrame) -> tuple[U64, U64]:
    """Two hashes of each row's key, whatever its columns are called."""
    named = keys.select(pl.col(name).alias(str(place)) for place, name in enumerate(keys.columns))
    first, second = (named.hash_rows(seed=seed).to_numpy() for seed in _SEEDS)
    return first, second


def _attach_by_pieces(
    blocks: Iterator[Rows], rows: Iterator[pl.DataFrame], join: JoinRule, scratch: Path
) -> Iterator[Rows]:
    scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=scratch))
    try:
        asking = _cut((block.frame() for block in blocks), list(join.key), folder / "asking")
        answering = _cut(rows, _keys(join), folder / "answering")
        for piece in range(PIECES):
            parts = list(_piece(answering, piece))
            lookup = _lookup(pl.concat(parts) if parts else None, join)
            for block in _gathered(_piece(asking, piece)):
                yield lookup.attach(Rows.of_frame(block), list(join.key))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _cut(blocks: Iterator[pl.DataFrame], keys: list[str], folder: Path) -> Path:
    """Writes rows to PIECES files by the hash of their key."""
    folder.mkdir()
    writers: dict[int, pa.RecordBatchFileWriter] = {}
    try:
        for block in blocks:
            if block.is_empty():
                continue
            piece = (_hashes(block.select(keys))[0] % np.uint64(PIECES)).astype(np.uint16)
            order = np.argsort(piece, kind="stable")
            table = block[order].to_arrow(compat_level=pl.CompatLevel.oldest())
            numbers, starts = np.unique(piece[order], return_index=True)
            for number, start, end in zip(numbers.tolist(), starts, [*starts[1:], len(block)], strict=True):
                if number not in writers:
                    options = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
                    writers[number] = pa.ipc.new_file(folder / str(number), table.schema, options=options)
                writers[number].write_table(table.slice(start, end - start))
    finally:
        for writer in writers.values():
            writer.close()
    return folder


def _gathered(blocks: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """Blocks put together until they are worth the trouble that each block is."""
    held: list[pl.DataFrame] = []
    for block in blocks:
        held.append(block)
        if sum(map(len, held)) >= BLOCK_ROWS:
            yield pl.concat(held)
            held = []
    if held:
        yield pl.concat(held)


def _piece(folder: Path, number: int) -> Iterator[pl.DataFrame]:
    if not (folder / str(number)).exists():
        return
    with pa.OSFile(str(folder / str(number))) as file, pa.ipc.open_file(file) as reader:
        for place in range(reader.num_record_batches):
            frame = pl.from_arrow(reader.get_batch(place))
            assert isinstance(frame, pl.DataFrame)
            yield frame
