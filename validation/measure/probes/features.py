"""Features of labels, made as readers make them and held against the events."""

from dataclasses import dataclass

import numpy as np
import polars as pl

from validation.measure.probes.known import Asked, Known
from validation.measure.reading import existing
from warehouse.arrays import F64, I64, NO_TIME, Bools
from warehouse.hashing import splitmix64
from warehouse.layout import ReleaseLayout
from warehouse.readers.tasks.counting import BIRTH, BucketCounts, LabelRows, Units, event_rows
from warehouse.readers.tasks.demographics import OLDEST, BucketDemographics
from warehouse.readers.tasks.features import ATTRIBUTES, NOT_COUNTED
from warehouse.readers.tasks.item_means import ItemRows

_NEVER = np.iinfo(np.int64).max
_DAY_US, _DAYS_A_YEAR = 86_400_000_000, 365.2425
# Labels whose counts are in memory at a time.
_HELD = 50_000


@dataclass(frozen=True)
class Counting:
    """What the release's codes are counted as; worked out once for all buckets.

    Attributes:
        drawn: of each code a number that is drawn for its unit, 0 for one that is not counted. By the sum of them
            counts are compared.
    """

    units: Units
    drawn: I64
    of_unit: I64

    @classmethod
    def of(cls, codes: pl.Series) -> "Counting":
        units = Units.of(codes, NOT_COUNTED)
        of_unit = (splitmix64(np.arange(len(units.names))) >> np.uint64(33)).astype(np.int64)
        return cls(units, np.where(units.unit >= 0, np.append(of_unit, 0)[units.unit], 0), of_unit)


def features_ahead(tree: ReleaseLayout, bucket: int, asked: Asked, known: Known, counting: Counting) -> Bools:
    """(n,) which labels have features of something else than what was available.

    Raises:
        TimeloomError: a file is damaged.
    """
    parts = [
        _ahead(tree, bucket, asked.part(first, _HELD), known, counting) for first in range(0, len(asked.at), _HELD)
    ]
    return np.concatenate([np.empty(0, np.bool_), *parts])


def _ahead(tree: ReleaseLayout, bucket: int, asked: Asked, known: Known, counting: Counting) -> Bools:
    units = counting.units
    rows = LabelRows.of(asked.subject, asked.at)
    counts, demographics = BucketCounts(rows, units), BucketDemographics(rows, units, ATTRIBUTES)
    for path in existing([tree.events(bucket)]):
        for events in event_rows(path, units, known.clock, rows.subjects):
            counts.add(events)
            demographics.add(events)
    counted, facts = counts.counted(), demographics.known_facts()
    summed = np.zeros(len(asked.at), np.int64)
    np.add.at(summed, counted.row, counted.count * counting.of_unit[counted.unit])
    owner, by = np.searchsorted(known.subjects, asked.subject), known.by(asked.at)
    upto = known.events_by(owner, by)
    begin = known.events_by(owner, np.zeros(len(owner), np.int64))
    ahead: Bools = summed != _drawn(known, counting.drawn, begin, upto)
    ahead |= ~np.isclose(facts.age, _ages(known, units.codes, owner, begin, upto), rtol=0, atol=1e-9, equal_nan=True)
    codes, column = np.unique(facts.code, return_inverse=True)
    # What no event has told by then is told too early.
    ahead[facts.row[known.first(codes)[owner[facts.row], column] >= by[facts.row]]] = True
    for path in existing([tree.items(bucket)]):
        items = ItemRows.read(path, rows, known.clock)
        places, of_labels = rows.later(items.rows)
        seen = pl.DataFrame({"item_key": items.keys}, {"item_key": pl.String})
        seen = seen.join(known.items, on="item_key", how="left", maintain_order="left")
        since = seen["known"].fill_null(known.never).to_numpy()
        ahead[of_labels[since[places] >= by[of_labels]]] = True
    return ahead


def _drawn(known: Known, drawn: I64, begin: I64, upto: I64) -> I64:
    """(n,) the sum of the numbers of what was known by each label."""
    each = np.where(known.image | (known.code < 0), 0, np.append(drawn, 0)[known.code])
    running = np.append(0, np.cumsum(each))
    summed: I64 = running[upto] - running[begin]
    return summed


def _ages(known: Known, codes: pl.Series, owner: I64, begin: I64, upto: I64) -> F64:
    """(n,) the age in years at the first event that was known by each label, NaN where it was not known.

    Labels of a subject ascend, so that each adds the events between the one before and itself to what was known.
    """
    births = np.flatnonzero((codes == BIRTH).to_numpy())
    birth, timed = np.isin(known.code, births), known.time != NO_TIME
    # The events that no label of the subject before knew.
    new = np.append([True], owner[1:] != owner[:-1])[: len(owner)]
    since = np.where(new, begin, np.append(0, upto)[: len(upto)])
    counts = upto - since
    row = np.repeat(np.arange(len(owner)), counts)
    event = np.repeat(since - (np.cumsum(counts) - counts), counts) + np.arange(len(row))
    earliest = {"subject": owner}
    for name, which in (("born", timed & birth), ("first", timed & ~birth)):
        times = np.full(len(owner), _NEVER)
        kept = which[event]
        np.minimum.at(times, row[kept], known.time[event[kept]])
        earliest[name] = times
    so_far = pl.DataFrame(earliest).select(pl.col("born", "first").cum_min().over("subject"))
    born, first = so_far["born"].to_numpy(), so_far["first"].to_numpy()
    has_age = (born != _NEVER) & (first != _NEVER)
    ages = np.full(len(owner), np.nan)
    ages[has_age] = np.clip((first[has_age] - born[has_age]) // _DAY_US / _DAYS_A_YEAR, 0, OLDEST)
    return ages
