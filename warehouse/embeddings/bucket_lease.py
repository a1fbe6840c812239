"""Leases: which worker fills a bucket's store, on whichever machine it runs.

A lease is a file beside the store, `<bucket>.lease`, that its holder changes every few seconds. Clocks of machines are
never compared: whoever wants the bucket looks at the file again and again, and takes the lease over where it has not
changed for as long as it promises, by the clock of who looks. On the holder's machine the kernel says at once that it
has died. A lease is taken, taken over, looked at before each write and given back under one lock, `<bucket>.writer`,
which is held for moments: so a worker that was only slow finds that its lease is gone before it writes anything.

Where several machines share a root, its file system must pass `flock` from one to the others, as NFS 4 does.
"""

import errno
import fcntl
import json
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Self
from uuid import uuid4

from warehouse.embeddings.environments import not_writable, open_anew
from warehouse.embeddings.value import store_name
from warehouse.errors import TimeloomError
from warehouse.files import make_folder
from warehouse.layout import Layout

EXPIRES_SECONDS = 60.0
BEATS = 6  # changes of a lease in the time after which it expires
LOOKS = 4  # least looks at a lease in that time: who was stopped itself has not seen that nothing changed
LOCK_PATIENCE_SECONDS = 600.0  # a compaction holds a store's lock while it copies
_HEAD = b'{"beat": "'
_DIGITS = 12


class LeaseLostError(TimeloomError):
    """Another worker may fill the bucket: this one was slow, or its lease was deleted. Nothing of it was written."""

    def __init__(self, store: Path) -> None:
        super().__init__(
            f"the lease of embedding store {store_name(store)} is lost: this worker was stopped, or it was deleted",
            remedy="start the worker again; what it had stored stands, and nothing was written since",
        )

    def __reduce__(self) -> tuple[type[TimeloomError], tuple[str, str]]:
        """Processes hand it to each other."""
        return TimeloomError, (self.message, self.remedy)


def lease_path(store: Path) -> Path:
    """Where the lease of a store lies."""
    return store.with_suffix(".lease")


@cache
def _machine() -> str:
    """This machine since it was started: on it the kernel knows who lives."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return f"{socket.gethostname()}-{os.getppid()}"


@dataclass(frozen=True)
class Held:
    """What a lease says. `holder` is a host and a process; nothing of a patient stands in it.

    Attributes:
        beat: how often its holder has changed it.
        seconds: it expires when it has not changed for so long.
    """

    holder: str
    machine: str
    token: str
    seconds: float
    beat: int

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """None where there is no lease; one of nobody where it is damaged, or being written."""
        try:
            text = path.read_bytes()
        except OSError as error:
            # NFS says of a file that another machine removes between opening and reading that it is stale.
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
                return None
            raise
        try:
            found = json.loads(text)
            return cls(
                str(found["holder"]),
                str(found["machine"]),
                str(found["token"]),
                float(found["seconds"]),
                int(found["beat"]),
            )
        except (ValueError, KeyError, TypeError):
            return cls("nobody", "", text.hex()[:64], EXPIRES_SECONDS, 0)

    def line(self) -> bytes:
        """The file's content; `beat` stands in place."""
        rest = {"holder": self.holder, "machine": self.machine, "seconds": self.seconds, "token": self.token}
        return _HEAD + str(self.beat).zfill(_DIGITS).encode() + b'", ' + json.dumps(rest).encode()[1:] + b"\n"


