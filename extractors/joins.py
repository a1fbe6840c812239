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

from extractors.source import JoinRule, aggregate
from extractors.tables import Export
from warehouse.errors import TimeloomError

LOOKUP_BYTES = 80 << 20
PIECES = 32
BLOCK_ROWS = 1 << 17
SCRATCH = ".join-"
_SEEDS = (11, 12)

U64 = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Lookup:
    """The right side of a join, by two 64-bit hashes of the key: no two keys have both in common.

    Attributes:
        first: (n,) in order.
        second: (n,).
        values: (n) rows of text columns.
    """

    first: U64
    second: U64
    values: pl.DataFrame

    def attach(self, frame: pl.DataFrame, keys: list[str]) -> pl.DataFrame:
        """The frame with the looked-up columns, null where the key is not found; they replace columns of their name."""
        asked = frame.select(keys)
        if len(self.first):
            first, second = _hashes(asked)
            place = np.minimum(np.searchsorted(self.first, first), len(self.first) - 1)
            found = (self.first[place] == first) & (self.second[place] == second)
            # A null key is no key, however it hashes.
            known = pl.Series(found) & asked.select(pl.all_horizontal(pl.all().is_not_null())).to_series()
            places = pl.Series(place, dtype=pl.UInt32).set(~known, None)
            return frame.with_columns(self.values.select(pl.all().gather(places)).get_columns())
        return frame.with_columns(pl.lit(None, pl.String).alias(name) for name in self.values.columns)


def attach_all(
    blocks: Iterator[pl.DataFrame], export: Export, joins: list[JoinRule], scratch: Path
) -> Iterator[pl.DataFrame]:
    """Blocks with every join's columns attached; in another order where a lookup did not fit into memory.

    Args:
        scratch: a private folder, with room for the rows that ask a large lookup: they are written there as they are.

    Raises:
        TimeloomError: a joined table is missing, or has several rows a key where no aggregate is given.
    """
    for join in joins:
        blocks = _attach(blocks, export, join, scratch, LOOKUP_BYTES // len(joins))
    return blocks


def _attach(
    blocks: Iterator[pl.DataFrame], export: Export, join: JoinRule, scratch: Path, most: int
) -> Iterator[pl.DataFrame]:
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
            yield renamed.drop_nulls(_keys(join)).unique()


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
    rows = _one_row_a_key(rows, join)
    first, second = _hashes(rows.select(_keys(join)))
    order = np.argsort(first)
    first, second = first[order], second[order]
    if ((first[1:] == first[:-1]) & (second[1:] == second[:-1])).any():
        raise TimeloomError(
            f"the join with {join.table} finds several rows a key", remedy="use min(column) or max(column) in the YAML"
        )
    if (first[1:] == first[:-1]).any():
        raise TimeloomError(f"two keys of {join.table} share a hash", remedy="report this")
    return Lookup(first, second, rows.select(join.columns.keys())[order])


def _hashes(keys: pl.DataFrame) -> tuple[U64, U64]:
    """Two hashes of each row's key, whatever its columns are called."""
    named = keys.select(pl.col(name).alias(str(place)) for place, name in enumerate(keys.columns))
    first, second = (named.hash_rows(seed=seed).to_numpy() for seed in _SEEDS)
    return first, second


def _attach_by_pieces(
    blocks: Iterator[pl.DataFrame], rows: Iterator[pl.DataFrame], join: JoinRule, scratch: Path
) -> Iterator[pl.DataFrame]:
    scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=scratch))
    try:
        asking = _cut(blocks, list(join.key), folder / "asking")
        answering = _cut(rows, _keys(join), folder / "answering")
        for piece in range(PIECES):
            parts = list(_piece(answering, piece))
            lookup = _lookup(pl.concat(parts) if parts else None, join)
            for block in _gathered(_piece(asking, piece)):
                yield lookup.attach(block, list(join.key))
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
