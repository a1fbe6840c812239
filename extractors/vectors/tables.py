"""Vectors in Parquet: a column of lists, a row a vector. Of many items a column of texts names them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from extractors.items import VerdictError
from extractors.vectors.arrays import ITEM, ROW, of_rows, runs_of, within
from extractors.vectors.files import Array, Held
from extractors.vectors.settings import ImportedConfig
from warehouse.errors import TimeloomError

_BATCH_ROWS = 1024
_DTYPES = {pa.float16(): "float16", pa.float32(): "float32", pa.float64(): "float64"}


class TableFile:
    """One Parquet file, read batch by batch. Rows of one item that lie together are read once."""

    def __init__(self, path: Path, imported: ImportedConfig) -> None:
        self._imported = imported
        self._file = pq.ParquetFile(path)
        self._cursors = {name: _Cursor(self._file, name) for name in (imported.features, imported.coords) if name}

    def __enter__(self) -> "TableFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def held(self) -> Iterator[Held]:
        """The item of the file, or one for each that the column of items names."""
        names = self._file.schema_arrow.names
        field = self._file.schema_arrow.field(self._imported.features)
        if not _is_list(field.type):
            raise TypeError("a vector is a list")
        dtype = _DTYPES.get(field.type.value_type, "other")
        rows = self._file.metadata.num_rows
        width = self._width(field.type)
        has_coords = self._imported.coords in names
        if not self._imported.many:
            fault = "failed_vector_shape" if self._imported.shape == "item" and rows > 1 else ""
            shape = (rows, width) if self._imported.shape == "units" or not rows else (width,)
            member = json.dumps([(0, rows)])
            coords = self._coords_shape(rows) if has_coords and rows else None
            yield Held("", member, shape, dtype, coords, fault=fault)
            return
        keys = pl.Series(ITEM, self._file.read([self._imported.item]).column(0))
        if isinstance(keys.dtype, pl.Categorical | pl.Enum):
            keys = keys.cast(pl.String)
        if keys.dtype != pl.String or keys.null_count():
            raise not_texts(self._imported)
        for key, runs in runs_of(pl.DataFrame({ITEM: keys, ROW: pl.int_range(len(keys), eager=True)})):
            number = sum(stop - start for start, stop in runs)
            held = of_rows(key, runs, number, (width,), dtype, self._imported)
            coords = self._coords_shape(number) if has_coords else None
            yield Held(held.key, held.member, held.shape, held.dtype, coords, fault=held.fault)

    def _width(self, kind: Any) -> int:
        """The length of every vector where the type says it; else what was declared, which `rows` may belie."""
        return int(kind.list_size) if pa.types.is_fixed_size_list(kind) else self._imported.width

    def _coords_shape(self, rows: int) -> tuple[int, int]:
        try:
            return rows, len(self._cursors[str(self._imported.coords)].rows(0, 1)[0])
        except VerdictError:  # of the file's first row alone: its item finds that out when it is read
            return rows, 1

    def rows(self, member: str, start: int, stop: int, leading: int) -> Array:
        return self._read(self._imported.features, json.loads(member), start, stop)

    def coords(self, member: str) -> Array:
        runs = json.loads(member)
        return self._read(str(self._imported.coords), runs, 0, sum(last - first for first, last in runs))

    def _read(self, column: str, runs: list[tuple[int, int]], start: int, stop: int) -> Array:
        cursor = self._cursors[column]
        return _joined([cursor.rows(first, last) for first, last in within(runs, start, stop)])


class _Cursor:
    """Rows of one column, read forward in batches; what lies behind is read again from its row group."""

    def __init__(self, file: pq.ParquetFile, column: str) -> None:
        self._file, self._column = file, column
        counts = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self._batches: Iterator[Any] = iter(())
        self._first = self._last = 0  # rows of `_held`
        self._held: Any = None

    def rows(self, start: int, stop: int) -> Array:
        """(stop - start, k) values of the rows' lists."""
        parts = []
        while start < stop:
            if not self._first <= start < self._last:
                self._seek(start)
            end = min(stop, self._last)
            parts.append(_values(self._held.slice(start - self._first, end - start)))
            start = end
        return _joined(parts)

    def _seek(self, row: int) -> None:
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        if not self._held_before(row, group):
            self._batches = self._file.iter_batches(
                _BATCH_ROWS, row_groups=range(group, len(self._starts) - 1), columns=[self._column]
            )
            self._first = self._last = int(self._starts[group])
        while self._last <= row:
            self._held = next(self._batches).column(0)
            self._first, self._last = self._last, self._last + len(self._held)

    def _held_before(self, row: int, group: int) -> bool:
        """Whether the row is read soon if reading goes on."""
        return self._held is not None and self._starts[group] <= self._last <= row


def _joined(parts: list[Array]) -> Array:
    """Rows one below the other; failed_vector_width where they are not of one length."""
    if len({part.shape[1] for part in parts}) > 1:
        raise VerdictError("failed_vector_width")
    return np.concatenate(parts)


def _values(lists: Any) -> Array:
    """(n, k) of lists of one length.

    Raises:
        VerdictError: failed_unreadable, failed_not_finite, failed_vector_width.
    """
    if lists.null_count:
        raise VerdictError("failed_unreadable")
    flat = lists.flatten()
    if flat.null_count:
        raise VerdictError("failed_not_finite")
    if not pa.types.is_fixed_size_list(lists.type):
        lengths = lists.value_lengths().to_numpy(zero_copy_only=False)
        if (lengths != lengths[0]).any():
            raise VerdictError("failed_vector_width")
    return np.asarray(flat.to_numpy(zero_copy_only=False)).reshape(len(lists), -1)


def _is_list(kind: Any) -> bool:
    return bool(pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind))


def not_texts(imported: ImportedConfig) -> TimeloomError:
    """The error for ids that are numbers: those have lost their leading zeros."""
    return TimeloomError(
        f"the Parquet column {imported.item} does not name every row's item by a text",
        remedy="write the items' names as texts; of numbers leading zeros are lost",
    )