class Lease:
    """A bucket that this process fills alone. See `take`."""

    def __init__(self, store: Path, seconds: float, descriptor: int, held: Held) -> None:
        self.store, self.seconds = store, seconds
        self._descriptor, self._held, self._beats = descriptor, held, 0
        self.due = time.monotonic() + seconds / BEATS

    @property
    def token(self) -> str:
        """Tells this lease from every other one of the bucket."""
        return self._held.token

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Whatever is written, or removed, of the bucket is so inside of this: no other worker writes it meanwhile.

        Raises:
            LeaseLostError: the lease is another worker's, or gone.
        """
        with _locked(self.store, LOCK_PATIENCE_SECONDS):
            found = Held.read(lease_path(self.store))
            if found is None or found.token != self.token:
                raise LeaseLostError(self.store)
            yield

    def beat(self) -> None:
        """Shows that its holder lives, until it is `due` again."""
        self._beats, self.due = self._beats + 1, time.monotonic() + self.seconds / BEATS
        with suppress(OSError):  # a disk that is away for a moment; where it stays away, writing says so
            os.pwrite(self._descriptor, str(self._beats).zfill(_DIGITS).encode(), len(_HEAD))
            os.fsync(self._descriptor)  # other machines see it now

    def give_back(self) -> None:
        """The bucket is free; of a lease that is lost, nothing is touched."""
        _heart.leave(self)
        try:
            with suppress(LeaseLostError, OSError), self.turn():
                lease_path(self.store).unlink(missing_ok=True)
        finally:
            self.close()

    def close(self) -> None:
        """This process has it no more; the file stays."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class _Heart:
    """One thread of a process, which shows that the holder of all of its leases lives."""

    def __init__(self) -> None:
        self._leases: list[Lease] = []
        self._guard = threading.Lock()
        self._woken = threading.Event()
        self._thread: threading.Thread | None = None

    def join(self, lease: Lease) -> None:
        with self._guard:
            self._leases.append(lease)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="leases", daemon=True)
                self._thread.start()
        self._woken.set()

    def leave(self, lease: Lease) -> None:
        with self._guard:
            if lease in self._leases:
                self._leases.remove(lease)

    def forget(self) -> None:
        """In a forked child: the leases are its parent's."""
        leases, self._leases = self._leases, []
        self.__init__()  # type: ignore[misc]
        for lease in leases:
            lease.close()

    def _run(self) -> None:
        while True:
            with self._guard:
                now = time.monotonic()
                for lease in self._leases:
                    if lease.due <= now:
                        lease.beat()
                due = min((lease.due for lease in self._leases), default=None)
            self._woken.wait(None if due is None else max(0.0, due - time.monotonic()))
            self._woken.clear()


_heart = _Heart()
os.register_at_fork(after_in_child=_heart.forget)


@dataclass
class _Look:
    """For how long a lease has been seen unchanged, and when it was last looked at."""

    held: Held
    at: float
    unchanged: float = 0.0


_looks: dict[Path, _Look] = {}


def _is_dead(path: Path, held: Held) -> bool:
    """Whether the holder of a lease has ended on this machine, or has shown no life for as long as it promised."""
    if held.machine == _machine() and _is_unlocked(path):
        return True
    look = _looks.get(path)
    if look is None or look.held != held:
        _looks[path] = _Look(held, time.monotonic())
        return False
    now = time.monotonic()
    look.unchanged += min(now - look.at, held.seconds / LOOKS)
    look.at = now
    return look.unchanged >= held.seconds


