"""What every reader does: a cursor over steps that all ranks agree on, dealt, loaded ahead in a thread, resumed."""

import os
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from typing import Any, Generic, NamedTuple, Self, TypeVar, get_args

import torch
from torch.utils.data import IterableDataset, get_worker_info

from warehouse.errors import TimeloomError
from warehouse.files import sha256_json
from warehouse.readers.batch import IdBatch
from warehouse.readers.shuffle import Uneven

B = TypeVar("B", bound=IdBatch, covariant=True)
Cursor = tuple[int, ...]


class Step(NamedTuple):
    """One step of one rank.

    Attributes:
        share: what its reader loads.
        after: the cursor once the step is used.
        padding: rows that fill its batch up.
    """

    share: Any
    after: Cursor
    padding: int = 0


class Beginnings:
    """Where worker processes began to read, in memory that they and the process that started them share.

    A DataLoader starts new processes for each epoch unless they are persistent, each with a copy of the cursor as it
    was: without `set_epoch` they give the same batches again. Where there is no memory to share, nothing is said.
    """

    def __init__(self) -> None:
        # The last place, the process that began there, and whether it was said.
        self._shared = torch.zeros(3, dtype=torch.int64)
        with suppress(RuntimeError):
            self._shared.share_memory_()  # type: ignore[no-untyped-call]

    def note(self, place: Any) -> None:
        """Warns where another process began at that place before; once for the reader and its copies."""
        digest, process = int(sha256_json(place)[:15], 16), os.getpid()
        last, before, said = self._shared.tolist()
        self._shared[0], self._shared[1] = digest, process
        if last == digest and before not in (0, process) and not said:
            self._shared[2] = 1
            warnings.warn(
                "the workers of a DataLoader begin where those of the last epoch began, and give the same batches in "
                "the same order: call set_epoch before each epoch, or give persistent_workers=True",
                stacklevel=3,
            )


class BatchReader(IterableDataset[B], Generic[B]):
    """Base of what gives batches. A subclass says what the steps are and loads one; the cursor is its whole state."""

    seed: int | None = 0

    def __init__(self, rank: int, world_size: int) -> None:
        if not isinstance(rank, int) or not isinstance(world_size, int) or not 0 <= rank < world_size:
            raise TimeloomError(
                f"rank {rank} is not below world size {world_size}",
                remedy="give world_size >= 1 and 0 <= rank < world_size; any world size will do",
            )
        self.rank, self.world_size = rank, world_size
        self.cursor: Cursor = self.start()
        self.beginnings = Beginnings()

    def steps(self, batch_size: int, uneven: Uneven) -> Iterator[Step]:
        """This rank's steps from the cursor to the end."""
        raise NotImplementedError

    def load(self, step: Step) -> B:
        """The batch of a step; called from several threads."""
        raise NotImplementedError

    def begin(self, batch_size: int, uneven: Uneven) -> None:
        """Moves the cursor from an end to the next start."""
        raise NotImplementedError

    def end(self) -> Cursor:
        """The cursor when every step was taken."""
        raise NotImplementedError

    def start(self) -> Cursor:
        """The cursor of a reader that has given nothing yet."""
        raise NotImplementedError

    def finished(self, epochs: int) -> bool:
        """Whether the cursor stands behind that many epochs, or behind the token budget of what has no epochs."""
        raise NotImplementedError

    def salted(self, stage: int) -> Self:
        """A copy that shuffles as that stage of a curriculum."""
        raise NotImplementedError

    def bound(self) -> dict[str, Any]:
        """What a state of this reader belongs to."""
        raise NotImplementedError

    def check_batches(self, batch_size: int, uneven: Uneven) -> None:
        """Raises TimeloomError where no batch of that size can be made."""

    def steps_left(self, batch_size: int, uneven: Uneven) -> int | None:
        """How many steps iterating gives now, on every rank; None where only reading tells."""
        return None

    def __iter__(self) -> Iterator[B]:
        return iter(self.batches(1, prefetch=0))

    def batches(
        self,
        batch_size: int,
        *,
        prefetch: int = 2,
        uneven: Uneven = "pad",
        device: torch.device | str | None = None,
    ) -> "BatchStream[B]":
        """Batches of `batch_size` packs for this rank, from the cursor to the end.

        A step takes the next world_size x batch_size packs of the global order and deals them out like cards: with the
        same global batch, a step has the same packs whatever the world size. All ranks take the same number of steps.

        Args:
            prefetch: whole batches that a thread prepares ahead; 0 for none.
            uneven: what becomes of the packs behind the last full step. `pad`: every batch of every rank has
                `batch_size` rows; what is left, and the full step before it, make the last two steps, filled up by rows
                of padding that are no targets and count as no pack, segment or item (`IdBatch.real_rows`). `drop`: they
                are left out. `ragged`: one more step has them, in smaller batches or empty ones (0, L).
            device: where the tensors shall be; on CUDA they are pinned and copied ahead, on a stream of their own.

        Raises:
            TimeloomError: batch_size below 1, or above what there is with `drop`; another `uneven`.
        """
        whole = isinstance(batch_size, int) and isinstance(prefetch, int)
        if not whole or batch_size < 1 or prefetch < 0:
            raise TimeloomError("batch_size is below 1 or prefetch below 0", remedy="give positive whole numbers")
        if uneven not in get_args(Uneven):
            raise TimeloomError(
                f"batches cannot end by {uneven}", remedy=f"give uneven= one of {', '.join(get_args(Uneven))}"
            )
        self.check_batches(batch_size, uneven)
        return BatchStream(self, batch_size, prefetch, uneven, None if device is None else torch.device(device))


