"""Collation, loss masks and visibility, each against a loop over tokens and items."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.releases import DIMS, Timeline, compact, pack_timelines
from tests.support.tokens.markov import CONTEXT, fabricate, train, units_of, vector_of
from warehouse import Release
from warehouse.arrays import NO_TIME
from warehouse.errors import TimeloomError
from warehouse.readers.assemble import recipe
from warehouse.readers.batch import Batch, IdBatch, SegmentBatch
from warehouse.readers.collate import collate, count_targets, item_fields
from warehouse.readers.open_shards import PackAddress, pages_of, sheet_of
from warehouse.readers.visibility import visible_items
from warehouse.shards.file import MappedRows, ShardHeader
from warehouse.shards.packs import take
from warehouse.tokens import BOS, IMAGE_TOKENS, UNK, TokenType


@pytest.fixture(scope="module")
def root(tmp_path_factory, lines):
    return fabricate(tmp_path_factory.mktemp("masks") / "root", lines, CONTEXT, row_group_rows=7, structured=True)


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


def places_of(packs, unit=None):
    """Packs as a reader finds them: half of them in a block of another time unit or dtype where `unit` asks so."""
    halves = []
    for rows, width in ((slice(0, len(packs) // 2), unit), (slice(len(packs) // 2, None), None)):
        part = take(packs, rows)
        header = ShardHeader("mehrt", "train", 0, packs.input_ids.shape[1], "uint16", "", 16)
        step = 1
        if width is not None:
            part, header = compact(part, header)
            step = header.time_unit_us
        sheet = sheet_of(MappedRows(0, len(part), part.input_ids, part.token_type, part.time), step)
        pages = pages_of(part)
        halves += [PackAddress(sheet, row, pages) for row in range(len(part))]
    return halves


def collated(drawn, loss="mehrt", context=10, unit=None):
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
    kinds = recipe("full", loss, False).kinds
    places = places_of(packs, unit)
    made = collate(places, context, packs.pack_id, (0, 0), kinds, ["ct"])
    empty = {name: {} for name in ("item_vectors", "item_units", "item_lengths", "items_dropped")}
    batch = Batch(**made.whole, **item_fields(made.items), **empty)
    assert batch.loss_mask.sum(1).tolist() == count_targets(places, context, kinds).tolist()
    return packs, batch


@settings(max_examples=80, deadline=None)
@given(
    drawn=timelines,
    loss=st.sampled_from(["mehrt", "multimodal", (TokenType.IMAGE, TokenType.INTERVAL)]),
    unit=st.sampled_from([None, 1]),
)
def test_collation_and_loss_mask_against_loops(drawn, loss, unit):
    packs, batch = collated(drawn, loss, unit=unit)
    targets = {
        "mehrt": {TokenType.STRUCTURED, TokenType.DEMOGRAPHIC},
        "multimodal": {TokenType.STRUCTURED, TokenType.INTERVAL},
    }.get(loss, set(loss))
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
                assert int(batch.time_us[row, at]) == packs.time[row, at]
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
                tokens.append((row, at, segment, int(packs.time[row, at]), place))
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
    packs, batch = collated(drawn)
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
            person = subject[first[token_row] + int(batch.segment_ids[token_row, token])]
            assert person == subject[first[int(row[item])] + int(batch.segment_ids[row[item], position[item]])]
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


def test_times_before_their_segment_s_own_unit_are_exact(release, lines):
    """What the timelines say is what batches say, token by token."""
    by_subject = {line.subject: line for line in lines}
    for batch in train(release).batches(8):
        for row, column in batch.real.nonzero().tolist():
            segment = int(batch.batch_segment[row, column])
            place = int(batch.segment_offset[segment] + batch.position_ids[row, column])
            assert int(batch.time_us[row, column]) == by_subject[int(batch.subject_ids[segment])].times[place]
        break


def test_fewer_fields_are_the_same_fields(release):
    full = next(iter(train(release).batches(8)))
    segments = next(iter(train(release, fields="segments").batches(8)))
    ids = next(iter(train(release, fields="ids").batches(8)))
    assert (type(segments), type(ids)) == (SegmentBatch, IdBatch)
    assert torch.equal(full.input_ids, ids.input_ids)
    for name in ("input_ids", "pack_ids", "segment_ids", "position_ids", "cu_seqlens", "subject_ids", "segment_offset"):
        assert torch.equal(getattr(full, name), getattr(segments, name)), name
    assert full.cursor == segments.cursor == ids.cursor
    assert not hasattr(ids, "segment_ids")
    with pytest.raises(TimeloomError, match="no fields called all"):
        train(release, fields="all")


@pytest.mark.parametrize("prefetch", [0, 2])
def test_batches_move_to_a_device(release, prefetch):
    plain = list(train(release, vectors=True).batches(8, prefetch=0))
    moved = list(train(release, vectors=True).batches(8, prefetch=prefetch, device="meta"))
    assert [batch.cursor for batch in moved] == [batch.cursor for batch in plain]
    for meta, other in zip(moved, plain, strict=True):
        assert meta.item_keys == other.item_keys
        for name in ("input_ids", "loss_mask", "cu_seqlens", "labels"):
            assert getattr(meta, name).device.type == "meta"
            assert getattr(meta, name).shape == getattr(other, name).shape
        assert meta.item_vectors["ct"].device.type == "meta"


def test_flat_is_the_batch_without_its_padding(release):
    batch = next(iter(train(release).batches(8)))
    flat = batch.flat()
    assert flat["input_ids"].shape == (1, int(batch.cu_seqlens[-1]))
    assert flat["position_ids"][0, batch.cu_seqlens[:-1].long()].eq(0).all()
    assert flat["labels"][0, batch.cu_seqlens[:-1].long()].eq(-100).all()
    assert int((flat["labels"] >= 0).sum()) == int(batch.loss_mask.sum())


# --- items within a segment's time span


def naive_window(batch, lines, modality, k):
    """By segment: keys of the subject's items within the segment's times, the k most recent; and how many are left."""
    by_subject = {line.subject: line for line in lines}
    expected, dropped = [], 0
    bounds = batch.cu_seqlens.tolist()
    times = batch.time_us[batch.real].tolist()
    for segment, subject in enumerate(batch.subject_ids.tolist()):
        seen = [time for time in times[bounds[segment] : bounds[segment + 1]] if time != NO_TIME]
        line = by_subject[subject]
        found = sorted(
            (line.times[where], key)
            for where, name, key in line.images
            if name == modality and seen and min(seen) <= line.times[where] <= max(seen)
        )
        dropped += max(0, len(found) - k)
        expected.append(found[-k:])
    return expected, dropped


@pytest.mark.parametrize("plan", ["default", "structured"])
@pytest.mark.parametrize("k", [1, 2, 8])
def test_items_are_retrieved_within_the_segment_s_time_span(release, lines, plan, k):
    seen = left = 0
    dataset = release.shards("mehrt", split="train", plan=plan, items_per_segment=k, vectors=True)
    for batch in dataset.batches(8):
        for modality in DIMS:
            expected, dropped = naive_window(batch, lines, modality, k)
            owner, times = batch.item_segment[modality].tolist(), batch.item_time_us[modality].tolist()
            found = [[] for _ in expected]
            for its, time, key in zip(owner, times, batch.item_keys[modality], strict=True):
                found[its].append((time, key))
            assert found == expected
            assert batch.items_dropped[modality] == dropped
            for key, vector in zip(batch.item_keys[modality], batch.item_vectors[modality], strict=True):
                np.testing.assert_array_equal(vector.numpy(), vector_of(modality, key))
            mask = visible_items(batch, modality, k)
            row, column, item = mask.nonzero().unbind(1)
            assert (batch.item_time_us[modality][item] < batch.time_us[row, column]).all()
            assert (batch.item_segment[modality][item] == batch.batch_segment[row, column]).all()
            seen, left = seen + len(item), left + dropped
    assert seen
    assert (left > 0) == (k < 8)


# --- sequences


def test_sequences_have_valid_lengths_and_their_mean(tmp_path, lines):
    release = Release.open(fabricate(tmp_path / "root", lines[:30], CONTEXT, sequences=True))
    lengths = set()
    for batch in release.shards("mehrt", split="train", vectors="sequences").batches(8):
        for modality, keys in batch.item_keys.items():
            values, valid = batch.padded_units(modality)
            assert values.shape[:2] == valid.shape == (len(keys), valid.shape[1])
            for number, key in enumerate(keys):
                units = units_of(modality, key)
                lengths.add(len(units))
                assert int(valid[number].sum()) == int(batch.item_lengths[modality][number]) == len(units)
                np.testing.assert_array_equal(values[number][valid[number]].numpy(), units)
                assert not values[number][~valid[number]].any()
                np.testing.assert_allclose(
                    batch.item_vectors[modality][number].numpy(), units.mean(0), rtol=1e-5, atol=1e-6
                )
    assert len(lengths) > 1
    pooled = next(iter(release.shards("mehrt", split="train").batches(8)))
    for modality, keys in pooled.item_keys.items():
        for key, vector in zip(keys, pooled.item_vectors[modality], strict=True):
            np.testing.assert_allclose(vector.numpy(), units_of(modality, key).mean(0), rtol=1e-5, atol=1e-6)
    with pytest.raises(TimeloomError, match="no sequences of ct"):
        pooled.padded_units("ct")
