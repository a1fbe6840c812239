"""Small raw tables and the stages that read them, run in this process."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from extractors.deid import DeidConfig, Deidentifier, load_key
from extractors.events.convert import Converter
from extractors.events.converted import AVAILABILITY, CONVERTED
from extractors.events.joins import attach_rows
from extractors.events.times import PRECISIONS
from extractors.events.units import CONTRADICTS, LETTER
from extractors.events.values import FLAGS
from extractors.source import Source
from extractors.tables.export import Export
from pipelines import align, meds
from pipelines.aligning.continued import QUARANTINE
from pipelines.aligning.segments import SCHEMA, Piece, SegmentReader, read_frame_blob
from pipelines.config import RunConfig
from pipelines.engine.context import RunContext, StageReport
from pipelines.engine.fingerprints import Fingerprints
from pipelines.engine.former import Former
from pipelines.engine.local import LocalEngine
from pipelines.engine.run_stage import run_stage
from pipelines.engine.task import Result, Task
from pipelines.night import Night
from warehouse.layout import Layout, ReleaseLayout
from warehouse.parquet import read_frame, write_table
from warehouse.schemas import EVENTS, ITEMS

KEEP: dict[str, Any] = {"mode": "synthetic", "subject_ids": "keep", "dates": "keep"}
NO_ITEMS = pl.DataFrame(pl.from_arrow(ITEMS.empty_table()))
BUCKETS = 2
# Those of EVENTS that are known before a bucket is aligned.
EVENT_COLUMNS = {
    name: dtype
    for name, dtype in pl.DataFrame(pl.from_arrow(EVENTS.empty_table())).schema.items()
    if name not in ("item_key", "conflict")
}


def csv_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """CSV as Python's csv module writes it; None is an empty field."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(["" if value is None else value for value in row] for row in rows)
    return out.getvalue()


def source_of(**tables: dict[str, Any]) -> Source:
    """A source named `test` with the subject in column `pid`."""
    return Source.model_validate({"name": "test", "subject": "pid", "tables": tables})


