"""When facts of one kind happened, by subject: searched for many subjects and moments at once."""

from dataclasses import dataclass

import numpy as np

from warehouse.arrays import I64, NO_TIME, Bools

NEVER = np.iinfo(np.int64).max  # later than every moment
DAY = 86_400_000_000  # µs


@dataclass(frozen=True)
class Instants:
    """Facts of one kind, in the order of subject and of when each may have happened at the earliest.

    A subject and a moment are one number, so that one binary search over all facts answers for one subject alone: what
    another subject has is never found.

    Attributes:
        subject: places of subjects (n,).
        low: µs (n,), the earliest moment that a fact may have.
        earliest: µs (n,), the earliest `at` of a fact's subject from this fact on.
    """

    subject: I64
    low: I64
    earliest: I64
    _moments: I64
    _keys: I64

    @classmethod
    def of(cls, subject: I64, at: I64, low: I64 | None = None) -> "Instants":
        """From facts in any order.

        Args:
            subject: places (n,).
            at: µs (n,), when each counts.
            low: µs (n,), at most `at`: the start of the day where only the day is known; `at` where not given.
        """
        low = at if low is None else low
        order = np.lexsort((at, low, subject))
        subject, at, low = subject[order], at[order], low[order]
        moments, rank = np.unique(low, return_inverse=True)
        counted = np.unique(at)
        # Backwards, subjects fall: a running minimum begins anew with each.
        falling = subject * (len(counted) + 1) + np.searchsorted(counted, at)
        running = np.minimum.accumulate(falling[::-1])[::-1]
        earliest = counted[running - subject * (len(counted) + 1)] if len(at) else at
        return cls(subject, low, earliest, moments, subject * (len(moments) + 1) + rank)

    def _before(self, subject: I64, moment: I64, *, itself: bool) -> I64:
        """How many facts (q,) stand before a subject's moment, or up to it."""
        rank = np.searchsorted(self._moments, moment, "right" if itself else "left")
        found: I64 = np.searchsorted(self._keys, subject * (len(self._moments) + 1) + rank)
        return found

    def _of(self, subject: I64, place: I64) -> Bools:
        """Whether a place (q,) holds a fact of the subject."""
        inside = (place >= 0) & (place < len(self.subject))
        inside[inside] = self.subject[place[inside]] == subject[inside]
        return inside

    def latest(self, subject: I64, moment: I64) -> I64:
        """The latest fact (q,) at or before a moment; NO_TIME where there is none."""
        place = self._before(subject, moment, itself=True) - 1
        found = np.full(len(subject), NO_TIME)
        known = self._of(subject, place)
        found[known] = self.low[place[known]]
        return found

    def since(self, subject: I64, moment: I64) -> I64:
        """The earliest fact (q,) at or after a moment; NEVER where there is none."""
        return self._next(subject, self._before(subject, moment, itself=False))

    def after(self, subject: I64, moment: I64) -> I64:
        """When the earliest fact (q,) counts of those that cannot have happened by a moment; NEVER where none is."""
        return self._next(subject, self._before(subject, moment, itself=True))

    def _next(self, subject: I64, place: I64) -> I64:
        found = np.full(len(subject), NEVER)
        known = self._of(subject, place)
        found[known] = self.earliest[place[known]]
        return found

    def by(self, subject: I64, moment: I64) -> Bools:
        """Whether a fact may have happened at or before a moment (q,)."""
        return self.between(subject, np.full(len(subject), NO_TIME), moment)

    def between(self, subject: I64, first: I64, last: I64) -> Bools:
        """Whether a fact may have happened from one moment to another (q,), both included."""
        found: Bools = self._before(subject, last, itself=True) > self._before(subject, first, itself=False)
        return found


def shifted(moment: I64, days: int) -> I64:
    """Moments (q,) so many days later; what is never, or no time, stays so."""
    known = (moment != NEVER) & (moment != NO_TIME)
    return np.where(known, moment + days * DAY * known, moment)
