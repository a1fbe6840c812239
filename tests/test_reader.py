import gc
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from releases import DIMS, FIRST_CODE, STORES, Timeline, fabricate, markov_timelines, pack_timelines, vector_of
from torch.utils.data import DataLoader

from warehouse import Release
from warehouse.batches import collate, visible_items
from warehouse.dataset import global_order
from warehouse.embeddings import EmbeddingStore, close_stores
from warehouse.errors import TimeloomError
from warehouse.manifest import read_manifest, write_manifest
from warehouse.shards import NO_TIME, map_shard, read_header, read_shard
from warehouse.tokens import BOS, IMAGE_TOKENS, UNK, TokenType

CONTEXT = 64


@pytest.fixture(scope="module")
def lines():
    return markov_timelines(90, seed=3)


@pytest.fixture(scope="module")
def root(tmp_path_factory, lines):
    # Seven rows a row group, so that a shard has several.
    return fabricate(tmp_path_factory.mktemp("reader") / "root", lines, CONTEXT, row_group_rows=7)


@pytest.fixture(scope="module")
def release(root):
    return Release.open(root)


@pytest.fixture
def copy(root, tmp_path):
    yield Path(shutil.copytree(root, tmp_path / "copy", symlinks=True))
    close_stores()


def train(release, **options):
    return release.shards("mehrt", split="train", **{"seed": 7, "vectors": False, **options})


def packs_of(batches):
    return [batch.pack_ids.tolist() for batch in batches]


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


def test_shards_are_mapped_not_read(release):
    path = release.files.shard("mehrt", "train", 0)
    header, blocks = map_shard(path)
    _, whole = read_shard(path)
    assert header == read_header(path)
    assert len(blocks) > 1
    for name in ("input_ids", "token_type", "time_us"):
        assert all(isinstance(getattr(block, name), np.memmap) for block in blocks)
        np.testing.assert_array_equal(np.concatenate([getattr(block, name) for block in blocks]), getattr(whole, name))
    assert flat(block.image_key for block in blocks) == whole.image_key


def test_a_shard_rewritten_with_another_layout_is_refused(release, tmp_path):
    table = pq.read_table(release.files.shard("mehrt", "train", 0))
    pq.write_table(table, tmp_path / "0000.parquet", compression="zstd")
    with pytest.raises(TimeloomError, match=r"0000\.parquet is not laid out for mapping"):
        map_shard(tmp_path / "0000.parquet")


def test_a_shard_or_a_split_without_packs_reads_as_nothing(tmp_path, lines):
    root = fabricate(tmp_path / "root", [line for line in lines[:24] if line.split == "train"], CONTEXT, empty=True)
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
                seen += batch.pack_ids.tolist()
                states.append((step, rank.state_dict()))
        reached = max((step for step, _ in states), default=-1)
        state = next((its for step, its in states if step == reached), state)
        assert all(its == state for step, its in states if step == reached)
        if state is not None and state["consumed"] == len(ranks[0]):
            break
    assert sorted(seen) == sorted(ranks[0]._pack_ids.tolist())


