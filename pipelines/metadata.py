"""metadata: what MEDS readers expect beside the events, and the ledger that accounts for every raw row."""

from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from pipelines.engine import Result, RunContext, Stage, StageReport, Task, make_task
from warehouse.files import write_json
from warehouse.layout import ReleaseLayout
from warehouse.schemas import LEDGER, read_frame, write_table

STAGE = Stage("metadata", 1, "pipelines.metadata:run")
CODES = pa.schema(
    [
        pa.field("code", pa.string(), nullable=False),
        pa.field("description", pa.string()),
        pa.field("parent_codes", pa.list_(pa.string())),
    ]
)


def plan(context: RunContext, name: str, meds: StageReport, align: StageReport) -> list[Task]:
    """One task over every bucket's codes and every table's account."""
    rows = ledger_rows(meds, align)
    codes = {path: digest for path, digest in align.hashes().items() if path.startswith("codes/")}
    return [
        make_task(
            STAGE,
            "all",
            context.staging,
            settings=dataset_metadata(name),
            inputs=[codes, rows],
            params={"name": name, "codes": sorted(codes), "ledger": rows},
        )
    ]


def ledger_rows(meds: StageReport, align: StageReport) -> list[list[Any]]:
    """LEDGER rows: raw = events + static + reference + quarantined, for each table.

    What is found when a bucket is aligned moves from events, or static, to its reason: a raw row that equals an
    earlier one, and in a trial run a row of a subject outside its limit.
    """
    outcomes: Counter[tuple[str, str, str]] = Counter()
    emitted: Counter[str] = Counter()
    for entry in meds.entries.values():
        counts = entry.counts
        table = counts["table"]
        for outcome in ("raw", "events", "static", "reference"):
            outcomes[table, outcome, ""] += counts[outcome]
        emitted[table] += counts["emitted"]
        for outcome in ("quarantined", "partial"):
            for reason, rows in counts[outcome].items():
                outcomes[table, outcome, reason] += rows
    for entry in align.entries.values():
        for reason, tables in entry.counts["set_aside"].items():
            for table, removed in tables.items():
                outcomes[table, "quarantined", reason] += removed["rows"]
                outcomes[table, "events", ""] -= removed["timed"]
                outcomes[table, "static", ""] -= removed["rows"] - removed["timed"]
                emitted[table] -= removed["events"]
        for reason, rows in entry.counts["conflicts"].items():
            if rows:
                outcomes["all tables", "conflict", reason] += rows
    return [
        [table, outcome, reason, rows, emitted[table] if outcome == "events" else 0]
        for (table, outcome, reason), rows in sorted(outcomes.items())
    ]


def run(params: dict[str, Any], base: Path) -> Result:
    """Writes dataset.json, codes.parquet and the ledger."""
    tree = ReleaseLayout(base)
    codes = pl.concat([read_frame(base / path).select("code") for path in params["codes"]]).unique().sort("code")
    described = codes.with_columns(
        pl.lit(None, pl.String).alias("description"), pl.lit(None, pl.List(pl.String)).alias("parent_codes")
    )
    ledger = pl.DataFrame(params["ledger"], schema=LEDGER.names, orient="row")
    write_json(tree.dataset_metadata, dataset_metadata(params["name"]))
    rows = {
        tree.dataset_metadata: None,
        tree.codes: write_table(tree.codes, described, CODES, "codes"),
        tree.ledger: write_table(tree.ledger, ledger, LEDGER, "the ledger"),
    }
    return Result({str(path.relative_to(base)): number for path, number in rows.items()}, {"codes": len(codes)})


def dataset_metadata(name: str) -> dict[str, Any]:
    """MEDS' dataset.json, without a time stamp: equal input gives equal bytes."""
    return {
        "dataset_name": name,
        "etl_name": "timeloom",
        "etl_version": version("timeloom"),
        "meds_version": version("meds"),
        "raw_source_id_columns": ["visit_id"],
        "code_modifier_columns": ["unit"],
        "additional_value_modality_columns": ["item_key"],
        "site_id_columns": [],
        "other_extension_columns": ["available_time", "time_precision", "kind", "source"],
    }
