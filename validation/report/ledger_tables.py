"""The report's tables of the ledger and of events' annotations: what became of every raw row."""

import polars as pl

from validation.areas.ledger import CONFLICTS, PARTIAL, QUARANTINED
from validation.measurements import Measurements
from validation.report.cells import LARGEST_SMALL, SMALL, WITHHELD, Cells, Hidden, follow
from validation.report.table import Column, Row, Table


def ledger_table(measurements: Measurements, cells: Cells) -> Table:
    """Counts per raw table: raw = events + static + reference + quarantined."""
    rows: list[Row] = []
    for line in measurements.areas["ledger"].iter_rows(named=True):
        names = ("events", "static", "reference", "quarantined")
        parts = dict(zip(names, cells.parts([line[name] for name in names], [False, False, False, True]), strict=True))
        rows.append(
            {"table": line["table"], "raw": cells.count(line["raw"])}
            | parts
            | {
                "difference": cells.count(line["difference"]),
                "stored": follow(follow(parts["events"], parts["static"]), cells.count(line["stored"])),
            }
        )
    columns = [
        Column("table", "Table", "text"),
        Column("raw", "Raw rows"),
        Column("events", "Events"),
        Column("static", "Static"),
        Column("reference", "Reference"),
        Column("quarantined", "Quarantined"),
        Column("difference", "Difference"),
        Column("stored", "Events made"),
    ]
    note = (
        "Rows, but for the last column. Raw rows = events + static + reference + quarantined; "
        "the difference must be 0. One row may make several events."
    )
    return Table("counts", "Counts per table", columns, rows, note)


def quarantine_table(measurements: Measurements, ledger: Table, cells: Cells) -> Table:
    """Quarantined rows by table and reason."""
    quarantined = measurements.outcomes.filter((pl.col("outcome") == "quarantined") & (pl.col("rows") > 0))
    shown = {row["table"]: row for row in ledger.rows}
    rows: list[Row] = []
    for (table,), part in quarantined.sort("table", "reason").group_by("table", maintain_order=True):
        total = shown.get(str(table), {})
        values = part["rows"].to_list()
        for reason, value, cell in zip(part["reason"], values, cells.parts(values), strict=True):
            kept = cell if isinstance(cell, Hidden) else follow(total.get("quarantined"), cell)
            raw = total.get("raw")
            share = value / raw if isinstance(raw, int) and raw else None
            meaning = QUARANTINED.get(reason, "")
            row: Row = {"table": str(table), "reason": reason, "meaning": meaning, "rows": kept}
            rows.append(row | {"share": follow(kept, share)})
    columns = [
        Column("table", "Table", "text"),
        Column("reason", "Reason", "text"),
        Column("meaning", "What it means", "text"),
        Column("rows", "Rows"),
        Column("share", "Of its rows", "share"),
    ]
    return Table("quarantine", "Quarantined rows", columns, rows, "Rows that made nothing, by the first reason.")


def partial_table(measurements: Measurements, cells: Cells) -> Table:
    """Rows that were kept although something about them is missing or unreadable."""
    kept = measurements.outcomes.filter((pl.col("outcome") == "partial") & (pl.col("rows") > 0))
    rows: list[Row] = [
        {
            "table": line["table"],
            "reason": line["reason"],
            "meaning": PARTIAL.get(line["reason"], ""),
            "rows": cells.count(line["rows"]),
        }
        for line in kept.sort("table", "reason").iter_rows(named=True)
    ]
    columns = [
        Column("table", "Table", "text"),
        Column("reason", "Reason", "text"),
        Column("meaning", "What it means", "text"),
        Column("rows", "Rows"),
    ]
    note = "These rows are in the release; they are counted so that nobody has to search for them."
    return Table("partial", "Kept, with a reservation", columns, rows, note)


def conflict_table(measurements: Measurements, cells: Cells) -> Table:
    """Events that contradict another fact."""
    counted = measurements.outcomes.filter((pl.col("outcome") == "conflict") & (pl.col("rows") > 0))
    summed = counted.group_by("reason").agg(pl.col("rows").sum()).sort("reason")
    rows: list[Row] = [
        {"conflict": reason, "meaning": CONFLICTS.get(reason, ""), "events": cells.count(events)}
        for reason, events in summed.iter_rows()
    ]
    columns = [
        Column("conflict", "Conflict", "text"),
        Column("meaning", "What it means", "text"),
        Column("events", "Events"),
    ]
    note = (
        "Nothing is repaired: such an event is in the release as the source has it, and its column conflict says so. "
        "An event with several conflicts counts in each, and its column has the first."
    )
    return Table("conflicts", "Contradictions", columns, rows, note)