def test_a_global_step_has_the_same_packs_for_every_world_size(release):
    steps = {}
    for world in (1, 2, 4, 8):
        streams = [packs_of(train(release, rank=rank, world_size=world).batches(8 // world)) for rank in range(world)]
        assert len({len(stream) for stream in streams}) == 1
        steps[world] = [sorted(flat(parts)) for parts in zip(*streams, strict=True)]
    assert steps[1] == steps[2] == steps[4] == steps[8]
    assert sorted(flat(steps[1])) == sorted(train(release)._pack_ids.tolist())


def test_position_p_goes_to_rank_p_modulo_the_world_size(release):
    dataset = train(release)
    order = dataset._pack_ids[global_order(dataset._pack_ids, 7, 0, 0)]
    assert flat(packs_of(dataset)) == order.tolist()
    assert flat(packs_of(train(release, rank=2, world_size=4).batches(1))) == order[2::4].tolist()


def test_the_last_step_deals_what_is_left_and_can_be_dropped(release):
    total = len(train(release))
    world = 8
    size = next(size for size in range(2, 9) if 0 < total % (world * size) < world)
    last = [list(train(release, rank=rank, world_size=world).batches(size))[-1] for rank in range(world)]
    left = total % (world * size)
    assert [len(batch) for batch in last] == [1] * left + [0] * (world - left)
    assert last[-1].input_ids.shape == (0, CONTEXT)
    assert last[-1].block_mask().shape == (0, 1, CONTEXT, CONTEXT)
    assert {batch.consumed for batch in last} == {total}
    dataset = train(release, world_size=world)
    dropped = list(dataset.batches(size, drop_last=True))
    assert len(dropped) == total // (world * size)
    assert (dataset.epoch, dataset.consumed) == (1, 0)
    with pytest.raises(TimeloomError, match="fewer than one global batch"):
        dataset.batches(total, drop_last=True)


def test_iterating_again_continues_then_starts_the_next_epoch(release):
    dataset = train(release)
    for batch in dataset.batches(8):
        first = batch
        break
    rest = list(dataset.batches(8))
    once = sorted([*first.pack_ids.tolist(), *flat(packs_of(rest))])
    assert once == sorted(dataset._pack_ids.tolist())
    passed = list(dataset.batches(8))
    second = flat(packs_of(passed))
    assert sorted(second) == once
    assert {batch.epoch for batch in passed} == {1}
    assert (dataset.epoch, dataset.consumed) == (2, 0)
    assert second != [*first.pack_ids.tolist(), *flat(packs_of(rest))]
    again = train(release)
    again.set_epoch(1)
    assert flat(packs_of(again.batches(8))) == second
    # A state taken behind the last batch of an epoch resumes with the next.
    stopped = train(release)
    stopped.load_state_dict(stopped.state_dict(after=rest[-1]))
    assert flat(packs_of(stopped.batches(8))) == second


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


@pytest.mark.parametrize(("workers", "method"), [(0, None), (2, "fork"), (2, "spawn")])
def test_dataloader_workers_split_the_batches(release, workers, method):
    plain = list(train(release, vectors=True, rank=1, world_size=2).batches(4, prefetch=0))
    dataset = train(release, vectors=True, rank=1, world_size=2)
    # The parent has shards and stores open: forked workers must not use them.
    next(iter(dataset.batches(4)))
    dataset.consumed = 0
    loader = DataLoader(dataset.batches(4), batch_size=None, num_workers=workers, multiprocessing_context=method)
    loaded = list(loader)
    assert packs_of(loaded) == packs_of(plain)
    for mine, other in zip(loaded, plain, strict=True):
        assert torch.equal(mine.input_ids, other.input_ids)
        assert all(torch.equal(mine.item_vectors[name], other.item_vectors[name]) for name in DIMS)
    third = dataset.state_dict(after=loaded[2])
    resumed = train(release, rank=1, world_size=2)
    resumed.load_state_dict(third)
    assert packs_of(resumed.batches(4)) == packs_of(plain)[3:]


def prefetchers():
    return [thread for thread in threading.enumerate() if thread.name == "timeloom-prefetch"]


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


# --- batches


timelines = st.lists(
    st.tuples(
        st.integers(1, 3),  # subject: few, so that chunks and packs share them
        st.lists(
            st.tuples(
                st.sampled_from([*TokenType]),
                st.sampled_from([BOS, UNK, 9, 10, 11]),
                st.sampled_from([NO_TIME, 0, 0, 1, 1, 2, 3]),
            ),
            min_size=1,
            max_size=24,
        ),
    ),
    min_size=1,
    max_size=6,
)


def collated(drawn, loss="mehrt", context=10):
    made = []
    for number, (subject, tokens) in enumerate(drawn):
        line = Timeline(subject, "train", [], [], [])
        for position, (kind, token, time) in enumerate(sorted(tokens, key=lambda entry: entry[2])):
            line.ids.append(IMAGE_TOKENS["ct"] if kind == TokenType.IMAGE else token)
            line.types.append(int(kind))
            line.times.append(time)
            if kind == TokenType.IMAGE:
                line.images.append((position, "ct", f"k{number}-{position}"))
        made.append(line)
    packs = pack_timelines(made, context)
    widened = packs.input_ids.astype(np.int64)
    object.__setattr__(packs, "input_ids", widened)
    return packs, collate(packs, loss, {"ct": np.zeros((len(packs.image_key), 4), np.float32)})


@settings(max_examples=80, deadline=None)
@given(drawn=timelines, loss=st.sampled_from(["mehrt", "multimodal"]))
def test_collation_and_loss_mask_against_loops(drawn, loss):
    packs, batch = collated(drawn, loss)
    targets = {
        "mehrt": {TokenType.STRUCTURED, TokenType.DEMOGRAPHIC},
        "multimodal": {TokenType.STRUCTURED, TokenType.INTERVAL},
    }[loss]
    segment, ends = 0, [0]
    for row in range(len(packs)):
        at = 0
        for local in range(packs.segments_per_pack[row]):
            for position in range(packs.segment_length[segment]):
                assert batch.segment_ids[row, at] == local
                assert batch.position_ids[row, at] == position
                token, kind = int(packs.input_ids[row, at]), TokenType(packs.token_type[row, at])
                target = position > 0 and kind in targets and token > UNK
                assert bool(batch.loss_mask[row, at]) == target
                assert int(batch.labels[row, at]) == (token if target else -100)
                assert int(batch.time_us[row, at]) == packs.time_us[row, at]
                at += 1
            segment += 1
            ends.append(ends[-1] + int(packs.segment_length[segment - 1]))
        assert (batch.segment_ids[row, at:] == -1).all()
        assert (batch.labels[row, at:] == -100).all()
        assert not batch.loss_mask[row, at:].any()
        assert (batch.input_ids[row, at:] == 0).all()
    assert batch.cu_seqlens.tolist() == ends
    assert batch.cu_seqlens.dtype == batch.segment_ids.dtype == torch.int32
    assert batch.max_seqlen == max(packs.segment_length)
    assert batch.n_segments == segment == len(batch.subject_ids) == int(batch.segments_per_pack.sum())
    for row, position in batch.item_positions["ct"].tolist():
        assert batch.token_type[row, position] == TokenType.IMAGE


def naive_visibility(packs, batch, k):
    tokens, segment = [], 0
    for row in range(len(packs)):
        at = 0
        for _ in range(packs.segments_per_pack[row]):
            for position in range(packs.segment_length[segment]):
                place = int(packs.segment_offset[segment]) + position
                tokens.append((row, at, int(packs.segment_subject[segment]), int(packs.time_us[row, at]), place))
                at += 1
            segment += 1
    where = {(row, at): rest for row, at, *rest in tokens}
    items = [where[row, at] for row, at in batch.item_positions["ct"].tolist()]
    expected = np.zeros((len(packs), packs.input_ids.shape[1], len(items)), bool)
    for row, at, subject, time, _ in tokens:
        before = [
            (its_time, place, index)
            for index, (owner, its_time, place) in enumerate(items)
            if owner == subject and its_time != NO_TIME and time != NO_TIME and its_time < time
        ]
        for *_, index in sorted(before)[-k:]:
            expected[row, at, index] = True
    return expected


@settings(max_examples=80, deadline=None)
@given(drawn=timelines, k=st.integers(1, 4))
def test_visible_items_against_a_loop_over_tokens_and_items(drawn, k):
    # Every timeline its own subject: the timeline's place of an item is then unique.
    own = [(number, tokens) for number, (_, tokens) in enumerate(drawn)]
    packs, batch = collated(own)
    np.testing.assert_array_equal(visible_items(batch, "ct", k).numpy(), naive_visibility(packs, batch, k))


def test_visibility_is_strict_and_stays_with_the_subject(release, lines):
    seen = 0
    for batch in train(release).batches(16):
        mask = release.visible_items(batch, modality="ct", k=8)
        row, position = batch.item_positions["ct"].unbind(1)
        subject = dict(enumerate(batch.subject_ids.tolist()))
        first = (batch.segments_per_pack.cumsum(0) - batch.segments_per_pack).tolist()
        for token_row, token, item in mask.nonzero().tolist():
            assert batch.time_us[token_row, token] > batch.time_us[row[item], position[item]]
            mine = subject[first[token_row] + int(batch.segment_ids[token_row, token])]
            assert mine == subject[first[int(row[item])] + int(batch.segment_ids[row[item], position[item]])]
            seen += 1
        assert not mask[batch.segment_ids < 0].any()
        assert int(mask.sum(-1).max()) <= 8
        break
    assert seen
    with pytest.raises(TimeloomError, match="no modality ecg"):
        release.visible_items(batch, modality="ecg")
    with pytest.raises(TimeloomError, match="below 1"):
        release.visible_items(batch, modality="ct", k=0)


def test_every_image_token_has_its_own_vector(release, lines):
    images = {key: (line, position) for line in lines for position, _, key in line.images if line.split == "train"}
    seen = []
    for batch in train(release, vectors=True).batches(16):
        first = batch.segments_per_pack.cumsum(0) - batch.segments_per_pack
        for modality, dim in DIMS.items():
            assert batch.item_vectors[modality].dtype == torch.float32
            assert batch.item_vectors[modality].shape == (len(batch.item_keys[modality]), dim)
            for (row, position), key, vector in zip(
                batch.item_positions[modality].tolist(),
                batch.item_keys[modality],
                batch.item_vectors[modality],
                strict=True,
            ):
                line, place = images[key]
                segment = int(first[row] + batch.segment_ids[row, position])
                assert batch.input_ids[row, position] == IMAGE_TOKENS[modality]
                assert int(batch.subject_ids[segment]) == line.subject
                assert int(batch.segment_offset[segment] + batch.position_ids[row, position]) == place
                np.testing.assert_array_equal(vector.numpy(), vector_of(modality, key))
                seen.append(key)
    assert sorted(seen) == sorted(images)


def test_a_batch_is_what_transformers_take_and_moves_as_one(release):
    batch = next(iter(train(release, vectors=True).batches(4)))
    assert set(dict(**batch)) == {"input_ids", "labels", "attention_mask", "position_ids"}
    moved = batch.to("meta")
    assert {moved.input_ids.device.type, moved.item_vectors["ct"].device.type} == {"meta"}
    assert moved.item_keys == batch.item_keys
    assert batch.input_ids.dtype == batch.time_us.dtype == batch.labels.dtype == torch.int64
    assert batch.token_type.dtype == torch.uint8
    with pytest.raises(KeyError):
        batch["time_us"]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logits_of_a_packed_batch_equal_those_of_the_segments_alone(release, attention):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        attn_implementation=attention,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    batch = next(iter(train(release).batches(24)))
    assert batch.n_segments > len(batch)
    with torch.no_grad():
        packed = model(**batch).logits
        leaking = model(
            batch.input_ids, position_ids=batch.position_ids, attention_mask=(batch.segment_ids >= 0)
        ).logits
        worst, leak = 0.0, 0.0
        for row in range(len(batch)):
            for segment in range(int(batch.segments_per_pack[row])):
                where = batch.segment_ids[row] == segment
                alone = model(batch.input_ids[row, where][None]).logits[0]
                worst = max(worst, float((packed[row, where] - alone).abs().max()))
                leak = max(leak, float((leaking[row, where] - alone).abs().max()))
    assert worst < 1e-5
    assert leak > 1e-3
    assert torch.isfinite(packed).all()


# --- bad input


def raises_one_line(match):
    return pytest.raises(TimeloomError, match=r"(?s)\A" + r"(?!.*\n)" + f".*{match}.*")


def test_a_flipped_bit_is_found_before_a_batch_uses_it(copy):
    path = copy / "releases" / "one" / "shards" / "mehrt" / "train" / "0001.parquet"
    raw = bytearray(path.read_bytes())
    place = raw.find(np.array([FIRST_CODE + 1], "<u2").tobytes(), 2000)
    raw[place] ^= 1
    path.write_bytes(raw)
    given = []
    with raises_one_line(r"shards/mehrt/train/0001\.parquet is corrupt.*timeloom verify"):
        given.extend(batch for batch in train(Release.open(copy)).batches(1))
    assert all(pack >> 32 == 0 for batch in given for pack in batch.pack_ids.tolist())


def test_a_truncated_or_missing_shard_is_found_at_once(copy):
    path = copy / "releases" / "one" / "shards" / "mehrt" / "train" / "0001.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with raises_one_line(r"train/0001\.parquet is truncated"):
        train(Release.open(copy))
    path.unlink()
    with raises_one_line(r"train/0001\.parquet is missing"):
        train(Release.open(copy))
    assert len(Release.open(copy).shards("mehrt", split="tuning"))


def test_a_missing_key_in_lmdb_is_named_by_its_store(copy):
    from warehouse.embeddings import EmbeddingWriter

    for path in copy.glob(f"embeddings/ct/{STORES['ct']}/*.lmdb"):
        keys = EmbeddingStore.open(path).keys()
        close_stores()
        path.unlink()
        with EmbeddingWriter(path) as writer:
            writer.put_many([(key, vector_of("ct", key), 1) for key in keys[1:]])
    with raises_one_line(r"embedding store ct/random-ct-0123/000\d\.lmdb lacks an item"):
        list(train(Release.open(copy), vectors=True))
    with raises_one_line("below 1"):
        train(Release.open(copy)).batches(0)


def change_manifest(copy, **changes):
    path = copy / "releases" / "one" / "manifest.json"
    write_manifest(path, read_manifest(path).model_copy(update=changes))


def test_shards_of_another_vocabulary_or_encoder_are_refused(copy):
    manifest = Release.open(copy).manifest
    entry = manifest.profiles["mehrt"]
    change_manifest(copy, profiles={"mehrt": entry.model_copy(update={"vocabulary_hash": "0" * 64})})
    with raises_one_line(r"train/0000\.parquet was written with another vocabulary"):
        train(Release.open(copy))
    other = manifest.encoders["ct"].model_copy(update={"store": "another"})
    change_manifest(copy, profiles=manifest.profiles, encoders={**manifest.encoders, "ct": other})
    with raises_one_line("names a ct store that the manifest does not"):
        train(Release.open(copy))


def test_a_changed_vocabulary_file_is_refused(copy):
    path = copy / "releases" / "one" / "vocabularies" / "mehrt" / "vocabulary.parquet"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 4
    path.write_bytes(raw)
    with raises_one_line(r"vocabulary\.parquet is corrupt"):
        train(Release.open(copy))


def test_unknown_names_are_answered_with_the_known_ones(release, tmp_path, root):
    with raises_one_line("no profile ethos.*mehrt"):
        release.shards("ethos", split="train")
    with raises_one_line("no split called val.*tuning"):
        release.shards("mehrt", split="val")
    with raises_one_line("no loss called all.*multimodal"):
        release.shards("mehrt", split="train", loss="all")
    with raises_one_line("rank 2 is not below world size 2"):
        release.shards("mehrt", split="train", rank=2, world_size=2)
    with raises_one_line("no published release"):
        Release.open(tmp_path)
    with raises_one_line("no release 1999"):
        Release.open(root, release="1999")


# --- the page for modelers

PAGE = Path(__file__).parents[1] / "docs" / "modelers.md"


def test_the_snippets_of_the_modelers_page_run(root, capsys):
    snippets = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(snippets) >= 5
    names: dict[str, object] = {}
    for snippet in snippets:
        exec(snippet.replace("/data/timeloom", str(root)), names)
