"""The reading of units, and the process that does it: requests come and places in shared memory go as JSON.

A decoder imports no model. It ends when the channel to its parent closes, which the kernel does for a killed parent.
"""

import json
import mmap
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from embedders.decoding.ring_buffer import Ring
from extractors.extractor import imported
from extractors.items import UnitBatch, UnitRequest, VerdictError
from warehouse.errors import TimeloomError

_T = TypeVar("_T")

PIECES = 3  # of a decoder's memory: a piece takes one of them at most, so that one is filled while another is sent


@dataclass(frozen=True)
class SpanRequest:
    """Units `start` to `stop` of one item, and the reader for them, which is asked for `block` at a time."""

    reader: str
    block: int
    root: Path
    paths: tuple[str, ...]
    geometry: Mapping[str, Any]
    start: int
    stop: int


@dataclass(frozen=True)
class Units:
    """The units from `first` up to `upto` that could be read: pixels (n, ...), and the `seconds` that it took."""

    first: int
    upto: int
    pixels: npt.NDArray[Any]
    indices: npt.NDArray[np.int64]
    places: npt.NDArray[np.int32]
    seconds: float


class UnreadableError(VerdictError):
    """Whatever the item's files made a decoder raise; `kind` is the exception's type, never its words."""

    def __init__(self, kind: str) -> None:
        super().__init__("failed_unreadable")
        self.kind = kind


class NoReaderError(TimeloomError):
    """A reader, or a library that it needs, is not installed: no item's fault."""

    def __init__(self, reader: str) -> None:
        super().__init__(f"the reader {reader} does not work here", remedy="install timeloom[imaging] and run again")


def read_span(request: SpanRequest) -> Iterator[Units]:
    """The units of a span in order.

    Raises:
        VerdictError: for the item as a whole; UnreadableError where its reader raised anything else or lost units.
        NoReaderError, MemoryError: which are the machine's fault, not the item's.
    """
    reader = _reader(request.reader)
    wanted = UnitRequest(request.root, request.paths, request.geometry, request.start, request.stop)
    first = request.start
    batches = _guarded(lambda: reader(wanted, request.block))
    while first < request.stop:
        begun = time.perf_counter()
        batch = _guarded(lambda: next(batches, None))
        seconds = time.perf_counter() - begun
        upto = min(first + request.block, request.stop)
        if batch is None or len(batch.pixels) + batch.failed != upto - first:
            raise UnreadableError("units missing")
        inside = (batch.indices >= first) & (batch.indices < upto)
        if not (len(batch.indices) == len(batch.pixels) == len(batch.places) and inside.all()):
            raise UnreadableError("units astray")
        yield Units(first, upto, batch.pixels, batch.indices, batch.places, seconds)
        first = upto


def _reader(named: str) -> Callable[[UnitRequest, int], Iterator[UnitBatch]]:
    try:
        return imported(named)
    except (ImportError, AttributeError) as error:
        raise NoReaderError(named) from error


def _guarded(step: Callable[[], _T]) -> _T:
    try:
        return step()
    except (VerdictError, MemoryError):
        raise
    except Exception as error:
        raise UnreadableError(type(error).__name__) from error


def serve(channel: int, memory: int, size: int) -> None:
    """A decoder's life, over inherited descriptors: a socket, and shared memory of `size` bytes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the run's to hear
    _Decoder(Connection(channel), memory, size).work()


class _Decoder:
    def __init__(self, channel: Connection, memory: int, size: int) -> None:
        self._channel = channel
        self._memory = np.frombuffer(mmap.mmap(memory, size), dtype=np.uint8)
        os.close(memory)
        self._ring = Ring(size)
        self._changed = threading.Condition()
        self._requests: SimpleQueue[dict[str, Any]] = SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        """Hears the parent also while a codec works; its end is this process's."""
        while True:
            try:
                message = json.loads(self._channel.recv_bytes())
            except (EOFError, OSError):
                os._exit(0)
            if "free" in message:
                with self._changed:
                    for offset in message["free"]:
                        self._ring.free(offset)
                    self._changed.notify()
            else:
                self._requests.put(message)

    def _send(self, **message: Any) -> None:
        try:
            self._channel.send_bytes(json.dumps(message).encode())
        except OSError:
            os._exit(0)

    def work(self) -> None:
        self._send(ready=True)
        while True:
            request = self._requests.get()
            number, reader = request.pop("number"), request["reader"]
            self._send(begun=number)
            try:
                paths = tuple(request.pop("paths"))
                for units in read_span(SpanRequest(root=Path(request.pop("root")), paths=paths, **request)):
                    self._hand_over(number, units)
                self._send(ended=number)
            except VerdictError as error:
                self._send(failed=number, verdict=error.verdict, kind=getattr(error, "kind", None))
            except MemoryError:
                self._send(no_memory=number)
            except NoReaderError:
                self._send(no_reader=reader)

    def _hand_over(self, number: int, units: Units) -> None:
        """Sends units in pieces that fit, each with the units that failed before it and, at the end, behind it."""
        pixels, count = units.pixels, len(units.pixels)
        most = count if not pixels.nbytes else self._ring.size // PIECES // (pixels.nbytes // count)
        if count and not most:
            self._send(too_small=pixels.nbytes // count * PIECES)
            return
        first = units.first
        for start in range(0, max(count, 1), max(most, 1)):
            part = slice(start, start + most)
            last = start + most >= count
            upto = units.upto if last else int(units.indices[part.stop - 1]) + 1
            self._send(
                number=number,
                first=first,
                upto=upto,
                offset=self._place(pixels[part]),
                shape=pixels[part].shape,
                dtype=pixels.dtype.str,
                indices=units.indices[part].tolist(),
                places=units.places[part].tolist(),
                seconds=units.seconds if last else 0.0,
            )
            first = upto

    def _place(self, pixels: npt.NDArray[Any]) -> int | None:
        if not pixels.nbytes:
            return None
        with self._changed:
            # Said again each time: what was given back may not be the place that is waited for.
            while (offset := self._ring.take(pixels.nbytes)) is None:
                self._send(full=True)
                self._changed.wait()
        target = self._memory[offset : offset + pixels.nbytes]
        np.copyto(target.view(pixels.dtype).reshape(pixels.shape), pixels)
        return offset
