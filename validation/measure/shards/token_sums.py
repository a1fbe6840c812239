"""One number for all tokens of a subject; it is the same whether timelines or shards give the tokens.

The sum of a 64-bit hash of each token, whatever their order: of its place in the timeline as the plan keeps it, its id,
type and time, and of the image's key where it stands for one. Two tokens that changed places change it.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from warehouse.arrays import I64, U64
from warehouse.hashing import splitmix64
from warehouse.manifest import PlanEntry

SUMS = {"subject_id": pl.Int64, "sum": pl.UInt64}
_STEP = 1 << 16  # tokens whose columns stay in a core's cache
# Bits of a word below the place, and below the type: ids have 32, types 8, places the 24 that are left.
_PLACE, _TYPE = np.uint64(40), np.uint64(32)


class Kept(NamedTuple):
    """What a plan keeps of a timeline. Plans that keep the same have the same sums.

    Attributes:
        images: its image tokens too.
        last: the last so many tokens; None for all.
    """

    images: bool
    last: int | None


def kept_by(plan: PlanEntry) -> Kept:
    """What a plan keeps of the timelines of which it keeps anything."""
    return Kept(plan.images, plan.context if plan.mode == "last_n" else None)


def hash_tokens(
    place: I64, token_id: npt.NDArray[Any], token_type: npt.NDArray[np.uint8], time: I64, key_at: I64, key: pl.Series
) -> U64:
    """The hash (T,) of each token.

    Args:
        place: (T,) tokens of the subject that stand before.
        time: (T,) microseconds since 1970, NO_TIME for none.
        key_at: (I,) which tokens have a key.
        key: (I,) String.
    """
    result = np.empty(len(place), dtype=np.uint64)
    for low in range(0, len(place), _STEP):
        part = slice(low, low + _STEP)
        word = place[part].astype(np.uint64) << _PLACE
        word |= token_type[part].astype(np.uint64) << _TYPE
        word |= token_id[part]
        word ^= splitmix64(time[part])
        result[part] = splitmix64(word.view(np.int64))
    # The same polars hashes both sides, so its hashes of text may differ from those of another version.
    result[key_at] = splitmix64((result[key_at] ^ key.hash().to_numpy()).view(np.int64))
    return result


def running(hashes: U64) -> U64:
    """Sums before each place (T + 1,), modulo 2^64: the difference of two is the sum of what lies between."""
    sums = np.zeros(len(hashes) + 1, dtype=np.uint64)
    np.cumsum(hashes, out=sums[1:])
    return sums


def per_subject(parts: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """Sums of SUMS, modulo 2^64, one row a subject."""
    frame = pl.concat([pl.DataFrame(schema=SUMS), *parts]).sort("subject_id")
    subject = frame["subject_id"].to_numpy()
    edges = np.append(_starts(subject), len(subject))
    sums = running(frame["sum"].to_numpy())
    return pl.DataFrame({"subject_id": subject[edges[:-1]], "sum": sums[edges[1:]] - sums[edges[:-1]]}, schema=SUMS)


def _starts(subject: npt.NDArray[Any]) -> I64:
    """Where a new subject begins."""
    return np.flatnonzero(np.append([True], subject[1:] != subject[:-1])[: len(subject)])
