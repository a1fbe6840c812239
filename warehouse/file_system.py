"""What a root needs of its file system, tried for real: a file system of a network may promise it and not keep it.

Each operation is one that the warehouse uses; docs/shared-file-systems.md says where.
"""

import errno
import fcntl
import mmap
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import lmdb

from warehouse.errors import TimeloomError
from warehouse.files import sync_path

REMEDY = "put the root on another file system, or mount this one otherwise: docs/shared-file-systems.md"
# Those that several machines share; a store of vectors is then written elsewhere first.
NETWORK = ("9p", "afs", "beegfs", "ceph", "cifs", "glusterfs", "gpfs", "lustre", "nfs", "smb", "virtiofs", "fuse.")
_HELD = ".check-root.lock"
_MOUNTS = Path("/proc/self/mountinfo")
# A process that holds a lock until it is killed or its input ends.
_HOLD = """
import fcntl, sys
file = open(sys.argv[1], "a")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""
_PATIENCE = 5.0  # seconds that a lock may outlive its process


@dataclass(frozen=True)
class Finding:
    """How one operation went.

    Attributes:
        operation: what was tried.
        fault: what is wrong, as the end of "the file system of ROOT …"; empty where it works.
        needed: whether a root cannot do without it.
    """

    operation: str
    fault: str = ""
    needed: bool = True


class _BrokenError(Exception):
    """An operation ended without an error, and did not do what it is for."""


def probe(root: Path) -> list[Finding]:
    """Tries each operation in a folder of its own below `root`, which goes afterwards.

    Raises:
        TimeloomError: nothing can be written there.
    """
    folder = root / f".check-root.{secrets.token_hex(8)}"
    try:
        folder.mkdir()
    except OSError as error:
        raise TimeloomError(
            f"{root} is no folder that can be written ({os.strerror(error.errno or errno.EIO)})",
            remedy="make it, or mend its permissions",
        ) from error
    try:
        return [_tried(folder, *operation) for operation in _OPERATIONS]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def require_fit(root: Path) -> None:
    """Refuses a root whose file system lacks what it cannot do without.

    Raises:
        TimeloomError: naming the first operation that fails.
    """
    for finding in probe(root):
        if finding.fault and finding.needed:
            raise TimeloomError(f"the file system of {root} {finding.fault}", remedy=REMEDY)


def _tried(folder: Path, operation: str, fault: str, needed: bool, attempt: Callable[[Path], None]) -> Finding:
    place = folder / attempt.__name__.strip("_")
    place.mkdir()
    try:
        attempt(place)
    except _BrokenError as error:
        return Finding(operation, f"{fault}: {error}", needed)
    except OSError as error:
        return Finding(operation, f"{fault}: {os.strerror(error.errno or errno.EIO)}", needed)
    except lmdb.Error as error:
        return Finding(operation, f"{fault}: {type(error).__name__}", needed)
    return Finding(operation, needed=needed)


def _must(holds: bool, otherwise: str) -> None:
    if not holds:
        raise _BrokenError(otherwise)


def _replace(folder: Path) -> None:
    old, new = folder / "old", folder / "new"
    old.write_bytes(b"old")
    new.write_bytes(b"new")
    with old.open("rb") as reader:
        os.replace(new, old)  # noqa: PTH105 - what Path.replace calls
        _must(not new.exists() and old.read_bytes() == b"new", "the file is not the one that took its name")
        _must(reader.read() == b"old", "who had the old file open does not read it to its end")


def _rename(folder: Path) -> None:
    before, after = folder / "before", folder / "after"
    before.mkdir()
    (before / "file").write_bytes(b"content")
    os.rename(before, after)  # noqa: PTH104
    _must(not before.exists() and (after / "file").read_bytes() == b"content", "the folder is not where it should be")


def _pointer(folder: Path) -> None:
    for name in ("first", "second"):
        (folder / name).mkdir()
    pointer, fresh = folder / "pointer", folder / "fresh"
    os.symlink("first", pointer)  # noqa: PTH211
    os.symlink("second", fresh)  # noqa: PTH211
    os.replace(fresh, pointer)  # noqa: PTH105
    _must(pointer.is_symlink() and pointer.resolve().name == "second", "the link points where it pointed before")


def _link(folder: Path) -> None:
    file, link = folder / "file", folder / "link"
    file.write_bytes(b"content")
    os.link(file, link)
    _must(os.path.samefile(file, link), "the link is another file")  # noqa: PTH121
    file.unlink()
    _must(link.read_bytes() == b"content", "the content went with the first name")


def _sync(folder: Path) -> None:
    file = folder / "file"
    file.write_bytes(b"content")
    for path in (file, folder):
        sync_path(path)


def _locks(folder: Path) -> None:
    path = folder / "lock"
    command = [sys.executable, "-I", "-S", "-c", _HOLD, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as other:
        try:
            assert other.stdout is not None
            _must(other.stdout.readline().strip() == "held", "no process can lock a file")
            _must(not _can_lock(path, fcntl.LOCK_EX), "two processes hold one lock")
            _must(not _can_lock(path, fcntl.LOCK_SH), "two processes hold one lock")
        finally:
            other.kill()
    until = time.monotonic() + _PATIENCE
    while not _can_lock(path, fcntl.LOCK_EX):
        _must(time.monotonic() < until, "the lock of a process that has ended is not free")
        time.sleep(0.05)


def _can_lock(path: Path, kind: int) -> bool:
    with path.open("r+") as file:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def _maps(folder: Path) -> None:
    path = folder / "file"
    path.write_bytes(b"before")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as seen:
        with path.open("r+b") as writer:
            writer.write(b"behind")
        _must(seen[:] == b"behind", "a map does not show what was written")


def _store(folder: Path) -> None:
    path = str(folder / "store.lmdb")
    with lmdb.open(path, subdir=False, map_size=1 << 24) as store, store.begin(write=True) as transaction:
        transaction.put(b"key", b"value")
    with lmdb.open(path, subdir=False, readonly=True, lock=False) as store, store.begin() as transaction:
        _must(transaction.get(b"key") == b"value", "what was stored is not read back")


_OPERATIONS: tuple[tuple[str, str, bool, Callable[[Path], None]], ...] = (
    ("a rename over a file", "does not replace a file by a rename", True, _replace),
    ("a rename of a folder", "does not rename a folder", True, _rename),
    ("a rename over a symbolic link", "does not replace a symbolic link by a rename", True, _pointer),
    ("fsync of a file and of a folder", "does not write down what fsync asks for", True, _sync),
    ("flock between two processes", "loses locks", True, _locks),
    ("maps of a file", "does not keep maps of a file", True, _maps),
    ("a store of vectors (LMDB)", "does not hold a store of vectors", True, _store),
    ("hard links", "has no hard links, so that unchanged files are copied into each release", False, _link),
)


def kind_of(path: Path) -> str:
    """The kind of file system that a path lies on, as the kernel calls it; `unknown` where that is not told."""
    try:
        lines = _MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "unknown"
    real, found = path.resolve(), ("", "unknown")
    for line in lines:
        before, _, after = line.partition(" - ")
        point = before.split()[4].encode().decode("unicode_escape")
        if real.is_relative_to(point) and len(point) >= len(found[0]):
            found = (point, after.split()[0])
    return found[1]


def is_of_a_network(kind: str) -> bool:
    """Whether `kind_of` names a file system that several machines share."""
    return kind.startswith(NETWORK)


@contextmanager
def held(root: Path) -> Iterator[None]:
    """Holds a lock below `root` meanwhile, for `is_held` of another machine."""
    path = root / _HELD
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def is_held(root: Path) -> bool:
    """Whether another machine, or another process, is seen to hold the lock of `held`.

    Raises:
        TimeloomError: nobody has begun to hold it, as far as this machine sees.
    """
    path = root / _HELD
    if not path.is_file():
        raise TimeloomError(
            f"no other machine holds a lock in {root}, as far as this one sees",
            remedy="run `timeloom check-root ROOT --hold 60` there first",
        )
    return not _can_lock(path, fcntl.LOCK_EX)
