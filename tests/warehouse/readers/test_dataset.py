import gc
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from tests.support.releases import DIMS
from tests.support.tokens.markov import CONTEXT, FIRST_CODE, fabricate, packs_of, train, vector_of
from warehouse import Release
from warehouse.errors import TimeloomError
from warehouse.readers import open_shards as shelf_module
from warehouse.readers.open_shards import OpenShards
from warehouse.readers.shuffle import global_order
from warehouse.shards.file import open_shard
from warehouse.tokens import TokenType


def flat(nested):
    return [entry for part in nested for entry in part]


# --- the release


def test_release_gives_events_items_vocabulary_and_vectors(release, lines):
    by_split = {split: [line for line in lines if line.split == split] for split in ("train", "tuning", "held_out")}
    for split, members in by_split.items():
        events = release.events(split).collect()
        assert set(events["subject_id"]) == {line.subject for line in members}
        assert events.height == sum(kind != TokenType.SPECIAL for line in members for kind in line.types)
    assert release.events().select(pl.len()).collect().item() == sum(len(line.ids) - 1 for line in lines)
    images = [(name, key) for line in lines for _, name, key in line.images]
    assert release.items().select(pl.len()).collect().item() == len(images)
    assert release.vocabulary("mehrt")["token"][FIRST_CODE] == "LOINC/0"
    modality, key = images[0]
    np.testing.assert_array_equal(release.vector(modality, key), vector_of(modality, key))
    with pytest.raises(TimeloomError, match="no ct vector under this key"):
        release.vector("ct", "nobody")


def test_an_open_release_outlives_the_next_one(tmp_path, lines):
    root = fabricate(tmp_path / "root", lines[:12], CONTEXT, name="one")
    first = Release.open(root)
    fabricate(root, lines[:24], CONTEXT, name="two")
    assert (first.manifest.release_id, Release.open(root).manifest.release_id) == ("one", "two")
    assert len(list(train(first))) == len(list(train(Release.open(root, release="one"))))
    assert len(train(first)) < len(train(Release.open(root)))


