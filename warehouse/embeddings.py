"""The embedding store: one LMDB file per bucket, one checked array per item key.

An item's array is its mean vector (width,), or the sequence of its units' (units, width); a sequence has a second entry
under its key and `.places`, int32 (units, k): each tile's x and y in level-0 pixels, each slice's number from the feet.

A value is a 64-byte header, the array (little-endian, C order) and zeros. LMDB keeps a value of more than half a page
on pages of its own with 16 bytes of page header, so values are padded to fill those pages: 4,096 k - 16 bytes. That
costs no disk and leaves no slack in which bytes of an item deleted earlier could survive. A (1024,) or (1536,) float32
vector takes 8,192 bytes, a (1536,) float16 vector 4,096.
"""

import fcntl
import hashlib
import os
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import lmdb
import numpy as np
import numpy.typing as npt
import xxhash

from warehouse.errors import TimeloomError

Array = npt.NDArray[Any]
Buffer = bytes | memoryview

MAGIC = b"TLEV"
VERSION = 1
MAX_DIMENSIONS = 4
MAX_KEY_BYTES = 80
PLACES = ".places"  # after an item's key: where the units of its sequence lie
# Address space, not disk: the file grows with its content. A process has at most some writers open, but a trainer has
# a reader for every bucket, and 128 TiB hold 128 maps of this size: readers map the file and some room to grow.
WRITER_MAP_BYTES = 1 << 40
READER_ROOM_BYTES = 1 << 30
PAGE_BYTES, PAGE_HEADER_BYTES = 4096, 16

# magic, version, dtype code, dimensions, shape, units, reserved; then the checksum of everything else in the value
_FIELDS = struct.Struct("<4sHBB4QQ8x")
_CHECKSUM = struct.Struct("<Q")
HEADER_BYTES = _FIELDS.size + _CHECKSUM.size
_UNITS_AT = struct.calcsize("<4sHBB4Q")  # everything before it says what the array is
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
            f"embedding store {_name(path)} is damaged ({what})",
            remedy="delete this file and run again: its items are embedded anew from the raw images",
        )


def _name(path: Path) -> str:
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


def _decode_header(value: Buffer, path: Path) -> EmbeddingHeader:
    if len(value) < HEADER_BYTES:
        raise StoreDamagedError(path, "a value is too short")
    magic, version, code, ndim, *rest = _FIELDS.unpack_from(value)
    if magic != MAGIC or code not in _DTYPES or ndim > MAX_DIMENSIONS:
        raise StoreDamagedError(path, "a value has no header")
    if version != VERSION:
        raise TimeloomError(
            f"embedding store {_name(path)} has format {version}, this timeloom reads {VERSION}",
            remedy="use the timeloom version that wrote it, or delete the file and run again",
        )
    return EmbeddingHeader(tuple(rest[:ndim]), _DTYPES[code], rest[MAX_DIMENSIONS])


def _decode(value: Buffer, path: Path) -> tuple[EmbeddingHeader, Array]:
    """Header and a copy of the array; raises StoreDamagedError where one byte of the value has changed."""
    header = _decode_header(value, path)
    _check(value, path)
    count = int(np.prod(header.shape, dtype=np.int64))
    array = np.frombuffer(value, dtype=header.dtype, count=count, offset=HEADER_BYTES)
    return header, array.reshape(header.shape).copy()


def _check(value: Buffer, path: Path) -> None:
    checksum = xxhash.xxh3_64(value[: _FIELDS.size])
    checksum.update(value[HEADER_BYTES:])
    if checksum.intdigest() != _CHECKSUM.unpack_from(value, _FIELDS.size)[0]:
        raise StoreDamagedError(path, "a checksum differs")


# Hashes of path and key of values whose checksums were right: comparing takes as long as reading. A million take 80 MB;
# what is read beyond them is compared each time.
CHECKED_MOST = 1 << 20
_checked: set[int] = set()


# LMDB refuses to open a path twice in one process, so each process has one environment per path: here. A forked child
# inherits the table and LMDB's own memory of open paths; it must close its copies (which leaves the parent's alone,
# as readers hold no lock) before it can open anything.
_environments: dict[tuple[int, str], lmdb.Environment] = {}
_guard = threading.RLock()


def _forget_inherited() -> None:
    global _guard
    _guard = threading.RLock()
    for environment in _environments.values():
        if environment.flags()["readonly"]:
            environment.close()
    _environments.clear()


os.register_at_fork(after_in_child=_forget_inherited)


def _identity(path: Path) -> tuple[int, str]:
    return os.getpid(), os.path.realpath(path)


def close_stores() -> None:
    """Closes every store that this process has open for reading; the next read opens and checks it again."""
    with _guard:
        _checked.clear()
        for identity, environment in list(_environments.items()):
            if environment.flags()["readonly"]:
                environment.close()
                del _environments[identity]


