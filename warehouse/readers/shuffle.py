"""The order in which an epoch reads packs, and how a step's packs are dealt to ranks."""

from typing import Any

import numpy as np
import numpy.typing as npt

from warehouse.arrays import I64
from warehouse.hashing import splitmix64


def global_order(pack_ids: npt.NDArray[Any], seed: int | None, stage: int, epoch: int) -> I64:
    """Indices (P,) of packs in the order an epoch reads them: the same on every platform and for every world size.

    The pack ids are distinct and splitmix64 with fixed salts is one to one, so no two packs tie. Generators of numpy
    promise no stable stream, and `seed + epoch` makes one seed's second epoch the next seed's first.
    """
    if seed is None:
        return np.argsort(pack_ids, kind="stable")
    return np.argsort(splitmix64(pack_ids, seed, stage, epoch))


def dealt(packs: I64, rank: int, world_size: int) -> I64:
    """One rank's packs of a global step: every `world_size`-th, as cards are dealt."""
    return packs[rank::world_size]
