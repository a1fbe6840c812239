"""Curricula: blending against a loop, token budgets, stages, and one state that resumes with any world size."""

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from tests.support.tokens.markov import CONTEXT, fabricate, markov_timelines, packs_of
from warehouse import Release
from warehouse.errors import TimeloomError
from warehouse.readers.collate import count_targets
from warehouse.readers.mixture import Curriculum, Mixture


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    root = tmp_path_factory.mktemp("mixture") / "root"
    return Release.open(fabricate(root, markov_timelines(90, seed=3), CONTEXT, structured=True))


def shards(release, **options):
    return release.shards("mehrt", split="train", **{"vectors": False, **options})


def mixture(release, weights=(0.7, 0.3), seed=5, token_budget=None, **options):
    members = [(shards(release, plan=plan, **options), weight) for plan, weight in zip(PLANS, weights, strict=False)]
    return Mixture(members, seed=seed, token_budget=token_budget)


PLANS = ("default", "structured")


def taken_of(batch):
    return batch.cursor[1:]


# --- blending


@settings(max_examples=60, deadline=None)
@given(weights=st.lists(st.floats(0.01, 100), min_size=1, max_size=5), steps=st.lists(st.integers(1, 40), max_size=8))
def test_every_member_has_its_share_to_within_one_pack(release, weights, steps):
    blend = Mixture([(shards(release), weight) for weight in weights])
    taken = [0] * len(weights)
    for count in steps:
        member, number = blend.turns(taken, count)
        for which, its in zip(member.tolist(), number.tolist(), strict=True):
            assert its == taken[which]  # a member's packs come in order, none twice
            taken[which] += 1
        for which, weight in enumerate(weights):
            assert abs(taken[which] - sum(taken) * weight / sum(weights)) < len(weights)
            if len(weights) == 2:
                assert abs(taken[which] - sum(taken) * weight / sum(weights)) < 1 + 1e-9


def test_turns_do_not_depend_on_how_they_are_asked_for(release):
    blend = mixture(release, (0.61, 0.39))
    whole = blend.turns([0, 0], 100)[0].tolist()
    parts, taken = [], [0, 0]
    for count in (1, 9, 40, 50):
        member = blend.turns(taken, count)[0].tolist()
        parts += member
        taken = [taken[0] + member.count(0), taken[1] + member.count(1)]
    assert parts == whole


