"""Tables of what a release is held against: the releases before it, its other tables, its profiles."""

import polars as pl

from validation.areas.contents import part_of
from validation.measure.contents import ALONE
from validation.measurements import Measurements
from validation.report.cells import WITHHELD, Cells, follow
from validation.report.table import Column, Row, Table


def loss_table(measurements: Measurements, cells: Cells) -> Table:
    """Parts of which much less is there than before, refused or agreed to."""
    lost = measurements.areas["contents"].filter((pl.col("lost") == 1) | (pl.col("accepted") == 1))
    rows: list[Row] = []
    for line in lost.iter_rows(named=True):
        # Events less than rows would give a few quarantined rows away.
        shown = cells.open or line["measure"] in ("rows", "items", "subjects")
        before, now = (cells.rounded(line[name]) if shown else WITHHELD for name in ("before", "now"))
        share = line["share"] if cells.open else round(line["share"], 1)
        rows.append(
            {
                "part": part_of(line),
                "measure": line["measure"],
                "before": before,
                "now": now,
                "share": share,
                "release": line["release"],
                "result": "agreed to" if line["accepted"] else "refused",
            }
        )
    columns = [
        Column("part", "Part", "text"),
        Column("measure", "Of what", "text"),
        Column("before", "Before"),
        Column("now", "Now"),
        Column("share", "Lost", "share"),
        Column("release", "Release before", "text"),
        Column("result", "Outcome", "text"),
    ]
    note = "Against the most that the parent and the releases before it held. A loss is agreed to with --accept-loss."
    if not cells.open:
        note += " Numbers are cut to two digits, shares to one."
    return Table("losses", "Less than before", columns, rows, note)


def subject_table(measurements: Measurements, cells: Cells) -> Table:
    """Patients of each table and modality that no other table knows."""
    rows: list[Row] = []
    for line in measurements.areas["subjects"].iter_rows(named=True):
        known, alone = cells.parts([line["subjects"] - line[ALONE], line[ALONE]])
        row: Row = {"kind": line["kind"], "name": line["name"], "known": known, "alone": alone}
        rows.append(row | {"share": follow(alone, line["share"])})
    columns = [
        Column("kind", "Kind", "text"),
        Column("name", "Name", "text"),
        Column("known", "Patients known elsewhere"),
        Column("alone", "In no other table"),
        Column("share", "Share", "share"),
    ]
    note = (
        "A patient whom one table or modality has alone is most often a second spelling of another's id. Tables that "
        "define patients, by births or by facts without a time, are not asked: their patients need no other row."
    )
    return Table("subjects", "Patients of one table", columns, rows, note)


def join_table(measurements: Measurements, cells: Cells) -> Table:
    """Rows that asked another table, by whether it has their key."""
    asked = measurements.outcomes.filter(pl.col("outcome").is_in(["join_found", "join_missed"]) & (pl.col("rows") > 0))
    rows: list[Row] = []
    for (table, join), part in asked.sort("table", "reason").group_by("table", "reason", maintain_order=True):
        counts = dict(part.select("outcome", "rows").iter_rows())
        values = [counts.get("join_found", 0), counts.get("join_missed", 0)]
        found, missed = cells.parts(values)
        row: Row = {"table": str(table), "join": str(join), "found": found, "missed": missed}
        rows.append(row | {"share": follow(missed, values[1] / sum(values))})
    columns = [
        Column("table", "Table", "text"),
        Column("join", "Looks up", "text"),
        Column("found", "Rows that found it"),
        Column("missed", "Rows that missed it"),
        Column("share", "Missed", "share"),
    ]
    return Table("joins", "Keys of other tables", columns, rows, "Rows without a key do not ask, and are not counted.")


def tokenised_table(measurements: Measurements, cells: Cells) -> Table:
    """Of each profile, the clinical events that became tokens."""
    summed = measurements.tokenised.group_by("profile", maintain_order=True).agg(pl.col("clinical", "in_tokens").sum())
    rows: list[Row] = []
    for profile, clinical, in_tokens in summed.iter_rows():
        share = in_tokens / clinical if clinical else None
        counts: Row = {"clinical": clinical, "in_tokens": in_tokens}
        row: Row = {"profile": profile} | (counts if cells.open else dict.fromkeys(counts, WITHHELD))
        rows.append(row | {"share": share if share is None or cells.open else round(share, 3)})
    columns = [
        Column("profile", "Profile", "text"),
        Column("clinical", "Clinical events"),
        Column("in_tokens", "Became tokens"),
        Column("share", "Share", "share"),
    ]
    note = "Events with a time, without images, visits' ends and starts, births and deaths."
    return Table("tokenised", "Events that became tokens", columns, rows, note)
