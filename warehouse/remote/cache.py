"""A bounded folder of files that were fetched, shared by processes: each whole or not there, the last used go last.

```
files/<key>/<label…>    a file, whole; a key is a hash of what it holds, a dot and its bytes
parts/<key>             one that is being made: its maker holds a lock on it
uses/<number>           the keys that a process uses now: it holds a lock on it while it lives
.lock                   held for each change of the above, never while something is fetched
```

Locks are the kernel's and end with their process: what one that was killed was making is made anew by who needs the
file, and what it used may go.
"""

import fcntl
import os
import secrets
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from warehouse.errors import TimeloomError

GIGABYTE = 1e9
_guard = threading.Lock()


class NoRoomError(TimeloomError):
    """All that would have to go for a file is in use."""


def _forget_inherited() -> None:
    global _guard
    _guard = threading.Lock()


os.register_at_fork(after_in_child=_forget_inherited)


class Cache:
    """A cache in a folder of a local disk, of at most so many bytes; any number of processes may share it.

    Args:
        most: bytes of files and of what is being fetched. Processes that share a folder give the same number.

    Raises:
        TimeloomError: the folder cannot be made or written.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self.folder, self.most = folder, most
        self.files, self._parts, self._uses = folder / "files", folder / "parts", folder / "uses"
        try:
            for path in (self.files, self._parts, self._uses):
                path.mkdir(parents=True, exist_ok=True)
            (folder / ".lock").open("ab").close()
        except OSError as error:
            raise TimeloomError(
                f"the cache {folder} cannot be made or written", remedy="give cache= a folder on a local disk"
            ) from error
        self._forget()

    def _forget(self) -> None:
        # A child's own list begins empty; what its parent used, the list that they share by inheritance still names.
        self._process = os.getpid()
        self._used: Counter[str] = Counter()
        self._list: int | None = None

    def __getstate__(self) -> dict[str, object]:
        return {"folder": self.folder, "most": self.most}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__(state["folder"], state["most"])  # type: ignore[misc]

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with _guard, (self.folder / ".lock").open("r+b") as lock, _flocked(lock.fileno()):
            if self._process != os.getpid():
                self._forget()
            yield

    def path(self, key: str, label: str) -> Path:
        """Where a file stands when it is there."""
        return self.files / key / label

    def hold(self, key: str, label: str, make: Callable[[Path], None]) -> Path:
        """A file, which stays until it is let go as often as it is held; made first where it is not there.

        Args:
            label: its path below the folder of that key.
            make: writes the file, checked, to the path that it is given.

        Raises:
            NoRoomError: the cache is full of files in use.
            TimeloomError: what `make` raises.
        """
        path = self.path(key, label)
        while True:
            with self._locked():
                if path.is_file():
                    self._use(key, 1)
                    os.utime(self.files / key)
                    return path
            with self._making(key, path) as part:
                if part is None:  # another process has made it
                    continue
                make(part)
                with self._locked():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    part.replace(path)

    def let_go(self, key: str) -> None:
        """A file is used no more by who held it."""
        with self._locked():
            if self._used[key]:
                self._use(key, -1)

    def discard(self, key: str) -> None:
        """Removes a file that is damaged, whoever uses it: who has it open reads on in it."""
        with self._locked():
            shutil.rmtree(self.files / key, ignore_errors=True)

    def close(self) -> None:
        """This process uses nothing any more."""
        with self._locked():
            self._used.clear()
            self._write_uses()

    def _use(self, key: str, number: int) -> None:
        before = self._used[key]
        self._used[key] = before + number
        if not self._used[key]:
            del self._used[key]
        if bool(before) != (key in self._used):
            self._write_uses()

    def _write_uses(self) -> None:
        if self._list is None:
            path = self._uses / secrets.token_hex(8)
            # Inherited by children, so that what is used before a fork stays used by them.
            self._list = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            fcntl.flock(self._list, fcntl.LOCK_EX)
        os.ftruncate(self._list, 0)
        os.pwrite(self._list, "\n".join(self._used).encode("ascii"), 0)

    def _in_use(self) -> set[str]:
        used: set[str] = set(self._used)
        for path in self._uses.iterdir():
            with path.open("r+b") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    used |= set(file.read().decode("ascii").split())
                else:
                    path.unlink()  # its process has ended
        return used

    @contextmanager
    def _making(self, key: str, path: Path) -> Iterator[Path | None]:
        """The part of a file that this process alone makes; None where the file is there when it has the lock."""
        part = self._parts / key
        while True:
            with part.open("a+b") as lock, _flocked(lock.fileno()):  # waits for who makes it now
                with self._locked():
                    if not _is_at(lock.fileno(), part):
                        continue
                    if path.is_file():
                        part.unlink()
                        yield None
                        return
                    try:
                        self._make_room(key)
                    except NoRoomError:
                        part.unlink()
                        raise
                try:
                    yield part
                finally:
                    if _is_at(lock.fileno(), part):
                        part.unlink()
                return

    @contextmanager
    def scratch(self, size: int) -> Iterator[Path]:
        """A file of so many bytes that something is made of: it goes at the end, or with the process."""
        part = self._parts / f"{secrets.token_hex(8)}.{size}"
        with ExitStack() as held:
            with self._locked():  # else it would be taken for what a killed process left
                lock = held.enter_context(part.open("a+b"))
                held.enter_context(_flocked(lock.fileno()))
            try:
                yield part
            finally:
                part.unlink(missing_ok=True)

    def _make_room(self, key: str) -> None:
        """Removes what was not used for longest, until a file fits in.

        Raises:
            NoRoomError: what is left is in use.
        """
        with os.scandir(self.files) as entries:
            there = sorted((entry.stat().st_mtime_ns, entry.name) for entry in entries)
        making = [key, *(part.name for part in self._parts.iterdir() if part.name != key and self._is_made(part))]
        total = sum(map(_bytes, [*making, *(name for _, name in there)]))
        if total <= self.most:
            return
        used = self._in_use()
        for _, name in there:
            if total <= self.most:
                return
            if name not in used:
                shutil.rmtree(self.files / name)
                total -= _bytes(name)
        if total > self.most:
            raise NoRoomError(
                f"the cache {self.folder} of {self.most / GIGABYTE:.3g} GB is full of files in use",
                remedy=f"give cache_bytes= {total} or more, or read less at a time",
            )

    def _is_made(self, part: Path) -> bool:
        """Whether a process makes a file now; what one that ended has left of it goes."""
        with suppress(FileNotFoundError), part.open("r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            part.unlink()
        return False

    @property
    def bytes(self) -> int:
        """Bytes of the files that are there."""
        with self._locked():
            return sum(_bytes(path.name) for path in self.files.iterdir())


@contextmanager
def _flocked(descriptor: int) -> Iterator[None]:
    """Holds a lock, and frees it even where a child that was forked meanwhile has the descriptor too."""
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def _bytes(key: str) -> int:
    return int(key.rpartition(".")[2])
