"""The LMDB environments that a process has open: one a path, opened when it is first read, forgotten after a fork."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import lmdb

from warehouse.embeddings.scratch import ScratchCopy, scratch_folder
from warehouse.embeddings.value import PAGE_BYTES, StoreDamagedError, store_name
from warehouse.errors import TimeloomError
from warehouse.files import make_folder, sync_directory

# Address space, not disk: the file grows with its content. A process has at most some writers open, but a trainer has
# a reader for every bucket, and 128 TiB hold 128 maps of this size: readers map the file and some room to grow.
WRITER_MAP_BYTES = 1 << 40
READER_ROOM_BYTES = 1 << 30


# LMDB refuses to open a path twice in one process, so each process has one environment per path: here. A forked child
# inherits the table and LMDB's own memory of open paths; it must close its copies (which leaves the parent's alone,
# as readers hold no lock) before it can open anything.
_environments: dict[tuple[int, str], lmdb.Environment] = {}
# Those that are written in another place, with the number of their last transaction before.
_copies: dict[tuple[int, str], tuple[ScratchCopy, int]] = {}
# The file that each of them was opened for: another one may take its path.
_files: dict[tuple[int, str], tuple[int, int]] = {}
# What fetches a store that is not on this machine, by its path.
_suppliers: dict[Path, Callable[[], None]] = {}
_guard = threading.RLock()

# How often a map was given up: an address into a map holds for the generation in which it was found.
_generation = 1


def supply(path: Path, fetch: Callable[[], None]) -> None:
    """Has a store fetched to `path` before this process, or a child of it, opens it there."""
    _suppliers[path] = fetch


def _forget_inherited() -> None:
    global _guard, _generation
    _guard = threading.RLock()
    _generation += 1
    for environment in _environments.values():
        if environment.flags()["readonly"]:
            environment.close()
    _environments.clear()


def _close(environment: lmdb.Environment) -> None:
    global _generation
    with _guard:
        _generation += 1
        environment.close()


os.register_at_fork(after_in_child=_forget_inherited)


def _identity(path: Path) -> tuple[int, str]:
    return os.getpid(), os.path.realpath(path)


def close_stores() -> None:
    """Closes every store that this process has open for reading; the next read opens and checks it again."""
    with _guard:
        for identity, environment in list(_environments.items()):
            if environment.flags()["readonly"]:
                _close(environment)
                del _environments[identity]


@contextmanager
def staying_open() -> Iterator[None]:
    """No other thread closes a store meanwhile. An address may be read that was found in the present generation."""
    with _guard:
        yield


def generation() -> int:
    """Of the maps that this process has of stores; a higher one once any of them was given up."""
    return _generation


class reading:  # noqa: N801
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
            _close(environment)


def renewed(path: Path) -> bool:
    """Whether another file has taken a store's place since this process opened it, as a compaction's does; if so it is
    opened anew when it is next read."""
    with _guard:
        identity = _identity(path)
        if identity not in _environments or not path.is_file() or _files.get(identity) == _file(path):
            return False
        _close_reader(path)
        return True


def open_anew(path: Path) -> None:
    """What this process reads of a store next is what stands there then, whoever has written it; a writer of this
    process stays open."""
    with _guard:
        environment = _environments.get(_identity(path))
        if environment is not None and environment.flags()["readonly"]:
            _close_reader(path)


def _file(path: Path) -> tuple[int, int]:
    """Which file stands at a path."""
    status = path.stat()
    return status.st_dev, status.st_ino


def _open_reader(path: Path) -> lmdb.Environment:
    with _guard:
        identity = _identity(path)
        if identity in _environments:
            return _environments[identity]
        if path in _suppliers:
            _suppliers[path]()
        if not path.is_file():
            raise TimeloomError(
                f"embedding store {store_name(path)} is missing",
                remedy="run `timeloom run` again to make it, or restore it",
            )
        size = path.stat().st_size
        if size == 0:
            raise StoreDamagedError(path, "the file is empty")
        _files[identity] = _file(path)
        map_size = (size // PAGE_BYTES) * PAGE_BYTES + READER_ROOM_BYTES
        environment = lmdb.open(
            str(path), subdir=False, readonly=True, lock=False, readahead=False, map_size=map_size, max_spare_txns=8
        )
        if not _is_whole(path, environment):
            environment.close()
            raise StoreDamagedError(path, "the file is cut short")
        _environments[identity] = environment
        return environment


_READ_ALL = """
import lmdb, sys
with lmdb.open(sys.argv[1], subdir=False, readonly=True, lock=False) as store, store.begin(buffers=True) as transaction:
    sum(bytes(value).count(0) for _, value in transaction.cursor())
