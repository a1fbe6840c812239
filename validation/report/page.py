"""The quality report: one page that a data steward can read, print and keep, without a network."""

import base64
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipelines.engine.context import Standing
from validation.gate.judge import Judgement
from validation.measurements import Measurements
from validation.report.cells import SMALL_LABEL, WITHHELD, WITHHELD_LABEL, Cell, Cells, Hidden
from validation.report.figures import length_figure, modality_figure, picture
from validation.report.headline import headline, left_out
from validation.report.table import Column, Format, Row, Table
from validation.report.tables import build_tables, listed
from warehouse.errors import TimeloomError
from warehouse.files import atomic_write, write_json
from warehouse.layout import ReleaseLayout
from warehouse.manifest import Manifest

TEMPLATE = "report.html.jinja"
OPEN_MODE = "synthetic"
DEID_MODES = {
    "synthetic": "simulated patients",
    "limited": "limited data set, under an agreement",
    "expert": "expert determination: dates shifted by whole weeks",
    "safe_harbor_year": "years only, after the Safe Harbor list",
}
ENCODERS: dict[str, tuple[str, Format]] = {
    "modality": ("Modality", "text"),
    "name": ("Name", "text"),
    "label": ("Encoder", "text"),
    "dim": ("Numbers a vector", "count"),
    "weights_sha256": ("SHA-256 of the weights", "text"),
}
TIMINGS: dict[str, tuple[str, Format]] = {
    "step": ("Step", "text"),
    "ran": ("Tasks run", "count"),
    "linked": ("Linked", "count"),
    "resumed": ("Resumed", "count"),
    "seconds": ("Seconds", "tenths"),
    "cpu_seconds": ("Seconds of processors", "tenths"),
}


def show(cell: Cell, kind: Format = "text") -> str:
    """A cell as it is printed."""
    if isinstance(cell, Hidden):
        return cell.label
    if cell is None:
        return "–"
    if kind == "text" or isinstance(cell, str):
        return str(cell)
    if kind == "count":
        return f"{int(cell):,}"
    if kind == "share":
        return f"{100 * cell:.2f} %"
    if kind == "tenths":
        return f"{cell:,.1f}"
    if kind == "fine":
        return f"{cell:.4f}"
    return f"{cell:,.0f}" if float(cell).is_integer() else f"{cell:,.1f}" if abs(cell) >= 1000 else f"{cell:,.3f}"


def turn(table: Table) -> Table:
    """The table with a line per column, as the papers print A1 and A2; cells become text.

    A line of which every cell is withheld is left out; the table for programs has it.
    """
    head, *rest = table.columns
    columns = [Column("statistic", "", "text")]
    columns += [Column(str(index), show(row[head.name])) for index, row in enumerate(table.rows)]
    rows: list[Row] = []
    for column in rest:
        if all(row[column.name] == WITHHELD for row in table.rows):
            continue
        line: Row = {"statistic": column.heading}
        for index, row in enumerate(table.rows):
            line[str(index)] = show(row[column.name], column.format)
        rows.append(line)
    return Table(table.name, table.title, columns, rows, table.note)


def facts_of(manifest: Manifest) -> dict[str, Any]:
    """What the report says of a manifest, as its context."""
    return {
        "release_id": manifest.release_id,
        "parent": manifest.parent,
        "created_at": manifest.created_at,
        "deid_mode": manifest.deid.mode,
        "deid_dates": manifest.deid.dates,
        "scheme": manifest.split_scheme,
        "texts": manifest.texts > 0,
        "sources": sorted({name.split("/")[0] for name in manifest.sources}),
        "encoders": {
            modality: [entry.model_dump(include=set(ENCODERS)) for entry in entries]
            for modality, entries in manifest.encoders.items()
        },
    }


def _given(context: Mapping[str, Any]) -> dict[str, Table]:
    """Tables of what only the caller knows: encoders, seconds per stage."""
    encoders = [
        {"modality": name} | dict(entry) for name, entries in context.get("encoders", {}).items() for entry in entries
    ]
    timings = [{"step": step, "seconds": seconds} for step, seconds in context.get("timings", {}).items()]
    return {
        "encoders": listed("encoders", "Encoders", encoders, ENCODERS),
        "timings": listed("timings", "Time", timings or context.get("steps", []), TIMINGS),
    }


