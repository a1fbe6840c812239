"""Tables of triplets: what became of images, texts and studies, and which of them are copies."""

import polars as pl

from validation.measurements import Measurements
from validation.report.cells import WITHHELD, Cells, Hidden, follow
from validation.report.table import Column, Row, Table
from warehouse.modalities import title_of

_STEPS = {
    "images": "images",
    "texts": "texts",
    "text": "studies, by their text",
    "visit": "studies with a text, by the rule of their visit",
    "outcome": "triplets, by split or why they are set aside",
    "subjects": "patients",
}


def funnel_table(measurements: Measurements, cells: Cells) -> Table:
    """Of every step what became of it; what adds up to a number that is told elsewhere is hidden together."""
    rows: list[Row] = []
    funnel = measurements.funnel.with_columns(
        # Studies with a text are as many in three steps: those without are no part of that number.
        ((pl.col("step") == "text") & (pl.col("rule") == "none")).alias("apart")
    )
    hidden: set[str] = set()
    for (source, step, _), part in funnel.group_by("source", "step", "apart", maintain_order=True):
        shown = cells.parts(part["number"].to_list())
        if step == "text":
            hidden |= {rule for rule, cell in zip(part["rule"], shown, strict=True) if isinstance(cell, Hidden)}
        rows += [
            {"source": title_of(str(source)), "step": str(step), "rule": rule, "number": cell}
            for rule, cell in zip(part["rule"], shown, strict=True)
        ]
    for row in rows:
        if row["step"] == "texts" and row["rule"] in hidden and not isinstance(row["number"], Hidden):
            row["number"] = WITHHELD
        row["rule"], row["step"] = str(row["rule"]).replace("_", " "), _STEPS[str(row["step"])]
    columns = [
        Column("step", "Step", "text"),
        Column("source", "Modality", "text"),
        Column("rule", "Rule", "text"),
        Column("number", "Number"),
    ]
    note = "Studies with a text are as many as the rules of their visits, and as the outcomes; docs/clinifuse.md."
    return Table("funnel", "Triplets", columns, rows, note)


def copies_table(measurements: Measurements, cells: Cells) -> Table:
    """Copies by modality and method."""
    rows: list[Row] = []
    for line in measurements.copies.iter_rows(named=True):
        copies = cells.count(line["copies"])
        others = {name: follow(copies, cells.count(line[name])) for name in ("groups", "across", "set_aside")}
        rows.append({"modality": title_of(line["modality"]), "method": line["method"], "copies": copies} | others)
    columns = [
        Column("modality", "Modality", "text"),
        Column("method", "Method", "text"),
        Column("copies", "Copies"),
        Column("groups", "Groups"),
        Column("across", "In several splits"),
        Column("set_aside", "Set aside"),
    ]
    return Table(
        "copies",
        "Copies",
        columns,
        rows,
        "Pictures that only look alike are told, and stay unless `look_alikes` is `set_aside`.",
    )
