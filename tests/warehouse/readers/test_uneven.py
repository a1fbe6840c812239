"""The end of an epoch on several ranks: as many full batches on each, rows of padding that count nowhere, a resume."""

import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.tokens.markov import CONTEXT, fabricate, packs_of, train
from warehouse import Curriculum, Release, attention
from warehouse.arrays import NO_TIME
from warehouse.errors import TimeloomError
from warehouse.readers.shuffle import step_sizes
from warehouse.readers.stream import Step
from warehouse.tokens import PAD, TokenType

# In `make test` alone: ranks and readers walk over whole epochs.
pytestmark = pytest.mark.whole

# In a row of padding: what each field of a batch with a value a token holds.
OF_PADDING = {
    "input_ids": PAD,
    "labels": -100,
    "loss_mask": False,
    "segment_ids": -1,
    "position_ids": 0,
    "token_type": TokenType.SPECIAL,
    "time_us": NO_TIME,
}


def flat(nested):
    return [entry for part in nested for entry in part]


def ranks_of(release, world, size, uneven, consumed=0, **options):
    """Every rank's batches behind so many packs of an epoch."""
    ranks = []
    for rank in range(world):
        dataset = train(release, rank=rank, world_size=world, **options)
        dataset.cursor = 0, consumed
        batches = dataset.batches(size, prefetch=0, uneven=uneven)
        promised = len(batches)
        ranks.append(list(batches))
        assert len(ranks[-1]) == promised
        assert dataset.epoch == 1
    return ranks


def one_with_padding(release, size, world=3, **options):
    """The last batch of the rank that has the most padding."""
    total = len(train(release))
    consumed = next(consumed for consumed in range(total) if (total - consumed) % (world * size) == 1)
    return ranks_of(release, world, size, "pad", consumed, **options)[-1][-1]


