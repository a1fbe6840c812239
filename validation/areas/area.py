"""What an area is: what is measured of one part of a release, and what is expected of it.

An expectation is one entry of its area's file. The gate judges it, the report and Data Docs print its sentence, and
`verify` measures its column again where the entry names a check.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import polars as pl

from validation.measure.measured_release import MeasuredRelease

Severity = Literal["critical", "warning"]
Kind = Literal["count", "derived", "number", "text"]
Measure = Callable[[MeasuredRelease], pl.DataFrame]


# Of what is measured as a multiple of the most that is allowed; its sentence says what that is.
ITS_LIMIT = "times its limit"


@dataclass(frozen=True)
class Check:
    """What `verify` measures again of a published release.

    Attributes:
        name: what `verify` prints before the finding.
        measure: a frame with the columns of the expectations that name this check.
        right: what `verify` says of that frame where every expectation holds.
        located_by: a column of the frame that says where a fault is: `verify` then names its values, not the number
            of faults.
    """

    name: str
    measure: Measure
    right: Callable[[pl.DataFrame], str]
    located_by: str | None = None


@dataclass(frozen=True)
class Expectation:
    """Every value of `column` lies in [low, high], or matches `pattern`.

    Attributes:
        column: of the area's frame; `*` stands for the number of its rows.
        sentence: what a data steward reads, in the report and in Data Docs.
        kind: a `count` of rows or subjects is subject to the rule of small cells, and so is what is `derived` from
            such counts (a share, a deviation); a `number` is not.
        meaning: of `pattern`, in words.
        of: what `high` counts, where it is no plain number of the column's things: "times its limit", say.
        check: what measures the column again in `verify`; None leaves it out.
        fault: what `verify` says of values outside [low, high], after their sum or before their place.
        words: what the run says of the rows of the area's frame that are broken, instead of the sentence.
        remedy: what the run advises; without it, to look at the report.
    """

    column: str
    sentence: str
    severity: Severity = "critical"
    kind: Kind = "count"
    low: float | None = 0
    high: float | None = 0
    pattern: str | None = None
    meaning: str = ""
    of: str = ""
    check: Check | None = None
    fault: str = ""
    words: Callable[[pl.DataFrame], str] | None = None
    remedy: Callable[[pl.DataFrame], str] | None = None

    @property
    def rule(self) -> str:
        """What a value is held to, in words."""
        if self.pattern:
            return self.meaning
        if self.low == self.high:
            return f"{self.high:g}"
        return f"at least {self.low:g}" if self.high is None else f"at most {self.high:g} {self.of}".rstrip()

    def broken(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The rows of a frame whose value lies outside [low, high]; a missing value is not judged."""
        value = pl.col(self.column)
        outside = pl.lit(False)
        if self.low is not None:
            outside |= value < self.low
        if self.high is not None:
            outside |= value > self.high
        return frame.filter(outside)


@dataclass(frozen=True)
class Area:
    """One part of a release.

    Attributes:
        name: of its suite in Data Docs and in the report.
        measure: a frame of aggregates with the column of every expectation.
    """

    name: str
    measure: Measure
    expectations: tuple[Expectation, ...]

    def name_of(self, expectation: Expectation) -> str:
        return f"{self.name}.{expectation.column}"

    @property
    def checks(self) -> tuple[Check, ...]:
        """The checks that expectations name, each once, in their order."""
        return tuple(dict.fromkeys(expectation.check for expectation in self.expectations if expectation.check))
