"""Taking vectors out of a store that nobody needs: the others go to a new file, which takes the store's place."""

from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path

import lmdb

from warehouse.embeddings.bucket_lease import sole_writer
from warehouse.embeddings.environments import WRITER_MAP_BYTES, not_writable, reading, renewed
from warehouse.embeddings.value import BESIDE
from warehouse.files import atomic_write

COMMIT_BYTES = 64 << 20


@dataclass(frozen=True)
class Spare:
    """What of a store nobody needs.

    Attributes:
        vectors: items that are not needed.
        needed: items that are.
        bytes: of their entries; the file shrinks by some more, for the pages that are free already.
    """

    vectors: int
    needed: int
    bytes: int


def item_of(key: bytes) -> str:
    """The item that an entry belongs to: its vectors, or what stands beside them."""
    name = key.decode("ascii")
    return next((name.removesuffix(ending) for ending in BESIDE if name.endswith(ending)), name)


def spare_of(path: Path, needed: Set[str]) -> Spare:
    """What a store holds beside the items that are needed; reads lengths alone.

    Raises:
        TimeloomError: the store is damaged.
    """
    spare: set[str] = set()
    kept: set[str] = set()
    size = 0
    with reading(path) as transaction, transaction.cursor() as cursor:
        for key, value in cursor:
            item = item_of(bytes(key))
            if item in needed:
                kept.add(item)
            else:
                spare.add(item)
                size += len(key) + len(value)
    return Spare(len(spare), len(kept), size)


def compact(path: Path, needed: Set[str]) -> None:
    """Leaves only the entries of needed items in a store, byte by byte as they were.

    The new file takes the old one's place by one rename. Who has the old one open reads on in it.

    Raises:
        TimeloomError: another worker writes it, it is damaged, or the disk is full.
    """
    with sole_writer(path) as lease, lease.turn():
        with atomic_write(path) as temporary:
            _copy(path, temporary, needed)
        # It speaks of the file that is gone.
        path.with_name(f"{path.name}-lock").unlink(missing_ok=True)
    renewed(path)


def _copy(path: Path, fresh: Path, needed: Set[str]) -> None:
    environment = lmdb.open(str(fresh), subdir=False, map_size=WRITER_MAP_BYTES, lock=False, readahead=False)
    writing = environment.begin(write=True)
    size = 0
    try:
        for key, value in _entries(path, needed):
            writing.put(key, value, append=True)
            size += len(value)
            if size >= COMMIT_BYTES:
                writing.commit()
                writing, size = environment.begin(write=True), 0
        writing.commit()
    except lmdb.Error as error:  # a full disk, say; what is wrong with the old file is said by who reads it
        raise not_writable(path, error) from error
    finally:
        environment.close()


def _entries(path: Path, needed: Set[str]) -> Iterator[tuple[bytes | memoryview, bytes | memoryview]]:
    """The entries of needed items, in their order; each is there until the next one is asked for."""
    with reading(path) as transaction, transaction.cursor() as cursor:
        for key, value in cursor:
            if item_of(bytes(key)) in needed:
                yield key, value
