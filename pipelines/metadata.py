"""metadata: what MEDS readers expect beside the events, and the ledger that accounts for every raw row."""

from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypedDict

import polars as pl
import pyarrow as pa

from extractors.events.dictionaries import describe
from extractors.source import checked_source
from extractors.tables.export import Export
from pipelines.align import Counts as AlignCounts
from pipelines.aligning.continued import QUARANTINE as ROWS
from pipelines.aligning.segments import read_frame_blob
from pipelines.engine.context import StageReport, counts_of
from pipelines.engine.task import RawFile, Result, Task, make_task
from pipelines.meds import Counts as MedsCounts
from pipelines.meds import planned_files
from pipelines.night import Night, Stage
from warehouse.files import write_json
from warehouse.layout import ReleaseLayout
from warehouse.parquet import read_frame, write_table, write_tables
from warehouse.schemas import LEDGER, QUARANTINE

CODES = pa.schema(
    [
        pa.field("code", pa.string(), nullable=False),
        pa.field("description", pa.string()),
        pa.field("parent_codes", pa.list_(pa.string())),
    ]
)

# What becomes of a row, under the names of MedsCounts: as one number, and by reason.
WHOLE: tuple[Literal["raw", "events", "static", "reference"], ...] = ("raw", "events", "static", "reference")
BY_REASON: tuple[Literal["quarantined", "partial"], ...] = ("quarantined", "partial")


class Counts(TypedDict):
    """What the task tells: codes, and those with a description."""

    codes: int
    described: int


class Params(TypedDict):
    """What a task is given: paths and settings."""

    name: str
    codes: list[str]
    ledger: list[Any]
    quarantines: list[dict[str, Any]]
    dictionaries: list[dict[str, Any]]


def plan(night: Night) -> list[Task]:
    """One task over every bucket's codes, every table's account and the sources' dictionaries."""
    meds, align, layout, fingerprints = night.report("meds"), night.report("align"), night.layout, night.fingerprints
    name = night.config.name
    rows = ledger_rows(meds, align)
    codes = {path: digest for path, digest in align.hashes().items() if path.startswith("codes/")}
    quarantines: list[dict[str, Any]] = [
        {
            "table": counts_of(entry, MedsCounts)["table"],
            "part": part,
            "path": str(layout.segments / counts_of(entry, MedsCounts)["segment"]),
        }
        | {"rows": counts_of(entry, MedsCounts)["blobs"]["quarantine"]}
        for part, entry in _parts(meds)
        if counts_of(entry, MedsCounts)["blobs"] and sum(counts_of(entry, MedsCounts)["quarantined"].values())
    ]
    dictionaries = []
    raw_files: dict[str, RawFile] = {}
    inputs: list[Any] = [
        codes,
        rows,
        [[quarantine["table"], quarantine["part"], quarantine["rows"][-1]] for quarantine in quarantines],
    ]
    for export in night.exports:
        rules = export.source.codes
        tables = {name for rule in rules for name in (rule.table, *(join.table for join in rule.joins))}
        files = [[name, [fingerprints.of(path) for path in export.files(name)]] for name in sorted(tables)]
        settings = export.source.model_dump(mode="json", exclude={"tables", "description"})
        inputs.append([settings, files, pl.__version__])
        raw_files |= planned_files(export, sorted(tables), fingerprints)
        dictionaries.append(
            {
                "source": export.source.model_dump(mode="json"),
                "export": str(export.path),
                "crosswalks": {crosswalk: str(file) for crosswalk, file in export.crosswalks.items()},
            }
        )
    return [
        make_task(
            STAGE,
            "all",
            night.context.staging,
            settings=dataset_metadata(name),
            inputs=inputs,
            params=Params(
                name=name, codes=sorted(codes), ledger=rows, quarantines=quarantines, dictionaries=dictionaries
            ),
            raw_files=raw_files,
        )
    ]


def _parts(meds: StageReport) -> list[tuple[int, Any]]:
    """Entries with their number among the files of their table."""
    seen: Counter[str] = Counter()
    parts = []
    for entry in meds.entries.values():
        parts.append((seen[counts_of(entry, MedsCounts)["table"]], entry))
        seen[counts_of(entry, MedsCounts)["table"]] += 1
    return parts


