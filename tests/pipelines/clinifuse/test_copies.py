"""Copies: a perceptual hash held against its definition, near pairs against loops, and which copies are set aside."""

from itertools import combinations
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.clinifuse.perceptual import near_pairs, perceptual_hash
from pipelines.clinifuse.settings import DuplicatesConfig
from pipelines.papers.duplicates import copies_of, figures_of, near_pictures, near_texts

RANDOM = np.random.default_rng(4)


def picture(seed: int, side: int = 96) -> Any:
    """Smooth blobs, as a body has; (side, side) uint16."""
    random = np.random.default_rng(seed)
    down, across = np.mgrid[0:side, 0:side] / side
    waves = sum(
        random.normal() * np.cos(np.pi * (down * random.integers(0, 6) + across * random.integers(0, 6)))
        for _ in range(12)
    )
    scaled = (waves - waves.min()) / np.ptp(waves)
    return (scaled * 40_000 + 5_000).astype(np.uint16)


def by_definition(pixels: Any) -> int:
    """The hash of a picture whose sides are multiples of 32: the cosines written out."""
    size = pixels.shape[0] // 32
    fields = pixels.astype(float).reshape(32, size, 32, size).mean(axis=(1, 3))
    places = np.arange(32)
    cosines = np.array([np.cos(np.pi * frequency * (2 * places + 1) / 64) for frequency in range(8)])
    cosines[0] /= np.sqrt(2)
    low = (cosines @ fields @ cosines.T).ravel()
    median = np.sort(low[1:])[31]
    return int("".join("1" if value > median else "0" for value in low), 2)


def apart(first: int, second: int) -> int:
    return (first ^ second).bit_count()


def test_the_hash_is_the_one_of_the_definition_and_minds_no_brightness() -> None:
    for seed in range(4):
        pixels = picture(seed)
        found = perceptual_hash(pixels, 0.02)
        assert found is not None and 0 <= found < 1 << 64
        assert found == by_definition(pixels)
        dimmed = (pixels * 0.7 + 3000).astype(np.uint16)
        assert apart(found, perceptual_hash(dimmed, 0.02) or 0) <= 4
        assert apart(found, perceptual_hash(picture(seed + 10), 0.02) or 0) > 4


def test_flat_and_small_pictures_have_no_hash() -> None:
    flat = (RANDOM.normal(30_000, 300, (64, 64))).astype(np.uint16)
    assert perceptual_hash(flat, 0.02) is None
    assert perceptual_hash(flat, 0.0) is not None
    assert perceptual_hash(picture(1, 31), 0.02) is None


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 4), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_near_pairs_are_those_of_a_loop(most: int, number: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    base = random.integers(0, 1 << 63, 3, dtype=np.uint64)
    hashes = base[random.integers(0, 3, number)]
    for _ in range(5):
        hashes = hashes ^ np.where(
            random.random(number) < 0.6, np.uint64(1) << random.integers(0, 64, number, dtype=np.uint64), np.uint64(0)
        )
    wanted = {
        (first, second)
        for first, second in combinations(range(number), 2)
        if apart(int(hashes[first]), int(hashes[second])) <= most
    }
    assert set(map(tuple, near_pairs(hashes, most).tolist())) == wanted


def test_pairs_are_made_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = np.repeat(np.array([5, 1 << 40], np.uint64), 9)
    whole = near_pairs(hashes, 4)
    monkeypatch.setattr("pipelines.clinifuse.perceptual._AT_A_TIME", 3)
    assert np.array_equal(near_pairs(hashes, 4), whole) and len(whole) == 153
    assert near_pairs(np.empty(0, np.uint64), 4).shape == (0, 2)


ITEMS = pl.DataFrame(
    {
        "subject_id": [1, 1, 2, 3, 4, 5, 6],
        "item_key": ["a", "b", "c", "d", "e", "f", "g"],
        "modality": ["note"] * 7,
        "split": ["train", "train", "held_out", "tuning", "held_out", None, "train"],
    }
)
# a and b are one patient's; c, d of two splits; e and f of a split and of none; g alone.
GROUPS = pl.Series([0, 0, 1, 1, 2, 2, 3])


def test_copies_of_two_splits_are_set_aside_and_no_others() -> None:
    found = copies_of(ITEMS, GROUPS, "exact", DuplicatesConfig())
    assert found.select("item_key", "group", "members", "across", "set_aside").rows() == [
        ("a", "a", 2, False, False),
        ("b", "a", 2, False, False),
        ("c", "c", 2, True, True),
        ("d", "c", 2, True, False),
        ("e", "e", 2, False, False),
        ("f", "e", 2, False, False),
    ]
    assert figures_of(found) == {"groups": 3, "copies": 6, "of_several_subjects": 2, "across_splits": 1, "set_aside": 1}
    held_out = copies_of(ITEMS, GROUPS, "exact", DuplicatesConfig(keeps="held_out"))
    assert held_out.filter("set_aside")["item_key"].to_list() == ["d"]
    every = copies_of(ITEMS, pl.Series([0] * 7), "near", DuplicatesConfig())
    assert every.filter("set_aside")["item_key"].to_list() == ["c", "d", "e"], "train keeps its own"


def test_pictures_that_look_alike_are_told_and_stay() -> None:
    pictures = ITEMS.with_columns(pl.lit("cxr").alias("modality"))
    near = copies_of(pictures, GROUPS, "near", DuplicatesConfig())
    assert (near["across"].sum(), near["set_aside"].sum()) == (2, 0)
    assert copies_of(pictures, GROUPS, "exact", DuplicatesConfig())["set_aside"].sum() == 1
    strict = copies_of(pictures, GROUPS, "near", DuplicatesConfig(look_alikes="set_aside"))
    assert strict.filter("set_aside")["item_key"].to_list() == ["c"]
    assert near_pictures(np.array([0, 0xFF << 56, 0b1111, 0b11111111, 0xFF << 56 | 1], np.uint64), 4).tolist() == [
        0,
        1,
        0,
        0,
        1,
    ]


def test_texts_with_a_word_changed_are_near() -> None:
    from extractors.note.copies import signatures_of

    text = RANDOM.integers(0, 5000, 400).astype(np.uint32)
    changed, other = text.copy(), RANDOM.integers(0, 5000, 400).astype(np.uint32)
    changed[200] = 9999
    texts = [text, other, changed]
    words = pl.Series(
        [signatures_of(found, np.array([len(found)]))[0].tolist() for found in texts], dtype=pl.List(pl.UInt32)
    )
    assert near_texts(words, lambda _: texts.__getitem__, 0.9).tolist() == [0, 1, 0]
    assert near_texts(words.clear(), lambda _: texts.__getitem__, 0.9).tolist() == []
