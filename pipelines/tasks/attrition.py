"""Who a task leaves out, by the first rule that does: the rows of an attrition table, which add up."""

from dataclasses import dataclass, field

import numpy as np
import polars as pl

from warehouse.arrays import I64, Bools
from warehouse.schemas import SPLITS

START, POSITIVE, NEGATIVE = "start", "positive", "negative"
NO_SPLIT = "no_split"
# Names of the splits that candidates are counted by.
COUNTED = (*SPLITS, NO_SPLIT)


@dataclass
class Attrition:
    """Candidates of a task in one bucket, as rules take them away.

    Attributes:
        split: of each candidate (n,), a place in COUNTED; len(COUNTED) higher for each group before the candidate's.
        groups: that are counted apart, each in a table.
        left: who is left (n,).
        rows: rule, and by split how many it removed and left.
    """

    split: I64
    groups: int = 1
    left: Bools = field(init=False)
    rows: list[tuple[str, I64, I64]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.left = np.ones(len(self.split), np.bool_)
        self._put(START, np.zeros(len(self.split), np.bool_))

    def _counted(self, which: Bools) -> I64:
        return np.bincount(self.split[which], minlength=self.groups * len(COUNTED)).astype(np.int64)

    def _put(self, rule: str, removed: Bools) -> None:
        self.rows.append((rule, self._counted(removed), self._counted(self.left)))

    def remove(self, rule: str, which: Bools) -> None:
        """Takes away those of who is left whom a rule concerns (n,); a rule that concerns nobody is counted too."""
        removed = self.left & which
        self.left = self.left & ~removed
        self._put(rule, removed)

    def labelled(self, value: Bools) -> None:
        """Counts the labels (n,) of those who are left."""
        for rule, which in ((POSITIVE, value), (NEGATIVE, ~value)):
            counted = self._counted(self.left & which)
            self.rows.append((rule, np.zeros_like(counted), counted))

    def table(self, task: str, group: int = 0) -> pl.DataFrame:
        """A row a rule and split, of one group: columns of warehouse.schemas.ATTRITION."""
        rows = [
            (task, step, rule, split, int(removed[place]), int(left[place]))
            for step, (rule, removed, left) in enumerate(self.rows)
            for place, split in enumerate(COUNTED, group * len(COUNTED))
        ]
        return pl.DataFrame(
            rows,
            schema={
                "task": pl.String,
                "step": pl.Int32,
                "rule": pl.String,
                "split": pl.String,
                "removed": pl.Int64,
                "left": pl.Int64,
            },
            orient="row",
        )


def mended_tables(former: pl.DataFrame, before: pl.DataFrame, now: pl.DataFrame) -> pl.DataFrame:
    """A bucket's attrition tables without those of some subjects as they were, and with those of some as they are.

    The rows of all three are the same rules and splits in the same order.
    """
    numbers = ("removed", "left")
    return former.with_columns(former[name] - before[name] + now[name] for name in numbers)


def totals(tables: pl.DataFrame) -> pl.DataFrame:
    """The sum of the attrition tables of several buckets."""
    return (
        tables.group_by("task", "step", "rule", "split")
        .agg(pl.col("removed").sum(), pl.col("left").sum())
        .sort("task", "step", pl.col("split").cast(pl.Enum(COUNTED)))
    )


def discrepancies(tables: pl.DataFrame) -> pl.DataFrame:
    """By task and split, candidates that an attrition table does not account for: 0 where its rows add up."""
    of = pl.col("rule")
    return (
        tables.group_by("task", "split", maintain_order=True)
        .agg(
            (
                pl.col("left").filter(of == START).sum()
                - pl.col("removed").sum()
                - pl.col("left").filter(of.is_in([POSITIVE, NEGATIVE])).sum()
            ).alias("difference")
        )
        .sort("task", "split")
    )
