"""Contradictions in a subject's events: marked, counted, and left as they are.

The list is of those that are known of real exports; docs/quality.md explains each.
"""

import numpy as np
import pyarrow.compute as pc

from extractors.events.times import PRECISIONS
from pipelines.aligning.bucket_rows import BIRTH, DEATH, KINDS, BucketRows, BucketTexts, groups
from pipelines.aligning.columns import NONE_8, NONE_32
from warehouse.arrays import I64, NO_TIME, U8, Bools

# The first that holds is written down; each is counted.
CONFLICTS = ("before_birth", "after_death", "end_before_start", "overlapping_visit", "unit_differs", "static_differs")

_START, _END, _CLINICAL = KINDS.index("visit_start"), KINDS.index("visit_end"), KINDS.index("clinical")
# Columns that are written and that a number says whole.
_SHOWN = (
    "subject", "time", "code", "text", "available", "precision", "kind", "unit", "source", "item", "availability",
    "flag",
)  # fmt: skip
# Of each conflict its place in the order of their names, that of none lowest.
_RANKS = np.zeros(NONE_8 + 1, np.uint8)
_RANKS[: len(CONFLICTS)] = [1 + sorted(CONFLICTS).index(name) for name in CONFLICTS]
_NEVER = np.iinfo(np.int64).max
_UNITS = {"day": "datetime64[D]", "month": "datetime64[M]", "year": "datetime64[Y]"}


def differing_statics(events: BucketRows, texts: BucketTexts) -> Bools:
    """Which facts without a time (n,) differ from the first of their subject, table and rule, in the total order.

    Asked are raw rows that make a birth, as a list of patients does: two rows of one patient there are one too many,
    whereas two of his allergies, say, are no contradiction.

    Args:
        events: in the total order, all births among them.
    """
    differs = np.zeros(len(events), np.bool_)
    births = np.flatnonzero(events.code == texts.number_of(BIRTH))
    static = np.flatnonzero((events.time == NO_TIME) & np.isin(events.source, np.unique(events.source[births])))
    static = static[np.isin(events.row_hash[static], events.row_hash[births])]
    if not len(static):
        return differs
    # A fact without a value differs from one with a value by its code alone.
    valueless = ~events.has_number & (events.text == NONE_32)
    static = static[np.argsort(valueless[static], kind="stable")]
    order, starts = groups(events.subject[static], events.source[static], events.rule[static])
    places = static[order]
    first = np.repeat(places[starts], np.diff(starts, append=len(places)))
    same = (events.text[places] == events.text[first]) & (events.has_number[places] == events.has_number[first])
    same &= ~events.has_number[places] | (events.number[places] == events.number[first])
    same = (same | valueless[places]) & (events.code[places] == events.code[first])
    differs[places[~same]] = True
    return differs


def find_conflicts(events: BucketRows, texts: BucketTexts, differing: Bools) -> tuple[U8, dict[str, I64]]:
    """The contradiction of each event (n,) as a number in CONFLICTS, NONE_8 for none, and the places that each marks.

    Args:
        events: in the total order.
        differing: as `differing_statics` gives them (n,).
    """
    # A date means some moment of its day: only what was over by then, or had not begun, contradicts another.
    first, last = earliest(events.time, events.precision), latest(events.time, events.precision)
    timed = events.time != NO_TIME
    born = _of_subject(events, texts, BIRTH, first, NO_TIME)
    died = _of_subject(events, texts, DEATH, last, _NEVER)
    marks = dict.fromkeys(CONFLICTS, np.zeros(0, np.int64))
    if born is not None:
        marks["before_birth"] = np.flatnonzero((last < born) & timed)
    if died is not None:
        # What has no time is earlier than any death.
        marks["after_death"] = np.flatnonzero(first > died)
    visits, marks["overlapping_visit"] = _visits(events, first, last, timed)
    marks["end_before_start"] = np.sort(np.concatenate([visits, _ends(events, texts, first, last, timed)]))
    marks["unit_differs"] = np.flatnonzero(events.contradicts)
    marks["static_differs"] = np.flatnonzero(differing)
    conflict = np.full(len(events), NONE_8, np.uint8)
    for number, name in reversed(list(enumerate(CONFLICTS))):
        conflict[marks[name]] = number
    _put_in_order(events, conflict)
    return conflict, marks


def _put_in_order(events: BucketRows, conflict: U8) -> None:
    """Of events that are alike in every column those without a contradiction stand first, in place.

    Which of them has one hangs on their raw rows, whose order is no part of the data.
    """
    marked = np.flatnonzero(conflict != NONE_8)
    if not len(marked):
        return
    alike = np.ones(len(events) - 1, np.bool_)
    for name in _SHOWN:
        values = getattr(events, name)
        alike &= values[1:] == values[:-1]
    for name, known in (("number", "has_number"), ("visit", "has_visit")):
        values, stands = getattr(events, name), getattr(events, known)
        alike &= (stands[1:] == stands[:-1]) & ((values[1:] == values[:-1]) | ~stands[1:])
    if not alike.any():
        return
    group = np.cumsum(np.append(False, ~alike))
    of_marked = np.zeros(int(group[-1]) + 1, np.bool_)
    of_marked[group[marked]] = True
    places = np.flatnonzero(of_marked[group])
    conflict[places] = conflict[places[np.lexsort((_RANKS[conflict[places]], group[places]))]]


