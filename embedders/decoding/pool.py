"""Decoder processes, each with shared memory of its own, as one source of units; or none, and this process reads.

The memory has no name (an anonymous file that a decoder inherits), so nothing is left of it however a process ends. A
decoder that dies, or is silent for too long, is replaced, and what it was on is tried once more, from where it was.
"""

import json
import mmap
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from embedders.decoding.process import NoReaderError, SpanRequest, Units, UnreadableError, read_span
from extractors.items import VerdictError
from warehouse.errors import TimeloomError

AHEAD = 2  # spans that a decoder is given: the one it is on and the next
LIVES = 2  # how often a span may cost a decoder's life before its item is given up
TIMEOUT_SECONDS = 600.0  # without a sign of life; far more than any block of units takes


@dataclass(frozen=True)
class DecodedPiece:
    """Units of span `number`. `source`: whose memory their pixels lie in, at `offset`."""

    number: int
    units: Units
    source: int
    offset: int | None = None


@dataclass(frozen=True)
class Ended:
    """Span `number` is read to its end."""

    number: int


@dataclass(frozen=True)
class Failed:
    """Span `number` ended its item at unit `at`; `kind` is what was raised, where that was no verdict."""

    number: int
    at: int
    verdict: str
    kind: str | None


Event = DecodedPiece | Ended | Failed


class UnitSource(Protocol):
    """Where units come from."""

    @property
    def wanted(self) -> int:
        """How many more spans it takes now."""

    @property
    def idle(self) -> bool:
        """Whether it has nothing left to read."""

    def start(self) -> None:
        """Spans will come soon."""

    def put(self, number: int, request: SpanRequest) -> None: ...

    def events(self, patience: float) -> Sequence[Event]:
        """What has come since the last call, waiting `patience` seconds at most for the first."""

    def release(self, piece: DecodedPiece) -> None:
        """The piece's pixels are not needed any more."""

    def stalled(self) -> set[int]:
        """The `source` of pieces that must be released before more comes from there."""

    def close(self) -> None: ...


class InProcess:
    """Reads in this process, a block at each call of `events`."""

    def __init__(self) -> None:
        self._queue: deque[tuple[int, SpanRequest]] = deque()
        self._reading: Iterator[Event] | None = None

    @property
    def wanted(self) -> int:
        return 1 - len(self._queue)

    @property
    def idle(self) -> bool:
        return not self._queue and self._reading is None

    def start(self) -> None:
        pass

    def put(self, number: int, request: SpanRequest) -> None:
        self._queue.append((number, request))

    def events(self, patience: float) -> Sequence[Event]:
        if self._reading is None:
            if not self._queue:
                return []
            self._reading = _read(*self._queue.popleft())
        event = next(self._reading)
        if not isinstance(event, DecodedPiece):
            self._reading = None
        return [event]

    def release(self, piece: DecodedPiece) -> None:
        pass

    def stalled(self) -> set[int]:
        return set()

    def close(self) -> None:
        pass


def _read(number: int, request: SpanRequest) -> Iterator[Event]:
    at = request.start
    try:
        for units in read_span(request):
            at = units.upto
            yield DecodedPiece(number, units, source=0)
        yield Ended(number)
    except VerdictError as error:
        yield Failed(number, at, error.verdict, error.kind if isinstance(error, UnreadableError) else None)


@dataclass
class _Given:
    """A span that a decoder has been given, and where it is to go on."""

    number: int
    request: SpanRequest
    at: int


@dataclass
class _Child:
    identity: int
    process: "subprocess.Popen[bytes]"
    channel: Connection
    memory: npt.NDArray[np.uint8]
    given: deque[_Given] = field(default_factory=deque)
    seen: float = field(default_factory=time.monotonic)
    ready: bool = False
    full: bool = False