@settings(max_examples=60, deadline=None)
@given(packs=st.integers(0, 200), world=st.integers(1, 40))
def test_steps_hold_every_pack_whoever_stops_between_them(packs, world):
    for uneven in ("pad", "ragged", "drop"):
        full, rest = step_sizes(packs, world, uneven)
        sizes = [world] * full + list(rest)
        assert sum(sizes) == (packs - packs % world if uneven == "drop" else packs)
        assert len(sizes) == (packs // world if uneven == "drop" else -(-packs // world))
        assert all(0 < size <= world for size in sizes)
        # Who begins anew with what is left takes the steps that would have come.
        for done in range(len(sizes)):
            full, rest = step_sizes(packs - sum(sizes[:done]), world, uneven)
            assert [world] * full + list(rest) == sizes[done:]
    assert step_sizes(9, 4, "pad") == (1, (3, 2))
    assert step_sizes(9, 4, "ragged") == (2, (1,))
    assert step_sizes(9, 4, "drop") == (2, ())
    assert step_sizes(3, 4, "pad") == (0, (3,))


@settings(max_examples=25, deadline=None)
@given(world=st.integers(1, 5), size=st.integers(1, 6), consumed=st.integers(0, 60))
def test_every_pack_is_read_once_by_full_batches_that_are_as_many_on_each_rank(release, world, size, consumed):
    dataset = train(release)
    consumed = min(consumed, len(dataset) - 1)
    expected = sorted(dataset.shelf.pack_ids[dataset.order(0)[consumed:]].tolist())
    padded, ragged = (ranks_of(release, world, size, uneven, consumed) for uneven in ("pad", "ragged"))
    for ranks in (padded, ragged):
        assert len({len(batches) for batches in ranks}) == 1
        assert sorted(flat(flat(map(packs_of, ranks)))) == expected
    assert {len(batch) for batch in flat(padded)} == {size}
    if size > 1 and len(expected) >= world:
        assert all(batch.real_rows.any() for batch in flat(padded))
    # What both say of an epoch is the same: tokens, targets, segments, items.
    assert summed(flat(padded)) == summed(flat(ragged))
    dropped = ranks_of(release, world, size, "drop", consumed) if len(expected) >= world * size else []
    counted = Counter(flat(flat(map(packs_of, dropped))))
    assert set(counted.values()) <= {1}
    assert set(counted) <= set(expected)
    assert len({len(batches) for batches in dropped}) <= 1
    assert {len(batch) for batch in flat(dropped)} <= {size}
    assert counted.total() == len(dropped) * size * (len(expected) // (world * size))


def summed(batches):
    return {
        "tokens": sum(int(batch.real.sum()) for batch in batches),
        "edges": sum(int(batch.cu_seqlens[-1]) for batch in batches),
        "targets": sum(int((batch.labels != -100).sum()) for batch in batches),
        "masked": sum(int(batch.loss_mask.sum()) for batch in batches),
        "segments": sum(batch.n_segments for batch in batches),
        "packs": sum(int(batch.real_rows.sum()) for batch in batches),
        "items": sum(len(keys) for batch in batches for keys in batch.item_keys.values()),
        "vectors": sum(len(vectors) for batch in batches for vectors in batch.item_vectors.values()),
    }


@pytest.mark.parametrize("plain", [False, True], ids=["addresses", "plain reads"])
@pytest.mark.parametrize("fields", ["ids", "segments", "full"])
@pytest.mark.parametrize("size", [1, 4])
def test_rows_of_padding_hold_nothing(release, monkeypatch, fields, size, plain):
    if plain:
        monkeypatch.setenv("TIMELOOM_PLAIN_READS", "1")
    batch = one_with_padding(release, size, fields=fields)
    padding = ~batch.real_rows
    assert padding.any() and len(batch) == size
    assert batch.pack_ids[padding].tolist() == [-1] * int(padding.sum())
    for name, value in OF_PADDING.items():
        if hasattr(batch, name):
            assert (getattr(batch, name)[padding] == value).all(), name
            assert getattr(batch, name).shape == (size, CONTEXT)
    if fields != "ids":
        assert not batch.segments_per_pack[padding].any()
        assert batch.segments_per_pack.sum() == batch.n_segments == len(batch.cu_seqlens) - 1
    # The rows with packs are what a batch of them alone is.
    dataset = train(release, fields=fields)
    packs = np.searchsorted(dataset.shelf.pack_ids, batch.pack_ids[batch.real_rows].numpy())
    alone = dataset.load(Step(packs, (0, 0)))
    for name in ("input_ids", *(() if fields == "ids" else ("segment_ids", "position_ids", "segments_per_pack"))):
        assert torch.equal(getattr(batch, name)[batch.real_rows], getattr(alone, name)), name
    if fields == "full":
        for name in ("loss_mask", "time_us", "token_type"):
            assert torch.equal(getattr(batch, name)[batch.real_rows], getattr(alone, name)), name
        assert batch.item_keys == alone.item_keys


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("options", [{}, {"vectors": "sequences"}, {"items_per_segment": 2}], ids=str)
def test_what_is_made_of_a_batch_works_with_padding(release, size, options):
    batch = one_with_padding(release, size, **options)
    for modality in batch.item_positions:
        seen = release.visible_items(batch, modality)
        assert seen.shape == (size, CONTEXT, len(batch.item_segment[modality]))
        assert not seen[~batch.real_rows].any()
    assert batch.block_mask().any(-1).all()  # no row of a softmax is empty
    query = torch.randn(size, 2, CONTEXT, 4)
    assert attention.block_diagonal(query, query, query, batch).isfinite().all()
    packed = attention.varlen(*(query.transpose(1, 2)[batch.real] for _ in range(3)), batch.cu_seqlens)
    assert len(packed) == int(batch.real.sum())
    if batch.n_segments:
        assert int(batch.batch_segment.max()) < batch.n_segments
    moved = batch.to("cpu")
    assert torch.equal(moved.real_rows, batch.real_rows)


# In `make test` alone: transformers take seconds to import.
@pytest.mark.whole
@pytest.mark.parametrize("size", [1, 4])
def test_a_model_of_transformers_takes_a_batch_with_padding(release, size):
    from transformers import LlamaConfig, LlamaForCausalLM

    batch = one_with_padding(release, size)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes))
    whole = model(**batch, num_items_in_batch=1)
    flat_row = batch.flat()
    inputs = {name: flat_row[name] for name in ("input_ids", "labels", "position_ids", "use_cache")}
    row = model(**inputs, num_items_in_batch=1)
    assert whole.logits.isfinite().all() and row.logits.isfinite().all()
    torch.testing.assert_close(whole.loss, row.loss)
    whole.loss.backward()
    assert all(value.grad.isfinite().all() for value in model.parameters() if value.grad is not None)
    if not batch.n_segments:
        assert whole.loss.item() == 0
        assert flat_row["input_ids"].shape == (1, 1) and flat_row["cu_seq_lens_q"].tolist() == [0, 1]


def test_a_curriculum_ends_its_stages_evenly(release):
    ranks = []
    for rank in range(2):
        first, second = (train(release, rank=rank, world_size=2) for _ in range(2))
        batches = Curriculum([(first, 2), (second, 1)]).batches(8)
        ranks.append(list(batches))
    assert len(ranks[0]) == len(ranks[1]) == 3 * train(release, world_size=2).steps_per_epoch(8)
    assert {len(batch) for batch in flat(ranks)} == {8}
    assert set(Counter(flat(flat(map(packs_of, ranks)))).values()) == {3}


