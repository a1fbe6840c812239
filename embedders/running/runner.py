"""One runner for all encoders: decoders → batches that mix items → the device → means → stores, resumable at any point.

The device gets its next batch before the last one's vectors are asked for, so it does not wait between items. What the
stores hold already is not made again; a bad item ends with its verdict and stops nobody.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from embedders.decoding.pool import TIMEOUT_SECONDS, DecodedPiece, Decoders, Event, Failed, InProcess, UnitSource
from embedders.decoding.process import SpanRequest
from embedders.encoders.build import Encoder, Pending
from embedders.running.rates import RunFigures
from embedders.running.spans import EmbeddedItem, ItemToEmbed, Progress, Span
from embedders.running.store_bucket import Bucket, OpenBucket
from extractors.modalities import EXTRACTORS

__all__ = ["Bucket", "EmbeddedItem", "ItemToEmbed", "RunFigures", "RunnerSettings", "embed_buckets"]

DEPTH = 2  # batches on the device's queue while another is gathered
PATIENCE_SECONDS = 0.05
TELLING_SECONDS = 30.0  # between two lines of the log that say how far the run is

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunnerSettings:
    """How a run works; nothing here changes a bit of what it stores.

    Attributes:
        decoders: processes that read images; with 0 this process reads them.
        memory_mb: shared memory of all decoders.
        checkpoint_seconds, checkpoint_units: at most so much work is lost to a kill, whichever comes first.
        decode_timeout: seconds after which a decoder that says nothing is hanging.
    """

    decoders: int = 0
    memory_mb: int = 1024
    checkpoint_seconds: float = 60.0
    checkpoint_units: int = 65_536
    decode_timeout: float = TIMEOUT_SECONDS


@dataclass
class _Work:
    """A span that is being read: how many of its pieces are not resolved yet, and whether more can come."""

    bucket: OpenBucket
    progress: Progress
    span: Span
    outstanding: int = 0
    ended: bool = False


@dataclass
class _Waiting:
    """Units of one piece that wait for a batch: those from `taken` on."""

    piece: DecodedPiece
    taken: int = 0


@dataclass
class _Queue:
    """Decoded units for one encoder, oldest first."""

    encoder: Encoder
    waiting: deque[_Waiting] = field(default_factory=deque)
    units: int = 0


@dataclass(frozen=True)
class _Part:
    """Where units `start` to `stop` of a piece stand in their batch. `last`: the piece ends with them.

    `tokens`: how many vectors each of them makes (n,), None where each makes one.
    """

    piece: DecodedPiece
    start: int
    stop: int
    place: int
    last: bool
    tokens: npt.NDArray[np.int64] | None


@dataclass(frozen=True)
class _Batch:
    """A batch on the device; `pending` is None where all units of its parts have failed."""

    pending: Pending | None
    store: str
    shape: tuple[int, ...]
    parts: list[_Part]


def embed_buckets(
    buckets: Iterable[Bucket],
    settings: RunnerSettings,
    *,
    progress: Callable[[EmbeddedItem], None] | None = None,
) -> tuple[dict[Path, list[EmbeddedItem]], RunFigures]:
    """Embeds every item of `buckets` that has no outcome yet; gives all outcomes by store, and what the run was like.

    What is stored, and the outcomes, are the same field by field and (on the CPU) bit by bit whatever `settings`, the
    other items, and however often the run was killed. Torch runs on one thread meanwhile, so that bits do not depend on
    the number of cores: on the CPU use a process per core.

    Args:
        buckets: those of one encoder should stand together. Each is asked for when there is room for its items, so that
            leases may be taken as work is wanted.
        progress: called with each item's outcome when it is certain, not when it is stored.

    Raises:
        TimeloomError: a store cannot be written, or has another writer; a lease is lost; images that were indexed are
            away; an encoder or a decoder does not work.
        MemoryError: this machine has too little.
    """
    source: UnitSource = InProcess()
    if settings.decoders:
        source = Decoders(settings.decoders, settings.memory_mb << 20, settings.decode_timeout)
    asked = iter(buckets)
    first = list(islice(asked, 1))
    runner = _Runner(chain(first, asked), settings, source, progress)
    try:
        # Without a bucket nothing asks for torch, which takes seconds and 200 MB to import.
        with _one_thread() if first else nullcontext():
            outcomes, figures = runner.run()
            source.close()  # a decoder at work would make the device's peak look lower than it is
            figures.measure_peaks()
        return outcomes, figures
    finally:
        source.close()
        runner.close()


class _Runner:
    def __init__(
        self,
        buckets: Iterable[Bucket],
        settings: RunnerSettings,
        source: UnitSource,
        progress: Callable[[EmbeddedItem], None] | None,
    ) -> None:
        self._buckets, self._settings, self._source, self._progress = buckets, settings, source, progress
        self._open: dict[Path, OpenBucket] = {}
        self._taken_up: set[Path] = set()  # buckets whose items are all in work, or done
        self._outcomes: dict[Path, list[EmbeddedItem]] = {}
        self._works: dict[int, _Work] = {}
        self._queues: dict[str, _Queue] = {}  # by the name of the encoder's store
        self._device: deque[_Batch] = deque()
        self._spans = self._schedule()
        self._exhausted = False
        self._number = 0
        self._figures = RunFigures(settings.decoders, settings.memory_mb if settings.decoders else 0)
        self._saved_at, self._saved_units = time.monotonic(), 0
        self._told_at = time.monotonic()

    def run(self) -> tuple[dict[Path, list[EmbeddedItem]], RunFigures]:
        while True:
            self._feed()
            if (store := self._ready()) is not None:
                self._submit(store)
            elif not (self._exhausted and self._source.idle):
                for event in self._source.events(PATIENCE_SECONDS):
                    self._hear(event)
            elif self._device:
                self._resolve()
            else:
                break
            if self._due:
                self._save()
            if time.monotonic() - self._told_at >= TELLING_SECONDS:
                self._told_at = time.monotonic()
                _log.info("%d units of this run are encoded, %d items done", self._figures.units, self._figures.items)
        self._figures.end()
        return self._outcomes, self._figures

    def close(self) -> None:
        """Gives the stores back, in whatever state the run is."""
        for bucket in self._open.values():
            bucket.__exit__()
        self._open.clear()

    def _schedule(self) -> Iterator[tuple[OpenBucket, Progress, Span]]:
        """Every span that may have to be read; takes buckets and items up on the way, as decoders want work."""
        for bucket in self._buckets:
            self._open[bucket.store] = opened = OpenBucket(bucket).__enter__()
            for item in bucket.items:
                taken_up = opened.begin(item)
                if taken_up is None:
                    self._tell(opened.results[item.item_key])
                    continue
                if bucket.spec.store_name not in self._queues:
                    self._build(item.modality, bucket)
                self._settle(opened, taken_up)  # all of it may have been encoded before a kill
                for span in taken_up.spans:
                    yield opened, taken_up, span
            self._taken_up.add(bucket.store)
            self._close_if_done(opened)

    def _build(self, modality: str, bucket: Bucket) -> None:
        self._source.start()
        begun = time.perf_counter()
        encoder = bucket.encoder()
        store = bucket.spec.store_name
        self._queues[store] = _Queue(encoder)
        self._figures.add_encoder(store, modality, encoder, time.perf_counter() - begun)

    def _feed(self) -> None:
        while not self._exhausted and self._source.wanted > 0:
            found = next(self._spans, None)
            if found is None:
                self._exhausted = True
                return
            bucket, progress, span = found
            if not progress.wants(span):
                continue
            self._number += 1
            self._works[self._number] = _Work(bucket, progress, span)
            self._source.put(self._number, _request(progress.item, span))

    def _hear(self, event: Event) -> None:
        work = self._works[event.number]
        if isinstance(event, DecodedPiece):
            self._figures.decode_seconds += event.units.seconds
            if work.progress.refused:
                self._source.release(event)
                return
            queue = self._queues[work.bucket.bucket.spec.store_name]
            queue.waiting.append(_Waiting(event))
            queue.units += len(event.units.pixels)
            work.outstanding += 1
            return
        work.ended = True
        if isinstance(event, Failed):
            if event.kind:
                self._figures.errors[event.kind] = self._figures.errors.get(event.kind, 0) + 1
            work.span.end(event.at, event.verdict)
            self._settle(work.bucket, work.progress)
        self._forget_if_done(event.number)

    def _ready(self) -> str | None:
        """The store whose next batch is to be submitted: a full one, or what there is where no more can come."""
        for store, queue in self._queues.items():
            if queue.units >= queue.encoder.batch_size:
                return store
        last = self._exhausted and self._source.idle
        stalled = self._source.stalled()
        for store, queue in self._queues.items():
            if queue.waiting and (last or any(entry.piece.source in stalled for entry in queue.waiting)):
                return store
        return None

    def _submit(self, store: str) -> None:
        queue = self._queues[store]
        encoder = queue.encoder
        parts: list[_Part] = []
        place = 0
        while queue.waiting:
            piece, start = queue.waiting[0].piece, queue.waiting[0].taken
            stop = min(len(piece.units.pixels), start + encoder.batch_size - place)
            last = stop == len(piece.units.pixels)
            if stop == start and not last:
                break
            tokens = encoder.spec.tokens_of(piece.units.pixels[start:stop])
            parts.append(_Part(piece, start, stop, place, last, tokens))
            place += stop - start
            queue.waiting[0].taken = stop
            if last:
                queue.waiting.popleft()
        queue.units -= place
        pending = encoder.submit([part.piece.units.pixels[part.start : part.stop] for part in parts]) if place else None
        for part in parts:
            if part.last:
                self._source.release(part.piece)  # the encoder has its copy
        self._figures.loads[store].units += place
        self._figures.units += place
        self._device.append(_Batch(pending, store, encoder.vector_shape, parts))
        while len(self._device) > DEPTH:
            self._resolve()

    def _resolve(self) -> None:
        """Takes the oldest batch's vectors to their items."""
        batch = self._device.popleft()
        vectors = np.empty((0, *batch.shape), np.float32)
        if batch.pending is not None:
            vectors = batch.pending.result()
            self._figures.encoded(batch.store, batch.pending.seconds)
        for part in batch.parts:
            piece = part.piece
            work = self._works[piece.number]
            work.outstanding -= part.last
            if not work.progress.refused:
                upto = piece.units.upto if part.last else int(piece.units.indices[part.stop - 1]) + 1
                inside = slice(part.start, part.stop)
                rows = vectors[part.place : part.place + part.stop - part.start]
                work.span.add(upto, piece.units.indices[inside], rows, piece.units.places[inside], part.tokens)
                self._settle(work.bucket, work.progress)
            self._forget_if_done(piece.number)

    def _settle(self, bucket: OpenBucket, progress: Progress) -> None:
        result = bucket.settle(progress)
        if result is not None:
            self._figures.items += 1
            self._tell(result)
            self._close_if_done(bucket)

    def _tell(self, result: EmbeddedItem) -> None:
        if self._progress is not None:
            self._progress(result)

    def _forget_if_done(self, number: int) -> None:
        work = self._works[number]
        if work.ended and not work.outstanding:
            del self._works[number]

    def _close_if_done(self, bucket: OpenBucket) -> None:
        store = bucket.bucket.store
        if store not in self._taken_up or bucket.in_work:
            return
        self._outcomes[store] = bucket.finish()
        self._figures.rounding_error = max(self._figures.rounding_error, bucket.rounding_error)
        self._figures.resumed_units += bucket.resumed
        del self._open[store]
        bucket.__exit__()

    @property
    def _due(self) -> bool:
        units = self._figures.units - self._saved_units
        seconds = time.monotonic() - self._saved_at
        return units >= self._settings.checkpoint_units or seconds >= self._settings.checkpoint_seconds

    def _save(self) -> None:
        """Bounds what a kill costs: stores what has ended, and how far the others are."""
        for bucket in list(self._open.values()):
            bucket.commit()
        self._saved_at, self._saved_units = time.monotonic(), self._figures.units


def _request(item: ItemToEmbed, span: Span) -> SpanRequest:
    extractor = EXTRACTORS[item.modality]
    reader, block = extractor.read_units, extractor.units_a_batch
    return SpanRequest(reader, block, item.root, item.paths, item.geometry, start=span.done, stop=span.stop)


@contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
