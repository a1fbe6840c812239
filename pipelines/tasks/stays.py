"""Stays of events: a start and its own end; overlapping ones are one stay, and what is out of order has no label.

Source of the faults: MIMIC-IV's stays that end before they begin, stand inside others, or have no end.
"""

from dataclasses import dataclass

import numpy as np

from pipelines.tasks.facts import NO_VISIT, Rows
from pipelines.tasks.instants import NEVER
from warehouse.arrays import I64, NO_TIME, Bools


@dataclass(frozen=True)
class Stays:
    """Every start of a kind of stay, by subject and time.

    Attributes:
        subject: places (n,).
        start, end: µs (n,); the end is that of the stays that overlap, NEVER where none is known.
        bad_order: which (n,) have an end that is not after their start.
        inside: which (n,) begin in a stay that began before, and belong to it.
    """

    subject: I64
    start: I64
    end: I64
    bad_order: Bools
    inside: Bools

    def __len__(self) -> int:
        return len(self.subject)

    @property
    def whole(self) -> I64:
        """Places of the stays that stand for themselves."""
        return np.flatnonzero(~(self.bad_order | self.inside))

    def next_start(self) -> I64:
        """When the subject's next stay begins that stands for itself (n,); NEVER for the last, and for other rows."""
        found = np.full(len(self), NEVER)
        whole = self.whole
        same = self.subject[whole[1:]] == self.subject[whole[:-1]]
        found[whole[:-1][same]] = self.start[whole[1:][same]]
        return found

    def around(self, subject: I64, moment: I64) -> I64:
        """The stay (q,) that a moment lies in, from its start up to before its end, as a place; -1 for none."""
        whole = self.whole
        found = np.full(len(subject), -1, np.int64)
        if not len(whole) or not len(subject):
            return found
        moments, rank = np.unique(self.start[whole], return_inverse=True)
        keys = self.subject[whole] * (len(moments) + 1) + rank
        asked = subject * (len(moments) + 1) + np.searchsorted(moments, moment, "right")
        place = np.searchsorted(keys, asked) - 1
        known = place >= 0
        known[known] = self.subject[whole[place[known]]] == subject[known]
        found[known] = whole[place[known]]
        inside = known.copy()
        inside[known] = moment[known] < self.end[found[known]]
        return np.where(inside, found, -1)


def stays_of(rows: Rows, starts: Bools, ends: Bools, clock: str) -> Stays:
    """Ties each start to its end.

    A start's end is the next of its visit that comes before another start of it; of events without a visit, the next of
    the subject. It must be later than the start. Where a visit has stays inside one another, as units and their beds,
    and each has its end, the end is that of the outermost.

    Args:
        starts, ends: which rows (n,) are of each.
        clock: `time` or `available_time`.
    """
    chosen = rows.take(starts | ends)
    is_start, at = starts[starts | ends], chosen.at(clock)
    # At one moment an end stands first: it is that of what began before.
    order = np.lexsort((is_start, at, chosen.visit, chosen.subject))
    subject, visit, at, is_start = chosen.subject[order], chosen.visit[order], at[order], is_start[order]
    together = (subject[1:] == subject[:-1]) & (visit[1:] == visit[:-1])
    ended = np.append(together & is_start[:-1] & ~is_start[1:], False)
    end = np.where(ended, np.append(at[1:], NEVER), NEVER)
    nested, outermost, its_end = _nested(np.append(True, ~together)[: len(at)], is_start, visit)
    ended = np.where(nested, is_start, ended)
    end[nested] = NEVER
    end[outermost] = at[its_end]
    # An end that ends nothing, right before a start of its visit.
    ends_nothing = ~is_start & ~np.append(False, ended[:-1])
    bad = np.append(False, together & ends_nothing[:-1]) & is_start & ~ended & (visit != NO_VISIT)
    subject, start, end, bad = subject[is_start], at[is_start], end[is_start], bad[is_start]
    order = np.lexsort((end, start, bad, subject))
    order = order[np.lexsort((start[order], subject[order]))]
    subject, start, end, bad = subject[order], start[order], end[order], bad[order]
    return _merged(subject, start, end, bad)


def _nested(begins: Bools, is_start: Bools, visit: I64) -> tuple[Bools, I64, I64]:
    """Events (n,) of visits whose starts and ends fit each other, the places of the outermost starts and of their ends.

    Args:
        begins: at which events another visit begins.
    """
    if not len(visit):
        none = np.zeros(0, np.int64)
        return none.astype(np.bool_), none, none
    depth = np.cumsum(np.where(is_start, 1, -1))
    first = np.flatnonzero(begins)
    group = np.cumsum(begins) - 1
    depth -= (depth[first] - np.where(is_start[first], 1, -1))[group]
    fits = np.minimum.reduceat(depth, first) >= 0
    fits &= depth[np.append(first[1:], len(depth)) - 1] == 0
    nested: Bools = fits[group] & (visit != NO_VISIT)
    outermost = np.flatnonzero(nested & is_start & (depth == 1))
    over = np.flatnonzero(nested & (depth == 0))
    return nested, outermost, over


def _merged(subject: I64, start: I64, end: I64, bad: Bools) -> Stays:
    """Takes stays that begin before the end of an earlier one as that one."""
    good = np.flatnonzero(~bad)
    inside = np.zeros(len(subject), np.bool_)
    if len(good):
        # A stay without an end reaches nowhere.
        reach = np.where(end[good] == NEVER, NO_TIME, end[good])
        ends, rank = np.unique(reach, return_inverse=True)
        furthest = np.maximum.accumulate(subject[good] * len(ends) + rank) % len(ends)
        same = subject[good[1:]] == subject[good[:-1]]
        within = np.append(False, same & (start[good[1:]] < ends[furthest[:-1]]))
        inside[good[within]] = True
        heads = np.flatnonzero(~within)
        reached = np.maximum.reduceat(reach, heads)
        end = end.copy()
        end[good[heads]] = np.where(reached == NO_TIME, NEVER, reached)
    return Stays(subject, start, end, bad, inside)
