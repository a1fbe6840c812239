"""A split's packs as a torch dataset: a deterministic order, dealt to ranks, resumed from a cursor of a few bytes."""

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import IterableDataset, get_worker_info

from warehouse import batches
from warehouse.batches import Batch, Ints
from warehouse.errors import TimeloomError
from warehouse.hashing import bucket_of, splitmix64
from warehouse.reader import REMEDY, Release, check_split
from warehouse.shards import Packs, map_shard, read_header, read_pack_ids
from warehouse.tokens import MODALITIES
from warehouse.vocabulary import vocabulary_hash

STAGE = 0  # later stages of a curriculum shuffle with a salt of their own


def global_order(pack_ids: Ints, seed: int | None, stage: int, epoch: int) -> Ints:
    """The order (P,) in which an epoch reads packs: the same on every platform and for every world size."""
    if seed is None:
        return np.argsort(pack_ids, kind="stable")
    return np.lexsort((pack_ids, splitmix64(pack_ids, seed, stage, epoch)))


class ShardDataset(IterableDataset[Batch]):
    """The packs of one split, in a global order that every rank agrees on; made by `Release.shards`.

    It holds a cursor: (epoch, packs consumed by all ranks together). Iterating continues at the cursor, and starts the
    next epoch where the last was finished. Iterating the dataset itself gives batches of one pack.
    """

    def __init__(
        self,
        release: Release,
        profile: str,
        split: str,
        rank: int,
        world_size: int,
        seed: int | None,
        loss: str,
        vectors: bool,
    ) -> None:
        release.check_profile(profile)
        check_split(split)
        batches.loss_targets(loss)
        if not 0 <= rank < world_size:
            raise TimeloomError(
                f"rank {rank} is not below world size {world_size}", remedy="give 0 <= rank < world_size"
            )
        self.release, self.profile, self.split = release, profile, split
        self.rank, self.world_size, self.seed = rank, world_size, seed
        self.loss, self.vectors = loss, vectors
        self.epoch = 0
        self.consumed = 0
        entry = release.manifest.profiles[profile]
        self.context = entry.context
        self.stores: dict[str, str] = {}
        self._paths = release.present([release.files.shard(profile, split, group) for group in range(entry.groups)])
        if not self._paths:
            raise TimeloomError(f"profile {profile} has no shards of split {split}", remedy="choose another split")
        vocabulary = release.vocabulary(profile)
        if vocabulary_hash(vocabulary) != entry.vocabulary_hash:
            raise TimeloomError(
                f"{release.relative(self._paths[0])} was written with another vocabulary than the manifest names",
                remedy=REMEDY,
            )
        # One hash for each prefix that shards name, not one for each shard.
        prefix = cache(partial(vocabulary_hash, vocabulary))
        for path in self._paths:
            self._check_header(path, prefix)
        # A block is a row group of a shard; a pack is known by its block and its row there.
        ids = [(shard, group) for shard, path in enumerate(self._paths) for group in read_pack_ids(path)]
        sizes = [len(group) for _, group in ids]
        self._block_shard = [shard for shard, _ in ids]
        self._pack_ids = np.concatenate([np.empty(0, np.int64), *(group for _, group in ids)])
        self._pack_block = np.repeat(np.arange(len(sizes)), sizes)
        self._pack_row = np.concatenate([np.empty(0, np.int64), *(np.arange(size) for size in sizes)])
        self._open: dict[int, Packs] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Maps stay with the process that made them; a spawned worker opens its own.
        return {**self.__dict__, "_open": {}}

    def __len__(self) -> int:
        """Packs of the split, over all ranks."""
        return len(self._pack_ids)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches(1, prefetch=0))

    def batches(self, batch_size: int, *, prefetch: int = 2, drop_last: bool = False) -> "BatchStream":
        """Batches of `batch_size` packs for this rank, from the cursor to the end of the epoch.

        A step takes the next world_size x batch_size packs of the global order and deals them out like cards: with the
        same global batch, a step has the same packs whatever the world size. The last step of an epoch deals what is
        left, so that some ranks get a smaller batch or an empty one (0, L); all ranks take the same number of steps.

        Args:
            prefetch: whole batches that a background thread prepares ahead; 0 for none.
            drop_last: leave out an incomplete last step.

        Raises:
            TimeloomError: batch_size below 1, or above what the split fills when the last step is dropped.
        """
        if batch_size < 1 or prefetch < 0:
            raise TimeloomError("batch_size is below 1 or prefetch below 0", remedy="give positive numbers")
        if drop_last and len(self) < batch_size * self.world_size:
            raise TimeloomError(
                f"split {self.split} has {len(self)} packs, fewer than one global batch",
                remedy="make the batch smaller or set drop_last=False",
            )
        return BatchStream(self, batch_size, prefetch, drop_last)

    def set_epoch(self, epoch: int) -> None:
        """Goes to the start of an epoch; keeps its place where that epoch is under way, as after a resume."""
        if epoch != self.epoch:
            self.epoch, self.consumed = epoch, 0

    def state_dict(self, after: Batch | None = None) -> dict[str, Any]:
        """The cursor behind the last batch given out, or behind `after`, a batch that a DataLoader's worker made."""
        return {
            "manifest": self.release.manifest.content_hash,
            "profile": self.profile,
            "split": self.split,
            "seed": self.seed,
            "epoch": self.epoch if after is None else after.epoch,
            "consumed": self.consumed if after is None else after.consumed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where `state` was taken, also with another world size, batch size or rank.

        Raises:
            TimeloomError: the state is of another release, profile or split.
        """
        mine = self.state_dict()
        if set(state) != set(mine):
            raise TimeloomError("this is no state of a shard reader", remedy="give what state_dict() returned")
        for name in ("manifest", "profile", "split"):
            if state[name] != mine[name]:
                raise TimeloomError(
                    f"the reader's state was taken with another {name}",
                    remedy="open the same release (Release.open(root, release=...)), profile and split",
                )
        self.seed, self.epoch, self.consumed = state["seed"], int(state["epoch"]), int(state["consumed"])

    def load(self, packs: Ints) -> Batch:
        """The batch of the packs (n,) given as indices into the stored order; its rows stand in stored order.

        Raises:
            TimeloomError: a shard or an embedding store that these packs need is missing or damaged.
        """
        packs = np.sort(packs)
        block_of, row_of = self._pack_block[packs], self._pack_row[packs]
        chosen = [(self._block(int(block)), row_of[block_of == block]) for block in np.unique(block_of)]
        gathered = batches.gather(chosen, self.context)
        return batches.collate(gathered, self.loss, self._vectors(gathered))

    def _check_header(self, path: Path, prefix: Callable[[int], str]) -> None:
        name, header = self.release.relative(path), read_header(path)
        entry = self.release.manifest.profiles[self.profile]
        if prefix(header.vocabulary_size) != header.vocabulary_hash:
            raise TimeloomError(f"{name} was written with another vocabulary than the manifest names", remedy=REMEDY)
        if (header.profile, header.split, header.context) != (self.profile, self.split, entry.context):
            raise TimeloomError(f"{name} is of another profile, split or context than its place says", remedy=REMEDY)
        for modality, store in header.stores.items():
            encoder = self.release.manifest.encoders.get(modality)
            if modality not in MODALITIES or encoder is None or encoder.store != store:
                raise TimeloomError(f"{name} names a {modality} store that the manifest does not", remedy=REMEDY)
        self.stores |= header.stores

    def _block(self, block: int) -> Packs:
        if block not in self._open:
            shard = self._block_shard[block]
            _, opened = map_shard(self.release.checked(self._paths[shard]))
            self._open |= dict(enumerate(opened, start=self._block_shard.index(shard)))
        return self._open[block]

    def _vectors(self, packs: Packs) -> dict[str, npt.NDArray[np.float32]]:
        """Modality to (n, d) float32, in the order of the packs' images."""
        images = np.arange(len(packs.image_key))
        pack = np.repeat(np.arange(len(packs)), packs.images_per_pack)
        # The segment that holds an image: cumulative lengths, packs laid end to end.
        start = np.cumsum(packs.length, dtype=np.int64) - packs.length
        ends = np.cumsum(packs.segment_length, dtype=np.int64)
        segment = np.searchsorted(ends, start[pack] + packs.image_position, side="right")
        buckets = bucket_of(packs.segment_subject[segment], self.release.manifest.buckets)
        result = {}
        for modality, store in self.stores.items():
            which = images[packs.image_modality == MODALITIES.index(modality)]
            dim = self.release.manifest.encoders[modality].dim
            result[modality] = np.empty((len(which) if self.vectors else 0, dim), dtype=np.float32)
            for row, image in enumerate(which if self.vectors else ()):
                vector = self.release.stored_vector(modality, store, int(buckets[image]), packs.image_key[image])
                if vector.shape != (dim,):
                    raise TimeloomError(f"a {modality} vector is not ({dim},)", remedy="run `timeloom verify`")
                result[modality][row] = vector
        return result


class BatchStream(IterableDataset[Batch]):
    """One rank's batches to the end of the epoch; made by `ShardDataset.batches`.

    Under a torch DataLoader (`DataLoader(stream, batch_size=None, num_workers=2)`) the workers take turns. They work on
    copies of the cursor: call `set_epoch` before each epoch, and take states with `state_dict(after=batch)`.
    """

    def __init__(self, dataset: ShardDataset, batch_size: int, prefetch: int, drop_last: bool) -> None:
        self.dataset, self.batch_size, self.prefetch, self.drop_last = dataset, batch_size, prefetch, drop_last

    def __iter__(self) -> Iterator[Batch]:
        dataset, worker = self.dataset, get_worker_info()
        left = len(dataset) - dataset.consumed
        if dataset.consumed and left < (self.batch_size * dataset.world_size if self.drop_last else 1):
            dataset.epoch, dataset.consumed = dataset.epoch + 1, 0
        made = self._made(worker.id, worker.num_workers) if worker else self._made(0, 1)
        source = _ahead(made, self.prefetch) if self.prefetch and not worker else made
        try:
            for batch in source:
                dataset.epoch, dataset.consumed = batch.epoch, batch.consumed
                yield batch
        finally:
            source.close()
        dataset.epoch, dataset.consumed = dataset.epoch + 1, 0

    def _made(self, worker: int, workers: int) -> Generator[Batch, None, None]:
        """Batches of steps worker, worker + workers, … of the rest of the epoch."""
        dataset, epoch, start = self.dataset, self.dataset.epoch, self.dataset.consumed
        order = global_order(dataset._pack_ids, dataset.seed, STAGE, epoch)
        world = self.batch_size * dataset.world_size
        end = len(order) - (len(order) - start) % world if self.drop_last else len(order)
        for step in range(start + worker * world, end, world * workers):
            dealt = order[step : min(step + world, end)][dataset.rank :: dataset.world_size]
            yield replace(dataset.load(dealt), epoch=epoch, consumed=min(step + world, end))


def _ahead(source: Generator[Batch, None, None], depth: int) -> Generator[Batch, None, None]:
    """Runs a generator in a thread, `depth` batches ahead; closing it ends the thread."""
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def put(entry: Batch | BaseException | None) -> None:
        while not stopped.is_set():
            try:
                ready.put(entry, timeout=0.1)
            except queue.Full:
                continue
            return

    def work() -> None:
        try:
            for batch in source:
                put(batch)
                if stopped.is_set():
                    return
            put(None)
        except BaseException as error:
            put(error)
        finally:
            source.close()

    thread = threading.Thread(target=work, name="timeloom-prefetch", daemon=True)
    thread.start()
    try:
        while (entry := ready.get()) is not None:
            if isinstance(entry, BaseException):
                raise entry
            yield entry
    finally:
        stopped.set()
        thread.join()
