"""A split's packs as a torch dataset: a deterministic order, dealt to ranks, resumed from a cursor of a few bytes."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from functools import cached_property
from typing import Any, Generic, Self, cast

import numpy as np

from warehouse.arrays import I64
from warehouse.errors import TimeloomError
from warehouse.readers.assemble import Fields, ItemsPerSegment, Vectors, assemble, recipe
from warehouse.readers.batch import IdBatch
from warehouse.readers.item_rows import without_vectors
from warehouse.readers.open_shards import OpenShards
from warehouse.readers.pinned import PinnedRelease
from warehouse.readers.retrieved_items import WindowItems
from warehouse.readers.shuffle import Uneven, dealt, global_order, step_sizes
from warehouse.readers.stream import B, BatchReader, Cursor, Step
from warehouse.tokens import TokenType

SORTED_STEPS = 1024
BOUND = ("manifest", "profile", "split", "plan", "budget", "stage")


class ShardDataset(BatchReader[B], Generic[B]):
    """The packs of one split, in a global order that every rank agrees on; made by `Release.shards`.

    It holds a cursor: (epoch, packs consumed by all ranks together). Iterating continues at the cursor, and starts the
    next epoch where the last was finished. Iterating the dataset itself gives batches of one pack.
    """

    def __init__(
        self,
        release: PinnedRelease,
        profile: str,
        split: str,
        *,
        plan: str = "default",
        budget: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        seed: int | None = 0,
        stage: int = 0,
        loss: str | Iterable[TokenType] = "mehrt",
        vectors: Vectors = "pooled",
        fields: Fields = "full",
        items_per_segment: ItemsPerSegment = None,
        encoders: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(rank, world_size)
        release.check_profile(profile)
        self.encoders = release.manifest.encoders_of(profile, encoders)
        self.recipe = recipe(fields, loss, vectors, items_per_segment, self.encoders)
        self.shelf = OpenShards(release, profile, split, plan, budget, encoders=self.encoders)
        self.release, self.profile, self.split, self.plan, self.budget = release, profile, split, plan, budget
        if isinstance(stage, bool) or not isinstance(stage, int):
            raise TimeloomError("the stage is no whole number", remedy="number the stages of a curriculum 0, 1, …")
        self.seed, self.stage = check_seed(seed), stage
        self.context = self.shelf.context
        self.window = WindowItems(release, self.encoders) if self.recipe.items_per_segment else None

    @property
    def stores(self) -> dict[str, str]:
        """Modality to the name of its embedding store."""
        return self.shelf.stores

    @property
    def dims(self) -> dict[str, int]:
        """Modality to the width of its vectors."""
        return self.shelf.dims

    @cached_property
    def absent(self) -> dict[str, frozenset[str]]:
        """By modality, the keys of items that have tokens, and no vector of an encoder that is not the profile's."""
        return without_vectors(self.release, self.release.manifest.encoders_of(self.profile), self.encoders)

    @property
    def epoch(self) -> int:
        return self.cursor[0]

    @property
    def consumed(self) -> int:
        """Packs of the epoch that all ranks together have used."""
        return self.cursor[1]

    def __len__(self) -> int:
        """Packs of the split, over all ranks."""
        return len(self.shelf)

    def order(self, epoch: int) -> I64:
        """(P,) packs in the order in which an epoch reads them."""
        return global_order(self.shelf.pack_ids, self.seed, self.stage, epoch)

    def check_batches(self, batch_size: int, uneven: Uneven) -> None:
        if uneven == "drop" and len(self) < batch_size * self.world_size:
            raise TimeloomError(
                f"split {self.split} has {len(self)} packs, fewer than one global batch",
                remedy='make the batch smaller, or give uneven="pad"',
            )

    def begin(self, batch_size: int, uneven: Uneven) -> None:
        if self.consumed and not self._steps(self.consumed, batch_size, uneven):
            self.cursor = self.epoch + 1, 0

    def steps_left(self, batch_size: int, uneven: Uneven) -> int | None:
        return self._steps(self.consumed, batch_size, uneven) or self._steps(0, batch_size, uneven)

    def steps_per_epoch(self, batch_size: int, *, uneven: Uneven = "pad") -> int:
        """How many batches of `batch_size` packs each rank takes in a whole epoch; see `batches`."""
        return self._steps(0, batch_size, uneven)

    def _steps(self, consumed: int, batch_size: int, uneven: Uneven) -> int:
        """Steps behind so many packs of an epoch."""
        full, rest = step_sizes(len(self) - consumed, batch_size * self.world_size, uneven)
        return full + len(rest)

    def steps(self, batch_size: int, uneven: Uneven) -> Iterator[Step]:
        epoch, start = self.cursor
        order, world = self.order(epoch), batch_size * self.world_size
        self.expect([(self, order[start:])])
        full, rest = step_sizes(len(order) - start, world, uneven)
        end = start + full * world
        for first in range(start, end, SORTED_STEPS * world):
            steps = order[first : min(first + SORTED_STEPS * world, end)].reshape(-1, world)
            # A step's packs in stored order; many short sorts in one call take a tenth of as many calls.
            shares = np.sort(dealt(steps.T, self.rank, self.world_size).T)
            for number, share in enumerate(shares, start=1):
                yield Step(share, (epoch, first + number * world))
        for size in rest:
            share = np.sort(dealt(order[end : end + size], self.rank, self.world_size))
            end += size
            yield Step(share, (epoch, end), batch_size - len(share) if uneven == "pad" else 0)

    def expect(self, parts: "Sequence[tuple[ShardDataset[B], I64]]") -> None:
        """Tells the release which packs of datasets will be read by all ranks, in order: it may have to fetch them."""
        rank, ranks = self.rank, self.world_size
        stores = {store for dataset, _ in parts for store in dataset.stores_read}
        self.release.expect(
            lambda: [path for dataset, packs in parts for path in dataset.shelf.files_of(dealt(packs, rank, ranks))],
            stores,
        )

    @property
    def stores_read(self) -> list[tuple[str, str]]:
        """The modalities, with their stores, whose vectors batches have."""
        return [(name, self.encoders[name].store) for name in self.recipe.vectors if name in self.encoders]

    def start(self) -> Cursor:
        return 0, 0

    def end(self) -> Cursor:
        return self.epoch + 1, 0

    def finished(self, epochs: int) -> bool:
        return self.epoch >= epochs

    def salted(self, stage: int, seed: int | None = None) -> Self:
        """A copy for another stage, and another seed where one is given; it shares what is open."""
        other = copy(self)
        other.stage, other.seed = stage, self.seed if seed is None else seed
        return other

    def load(self, step: Step) -> B:
        """The batch of a step; its rows stand in stored order, as `steps` gives them.

        Raises:
            TimeloomError: a shard or an embedding store that these packs need is missing or damaged.
        """
        made: IdBatch = assemble(
            [(self.shelf, step.share)], self.recipe, step.after, self.window, step.padding, self.absent
        )
        return cast(B, made)

    def set_epoch(self, epoch: int) -> None:
        """Goes to the start of an epoch; keeps its place where that epoch is under way, as after a resume."""
        if epoch != self.epoch:
            self.cursor = epoch, 0

    def state_dict(self, after: IdBatch | None = None) -> dict[str, Any]:
        """The cursor behind the last batch given out, or behind `after`, a batch that a DataLoader's worker made."""
        epoch, consumed = self._onward(*(self.cursor if after is None else after.cursor))
        return {**self.bound(), "seed": self.seed, "epoch": epoch, "consumed": consumed}

    def bound(self) -> dict[str, Any]:
        values = (self.release.manifest.content_hash, self.profile, self.split, self.plan, self.budget, self.stage)
        return dict(zip(BOUND, values, strict=True))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where `state` was taken, also with another world size, batch size or rank.

        Raises:
            TimeloomError: the state is of another release, profile, split, plan, budget or stage, or no state.
        """
        check_state(state, self.bound(), ("seed", "epoch", "consumed"))
        epoch, consumed = whole_numbers([state["epoch"], state["consumed"]], 2)
        if consumed > len(self):
            raise _damaged()
        self.seed = check_seed(state["seed"])
        self.cursor = self._onward(epoch, consumed)

    def _onward(self, epoch: int, consumed: int) -> tuple[int, int]:
        """The cursor; behind an epoch's last pack is the start of the next, so that `epoch` says what will be read."""
        return (epoch + 1, 0) if consumed == len(self) > 0 else (epoch, consumed)


