"""A few patients' events and items on a staging tree, for the stages that CliniFuse reads."""

import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl

from pipelines.align import CODE_COUNTS
from pipelines.clinifuse.settings import GraphsConfig
from pipelines.metadata import CODES
from pipelines.papers import graphs
from warehouse.layout import ReleaseLayout
from warehouse.parquet import empty_frame, write_table
from warehouse.readers.graphs import VisitGraphs
from warehouse.schemas import EVENTS, ITEMS

ZERO = datetime(2024, 3, 1)


def at(hours: float) -> datetime:
    """A moment, in hours from the first day's midnight."""
    return ZERO + timedelta(hours=hours)


def events_of(rows: Sequence[dict[str, Any]]) -> pl.DataFrame:
    """Columns of EVENTS. A row says subject, visit, hours and code, and if need be known (hours), value, unit, kind and
    table."""
    filled = [
        {
            "subject_id": row["subject"],
            "visit_id": row.get("visit"),
            "time": at(row["hours"]),
            "available_time": at(row.get("known", row["hours"])),
            "time_precision": row.get("precision", "s"),
            "code": row["code"],
            "kind": row.get("kind", "clinical"),
            "source": row.get("table", "t"),
            "numeric_value": row.get("value"),
            "unit": row.get("unit"),
        }
        for row in rows
    ]
    schema = empty_frame(EVENTS).schema
    return pl.DataFrame(filled, schema_overrides={name: schema[name] for name in filled[0]}).with_columns(
        pl.lit(None, dtype).alias(name) for name, dtype in schema.items() if name not in filled[0]
    )


def items_of(rows: Sequence[dict[str, Any]]) -> pl.DataFrame:
    """Columns of ITEMS. A row says subject, key, modality and hours, and if need be precision, verdict and what its
    geometry holds: view, kind, table, tokens."""
    schema = empty_frame(ITEMS).schema
    filled = [
        {
            "subject_id": row["subject"],
            "item_key": row["key"],
            "modality": row["modality"],
            "time": at(row["hours"]),
            "available_time": at(row.get("known", row["hours"])),
            "time_precision": row.get("precision", "s"),
            "verdict": row.get("verdict", "ok"),
            "units_encoded": 1,
            "units_failed": 0,
            "geometry": json.dumps({name: row[name] for name in ("view", "kind", "table", "tokens") if name in row}),
            "artificial_link": False,
        }
        for row in rows
    ]
    frame = pl.DataFrame(filled, schema_overrides={name: schema[name] for name in filled[0]})
    return frame.with_columns(
        pl.lit(None, dtype).alias(name) for name, dtype in schema.items() if name not in filled[0]
    )


def write_events(tree: ReleaseLayout, events: pl.DataFrame, parents: dict[str, list[str]], bucket: int = 0) -> None:
    """Writes one bucket's events and their codes, with parents."""
    write_table(tree.events(bucket), events.sort("subject_id", "time", maintain_order=True), EVENTS, "events")
    codes = events.group_by("code").agg(pl.len().cast(pl.Int64).alias("events")).sort("code")
    write_table(tree.codes_of(bucket), codes, CODE_COUNTS, "codes")
    known = codes.select(
        "code",
        pl.lit(None, pl.String).alias("description"),
        pl.Series("parent_codes", [parents.get(code) for code in codes["code"]], dtype=pl.List(pl.String)),
    )
    write_table(tree.codes, known, CODES, "codes")


def make_graphs(
    folder: Path, events: pl.DataFrame, config: GraphsConfig | None = None, parents: dict[str, list[str]] | None = None
) -> tuple[dict[str, Any], VisitGraphs]:
    """The stage's account of one bucket of events, and a reader of its graphs."""
    config, tree = config or GraphsConfig(), ReleaseLayout(folder)
    write_events(tree, events, parents or {})
    settings = config.model_dump(mode="json")
    graphs.run({"bucket": None, "settings": settings}, folder)
    counts = dict(graphs.run({"bucket": 0, "settings": settings}, folder).counts)
    manifest = SimpleNamespace(buckets=1, graphs=SimpleNamespace(rules=settings))
    release: Any = SimpleNamespace(files=tree, manifest=manifest, checked=lambda path: path, checked_all=list)
    return counts, VisitGraphs(release)
