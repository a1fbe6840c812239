"""Parquet files of our schemas: written in one way everywhere, checked on the way, read as frames or tables."""

from base64 import b64encode
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from warehouse.arrays import I64
from warehouse.errors import REPAIR, TimeloomError
from warehouse.files import atomic_write, seen_of

# Rows that the writer takes up at once: its own thousand take a thirtieth longer.
_BATCH_ROWS = 1 << 16
# Where pyarrow looks for the types that a file's columns are read as.
_ARROW_SCHEMA = b"ARROW:schema"


def empty_frame(schema: pa.Schema) -> pl.DataFrame:
    """No rows of a schema."""
    frame = pl.from_arrow(pa.Table.from_batches([], schema))
    assert isinstance(frame, pl.DataFrame)
    return frame


def write_table(path: Path, frame: pl.DataFrame | pa.Table, schema: pa.Schema, what: str) -> int:
    """Writes a frame as Parquet with exactly `schema`, atomically; gives the number of rows."""
    return write_tables(path, [frame], schema, what)


def write_tables(
    path: Path,
    frames: Iterable[pl.DataFrame | pa.Table],
    schema: pa.Schema,
    what: str,
    encodings: Mapping[str, str] = MappingProxyType({}),
    fast: Collection[str] = (),
) -> int:
    """Writes frames one after the other as one Parquet file with exactly `schema`, atomically; gives the rows.

    A frame's enumerations are written as the dictionaries that they are, and read as the texts of the schema.

    Args:
        encodings: columns that are written otherwise than as dictionaries, and Parquet's name of how.
        fast: columns of a flat schema that are compressed with LZ4 instead of Zstandard.
    """
    with table_writer(path, schema, what, encodings, fast) as writer:
        for frame in frames:
            writer.add(frame)
    return writer.rows


@contextmanager
def table_writer(
    path: Path,
    schema: pa.Schema,
    what: str,
    encodings: Mapping[str, str] = MappingProxyType({}),
    fast: Collection[str] = (),
) -> Iterator["TableWriter"]:
    """Writes one Parquet file a frame at a time, as `write_tables` does; it is there when it is left without an error.

    Several may be open at once.
    """
    with atomic_write(path) as temporary:
        writer = TableWriter(temporary, schema, what, encodings, fast)
        yield writer
        writer.close()


class TableWriter:
    """A Parquet file that is being written; see `table_writer`.

    Attributes:
        rows: how many there are so far.
    """

    def __init__(
        self, path: Path, schema: pa.Schema, what: str, encodings: Mapping[str, str], fast: Collection[str]
    ) -> None:
        self.rows = 0
        self._path, self._schema, self._what = path, schema, what
        self._encodings, self._fast = encodings, fast
        self._writer: pq.ParquetWriter | None = None

    def add(self, frame: pl.DataFrame | pa.Table) -> None:
        """Appends a frame with the columns of the schema, as a row group.

        Raises:
            TimeloomError: a column is missing, or null where the schema forbids it.
        """
        table = conform(frame, self._schema, self._what)
        writer = self._opened(table.schema)
        if table.num_rows:
            self.rows += table.num_rows
            writer.write_table(table.combine_chunks(), row_group_size=table.num_rows)

    def close(self) -> None:
        """Ends the file."""
        writer = self._opened(self._schema)
        writer.add_key_value_metadata({_ARROW_SCHEMA: b64encode(self._schema.serialize().to_pybytes())})
        writer.close()

    def _opened(self, schema: pa.Schema) -> pq.ParquetWriter:
        self._writer = self._writer or _writer(self._path, schema, self._encodings, self._fast)
        return self._writer


def _writer(path: Path, schema: pa.Schema, encodings: Mapping[str, str], fast: Collection[str]) -> pq.ParquetWriter:
    # A dictionary of times would only be given up half-way. Their differences take a third longer to write, and are
    # no smaller once compressed: what is known late stands in no order.
    times = [field.name for field in schema if pa.types.is_timestamp(field.type)]
    encoded = dict.fromkeys(times, "PLAIN") | dict(encodings)
    return pq.ParquetWriter(
        path,
        schema,
        compression={name: "lz4" if name in fast else "zstd" for name in schema.names} if fast else "zstd",
        write_page_checksum=True,
        write_batch_size=_BATCH_ROWS,
        # Bounds of texts are looked at by nobody and take a fifth of the time.
        write_statistics=[name for name in ("subject_id", "time") if name in schema.names],
        use_dictionary=[name for name in schema.names if name not in encoded],
        column_encoding=encoded or None,
        store_schema=False,
    )


