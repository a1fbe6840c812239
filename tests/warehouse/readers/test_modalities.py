"""Items of every modality at once, against loops over tokens and items."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.releases import ENCODER, Timeline, pack_timelines
from tests.support.tokens.markov import fabricate, units_of
from warehouse import Release
from warehouse.arrays import NO_TIME
from warehouse.errors import TimeloomError
from warehouse.manifest import EncoderEntry
from warehouse.modalities import INDEXED
from warehouse.readers import retrieved_items
from warehouse.readers.assemble import recipe
from warehouse.readers.batch import Batch
from warehouse.readers.collate import collate, item_fields
from warehouse.readers.open_shards import PackAddress, pages_of, sheet_of
from warehouse.readers.retrieved_items import WindowItems
from warehouse.readers.visibility import visible_items
from warehouse.shards.file import MappedRows
from warehouse.tokens import IMAGE_TOKENS, TokenType

CONTEXT = 12
ENCODERS = {
    name: (EncoderEntry(label=ENCODER, store=f"random-{name}-0123", dim=8 + 4 * number),)
    for number, name in enumerate(INDEXED)
}
TIMES = st.sampled_from([NO_TIME, 0, 0, 1, 1, 2, 3, 4])
subjects = st.lists(
    st.tuples(
        st.lists(st.tuples(st.sampled_from(["", *INDEXED]), TIMES), min_size=1, max_size=20),  # tokens; "" is no image
        st.lists(st.tuples(st.sampled_from(INDEXED), TIMES.filter(lambda time: time != NO_TIME)), max_size=12),
    ),
    min_size=1,
    max_size=4,
)


def batch_of(drawn, most=None):
    """A batch of subjects 1, 2, … with the items of their tokens, or at most `most` within each segment's times."""
    lines, rows = [], []
    for subject, (tokens, items) in enumerate(drawn, start=1):
        line = Timeline(subject, "train", [], [], [])
        for place, (modality, time) in enumerate(sorted(tokens, key=lambda token: token[1])):
            line.ids.append(IMAGE_TOKENS[modality] if modality else 9)
            line.types.append(int(TokenType.IMAGE if modality else TokenType.STRUCTURED))
            line.times.append(time)
            if modality:
                line.images.append((place, modality, f"{subject}-{place}"))
        lines.append(line)
        rows += [
            (
                None if number % 2 else time,
                time,
                subject,
                f"{subject}+{number:02d}",
                modality,
                f"random-{modality}-0123",
            )
            for number, (modality, time) in enumerate(items)
        ]
    packs = pack_timelines(lines, CONTEXT)
    sheet = sheet_of(MappedRows(0, len(packs), packs.input_ids, packs.token_type, packs.time), 1)
    places = [PackAddress(sheet, row, pages_of(packs)) for row in range(len(packs))]
    made = collate(places, CONTEXT, packs.pack_id, (0, 0), recipe("full", "mehrt", False).kinds, INDEXED)
    items, dropped = made.items, {}
    if most is not None:
        usual = retrieved_items.usable_rows
        retrieved_items.usable_rows = lambda release, columns: iter(rows)
        try:
            window = WindowItems(None, {name: entries[0] for name, entries in ENCODERS.items()})
            items, dropped = window.of(made, most)
        finally:
            retrieved_items.usable_rows = usual
    empty = {name: {} for name in ("item_vectors", "item_units", "item_lengths")}
    return Batch(**made.whole, **item_fields(items), items_dropped=dropped, **empty), rows


def tokens_of(batch):
    """(row, column, segment, time) of every token that is no padding."""
    for row, column in batch.real.nonzero().tolist():
        yield row, column, int(batch.batch_segment[row, column]), int(batch.time_us[row, column])


def naive_mask(batch, modality, k):
    expected = np.zeros((*batch.input_ids.shape, len(batch.item_keys[modality])), bool)
    owners, times = batch.item_segment[modality].tolist(), batch.item_time_us[modality].tolist()
    for row, column, segment, time in tokens_of(batch):
        before = [
            (its_time, number)
            for number, (owner, its_time) in enumerate(zip(owners, times, strict=True))
            if owner == segment and NO_TIME not in (time, its_time) and its_time < time
        ]
        for _, number in sorted(before)[-k:]:
            expected[row, column, number] = True
    return expected


def naive_items(batch, rows, modality, k):
    """By segment, the keys that lie within its times, the k latest, and how many are left out."""
    times = [[] for _ in range(batch.n_segments)]
    for _, _, segment, time in tokens_of(batch):
        if time != NO_TIME:
            times[segment].append(time)
    kept, dropped = [], 0
    for segment, subject in enumerate(batch.subject_ids.tolist()):
        found = sorted(
            (time if available is None else available, key)
            for available, time, owner, key, name, _ in rows
            if (owner, name) == (subject, modality)
        )
        inside = [key for time, key in found if times[segment] and min(times[segment]) <= time <= max(times[segment])]
        kept.append(inside[-k:])
        dropped += len(inside) - len(inside[-k:])
    return kept, dropped


ks = st.fixed_dictionaries({name: st.integers(1, 4) for name in INDEXED})