def _damaged() -> TimeloomError:
    return TimeloomError("the reader's state is damaged", remedy="use the state_dict() of an earlier checkpoint")


def whole_numbers(values: Any, count: int) -> tuple[int, ...]:
    """A state's `count` numbers; raises TimeloomError where they are not that many, not whole, or below 0."""
    if not isinstance(values, list | tuple) or len(values) != count:
        raise _damaged()
    if any(isinstance(value, bool) or not isinstance(value, int) or value < 0 for value in values):
        raise _damaged()
    return tuple(values)


def check_seed(seed: Any) -> int | None:
    """A seed as given; raises TimeloomError where it is neither a whole number nor None."""
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise TimeloomError("the seed is no whole number", remedy="give one, or None for the stored order")
    return seed


def check_state(state: dict[str, Any], bound: dict[str, Any], names: tuple[str, ...]) -> None:
    """Raises TimeloomError where a state lacks something, or was taken of something else."""
    if not isinstance(state, dict):
        raise _damaged()
    if missing := [name for name in (*bound, *names) if name not in state]:
        raise TimeloomError(
            f"the reader's state lacks {missing[0]}: it is no state of this reader", remedy="use what state_dict() gave"
        )
    for name, value in bound.items():
        if state[name] != value:
            raise TimeloomError(
                f"the reader's state was taken with another {name}",
                remedy="open the same release (Release.open(root, release=...)), profile, split, plan and budget",
            )
