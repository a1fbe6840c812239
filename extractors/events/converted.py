"""What a conversion gives: columns, the account of its rows, and the words of both."""

from collections import Counter
from dataclasses import dataclass, field

import polars as pl

from extractors.events.lookups import JoinCounts
from extractors.events.times import Times

# Why a row made no event, the first that holds.
REASONS = (
    "bad_subject_id", "failed_cast", "unparsable_time", "missing_time", "missing_code", "empty_value",
    "no_rule_applies",
)  # fmt: skip
# How `available_time` is known: its own column said so, it is taken to be the time, or it is the time and what that
# code's results usually take; `awaited` is what the last one is until that is known. `missed` is that too, where a join
# should have said it: such a fact is never taken to be known at its time.
AVAILABILITY = ("recorded", "time", "estimated", "awaited", "missed")
RECORDED, AT_TIME, ESTIMATED, AWAITED, MISSED = range(5)
# Lags between time and availability are counted in steps of five minutes, up to two weeks.
LAG_STEP_US = 5 * 60_000_000
LAG_STEPS = 14 * 24 * 12
# What a block becomes. `code` and `unit` count in the converter's own lists, `precision` in PRECISIONS, `availability`
# in AVAILABILITY, `rule` in the table's rules, and `flag` in READ_AS, CONTRADICTS higher where the unit in the value is
# not the row's.
CONVERTED: dict[str, pl.DataType] = {
    "subject_id": pl.Int64(),
    "time": pl.Datetime("us"),
    "code": pl.UInt32(),
    "numeric_value": pl.Float32(),
    "text_value": pl.String(),
    "available_time": pl.Datetime("us"),
    "precision": pl.UInt8(),
    "unit": pl.UInt32(),
    "visit_id": pl.Int64(),
    "rule": pl.UInt16(),
    "availability": pl.UInt8(),
    "flag": pl.UInt8(),
    "row_hash": pl.UInt64(),
}


@dataclass
class Account:
    """What became of the rows of one raw file.

    Attributes:
        raw, events, static, reference: rows; raw = events + static + reference + the sum of quarantined.
        quarantined: rows that made nothing, by reason.
        partial: rows that made events although a column of theirs failed, by reason.
        emitted: events made.
        times: per column, values that stood there, values that no format fits, and how many each format read.
        joins: per join whose table is there, rows that had a key, and those whose key it lacks.
        values: per value's column, in the rows that a rule asks: how many hold something, how many of these a number,
            and how many hold nothing and so make no event.
    """

    raw: int = 0
    events: int = 0
    static: int = 0
    reference: int = 0
    emitted: int = 0
    quarantined: Counter[str] = field(default_factory=Counter)
    partial: Counter[str] = field(default_factory=Counter)
    times: dict[str, dict[str, int]] = field(default_factory=dict)
    joins: dict[str, JoinCounts] = field(default_factory=dict)
    values: dict[str, dict[str, int]] = field(default_factory=dict)

    def saw_values(self, column: str, number: pl.Series, text: pl.Series) -> None:
        """Counts a column's values (n,): numbers, and texts that hold none."""
        seen = self.values.setdefault(column, {"present": 0, "numbers": 0, "empty": 0})
        numbers = len(number) - number.null_count()
        seen["numbers"] += numbers
        seen["present"] += numbers
        if text.null_count() < len(text):
            seen["present"] += int((number.is_null() & text.is_not_null()).sum())

    def saw_times(self, columns: list[str], times: Times, asked: pl.Series) -> None:
        """Counts a time's values in the rows (n,) bool that some event asked for it."""
        seen = self.times.setdefault("|".join(columns), {"present": 0, "unreadable": 0})
        unreadable, read_by = int((times.unreadable & asked).sum()), times.read_by.filter(asked).drop_nulls()
        seen["present"] += unreadable + len(read_by)
        seen["unreadable"] += unreadable
        for number, rows in read_by.value_counts().iter_rows():
            seen[times.tried[number]] = seen.get(times.tried[number], 0) + rows
