"""The shard format: one row is one pack of at most 64 segments, fixed-width columns mapped without a copy.

A shard is an ordinary Parquet file: uncompressed, PLAIN, no dictionary, page CRC on. `input_ids`, `token_type` and
`time_us` are little-endian arrays of `context` elements in FIXED_LEN_BYTE_ARRAY columns; the rest are small lists.
The key `timeloom` of the file's metadata holds a ShardHeader as JSON.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from warehouse.errors import TimeloomError
from warehouse.files import atomic_write

FORMAT_VERSION = 1
ROW_GROUP_ROWS = 4096
MAX_SEGMENTS = 64
NO_TIME = np.iinfo(np.int64).min
METADATA_KEY = b"timeloom"


@dataclass(frozen=True)
class ShardHeader:
    """What a reader must know before it reads a row.

    Attributes:
        context: tokens a pack, padding included.
        token_dtype: `uint16`, or `uint32` for vocabularies above 65,535.
        vocabulary_size: the ids that the shard may hold are below it; the vocabulary may have grown beyond.
        vocabulary_hash: warehouse.vocabulary.vocabulary_hash of those ids.
        stores: modality to the name of its embedding store.
    """

    profile: str
    split: str
    group: int
    context: int
    token_dtype: str
    vocabulary_hash: str
    vocabulary_size: int
    stores: dict[str, str] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True)
class Packs:
    """Packs in columns; P packs of L tokens, S segments and I images in all.

    Attributes:
        pack_id: (P,) int64, unique in a split: group << 32 | index.
        length: (P,) int32, tokens that are not padding.
        input_ids: (P, L) uint16 or uint32.
        token_type: (P, L) uint8, warehouse.tokens.TokenType.
        time_us: (P, L) int64, microseconds since 1970; NO_TIME for tokens without a time.
        segments_per_pack, segment_length, segment_subject, segment_offset: (P,), (S,), (S,), (S,);
            the offset counts the subject's tokens before the segment.
        images_per_pack, image_position, image_key, image_modality: (P,), (I,), (I,), (I,); position in the pack,
            modality as its index in warehouse.tokens.MODALITIES.
    """

    pack_id: npt.NDArray[np.int64]
    length: npt.NDArray[np.int32]
    input_ids: npt.NDArray[Any]
    token_type: npt.NDArray[np.uint8]
    time_us: npt.NDArray[np.int64]
    segments_per_pack: npt.NDArray[np.int32]
    segment_length: npt.NDArray[np.int32]
    segment_subject: npt.NDArray[np.int64]
    segment_offset: npt.NDArray[np.int32]
    images_per_pack: npt.NDArray[np.int32]
    image_position: npt.NDArray[np.int32]
    image_key: list[str]
    image_modality: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.pack_id)


def _fixed(values: npt.NDArray[Any]) -> pa.Array:
    rows, context = values.shape
    little = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
    kind = pa.binary(context * values.dtype.itemsize)
    return pa.FixedSizeBinaryArray.from_buffers(kind, rows, [None, pa.py_buffer(little)])


def _lists(counts: npt.NDArray[np.int32], values: pa.Array) -> pa.Array:
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values)


def write_shard(path: Path, packs: Packs, header: ShardHeader) -> None:
    """Writes packs as one shard, atomically."""
    columns = {
        "pack_id": pa.array(packs.pack_id),
        "length": pa.array(packs.length),
        "input_ids": _fixed(packs.input_ids),
        "token_type": _fixed(packs.token_type),
        "time_us": _fixed(packs.time_us),
        "segment_length": _lists(packs.segments_per_pack, pa.array(packs.segment_length)),
        "segment_subject": _lists(packs.segments_per_pack, pa.array(packs.segment_subject)),
        "segment_offset": _lists(packs.segments_per_pack, pa.array(packs.segment_offset)),
        "image_position": _lists(packs.images_per_pack, pa.array(packs.image_position)),
        "image_key": _lists(packs.images_per_pack, pa.array(packs.image_key, pa.string())),
        "image_modality": _lists(packs.images_per_pack, pa.array(packs.image_modality)),
    }
    schema = pa.schema(
        [pa.field(name, column.type, nullable=False) for name, column in columns.items()],
        metadata={METADATA_KEY: json.dumps(asdict(header), sort_keys=True)},
    )
    table = pa.Table.from_arrays(list(columns.values()), schema=schema)
    with atomic_write(path) as temporary:
        pq.write_table(
            table,
            temporary,
            compression="none",
            use_dictionary=False,
            write_statistics=False,
            write_page_checksum=True,
            row_group_size=ROW_GROUP_ROWS,
            data_page_size=1 << 30,
        )


def read_header(path: Path) -> ShardHeader:
    """The header of a shard.

    Raises:
        TimeloomError: not a shard, unreadable, or of a newer format.
    """
    try:
        raw = (pq.read_schema(path).metadata or {})[METADATA_KEY]
        fields = json.loads(raw)
        version = int(fields["format_version"])
        if version > FORMAT_VERSION:
            raise TimeloomError(f"shard {path.name} has format {version}", remedy="upgrade timeloom")
        return ShardHeader(**fields)
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise TimeloomError(f"shard {path.name} is unreadable", remedy="run `timeloom verify`") from error


def _fixed_dtypes(header: ShardHeader) -> dict[str, np.dtype[Any]]:
    return {
        "input_ids": np.dtype(header.token_dtype).newbyteorder("<"),
        "token_type": np.dtype(np.uint8),
        "time_us": np.dtype("<i8"),
    }


def _matrix(table: pa.Table, name: str, dtype: np.dtype[Any], context: int) -> npt.NDArray[Any]:
    column = table.column(name).combine_chunks()
    array = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    flat = np.frombuffer(array.buffers()[1], dtype=dtype) if len(array) else np.empty(0, dtype)
    start = array.offset * context
    return flat[start : start + len(array) * context].reshape(len(array), context)


def _flat(table: pa.Table, name: str) -> tuple[npt.NDArray[np.int32], pa.Array]:
    column = table.column(name).combine_chunks()
    array = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    counts = array.value_lengths().to_numpy(zero_copy_only=False).astype(np.int32)
    return counts, array.flatten()


def _packs(table: pa.Table, matrices: dict[str, npt.NDArray[Any]]) -> Packs:
    segments, segment_length = _flat(table, "segment_length")
    images, image_position = _flat(table, "image_position")
    return Packs(
        pack_id=table.column("pack_id").to_numpy(),
        length=table.column("length").to_numpy(),
        segments_per_pack=segments,
        segment_length=segment_length.to_numpy(),
        segment_subject=_flat(table, "segment_subject")[1].to_numpy(),
        segment_offset=_flat(table, "segment_offset")[1].to_numpy(),
        images_per_pack=images,
        image_position=image_position.to_numpy(),
        image_key=_flat(table, "image_key")[1].to_pylist(),
        image_modality=_flat(table, "image_modality")[1].to_numpy(),
        **matrices,
    )


def _corrupt(path: Path) -> TimeloomError:
    return TimeloomError(
        f"shard {path.name} is corrupt", remedy="run `timeloom verify`, delete the damaged file and run again"
    )


def read_shard(path: Path) -> tuple[ShardHeader, Packs]:
    """Reads a whole shard into memory, page checksums verified.

    Raises:
        TimeloomError: the shard is missing, truncated or corrupt.
    """
    header = read_header(path)
    try:
        table = pq.read_table(path, memory_map=True, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise _corrupt(path) from error
    dtypes = _fixed_dtypes(header)
    return header, _packs(table, {name: _matrix(table, name, dtype, header.context) for name, dtype in dtypes.items()})


def read_pack_ids(path: Path) -> list[npt.NDArray[np.int64]]:
    """The pack ids of each row group of a shard, page checksums verified.

    Raises:
        TimeloomError: the shard is missing, truncated or corrupt.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            groups = range(file.num_row_groups)
            return [file.read_row_group(group, ["pack_id"]).column("pack_id").to_numpy() for group in groups]
    except (OSError, pa.ArrowException) as error:
        raise _corrupt(path) from error


