"""Who gets which split by turns: any fractions, each split within one subject of its quota at every place.

A stratum's subjects stand in line. How many of the first n go to train is n × its fraction, rounded with a first phase;
of the others, tuning gets its share rounded with a second phase. Whatever the phases, the counts never leave their
quotas; so a line that grows goes on under any phases that would have led to where it stands, and those are taken that
bring the whole closest to its quota. All in integers, so that every machine deals alike.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from warehouse.arrays import I64

WHOLE = 10**9  # fractions are kept in units of this
GRID = 16  # phases that are tried in each direction
TOTAL_WEIGHT = 8.0  # of the whole's deviation against that of a margin, where strata are balanced
ROUNDS = 3


@dataclass(frozen=True)
class Quota:
    """Fractions in units of 1/WHOLE; they add up to WHOLE."""

    train: int
    tuning: int
    held_out: int

    @classmethod
    def of(cls, fractions: Mapping[str, float]) -> "Quota":
        """Of `train`, `tuning` and `held_out`, any of which may be 0."""
        train, tuning = round(fractions["train"] * WHOLE), round(fractions["tuning"] * WHOLE)
        if fractions["held_out"] == 0:
            tuning = WHOLE - train
        return cls(train, tuning, WHOLE - train - tuning)

    @property
    def fractions(self) -> npt.NDArray[np.float64]:
        """(3,) train, tuning, held_out."""
        return np.array([self.train, self.tuning, self.held_out]) / WHOLE

    def phases(self) -> I64:
        """(n, 2) pairs of phases under which every split stays within one subject of its quota at every place."""
        first = (2 * np.arange(GRID) + 1) * (WHOLE // (2 * GRID))
        share = self.tuning / max(self.tuning + self.held_out, 1)
        at = first / WHOLE
        low = np.maximum(share * at, (1 - share) * (1 - at))
        high = np.minimum(1 - share * (1 - at), 1 - (1 - share) * at)
        step = (2 * np.arange(GRID) + 1) / (2 * GRID)
        second = (low[:, None] + step * (high - low)[:, None]) * WHOLE
        pairs = np.stack([np.repeat(first, GRID), second.astype(np.int64).ravel()], axis=1)
        return np.unique(pairs, axis=0)

    def counts(self, places: I64, phases: I64) -> I64:
        """How many of the first `places` (n,) of a line each split gets: (n, 3); `phases` (n, 2) or (2,)."""
        phases = np.atleast_2d(phases)
        train = (places * self.train + phases[:, 0]) // WHOLE
        rest = places - train
        others = self.tuning + self.held_out
        # The second phase is a share of `others`, so that the division is exact in integers.
        phase = phases[:, 1] * others // WHOLE
        tuning = (rest * self.tuning + phase) // others if others else np.zeros_like(rest)
        return np.stack([train, tuning, rest - tuning], axis=1)

    def deal(self, places: I64, phases: I64) -> npt.NDArray[np.uint8]:
        """The split of each place (n,) of a line, counted from 0, as an index into (train, tuning, held_out): (n,)."""
        turn = self.counts(places + 1, phases) - self.counts(places, phases)
        return np.asarray(turn.argmax(axis=1), np.uint8)


def choose_phases(quota: Quota, strata: pl.DataFrame) -> I64:
    """Phases (n, 2) of strata, such that the whole and each margin come close to their quotas.

    Controlled rounding: each stratum's counts are rounded up or down as its set of modalities, its quarter of length,
    its quarter of interval and the whole need it; a few rounds over the strata settle it.

    Args:
        strata: a row each, those without new subjects too: `stratum` (parts divided by |), `new`, and how many subjects
            of it each split has already, `train`, `tuning`, `held_out`.
    """
    pairs = quota.phases()
    new = strata["new"].to_numpy()
    held = strata.select("train", "tuning", "held_out").to_numpy()
    before = held.sum(axis=1)
    # A margin is a part of the label at its place: `ct` first, `2` second. Column 0 is the whole.
    parts = strata["stratum"].str.split("|").to_list()
    named = {margin: 1 + number for number, margin in enumerate(dict.fromkeys(_margins(parts)))}
    member = np.zeros((len(new), 1 + len(named)), dtype=bool)
    member[:, 0] = True
    for row, of in enumerate(parts):
        member[row, [named[margin] for margin in enumerate(of)]] = True
    weights = np.ones(member.shape[1])
    weights[0] = TOTAL_WEIGHT
    lead = held - before[:, None] * quota.fractions
    ahead = member.T @ lead
    chosen = np.zeros(len(new), dtype=np.int64)
    growing = np.flatnonzero(new).tolist()
    possible = {}
    for row in growing:
        # The phases that would have given what the ledger holds; if other rules dealt it, those that come closest.
        off = np.abs(quota.counts(np.full(len(pairs), before[row]), pairs) - held[row]).sum(axis=1)
        possible[row] = np.flatnonzero(off == off.min())
    for _ in range(ROUNDS):
        for row in growing:
            margins, size = member[row], before[row] + new[row]
            ahead[margins] -= lead[row]
            tried = pairs[possible[row]]
            leads = quota.counts(np.full(len(tried), size), tried) - size * quota.fractions
            squares = ((ahead[margins][:, None, :] + leads) ** 2).sum(axis=2)
            best = int((weights[margins] @ squares).round(9).argmin())
            chosen[row], lead[row] = possible[row][best], leads[best]
            ahead[margins] += lead[row]
    return pairs[chosen]


def _margins(parts: list[list[str]]) -> list[tuple[int, str]]:
    return [margin for of in parts for margin in enumerate(of)]
