"""Notes that say the same: copied forward whole, or with a few words changed. They are counted and marked, and stay.

Near copies are found by MinHash (the library `rensa`) over shingles of five tokens, in bands of which one must be the
same; what they propose is held against the shingles themselves (Jaccard). A text shorter than a shingle is one shingle.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]

SHINGLE = 5
BANDS, ROWS = 10, 6  # finds 99.9 of 100 pairs with a Jaccard of 0.9, 95 of 100 with 0.8
_SEED = 42
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


def shingles_of(tokens: U32, ends: I64) -> tuple[U64, I64]:
    """Hashes of the shingles of texts that stand one behind the other, and where each text's end (n,).

    Args:
        tokens: all texts' tokens.
        ends: where each text's tokens end (n,); none is empty.
    """
    wide = tokens.astype(np.uint64) + np.uint64(1)
    starts = np.concatenate([[0], ends[:-1]])
    sizes = ends - starts
    counts = np.maximum(sizes - SHINGLE + 1, 1)
    shingle_ends = np.cumsum(counts)
    first = np.repeat(starts - np.concatenate([[0], shingle_ends[:-1]]), counts) + np.arange(shingle_ends[-1])
    text_end = np.repeat(ends, counts)
    hashes = np.zeros(len(first), np.uint64)
    for step in range(SHINGLE):
        place = first + step
        inside = place < text_end  # a text shorter than a shingle is one
        hashes = hashes * _FACTOR + np.where(inside, wide[np.minimum(place, len(wide) - 1)], 0)
    hashes ^= hashes >> np.uint64(29)
    return hashes * _FACTOR, shingle_ends


def signatures_of(tokens: U32, ends: I64) -> U32:
    """MinHash signatures of texts (n, BANDS * ROWS); see `shingles_of`."""
    from rensa import RMinHash

    if not len(ends):
        return np.empty((0, BANDS * ROWS), np.uint32)
    hashes, shingle_ends = shingles_of(tokens, ends)
    offsets = np.concatenate([[0], shingle_ends]).astype(np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets, BANDS * ROWS, _SEED)
    return np.array(matrix.to_rows(), np.uint32).reshape(len(ends), BANDS * ROWS)


def groups_of(signatures: U32, tokens_of: Callable[[int], U32], least: float) -> I64:
    """Of each text (n,), the first of those that it is a near copy of, or of their near copies; or itself.

    Args:
        signatures: (n, BANDS * ROWS).
        tokens_of: a text's tokens, by its place.
        least: the Jaccard of two texts' shingles that makes them near.
    """
    stands = np.arange(len(signatures))

    def root(place: int) -> int:
        while stands[place] != place:
            stands[place] = stands[stands[place]]
            place = int(stands[place])
        return place

    @lru_cache(maxsize=1 << 14)
    def shingles(place: int) -> U64:
        found = tokens_of(place)
        return np.unique(shingles_of(found, np.array([len(found)]))[0])

    for first, second in candidates_of(signatures):
        roots = sorted((root(first), root(second)))
        if roots[0] == roots[1]:
            continue
        common = len(np.intersect1d(shingles(first), shingles(second), assume_unique=True))
        if common >= least * (len(shingles(first)) + len(shingles(second)) - common):
            stands[roots[1]] = roots[0]
    return np.array([root(place) for place in range(len(stands))], np.int64)


def candidates_of(signatures: U32) -> list[tuple[int, int]]:
    """Pairs of texts that are the same in a whole band: each with the first such and with the one before it.

    So there are at most two a text and band, however many copies of one template there are.
    """
    pairs = []
    for band in range(BANDS):
        rows = signatures[:, band * ROWS : (band + 1) * ROWS]
        key = np.zeros(len(rows), np.uint64)
        for column in rows.T:
            key = key * _FACTOR + column
        order = np.argsort(key, kind="stable")
        same = np.flatnonzero(key[order][1:] == key[order][:-1]) + 1
        if not len(same):
            continue
        begins = np.ones(len(order), np.bool_)
        begins[same] = False
        heads = np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))
        pairs += [np.column_stack([order[same - 1], order[same]]), np.column_stack([order[heads[same]], order[same]])]
    if not pairs:
        return []
    found: list[tuple[int, int]] = list(map(tuple, np.unique(np.sort(np.concatenate(pairs), axis=1), axis=0).tolist()))
    return found