def availability_table(measurements: Measurements, ledger: Table, cells: Cells) -> Table:
    """Events by how `available_time` is known."""
    stored = {row["table"]: row["stored"] for row in ledger.rows}
    rows: list[Row] = []
    for line in measurements.annotations.sort("source").iter_rows(named=True):
        counts = [line[name] for name in _AVAILABILITY]
        shown = cells.parts(counts)
        modality = str(line["source"]).removeprefix("images/")
        few = measurements.areas["items"].filter(
            (pl.col("modality") == modality) & pl.col("items").is_between(1, LARGEST_SMALL)
        )
        if isinstance(stored.get(line["source"]), Hidden) or (not cells.open and not few.is_empty()):
            # Their sum is withheld: a small cell of the ledger, or of the verdicts, could be worked out from it.
            shown = [
                WITHHELD if count and cell is not SMALL else cell for count, cell in zip(counts, shown, strict=True)
            ]
        share = line["estimated"] / line["timed"] if line["timed"] else None
        row: Row = {"table": line["source"], **dict(zip(_AVAILABILITY, shown, strict=True))}
        rows.append(row | {"share": share if shown == counts or not line["estimated"] else WITHHELD})
    columns = [
        Column("table", "Table", "text"),
        *(Column(name, heading) for name, heading in _AVAILABILITY.items()),
        Column("share", "Estimated", "share"),
    ]
    note = (
        "How it is known when a fact became available. Recorded: a column of the source says so. Taken to be the time: "
        "nothing says so, and the time of the event is used. By the usual delay: estimated, as the time plus the delay "
        "that is usual for the code. Static facts have no time."
    )
    return Table("availability", "Availability of events", columns, rows, note)


_AVAILABILITY = {
    "recorded": "Recorded",
    "time": "Taken to be the time",
    "estimated": "By the usual delay",
    "static": "Static",
}


def time_format_table(measurements: Measurements, ledger: Table, cells: Cells) -> Table:
    """Values of each time column by the format that read them."""
    raw = {line["table"]: line["raw"] for line in measurements.areas["ledger"].iter_rows(named=True)}
    read = (
        measurements.outcomes.filter((pl.col("outcome") == "time_format") & (pl.col("rows") > 0))
        .with_columns(pl.col("reason").str.extract_groups(r"^(?<column>.*?) (?<format>%.*)$").alias("read"))
        .unnest("read")
        .sort("table", "column", "format")
    )
    rows: list[Row] = []
    for (table, column), part in read.group_by("table", "column", maintain_order=True):
        values = part["rows"].to_list()
        # What no format read is missing or unreadable: a part of the raw rows that a difference would show.
        rest = max(raw.get(str(table), 0) - sum(values), 0)
        shown = cells.parts([*values, rest], [*(False for _ in values), True])[:-1]
        for time_format, cell in zip(part["format"], shown, strict=True):
            rows.append({"table": str(table), "column": str(column), "format": time_format, "values": cell})
    columns = [
        Column("table", "Table", "text"),
        Column("column", "Column", "text"),
        Column("format", "Format", "text"),
        Column("values", "Values"),
    ]
    return Table(
        "time_formats",
        "Formats of times",
        columns,
        rows,
        "Of two columns, the second is read where the first is empty.",
    )


def code_table(measurements: Measurements) -> Table:
    """Codes by namespace, and how many of them say what they mean; counts of codes, not of patients."""
    rows: list[Row] = [
        {
            "namespace": line["namespace"],
            "codes": line["codes"],
            "described": line["described"],
            "share": line["described"] / line["codes"],
            "with_parents": line["with_parents"],
        }
        for line in measurements.codes.iter_rows(named=True)
    ]
    columns = [
        Column("namespace", "Namespace", "text"),
        Column("codes", "Distinct codes"),
        Column("described", "Described"),
        Column("share", "Share", "share"),
        Column("with_parents", "With parents"),
    ]
    note = "A code is described where the source has a dictionary of it: metadata/codes.parquet."
    return Table("codes", "Codes", columns, rows, note)