def test_importing_warehouse_and_opening_a_release_leaves_torch_alone(root):
    code = (
        "import sys; from warehouse import Release; "
        f"Release.open({str(root)!r}).items().collect(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_shard_or_a_split_without_packs_reads_as_nothing(tmp_path, lines):
    root = fabricate(tmp_path / "root", [line for line in lines[:24] if line.split == "train"], CONTEXT)
    release = Release.open(root)
    assert len(train(release))
    tuning = release.shards("mehrt", split="tuning")
    assert (len(tuning), list(tuning.batches(4)), tuning.epoch) == (0, [], 1)


# --- order and resume


ORDER_7_0_0 = [1, 3, 11, 4, 8, 2, 10, 7, 0, 5, 6, 9]


def test_the_order_is_part_of_the_format():
    ids = np.arange(12, dtype=np.int64)
    assert global_order(ids, 7, 0, 0).tolist() == ORDER_7_0_0
    assert global_order(ids[::-1], 7, 0, 0).tolist() == [11 - index for index in ORDER_7_0_0]
    orders = {tuple(global_order(ids, seed, stage, epoch)) for seed in (0, 7) for stage in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 8
    assert global_order(ids[::-1], None, 0, 0).tolist() == list(range(11, -1, -1))


@pytest.mark.whole
@settings(max_examples=25, deadline=None)
@given(
    phases=st.lists(
        st.tuples(st.sampled_from([1, 2, 4, 8]), st.integers(1, 5), st.integers(0, 5)), min_size=1, max_size=3
    ),
    seed=st.integers(0, 2**63 - 1),
)
def test_no_pack_is_lost_or_repeated_when_the_world_changes_in_mid_epoch(release, phases, seed):
    state, seen = None, []
    for number, (world, size, steps) in enumerate(phases):
        ranks = [train(release, rank=rank, world_size=world, seed=seed) for rank in range(world)]
        states = []
        for rank in ranks:
            if state is not None:
                rank.load_state_dict(state)
            last = number == len(phases) - 1
            for step, batch in enumerate(rank.batches(size, prefetch=0)):
                if not last and step == steps:
                    break
                seen += flat(packs_of([batch]))
                states.append((step, rank.state_dict()))
        reached = max((step for step, _ in states), default=-1)
        state = next((its for step, its in states if step == reached), state)
        assert all(its == state for step, its in states if step == reached)
        if state is not None and state["epoch"] > 0:
            break
    assert sorted(seen) == sorted(ranks[0].shelf.pack_ids.tolist())


def test_a_global_step_has_the_same_packs_for_every_world_size(release):
    steps = {}
    for world in (1, 2, 4, 8):
        streams = [packs_of(train(release, rank=rank, world_size=world).batches(8 // world)) for rank in range(world)]
        assert len({len(stream) for stream in streams}) == 1
        steps[world] = [sorted(flat(parts)) for parts in zip(*streams, strict=True)]
    assert steps[1] == steps[2] == steps[4] == steps[8]
    assert sorted(flat(steps[1])) == sorted(train(release).shelf.pack_ids.tolist())


def test_position_p_goes_to_rank_p_modulo_the_world_size(release):
    dataset = train(release)
    order = dataset.shelf.pack_ids[global_order(dataset.shelf.pack_ids, 7, 0, 0)]
    assert flat(packs_of(dataset)) == order.tolist()
    dealt = train(release, rank=2, world_size=4).batches(1, uneven="ragged")
    assert flat(packs_of(dealt)) == order[2::4].tolist()


def test_the_last_step_deals_what_is_left_or_is_dropped(release):
    total = len(train(release))
    world = 8
    size = next(size for size in range(2, 9) if 0 < total % (world * size) < world)
    last = [
        list(train(release, rank=rank, world_size=world).batches(size, uneven="ragged"))[-1] for rank in range(world)
    ]
    left = total % (world * size)
    assert [len(batch) for batch in last] == [1] * left + [0] * (world - left)
    assert last[-1].input_ids.shape == (0, CONTEXT)
    assert last[-1].block_mask().shape == (0, 1, CONTEXT, CONTEXT)
    assert {batch.cursor for batch in last} == {(0, total)}
    dataset = train(release, world_size=world)
    dropped = list(dataset.batches(size, uneven="drop"))
    assert len(dropped) == total // (world * size)
    assert (dataset.epoch, dataset.consumed) == (1, 0)
    with pytest.raises(TimeloomError, match="fewer than one global batch"):
        dataset.batches(total, uneven="drop")


def test_iterating_again_continues_then_starts_the_next_epoch(release):
    dataset = train(release)
    for batch in dataset.batches(8):
        first = batch
        break
    rest = list(dataset.batches(8))
    once = sorted([*first.pack_ids.tolist(), *flat(packs_of(rest))])
    assert once == sorted(dataset.shelf.pack_ids.tolist())
    passed = list(dataset.batches(8))
    second = flat(packs_of(passed))
    assert sorted(second) == once
    assert {batch.cursor[0] for batch in passed} == {1}
    assert (dataset.epoch, dataset.consumed) == (2, 0)
    assert second != [*first.pack_ids.tolist(), *flat(packs_of(rest))]
    again = train(release)
    again.set_epoch(1)
    assert flat(packs_of(again.batches(8))) == second
    # A state taken behind the last batch of an epoch resumes with the next.
    stopped = train(release)
    stopped.load_state_dict(stopped.state_dict(after=rest[-1]))
    assert flat(packs_of(stopped.batches(8))) == second


def test_a_run_resumed_at_the_end_of_an_epoch_reads_each_epoch_once(release):
    dataset, epochs = train(release), {}
    for batch in dataset.batches(8):
        epochs.setdefault(batch.cursor[0], []).extend(flat(packs_of([batch])))
        state = dataset.state_dict()
    resumed = train(release)
    resumed.load_state_dict(state)
    assert (resumed.epoch, resumed.consumed) == (1, 0)
    for epoch in range(resumed.epoch, 3):
        resumed.set_epoch(epoch)
        for batch in resumed.batches(8):
            epochs.setdefault(batch.cursor[0], []).extend(flat(packs_of([batch])))
    assert {epoch: sorted(packs) for epoch, packs in epochs.items()} == dict.fromkeys(
        range(3), sorted(dataset.shelf.pack_ids.tolist())
    )


def test_set_epoch_keeps_the_place_within_the_epoch_under_way(release):
    dataset = train(release)
    dataset.load_state_dict({**dataset.state_dict(), "epoch": 3, "consumed": 16})
    dataset.set_epoch(3)
    assert dataset.consumed == 16
    dataset.set_epoch(4)
    assert dataset.consumed == 0


def test_a_state_of_another_release_split_or_format_is_refused(release):
    dataset = train(release)
    state = dataset.state_dict()
    assert len(repr(state)) < 250
    for name in ("manifest", "profile", "split"):
        with pytest.raises(TimeloomError, match=f"another {name}"):
            dataset.load_state_dict({**state, name: "other"})
    with pytest.raises(TimeloomError, match="no state"):
        dataset.load_state_dict({"epoch": 0})


# --- workers and threads


@pytest.mark.whole
@pytest.mark.parametrize(("workers", "method"), [(0, None), (2, "fork"), (2, "spawn")])
def test_dataloader_workers_split_the_batches(release, workers, method):
    plain = list(train(release, vectors=True, rank=1, world_size=2).batches(4, prefetch=0))
    dataset = train(release, vectors=True, rank=1, world_size=2)
    # The parent has shards and stores open, and has used polars: forked workers have neither its threads nor its maps.
    release.vocabulary("mehrt").sort("token")
    next(iter(dataset.batches(4)))
    dataset.cursor = 0, 0
    loader = DataLoader(
        dataset.batches(4),
        batch_size=None,
        num_workers=workers,
        multiprocessing_context=method,
        timeout=60 if workers else 0,
    )
    loaded = list(loader)
    assert packs_of(loaded) == packs_of(plain)
    for batch, other in zip(loaded, plain, strict=True):
        assert torch.equal(batch.input_ids, other.input_ids)
        assert all(torch.equal(batch.item_vectors[name], other.item_vectors[name]) for name in DIMS)
    third = dataset.state_dict(after=loaded[2])
    resumed = train(release, rank=1, world_size=2)
    resumed.load_state_dict(third)
    assert packs_of(resumed.batches(4)) == packs_of(plain)[3:]


@pytest.mark.parametrize("uneven", ["pad", "drop", "ragged"])
@pytest.mark.parametrize(("world", "size"), [(1, 1), (1, 4), (3, 4), (2, 7)])
def test_the_length_is_what_iterating_gives(release, world, size, uneven):
    for rank in range(world):
        dataset = train(release, rank=rank, world_size=world)
        whole = dataset.steps_per_epoch(size, uneven=uneven)
        each = len(dataset) / (size * world)
        assert whole == (int(each) if uneven == "drop" else int(-(-each // 1)))
        batches = dataset.batches(size, prefetch=0, uneven=uneven)
        assert len(batches) == whole
        # Under way it is what is left, and at the end that of the next epoch.
        for number, _ in enumerate(batches, start=1):
            left = len(batches)
            assert left == (whole - number or whole)
            if number == whole // 2:
                break
        assert len(list(batches)) == left
        assert len(batches) == whole
    assert len(DataLoader(batches, batch_size=None)) == whole


REPEATS = """
import sys
import warnings
from torch.utils.data import DataLoader
from warehouse import Release

if __name__ == "__main__":
    method, told, persistent = sys.argv[2], sys.argv[3] == "set_epoch", sys.argv[3] == "persistent"
    train = Release.open(sys.argv[1]).shards("mehrt", split="train", vectors=False)
    # A spawned worker imports torch anew in each epoch: one of them shows what two forked ones do beside one another.
    workers = 2 if method == "fork" else 1
    keys = {"batch_size": None, "num_workers": workers, "multiprocessing_context": method}
    keys["persistent_workers"] = persistent
    loader = DataLoader(train.batches(8), **keys)
    orders = []
    for epoch in range(3):
        if told:
            train.set_epoch(epoch)
        orders.append([batch.pack_ids.tolist() for batch in loader])
    print(len({str(order) for order in orders}))
"""


@pytest.mark.whole
@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize(("how", "orders", "warned"), [("nothing", 1, 1), ("set_epoch", 3, 0), ("persistent", 3, 0)])
def test_workers_that_repeat_an_order_say_so_once(release, tmp_path, method, how, orders, warned):
    (tmp_path / "repeats.py").write_text(REPEATS)
    root = release.layout.root
    done = subprocess.run(
        [sys.executable, tmp_path / "repeats.py", root, method, how], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) == orders
    assert done.stderr.count("give the same batches in the same order") == warned, done.stderr


@pytest.mark.whole
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_retrieve_items_by_time(release, method):
    plain = list(train(release, vectors=True, items_per_segment=2).batches(8, prefetch=0))
    release.items().collect()
    dataset = train(release, vectors=True, items_per_segment=2)
    loader = DataLoader(dataset.batches(8), batch_size=None, num_workers=2, multiprocessing_context=method, timeout=60)
    for batch, other in zip(loader, plain, strict=True):
        assert batch.item_keys == other.item_keys
        assert torch.equal(batch.item_vectors["ct"], other.item_vectors["ct"])


def prefetchers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("timeloom-prefetch")]


def test_prefetching_changes_nothing_and_stops_with_its_consumer(release):
    assert packs_of(train(release).batches(4, prefetch=3)) == packs_of(train(release).batches(4, prefetch=0))
    dataset = train(release)
    for _ in dataset.batches(2, prefetch=2):
        assert prefetchers()
        break
    gc.collect()
    assert not prefetchers()
    # What was prefetched and never given out is not consumed.
    assert dataset.state_dict()["consumed"] == 2


def test_an_error_in_the_prefetching_thread_reaches_the_consumer(copy):
    for path in copy.glob("embeddings/*/*/*.lmdb"):
        path.unlink()
    with pytest.raises(TimeloomError, match=r"embedding store (ct|wsi)/random-.*\.lmdb is missing"):
        list(train(Release.open(copy), vectors=True).batches(4, prefetch=2))
    assert not prefetchers()


# --- what is held


def test_no_file_is_opened_before_the_first_batch(release, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a file was opened")

    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(pq, "ParquetFile", refuse)
    monkeypatch.setattr(pq, "read_metadata", refuse)
    dataset = train(release, world_size=2)
    assert len(dataset) == len(dataset.shelf.pack_ids)
    assert sorted(dataset.order(3)) == list(range(len(dataset)))
    with pytest.raises(AssertionError, match="a file was opened"):
        next(iter(dataset.batches(2, prefetch=0)))


@pytest.mark.whole
@pytest.mark.parametrize("copies", [1, 12])
def test_what_is_held_does_not_grow_with_the_shards(release, copies):
    """A dozen times the shards and the reader holds as much as with one: so many maps, so many bytes."""
    dataset = train(release)
    shelf = OpenShards(release, "mehrt", "train", "default", None, maps=2, small_bytes=20_000)
    shelf.paths *= copies
    shelf.numbers = np.tile(shelf.numbers, copies)
    edges = np.diff(shelf._edges)
    shelf._edges = np.concatenate([[0], np.cumsum(np.tile(edges, copies))])
    shelf._forget()
    dataset.shelf = shelf
    seen = len(flat(packs_of(dataset.batches(4))))
    assert seen == len(dataset) == copies * len(train(release))
    assert 0 < shelf.held_maps <= 2
    assert 0 < shelf.held_bytes <= 20_000


@pytest.mark.parametrize("maps", [1, 2, 256])
def test_ids_by_address_are_the_rows_also_where_maps_are_given_up(release, maps):
    shelf = OpenShards(release, "mehrt", "train", "default", None, maps=maps)
    whole = np.concatenate([block.input_ids for path in shelf.paths for block in open_shard(path).blocks])
    random = np.random.default_rng(0)
    for size in (0, 1, 1, 1, 3, len(shelf), 2, 2):
        packs = np.sort(random.choice(len(shelf), size, replace=False))
        found = shelf.ids(packs)
        assert found.flags.writeable and np.array_equal(found, whole[packs])
        open_files = np.unique(np.searchsorted(shelf._edges, np.flatnonzero(shelf._id_address), "right") - 1)
        assert open_files.tolist() == sorted(shelf._maps) and len(open_files) <= maps


def test_threads_of_a_forked_process_wait_for_the_one_that_makes_the_shelf_fit(release, monkeypatch):
    """In the parent a thread held the lock; in the child one thread makes it anew while another arrives."""
    shelf = OpenShards(release, "mehrt", "train", "default", None)
    shelf._process = -1
    assert shelf._lock.acquire()
    late, given = [], []

    def lock():
        late.append(threading.Thread(target=lambda: given.append(shelf.ids(np.array([0]))), daemon=True))
        late[0].start()
        late[0].join(0.5)  # it has arrived by then
        return threading.Lock()

    monkeypatch.setattr(shelf_module, "threading", SimpleNamespace(Lock=lock))
    first = shelf.ids(np.array([0]))
    late[0].join(10)
    assert len(late) == 1 and np.array_equal(given[0], first)


def test_a_child_forked_while_the_guard_is_held_reads(release):
    shelf = OpenShards(release, "mehrt", "train", "default", None)
    with shelf_module._guard, shelf._lock:
        child = os.fork()
        if not child:
            signal.alarm(20)  # ends a child that waits for ever
            os._exit(0 if len(shelf.ids(np.array([0]))) == 1 else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_what_is_held_is_what_the_reader_says(release):
    dataset = train(release)
    list(dataset.batches(4))
    held = dataset.shelf._pages.values()
    assert dataset.shelf.held_bytes == sum(pages.nbytes for pages in held) > 20_000
    assert len(held) > 4


# --- the page for modelers

PAGE = Path(__file__).parents[3] / "docs" / "modelers.md"


def test_the_snippets_of_the_modelers_page_run(root, capsys, monkeypatch):
    # What torchrun says to the only rank of a world of one; any free port.
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    snippets = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(snippets) >= 5
    names: dict[str, object] = {}
    for snippet in snippets:
        exec(snippet.replace("/data/timeloom", str(root)), names)
