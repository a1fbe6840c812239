"""Tables that have types, read as texts: Parquet files and DuckDB tables."""

from collections.abc import Collection, Iterator
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from extractors.tables.block import BATCH_ROWS, TableBlock, hash_of_columns
from extractors.tables.content_blocks import Known, RecordBlocks
from extractors.tables.rows import TextColumn

# JSON without a value: names, brackets and nulls.
_NULLS_ALONE = r'^(?:[\[\]{},:\s]|null|"(?:[^"\\]|\\.)*":)*$'


class ParquetReader:
    """A Parquet file; every column as text."""

    def __init__(self, path: Path, null_values: list[str], rows: int = BATCH_ROWS) -> None:
        self._path, self._null_values, self._rows = path, null_values, rows
        schema = pq.read_schema(path)
        self.columns = list(schema.names)
        self.fractions = [
            field.name for field in schema if pa.types.is_floating(field.type) or pa.types.is_decimal(field.type)
        ]
        self.malformed: list[int] = []
        self.repeated: list[int] = []
        self.noticed = ""

    def follow(self, seed: int, known: Known | None, *, known_alone: bool) -> RecordBlocks | None:
        return None

    def blocks(self, columns: list[str], seed: int | None, plain: Collection[str] | None) -> Iterator[TableBlock]:
        read = columns if seed is None else self.columns
        with pq.ParquetFile(self._path) as file:
            batches = (pl.from_arrow(batch) for batch in file.iter_batches(columns=read, batch_size=self._rows))
            yield from _numbered(batches, self._null_values, columns, seed)


class DatabaseReader:
    """A table of a DuckDB file."""

    def __init__(self, path: Path, table: str, null_values: list[str], rows: int = BATCH_ROWS) -> None:
        from extractors.tables.database import database_columns, database_fractions

        self._path, self._table, self._null_values, self._rows = path, table, null_values, rows
        self.columns = database_columns(path, table)
        self.fractions = database_fractions(path, table)
        self.malformed: list[int] = []
        self.repeated: list[int] = []
        self.noticed = ""

    def follow(self, seed: int, known: Known | None, *, known_alone: bool) -> RecordBlocks | None:
        return None

    def blocks(self, columns: list[str], seed: int | None, plain: Collection[str] | None) -> Iterator[TableBlock]:
        from extractors.tables.database import database_frames

        read = columns if seed is None else self.columns
        frames = database_frames(self._path, self._table, read, self._rows)
        yield from _numbered(frames, self._null_values, columns, seed)


def _numbered(
    frames: Iterator[pl.DataFrame | pl.Series], null_values: list[str], columns: list[str], seed: int | None
) -> Iterator[TableBlock]:
    first = 1
    for frame in frames:
        assert isinstance(frame, pl.DataFrame)
        text = frame.with_columns(_as_text(frame[name]) for name in frame.columns)
        text = text.with_columns(pl.when(~pl.all().is_in(null_values)).then(pl.all()))
        found = {name: TextColumn(text[name]) for name in columns}
        yield TableBlock(found, first, hashes=None if seed is None else hash_of_columns(text, seed))
        first += len(frame)


def _as_text(values: pl.Series) -> pl.Series:
    """Typed values as an export would write them."""
    dtype = values.dtype
    if dtype.is_float():
        # An id that some tool made a float is still that id; what is no number is nothing.
        whole = (values == values.round()) & (values.abs() < 2**53)
        return values.cast(pl.Int64, strict=False).cast(pl.String).zip_with(
            whole.fill_null(False), values.fill_nan(None).cast(pl.String)
        )  # fmt: skip
    if isinstance(dtype, pl.Datetime):
        zoned = dtype.time_zone is not None
        local = values.dt.convert_time_zone("UTC").dt.replace_time_zone(None) if zoned else values
        written = local.dt.cast_time_unit("us").dt.to_string("%Y-%m-%d %H:%M:%S%.f")
        return written + "+00:00" if zoned else written
    if dtype == pl.Binary:
        return values.bin.encode("hex")
    if dtype.is_nested():
        text = values.to_frame().select(pl.struct(pl.all()).struct.json_encode()).to_series().alias(values.name)
        # What holds nulls alone says nothing: it is no text `null`.
        return text.set(values.is_null() | text.str.contains(_NULLS_ALONE), None)
    return values.cast(pl.String)
