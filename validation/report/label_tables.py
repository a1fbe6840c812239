"""Tables of labels: whom each rule of a task leaves out, and the examples of each split, which is Table A3."""

import re
from collections.abc import Collection, Sequence

import polars as pl

from pipelines.tasks.attrition import NEGATIVE, NO_SPLIT, POSITIVE, START
from validation.measure.examples.labels import examples
from validation.measurements import Measurements
from validation.report.cells import WITHHELD, Cell, Cells, Hidden, follow, is_small
from validation.report.table import Column, Row, Table

# Rules that hang on a task's outcome, and its labels; those before them hang on its index event alone.
_OF_OUTCOME = re.compile(r"prior_.*|has_.*|.*_in_grace|censored|competing_death|positive|negative")


def attrition_table(measurements: Measurements, cells: Cells) -> Table:
    """By task, how many each rule leaves out, and who is left in the end; all splits together."""
    rows: list[Row] = []
    summed = measurements.attrition.group_by("task", "step", "rule", maintain_order=True).agg(
        pl.col("removed").sum(), pl.col("left").sum()
    )
    for (task,), part in summed.group_by("task", maintain_order=True):
        rows += _of_task(str(task), part, cells)
    columns = [
        Column("task", "Task", "text"),
        Column("rule", "Rule", "text"),
        Column("patients", "Left out, or left"),
    ]
    note = (
        "Who is a candidate at the start is left out by the first rule that holds of him, or is positive or negative: "
        "the rows below `start` add up to it. Candidates are patients, or the stays or events of a task that has more "
        "than one a patient. docs/tasks.md explains the rules."
    )
    return Table("attrition", "Attrition of tasks", columns, rows, note)


def _of_task(task: str, part: pl.DataFrame, cells: Cells) -> list[Row]:
    counts = [
        left if rule in (START, POSITIVE, NEGATIVE) else removed
        for rule, removed, left in part.select("rule", "removed", "left").iter_rows()
    ]
    shown = attrition_cells(part["rule"].to_list(), counts, cells)
    return [
        {"task": task, "rule": rule, "patients": cell} for rule, cell in zip(part["rule"].to_list(), shown, strict=True)
    ]


def attrition_cells(rules: Sequence[str], counts: Sequence[int], cells: Cells) -> list[Cell]:
    """A task's candidates, whom each rule leaves out, and its labels, small numbers hidden.

    The start may be known from elsewhere, and what follows adds up to it. Tasks of one index event leave out the same
    patients before they come to their outcomes: those rules are hidden among themselves wherever that is enough, so
    that no task shows what another one hides.

    Args:
        rules, counts: of the start, of each rule in order, and of the labels (n,).
    """
    first = next((place for place, rule in enumerate(rules) if _OF_OUTCOME.fullmatch(rule)), len(rules))
    parts = [(counts[1:first], cells.parts(counts[1:first])), (counts[first:], cells.parts(counts[first:]))]
    apart = all(
        _is_enough([value for value, cell in zip(*part, strict=True) if isinstance(cell, Hidden)]) for part in parts
    )
    together = [cell for _, shown in parts for cell in shown] if apart else cells.parts(counts[1:])
    return [cells.count(counts[0]), *together]


def _is_enough(hidden: Sequence[int]) -> bool:
    """Whether nothing can be worked out of the sum of what is hidden."""
    return not hidden or (len(hidden) > 1 and not is_small(sum(hidden)))


def label_table(measurements: Measurements, attrition: Table, withheld: Collection[str], cells: Cells) -> Table:
    """Table A3: examples of each task and split, and how many of them are positive."""
    known = {(row["task"], row["rule"]): row["patients"] for row in attrition.rows}
    rows: list[Row] = []
    for (task,), part in examples(measurements.attrition).group_by("task", maintain_order=True):
        shown = {}
        for column in (POSITIVE, NEGATIVE):
            total = known[str(task), column]
            # Of a total that is withheld nothing may be shown that adds up to it.
            shown[column] = [follow(total, cell) for cell in cells.parts(part[column].to_list())]
        for place, split in enumerate(part["split"].to_list()):
            if split == NO_SPLIT and not part[POSITIVE][place] + part[NEGATIVE][place]:
                continue
            positive, negative = (
                WITHHELD if split in withheld else shown[column][place] for column in (POSITIVE, NEGATIVE)
            )
            both = part[POSITIVE][place] + part[NEGATIVE][place]
            row: Row = {"task": str(task), "split": split, "positive": positive, "negative": negative}
            row["examples"] = WITHHELD if isinstance(positive, Hidden) or isinstance(negative, Hidden) else both
            prevalence = part[POSITIVE][place] / both if both else None
            rows.append(row | {"prevalence": follow(row["examples"], prevalence)})
    columns = [
        Column("task", "Task", "text"),
        Column("split", "Split", "text"),
        Column("examples", "Examples"),
        Column("positive", "Positive"),
        Column("negative", "Negative"),
        Column("prevalence", "Positive", "share"),
    ]
    note = (
        "As Table A3 of the MEHRT paper in form. No task is a paper's own definition: each is a proposal, whose id and "
        "rules stand in the manifest."
    )
    return Table("table_a3", "Table A3. Examples of each task", columns, rows, note)
