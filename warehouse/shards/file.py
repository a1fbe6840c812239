"""The shard format, version 2: one row is one pack of segments, fixed-width columns mapped without a copy.

A shard is an ordinary Parquet file: uncompressed, PLAIN, no dictionary, page CRC on. `input_ids`, `token_type` and
`time` are little-endian arrays of `context` elements in FIXED_LEN_BYTE_ARRAY columns, one data page a row group; the
rest are small lists. The key `timeloom` of the file's metadata holds a ShardHeader as JSON. docs/shards.md specifies it
for whoever writes another reader.
"""

import json
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from warehouse.arrays import NO_TIME
from warehouse.errors import REPAIR, TimeloomError
from warehouse.files import atomic_write
from warehouse.shards.packs import (
    FORMAT_VERSION,
    IMAGE_COLUMNS,
    MATRICES,
    MAX_SEGMENTS,
    SEGMENT_COLUMNS,
    Packs,
    ShardHeader,
    SmallColumns,
    no_packs,
    take,
)
from warehouse.shards.times import UNITS_US

__all__ = [
    "FORMAT_VERSION", "MAX_SEGMENTS", "NO_TIME", "MappedRows", "MappedShard", "Packs", "ShardHeader", "ShardWriter",
    "SmallColumns", "map_shard", "open_shard", "open_writer", "read_header", "read_shard", "row_group_rows",
    "write_shard",
]  # fmt: skip

ROW_GROUP_ROWS = 4096
ROW_GROUP_TOKENS = 1 << 23
METADATA_KEY = b"timeloom"
# What damaged bytes raise in a Parquet footer, in a header, and in columns that are not what they were.
_DAMAGE = (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, pa.ArrowException)


@dataclass(frozen=True)
class MappedRows:
    """A row group of a shard, its matrices mapped from the file: pages of the file, read as they are touched.

    Attributes:
        first: how many packs of the shard come before.
        rows: its packs, P.
        input_ids, token_type, time: (P, L), see Packs.
    """

    first: int
    rows: int
    input_ids: npt.NDArray[Any]
    token_type: npt.NDArray[np.uint8]
    time: npt.NDArray[Any]


def _fixed(values: npt.NDArray[Any], dtype: np.dtype[Any]) -> pa.Array:
    rows, context = values.shape
    little = np.ascontiguousarray(values, dtype=dtype)
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(context * dtype.itemsize), rows, [None, pa.py_buffer(little)])


def _lists(counts: npt.NDArray[np.int32], values: pa.Array) -> pa.Array:
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values)


SMALL_COLUMNS = ("pack_id", "length", *SEGMENT_COLUMNS, *IMAGE_COLUMNS)


