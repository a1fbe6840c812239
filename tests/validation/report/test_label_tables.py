"""Tables of labels: small numbers are hidden, and no task shows what another one hides."""

import pytest

from validation.report.cells import Cells, Hidden
from validation.report.label_tables import attrition_cells

RULES = ["start", "no_cancer", "not_alive", "under_age", "prior_aki", "censored", "positive", "negative"]


def shown(counts: list[int], *, is_open: bool = False) -> dict[str, int | None]:
    """By rule the number, None where it is hidden."""
    cells = attrition_cells(RULES, [sum(counts), *counts], Cells(open=is_open))
    return {rule: None if isinstance(cell, Hidden) else int(str(cell)) for rule, cell in zip(RULES, cells, strict=True)}


def test_what_two_tasks_leave_out_alike_is_hidden_alike() -> None:
    """Were `not_alive` hidden beside the five in one task alone, the other would give them away."""
    first, second = shown([400, 12, 5, 30, 50, 40, 60]), shown([400, 12, 5, 8, 72, 40, 60])
    shared = ("start", "no_cancer", "not_alive", "under_age")
    assert [first[rule] for rule in shared] == [597, 400, None, None] == [second[rule] for rule in shared]
    assert [first[rule] for rule in RULES[4:]] == [30, 50, 40, 60]
    assert [second[rule] for rule in RULES[4:]] == [None, 72, None, 60]


@pytest.mark.parametrize("counts", [[400, 0, 5, 30, 50, 40, 60], [400, 20, 0, 0, 0, 3, 0], [0, 0, 5, 0, 0, 40, 60]])
def test_one_small_number_is_never_hidden_alone(counts: list[int]) -> None:
    found = shown(counts)
    hidden = [value for value, rule in zip(counts, RULES[1:], strict=True) if found[rule] is None]
    assert len(hidden) > 1 and sum(hidden) > 10


def test_nothing_is_hidden_of_simulated_patients() -> None:
    assert None not in shown([400, 12, 5, 30, 50, 3, 60], is_open=True).values()
