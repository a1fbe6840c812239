"""Arrow schemas of everything a release holds, and the writer that keeps them."""

from base64 import b64encode
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from warehouse.errors import TimeloomError
from warehouse.files import atomic_write

TIME = pa.timestamp("us")
# Rows that the writer takes up at once: its own thousand take a thirtieth longer.
_BATCH_ROWS = 1 << 16
# Where pyarrow looks for the types that a file's columns are read as.
_ARROW_SCHEMA = b"ARROW:schema"
SPLITS = ("train", "tuning", "held_out")

# MEDS 0.4.1 columns first (subject_id, time, code, numeric_value, text_value), then ours. `kind` is what the total
# order ranks by: visit_start, clinical, image, death, visit_end. `availability` says how available_time is known:
# recorded, time (taken to be the time), estimated. `value_flag` marks a number that is not the whole value: <, <=, >,
# >=, range, unit. `conflict` marks a contradiction that is left as it is; docs/quality.md lists them.
EVENTS = pa.schema(
    [
        pa.field("subject_id", pa.int64(), nullable=False),
        pa.field("time", TIME),
        pa.field("code", pa.string(), nullable=False),
        pa.field("numeric_value", pa.float32()),
        pa.field("text_value", pa.large_string()),
        pa.field("available_time", TIME),
        pa.field("time_precision", pa.string()),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("unit", pa.string()),
        pa.field("source", pa.string(), nullable=False),
        pa.field("visit_id", pa.int64()),
        pa.field("item_key", pa.string()),
        pa.field("availability", pa.string()),
        pa.field("value_flag", pa.string()),
        pa.field("conflict", pa.string()),
    ]
)

# One row per image found. `verdict` is ok, refused_* (not the modality) or failed_* (should have been good).
ITEMS = pa.schema(
    [
        pa.field("subject_id", pa.int64()),
        pa.field("item_key", pa.string(), nullable=False),
        pa.field("modality", pa.string(), nullable=False),
        pa.field("time", TIME),
        pa.field("available_time", TIME),
        pa.field("time_source", pa.string()),
        pa.field("time_precision", pa.string()),
        pa.field("verdict", pa.string(), nullable=False),
        pa.field("units_expected", pa.int32()),
        pa.field("units_encoded", pa.int32(), nullable=False),
        pa.field("units_failed", pa.int32(), nullable=False),
        pa.field("store", pa.string()),
        pa.field("encoder", pa.string()),
        pa.field("dim", pa.int32()),
        pa.field("geometry", pa.string()),
        pa.field("artificial_link", pa.bool_(), nullable=False),
    ]
)

# What splits are stratified by. `mean_interval_days` is over consecutive distinct times; null below two of them.
SUBJECTS = pa.schema(
    [
        pa.field("subject_id", pa.int64(), nullable=False),
        pa.field("events", pa.int64(), nullable=False),
        pa.field("static_events", pa.int64(), nullable=False),
        pa.field("ct", pa.int64(), nullable=False),
        pa.field("wsi", pa.int64(), nullable=False),
        pa.field("mean_interval_days", pa.float64()),
    ]
)

# Append-only: a row, once in a release, stands in every later one with the same split.
SPLIT_LEDGER = pa.schema(
    [
        pa.field("subject_id", pa.int64(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("stratum", pa.string(), nullable=False),
        pa.field("ordinal", pa.int64(), nullable=False),
    ]
)

# The release's subjects under one scheme; `order` is the fixed order that subsets are prefixes of.
SCHEME_SUBJECTS = pa.schema(
    [
        pa.field("subject_id", pa.int64(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("order", pa.float64(), nullable=False),
    ]
)

# The release's subjects that have no split, and why.
SPLIT_QUARANTINE = pa.schema(
    [
        pa.field("subject_id", pa.int64(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
    ]
)

VOCABULARY = pa.schema(
    [
        pa.field("token_id", pa.uint32(), nullable=False),
        pa.field("token", pa.string(), nullable=False),
        pa.field("type", pa.string(), nullable=False),
        pa.field("train_count", pa.int64(), nullable=False),
    ]
)

TOKEN_COUNTS = pa.schema(
    [
        pa.field("split", pa.string(), nullable=False),
        pa.field("token", pa.string(), nullable=False),
        pa.field("type", pa.string(), nullable=False),
        pa.field("count", pa.int64(), nullable=False),
    ]
)

# One row per token, a subject's tokens together and in order. `type` is warehouse.tokens.TokenType.
TIMELINES = pa.schema(
    [
        pa.field("subject_id", pa.int64(), nullable=False),
        pa.field("token_id", pa.uint32(), nullable=False),
        pa.field("type", pa.uint8(), nullable=False),
        pa.field("time", TIME),
        pa.field("item_key", pa.string()),
    ]
)

# Train's subjects in the fixed order of their scheme, and the tier of a plan's token budgets that each is in: budget k
# is tiers 0 to k; null behind the last budget. `loss_tokens` are targets of the plan's loss.
SUBSETS = pa.schema(
    [
        pa.field("subject_id", pa.int64(), nullable=False),
        pa.field("order", pa.float64(), nullable=False),
        pa.field("tier", pa.int32()),
        pa.field("tokens", pa.int64(), nullable=False),
        pa.field("loss_tokens", pa.int64(), nullable=False),
    ]
)

# How long after its time a code's fact usually becomes available: the 95th percentile over the rows that say so when
# the code first had enough of them. Append-only. The code is empty for a whole table.
LAGS = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("code", pa.string(), nullable=False),
        pa.field("lag_us", pa.int64(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
    ]
)

# Raw rows that made nothing: the number of the record in its file, counted from 1 without the header, and why.
QUARANTINE = pa.schema(
    [
        pa.field("table", pa.string(), nullable=False),
        pa.field("part", pa.int32(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
    ]
)

# Per table and outcome: rows_in = events + static + reference + every quarantine reason.
LEDGER = pa.schema(
    [
        pa.field("table", pa.string(), nullable=False),
        pa.field("outcome", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("events", pa.int64(), nullable=False),
    ]
)


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
            remedy="run `timeloom verify`, delete the damaged file and run again",
        ) from error