def convert(
    work: Path,
    source: Source,
    table: str,
    path: Path,
    deid: dict[str, Any] | None = None,
    private: Path | None = None,
    folder: Path | None = None,
    crosswalks: dict[str, Path] | None = None,
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """One raw file through the meds stage: its events in the order of the rows, and the account.

    `work` gets the segment, and the private folder unless that is given. Events have the columns of EVENTS that the
    stage knows, and `row`, the record's number. `folder` is where other tables lie, beside the file if not given.
    """
    config = DeidConfig.model_validate(deid or KEEP)
    key = load_key(config, private or work / "private", create=True)
    export = Export(folder or path.parent, source, crosswalks)
    result: Result = meds.run(
        {
            "source": source.model_dump(mode="json"),
            "export": str(export.path),
            "crosswalks": {name: str(file) for name, file in export.crosswalks.items()},
            "table": table,
            "label": table,
            "path": str(path),
            "deid": config.model_dump(mode="json"),
            "key": Deidentifier(config, key).key_fingerprint,
            "private": str(private or work / "private"),
            "buckets": BUCKETS,
            "segment": f"{table.replace('/', '-')}-{path.name}.segment",
            "line": "line",
            "joined": "",
            "rules": "rules",
        },
        work,
    )
    return _events_by_row(export, table, path, Deidentifier(config, key), work), result.counts


def _events_by_row(export: Export, table: str, path: Path, deid: Deidentifier, scratch: Path) -> pl.DataFrame:
    """What the segment holds, with the numbers of the records that it does not hold."""
    if table not in export.source.tables or export.source.tables[table].role == "reference":
        return pl.DataFrame(schema={**EVENT_COLUMNS, "row": pl.Int64})
    converter = Converter(export.source, table, deid)
    prepared = (converter.prepare(block) for block in export.open(path, table).blocks(seed=0))
    made = [
        converter.convert(attach_row) for attach_row in attach_rows(prepared, export, converter.rule.joins, scratch)
    ]
    events = pl.concat([pl.DataFrame(schema={**CONVERTED, "row": pl.Int64}), *(frame.drop("block") for frame in made)])
    kinds = [rule.kind for rule in converter.rule.events]

    def named(column: str, texts: Sequence[str | None]) -> pl.Series:
        return pl.Series(column, list(texts), dtype=pl.String).gather(events[column])

    # As a bucket is aligned: a letter without a unit is a flag, and a contradiction is written elsewhere.
    units = named("unit", converter.units.texts)
    numbers = [None if flag is None else flag % CONTRADICTS for flag in events["flag"]]
    flags = [
        number if number != LETTER else FLAGS.index("flag" if unit is None else "unit")
        for number, unit in zip(numbers, units, strict=True)
    ]
    events = events.with_columns(pl.Series("flag", flags, dtype=pl.UInt8))

    return (
        events.with_columns(
            named("code", converter.codes.texts),
            units,
            named("precision", PRECISIONS).alias("time_precision"),
            named("availability", AVAILABILITY),
            named("flag", FLAGS).alias("value_flag"),
            named("rule", kinds).alias("kind"),
            pl.lit(table).alias("source"),
        )
        .select(*EVENT_COLUMNS, "row", "row_hash", "rule")
        .sort("row", "rule", maintain_order=True)
    )


def convert_text(
    work: Path, rule: dict[str, Any], text: str | bytes, deid: dict[str, Any] | None = None, **tables: dict[str, Any]
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """`convert` on one table `t` of this text; other tables of the source must lie in `work`/raw already."""
    raw = work / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    path = raw / "t.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return convert(work, source_of(t=rule, **tables), "t", path, deid)


def quarantine_of(work: Path, counts: dict[str, Any]) -> list[tuple[int, str]]:
    """Record numbers and reasons, as the segment keeps them."""
    rows = read_frame_blob(work / counts["segment"], counts["blobs"]["quarantine"], QUARANTINE)
    return sorted(rows.rows())


def read_pieces(segment: Path, pieces: list[Piece]) -> pl.DataFrame:
    """Pieces of a segment as one frame, columns CONVERTED."""
    with SegmentReader(segment) as reader:
        frame = pl.from_arrow(pa.Table.from_batches(map(reader.blob, pieces), SCHEMA))
    assert isinstance(frame, pl.DataFrame)
    return frame.drop("block")


def plan_meds(work: Path, mapping: str, deid: dict[str, Any] | None = None) -> list[Task]:
    """The tasks of the meds stage over `work`/raw for a source written as YAML; segments go to `work`/warehouse."""
    (work / "source.yaml").write_text(mapping)
    config = RunConfig.model_validate(
        {"sources": [{"source": "source.yaml", "path": str(work / "raw")}], "deid": deid or {"mode": "synthetic"}}
    )
    layout = Layout(work / "warehouse")
    load_key(config.deid, layout.private, create=True)
    context = RunContext(LocalEngine(1), work, None, None)
    return meds.plan(Night(config, work, layout, context, Fingerprints(layout.private)))


def run_meds(work: Path, tasks: list[Task]) -> StageReport:
    """Runs or reuses them in this process."""
    with LocalEngine(1) as engine:
        return run_stage(meds.STAGE, tasks, RunContext(engine, work / "work", None, None))


def align_one(
    work: Path,
    segments: dict[str, dict[str, Any]],
    bucket: int,
    items: pl.DataFrame = NO_ITEMS,
    lags: dict[str, dict[str, int]] | None = None,
    former: Former | None = None,
    base: Path | None = None,
    bound: str | None = None,
) -> Result:
    """The align stage on one bucket; `segments` are accounts by segment file. Writes below `work`/release."""
    base = base or work / "release"
    write_table(ReleaseLayout(base).items(bucket), items, ITEMS, "items")
    found = [
        {
            "path": str(work / name),
            "source": counts["table"],
            "kinds": counts["kinds"],
            "rules": counts["rules"],
            "rows": counts["buckets"][str(bucket)]["rows"],
            "pieces": counts["buckets"][str(bucket)]["pieces"],
            "spans": counts["buckets"][str(bucket)]["spans"],
            "formers": [
                {"path": str(work / part["segment"]), "dead": part["dead"], **places}
                for part, places in zip(
                    counts["formers"], counts["buckets"][str(bucket)].get("formers", ()), strict=True
                )
            ],
            "codes": counts["blobs"]["codes"],
            "units": counts["blobs"]["units"],
        }
        for name, counts in segments.items()
        if str(bucket) in counts["buckets"]
    ]
    return align.run(
        {
            "bucket": bucket,
            "segments": found,
            "before": None,
            "trial_bound": bound,
            "lags": lags or {},
            "items": True,
        },
        base,
        former,
    )


def aligned_events(work: Path, bucket: int) -> pl.DataFrame:
    return read_frame(ReleaseLayout(work / "release").events(bucket))
