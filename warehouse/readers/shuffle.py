"""The order in which an epoch reads packs, how it is cut into steps, and how a step's packs are dealt to ranks."""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from warehouse.arrays import I64
from warehouse.hashing import splitmix64

Uneven = Literal["pad", "drop", "ragged"]


def global_order(pack_ids: npt.NDArray[Any], seed: int | None, stage: int, epoch: int) -> I64:
    """Indices (P,) of packs in the order an epoch reads them: the same on every platform and for every world size.

    The pack ids are distinct and splitmix64 with fixed salts is one to one, so no two packs tie. Generators of numpy
    promise no stable stream, and `seed + epoch` makes one seed's second epoch the next seed's first.
    """
    if seed is None:
        return np.argsort(pack_ids, kind="stable")
    return np.argsort(splitmix64(pack_ids, seed, stage, epoch))


def step_sizes(packs: int, world: int, uneven: Uneven) -> tuple[int, tuple[int, ...]]:
    """How many full steps of `world` packs there are in `packs`, and how many packs each step behind them has.

    `pad` shares what is left, and the full step before it, between two steps of about the same size. So a rank that
    takes two packs a step or more has one in each step, and its mean loss is a number. The sizes depend on nothing but
    what is left: who stops anywhere and resumes with the same global batch takes the same steps.
    """
    full, left = divmod(packs, world)
    if not left or uneven == "drop":
        return full, ()
    if uneven == "ragged" or not full:
        return full, (left,)
    return full - 1, (world + left - (world + left) // 2, (world + left) // 2)


def dealt(packs: I64, rank: int, world_size: int) -> I64:
    """One rank's packs of a global step: every `world_size`-th, as cards are dealt."""
    return packs[rank::world_size]
