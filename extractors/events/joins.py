"""Columns looked up in other tables, in bounded memory.

A lookup that would not fit is kept in a file, its keys in memory. Where not even they fit, or one has several rows, it
is cut, and so are the rows that ask it, by the hash of the key: the pieces are then joined one after the other.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from extractors.events.by_block import BlockCounts
from extractors.events.lookups import HASHES, INDEX_BYTES, Asking, JoinCounts, Lookup, StoredLookup, hashes_of
from extractors.source import JoinRule, aggregate
from extractors.tables.export import Export
from extractors.tables.rows import Rows, TextColumn
from warehouse.arrays import I64, U64
from warehouse.errors import TimeloomError

LOOKUP_BYTES = 80 << 20
PIECES = 32
BLOCK_ROWS = 1 << 17
SCRATCH = ".join-"
# Before the join's place, the name of the column that marks the rows whose key was not found: no column of a source.
MISSED = "_missed by the join "


def attach_all(
    blocks: Iterator[pl.DataFrame], export: Export, joins: list[JoinRule], scratch: Path
) -> Iterator[pl.DataFrame]:
    """Frames with every join's columns attached: see `attach_rows`."""

    def as_rows(frame: pl.DataFrame) -> Rows:
        rows = len(frame)
        return Rows(
            {name: TextColumn(frame[name]) for name in frame.columns}, np.arange(rows), np.zeros(rows, np.uint64)
        )

    for rows in attach_rows(map(as_rows, blocks), export, joins, scratch):
        yield pl.DataFrame({name: column.rows for name, column in rows.columns.items()})


