"""Pictures that look alike: the same film stored again with other brightness or contrast.

A picture's fingerprint says of 16 x 16 fields which is brighter than its right neighbour (a difference hash, of 256
bits where 64 join strangers). It only reports: films of two patients may look alike.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

SIDE = 16
NEAR = 8  # bits of 256
_EQUAL, _MOST_EQUAL = 0.01, 0.9  # fields that differ by less of the whole range are equal; and the share that may be
_SAMPLES = 256  # rows and columns of pixels that are looked at
_AT_A_TIME = 256


def fingerprint_of(pixels: npt.NDArray[np.uint16]) -> str:
    """The fingerprint of a picture (rows, columns) in hex; empty where most neighbours are equal."""
    if pixels.shape[0] < SIDE or pixels.shape[1] < SIDE + 1:
        return ""
    means = means_of(pixels, SIDE, SIDE + 1)
    steps = np.diff(means, axis=1)
    equal = _EQUAL * float(np.ptp(means))
    if (np.abs(steps) <= equal).mean() > _MOST_EQUAL:
        return ""
    return np.packbits(steps > equal).tobytes().hex()


def means_of(pixels: npt.NDArray[np.uint16], down: int, across: int) -> npt.NDArray[np.float64]:
    """The mean of each of so many fields (down, across) of a picture that has as many rows and columns at least."""
    sparse = pixels[:: max(1, pixels.shape[0] // _SAMPLES), :: max(1, pixels.shape[1] // _SAMPLES)]
    rows, columns = sparse.shape
    tops = np.linspace(0, rows, down + 1).astype(np.int64)[:-1]
    lefts = np.linspace(0, columns, across + 1).astype(np.int64)[:-1]
    sums = np.add.reduceat(np.add.reduceat(sparse.astype(np.int64), tops, axis=0), lefts, axis=1)
    heights, widths = np.diff(np.append(tops, rows)), np.diff(np.append(lefts, columns))
    means: npt.NDArray[np.float64] = sums / (heights[:, None] * widths[None, :])
    return means


def near_copies(fingerprints: Sequence[str]) -> list[int]:
    """Of each fingerprint, how many of the others are near it."""
    if len(fingerprints) < 2:
        return [0] * len(fingerprints)
    bits = np.array([np.frombuffer(bytes.fromhex(text), np.uint64) for text in fingerprints])
    counts: list[int] = []
    for start in range(0, len(bits), _AT_A_TIME):
        apart = np.bitwise_count(bits[start : start + _AT_A_TIME, None] ^ bits[None]).sum(axis=2)
        counts += ((apart <= NEAR).sum(axis=1) - 1).tolist()
    return counts