def conform(frame: pl.DataFrame | pa.Table, schema: pa.Schema, what: str) -> pa.Table:
    """A frame with a schema's columns, types and order, enumerations as dictionaries; refuses nulls where it has none.

    Raises:
        TimeloomError: a column is missing, or null where the schema forbids it.
    """
    table = frame.to_arrow(compat_level=pl.CompatLevel.oldest()) if isinstance(frame, pl.DataFrame) else frame
    missing = [name for name in schema.names if name not in table.column_names]
    if missing:
        raise TimeloomError(f"{what} lacks the column {missing[0]}", remedy="report this: a stage broke its contract")
    columns, fields = [], []
    for field in schema:
        column = table.column(field.name)
        kind = field.type
        if pa.types.is_dictionary(column.type) and (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            kind = pa.dictionary(column.type.index_type, kind)
        if not field.nullable and column.null_count:
            raise TimeloomError(f"{what} has nulls in {field.name}", remedy="report this: a stage broke its contract")
        columns.append(column if column.type == kind else column.cast(kind))
        fields.append(pa.field(field.name, kind, field.nullable))
    return pa.table(columns, schema=pa.schema(fields))


def read_frame(path: Path) -> pl.DataFrame:
    """Reads one Parquet file of a release, page checksums verified; raises what `read_columns` does."""
    frame = pl.from_arrow(read_columns(path))
    assert isinstance(frame, pl.DataFrame)
    return frame


def read_shared(path: Path) -> pl.DataFrame:
    """As `read_frame`, of a file that many tasks of a process read: it is kept as long as it is the same file."""
    return _read_shared(path, seen_of(path))


@lru_cache(maxsize=8)
def _read_shared(path: Path, _seen: tuple[int, ...]) -> pl.DataFrame:
    return read_frame(path)


def read_columns(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Some columns of one Parquet file of a release, or all, page checksums verified.

    Raises:
        TimeloomError: the file is missing, truncated or corrupt.
    """
    try:
        # A small file is read so in an eighth of the time that `read_table` takes, which looks for a whole data set.
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read(columns=columns)
        return table if columns is None else table.select(columns)
    except (OSError, KeyError, pa.ArrowException) as error:
        raise TimeloomError(
            f"cannot read {path.parent.name}/{path.name}",
            remedy=REPAIR,
        ) from error


def row_groups(file: pq.ParquetFile, rows: int = 1 << 18, subjects: I64 | None = None) -> Iterator[list[int]]:
    """The row groups of a file, as many at a time as have about so many rows: what is done for each of them costs more
    than a small one is worth.

    Args:
        subjects: ids, ascending: row groups in which none of them can stand are left out.
    """
    held: list[int] = []
    number = 0
    for group in range(file.num_row_groups):
        said = file.metadata.row_group(group)
        if subjects is not None and not _may_hold(said, subjects):
            continue
        held.append(group)
        number += said.num_rows
        if number >= rows:
            yield held
            held, number = [], 0
    if held:
        yield held


def _may_hold(group: pq.RowGroupMetaData, subjects: I64) -> bool:
    """Whether a row group, whose first column is the subject's id, may have a row of some of them."""
    said = group.column(0).statistics
    first, behind = np.searchsorted(subjects, [said.min, said.max + 1]) if said is not None else (0, len(subjects))
    return bool(first < behind)


def of_subjects(table: pa.Table, subjects: I64 | None) -> pa.Table:
    """The rows of some subjects; all where None."""
    return table if subjects is None else table.filter(pc.is_in(table["subject_id"], value_set=pa.array(subjects)))


def subjects_together(
    path: Path,
    read: Callable[[pq.ParquetFile, list[int]], pa.Table],
    rows: int,
    dictionaries: Collection[str] = (),
    subjects: I64 | None = None,
    firsts: I64 | None = None,
) -> Iterator[pa.Table]:
    """A file whose rows stand together by `subject_id`, whole subjects and about so many rows at a time.

    Args:
        read: gives row groups as a table with `subject_id`.
        dictionaries: columns that are read as dictionaries.
        subjects: ids, ascending, of those whose rows are wanted; all where not given.
        firsts: ids, ascending, that a table may begin at; every one where not given.

    Raises:
        TimeloomError: the file is missing, truncated or corrupt.
    """
    try:
        with pq.ParquetFile(
            path, page_checksum_verification=True, read_dictionary=list(dictionaries), pre_buffer=True
        ) as file:
            held: list[pa.Table] = []
            for groups in row_groups(file, rows, subjects):
                held.append(of_subjects(read(file, groups), subjects))
                if sum(table.num_rows for table in held) >= rows:
                    table = pa.concat_tables(held)
                    ids = table["subject_id"].to_numpy()
                    # Of the last subject more may come.
                    last = ids[-1] if firsts is None else firsts[np.searchsorted(firsts, ids[-1], side="right") - 1]
                    whole = int(np.searchsorted(ids, last))
                    held = [table.slice(whole)]
                    if whole:
                        yield table.slice(0, whole)
            rest = pa.concat_tables(held) if held else None
    except (OSError, pa.ArrowException) as error:
        raise TimeloomError(f"cannot read {path.parent.name}/{path.name}", remedy=REPAIR) from error
    if rest is not None and rest.num_rows:
        yield rest