def _save(tree: ReleaseLayout, tables: Mapping[str, Table], figures: Mapping[str, bytes]) -> None:
    """The same tables for programs: one JSON, a Parquet file each, the figures as PNG."""
    quality = tree.quality
    as_json = {
        name: {"title": table.title, "note": table.note, "rows": table.frame().to_dicts()}
        for name, table in tables.items()
    }
    write_json(quality / "tables.json", as_json)
    for name, table in tables.items():
        with atomic_write(quality / f"{name}.parquet") as temporary:
            pq.write_table(table.frame().to_arrow(), temporary, write_page_checksum=True)
    for name, png in figures.items():
        with atomic_write(quality / f"{name}.png") as temporary:
            temporary.write_bytes(png)


def write_report(
    tree: ReleaseLayout,
    measurements: Measurements,
    judgement: Judgement,
    context: Mapping[str, Any],
    before: Standing | None = None,
) -> None:
    """Writes quality/report.html, tables.json, a Parquet file per table, and the figures.

    Args:
        context: what only the run knows; every key may be absent. `manifest`: a Manifest, from which the keys of
            `facts_of` are taken where they are not given. `release_id`, `parent`, `created_at`: text.
            `deid_mode`: unless it is `synthetic`, small cells are hidden (absent means hidden). `scheme`: the split
            scheme. `sources`: names. `artificial_links`: true where images were tied to subjects that they are not of.
            `texts`: true where the release holds texts.
            `encoders`: modality to entries of name, label, dim, weights_sha256. `steps`: entries of step, ran, linked,
            resumed, seconds, cpu_seconds, or `timings`: step to seconds.
        before: the release that this one follows, which may have figures that show the same.

    Raises:
        TimeloomError: the report cannot be written.
    """
    import jinja2

    known = context.get("manifest")
    context = (facts_of(known) if isinstance(known, Manifest) else {}) | dict(context)
    mode = str(context.get("deid_mode", "not declared"))
    cells = Cells(open=mode == OPEN_MODE)
    tables = build_tables(measurements, judgement, cells)
    drawn: dict[str, tuple[Callable[[Table, str], Any], str]] = {
        "figure_a1": (modality_figure, "figure_a1"),
        "figure_lengths": (length_figure, "lengths"),
    }
    relative = ReleaseLayout(Path()).quality
    figures = {
        name: picture(
            draw,
            tables[table],
            measurements.length_unit,
            before.whole((relative / f"{name}.png").as_posix()) if before else None,
        )
        for name, (draw, table) in drawn.items()
    }
    given = _given(context)
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["show"] = show
    environment.tests["hidden"] = lambda cell: isinstance(cell, Hidden) or cell in (SMALL_LABEL, WITHHELD_LABEL)
    template = environment.from_string(Path(__file__).with_name(TEMPLATE).read_text(encoding="utf-8"))
    page = template.render(
        judgement=judgement,
        counted={
            severity: sum(result.severity == severity for result in judgement.failures)
            for severity in ("critical", "warning")
        },
        context=dict.fromkeys(
            ("release_id", "parent", "created_at", "deid_dates", "scheme", "sources", "artificial_links", "texts")
        )
        | dict(context),
        mode=mode,
        mode_meaning=DEID_MODES.get(mode, ""),
        open=cells.open,
        headline=headline(measurements, cells),
        left_out=left_out(measurements, cells),
        tables=tables | given,
        turn=turn,
        figures={name: base64.b64encode(png).decode("ascii") for name, png in figures.items()},
        length_unit=measurements.length_unit,
    )
    try:
        _save(tree, tables | {name: table for name, table in given.items() if table.rows}, figures)
        with atomic_write(tree.report) as temporary:
            temporary.write_text(page, encoding="utf-8")
    except OSError as error:
        raise TimeloomError("the quality report cannot be written", remedy="free disk space and run again") from error
