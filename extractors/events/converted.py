"""What a conversion gives: columns, the account of its rows, and the words of both."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import polars as pl

from extractors.events.by_block import Key
from extractors.events.lookups import JoinCounts

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


# Of each column, what is counted though it may be none.
_ALWAYS = {"times": ("present", "unreadable"), "values": ("present", "numbers", "empty")}


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

    @classmethod
    def of(cls, counted: Mapping[Key, int]) -> "Account":
        """The account of rows that were counted by these names: see `Account.add`."""
        account = cls()
        for key, rows in counted.items():
            account.add(key, rows)
        return account

    def add(self, key: Key, rows: int) -> None:
        """Counts rows by the name of an attribute, and the names in it: a reason, say, or a column and a format."""
        name, *names = key
        if not names:
            setattr(self, name, getattr(self, name) + rows)
        elif name == "joins":
            join = self.joins.setdefault(names[0], JoinCounts())
            setattr(join, names[1], getattr(join, names[1]) + rows)
        elif len(names) == 1:
            getattr(self, name)[names[0]] += rows
        elif rows or names[1] in _ALWAYS[name]:
            seen = getattr(self, name).setdefault(names[0], dict.fromkeys(_ALWAYS[name], 0))
            seen[names[1]] = seen.get(names[1], 0) + rows
