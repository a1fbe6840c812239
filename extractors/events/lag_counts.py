"""How long after its time a fact became available, counted by code: what the stage lags gives to facts without that."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from extractors.events.converted import LAG_STEP_US, LAG_STEPS, RECORDED
from extractors.events.times import MOMENTS
from extractors.source import EventRule
from warehouse.arrays import I64, Bools

LAGS = pl.DataFrame(schema={"code": pl.UInt32, "step": pl.Int64, "rows": pl.Int64})
DAY_US = 24 * 60 * 60 * 1_000_000
_COMPACTED = 64
_NOTHING = pl.DataFrame(schema={"key": pl.Int64, "rows": pl.Int64})


class LagCounts:
    """Counts lags by the rules of one table.

    Args:
        rules: the table's.
        joined: of each rule, whether joins say when its facts are available.
    """

    def __init__(self, rules: Sequence[EventRule], joined: Sequence[bool]) -> None:
        self._rules, self._of_joins = rules, joined
        available = [rule.available if rule.time is not None else None for rule in rules]
        self._stated = [rule is not None and rule.otherwise == "lag" for rule in available]
        self._joined = [
            rule is not None and rule.otherwise != "lag" and of_join
            for rule, of_join in zip(available, joined, strict=True)
        ]
        self._lags: dict[bool, list[pl.DataFrame]] = {False: [], True: []}

    def another(self) -> "LagCounts":
        """Counts of the same rules that begin at none."""
        return LagCounts(self._rules, self._of_joins)

    def add(self, rule: int, code: pl.Series, lag: I64, known_day: Bools, counted: Bools) -> None:
        """Counts the lags (n,), in microseconds, of the facts of a rule.

        Args:
            known_day: where no more than the day of a fact is known.
            counted: whose lag is known.
        """
        if self._stated[rule]:
            # Against the end of a day that is all that is known, a lag says nothing.
            self._add(False, code, lag, counted & ~known_day)
        elif self._joined[rule]:
            # The end of a stay may be days away: rather a day too late than to be known too early.
            self._add(True, code, lag + (DAY_US - 1) * known_day, counted)

    def add_events(self, events: pl.DataFrame) -> None:
        """Counts those of events, columns of CONVERTED, as when they were made."""
        for (rule,), made in events.group_by("rule"):
            assert isinstance(rule, int)
            if not (self._stated[rule] or self._joined[rule]):
                continue
            lag = made.select((pl.col("available_time") - pl.col("time")).dt.total_microseconds().fill_null(0))
            self.add(
                rule,
                made["code"],
                lag.to_series().to_numpy(),
                (made["precision"].fill_null(MOMENTS) >= MOMENTS).to_numpy(),
                (made["availability"] == RECORDED).fill_null(False).to_numpy(),
            )

    def frame(self, *, joined: bool) -> pl.DataFrame:
        """How often a fact of a code became available so many steps of LAG_STEP_US after its time, columns of LAGS.

        Args:
            joined: those of the facts whose availability joins say; else those of the others.
        """
        return by_code(
            _summed(self._lags[joined]).select(
                (pl.col("key") // (LAG_STEPS + 1)).cast(pl.UInt32).alias("code"),
                (pl.col("key") % (LAG_STEPS + 1)).alias("step"),
                "rows",
            )
        )

    def _add(self, joined: bool, code: pl.Series, lag: I64, counted: npt.NDArray[np.bool_]) -> None:
        steps = np.clip(-(-lag // LAG_STEP_US), 0, LAG_STEPS)
        keys = code.to_physical().fill_null(0).to_numpy().astype(np.int64) * (LAG_STEPS + 1) + steps
        found = pc.value_counts(pa.array(keys if counted.all() else keys[counted]))
        lags = self._lags[joined]
        lags.append(pl.DataFrame({"key": found.field("values").to_numpy(), "rows": found.field("counts").to_numpy()}))
        if len(lags) >= _COMPACTED:
            self._lags[joined] = [_summed(lags)]


def by_code(*lags: pl.DataFrame) -> pl.DataFrame:
    """The sum of lags, columns of LAGS, without those that are none."""
    summed = pl.concat([LAGS, *lags]).group_by("code", "step").agg(pl.col("rows").sum())
    return summed.filter(pl.col("rows") != 0).sort("code", "step")


def _summed(lags: list[pl.DataFrame]) -> pl.DataFrame:
    return pl.concat([_NOTHING, *lags]).group_by("key").agg(pl.col("rows").sum())