class BatchStream(IterableDataset[B], Generic[B]):
    """One rank's batches to the end; made by `BatchReader.batches`.

    Its length is the number of batches that iterating gives now, from the cursor to the end: the steps of an epoch
    where the cursor stands at a start. What ends with a token budget, or never, has none (TypeError).

    Under a torch DataLoader (`DataLoader(stream, batch_size=None, num_workers=2)`) the workers take turns. They work on
    copies of the cursor: call `set_epoch` before each epoch, and take states with `state_dict(after=batch)`. Workers
    that begin twice at the same place say once that the order repeats.
    """

    def __init__(
        self, reader: BatchReader[B], batch_size: int, prefetch: int, uneven: Uneven, device: torch.device | None
    ) -> None:
        self.reader, self.batch_size, self.prefetch, self.uneven = reader, batch_size, prefetch, uneven
        self.device = device

    def __len__(self) -> int:
        steps = self.reader.steps_left(self.batch_size, self.uneven)
        if steps is None:
            raise TypeError("how many batches there are is known when they have been read")
        return steps

    def __iter__(self) -> Iterator[B]:
        reader, worker = self.reader, get_worker_info()
        reader.begin(self.batch_size, self.uneven)
        if worker is not None and worker.id == 0 and reader.seed is not None:
            reader.beginnings.note([reader.bound(), reader.seed, reader.cursor])
        steps = reader.steps(self.batch_size, self.uneven)
        if worker:
            steps = islice(steps, worker.id, None, worker.num_workers)
        mover = Mover(self.device) if self.device is not None else None
        load = reader.load if mover is None else lambda step: mover.send(reader.load(step))
        depth = 0 if worker else self.prefetch
        for loaded in _ahead(steps, load, depth) if depth else map(load, steps):
            batch = loaded if mover is None else mover.receive(loaded)
            reader.cursor = batch.cursor
            yield batch
        reader.cursor = reader.end()


T = TypeVar("T")


def _ahead(steps: Iterator[Step], load: Callable[[Step], T], depth: int) -> Generator[T, None, None]:
    """Takes and loads steps in a thread, `depth` ahead, and gives them in order; closing it ends the thread.

    One thread: a second one waits for the interpreter's lock more than it works. Steps are taken there too, as a
    mixture with a token budget reads packs to count their targets.
    """

    def following() -> T | None:
        step = next(steps, None)
        return None if step is None else load(step)

    waiting: deque[Future[T | None]] = deque()
    pool = ThreadPoolExecutor(1, thread_name_prefix="timeloom-prefetch")
    try:
        waiting.extend(pool.submit(following) for _ in range(depth))
        while True:
            waiting.append(pool.submit(following))
            loaded = waiting.popleft().result()
            if loaded is None:
                return
            yield loaded
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _cuda_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class Mover:
    """Moves batches to a device. On CUDA the copy runs on a stream of its own, from pinned memory, ahead of its use."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = _cuda_stream(device) if device.type == "cuda" else None

    def send(self, batch: Any) -> Any:
        """Starts the copy: called where the batch is made."""
        if self._stream is None:
            return batch.to(self.device)
        with torch.cuda.stream(self._stream):
            moved = batch.pin_memory().to(self.device, non_blocking=True)
            return moved, self._stream.record_event()

    def receive(self, sent: Any) -> Any:
        """The batch, usable on the current stream: called where it is used."""
        if self._stream is None:
            return sent
        moved, copied = sent
        current = torch.cuda.current_stream(self.device)
        current.wait_event(copied)

        def kept(tensor: torch.Tensor) -> torch.Tensor:
            tensor.record_stream(current)
            return tensor

        return moved.map(kept)
