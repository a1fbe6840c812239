"""A perceptual hash of 64 bits, and which hashes are near one another.

The hash is the usual one (pHash): the lowest 8 x 8 frequencies of a picture of 32 x 32 fields, each against their
median. Of a picture that is nearly flat the bits are noise: it has none.
"""

from itertools import pairwise

import numpy as np

from extractors.cxr.copies import means_of
from warehouse.arrays import I64, U16, U64

_FIELDS, _FREQUENCIES, _BANDS = 32, 8, 5
BITS = 64
NEAR = 4  # with as many bits that differ, one of five bands has none
_AT_A_TIME = 1 << 22


def perceptual_hash(pixels: U16, least_deviation: float) -> int | None:
    """The hash of a picture (rows, columns); None where it is smaller than its fields, or nearly flat.

    Args:
        least_deviation: of the fields, as a share of the whole grey range.
    """
    from scipy.fft import dctn

    if min(pixels.shape) < _FIELDS:
        return None
    fields = means_of(pixels, _FIELDS, _FIELDS)
    if fields.std() < least_deviation * np.iinfo(np.uint16).max:
        return None
    low = dctn(fields, norm="ortho")[:_FREQUENCIES, :_FREQUENCIES].ravel()
    # Without the first, which is the picture's mean.
    return int.from_bytes(np.packbits(low > np.median(low[1:])).tobytes(), "big")


def near_pairs(hashes: U64, most: int = NEAR) -> I64:
    """Every pair (p, 2) of places of hashes (n,) that differ in at most so many bits, 4 at most."""
    edges = np.linspace(0, BITS, _BANDS + 1).astype(np.uint64)
    found = [np.empty((0, 2), np.int64)]
    for low, high in pairwise(edges):
        band = (hashes >> low) & ((np.uint64(1) << (high - low)) - np.uint64(1))
        order = np.argsort(band, kind="stable")
        edge = np.flatnonzero(band[order][1:] != band[order][:-1]) + 1
        starts, ends = np.append(0, edge), np.append(edge, len(order))
        # Each place with all that stand behind it in its run.
        behind = np.repeat(ends, ends - starts) - np.arange(len(order)) - 1
        reached = np.cumsum(behind)
        first = 0
        while first < len(order):
            before = reached[first - 1] if first else 0
            last = max(first + 1, int(np.searchsorted(reached, before + _AT_A_TIME, "right")))
            counts = behind[first:last]
            left = np.repeat(np.arange(first, last), counts)
            right = left + 1 + np.arange(len(left)) - np.repeat(np.cumsum(counts) - counts, counts)
            pairs = np.stack([order[left], order[right]], axis=1)
            near = np.bitwise_count(hashes[pairs[:, 0]] ^ hashes[pairs[:, 1]]) <= most
            found.append(np.sort(pairs[near], axis=1))
            first = last
    return np.unique(np.concatenate(found), axis=0)