class Decoders:
    """`processes` decoders that share `memory_bytes`.

    Args:
        timeout: seconds without a sign of life after which a decoder counts as hanging.
    """

    def __init__(self, processes: int, memory_bytes: int, timeout: float = TIMEOUT_SECONDS) -> None:
        page = mmap.ALLOCATIONGRANULARITY
        self._share = max(page, memory_bytes // processes // page * page)
        self._processes, self._timeout = processes, timeout
        self._children: dict[int, _Child] = {}
        self._queue: deque[_Given] = deque()  # given back by decoders that died
        self._lost: dict[int, int] = {}  # span to decoders it has cost
        self._failed: list[Event] = []
        self._started = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pids(self) -> list[int]:
        return [child.process.pid for child in self._children.values()]

    @property
    def wanted(self) -> int:
        given = sum(len(child.given) for child in self._children.values())
        return self._processes * AHEAD - given - len(self._queue)

    @property
    def idle(self) -> bool:
        return not self._queue and not self._failed and not any(child.given for child in self._children.values())

    def start(self) -> None:
        while len(self._children) < self._processes:
            child = self._start()
            self._children[child.identity] = child

    def put(self, number: int, request: SpanRequest) -> None:
        self._give(_Given(number, request, request.start))

    def _give(self, given: _Given) -> None:
        """To the decoder that is already on this item, which has it open; else to the one with the least to do."""
        self.start()
        free = [child for child in self._children.values() if len(child.given) < AHEAD]
        if not free:
            self._queue.append(given)
            return
        child = min(free, key=lambda worker: (len(worker.given), not _same_item(worker, given), worker.identity))
        child.given.append(given)
        if len(child.given) == 1:
            child.seen = time.monotonic()
        request = given.request
        self._send(
            child,
            number=given.number,
            reader=request.reader,
            block=request.block,
            root=str(request.root),
            paths=request.paths,
            geometry=dict(request.geometry),
            start=given.at,
            stop=request.stop,
        )

    def _start(self) -> _Child:
        ours, theirs = socket.socketpair()
        with theirs, _anonymous(self._share) as descriptor:
            numbers = f"{theirs.fileno()}, {descriptor}, {self._share}"
            environment = {
                **os.environ,
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                "OMP_NUM_THREADS": "1",
            }
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", f"from embedders.decoding.process import serve; serve({numbers})"],
                pass_fds=(theirs.fileno(), descriptor),
                stdin=subprocess.DEVNULL,
                stderr=None if os.environ.get("TIMELOOM_DEBUG") else subprocess.DEVNULL,  # it may quote a file's path
                env=environment,
            )
            memory = np.frombuffer(mmap.mmap(descriptor, self._share), dtype=np.uint8)
        self._started += 1
        return _Child(self._started, process, Connection(ours.detach()), memory)

    def _send(self, child: _Child, **message: Any) -> None:
        with suppress(OSError):  # it is dead, which `events` finds out
            child.channel.send_bytes(json.dumps(message).encode())

    def events(self, patience: float) -> Sequence[Event]:
        events, self._failed = self._failed, []
        channels = {child.channel: child for child in self._children.values()}
        ready = wait(list(channels), 0.0 if events else patience) if channels else []
        for channel in ready:
            child = channels[channel]  # type: ignore[index]
            try:
                while child.channel.poll():
                    events += self._heard(child, json.loads(child.channel.recv_bytes()))
            except (EOFError, OSError):
                self._bury(child)
        now = time.monotonic()
        for child in list(self._children.values()):
            if child.given and not child.full and now - child.seen > self._timeout:
                self._bury(child)
        while self._queue and self._room:
            self._give(self._queue.popleft())
        events, self._failed = events + self._failed, []
        return events

    @property
    def _room(self) -> bool:
        few = len(self._children) < self._processes
        return few or any(len(child.given) < AHEAD for child in self._children.values())

    def _heard(self, child: _Child, message: dict[str, Any]) -> list[Event]:
        child.seen = time.monotonic()
        if "ready" in message:
            child.ready = True
        elif "full" in message:
            child.full = True
        elif "no_memory" in message:
            raise MemoryError
        elif "no_reader" in message:
            raise NoReaderError(message["no_reader"])
        elif "too_small" in message:
            raise TimeloomError(
                "the decoders' memory does not hold one image",
                remedy=f"raise embedding.memory_mb to {self._processes * message['too_small'] // 10**6 + 1} at least",
            )
        elif "ended" in message:
            child.given.popleft()
            return [Ended(message["ended"])]
        elif "failed" in message:
            given = child.given.popleft()
            return [Failed(given.number, given.at, message["verdict"], message["kind"])]
        elif "offset" in message:
            return [self._piece(child, message)]
        return []

    def _piece(self, child: _Child, message: dict[str, Any]) -> DecodedPiece:
        child.given[0].at = message["upto"]
        dtype, shape, offset = np.dtype(message["dtype"]), tuple(message["shape"]), message["offset"]
        if offset is None:
            pixels = np.empty(shape, dtype)
        else:
            size = int(np.prod(shape)) * dtype.itemsize
            pixels = child.memory[offset : offset + size].view(dtype).reshape(shape)
        units = Units(
            first=message["first"],
            upto=message["upto"],
            pixels=pixels,
            indices=np.array(message["indices"], dtype=np.int64),
            places=np.array(message["places"], dtype=np.int32).reshape(shape[0], -1),
            seconds=message["seconds"],
        )
        return DecodedPiece(message["number"], units, child.identity, offset)

    def _bury(self, child: _Child) -> None:
        """A decoder is dead, or as good as dead: the span it was on has one more try, in a fresh process."""
        del self._children[child.identity]
        _end(child)
        if not child.ready:
            raise TimeloomError(
                f"a decoder process does not start (exit code {child.process.returncode})",
                remedy="run with --debug to see why; with embedding.decoders: 0 the images are read without one",
            )
        if not child.given:
            return
        on = child.given.popleft()
        self._lost[on.number] = self._lost.get(on.number, 0) + 1
        if self._lost[on.number] >= LIVES:
            self._failed.append(Failed(on.number, on.at, "failed_unreadable", "decoder died"))
        else:
            self._queue.append(on)
        self._queue.extend(child.given)
        child.given.clear()

    def release(self, piece: DecodedPiece) -> None:
        child = self._children.get(piece.source)
        if piece.offset is not None and child is not None:
            if child.full:
                child.full, child.seen = False, time.monotonic()
            self._send(child, free=[piece.offset])

    def stalled(self) -> set[int]:
        return {child.identity for child in self._children.values() if child.full}

    def close(self) -> None:
        for child in self._children.values():
            _end(child)
        self._children.clear()


def _same_item(child: _Child, given: _Given) -> bool:
    return any(value.request.paths == given.request.paths for value in child.given)


def _end(child: _Child) -> None:
    child.process.kill()
    child.process.wait()
    child.channel.close()


@contextmanager
def _anonymous(size: int) -> Iterator[int]:
    """A descriptor of `size` bytes that have no name, and lie in memory where the system offers that."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("units")
        try:
            os.ftruncate(descriptor, size)
            yield descriptor
        finally:
            os.close(descriptor)
    else:
        with tempfile.TemporaryFile() as file:
            file.truncate(size)
            yield file.fileno()
