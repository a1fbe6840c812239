"""The embedding store: one LMDB file per bucket, one checked array per item key.

An item's array is its mean vector (width,), or the sequence of its units' (units, width); a sequence has a second entry
under its key and `.places`, int32 (units, k): each tile's x and y in level-0 pixels, each slice's number from the feet.
Where a unit makes several vectors, each is a row of both, and its number in the unit stands behind the unit's place.
Imported vectors have another entry, under `.source`, which tells what they were made from.
The format of a value is in warehouse.embeddings.value.
"""

import hashlib
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np

from warehouse.embeddings.bucket_lease import sole_writer
from warehouse.embeddings.environments import close_stores, reading, renewed
from warehouse.embeddings.value import (
    BESIDE,
    HEADER_BYTES,
    MAX_KEY_BYTES,
    PLACES,
    SOURCE,
    Array,
    EmbeddingHeader,
    StoreDamagedError,
    decode,
    decode_header,
    encode_value,
    holds,
    store_name,
)
from warehouse.embeddings.writer import EmbeddingWriter
from warehouse.errors import REPAIR, TimeloomError

__all__ = [
    "HEADER_BYTES",
    "PLACES",
    "SOURCE",
    "EmbeddingHeader",
    "EmbeddingStore",
    "EmbeddingWriter",
    "StoreDamagedError",
    "close_stores",
    "content_hash",
    "encode_value",
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
        with reading(self.path, self.real) as transaction:
            value = transaction.get(key.encode("ascii"))
            if value is not None:
                return decode(value, self.path)[1]
        if renewed(self.path):
            return self.get(key)
        raise KeyError(key)

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
                    break
                result[place] = decode(value, self.path)[1]
            else:
                return result
        if renewed(self.path):
            return self.get_many(keys)
        raise KeyError(keys[place])

    @cached_property
    def real(self) -> str:
        # Resolving a path asks the kernel about each of its folders: more than reading a vector takes.
        return os.path.realpath(self.path)

    @cached_property
    def page_bytes(self) -> int:
        """Bytes of the file's pages: those of memory where it was made."""
        with reading(self.path) as transaction:
            return int(transaction.stat()["psize"])

    def lacking(self) -> TimeloomError:
        """The error for an item of the release that is not in the store."""
        return TimeloomError(f"embedding store {store_name(self.path)} lacks an item of the release", remedy=REPAIR)

    def has_whole(self, keys: Sequence[str]) -> bool:
        """Whether every key is there with the bytes that were stored, and what stands beside it; copies nothing.

        Raises:
            TimeloomError: the file itself is damaged.
        """
        with reading(self.path, self.real) as transaction:
            for key in sorted(keys):
                value = transaction.get(key.encode("ascii"))
                if value is None or not holds(value, self.path):
                    return False
                found = (transaction.get((key + ending).encode("ascii")) for ending in BESIDE)
                if any(other is not None and not holds(other, self.path) for other in found):
                    return False
        return True

    def places(self, key: str) -> Array:
        """(units, k) int32: where the units of a sequence lie; raises as `get`."""
        return self.get(key + PLACES)

    def header(self, key: str) -> EmbeddingHeader:
        """Shape, dtype and units of `key`, the checksum unread; raises KeyError where it is absent."""
        with reading(self.path, self.real) as transaction:
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
            return [key for key in keys if not key.endswith(BESIDE)]

    def verify(self) -> int:
        """Checks every value, also what stands beside vectors, against its checksum, and counts items.

        Raises:
            TimeloomError: one differs.
        """
        with reading(self.path) as transaction, transaction.cursor() as cursor:
            checked = [(decode(value, self.path)[0], bytes(key)) for key, value in cursor]
            return sum(not key.decode("ascii").endswith(BESIDE) for _, key in checked)

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
