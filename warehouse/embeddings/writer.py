"""Writing an embedding store: one worker at a time, whole batches or nothing."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import lmdb

from warehouse.embeddings.environments import close_writer, open_writer, reading
from warehouse.embeddings.value import MAX_KEY_BYTES, Array, StoreDamagedError, decode, encode_value, store_name
from warehouse.errors import TimeloomError


class EmbeddingWriter:
    """Write access to one bucket's store, created if absent. One writer at a time: LMDB's lock file stands beside it.

    Each `put_many` is one synced transaction, stored whole or not at all, also under kill -9. So call it with some
    hundred items: one by one is 20 times slower.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._environment: lmdb.Environment | None = None

    def __enter__(self) -> Self:
        self._environment = open_writer(self.path)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        close_writer(self.path, self._environment)
        self._environment = None

    def abandon(self) -> None:
        """Closes the store, of which another worker may be the writer by now: what does not stand there goes."""
        close_writer(self.path, self._environment, keep=False)
        self._environment = None

    def put_many(self, items: Sequence[tuple[str, Array, int]]) -> None:
        """Stores (key, array, n_units) triples in one transaction; a key stored before is replaced.

        Raises:
            ValueError: a key is not 1 to 80 ascii characters, or an array cannot be stored (see `encode_value`).
            TimeloomError: the disk is full or the store damaged; nothing of this call was stored.
        """
        if self._environment is None:
            raise RuntimeError("EmbeddingWriter is used outside its with block")
        values = list(_encoded(items))
        try:
            with self._environment.begin(write=True) as transaction:
                for key, value in values:
                    transaction.put(key, value)
        except lmdb.Error as error:
            raise TimeloomError(
                f"embedding store {store_name(self.path)} could not be written ({type(error).__name__})",
                remedy="free disk space, or raise `ulimit -f`, and run again; what was stored before stands",
            ) from error

    def stored_units(self, key: str) -> int | None:
        """Units behind the stored array of `key`; None where it is absent or fails its checksum, so is to be made."""
        with reading(self.path) as transaction:
            value = transaction.get(key.encode("ascii"))
            if value is None:
                return None
            try:
                return decode(value, self.path)[0].n_units
            except StoreDamagedError:
                return None


def _encoded(items: Iterable[tuple[str, Array, int]]) -> Iterator[tuple[bytes, bytes]]:
    for key, array, n_units in items:
        if not key.isascii() or not 0 < len(key) <= MAX_KEY_BYTES:
            raise ValueError("an item key is 1 to 80 ascii characters")
        yield key.encode("ascii"), encode_value(array, n_units)