def ledger_rows(meds: StageReport, align: StageReport) -> list[list[Any]]:
    """LEDGER rows: raw = events + static + reference + quarantined, for each table.

    What is found when a bucket is aligned moves from events, or static, to its reason: a raw row that equals an
    earlier one, a second death, and in a trial run a row of a subject outside its limit. `time_format` says how many
    values of a time column each format read, `join_found` and `join_missed` how many rows asked a join with a key that
    the other table has, or lacks, `values` and `numbers` how many cells of a value's column hold something and a
    number, and `empty` how many made no event because they hold nothing.
    """
    outcomes: Counter[tuple[str, str, str]] = Counter()
    emitted: Counter[str] = Counter()
    for entry in meds.entries.values():
        counts = counts_of(entry, MedsCounts)
        table = counts["table"]
        for whole in WHOLE:
            outcomes[table, whole, ""] += counts[whole]
        emitted[table] += counts["emitted"]
        for by_reason in BY_REASON:
            for reason, rows in counts[by_reason].items():
                outcomes[table, by_reason, reason] += rows
        for column, times in counts["times"].items():
            for time_format, rows in times.items():
                if time_format not in ("present", "unreadable"):
                    outcomes[table, "time_format", f"{column} {time_format}"] += rows
        for join, asked in counts["joins"].items():
            outcomes[table, "join_found", join] += asked["asked"] - asked["missed"]
            outcomes[table, "join_missed", join] += asked["missed"]
        for column, values in counts["values"].items():
            outcomes[table, "values", column] += values["present"]
            outcomes[table, "numbers", column] += values["numbers"]
            if values["empty"]:
                outcomes[table, "empty", column] += values["empty"]
    for entry in align.entries.values():
        bucket = counts_of(entry, AlignCounts)
        for reason, tables in bucket["set_aside"].items():
            for table, removed in tables.items():
                outcomes[table, "quarantined", reason] += removed["rows"]
                outcomes[table, "events", ""] -= removed["timed"]
                outcomes[table, "static", ""] -= removed["rows"] - removed["timed"]
                emitted[table] -= removed["events"]
        for outcome, reasons in (("conflict", bucket["conflicts"]), ("availability", bucket["availability"])):
            for reason, rows in reasons.items():
                if rows:
                    outcomes["all tables", outcome, reason] += rows
    return [
        [table, outcome, reason, rows, emitted[table] if outcome == "events" else 0]
        for (table, outcome, reason), rows in sorted(outcomes.items())
    ]


def run(params: Params, base: Path) -> Result:
    """Writes dataset.json, codes.parquet, the ledger and the quarantine."""
    tree = ReleaseLayout(base)
    codes = pl.concat([read_frame(base / path).select("code") for path in params["codes"]]).unique().sort("code")
    sources = [checked_source(param["source"]) for param in params["dictionaries"]]
    found = [
        Export(
            Path(dictionary["export"]), source, {name: Path(file) for name, file in dictionary["crosswalks"].items()}
        )
        for dictionary, source in zip(params["dictionaries"], sources, strict=True)
    ]
    described = describe(codes["code"], found)
    ledger = pl.DataFrame(params["ledger"], schema=LEDGER.names, orient="row")
    write_json(tree.dataset_metadata, dataset_metadata(params["name"]))
    quarantined = (
        read_frame_blob(Path(quarantine["path"]), quarantine["rows"], ROWS).select(
            pl.lit(quarantine["table"]).alias("table"),
            pl.lit(quarantine["part"], pl.Int32).alias("part"),
            "row",
            "reason",
        )
        for quarantine in params["quarantines"]
    )
    rows = {
        tree.dataset_metadata: None,
        tree.codes: write_table(tree.codes, described, CODES, "codes"),
        tree.ledger: write_table(tree.ledger, ledger, LEDGER, "the ledger"),
        tree.quarantine: write_tables(tree.quarantine, quarantined, QUARANTINE, "the quarantine"),
    }
    with_text = described["description"].drop_nulls().len()
    return Result(
        {str(path.relative_to(base)): number for path, number in rows.items()},
        Counts(codes=len(codes), described=with_text),
    )


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
        "other_extension_columns": [
            "available_time", "time_precision", "kind", "source", "availability", "value_flag", "conflict",
        ],
    }  # fmt: skip


STAGE = Stage(
    "metadata",
    version=3,
    run="pipelines.metadata:run",
    after=("meds", "align"),
    in_conversion=True,
    keys=("name",),
    plan=plan,
)
