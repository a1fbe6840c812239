"""What a shard holds: its header, and packs in columns."""

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from warehouse.shards.times import micros

FORMAT_VERSION = 2
MAX_SEGMENTS = 64
DEFAULT_PLAN = "default"
MATRICES = ("input_ids", "token_type", "time")
SEGMENT_COLUMNS = ("segment_length", "segment_subject", "segment_offset", "segment_origin")
IMAGE_COLUMNS = ("image_position", "image_key", "image_modality")


@dataclass(frozen=True)
class ShardHeader:
    """What a reader must know before it reads a row.

    Attributes:
        group: the file's number in its split; the upper half of its packs' ids.
        context: tokens a pack, padding included.
        token_dtype: `uint16`, or `uint32` for vocabularies of more than 65,536 tokens.
        vocabulary_size: the ids that the shard may hold are below it; the vocabulary may have grown beyond.
        vocabulary_hash: warehouse.vocabulary.vocabulary_hash of those ids.
        stores: modality to the name of its embedding store.
        plan, mode: how the timelines were laid into packs.
        time_unit_us, time_dtype: time = segment_origin + value * time_unit_us; the dtype's least number is no time.
        max_segments: no pack has more.
        dropped: tokens of the shard's own subjects that the plan leaves out, by reason.
    """

    profile: str
    split: str
    group: int
    context: int
    token_dtype: str
    vocabulary_hash: str
    vocabulary_size: int
    stores: dict[str, str] = field(default_factory=dict)
    plan: str = DEFAULT_PLAN
    mode: str = "packed"
    time_unit_us: int = 1
    time_dtype: str = "int32"
    max_segments: int = MAX_SEGMENTS
    dropped: dict[str, int] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def dtypes(self) -> dict[str, np.dtype[Any]]:
        """The element type of each matrix."""
        named = (self.token_dtype, "uint8", self.time_dtype)
        return {name: np.dtype(dtype).newbyteorder("<") for name, dtype in zip(MATRICES, named, strict=True)}


@dataclass(frozen=True)
class SmallColumns:
    """Everything of P packs but their matrices; S segments and I images in all.

    Attributes:
        pack_id: (P,) int64, unique in a split: group << 32 | index.
        length: (P,) int32, tokens that are not padding.
        segments_per_pack, segment_length, segment_subject, segment_offset, segment_origin: (P,), (S,), (S,), (S,),
            (S,); the offset counts the subject's tokens before the segment, the origin is what its times count from,
            in microseconds since 1970.
        images_per_pack, image_position, image_key, image_modality: (P,), (I,), (I,), (I,); position in the pack,
            key as an Arrow string array, modality as its index in warehouse.modalities.MODALITIES.
    """

    pack_id: npt.NDArray[np.int64]
    length: npt.NDArray[np.int32]
    segments_per_pack: npt.NDArray[np.int32]
    segment_length: npt.NDArray[np.int32]
    segment_subject: npt.NDArray[np.int64]
    segment_offset: npt.NDArray[np.int32]
    segment_origin: npt.NDArray[np.int64]
    images_per_pack: npt.NDArray[np.int32]
    image_position: npt.NDArray[np.int32]
    image_key: pa.StringArray
    image_modality: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.pack_id)


@dataclass(frozen=True)
class Packs(SmallColumns):
    """P packs of L tokens.

    Attributes:
        input_ids: (P, L) uint16 or uint32.
        token_type: (P, L) uint8, warehouse.tokens.TokenType.
        time: (P, L) int32 or int64, steps from the segment's origin; the dtype's least number for tokens without a
            time and for padding.
    """

    input_ids: npt.NDArray[Any]
    token_type: npt.NDArray[np.uint8]
    time: npt.NDArray[Any]

    def times_us(self, header: ShardHeader) -> npt.NDArray[np.int64]:
        """(P, L) microseconds since 1970, NO_TIME where there is none."""
        lengths = self.segment_length.astype(np.int64)
        return micros(self.time, self.length, lengths, self.segment_origin, header.time_unit_us)


def take(packs: Packs, rows: slice) -> Packs:
    """Consecutive packs, with their segments and images."""
    segments = _within(packs.segments_per_pack, rows)
    images = _within(packs.images_per_pack, rows)
    parts = dict.fromkeys(SEGMENT_COLUMNS, segments) | dict.fromkeys(IMAGE_COLUMNS, images)
    return Packs(**{field.name: getattr(packs, field.name)[parts.get(field.name, rows)] for field in fields(Packs)})


def _within(counts: npt.NDArray[np.int32], rows: slice) -> slice:
    edges = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    first, last, _ = rows.indices(len(counts))
    return slice(int(edges[first]), int(edges[last]))


def no_packs(header: ShardHeader) -> Packs:
    """Packs of a shard without any."""
    empty = {name: np.empty((0, header.context), dtype) for name, dtype in header.dtypes().items()}
    ints, longs = np.empty(0, np.int32), np.empty(0, np.int64)
    return Packs(
        pack_id=longs,
        length=ints,
        segments_per_pack=ints,
        segment_length=ints,
        segment_subject=longs,
        segment_offset=ints,
        segment_origin=longs,
        images_per_pack=ints,
        image_position=ints,
        image_key=pa.array([], pa.string()),
        image_modality=np.empty(0, np.uint8),
        **empty,
    )
