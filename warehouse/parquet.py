"""Parquet files of our schemas: written in one way everywhere, checked on the way, read as frames or tables."""

from base64 import b64encode
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from warehouse.errors import REPAIR, TimeloomError
from warehouse.files import atomic_write

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
    rows, writer = 0, None
    with atomic_write(path) as temporary:
        for frame in frames:
            table = conform(frame, schema, what)
            writer = writer or _writer(temporary, table.schema, encodings, fast)
            if table.num_rows:
                rows += table.num_rows
                writer.write_table(table.combine_chunks(), row_group_size=table.num_rows)
        writer = writer or _writer(temporary, schema, encodings, fast)
        writer.add_key_value_metadata({_ARROW_SCHEMA: b64encode(schema.serialize().to_pybytes())})
        writer.close()
    return rows


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


def read_columns(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Some columns of one Parquet file of a release, or all, page checksums verified.

    Raises:
        TimeloomError: the file is missing, truncated or corrupt.
    """
    try:
        return pq.read_table(path, columns=columns, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise TimeloomError(
            f"cannot read {path.parent.name}/{path.name}",
            remedy=REPAIR,
        ) from error