def test_ranks_that_outnumber_the_packs_take_one_step(release):
    world = len(train(release)) + 3
    batches = [list(train(release, rank=rank, world_size=world).batches(1)) for rank in range(world)]
    assert [len(rank) for rank in batches] == [1] * world
    assert sum(int(batch.real_rows.sum()) for (batch,) in batches) == world - 3


def test_another_way_to_end_gets_one_line(release):
    with pytest.raises(TimeloomError, match="batches cannot end by wrap") as caught:
        train(release).batches(4, uneven="wrap")
    assert caught.value.remedy == "give uneven= one of pad, drop, ragged"


# --- two ranks that train

TRAINS = """
import json
import os
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from warehouse import Release

if __name__ == "__main__":
    root, folder, rank, world, size, stop = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:7])
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet-{world}", rank=rank, world_size=world)
    train = Release.open(root).shards("mehrt", split="train", rank=rank, world_size=world, seed=7, vectors=False)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(64, 8), nn.Linear(8, 64)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    if os.path.exists(f"{folder}/checkpoint"):
        model_state, reader_state = torch.load(f"{folder}/checkpoint", weights_only=True)
        model.load_state_dict(model_state)
        train.load_state_dict(reader_state)
    trained = DistributedDataParallel(model)
    loader = DataLoader(train.batches(size), batch_size=None, num_workers=2, timeout=60)
    seen, step = [], 0
    for epoch in range(train.epoch, 2):
        train.set_epoch(epoch)
        for batch in loader:
            targets = (batch.labels != -100).sum()
            dist.all_reduce(targets)
            logits = trained(batch.input_ids)[:, :-1]
            losses = nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels[:, 1:].flatten(), reduction="sum")
            mean = nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels[:, 1:].flatten())
            assert mean.isfinite(), "the mean loss of a rank is not a number"
            (losses * world / targets).backward()
            optimizer.step()
            optimizer.zero_grad()
            seen.append([epoch, len(batch), batch.pack_ids[batch.real_rows].tolist()])
            step += 1
            if step == stop:
                break
        if step == stop:
            break
    if rank == 0 and step == stop:
        torch.save((model.state_dict(), train.state_dict(after=batch)), f"{folder}/checkpoint")
    weights = [value.flatten().tolist() for value in model.parameters()]
    with open(f"{folder}/{world}-{rank}.json", "w") as file:
        json.dump({"seen": seen, "weights": weights}, file)
    dist.destroy_process_group()
"""


def trained(folder, release, world, size, stop=-1):
    """Starts that many ranks, which train until the step `stop` or to the end of the second epoch."""
    folder.mkdir(exist_ok=True)
    (folder / "trains.py").write_text(TRAINS)
    (folder / f"meet-{world}").unlink(missing_ok=True)
    command = [sys.executable, str(folder / "trains.py"), str(release.layout.root), str(folder)]
    ranks = [
        subprocess.Popen([*command, str(rank), str(world), str(size), str(stop)], stderr=subprocess.PIPE, text=True)
        for rank in range(world)
    ]
    for rank in ranks:
        _, said = rank.communicate(timeout=120)
        assert rank.returncode == 0, said
    return [json.loads((folder / f"{world}-{rank}.json").read_text()) for rank in range(world)]


# In `make test` alone: five processes that import torch, with two workers each.
@pytest.mark.whole
def test_two_ranks_train_over_the_end_of_an_epoch_stop_and_resume_on_one(lines, tmp_path):
    release = Release.open(fabricate(tmp_path / "root", lines[:40]))
    # A last step of one pack: without padding the second rank has a batch of no rows.
    total, size = len(train(release)), 2
    while total % (2 * size) != 1:
        size += 1
    steps = train(release, world_size=2).steps_per_epoch(size)
    both = trained(tmp_path / "ranks", release, 2, size, stop=steps + 2)
    assert [len(rank["seen"]) for rank in both] == [steps + 2] * 2
    assert {rows for rank in both for _, rows, _ in rank["seen"]} == {size}
    (resumed,) = trained(tmp_path / "ranks", release, 1, 2 * size)
    (alone,) = trained(tmp_path / "alone", release, 1, 2 * size)
    stepwise = [sorted(first[2] + second[2]) for first, second in zip(*(rank["seen"] for rank in both), strict=True)]
    stepwise += [sorted(packs) for _, _, packs in resumed["seen"]]
    assert stepwise == [sorted(packs) for _, _, packs in alone["seen"]]
    whole = sorted(train(release).shelf.pack_ids.tolist())
    assert sorted(flat(stepwise[:steps])) == sorted(flat(stepwise[steps:])) == whole
    # The same steps give the same model, wherever they were taken.
    for values, expected in zip(resumed["weights"], alone["weights"], strict=True):
        np.testing.assert_allclose(values, expected, rtol=1e-9, atol=1e-12)
