"""Copies are found as a plain comparison of all shingles finds them; a text shorter than a shingle is one."""

import numpy as np
import pytest

from extractors.note.copies import SHINGLE, groups_of, shingles_of, signatures_of

U32 = np.uint32


def plain_shingles(text: list[int]) -> set[tuple[int, ...]]:
    return {tuple(text[start : start + SHINGLE]) for start in range(max(1, len(text) - SHINGLE + 1))}


def groups(texts: list[list[int]], near: float = 0.9) -> list[int]:
    arrays = [np.array(text, U32) for text in texts]
    signatures = signatures_of(np.concatenate(arrays), np.cumsum([len(array) for array in arrays]))
    found: list[int] = groups_of(signatures, lambda place: arrays[place], near).tolist()
    return found


def plain_groups(texts: list[list[int]], near: float = 0.9) -> list[int]:
    sets = [plain_shingles(text) for text in texts]
    stands = list(range(len(texts)))
    for later in range(len(texts)):
        for earlier in range(later):
            if len(sets[later] & sets[earlier]) >= near * len(sets[later] | sets[earlier]):
                old, new = max(stands[later], stands[earlier]), min(stands[later], stands[earlier])
                stands = [new if root == old else root for root in stands]
    return stands


def test_groups_are_those_of_a_plain_comparison() -> None:
    draw = np.random.default_rng(3)
    texts = [draw.integers(5, 400, size).tolist() for size in (400, 400, 60, 9, 5, 4, 3, 1)]
    for text, changes in [(texts[0], 1), (texts[0], 4), (texts[1], 2), (texts[2], 1), (texts[3], 1)]:
        copy = list(text)
        for place in draw.choice(len(copy), changes, replace=False):
            copy[place] = 1_000
        texts.append(copy)
    texts.append(texts[1][:390])
    texts.append([*texts[0], *texts[0]])
    expected = plain_groups(texts)
    assert groups(texts) == expected
    assert expected[8:11] == [0, 0, 1] and expected[11] == 11 and expected[13] == 1  # some are near, some are not


def test_short_texts_are_not_one_another() -> None:
    texts = [[7], [8], [7, 8], [8, 7], [7, 8, 9], [7, 8, 9, 10], [7, 8, 9, 10, 11], [7], [7, 8, 9, 10]]
    assert groups(texts) == [0, 1, 2, 3, 4, 5, 6, 0, 5]


@pytest.mark.parametrize("near", [0.8, 0.95, 1.0])
def test_candidates_are_held_against_their_shingles(near: float) -> None:
    draw = np.random.default_rng(5)
    base = draw.integers(5, 30_000, 300).tolist()
    texts = [base]
    for changes in (1, 3, 6, 9, 14):
        copy = list(base)
        for place in range(0, 300, 300 // changes)[:changes]:
            copy[place] = 40_000 + changes
        texts.append(copy)
    assert groups(texts, near) == plain_groups(texts, near)


def test_shingles_stay_inside_their_text() -> None:
    texts = [[1, 2, 3, 4, 5, 6], [6, 1], [1, 2, 3, 4, 5, 6]]
    flat = np.array([token for text in texts for token in text], U32)
    hashes, ends = shingles_of(flat, np.cumsum([6, 2, 6]))
    assert ends.tolist() == [2, 3, 5]
    assert hashes[:2].tolist() == hashes[3:].tolist() and len(set(hashes.tolist())) == 3
