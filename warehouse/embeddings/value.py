"""What an embedding store holds under a key: a 64-byte header, the array (little-endian, C order) and zeros.

LMDB keeps a value of more than half a page on pages of its own with 16 bytes of page header, so values are padded to
fill those pages: 4,096 k - 16 bytes. That costs no disk and leaves no slack in which bytes of an item deleted earlier
could survive. A (1024,) or (1536,) float32 vector takes 8,192 bytes, a (1536,) float16 vector 4,096.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from warehouse.errors import REPAIR, TimeloomError

Array = npt.NDArray[Any]
Buffer = bytes | memoryview

MAGIC = b"TLEV"
VERSION = 1
MAX_DIMENSIONS = 4
MAX_KEY_BYTES = 80
PLACES = ".places"  # after an item's key: where the units of its sequence lie
SOURCE = ".source"  # after an item's key: what its imported vectors were made from, a digest as (8,) int32
BESIDE = (PLACES, SOURCE)  # what stands beside an item's vectors
PAGE_BYTES, PAGE_HEADER_BYTES = 4096, 16

# magic, version, dtype code, dimensions, shape, units, reserved; then the checksum of everything else in the value
_FIELDS = struct.Struct("<4sHBB4QQ8x")
_CHECKSUM = struct.Struct("<Q")
HEADER_BYTES = _FIELDS.size + _CHECKSUM.size
CHECKSUM_AT = _FIELDS.size
PLAIN_BYTES = struct.calcsize("<4sHBB4Q")  # of a header, before the units: all that says what the array is
_DTYPES: dict[int, np.dtype[Any]] = {1: np.dtype("<f4"), 2: np.dtype("<f2"), 3: np.dtype("<i4")}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class EmbeddingHeader:
    """What stands before an array: its shape, its dtype and how many units (slices, tiles) it was made from."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    n_units: int


class StoreDamagedError(TimeloomError):
    """A store's bytes are not what was written."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(
            f"embedding store {store_name(path)} is damaged ({what})",
            remedy=REPAIR,
        )


def store_name(path: Path) -> str:
    """A store's name for messages: modality, encoder and bucket, which identify nobody."""
    return "/".join(path.parts[-3:])


def encode_value(array: Array, n_units: int) -> bytes:
    """The bytes stored for `array`, float32, float16 or int32 of at most four dimensions.

    Raises:
        ValueError: another dtype, more dimensions, or a negative `n_units`.
    """
    stored = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    code = _CODES.get(stored.dtype)
    if code is None or array.ndim > MAX_DIMENSIONS or n_units < 0:
        raise ValueError(f"cannot store {array.dtype} of {array.ndim} dimensions from {n_units} units")
    shape = (*array.shape, *(0,) * (MAX_DIMENSIONS - array.ndim))
    fields = _FIELDS.pack(MAGIC, VERSION, code, array.ndim, *shape, n_units)
    payload = stored.tobytes()
    size = HEADER_BYTES + len(payload)
    if size > PAGE_BYTES // 2:
        payload += bytes(-(size + PAGE_HEADER_BYTES) % PAGE_BYTES)
    checksum = xxhash.xxh3_64_intdigest(fields + payload)
    return fields + _CHECKSUM.pack(checksum) + payload


def decode_header(value: Buffer, path: Path) -> EmbeddingHeader:
    """A value's header; raises TimeloomError where it is none of this format."""
    if len(value) < HEADER_BYTES:
        raise StoreDamagedError(path, "a value is too short")
    magic, version, code, ndim, *rest = _FIELDS.unpack_from(value)
    if magic != MAGIC or code not in _DTYPES or ndim > MAX_DIMENSIONS:
        raise StoreDamagedError(path, "a value has no header")
    if version != VERSION:
        raise TimeloomError(
            f"embedding store {store_name(path)} has format {version}, this timeloom reads {VERSION}",
            remedy="use the timeloom version that wrote it, or delete the file and run again",
        )
    return EmbeddingHeader(tuple(rest[:ndim]), _DTYPES[code], rest[MAX_DIMENSIONS])


def decode(value: Buffer, path: Path) -> tuple[EmbeddingHeader, Array]:
    """Header and a copy of the array; raises StoreDamagedError where one byte of the value has changed."""
    header = decode_header(value, path)
    check_value(value, path)
    count = int(np.prod(header.shape, dtype=np.int64))
    array = np.frombuffer(value, dtype=header.dtype, count=count, offset=HEADER_BYTES)
    return header, array.reshape(header.shape).copy()


def check_value(value: Buffer, path: Path) -> int:
    """A value's checksum; raises StoreDamagedError where one byte of the value has changed."""
    checksum = xxhash.xxh3_64(value[:CHECKSUM_AT])
    checksum.update(value[HEADER_BYTES:])
    found: int = checksum.intdigest()
    if found != _CHECKSUM.unpack_from(value, CHECKSUM_AT)[0]:
        raise StoreDamagedError(path, "a checksum differs")
    return found


def holds(value: Buffer, path: Path) -> bool:
    """Whether a value is of this format, and no byte of it has changed."""
    try:
        decode_header(value, path)
        check_value(value, path)
    except StoreDamagedError:
        return False
    return True


def plain_header(dtype: np.dtype[Any], width: int) -> bytes:
    """How a value begins, PLAIN_BYTES of it, that holds one vector (width,) of `dtype`."""
    return _FIELDS.pack(MAGIC, VERSION, _CODES[dtype], 1, width, 0, 0, 0, 0)[:PLAIN_BYTES]