def earliest(time: I64, precision: U8) -> I64:
    """When each event (n,) may have happened at the earliest: the start of the day, month or year that is known."""
    return _bound(time, precision, spans=0)


def latest(time: I64, precision: U8) -> I64:
    """When it may have happened at the latest: the last microsecond of what is known."""
    return _bound(time, precision, spans=1)


def _bound(time: I64, precision: U8, *, spans: int) -> I64:
    coarse = np.flatnonzero((precision >= PRECISIONS.index("day")) & (precision != NONE_8) & (time != NO_TIME))
    if not len(coarse):
        return time
    bound, known = time.copy(), precision[coarse]
    for name, unit in _UNITS.items():
        of_precision = coarse[known == PRECISIONS.index(name)]
        span = time[of_precision].view("datetime64[us]").astype(unit) + spans
        bound[of_precision] = span.astype("datetime64[us]").view(np.int64) - spans
    return bound


def _of_subject(events: BucketRows, texts: BucketTexts, code: str, instant: I64, otherwise: int) -> I64 | None:
    """To each event (n,) the instant of its subject's event of a code, or `otherwise`; None where nobody has one."""
    places = np.flatnonzero(events.code == texts.number_of(code))
    places = places[events.time[places] != NO_TIME]
    if not len(places):
        return None
    subject = events.subject
    starts = np.flatnonzero(np.concatenate([[True], subject[1:] != subject[:-1]]))
    of_subject = np.full(len(starts), otherwise, np.int64)
    # One a subject, in the order of the subjects.
    of_subject[np.searchsorted(starts, places, side="right") - 1] = instant[places]
    return np.repeat(of_subject, np.diff(starts, append=len(subject)))


def _visits(events: BucketRows, first: I64, last: I64, timed: Bools) -> tuple[I64, I64]:
    """Ends before the starts of their own raw rows, and starts before the end of a visit of that table that began
    before: their places."""
    bounds = np.flatnonzero(((events.kind == _START) | (events.kind == _END)) & timed & (events.item == NONE_32))
    if not len(bounds):
        return bounds, bounds
    order, starts = groups(events.subject[bounds], events.source[bounds], events.row_hash[bounds])
    places = bounds[order]
    lengths = np.diff(starts, append=len(places))
    is_start, time, possible = events.kind[places] == _START, last[places], first[places]
    begun = np.minimum.reduceat(np.where(is_start, possible, _NEVER), starts)
    start = np.minimum.reduceat(np.where(is_start, time, _NEVER), starts)
    end = np.maximum.reduceat(np.where(is_start, NO_TIME, possible), starts)
    begun_of_row = np.repeat(begun, lengths)
    wrong = ~is_start & (begun_of_row != _NEVER) & (time < begun_of_row)
    whole = np.flatnonzero((start != _NEVER) & (end != NO_TIME))
    within = np.zeros(len(starts), np.bool_)
    within[whole[_begun_within(events, places[starts[whole]], start[whole], end[whole])]] = True
    return places[wrong], places[is_start & np.repeat(within, lengths)]


def _ends(events: BucketRows, texts: BucketTexts, first: I64, last: I64, timed: Bools) -> I64:
    """Ends of drugs, prescriptions and the like before all else of their own raw rows: their places.

    What ends has a code of its own, whose namespace says so (`DRUG_END/…`).
    """
    says_end = pc.match_substring_regex(texts.codes, "^[A-Z_]*_END(/|$)").to_numpy(zero_copy_only=False)
    clinical = timed & (events.kind == _CLINICAL)
    is_end = says_end[events.code] & clinical
    if not is_end.any():
        return np.zeros(0, np.int64)
    ends = np.flatnonzero(is_end)
    of_sources = np.zeros(int(events.source.max()) + 1, np.bool_)
    of_sources[events.source[ends]] = True
    starts = np.flatnonzero(clinical & ~is_end & of_sources[events.source])
    if not len(starts):
        return ends[:0]
    rows, place = np.unique(events.row_hash[starts], return_inverse=True)
    begun = np.full(len(rows), _NEVER)
    np.minimum.at(begun, place, first[starts])
    found = np.minimum(np.searchsorted(rows, events.row_hash[ends]), len(rows) - 1)
    wrong: Bools = (rows[found] == events.row_hash[ends]) & (last[ends] < begun[found])
    return ends[wrong]


def _begun_within(events: BucketRows, rows: I64, start: I64, end: I64) -> I64:
    """Which visits (n,) start before the end of one of the same subject and table that comes before them.

    Args:
        rows: one of each visit's events.
    """
    subject, source = events.subject[rows], events.source[rows]
    order = np.lexsort((events.row_hash[rows], end, start, source, subject))
    subject, source = subject[order], source[order]
    group = np.cumsum(np.concatenate([[False], (subject[1:] != subject[:-1]) | (source[1:] != source[:-1])]))
    # The latest end so far is a running maximum of ranks, each subject's and table's own above all that stand before.
    ends, rank = np.unique(end[order], return_inverse=True)
    latest = np.maximum.accumulate(group * len(ends) + rank)
    same = group[1:] == group[:-1]
    begun: I64 = order[1:][same & (start[order][1:] < ends[latest[:-1] % len(ends)])]
    return begun
