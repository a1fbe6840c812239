"""Curricula: datasets blended by weight, token budgets, and stages one after the other, all resumed from one state.

Blending draws no random numbers: pack j of a member with weight w has its turn at (j + 1/2) / w, and turns are taken in
order (Webster's method of apportionment), so that after any number of packs each member has had its share to within
one pack. Every rank computes the same turns, whatever the world size.
"""

from collections.abc import Iterator, Sequence
from copy import copy
from typing import Any, Generic, Self, cast

import numpy as np

from warehouse.arrays import I64
from warehouse.errors import TimeloomError
from warehouse.readers.assemble import assemble
from warehouse.readers.batch import IdBatch
from warehouse.readers.collate import count_targets
from warehouse.readers.dataset import ShardDataset, check_seed, check_state, whole_numbers
from warehouse.readers.shuffle import Uneven, dealt
from warehouse.readers.stream import B, BatchReader, Cursor, Step

COUNTED_PACKS = 256


class Mixture(BatchReader[B], Generic[B]):
    """Packs of several datasets of one release and profile in fixed proportions; every batch may hold packs of each.

    A member that is through starts its next epoch, in another order. Without a token budget it has no end. Its cursor
    is (loss-bearing tokens given, packs taken of each member), over all ranks.

    Args:
        members: (dataset, weight); rank, world size and what batches hold must be the same in all.
        seed: of every member's shuffle.
        token_budget: stops after the step with which this many loss-bearing tokens were given out, over all ranks.

    Raises:
        TimeloomError: no members, a weight that is not positive, or members that do not fit together.
    """

    def __init__(
        self, members: Sequence[tuple[ShardDataset[B], float]], seed: int = 0, token_budget: int | None = None
    ) -> None:
        if not members or any(not 0 < weight < float("inf") for _, weight in members):
            raise TimeloomError(
                "a mixture lacks members or has a weight that is not positive", remedy="mend the weights"
            )
        if token_budget is not None and token_budget < 1:
            raise TimeloomError("the token budget is below 1", remedy="give a positive number, or None")
        first = members[0][0]
        for other, _ in members:
            _check_fits(first, other)
        # Copies: a dataset may stand in several stages, and what a mixture does to its order is no other's business.
        self.members = [dataset.salted(dataset.stage, seed) for dataset, _ in members]
        total = sum(weight for _, weight in members)
        self.weights = np.array([weight / total for _, weight in members])
        self.seed, self.token_budget = seed, token_budget
        self._targets = [np.full(len(dataset), -1, dtype=np.int64) for dataset in self.members]
        super().__init__(first.rank, first.world_size)

    def start(self) -> Cursor:
        return 0, *(0 for _ in self.members)

    def end(self) -> Cursor:
        return self.cursor

    def begin(self, batch_size: int, uneven: Uneven) -> None:
        """A mixture goes on where it is."""

    def finished(self, epochs: int) -> bool:
        return self.token_budget is not None and self.tokens >= self.token_budget

    def salted(self, stage: int) -> Self:
        other = copy(self)
        other.members = [dataset.salted(stage) for dataset in self.members]
        return other

    @property
    def tokens(self) -> int:
        """Loss-bearing tokens given out so far, over all ranks; counted only where there is a budget."""
        return self.cursor[0]

    def turns(self, taken: Sequence[int], count: int) -> tuple[I64, I64]:
        """The next turns (count,): which member, and its how-manieth pack."""
        number = np.asarray(taken, dtype=np.int64)[:, None] + np.arange(count)
        due = ((number + 0.5) / self.weights[:, None]).ravel()
        member = np.repeat(np.arange(len(self.members)), count)
        chosen = np.lexsort((member, due))[:count]
        return member[chosen], number.ravel()[chosen]

    def steps(self, batch_size: int, uneven: Uneven) -> Iterator[Step]:
        tokens, *taken = self.cursor
        world = batch_size * self.world_size
        orders: list[tuple[int, I64]] = [(-1, np.empty(0, np.int64))] * len(self.members)
        epochs = [divmod(number, len(dataset)) for dataset, number in zip(self.members, taken, strict=True)]
        self.members[0].expect(
            [
                (dataset, dataset.order(epoch)[first:])
                for dataset, (epoch, first) in zip(self.members, epochs, strict=True)
            ]
        )
        while self.token_budget is None or tokens < self.token_budget:
            member, number = self.turns(taken, world)
            packs = np.empty(world, dtype=np.int64)
            for which, dataset in enumerate(self.members):
                of_member = np.flatnonzero(member == which)
                for epoch in np.unique(number[of_member] // len(dataset)).tolist():
                    if orders[which][0] != epoch:
                        orders[which] = epoch, dataset.order(epoch)
                    now = of_member[number[of_member] // len(dataset) == epoch]
                    packs[now] = orders[which][1][number[now] % len(dataset)]
                taken[which] += len(of_member)
            if self.token_budget is not None:
                tokens += self._count(member, packs)
            turn = dealt(np.arange(world), self.rank, self.world_size)
            yield Step((member[turn], packs[turn]), (tokens, *taken))

    def load(self, step: Step) -> B:
        """The batch of a step: the first member's packs in stored order, then the second's.

        Raises:
            TimeloomError: a shard or an embedding store that these packs need is missing or damaged.
        """
        member, packs = step.share
        parts = [(dataset.shelf, np.sort(packs[member == which])) for which, dataset in enumerate(self.members)]
        first = self.members[0]
        made: IdBatch = assemble(parts, first.recipe, step.after, first.window, absent=first.absent)
        return cast(B, made)

    def _count(self, member: I64, packs: I64) -> int:
        """Targets in packs of all ranks: each pack's are counted when it is first met, from its ids and types."""
        total = 0
        for which, dataset in enumerate(self.members):
            member_packs, known = packs[member == which], self._targets[which]
            new = np.unique(member_packs[known[member_packs] < 0])
            for first in range(0, len(new), COUNTED_PACKS):
                uncounted = new[first : first + COUNTED_PACKS]
                places = dataset.shelf.places(uncounted)
                known[uncounted] = count_targets(places, dataset.context, dataset.recipe.kinds)
            total += int(known[member_packs].sum())
        return total

    def bound(self) -> dict[str, Any]:
        members = [
            [*list(member.bound().values())[1:], float(w)] for member, w in zip(self.members, self.weights, strict=True)
        ]
        return {"manifest": self.members[0].release.manifest.content_hash, "members": members}

    def state_dict(self, after: IdBatch | None = None) -> dict[str, Any]:
        """The cursor behind the last batch given out, or behind `after`; the same on every rank."""
        return {**self.bound(), "seed": self.seed, "cursor": list(self.cursor if after is None else after.cursor)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where `state` was taken, also with another world size, batch size or token budget.

        Raises:
            TimeloomError: the state is of another release or of other members or weights.
        """
        check_state(state, self.bound(), ("seed", "cursor"))
        cursor = whole_numbers(state["cursor"], 1 + len(self.members))
        self.seed, self.cursor = check_seed(state["seed"]), cursor
        self.members = [dataset.salted(dataset.stage, self.seed) for dataset in self.members]


def _check_fits(first: ShardDataset[B], other: ShardDataset[B]) -> None:
    same = {
        "release": (first.release.manifest.content_hash, other.release.manifest.content_hash),
        "profile": (first.profile, other.profile),
        "context": (first.context, other.context),
        "rank or world size": ((first.rank, first.world_size), (other.rank, other.world_size)),
        "fields, loss or vectors": (first.recipe, other.recipe),
        "encoders": (first.encoders, other.encoders),
    }
    for name, (value, other_value) in same.items():
        if value != other_value:
            raise TimeloomError(f"members of a mixture differ in {name}", remedy="make them with the same options")
    if not len(other):
        raise TimeloomError(f"plan {other.plan} has no packs of split {other.split}", remedy="leave this member out")


class Curriculum(BatchReader[B], Generic[B]):
    """Readers one after the other, each shuffled with its place as salt; one state for all.

    Its cursor is (stage, the stage's own cursor).

    Args:
        stages: (reader, epochs): datasets for that many epochs; mixtures until their token budget, whatever the number.

    Raises:
        TimeloomError: no stages, a mixture without a budget, or other ranks or world sizes.
    """

    def __init__(self, stages: Sequence[tuple[BatchReader[B], int]]) -> None:
        if not stages or any(epochs < 1 for _, epochs in stages):
            raise TimeloomError(
                "a curriculum lacks stages or has one of no epochs", remedy="give at least one epoch each"
            )
        first = stages[0][0]
        for place, (reader, _) in enumerate(stages):
            if isinstance(reader, Mixture) and reader.token_budget is None:
                raise TimeloomError(f"stage {place} is a mixture without an end", remedy="give it a token_budget")
            if (reader.rank, reader.world_size) != (first.rank, first.world_size):
                raise TimeloomError("stages differ in rank or world size", remedy="make them with the same options")
        self.stages = [(reader.salted(place), epochs) for place, (reader, epochs) in enumerate(stages)]
        super().__init__(first.rank, first.world_size)

    @property
    def stage(self) -> int:
        """The stage that the cursor stands in; the number of stages behind the last."""
        return self.cursor[0]

    def start(self) -> Cursor:
        return 0, *self.stages[0][0].start()

    def end(self) -> Cursor:
        return (len(self.stages),)

    def begin(self, batch_size: int, uneven: Uneven) -> None:
        """A curriculum goes on where it is."""

    def check_batches(self, batch_size: int, uneven: Uneven) -> None:
        for reader, _ in self.stages:
            reader.check_batches(batch_size, uneven)

    def steps_left(self, batch_size: int, uneven: Uneven) -> int | None:
        stage, inner = self.cursor[0], self.cursor[1:]
        steps = 0
        for place, (reader, epochs) in enumerate(self.stages[stage:]):
            if not isinstance(reader, ShardDataset):
                return None
            each = reader.steps_per_epoch(batch_size, uneven=uneven)
            steps += each * epochs
            if place == 0 and inner:
                # Of the stage that is under way: the epochs that are over, and what was read of the one that is not.
                under_way = copy(reader)
                under_way.cursor = inner
                under_way.begin(batch_size, uneven)
                left = under_way.steps_left(batch_size, uneven) or 0
                steps -= each * min(under_way.epoch, epochs) + (each - left if under_way.epoch < epochs else 0)
        return steps

    def steps(self, batch_size: int, uneven: Uneven) -> Iterator[Step]:
        stage, inner = self.cursor[0], self.cursor[1:]
        while stage < len(self.stages):
            reader, epochs = self.stages[stage]
            reader.cursor = inner
            reader.begin(batch_size, uneven)
            while not reader.finished(epochs):
                for step in reader.steps(batch_size, uneven):
                    yield Step((stage, step), (stage, *step.after))
                    reader.cursor = step.after
                reader.cursor = reader.end()
            stage += 1
            inner = self.stages[stage][0].start() if stage < len(self.stages) else ()

    def load(self, step: Step) -> B:
        stage, inner = step.share
        batch: B = self.stages[stage][0].load(inner._replace(after=step.after))
        return batch

    def bound(self) -> dict[str, Any]:
        return {"stages": [[reader.bound(), reader.seed, epochs] for reader, epochs in self.stages]}

    def state_dict(self, after: IdBatch | None = None) -> dict[str, Any]:
        """The cursor behind the last batch given out, or behind `after`; the same on every rank."""
        return {**self.bound(), "cursor": list(self.cursor if after is None else after.cursor)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where `state` was taken, also with another world size or batch size.

        Raises:
            TimeloomError: the state is of other stages.
        """
        check_state(state, self.bound(), ("cursor",))
        given = state["cursor"]
        stage, *_ = whole_numbers(given, len(given) if isinstance(given, list | tuple) and given else 1)
        inner = len(self.stages[stage][0].start()) if stage < len(self.stages) else 0
        self.cursor = whole_numbers(given if stage <= len(self.stages) else None, 1 + inner)
