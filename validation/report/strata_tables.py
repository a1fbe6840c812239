"""Tables by sex, ethnicity, race, insurance and age: who is in each split, and whose labels are positive."""

from collections.abc import Collection

import polars as pl

from validation.measurements import Measurements
from validation.report.cells import SMALL, WITHHELD, Cells, Hidden, follow
from validation.report.table import Column, Row, Table
from warehouse.schemas import SPLITS


def strata_table(measurements: Measurements, withheld: Collection[str], cells: Cells) -> Table:
    """Patients of each split by attribute and value; of a split whose size is withheld none that is its complement."""
    rows: list[Row] = []
    for (attribute,), part in measurements.strata.group_by("attribute", maintain_order=True):
        values = part["value"].unique(maintain_order=True).to_list()
        if values == ["unknown"]:
            continue  # The source does not tell it.
        by_split = {}
        for split in SPLITS:
            found = dict(part.filter(pl.col("split") == split).select("value", "subjects").iter_rows())
            counts = [found.get(value, 0) for value in values]
            shown = cells.parts(counts)
            if split in withheld:
                shown = [
                    WITHHELD if count and cell is not SMALL else cell for count, cell in zip(counts, shown, strict=True)
                ]
            by_split[split] = dict(zip(values, shown, strict=True))
        rows += [
            {"attribute": str(attribute), "value": value} | {split: by_split[split][value] for split in SPLITS}
            for value in values
        ]
    columns = [Column("attribute", "By", "text"), Column("value", "", "text")]
    columns += [Column(split, split) for split in SPLITS]
    note = (
        "The first value that is known of a patient, and the age at his first event. Values that few patients have are "
        "`other`; an attribute that no event tells is left out."
    )
    return Table("strata", "Patients by sex, ethnicity, insurance and age", columns, rows, note)


def task_strata_table(measurements: Measurements, attrition: Table, cells: Cells) -> Table:
    """Labels of each task by attribute and value, all splits together."""
    known = {(row["task"], row["rule"]): row["patients"] for row in attrition.rows}
    stated = {
        row[0] for row in measurements.strata.filter(pl.col("value") != "unknown").select("attribute").iter_rows()
    }
    rows: list[Row] = []
    for (task, attribute), part in measurements.task_strata.group_by("task", "attribute", maintain_order=True):
        if attribute not in stated:
            continue
        shown = {
            # Of a total that is withheld nothing may be shown that adds up to it.
            column: [follow(known[str(task), column], cell) for cell in cells.parts(part[column].to_list())]
            for column in ("positive", "negative")
        }
        for place, row in enumerate(part.iter_rows(named=True)):
            positive, negative = shown["positive"][place], shown["negative"][place]
            both = row["positive"] + row["negative"]
            examples = WITHHELD if isinstance(positive, Hidden) or isinstance(negative, Hidden) else both
            line: Row = {"task": str(task), "attribute": str(attribute), "value": row["value"], "positive": positive}
            share = row["positive"] / both if both else None
            rows.append(line | {"negative": negative, "examples": examples, "prevalence": follow(examples, share)})
    columns = [
        Column("task", "Task", "text"),
        Column("attribute", "By", "text"),
        Column("value", "", "text"),
        Column("examples", "Examples"),
        Column("positive", "Positive"),
        Column("negative", "Negative"),
        Column("prevalence", "Positive", "share"),
    ]
    return Table("task_strata", "Labels by sex, ethnicity, insurance and age", columns, rows)