@settings(max_examples=60, deadline=None)
@given(drawn=subjects, k=ks, by_time=st.booleans())
def test_what_tokens_see_of_all_modalities_against_loops(drawn, k, by_time):
    batch, rows = batch_of(drawn, k if by_time else None)
    assert set(batch.item_positions) == set(INDEXED)
    for modality in INDEXED:
        if by_time:
            kept, dropped = naive_items(batch, rows, modality, k[modality])
            found = [[] for _ in kept]
            for owner, key in zip(batch.item_segment[modality].tolist(), batch.item_keys[modality], strict=True):
                found[owner].append(key)
            assert found == kept and batch.items_dropped[modality] == dropped
        expected = naive_mask(batch, modality, k[modality])
        mask = visible_items(batch, modality, k[modality])
        np.testing.assert_array_equal(mask.numpy(), expected)
        # Stated once more without the loop's words: strictly before, inside the segment, at most k.
        row, column, item = mask.nonzero().unbind(1)
        assert (batch.item_time_us[modality][item] < batch.time_us[row, column]).all()
        assert (batch.item_segment[modality][item] == batch.batch_segment[row, column]).all()
        assert int(mask.sum(-1).max()) <= k[modality]
        # Side by side in each segment, with a mask for what there is.
        which, present = batch.items_by_segment(modality)
        assert torch.equal(present.any(1), batch.available(modality))
        assert present.sum() == len(batch.item_keys[modality])
        for segment in range(batch.n_segments):
            items = which[segment][present[segment]]
            assert (batch.item_segment[modality][items] == segment).all()
            times = batch.item_time_us[modality][items]
            assert (times[1:] >= times[:-1]).all()


@settings(max_examples=30, deadline=None)
@given(drawn=subjects, named=st.sets(st.sampled_from(INDEXED), min_size=1))
def test_a_modality_that_is_not_named_has_no_items(drawn, named):
    batch, _ = batch_of(drawn, dict.fromkeys(named, 2))
    assert set(batch.item_positions) == named
    for modality in set(INDEXED) - named:
        with pytest.raises(TimeloomError, match=f"no modality {modality}"):
            batch.available(modality)


# --- a release with every modality


def every_modality(subjects, seed=5):
    random = np.random.default_rng(seed)
    made = []
    for subject in range(subjects):
        line, time = Timeline(subject, "train", [], [], []), 1_600_000_000_000_000
        for place in range(int(random.integers(20, 90))):
            time += int(random.integers(2)) * 60_000_000
            modality = INDEXED[int(random.integers(len(INDEXED)))] if random.random() < 0.4 else ""
            line.ids.append(IMAGE_TOKENS[modality] if modality else 20 + int(random.integers(30)))
            line.types.append(TokenType.IMAGE if modality else TokenType.STRUCTURED)
            line.times.append(time)
            if modality:
                line.images.append((place, modality, f"{modality}{subject:03d}x{place:03d}"))
        made.append(line)
    return made


@pytest.fixture(scope="module")
def lines():
    return every_modality(24)


@pytest.fixture(scope="module")
def release(tmp_path_factory, lines):
    root = tmp_path_factory.mktemp("modalities") / "root"
    return Release.open(fabricate(root, lines, row_group_rows=7, sequences=True, structured=True, encoders=ENCODERS))


@pytest.mark.parametrize("plan", ["default", "structured"])
def test_a_batch_with_sequences_of_every_modality(release, plan):
    lengths = {name: set() for name in INDEXED}
    most = {name: 1 + number for number, name in enumerate(INDEXED)}
    shards = release.shards("mehrt", split="train", plan=plan, vectors="sequences", items_per_segment=most)
    for batch in shards.batches(4):
        masks = release.visible_by_modality(batch, most)
        assert set(masks) == set(batch.item_units) == set(INDEXED)
        for name, entries in ENCODERS.items():
            assert torch.equal(masks[name], release.visible_items(batch, name, most[name]))
            assert batch.items_by_segment(name)[0].shape[1] <= most[name]
            values, valid = batch.padded_units(name)
            assert values.shape[2] == entries[0].dim
            assert batch.item_units[name].shape[0] == int(batch.item_lengths[name].sum()) == int(valid.sum())
            for number, key in enumerate(batch.item_keys[name]):
                units = units_of(name, key, entries[0].dim)
                lengths[name].add(len(units))
                np.testing.assert_array_equal(values[number][valid[number]].numpy(), units)
                assert not values[number][~valid[number]].any()
    assert all(len(found) > 1 for found in lengths.values())


def test_nothing_is_padded_in_the_store(release):
    for name, entries in ENCODERS.items():
        keys = [key for line in every_modality(24) for _, modality, key in line.images if modality == name]
        for key in keys[:20]:
            assert release.vector(name, key).shape == units_of(name, key, entries[0].dim).shape


def test_each_modality_has_vectors_of_its_own_kind(release):
    first, second, *others = INDEXED
    shards = release.shards("mehrt", split="train", vectors={first: "sequences", second: "pooled"})
    for batch in shards.batches(4):
        assert set(batch.item_units) == set(batch.item_lengths) == {first}
        assert len(batch.item_vectors[second]) == len(batch.item_keys[second])
        assert all(batch.item_vectors[name].shape == (0, ENCODERS[name][0].dim) for name in others)
        assert set(batch.item_keys) == set(INDEXED)
    with pytest.raises(TimeloomError, match=r"no vectors of pet.*ct, cxr, ecg"):
        release.shards("mehrt", split="train", vectors={"pet": "pooled"})
    with pytest.raises(TimeloomError, match="items_per_segment is below 1"):
        release.shards("mehrt", split="train", items_per_segment={first: 2, second: 0})


def test_a_segment_without_a_modality_is_masked_and_not_filled(release, lines):
    seen = {True: 0, False: 0}
    by_subject = {line.subject: {modality for _, modality, _ in line.images} for line in lines}
    for batch in release.shards("mehrt", split="train", plan="structured", items_per_segment=2).batches(8):
        for name in INDEXED:
            available = batch.available(name).tolist()
            for subject, has_items in zip(batch.subject_ids.tolist(), available, strict=True):
                assert not has_items or name in by_subject[subject]
                seen[has_items] += 1
            owners = set(batch.item_segment[name].tolist())
            assert owners == {segment for segment, has_items in enumerate(available) if has_items}
    assert seen[True] and seen[False]