"""


def _is_whole(path: Path, environment: lmdb.Environment) -> bool:
    """Whether the file has every page that a reader may touch; a page beyond its end would kill the process.

    A file may be short of its last pages where they were freed before they were written. That is rare, and told by a
    process of its own that reads everything.
    """
    pages, page_bytes, size = environment.info()["last_pgno"] + 1, environment.stat()["psize"], path.stat().st_size
    if size >= pages * page_bytes:
        return True
    if size % page_bytes:  # LMDB writes whole pages; the rest of a page that is cut reads as zeros
        return False
    return (
        subprocess.run([sys.executable, "-c", _READ_ALL, str(path)], capture_output=True, check=False).returncode == 0
    )


def open_writer(path: Path) -> lmdb.Environment:
    """An environment to write to `path`; readers of this process share it until `close_writer`.

    Raises:
        RuntimeError: this process has a writer of it already.
        TimeloomError: it cannot be written.
    """
    with _guard:
        identity = _identity(path)
        inherited = _environments.pop(identity, None)
        if inherited is not None:
            if not inherited.flags()["readonly"]:
                _environments[identity] = inherited
                raise RuntimeError(f"{store_name(path)} has a writer in this process already")
            _close(inherited)
        try:
            make_folder(path.parent)
            is_new = not path.exists()
            if path.is_file() and path.stat().st_size:
                _open_reader(path)  # refuses a file that is cut short
                _close(_environments.pop(identity))
            scratch = scratch_folder()
            copy = ScratchCopy(path, scratch) if scratch is not None else None
            environment = lmdb.open(
                str(copy.place if copy else path),
                subdir=False,
                map_size=WRITER_MAP_BYTES,
                sync=True,
                writemap=False,
                readahead=False,
            )
            if is_new:  # LMDB syncs what is in the file, and not that there is one
                sync_directory(path.parent)
        except (lmdb.Error, OSError) as error:
            raise not_writable(path, error) from error
        _environments[identity] = environment
        if copy is not None:
            _copies[identity] = copy, environment.info()["last_txnid"]
        return environment


def close_writer(path: Path, environment: lmdb.Environment | None, *, keep: bool = True) -> None:
    """Closes what `open_writer` gave; what was written elsewhere takes its place.

    Args:
        keep: False where another worker may write the store by now: what was written elsewhere stays there.

    Raises:
        TimeloomError: it cannot be written there.
    """
    with _guard:
        identity = _identity(path)
        _environments.pop(identity, None)
        copy, before = _copies.pop(identity, (None, 0))
        if environment is None:
            return
        after = environment.info()["last_txnid"]
        _close(environment)
        if copy is not None and keep:
            try:
                copy.put_in_place(changed=after != before)
            except OSError as error:
                raise not_writable(path, error) from error


def not_writable(path: Path, error: Exception) -> TimeloomError:
    """The error for a store that cannot be opened for writing."""
    return TimeloomError(
        f"embedding store {store_name(path)} cannot be written ({type(error).__name__})",
        remedy="check that the root is writable, on a local disk and not full; if it is damaged: `timeloom repair`",
    )
