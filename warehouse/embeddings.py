"""The embedding store: one LMDB file per bucket, one checked array per item key.

An item's array is its mean vector (width,), or the sequence of its units' (units, width); a sequence has a second entry
under its key and `.places`, int32 (units, k): each tile's x and y in level-0 pixels, each slice's number from the feet.
The format of a value is in warehouse.embedding_values.
"""

import hashlib
import os
import struct
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from warehouse.embedding_files import CHECKED_MOST, checked, close_stores, reading
from warehouse.embedding_values import (
    HEADER_BYTES,
    MAX_KEY_BYTES,
    PLACES,
    PLAIN_BYTES,
    Array,
    Buffer,
    EmbeddingHeader,
    StoreDamagedError,
    check_value,
    decode,
    decode_header,
    encode_value,
    plain_header,
    store_name,
)
from warehouse.embedding_writer import EmbeddingWriter, sole_writer
from warehouse.errors import TimeloomError

__all__ = [
    "HEADER_BYTES",
    "PLACES",
    "EmbeddingHeader",
    "EmbeddingStore",
    "EmbeddingWriter",
    "StoreDamagedError",
    "close_stores",
    "content_hash",
    "encode_value",
    "read_vectors",
    "sole_writer",
]


@dataclass(frozen=True)
class EmbeddingStore:
    """Read access to one bucket's vectors; holds a path only, so it may be sent to and made in any process."""

    path: Path

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """A reader of the store at `path`; needs no writable directory.

        Raises:
            TimeloomError: the file is absent, empty or no store of ours.
        """
        store = cls(Path(path))
        with reading(store.path):
            return store

    def get(self, key: str) -> Array:
        """The array stored under `key`, checked.

        Raises:
            KeyError: no such key.
            TimeloomError: the stored bytes have changed.
        """
        with reading(self.path) as transaction:
            value = transaction.get(key.encode("ascii"))
            if value is None:
                raise KeyError(key)
            return decode(value, self.path)[1]

    def get_many(self, keys: Sequence[str]) -> list[Array]:
        """The arrays stored under `keys`, in that order, checked; in one transaction, read in the keys' order on disk.

        Raises:
            KeyError: one of them is not there.
            TimeloomError: stored bytes have changed.
        """
        encoded = [key.encode("ascii") for key in keys]
        result: list[Array] = [np.empty(0)] * len(keys)
        with reading(self.path, self.real) as transaction:
            for place in sorted(range(len(encoded)), key=encoded.__getitem__):
                value = transaction.get(encoded[place])
                if value is None:
                    raise KeyError(keys[place])
                result[place] = decode(value, self.path)[1]
        return result

    @cached_property
    def real(self) -> str:
        # Resolving a path asks the kernel about each of its folders: more than reading a vector takes.
        return os.path.realpath(self.path)

    def lacking(self) -> TimeloomError:
        """The error for an item of the release that is not in the store."""
        return TimeloomError(
            f"embedding store {store_name(self.path)} lacks an item of the release", remedy="run `timeloom verify`"
        )

    def places(self, key: str) -> Array:
        """(units, k) int32: where the units of a sequence lie; raises as `get`."""
        return self.get(key + PLACES)

    def header(self, key: str) -> EmbeddingHeader:
        """Shape, dtype and units of `key`, the checksum unread; raises KeyError where it is absent."""
        with reading(self.path) as transaction:
            value = transaction.get(key.encode("ascii"))
            if value is None:
                raise KeyError(key)
            return decode_header(value, self.path)

    def __contains__(self, key: object) -> bool:
        if not isinstance(key, str) or not key.isascii() or not 0 < len(key) <= MAX_KEY_BYTES:
            return False
        with reading(self.path) as transaction:
            return transaction.get(key.encode("ascii")) is not None

    def keys(self) -> list[str]:
        """All items' keys, sorted."""
        with reading(self.path) as transaction, transaction.cursor() as cursor:
            keys = (bytes(key).decode("ascii") for key in cursor.iternext(keys=True, values=False))
            return [key for key in keys if not key.endswith(PLACES)]

    def verify(self) -> int:
        """Checks every value, places too, against its checksum, and counts items; raises TimeloomError at the first
        that differs."""
        with reading(self.path) as transaction, transaction.cursor() as cursor:
            checked = [(decode(value, self.path)[0], bytes(key)) for key, value in cursor]
            return sum(not key.endswith(PLACES.encode("ascii")) for _, key in checked)

    def __len__(self) -> int:
        return len(self.keys())