def _is_unlocked(path: Path) -> bool:
    """Whether no process of this machine has the lease: its holder keeps a lock on it as long as it lives."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return True
    except BlockingIOError:
        return False
    except OSError:  # given back meanwhile
        return True


def holder_of(store: Path) -> Held | None:
    """Who fills a bucket now; None where nobody does. One look: a worker of another machine may have died since."""
    path = lease_path(store)
    held = Held.read(path)
    return None if held is None or (held.machine == _machine() and _is_unlocked(path)) else held


def holders(layout: Layout) -> dict[str, int]:
    """By worker, a host and a process, the buckets that it fills now."""
    found = (holder_of(path.with_suffix(".lmdb")) for path in sorted(layout.root.glob("embeddings/*/*/*.lease")))
    return dict(Counter(held.holder for held in found if held is not None))


def dead_leases(layout: Layout) -> list[Path]:
    """Leases of workers that died on this machine; those of other machines are ended by who takes the bucket next."""
    found = sorted(layout.root.glob("embeddings/*/*/*.lease"))
    return [path for path in found if path.is_file() and holder_of(path.with_suffix(".lmdb")) is None]


def take(store: Path, seconds: float = EXPIRES_SECONDS) -> Lease | None:
    """The lease of a bucket; None where another worker has it. Ask again to find out whether that one lives.

    Args:
        seconds: this lease expires when its holder shows no life for so long.

    Raises:
        TimeloomError: the folder cannot be written.
    """
    path = lease_path(store)
    held = Held.read(path)
    if held is not None and not _is_dead(path, held):
        return None
    try:
        with _locked(store, 0.0):
            found = Held.read(path)
            if found is not None:
                if held is None or found.token != held.token or not _is_dead(path, found):
                    return None
                path.unlink(missing_ok=True)
            return _new(store, path, seconds)
    except _BusyError:
        return None


def _new(store: Path, path: Path, seconds: float) -> Lease:
    holder = f"{socket.gethostname()}-{os.getpid()}"
    held = Held(holder, _machine(), uuid4().hex, seconds, 0)
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o644)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.write(descriptor, held.line())
        os.fsync(descriptor)
    except OSError as error:
        raise not_writable(store, error) from error
    _looks.pop(path, None)
    lease = Lease(store, seconds, descriptor, held)
    _heart.join(lease)
    return lease


class _BusyError(TimeloomError):
    """Another process writes the store just now."""

    def __init__(self, store: Path) -> None:
        super().__init__(
            f"another worker is writing embedding store {store_name(store)}",
            remedy="wait until it has ended, and run again; it resumes",
        )


@contextmanager
def _locked(store: Path, patience: float) -> Iterator[None]:
    """Holds the lock of a store for a moment.

    Raises:
        _BusyError: another process has it for longer than `patience`, in seconds.
        TimeloomError: there is no place to write.
    """
    try:
        make_folder(store.parent)
        lock = store.with_suffix(".writer").open("a")
    except OSError as error:
        raise not_writable(store, error) from error
    until = time.monotonic() + patience
    with lock as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > until:
                    raise _BusyError(store) from error
                time.sleep(0.005)
        yield


@contextmanager
def undisturbed(store: Path) -> Iterator[None]:
    """No worker writes the store meanwhile: what is read of it is of one moment, and all that was written before, on
    whichever machine. For short readings."""
    if not store.with_suffix(".writer").is_file() or not os.access(store.parent, os.W_OK):
        yield
        return
    with _locked(store, LOCK_PATIENCE_SECONDS):
        open_anew(store)
        yield


@contextmanager
def sole_writer(store: Path, patience: float = 30.0) -> Iterator[Lease]:
    """Holds the lease of the store at `store` for this worker, who writes within its `turn`.

    LMDB lets several processes write in turns. Two workers would embed the same items twice, and share a checkpoint.

    Args:
        patience: seconds to wait for another worker, which may be a killed run's that is about to end. The lease of
            another machine, or of this one before it was started, is waited for until it has expired.

    Raises:
        TimeloomError: another worker has it still.
    """
    with sole_writers([store], patience) as leases:
        yield leases[0]


@contextmanager
def sole_writers(stores: Sequence[Path], patience: float = 30.0) -> Iterator[list[Lease]]:
    """As `sole_writer`, of several stores. Leases are taken in order, and those of the dead expire together."""
    first = {store: Held.read(lease_path(store)) for store in stores}
    until = time.monotonic() + patience
    leases: list[Lease] = []
    try:
        while len(leases) < len(stores):
            lease = take(stores[len(leases)])
            if lease is not None:
                leases.append(lease)
                continue
            silent = True
            for store in stores[len(leases) :]:
                held = Held.read(lease_path(store))
                if held is not None and not _is_dead(lease_path(store), held):
                    silent &= held == first[store] and held.machine != _machine()
            if not silent and time.monotonic() > until:
                raise _BusyError(stores[len(leases)])
            time.sleep(0.05)
        yield leases
    finally:
        for lease in leases:
            lease.give_back()
