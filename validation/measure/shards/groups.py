"""A row group of a shard as validation reads it: without the code of the readers, page checksums verified."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from validation.measure.shards.token_sums import hash_tokens, running
from warehouse.arrays import I64, NO_TIME, U64
from warehouse.modalities import MODALITIES
from warehouse.shards.file import ShardHeader
from warehouse.tokens import IMAGE_TOKENS, TokenType

_SEGMENTS = ("segment_length", "segment_subject", "segment_offset", "segment_origin")
_SMALL = ("length", *_SEGMENTS, "image_position", "image_key", "image_modality")
_STEP = 1 << 18  # tokens of whole packs that are taken apart at a time
# Above the modalities no id is that of an image.
_IMAGE_IDS = np.array([*(IMAGE_TOKENS[name] for name in MODALITIES), *[-1] * (256 - len(MODALITIES))])


@dataclass(frozen=True)
class Group:
    """P packs of L tokens, S segments and I images.

    Attributes:
        length, segments: (P,) tokens and segments of each pack.
        segment_length, subject, offset, origin: (S,).
        whole: (P,) the pack's segments add up to its tokens, and these to no more than L.
        image_row, position, modality: (I,) pack, place in it, and number in MODALITIES.
        key: (I,) String.
        ids, types, time: (P, L) as the file has them.
    """

    length: I64
    segments: I64
    segment_length: I64
    subject: I64
    offset: I64
    origin: I64
    whole: npt.NDArray[np.bool_]
    image_row: I64
    position: I64
    modality: I64
    key: pl.Series
    ids: npt.NDArray[Any]
    types: npt.NDArray[np.uint8]
    time: npt.NDArray[Any]

    @property
    def pack_starts(self) -> I64:
        """(P,) tokens of segments before each pack's."""
        before = np.append(0, np.cumsum(self.segment_length))
        starts: I64 = before[np.append(0, np.cumsum(self.segments))[:-1]]
        return starts


def read_group(file: pq.ParquetFile, number: int, header: ShardHeader) -> Group:
    """Reads one row group.

    Raises:
        OSError, pa.ArrowException, KeyError, ValueError: the file is damaged.
    """
    table = file.read_row_group(number, [*_SMALL, *header.dtypes()])
    length = table.column("length").to_numpy().astype(np.int64)
    segments, segment_length = _list(table, "segment_length")
    images, position = _list(table, "image_position")
    edges = np.append(0, np.cumsum(segments))
    before = np.append(0, np.cumsum(segment_length))
    ids, types, time = (_matrix(table, name, dtype) for name, dtype in header.dtypes().items())
    if not ids.shape == types.shape == time.shape:
        raise ValueError("columns of different widths")
    return Group(
        length=length,
        segments=segments,
        segment_length=segment_length,
        subject=_list(table, "segment_subject")[1],
        offset=_list(table, "segment_offset")[1],
        origin=_list(table, "segment_origin")[1],
        whole=(before[edges[1:]] - before[edges[:-1]] == length) & (length <= ids.shape[1]),
        image_row=np.repeat(np.arange(len(length)), images),
        position=position,
        modality=_list(table, "image_modality")[1],
        key=pl.Series("item_key", _column(table, "image_key").flatten(), dtype=pl.String),
        ids=ids,
        types=types,
        time=time,
    )


def _column(table: pa.Table, name: str) -> pa.Array:
    column = table.column(name)
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays([pa.array([], column.type), *column.chunks])


def _list(table: pa.Table, name: str) -> tuple[I64, I64]:
    """Lengths (P,) and flat values of a list column."""
    array = _column(table, name)
    lengths = array.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    return lengths, array.flatten().to_numpy(zero_copy_only=False).astype(np.int64)


def _matrix(table: pa.Table, name: str, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """(P, L) of a column of fixed width."""
    array = _column(table, name)
    width = array.type.byte_width
    data = memoryview(array.buffers()[1] or b"")[array.offset * width : (array.offset + len(array)) * width]
    return np.frombuffer(data, dtype=dtype).reshape(len(array), width // dtype.itemsize)


def image_places(group: Group) -> tuple[pl.DataFrame, int]:
    """The images of a row group, and how many of their places and of its image tokens do not agree.

    Columns of the frame (I rows): item_key, subject_id (whose segment the place is in; null where no token there stands
    for an image of that modality), modality (number in MODALITIES).
    """
    row = group.image_row
    inside = (group.position >= 0) & (group.position < group.length[row]) & group.whole[row]
    position = np.where(inside, group.position, 0)
    right = inside & (group.types[row, position] == int(TokenType.IMAGE))
    right &= group.ids[row, position] == _IMAGE_IDS[group.modality]
    agreed = np.zeros(group.types.shape, dtype=np.bool_)
    agreed[row[right], position[right]] = True
    tokens = int(np.count_nonzero(group.types == int(TokenType.IMAGE)))
    subject = np.zeros(len(row), dtype=np.int64)
    at = (group.pack_starts[row] + position)[right]
    subject[right] = group.subject[np.searchsorted(np.cumsum(group.segment_length), at, side="right")]
    frame = pl.DataFrame({"subject_id": subject, "modality": group.modality}).select(
        group.key.alias("item_key"), pl.when(pl.Series(right)).then("subject_id").alias("subject_id"), "modality"
    )
    return frame, max(len(row), tokens) - int(np.count_nonzero(agreed))


def segment_sums(group: Group, unit_us: int) -> U64:
    """The sum (S,) of the hashes of each segment's tokens; 0 in packs whose segments do not add up."""
    sums = np.zeros(len(group.segment_length), dtype=np.uint64)
    row_of = np.repeat(np.arange(len(group.length)), group.segments)
    step = max(1, _STEP // max(1, group.ids.shape[1]))
    for low in range(0, len(group.length), step):
        first, last = np.searchsorted(row_of, [low, low + step]).tolist()
        part = np.arange(first, last)[group.whole[row_of[first:last]]]
        images = np.arange(*np.searchsorted(group.image_row, [low, low + step]).tolist())
        sums[part] = _sums_of(group, slice(low, low + step), part, images, unit_us)
    return sums


def _sums_of(group: Group, rows: slice, part: I64, images: I64, unit_us: int) -> U64:
    """The sums of the segments `part`, all those of the whole packs among `rows`, which have the images `images`."""
    length, ends = group.segment_length[part], np.cumsum(group.segment_length[part])
    tokens = np.where(group.whole[rows], group.length[rows], 0)
    real = np.arange(group.ids.shape[1]) < tokens[:, None]
    steps = group.time[rows][real]
    time = steps.astype(np.int64)
    time *= unit_us
    time += np.repeat(group.origin[part], length)
    time[steps == np.iinfo(steps.dtype).min] = NO_TIME
    place = np.arange(len(time))
    place += np.repeat(group.offset[part] - (ends - length), length)
    row = group.image_row[images] - rows.start
    inside = (group.position[images] >= 0) & (group.position[images] < tokens[row])
    at = (np.cumsum(tokens) - tokens)[row] + group.position[images]
    sums = running(
        hash_tokens(
            place,
            group.ids[rows][real],
            group.types[rows][real],
            time,
            at[inside],
            group.key.gather(images[inside]),
        )
    )
    of_segments: U64 = sums[ends] - sums[ends - length]
    return of_segments