def attach_rows(
    blocks: Iterator[Rows],
    export: Export,
    joins: list[JoinRule],
    scratch: Path,
    counts: dict[str, JoinCounts] | None = None,
    by_block: BlockCounts | None = None,
) -> Iterator[Rows]:
    """Rows with every join's columns attached; in another order where a lookup did not fit into memory.

    Each join also attaches a column MISSED with its place behind it.

    Args:
        scratch: a private folder, with room for the rows that ask a large lookup: they are written there as they are.
        counts: by `name_of` each join whose table is there, what became of the rows; added to as they come.
        by_block: gets the same by block; see Account.add.

    Raises:
        TimeloomError: a joined table is missing, or has several rows a key where no aggregate is given.
    """
    for number, join in enumerate(joins):
        asking = Asking(list(join.key), join.no_link, f"{MISSED}{number}")
        if counts is not None and export.files(join.table):
            counts[name_of(join)] = asking.counts
            # Of several joins of one name the last one counts.
            if by_block is not None and name_of(join) not in map(name_of, joins[number + 1 :]):
                asking = replace(asking, note=partial(_note, by_block, name_of(join)))
        blocks = _attach(blocks, export, join, asking, scratch, LOOKUP_BYTES // len(joins))
    return blocks


def _note(by_block: BlockCounts, join: str, what: str, numbers: I64) -> None:
    by_block.add(("joins", join, what), numbers)


def name_of(join: JoinRule) -> str:
    """What accounts call a join: the other table, and the key."""
    return f"{join.table} by {', '.join(join.key)}"


def looked_up(rows: Rows, joins: list[JoinRule], seed: int) -> U64:
    """A hash of all that the joins of a table say of each row (n,): its keys, what was attached, what was missed."""
    names = {name for join in joins for name in (*join.key, *join.columns)}
    names |= {f"{MISSED}{number}" for number in range(len(joins))}
    attached = pl.DataFrame({name: rows.columns[name].rows for name in sorted(names)})
    return attached.hash_rows(seed=seed).to_numpy()


def _attach(
    blocks: Iterator[Rows], export: Export, join: JoinRule, asking: Asking, scratch: Path, most: int
) -> Iterator[Rows]:
    kept: pl.DataFrame | None = None
    rows = _lookup_rows(export, join)
    for piece in rows:
        kept = piece if kept is None else pl.concat([kept, piece])
        if kept.estimated_size() > most:
            kept = _one_row_a_key(kept, join)
            if kept.estimated_size() > most // 2:
                held, kept = [kept], None
                yield from _attach_large(blocks, _chain(held, rows), join, asking, scratch, most)
                return
    lookup, kept = _lookup(kept, join), None
    for block in blocks:
        yield lookup.attach(block, asking)


def _chain(held: list[pl.DataFrame], rows: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """What is held, given away, and then the rest."""
    while held:
        yield held.pop()
    yield from rows


def _lookup_rows(export: Export, join: JoinRule) -> Iterator[pl.DataFrame]:
    """The other table's rows: the hashes of the key, and what is looked up under the names that it gets."""
    files = export.files(join.table)
    if not files and not join.optional:
        raise TimeloomError(f"the joined table {join.table} is missing", remedy="export it, or mark the join optional")
    sought = {name: aggregate(spec)[1] for name, spec in join.columns.items()}
    keys = list(join.key.values())
    needed = sorted({*keys, *sought.values()})
    for path in files:
        raw = export.open(path, join.table)
        raw.require(set(needed))
        for block in raw.blocks(needed):
            frame = block.frame.drop_nulls(keys)
            yield frame.select(pl.col(column).alias(name) for name, column in sought.items()).with_columns(
                pl.Series(name, hashes) for name, hashes in zip(HASHES, hashes_of(frame.select(keys)), strict=True)
            )


def _one_row_a_key(rows: pl.DataFrame, join: JoinRule) -> pl.DataFrame:
    """Rows of one key made one: equal ones, and those that only differ in columns with an aggregate."""
    # Most keys have one row, which need not be compared with the others.
    repeated = rows[HASHES[0]].is_duplicated()
    alone, several = rows.filter(~repeated), rows.filter(repeated)
    extremes = {name: function for name, spec in join.columns.items() if (function := aggregate(spec)[0])}
    if extremes:
        plain = [name for name in rows.columns if name not in extremes]
        made = [getattr(pl.col(name), function)() for name, function in extremes.items()]
        several = several.group_by(plain).agg(made).select(rows.columns)
    return pl.concat([alone, several.unique()])


def _lookup(rows: pl.DataFrame | None, join: JoinRule) -> Lookup:
    if rows is None:
        texts = dict.fromkeys(join.columns, pl.String)
        return Lookup(pl.DataFrame(schema={**texts, **dict.fromkeys(HASHES, pl.UInt64)}))
    lookup = Lookup(rows)
    if not lookup.repeats:
        return lookup
    rows = _one_row_a_key(rows, join)
    lookup = Lookup(rows)
    if rows.select(HASHES).is_duplicated().any():
        raise TimeloomError(
            f"the join with {join.table} finds several rows a key", remedy="use min(column) or max(column) in the YAML"
        )
    if lookup.repeats:
        raise TimeloomError(f"two keys of {join.table} share a hash", remedy="report this")
    return lookup


def _attach_large(
    blocks: Iterator[Rows], rows: Iterator[pl.DataFrame], join: JoinRule, asking: Asking, scratch: Path, most: int
) -> Iterator[Rows]:
    """From a file where the keys alone fit into memory, else by pieces."""
    scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=scratch))
    try:
        with StoredLookup(folder / "answers") as stored:
            for piece in rows:
                stored.add(piece)
                if stored.rows * INDEX_BYTES > most:
                    break
            if stored.seal() and stored.rows * INDEX_BYTES <= most:
                for block in blocks:
                    yield stored.attach(block, asking)
            else:
                yield from _attach_by_pieces(blocks, chain(stored.frames(), rows), join, asking, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _attach_by_pieces(
    blocks: Iterator[Rows], rows: Iterator[pl.DataFrame], join: JoinRule, asking: Asking, folder: Path
) -> Iterator[Rows]:
    keys = asking.keys
    asked = _cut((block.frame() for block in blocks), lambda of: hashes_of(of.select(keys))[0], folder / "asking")
    answering = _cut(rows, lambda of: of[HASHES[0]].to_numpy(), folder / "answering")
    for piece in range(PIECES):
        parts = list(_piece(answering, piece))
        lookup = _lookup(pl.concat(parts) if parts else None, join)
        for block in _gathered(_piece(asked, piece)):
            yield lookup.attach(Rows.of_frame(block), asking)


def _cut(blocks: Iterator[pl.DataFrame], hashed: Callable[[pl.DataFrame], U64], folder: Path) -> Path:
    """Writes rows to PIECES files by the hash of their key."""
    folder.mkdir()
    writers: dict[int, pa.RecordBatchFileWriter] = {}
    try:
        for block in blocks:
            if block.is_empty():
                continue
            piece = (hashed(block) % np.uint64(PIECES)).astype(np.uint16)
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
