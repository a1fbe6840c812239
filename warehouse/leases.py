"""Which releases are being read: a reader holds a shared lock on the manifest of each release that it has opened.

The kernel keeps the lock and frees it when the process ends, however it ends. Whoever removes a release asks for the
whole lock first. Where several machines share a file system, this holds as far as that passes `flock` from one to the
others, as NFS 4 does; without it a reader is seen on its own machine alone, or not at all.
"""

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MANIFEST = "manifest.json"

# By the real path of a release, the descriptor that holds its lock in this process.
_held: dict[str, int] = {}
_guard = threading.Lock()


def _new_guard() -> None:
    global _guard
    _guard = threading.Lock()


os.register_at_fork(after_in_child=_new_guard)


def hold(release: Path) -> bool:
    """Holds a release until this process and those that it forked end, or until `give_up`.

    A file system without locks gives none: the release is then read without.

    Returns:
        False where the release was removed meanwhile.
    """
    path = os.path.realpath(release)
    manifest = Path(path, _MANIFEST)
    with _guard:
        if path in _held:
            if _is_at(_held[path], manifest):
                return True
            os.close(_held.pop(path))  # removed, and made anew in the same place
        try:
            descriptor = os.open(manifest, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # what is wrong with it is said by who reads it
            return True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        except OSError:
            os.close(descriptor)
            return True
        if not _is_at(descriptor, manifest):
            os.close(descriptor)
            return False
        _held[path] = descriptor
        return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether a file that is open is still the one at its path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def give_up(release: Path) -> None:
    """This process reads a release no more."""
    with _guard:
        descriptor = _held.pop(os.path.realpath(release), None)
        if descriptor is not None:
            os.close(descriptor)


@contextmanager
def unread(release: Path) -> Iterator[bool]:
    """Whether nobody holds a release; if so, who wants to open it waits until the block ends.

    Of a release on a file system without locks it cannot be told, and it counts as read.
    """
    manifest = release / _MANIFEST
    try:
        # NFS gives the whole lock to who may write alone.
        descriptor = os.open(manifest, os.O_RDWR if os.access(manifest, os.W_OK) else os.O_RDONLY)
    except FileNotFoundError:
        yield True
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True
    finally:
        os.close(descriptor)
