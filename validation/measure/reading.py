"""How validation reads a release tree: lazily, and with the project's own error where a file is damaged."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from warehouse.arrays import I64, Bools, numbers_of
from warehouse.errors import REPAIR, TimeloomError

# A query of polars over a few small files costs more than they do.
_FEW = 4


def unreadable(path: Path) -> TimeloomError:
    """The error for a damaged or missing file of a release, named by folder and file."""
    return TimeloomError(f"{path.parent.name}/{path.name} cannot be read", remedy=REPAIR)


def collect(lazy: pl.LazyFrame, path: Path) -> pl.DataFrame:
    """Runs a streaming query over one file.

    Raises:
        TimeloomError: the file is damaged, or lacks a column of its schema.
    """
    try:
        return lazy.collect(engine="streaming")
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise unreadable(path) from error


def scan(path: Path) -> pl.LazyFrame:
    """A lazy scan of one Parquet file; what is wrong with the file shows in `collect`."""
    return pl.scan_parquet(path)


def existing(paths: Iterable[Path]) -> list[Path]:
    """Those of `paths` that are files; a stage may leave out a bucket that holds nothing."""
    return [path for path in paths if path.is_file()]


def gather(paths: Iterable[Path], schema: pa.Schema, columns: list[str]) -> pl.DataFrame:
    """Some columns of several files, below one another; an empty frame of the schema's types where there is no file.

    Raises:
        TimeloomError: a file is damaged.
    """
    empty = pl.from_arrow(schema.empty_table().select(columns))
    assert isinstance(empty, pl.DataFrame)
    found = existing(paths)
    if not found:
        return empty
    if len(found) <= _FEW:
        return pl.concat([empty, *(_read(path, columns) for path in found)], how="vertical_relaxed")
    try:
        frames = [pl.scan_parquet(found, glob=False).select(columns).collect(engine="streaming")]
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError):
        # One of them is damaged, or of other types: which one shows when each is read alone.
        frames = [collect(scan(path).select(columns), path) for path in found]
    return pl.concat([empty, *frames], how="vertical_relaxed")


def _read(path: Path, columns: list[str]) -> pl.DataFrame:
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            frame = pl.from_arrow(file.read(columns=columns).select(columns))
    except (OSError, KeyError, pa.ArrowException) as error:
        raise unreadable(path) from error
    assert isinstance(frame, pl.DataFrame)
    return frame


@dataclass(frozen=True)
class Texts:
    """A column of texts: the distinct ones, and each row's place among them; the last place is that of null."""

    distinct: list[str | None]
    place: I64

    @classmethod
    def of(cls, column: pa.ChunkedArray) -> "Texts":
        array = column if pa.types.is_dictionary(column.type) else pc.dictionary_encode(column)
        chunks = array.unify_dictionaries().chunks
        distinct = chunks[0].dictionary.to_pylist() if chunks else []
        places = pa.chunked_array([chunk.indices.cast(pa.int64()) for chunk in chunks], pa.int64())
        return cls([*distinct, None], numbers_of(places, len(distinct)).astype(np.int64, copy=False))

    @property
    def size(self) -> int:
        return len(self.distinct)

    def which(self, texts: Sequence[str | None]) -> Bools:
        """Which rows (n,) are one of `texts`."""
        wanted = set(texts)
        return np.array([text in wanted for text in self.distinct], np.bool_)[self.place]

    def starting(self, name: str, separator: str = "//") -> Bools:
        """Which rows (n,) are `name`, or `name` and more behind a separator."""
        found = [text is not None and (text == name or text.startswith(f"{name}{separator}")) for text in self.distinct]
        return np.array(found, np.bool_)[self.place]

    def at(self, places: I64) -> pl.Series:
        """The texts at some places among the distinct ones."""
        return pl.Series(self.distinct, dtype=pl.String).gather(places)