def packs_seen(blend, size, steps, start=None):
    if start is not None:
        blend.load_state_dict(start)
    seen = []
    for number, batch in enumerate(blend.batches(size)):
        seen += batch.pack_ids.tolist()
        if number == steps - 1:
            break
    return seen, blend.state_dict()


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_a_mixture_is_the_same_for_every_world_size_and_resumes_with_another(release, world):
    alone, _ = packs_seen(mixture(release), 16, 12)
    ranks = [mixture(release, rank=rank, world_size=world) for rank in range(world)]
    first = [packs_seen(rank, 16 // world, 5) for rank in ranks]
    assert all(state == first[0][1] for _, state in first)
    other = 8 // world
    rest = [
        packs_seen(mixture(release, seed=0, rank=rank, world_size=other), 16 // other, 7, start=first[0][1])[0]
        for rank in range(other)
    ]
    both = [pack for seen, _ in first for pack in seen] + [pack for seen in rest for pack in seen]
    assert sorted(both) == sorted(alone)


def test_a_member_that_is_through_starts_its_next_epoch(release):
    blend = mixture(release, (1.0, 1.0))
    sizes = [len(dataset) for dataset in blend.members]
    counts = {}
    for batch in blend.batches(8):
        for plan, pack in zip(["?"] * len(batch), batch.pack_ids.tolist(), strict=True):
            counts[plan, pack] = counts.get((plan, pack), 0) + 1
        if min(taken_of(batch)) >= 2 * max(sizes):
            break
    taken = taken_of(batch)
    assert sum(counts.values()) == sum(taken)
    assert all(its >= 2 * size for its, size in zip(taken, sizes, strict=True))
    assert min(counts.values()) >= 2


@pytest.mark.parametrize(("prefetch", "name"), [(2, "timeloom-prefetch"), (0, "MainThread")])
def test_targets_are_counted_in_the_thread_that_prefetches(release, monkeypatch, prefetch, name):
    seen = set()

    def counted(*given):
        seen.add(threading.current_thread().name)
        return count_targets(*given)

    monkeypatch.setattr("warehouse.readers.mixture.count_targets", counted)
    assert list(mixture(release, token_budget=1_000).batches(3, prefetch=prefetch))
    assert len(seen) == 1 and seen.pop().startswith(name)


def test_a_token_budget_ends_after_the_step_that_reaches_it(release):
    endless, budget = mixture(release), 2_000
    tokens, steps = 0, []
    for batch in endless.batches(2):
        if tokens >= budget:
            break
        tokens += int(batch.loss_mask.sum())
        steps.append(batch.pack_ids.tolist())
    ranks = [mixture(release, token_budget=budget, rank=rank, world_size=2) for rank in range(2)]
    given = [[batch.pack_ids.tolist() for batch in rank.batches(1)] for rank in ranks]
    assert [sorted(a + b) for a, b in zip(*given, strict=True)] == [sorted(step) for step in steps]
    assert ranks[0].tokens == ranks[1].tokens == tokens
    assert list(ranks[0].batches(1)) == []
    more = mixture(release, token_budget=2 * budget)
    more.load_state_dict(ranks[0].state_dict())
    assert len(list(more.batches(2)))
    assert more.tokens >= 2 * budget


# --- budgets of a plan


def test_budgets_are_nested_prefixes(release):
    small, whole = (shards(release, plan="structured", budget=budget) for budget in (0, 1))
    assert 0 < len(small) < len(whole) == len(shards(release, plan="structured"))
    packs = [{pack for packs in packs_of(dataset.batches(8)) for pack in packs} for dataset in (small, whole)]
    assert packs[0] < packs[1]
    with pytest.raises(TimeloomError, match="no budget 2 for split train"):
        shards(release, plan="structured", budget=2)
    with pytest.raises(TimeloomError, match="no budget 0 for split tuning"):
        release.shards("mehrt", split="tuning", plan="structured", budget=0)


def test_plans_without_images_have_no_items(release):
    for batch in shards(release, plan="structured", vectors=True).batches(8):
        assert batch.item_keys == batch.item_vectors == {}
        assert not (batch.token_type == 4).any()


# --- stages


def curriculum(release, **options):
    first, second = (shards(release, plan=plan, seed=3, **options) for plan in ("structured", "default"))
    blend = mixture(release, token_budget=1_500, **options)
    return Curriculum([(first, 2), (second, 1), (blend, 1)])


def test_stages_follow_each_other_and_shuffle_anew(release):
    plan = curriculum(release)
    seen = {}
    for batch in plan.batches(8):
        seen.setdefault((batch.cursor[0], batch.cursor[1] if batch.cursor[0] < 2 else 0), []).extend(*packs_of([batch]))
    assert list(seen) == [(0, 0), (0, 1), (1, 0), (2, 0)]
    assert sorted(seen[0, 0]) == sorted(seen[0, 1])
    assert seen[0, 0] != seen[0, 1]
    assert len(seen[1, 0]) == len(shards(release))
    # The same plan in two stages is read in two orders.
    same = shards(release, seed=3)
    twice = Curriculum([(same, 1), (same, 1)])
    orders = {}
    for batch in twice.batches(8):
        orders.setdefault(batch.cursor[0], []).append(batch.pack_ids.tolist())
    assert orders[0] != orders[1]
    assert plan.stage == 3
    assert list(plan.batches(8)) == []


def test_a_curriculum_resumes_anywhere_with_another_world_size(release):
    whole = [(batch.pack_ids.tolist(), batch.cursor) for batch in curriculum(release).batches(8)]
    for stop in (1, len(whole) // 3, len(whole) // 2, len(whole) - 1):
        source = curriculum(release)
        stream = iter(source.batches(8))
        batch = [next(stream) for _ in range(stop)][-1]
        stream.close()
        assert source.state_dict() == source.state_dict(after=batch)
        ranks = [curriculum(release, rank=rank, world_size=2) for rank in range(2)]
        parts = []
        for rank in ranks:
            rank.load_state_dict(source.state_dict())
            parts.append([batch.pack_ids.tolist() for batch in rank.batches(4)])
        rest = [sorted(a + b) for a, b in zip(*parts, strict=True)]
        assert rest == [sorted(packs) for packs, _ in whole[stop:]]


# --- what does not fit


def test_mixtures_and_curricula_of_what_does_not_fit_are_refused(release):
    base = shards(release)
    for other, match in (
        (shards(release, world_size=2), "rank or world size"),
        (shards(release, loss="multimodal"), "fields, loss or vectors"),
    ):
        with pytest.raises(TimeloomError, match=match):
            Mixture([(base, 1.0), (other, 1.0)])
    with pytest.raises(TimeloomError, match="not positive"):
        Mixture([(base, 0.0)])
    with pytest.raises(TimeloomError, match="mixture without an end"):
        Curriculum([(mixture(release), 1)])
    with pytest.raises(TimeloomError, match="lacks stages"):
        Curriculum([])
    state = mixture(release).state_dict()
    with pytest.raises(TimeloomError, match="another members"):
        mixture(release, (0.5, 0.5)).load_state_dict(state)
    with pytest.raises(TimeloomError, match="lacks cursor"):
        mixture(release).load_state_dict({name: value for name, value in state.items() if name != "cursor"})
    with pytest.raises(TimeloomError, match="another manifest"):
        mixture(release).load_state_dict({**state, "manifest": "0"})


@pytest.mark.whole
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_of_a_dataloader_share_a_curriculum(release, method):
    plain = [batch.pack_ids.tolist() for batch in curriculum(release).batches(8)]
    source = curriculum(release)
    release.vocabulary("mehrt").sort("token")
    next(iter(source.batches(8)))  # the parent has shards open: forked workers must not use them
    source.cursor = source.start()
    loader = DataLoader(source.batches(8), batch_size=None, num_workers=2, multiprocessing_context=method, timeout=60)
    loaded = list(loader)
    assert [batch.pack_ids.tolist() for batch in loaded] == plain
    resumed = curriculum(release)
    resumed.load_state_dict(source.state_dict(after=loaded[4]))
    assert [batch.pack_ids.tolist() for batch in resumed.batches(8)] == plain[5:]


@pytest.mark.parametrize(
    "cursor", [None, [], [0], [-1, 0, 0], ["a", 0, 0], [0, 0], [0, 0, 0, 0, 0], 5, [1.5, 0, 0], [9]]
)
def test_a_damaged_cursor_is_refused(release, cursor):
    for reader in (mixture(release), curriculum(release)):
        with pytest.raises(TimeloomError, match="state is damaged"):
            reader.load_state_dict({**reader.state_dict(), "cursor": cursor})


def test_a_curriculum_of_datasets_has_a_length_and_a_mixture_has_none(release):
    stages = Curriculum([(shards(release), 2), (shards(release, plan="structured"), 3)])
    batches = stages.batches(8)
    whole = len(batches)
    assert whole == 2 * shards(release).steps_per_epoch(8) + 3 * shards(release, plan="structured").steps_per_epoch(8)
    read = 0
    for _ in batches:
        read += 1
        assert len(batches) == whole - read
    assert read == whole
    # How many batches a budget of tokens is, only reading tells; without one there is no end.
    for unknown in (
        mixture(release),
        mixture(release, token_budget=500),
        Curriculum([(mixture(release, token_budget=9), 1)]),
    ):
        with pytest.raises(TypeError, match="when they have been read"):
            len(unknown.batches(8))
