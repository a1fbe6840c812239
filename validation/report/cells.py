"""Small cells: a count of 1 to 10 subjects or rows is not shown, nor what it could be worked out from.

The rule is that of the US Centers for Medicare & Medicaid Services: no cell of 1 to 10, no percentage or complement
that gives it away; zero may be shown.
"""

from collections.abc import Sequence
from dataclasses import dataclass

LARGEST_SMALL = 10
SMALL_LABEL, WITHHELD_LABEL = "1–10", "withheld"


@dataclass(frozen=True)
class Hidden:
    """A cell that is not shown, and what stands in its place."""

    label: str


SMALL, WITHHELD = Hidden(SMALL_LABEL), Hidden(WITHHELD_LABEL)
Cell = str | int | float | None | Hidden


def is_small(count: float | None) -> bool:
    """Whether a count (or a difference of counts, of either sign) may not be shown."""
    return count is not None and 0 < abs(count) <= LARGEST_SMALL


@dataclass(frozen=True)
class Cells:
    """Shows or hides numbers.

    Attributes:
        open: nothing is hidden: the subjects are simulated.
    """

    open: bool

    def count(self, value: int) -> Cell:
        """A count that no other cell gives away."""
        return SMALL if is_small(value) and not self.open else value

    def parts(self, values: Sequence[int], spare: Sequence[bool] | None = None) -> list[Cell]:
        """Counts whose sum is known: where one is small, another goes with it, so that no difference gives it away.

        Cells are hidden, the smallest first, until two are hidden and their sum is no small count itself.

        Args:
            values: the parts (n,).
            spare: parts that are hidden for the sake of others only where nothing else is left (n,).
        """
        shown: list[Cell] = [self.count(value) for value in values]
        hidden = [index for index, cell in enumerate(shown) if isinstance(cell, Hidden)]
        last = spare or [False] * len(values)
        rest = sorted(
            (index for index, value in enumerate(values) if value and index not in hidden),
            key=lambda index: (last[index], values[index]),
        )
        while hidden and rest and (len(hidden) == 1 or sum(abs(values[index]) for index in hidden) <= LARGEST_SMALL):
            hidden.append(rest.pop(0))
            shown[hidden[-1]] = WITHHELD
        return shown

    def rounded(self, value: int) -> Cell:
        """A total: to two digits, so that a hidden part cannot be taken from it."""
        if self.open or value == 0:
            return value
        if is_small(value):
            return SMALL
        unit = int(10 ** (len(str(abs(value))) - 2))
        return value // unit * unit

    def about(self, value: int) -> str:
        """A total in words, beside which parts of it are shown.

        Two digits of a total below a hundred are the total itself, and less the parts that are shown it is the one that
        is hidden.
        """
        if self.open or value == 0:
            return f"{value:,}"
        return f"about {self.rounded(value):,}" if value >= 100 else "fewer than 100"

    def tail(self, count: int, quantile: float) -> bool:
        """Whether a quantile of `count` subjects may be shown: more than ten of them must lie on either side of it."""
        return self.open or count * min(quantile, 1 - quantile) > LARGEST_SMALL


def follow(cell: Cell, value: Cell) -> Cell:
    """`value`, unless the cell that it is worked out from is hidden."""
    return WITHHELD if isinstance(cell, Hidden) else value
