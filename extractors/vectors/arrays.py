"""Vectors in .npy files. Pickled objects are refused, never read."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from extractors.items import VerdictError
from extractors.vectors.files import Array, Held, sliced
from extractors.vectors.settings import ImportedConfig
from warehouse.errors import TimeloomError

ITEM, ROW = "item", "row"


class NpyFile:
    """One .npy file, mapped. A member is the runs of rows that an item has; none where the file is one item."""

    def __init__(self, path: Path, imported: ImportedConfig) -> None:
        self._imported = imported
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            if read(file)[2].hasobject:
                raise VerdictError("failed_pickled")
        self._array: Array = np.load(path, mmap_mode="r", allow_pickle=False)

    def __enter__(self) -> "NpyFile":
        return self

    def __exit__(self, *_: object) -> None:
        del self._array

    def held(self) -> Iterator[Held]:
        """The item of the file, or one for each that the index names."""
        shape, dtype = self._array.shape, str(self._array.dtype.newbyteorder("="))
        if self._imported.index is None:
            yield Held("", "", shape, dtype)
            return
        for key, runs in runs_of(named_rows(self._imported.index, "modalities.*.encoder.imported.index")):
            rows = sum(stop - start for start, stop in runs)
            fault = "failed_unreadable" if runs[-1][1] > len(self._array) else ""
            yield of_rows(key, runs, rows, shape[1:], dtype, self._imported, fault)

    def rows(self, member: str, start: int, stop: int, leading: int) -> Array:
        if not member:
            return sliced(self._array, start, stop, leading)
        parts = [self._array[first:last] for first, last in within(json.loads(member), start, stop)]
        found = np.concatenate(parts)
        return found.reshape(-1, found.shape[-1])

    def coords(self, member: str) -> Array:
        raise VerdictError("failed_coords")


def of_rows(
    key: str,
    runs: list[tuple[int, int]],
    rows: int,
    rest: tuple[int, ...],
    dtype: str,
    imported: ImportedConfig,
    fault: str = "",
) -> Held:
    """What a file with a vector a row holds of one item.

    Args:
        rows: of the item; more than one of an item that is to have one vector are two vectors of one name.
        rest: the shape of a row.
    """
    if imported.shape == "item" and rows > 1:
        fault = "failed_duplicate_vectors"
    shape = (rows, *rest) if imported.shape == "units" else rest
    return Held(key, json.dumps(runs), shape, dtype, fault=fault)


def runs_of(keys: pl.DataFrame) -> Iterator[tuple[str, list[tuple[int, int]]]]:
    """Each item's runs of rows, start and stop, items in the order of their first row.

    Args:
        keys: columns item (text) and row, one line a row of vectors.
    """
    ordered = keys.sort(ROW).with_columns(
        ((pl.col(ITEM) != pl.col(ITEM).shift()) | (pl.col(ROW) != pl.col(ROW).shift() + 1))
        .fill_null(True)
        .cum_sum()
        .alias("run")
    )
    runs = ordered.group_by(ITEM, "run", maintain_order=True).agg(
        pl.col(ROW).min().alias("start"), (pl.col(ROW).max() + 1).alias("stop")
    )
    items = runs.group_by(ITEM, maintain_order=True).agg("start", "stop")
    for key, starts, stops in items.iter_rows():
        yield key, list(zip(starts, stops, strict=True))


def within(runs: list[tuple[int, int]], start: int, stop: int) -> Iterator[tuple[int, int]]:
    """The rows of a file that are an item's rows `start` to `stop`."""
    before = 0
    for first, last in runs:
        low, high = max(start - before, 0), min(stop - before, last - first)
        if low < high:
            yield first + low, first + high
        before += last - first


def named_rows(path: Path, key: str) -> pl.DataFrame:
    """Columns item and row of a table that names the items of an array's rows.

    Raises:
        TimeloomError: no table, no text column `item`, or a row that is none or stands twice.
    """
    try:
        parquet = path.name.lower().endswith(".parquet")
        table = pl.read_parquet(path) if parquet else pl.read_csv(path, infer_schema=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise TimeloomError(f"{key} cannot be read", remedy="write a CSV in UTF-8, or Parquet") from error
    if ITEM not in table.columns or table[ITEM].dtype != pl.String or table[ITEM].null_count():
        raise TimeloomError(
            f"{key} has no column `item` of texts without gaps", remedy="name the items as their files are named"
        )
    if ROW not in table.columns:
        return table.select(ITEM).with_row_index(ROW).with_columns(pl.col(ROW).cast(pl.Int64))
    rows = table[ROW].cast(pl.Int64, strict=False)
    if rows.null_count() or rows.n_unique() < len(rows) or (len(rows) and rows.min() < 0):  # type: ignore[operator]
        raise TimeloomError(f"{key} has a `row` that is no number or stands twice", remedy="count rows from 0")
    return table.select(ITEM, rows.alias(ROW))