class _reading:  # noqa: N801
    """A read transaction on `path`, opening its environment once per process; LMDB's errors in our words.

    A class, as a generator's frame would cost as much again as the transaction.
    """

    __slots__ = ("_path", "_real", "_transaction")

    def __init__(self, path: Path, real: str | None = None) -> None:
        self._path, self._real = path, real

    def __enter__(self) -> lmdb.Transaction:
        try:
            self._transaction = _reader(self._path, self._real).begin(buffers=True)
        except lmdb.MapResizedError:  # another process has written more than this map holds
            _close_reader(self._path)
            self._transaction = _reader(self._path, self._real).begin(buffers=True)
        except lmdb.Error as error:
            raise StoreDamagedError(self._path, type(error).__name__) from error
        return self._transaction

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._transaction.abort()
        if isinstance(error, lmdb.Error):
            raise StoreDamagedError(self._path, type(error).__name__) from error


def _reader(path: Path, real: str | None = None) -> lmdb.Environment:
    identity = _identity(path) if real is None else (os.getpid(), real)
    return _environments.get(identity) or _open_reader(path)


def _close_reader(path: Path) -> None:
    with _guard:
        environment = _environments.pop(_identity(path), None)
        if environment is not None:
            environment.close()


def _open_reader(path: Path) -> lmdb.Environment:
    with _guard:
        identity = _identity(path)
        if identity in _environments:
            return _environments[identity]
        if not path.is_file():
            raise TimeloomError(
                f"embedding store {_name(path)} is missing", remedy="run `timeloom run` again to make it, or restore it"
            )
        size = path.stat().st_size
        if size == 0:
            raise StoreDamagedError(path, "the file is empty")
        map_size = (size // PAGE_BYTES) * PAGE_BYTES + READER_ROOM_BYTES
        environment = lmdb.open(
            str(path), subdir=False, readonly=True, lock=False, readahead=False, map_size=map_size, max_spare_txns=8
        )
        _environments[identity] = environment
        return environment


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
        with _reading(store.path):
            return store

    def get(self, key: str) -> Array:
        """The array stored under `key`, checked.

        Raises:
            KeyError: no such key.
            TimeloomError: the stored bytes have changed.
        """
        with _reading(self.path) as transaction:
            value = transaction.get(key.encode("ascii"))
            if value is None:
                raise KeyError(key)
            return _decode(value, self.path)[1]

    def get_many(self, keys: Sequence[str]) -> list[Array]:
        """The arrays stored under `keys`, in that order, checked; in one transaction, read in the keys' order on disk.

        Raises:
            KeyError: one of them is not there.
            TimeloomError: stored bytes have changed.
        """
        result: list[Array] = [np.empty(0)] * len(keys)
        self._each(keys, lambda place, value: result.__setitem__(place, _decode(value, self.path)[1]))
        return result

    def fill_many(self, keys: Sequence[str], rows: Sequence[int], into: npt.NDArray[np.float32]) -> None:
        """Writes the vector of each key into a row of `into` (n, width): its array, or the mean of its sequence.

        A value is compared with its checksum the first time that the process reads it so, as shards are.

        Raises:
            KeyError: one of them is not there.
            TimeloomError: stored bytes have changed, or an array is of another width.
        """
        width, size = into.shape[1], 4 * into.shape[1]
        plain = _FIELDS.pack(MAGIC, VERSION, _CODES[np.dtype("<f4")], 1, width, 0, 0, 0, 0)[:_UNITS_AT]
        target = into.reshape(-1).view(np.uint8).data

        def fill(place: int, value: Buffer) -> None:
            if value[:_UNITS_AT] == plain and len(value) >= HEADER_BYTES + size:
                known = hash((self._real, keys[place]))
                if known not in _checked:
                    _check(value, self.path)
                    if len(_checked) < CHECKED_MOST:
                        _checked.add(known)
                start = rows[place] * size
                target[start : start + size] = value[HEADER_BYTES : HEADER_BYTES + size]
                return
            array = _decode(value, self.path)[1]
            if array.ndim not in (1, 2) or array.shape[-1] != width:
                raise TimeloomError(
                    f"embedding store {_name(self.path)} holds vectors that are not ({width},)",
                    remedy="run `timeloom verify`",
                )
            into[rows[place]] = array if array.ndim == 1 else array.mean(axis=0, dtype=np.float32)

        self._each(keys, fill)

    def _each(self, keys: Sequence[str], use: Callable[[int, Buffer], None]) -> None:
        """Calls `use` with the place and the value of each key, in the order in which they lie in the file."""
        encoded = [key.encode("ascii") for key in keys]
        order = sorted(range(len(encoded)), key=encoded.__getitem__) if len(encoded) > 1 else range(len(encoded))
        with _reading(self.path, self._real) as transaction:
            get = transaction.get
            for place in order:
                value = get(encoded[place])
                if value is None:
                    raise KeyError(keys[place])
                use(place, value)

    @cached_property
    def _real(self) -> str:
        # Resolving a path asks the kernel about each of its folders: more than reading a vector takes.
        return os.path.realpath(self.path)

    def places(self, key: str) -> Array:
        """(units, k) int32: where the units of a sequence lie; raises as `get`."""
        return self.get(key + PLACES)

    def header(self, key: str) -> EmbeddingHeader:
        """Shape, dtype and units of `key`, the checksum unread; raises KeyError where it is absent."""
        with _reading(self.path) as transaction:
            value = transaction.get(key.encode("ascii"))
            if value is None:
                raise KeyError(key)
            return _decode_header(value, self.path)

    def __contains__(self, key: object) -> bool:
        if not isinstance(key, str) or not key.isascii() or not 0 < len(key) <= MAX_KEY_BYTES:
            return False
        with _reading(self.path) as transaction:
            return transaction.get(key.encode("ascii")) is not None

    def keys(self) -> list[str]:
        """All items' keys, sorted."""
        with _reading(self.path) as transaction, transaction.cursor() as cursor:
            keys = (bytes(key).decode("ascii") for key in cursor.iternext(keys=True, values=False))
            return [key for key in keys if not key.endswith(PLACES)]

    def verify(self) -> int:
        """Checks every value, places too, against its checksum, and counts items; raises TimeloomError at the first
        that differs."""
        with _reading(self.path) as transaction, transaction.cursor() as cursor:
            checked = [(_decode(value, self.path)[0], bytes(key)) for key, value in cursor]
            return sum(not key.endswith(PLACES.encode("ascii")) for _, key in checked)

    def __len__(self) -> int:
        return len(self.keys())


def content_hash(path: Path) -> str:
    """SHA-256 over sorted keys and their values: equal for equal content whatever the order and layout of pages."""
    digest = hashlib.sha256()
    with _reading(path) as transaction, transaction.cursor() as cursor:
        for key, value in cursor:
            digest.update(struct.pack("<II", len(key), len(value)))
            digest.update(key)
            digest.update(value)
    return digest.hexdigest()


@contextmanager
def sole_writer(path: Path, patience: float = 30.0) -> Iterator[None]:
    """Holds the store at `path` for this worker; the kernel frees it when the worker dies.

    LMDB lets several processes write in turns. Two workers would embed the same items twice, and share a checkpoint.

    Args:
        patience: seconds to wait for another worker, which may be a killed run's that is about to end.

    Raises:
        TimeloomError: another worker has it still.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_suffix(".writer").open("a")
    except OSError as error:
        raise _not_writable(path, error) from error
    until = time.monotonic() + patience
    with lock as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > until:
                    raise TimeloomError(
                        f"another worker is writing embedding store {_name(path)}",
                        remedy="wait until it has ended, and run again; it resumes",
                    ) from error
                time.sleep(0.05)
        yield


def _not_writable(path: Path, error: Exception) -> TimeloomError:
    return TimeloomError(
        f"embedding store {_name(path)} cannot be written ({type(error).__name__})",
        remedy="check that the root is writable, on a local disk and not full; delete the file if damaged",
    )


class EmbeddingWriter:
    """Write access to one bucket's store, created if absent. One writer at a time: LMDB's lock file stands beside it.

    Each `put_many` is one synced transaction, stored whole or not at all, also under kill -9. So call it with some
    hundred items: one by one is 20 times slower.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._environment: lmdb.Environment | None = None

    def __enter__(self) -> Self:
        with _guard:
            inherited = _environments.pop(_identity(self.path), None)
            if inherited is not None:
                if not inherited.flags()["readonly"]:
                    _environments[_identity(self.path)] = inherited
                    raise RuntimeError(f"{_name(self.path)} has a writer in this process already")
                inherited.close()
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._environment = lmdb.open(
                    str(self.path), subdir=False, map_size=WRITER_MAP_BYTES, sync=True, writemap=False, readahead=False
                )
            except (lmdb.Error, OSError) as error:
                raise _not_writable(self.path, error) from error
            # Readers of this process share the writer's environment while it is open.
            _environments[_identity(self.path)] = self._environment
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _guard:
            _environments.pop(_identity(self.path), None)
            if self._environment is not None:
                self._environment.close()
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
                f"embedding store {_name(self.path)} could not be written ({type(error).__name__})",
                remedy="free disk space and run again; what was stored before stands",
            ) from error

    def stored_units(self, key: str) -> int | None:
        """Units behind the stored array of `key`; None where it is absent or fails its checksum, so is to be made."""
        with _reading(self.path) as transaction:
            value = transaction.get(key.encode("ascii"))
            if value is None:
                return None
            try:
                return _decode(value, self.path)[0].n_units
            except StoreDamagedError:
                return None


def _encoded(items: Iterable[tuple[str, Array, int]]) -> Iterator[tuple[bytes, bytes]]:
    for key, array, n_units in items:
        if not key.isascii() or not 0 < len(key) <= MAX_KEY_BYTES:
            raise ValueError("an item key is 1 to 80 ascii characters")
        yield key.encode("ascii"), encode_value(array, n_units)