_PAGE_HEADER_BYTES = 256


def _mapped(path: Path, column: Any, dtype: np.dtype[Any], rows: int, context: int) -> npt.NDArray[Any]:
    # A required, PLAIN, uncompressed column in one page is a page header, then nothing but the values.
    payload = rows * context * dtype.itemsize
    header = column.total_compressed_size - payload
    if column.has_dictionary_page or column.compression != "UNCOMPRESSED" or not 0 < header <= _PAGE_HEADER_BYTES:
        raise TimeloomError(f"shard {path.name} is not laid out for mapping", remedy="rebuild it with `timeloom run`")
    return np.memmap(path, dtype, mode="r", offset=column.data_page_offset + header, shape=(rows, context))


def map_shard(path: Path) -> tuple[ShardHeader, list[Packs]]:
    """Opens a shard without reading it: one Packs per row group, its fixed-width matrices mapped from the file.

    Pages are not checked against their checksums: verify the file's hash first.

    Raises:
        TimeloomError: the shard is missing, truncated, corrupt, or was rewritten with another layout.
    """
    header = read_header(path)
    blocks = []
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            dtypes = _fixed_dtypes(header)
            small = [name for name in file.schema_arrow.names if name not in dtypes]
            place = {name: index for index, name in enumerate(file.schema_arrow.names)}
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group)
                # The fixed columns come before the nested ones, so a column's place is its leaf's.
                matrices = {
                    name: _mapped(path, rows.column(place[name]), dtype, rows.num_rows, header.context)
                    for name, dtype in dtypes.items()
                }
                blocks.append(_packs(file.read_row_group(group, small), matrices))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise _corrupt(path) from error
    return header, blocks
