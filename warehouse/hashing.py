"""Stable hashes. Buckets, splits and shuffles rest on these, so their values are part of the format."""

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

from warehouse.arrays import U64


def splitmix64(values: npt.NDArray[Any], *salts: int) -> U64:
    """Mixes 64-bit integers (n,) with salts; the same numbers on every platform and version.

    The finaliser of Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014).
    """
    mixed = values.astype(np.int64, copy=False).view(np.uint64).copy()
    for salt in (0, *salts):
        mixed ^= np.uint64(salt & 0xFFFFFFFFFFFFFFFF)
        mixed += np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(30)
        mixed *= np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> np.uint64(27)
        mixed *= np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    return mixed


def salt_of(text: str) -> int:
    """A 64-bit salt from a name."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


BUCKET_SALT = salt_of("timeloom bucket")


def bucket_of(subject_ids: npt.NDArray[Any], buckets: int) -> npt.NDArray[np.uint16]:
    """The bucket (n,) of each subject: fixed for ever by the id and the number of buckets."""
    return (splitmix64(subject_ids, BUCKET_SALT) % np.uint64(buckets)).astype(np.uint16)
