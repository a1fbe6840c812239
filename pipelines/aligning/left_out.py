"""Events that are taken out again: rows that stand there twice, further births and deaths; and the account of them.

Equal raw rows have the same hash, and each has made one event by each rule that applied.
"""

import numpy as np

from pipelines.aligning.bucket_rows import BIRTH, DEATH, BucketRows, BucketTexts, groups
from warehouse.arrays import I64, NO_TIME, U16, U64, Bools

_COUNTED = ("rows", "events", "timed")


class LeftOut:
    """Adds up what is taken out: rows, events, and rows with timed events.

    Attributes:
        counts: by reason and table.
    """

    def __init__(self) -> None:
        self.counts: dict[str, dict[str, dict[str, int]]] = {}

    def put(self, reason: str, source: str, subject: I64, row_hash: U64, rule: U16, timed: Bools) -> None:
        """Counts raw rows of a table whose events (n,) are taken out."""
        if not len(subject):
            return
        order, starts = groups(subject, row_hash, rule)
        _, whole = groups(subject, row_hash)
        # The events of each row's first rule: as many as there are rows.
        lengths = np.diff(starts, append=len(order))
        first = lengths[np.isin(starts, whole)]
        has_time = np.logical_or.reduceat(timed[order], whole)
        self._add(reason, source, rows=int(first.sum()), events=len(order), timed=int(first[has_time].sum()))

    def put_all(self, reason: str, rows: BucketRows, texts: BucketTexts) -> None:
        """Counts events of several tables."""
        for number in np.unique(rows.source).tolist():
            source_rows = rows.take(np.flatnonzero(rows.source == number))
            self.put(
                reason,
                texts.sources[number],
                source_rows.subject,
                source_rows.row_hash,
                source_rows.rule,
                source_rows.time != NO_TIME,
            )

    def put_surplus(self, reason: str, rows: BucketRows, surplus: Bools, texts: BucketTexts) -> None:
        """Counts the surplus events (n,) of rows: those of which nothing stays, and those that keep other events."""
        sharing_rows = np.flatnonzero(np.isin(rows.row_hash, rows.row_hash[surplus]))
        order, starts = groups(rows.subject[sharing_rows], rows.source[sharing_rows], rows.row_hash[sharing_rows])
        gone, timed = surplus[sharing_rows][order], rows.time[sharing_rows][order] != NO_TIME
        stays = np.logical_or.reduceat(~gone, starts)
        stays_timed = np.logical_or.reduceat(~gone & timed, starts)
        goes = np.logical_or.reduceat(gone, starts)
        source = rows.source[sharing_rows][order]
        keeps = np.repeat(stays, np.diff(starts, append=len(order)))
        self.put_all(reason, rows.take(sharing_rows[order][gone & ~keeps]), texts)
        for number in np.unique(source[gone & keeps]).tolist():
            static_only = goes & stays & ~stays_timed & (source[starts] == number)
            events = int((gone & keeps & (source == number)).sum())
            self._add(reason, texts.sources[number], events=events, timed=int(static_only.sum()))

    def _add(self, reason: str, source: str, **counted: int) -> None:
        of = self.counts.setdefault(reason, {}).setdefault(source, dict.fromkeys(_COUNTED, 0))
        for name, number in counted.items():
            of[name] += number


def further_births_and_deaths(events: BucketRows, texts: BucketTexts) -> Bools:
    """Whether each event (n,), in the total order, is a birth or death of a subject that has an earlier one; a source's
    own priorities stand in its YAML."""
    further = np.zeros(len(events), np.bool_)
    for name in (BIRTH, DEATH):
        places = np.flatnonzero(events.code == texts.number_of(name))
        subject = events.subject[places]
        # The first one in the order of time stays; one without a time is no better than none.
        order = np.lexsort((events.time[places] == NO_TIME, subject))
        again = subject[order[1:]] == subject[order[:-1]]
        further[places[order[1:][again]]] = True
    return further
