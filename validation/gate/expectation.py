"""What one expectation of the gate is, whoever evaluates it."""

from dataclasses import dataclass
from typing import Literal

Severity = Literal["critical", "warning"]
Kind = Literal["count", "derived", "number", "text"]


@dataclass(frozen=True)
class Expectation:
    """One expectation of a suite: every value of `column` lies in [low, high], or matches `pattern`.

    Attributes:
        column: of the suite's frame; `*` stands for the number of its rows.
        sentence: what a data steward reads, in the report and in Data Docs.
        kind: a `count` of rows or subjects is subject to the rule of small cells, what is `derived` from such counts
            (a share, a deviation) is too; a `number` is not.
    """

    suite: str
    column: str
    sentence: str
    severity: Severity = "critical"
    kind: Kind = "count"
    low: float | None = 0
    high: float | None = 0
    pattern: str | None = None

    @property
    def name(self) -> str:
        return f"{self.suite}.{self.column}"
