"""Tables of what vocabularies know, and of token budgets."""

from collections.abc import Collection

import polars as pl

from validation.report.cells import WITHHELD, Cell, Cells, Hidden, follow, is_small
from validation.report.table import Column, Row, Table
from warehouse.schemas import SPLITS


def coverage_table(coverage: pl.DataFrame, withheld: Collection[str], cells: Cells) -> Table:
    """A line per profile and namespace: what became tokens, what did not, and what each split's tokens lack.

    Args:
        withheld: splits of which nothing is shown. A share is cut to three digits: as it is, it is a fraction of which
            both numbers can be found.
    """
    rows: list[Row] = []
    for (profile, namespace), part in coverage.group_by("profile", "namespace", maintain_order=True):
        of = {line["split"]: line for line in part.iter_rows(named=True)}
        row: Row = {
            "profile": str(profile),
            "namespace": str(namespace),
            "tokens": cells.rounded(int(part["tokens"].sum())),
            "dropped": cells.rounded(int(part["dropped"].sum())),
        }
        for split in SPLITS:
            tokens, unknown = (of[split]["tokens"], of[split]["unknown"]) if split in of else (0, 0)
            hidden = any(isinstance(cell, Hidden) for cell in cells.parts([unknown, tokens - unknown]))
            share = unknown / tokens if tokens else None
            if share is not None and (hidden or split in withheld):
                row[split] = WITHHELD
            else:
                row[split] = share if share is None or cells.open else round(share, 3)
        rows.append(row)
    columns = [
        Column("profile", "Profile", "text"),
        Column("namespace", "Namespace", "text"),
        Column("tokens", "Tokens"),
        Column("dropped", "Events left out"),
        *(Column(split, f"Unknown in {split}", "share") for split in SPLITS),
    ]
    note = (
        "Unknown: codes that no train patient has; they become [UNK]. "
        "vocabularies/*/coverage.parquet says why events are left out."
    )
    if not cells.open:
        note += " Tokens and events are cut to two digits, shares to three."
    return Table("coverage", "Vocabulary", columns, rows, note)


def budget_table(budgets: pl.DataFrame, known: Collection[int], cells: Cells) -> Table:
    """Token budgets of train.

    All budgets, of several plans too, are prefixes of the same order of patients, so the difference of two budgets is
    a number of patients. A budget is withheld where it differs by a small count from a number that is shown.

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
    note = "Subsets of train; each holds the smaller ones of its plan. The tokens asked are tokens that bear loss."
    return Table("budgets", "Token budgets", columns, rows, note)
