"""What is published, from what, with which verdicts: figures for people and programs, small cells hidden."""

from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console
from rich.table import Table

from warehouse.errors import TimeloomError
from warehouse.layout import Layout
from warehouse.manifest import read_manifest
from warehouse.publish import current_release
from warehouse.schemas import read_frame


def describe(root: Path) -> dict[str, Any]:
    """The current release as JSON.

    Raises:
        TimeloomError: no such root, or no release in it.
    """
    from validation.cells import Cells, Hidden

    if not root.is_dir():
        raise TimeloomError(f"there is no warehouse at {root}", "run `timeloom demo`, or give --root")
    layout = Layout(root)
    current = current_release(layout)
    if current is None:
        raise TimeloomError(f"{root} has no release yet", "run `timeloom run` or `timeloom demo`")
    manifest = read_manifest(current.manifest)
    cells = Cells(open=manifest.deid.mode == "synthetic")

    def count(value: int) -> int | str:
        shown = cells.count(value)
        return shown.label if isinstance(shown, Hidden) else value

    splits = read_frame(current.subject_splits).group_by("split").len().sort("split")
    packed = {
        key.removeprefix("pack/"): entry.counts for key, entry in manifest.tasks.items() if key.startswith("pack/")
    }
    return {
        "release": manifest.release_id,
        "parent": manifest.parent,
        "created_at": manifest.created_at,
        "content_hash": manifest.content_hash,
        "deid": manifest.deid.mode,
        "files": len(manifest.files),
        "bytes": sum(entry.bytes for entry in manifest.files.values()),
        "encoders": {modality: entry.label for modality, entry in manifest.encoders.items()},
        "verdicts": {
            modality: {verdict: count(number) for verdict, number in of.items()}
            for modality, of in manifest.verdicts.items()
        },
        "tables": _tables(read_frame(current.ledger), count),
        "subjects": {split: count(number) for split, number in splits.iter_rows()},
        "profiles": {name: entry.model_dump() for name, entry in manifest.profiles.items()},
        "packs": {
            name: {"packs": counts["packs"], "tokens": counts["tokens"], "fill": round(counts["fill"], 4)}
            for name, counts in packed.items()
        },
        "report": str(current.report),
    }


def _tables(ledger: pl.DataFrame, count: Any) -> dict[str, dict[str, Any]]:
    """Per table: rows by outcome, reasons, and what is left over, which must be 0."""
    tables: dict[str, dict[str, Any]] = {}
    for (table,), rows in ledger.filter(pl.col("outcome") != "conflict").group_by("table", maintain_order=True):
        sums = dict(rows.group_by("outcome").agg(pl.col("rows").sum()).iter_rows())
        reasons = rows.filter(pl.col("outcome") == "quarantined")
        tables[str(table)] = {
            "raw": sums.get("raw", 0),
            "events": sums.get("events", 0),
            "static": sums.get("static", 0),
            "reference": sums.get("reference", 0),
            "quarantined": count(sums.get("quarantined", 0)),
            "reasons": {
                reason: count(number) for reason, number in reasons.select("reason", "rows").iter_rows() if number
            },
            "difference": sums.get("raw", 0)
            - sum(sums.get(name, 0) for name in ("events", "static", "reference", "quarantined")),
            "emitted": int(rows["events"].sum()),
        }
    return tables


def print_status(description: dict[str, Any], console: Console) -> None:
    """The same for a person."""
    console.print(f"release {description['release']} of {description['created_at']}, parent {description['parent']}")
    size = f"{description['files']} files, {description['bytes'] / 1e6:.1f} MB"
    console.print(f"{size}, content {description['content_hash'][:16]}, de-identification: {description['deid']}")
    for modality, label in description["encoders"].items():
        verdicts = ", ".join(f"{number} {verdict}" for verdict, number in description["verdicts"][modality].items())
        console.print(f"{modality}: {verdicts}; encoder {label}")
    console.print("subjects: " + ", ".join(f"{number} {split}" for split, number in description["subjects"].items()))
    for name, packs in description["packs"].items():
        console.print(f"{name}: {packs['packs']} packs, {packs['tokens']} tokens, {packs['fill']:.2%} full")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("table", no_wrap=True)
    for name in ("rows in", "events", "static", "reference", "quarantined", "difference"):
        table.add_column(name, justify="right")
    for name, row in description["tables"].items():
        counts = (row["raw"], row["events"], row["static"], row["reference"], row["quarantined"], row["difference"])
        table.add_row(name, *(str(figure) for figure in counts))
    console.print(table)
    for name, row in description["tables"].items():
        for reason, number in row["reasons"].items():
            console.print(f"{name}: {number} rows quarantined, {reason}")
    console.print(f"report: {description['report']}")