def row_group_rows(context: int) -> int:
    """Packs in a row group: at most 4,096, and at most 8 M tokens (but one pack at least)."""
    return max(1, min(ROW_GROUP_ROWS, ROW_GROUP_TOKENS // context))


def _table(packs: Packs, header: ShardHeader) -> pa.Table:
    dtypes = header.dtypes()
    if packs.time.dtype != dtypes["time"] or packs.input_ids.dtype.itemsize > dtypes["input_ids"].itemsize:
        raise ValueError("the packs have other types than the header says")
    columns = {
        "pack_id": pa.array(packs.pack_id),
        "length": pa.array(packs.length),
        **{name: _fixed(getattr(packs, name), dtype) for name, dtype in dtypes.items()},
        **{name: _lists(packs.segments_per_pack, pa.array(getattr(packs, name))) for name in SEGMENT_COLUMNS},
        **{name: _lists(packs.images_per_pack, pa.array(getattr(packs, name))) for name in IMAGE_COLUMNS},
    }
    schema = pa.schema(
        [pa.field(name, column.type, nullable=False) for name, column in columns.items()],
        metadata={METADATA_KEY: json.dumps(asdict(header), sort_keys=True)},
    )
    return pa.Table.from_arrays(list(columns.values()), schema=schema)


class ShardWriter:
    """Takes a shard's packs a row group at a time; made by `open_writer`."""

    def __init__(self, path: Path, header: ShardHeader) -> None:
        self.path, self.header = path, header
        self._writer: pq.ParquetWriter | None = None

    def write(self, packs: Packs) -> None:
        """Appends one row group: `row_group_rows(context)` packs, fewer in the last one."""
        table = _table(packs, self.header)
        self._opened(table.schema).write_table(table, row_group_size=len(packs))

    def close(self) -> None:
        """Writes the footer."""
        self._opened(_table(no_packs(self.header), self.header).schema).close()

    def _opened(self, schema: pa.Schema) -> pq.ParquetWriter:
        if self._writer is None:
            self._writer = pq.ParquetWriter(
                self.path,
                schema,
                compression="none",
                use_dictionary=False,
                write_statistics=False,
                write_page_checksum=True,
                data_page_size=1 << 30,
            )
        return self._writer


@contextmanager
def open_writer(path: Path, header: ShardHeader) -> Iterator[ShardWriter]:
    """A shard that takes its name when the block ends without an exception, and leaves nothing otherwise."""
    with atomic_write(path) as temporary:
        writer = ShardWriter(temporary, header)
        yield writer
        writer.close()


def write_shard(path: Path, packs: Packs, header: ShardHeader) -> None:
    """Writes packs as one shard, atomically."""
    rows = row_group_rows(header.context)
    with open_writer(path, header) as writer:
        for first in range(0, len(packs), rows):
            writer.write(take(packs, slice(first, first + rows)))


def read_header(path: Path) -> ShardHeader:
    """The header of a shard.

    Raises:
        TimeloomError: not a shard, unreadable, or of another format.
    """
    try:
        return _header(path, (pq.read_schema(path).metadata or {})[METADATA_KEY])
    except _DAMAGE as error:
        raise _unreadable(path) from error


def _header(path: Path, raw: bytes) -> ShardHeader:
    try:
        given = json.loads(raw)
        version = int(given["format_version"])
        if version > FORMAT_VERSION:
            raise TimeloomError(f"shard {path.name} has format {version}", remedy="upgrade timeloom")
        if version < FORMAT_VERSION:
            raise TimeloomError(
                f"shard {path.name} has format {version}, this timeloom reads {FORMAT_VERSION}",
                remedy="run `timeloom run`: it writes shards anew from the timelines",
            )
        header = ShardHeader(**given)
        known = header.token_dtype in ("uint16", "uint32") and header.time_dtype in ("int32", "int64")
        if not known or header.time_unit_us not in UNITS_US or int(header.context) < 1:
            raise _unreadable(path)
        return header
    except _DAMAGE as error:
        raise _unreadable(path) from error


def _unreadable(path: Path) -> TimeloomError:
    return TimeloomError(f"shard {path.name} is unreadable", remedy=REPAIR)


def _corrupt(path: Path) -> TimeloomError:
    return TimeloomError(f"shard {path.name} is corrupt", remedy=REPAIR)


def _array(table: pa.Table, name: str) -> pa.Array:
    column = table.column(name).combine_chunks()
    return column.chunk(0) if isinstance(column, pa.ChunkedArray) else column


def _numbers(array: pa.Array, dtype: Any) -> npt.NDArray[Any]:
    # Array.to_numpy imports pandas, and value_lengths all of pyarrow.compute: longer than a first batch may take.
    if not len(array):
        return np.empty(0, dtype)
    return np.frombuffer(array.buffers()[1], dtype, len(array), array.offset * np.dtype(dtype).itemsize)


_DTYPES = {pa.int32(): np.int32, pa.int64(): np.int64, pa.uint8(): np.uint8}


def _lengths(table: pa.Table, name: str) -> npt.NDArray[np.int32]:
    lists = _array(table, name)
    return np.diff(_numbers(lists.offsets, np.int32)).astype(np.int32) if len(lists) else np.empty(0, np.int32)


def _small(table: pa.Table) -> SmallColumns:
    flat = {name: _array(table, name).flatten() for name in (*SEGMENT_COLUMNS, *IMAGE_COLUMNS)}
    return SmallColumns(
        pack_id=_numbers(_array(table, "pack_id"), np.int64),
        length=_numbers(_array(table, "length"), np.int32),
        segments_per_pack=_lengths(table, "segment_length"),
        images_per_pack=_lengths(table, "image_position"),
        image_key=flat.pop("image_key"),
        **{name: _numbers(values, _DTYPES[values.type]) for name, values in flat.items()},
    )


def _matrix(table: pa.Table, name: str, dtype: np.dtype[Any], context: int) -> npt.NDArray[Any]:
    array = _array(table, name)
    if not len(array):
        return np.empty((0, context), dtype)
    flat = np.frombuffer(array.buffers()[1], dtype=dtype)
    start = array.offset * context
    return flat[start : start + len(array) * context].reshape(len(array), context)


def read_shard(path: Path) -> tuple[ShardHeader, Packs]:
    """Reads a whole shard into memory, page checksums verified.

    Raises:
        TimeloomError: the shard is missing, truncated, corrupt or of another format.
    """
    header = read_header(path)
    try:
        table = pq.read_table(path, memory_map=True, page_checksum_verification=True)
        matrices = {name: _matrix(table, name, dtype, header.context) for name, dtype in header.dtypes().items()}
        return header, Packs(**vars(_small(table)), **matrices)
    except _DAMAGE as error:
        raise _corrupt(path) from error


_PAGE_HEADER_BYTES = 256


class MappedShard:
    """A shard opened without reading it; made by `open_shard`. It holds one map of the file, and so one descriptor.

    Mapped pages are not checked against their checksums: compare the file's hash before the first use.

    Attributes:
        blocks: a Block for each row group.
    """

    def __init__(self, path: Path, header: ShardHeader, metadata: pq.FileMetaData) -> None:
        self.path, self.header = path, header
        self._metadata = metadata
        with path.open("rb") as file:
            whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        place = {metadata.schema.column(number).path: number for number in range(len(metadata.schema))}
        self.blocks: list[MappedRows] = []
        first = 0
        for group in range(metadata.num_row_groups):
            rows = metadata.row_group(group)
            matrices = {
                name: self._mapped(whole, rows.column(place[name]), dtype, rows.num_rows)
                for name, dtype in header.dtypes().items()
            }
            self.blocks.append(MappedRows(first, rows.num_rows, **matrices))
            first += rows.num_rows

    def __len__(self) -> int:
        """Packs of the shard."""
        return sum(block.rows for block in self.blocks)

    def _mapped(self, whole: mmap.mmap, column: Any, dtype: np.dtype[Any], rows: int) -> npt.NDArray[Any]:
        # A required, PLAIN, uncompressed column in one page is a page header, then nothing but the values.
        payload = rows * self.header.context * dtype.itemsize
        page = column.total_compressed_size - payload
        if column.has_dictionary_page or column.compression != "UNCOMPRESSED" or not 0 < page <= _PAGE_HEADER_BYTES:
            raise TimeloomError(
                f"shard {self.path.name} is not laid out for mapping", remedy="rebuild it with `timeloom run`"
            )
        flat = np.frombuffer(whole, dtype, rows * self.header.context, column.data_page_offset + page)
        return flat.reshape(rows, self.header.context)

    def small(self, block: int) -> SmallColumns:
        """The small columns of one block, read from the file with their page checksums verified.

        Raises:
            TimeloomError: a page is corrupt, or the file is gone.
        """
        try:
            with pq.ParquetFile(self.path, metadata=self._metadata, page_checksum_verification=True) as file:
                return _small(file.read_row_group(block, list(SMALL_COLUMNS)))
        except _DAMAGE as error:
            raise _corrupt(self.path) from error

    def packs(self, block: int) -> Packs:
        """One block whole: its small columns read, its matrices mapped."""
        mapped = self.blocks[block]
        return Packs(**vars(self.small(block)), **{name: getattr(mapped, name) for name in MATRICES})


def open_shard(path: Path) -> MappedShard:
    """Opens a shard without reading more than its footer.

    Raises:
        TimeloomError: the shard is missing, truncated, of another format, or was rewritten with another layout.
    """
    try:
        metadata = pq.read_metadata(path)
        header = _header(path, (metadata.metadata or {})[METADATA_KEY])
    except _DAMAGE as error:
        raise _unreadable(path) from error
    try:
        return MappedShard(path, header, metadata)
    except _DAMAGE as error:
        raise _corrupt(path) from error


def map_shard(path: Path) -> tuple[ShardHeader, list[Packs]]:
    """A shard's header, and one Packs per row group with its matrices mapped; raises what `open_shard` does."""
    shard = open_shard(path)
    return shard.header, [shard.packs(block) for block in range(len(shard.blocks))]
