"""Events that are taken out again: rows that stand there twice, further births and deaths; and the account of them.

Equal raw rows have the same hash, and each has made one event by each rule that applied.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl

from pipelines.aligning.bucket_rows import BIRTH, DEATH, BucketRows, BucketTexts, groups
from warehouse.arrays import I64, NO_TIME, U16, U64, Bools

_COUNTED = ("rows", "events", "timed")


# A row a subject and what is said of it: a reason, or a contradiction, which has no table.
ACCOUNT = pl.DataFrame(
    schema={"subject_id": pl.Int64, "reason": pl.String, "source": pl.String} | dict.fromkeys(_COUNTED, pl.Int64)
)


class LeftOut:
    """Adds up what is taken out, rows, events, and rows with timed events; and what contradicts another."""

    def __init__(self) -> None:
        self._parts: list[pl.DataFrame] = [ACCOUNT]

    def account(self) -> pl.DataFrame:
        """Columns of ACCOUNT, in the order of the first three."""
        keys = list(ACCOUNT.columns[:3])
        return pl.concat(self._parts).group_by(keys).agg(pl.sum(*_COUNTED)).sort(keys)

    @property
    def counts(self) -> dict[str, dict[str, dict[str, int]]]:
        """By reason and table."""
        return counts_of_account(self.account())

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
        events = np.diff(whole, append=len(order))
        self._add(reason, source, subject[order][whole], rows=first, events=events, timed=first * has_time)

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
        subject = rows.subject[sharing_rows][order]
        for number in np.unique(source[gone & keeps]).tolist():
            static_only = goes & stays & ~stays_timed & (source[starts] == number)
            self._add(reason, texts.sources[number], subject[gone & keeps & (source == number)], events=1)
            self._add(reason, texts.sources[number], subject[starts][static_only], timed=1)

    def put_conflict(self, name: str, subject: I64) -> None:
        """Counts events that contradict others, by their subjects (n,)."""
        self._add(name, None, subject, events=1)

    def _add(self, reason: str, source: str | None, subject: I64, **counted: I64 | int) -> None:
        if not len(subject):
            return
        numbers = [pl.lit(counted.get(name, 0)).cast(pl.Int64).alias(name) for name in _COUNTED]
        said = [pl.lit(reason, pl.String).alias("reason"), pl.lit(source, pl.String).alias("source")]
        self._parts.append(pl.DataFrame({"subject_id": subject}).select("subject_id", *said, *numbers))


def with_account(contents: pl.DataFrame, account: pl.DataFrame) -> pl.DataFrame:
    """Columns of CONTENTS: what is said of a subject beside what it is made of, null where nothing is."""
    said = account.sort(ACCOUNT.columns[:3]).select("subject_id", pl.struct(ACCOUNT.columns[1:]).alias("account"))
    lists = said.group_by("subject_id", maintain_order=True).agg("account")
    return contents.join(lists, on="subject_id", how="left", maintain_order="left")


def account_of(contents: pl.DataFrame) -> pl.DataFrame:
    """Columns of ACCOUNT, of columns of CONTENTS."""
    said = contents.select("subject_id", "account").drop_nulls().explode("account").unnest("account")
    return said.select(ACCOUNT.columns).cast(ACCOUNT.schema)


def counts_of_account(account: pl.DataFrame) -> dict[str, dict[str, dict[str, int]]]:
    """What is left out by reason and table: rows, events, and rows with timed events; of columns of ACCOUNT."""
    found: dict[str, dict[str, dict[str, int]]] = {}
    for reason, source, *numbers in _summed(account, pl.col("source").is_not_null()):
        found.setdefault(reason, {})[source] = dict(zip(_COUNTED, numbers, strict=True))
    return found


def conflicts_of_account(account: pl.DataFrame) -> dict[str, int]:
    """How many events contradict others, by how; of columns of ACCOUNT."""
    return {reason: events for reason, _, _, events, _ in _summed(account, pl.col("source").is_null())}


def _summed(account: pl.DataFrame, kept: pl.Expr) -> Iterator[tuple[Any, ...]]:
    keys = ["reason", "source"]
    return account.filter(kept).group_by(keys).agg(pl.sum(*_COUNTED)).sort(keys).iter_rows()


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
