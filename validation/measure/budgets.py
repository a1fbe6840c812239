"""Token budgets: what each holds, as the manifest says and `budget_differences` checks; shown without small cells."""

from collections.abc import Collection, Mapping

import polars as pl

from validation.report.cells import WITHHELD, Cell, Cells, follow, is_small
from validation.report.table import Column, Row, Table
from warehouse.manifest import ProfileEntry

BUDGETS = pl.Schema(
    {
        "profile": pl.String,
        "plan": pl.String,
        "asked": pl.Int64,
        "tokens": pl.Int64,
        "all_tokens": pl.Int64,
        "subjects": pl.Int64,
    }
)


def list_budgets(profiles: Mapping[str, ProfileEntry]) -> pl.DataFrame:
    """One row per profile, plan and token budget; columns of BUDGETS."""
    rows = [
        {"profile": profile, "plan": name} | budget.model_dump(include=set(BUDGETS))
        for profile, entry in profiles.items()
        for name, plan in entry.plans.items()
        for budget in plan.budgets
    ]
    return pl.DataFrame(rows, schema=BUDGETS)


def budget_table(budgets: pl.DataFrame, known: Collection[int], cells: Cells) -> Table:
    """Token budgets of train.

    Budgets are prefixes of one order, of several plans too, so the difference of two numbers of patients is itself a
    number of patients: a budget is withheld where it differs by a small count from one that is shown.

    Args:
        known: other numbers of patients that the report shows, of whom a budget may hold all but a few.
    """
    shown = {0, *known}
    rows: list[Row] = []
    for line in budgets.iter_rows(named=True):
        subjects: Cell = cells.count(line["subjects"])
        if not cells.open and subjects == line["subjects"]:
            if any(is_small(line["subjects"] - other) for other in shown):
                subjects = WITHHELD
            else:
                shown.add(line["subjects"])
        row: Row = {name: line[name] for name in ("profile", "plan", "asked")}
        row |= {name: follow(subjects, line[name]) for name in ("tokens", "all_tokens")}
        rows.append(row | {"subjects": subjects})
    columns = [
        Column("profile", "Profile", "text"),
        Column("plan", "Plan", "text"),
        Column("asked", "Tokens asked"),
        Column("tokens", "Tokens that bear loss"),
        Column("all_tokens", "All tokens"),
        Column("subjects", "Patients"),
    ]
    note = "Subsets of train; of one plan, each holds the ones before it. What is asked are tokens that bear loss."
    return Table("budgets", "Token budgets", columns, rows, note)