def content_hash(path: Path) -> str:
    """SHA-256 over sorted keys and their values: equal for equal content whatever the order and layout of pages."""
    digest = hashlib.sha256()
    with reading(path) as transaction, transaction.cursor() as cursor:
        for key, value in cursor:
            digest.update(struct.pack("<II", len(key), len(value)))
            digest.update(key)
            digest.update(value)
    return digest.hexdigest()


def read_vectors(
    keys: Sequence[str], width: int, stores: Iterable[tuple[EmbeddingStore, list[int]]]
) -> npt.NDArray[np.float32]:
    """(n, width) of the items with `keys` (n,), each in one of `stores`, which say which of the keys they hold.

    A row is the item's vector, or the mean of its sequence. A value is compared with its checksum the first time that
    the process reads it so, as shards are; that of a sequence each time.

    Raises:
        TimeloomError: an item is not there, stored bytes have changed, or an array is of another width.
    """
    encoded = list(map(str.encode, keys))
    paths: list[tuple[Path, int]] = []
    places: list[int] = []
    found: list[Buffer] = []
    with ExitStack() as held:  # all stores, until their values were copied by one call for all
        for store, mine in stores:
            mine.sort(key=keys.__getitem__)  # as they lie in the file
            wanted = [encoded[place] for place in mine]
            get = held.enter_context(reading(store.path, store.real)).get
            values = [value for value in map(get, wanted) if value]
            if len(values) < len(wanted):
                raise store.lacking()
            if not checked.setdefault(store.real, set()).issuperset(map(hash, wanted)):
                _check_new(store, wanted, values)
            places += mine
            found += values
            paths.append((store.path, len(mine)))
        order = np.argsort(places).tolist()
        ordered = [found[place] for place in order]
        begins = b"".join([value[:PLAIN_BYTES] for value in ordered])
        for dtype in (np.dtype("<f4"), np.dtype("<f2")):
            size = width * dtype.itemsize
            if begins == plain_header(dtype, width) * len(keys):
                whole = bytearray().join([value[HEADER_BYTES : HEADER_BYTES + size] for value in ordered])
                if len(whole) == len(keys) * size:
                    return np.frombuffer(whole, dtype).reshape(-1, width).astype(np.float32, copy=False)
        owners = [path for path, count in paths for _ in range(count)]
        return _each_vector(ordered, [owners[place] for place in order], width)


def _check_new(store: EmbeddingStore, keys: Sequence[bytes], values: Sequence[Buffer]) -> None:
    known = checked[store.real]
    for key, value in zip(keys, values, strict=True):
        if hash(key) not in known:
            decode_header(value, store.path)
            check_value(value, store.path)
            if sum(map(len, checked.values())) < CHECKED_MOST:
                known.add(hash(key))


def _each_vector(values: Sequence[Buffer], paths: Sequence[Path], width: int) -> npt.NDArray[np.float32]:
    """What holds for stores with sequences, or with vectors of several types."""
    result = np.empty((len(values), width), dtype=np.float32)
    for row, (value, path) in enumerate(zip(values, paths, strict=True)):
        array = decode(value, path)[1]
        if array.ndim not in (1, 2) or array.shape[-1] != width:
            raise TimeloomError(
                f"embedding store {store_name(path)} holds vectors that are not ({width},)",
                remedy="run `timeloom verify`",
            )
        result[row] = array if array.ndim == 1 else array.mean(axis=0, dtype=np.float32)
    return result
