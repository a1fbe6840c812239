"""meds: raw file → segment, its events already de-identified, grouped by bucket and indexed.

A segment is one Parquet file whose row groups hold one bucket each; the record beside it says which, and what became
of every raw row. It is reused as long as the raw file, the tables it is joined with and the rules stand.
"""

from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from extractors.convert import Account, Converter
from extractors.deid import DeidConfig, Deidentifier, load_key
from extractors.source import Source, load_source
from extractors.tables import ENDINGS, RawFile, load_lookup, table_files
from pipelines.config import RunConfig
from pipelines.engine import Result, Stage, StageReport, Task
from pipelines.fingerprints import Fingerprints
from warehouse.errors import TimeloomError
from warehouse.files import atomic_write, sha256_json
from warehouse.hashing import bucket_of
from warehouse.layout import Layout
from warehouse.schemas import EVENTS, conform

STAGE = Stage("meds", 1, "pipelines.meds:run")
SEGMENT = pa.schema([*EVENTS, pa.field("row", pa.int64()), pa.field("row_hash", pa.uint64())])


def plan(config: RunConfig, base: Path, layout: Layout, fingerprints: Fingerprints) -> list[Task]:
    """One task per raw file.

    Raises:
        TimeloomError: a table is missing.
    """
    deid = Deidentifier(config.deid, load_key(config.deid, layout.private))
    tasks = []
    for number, one in enumerate(config.sources):
        source = load_source(one.source, base)
        if not one.path.is_dir():
            raise TimeloomError(
                f"the folder of source {source.name} does not exist: {one.path}", remedy="mend sources.path"
            )
        for table, files in _tables(source, one.path, deid).items():
            joined = [join.table for join in source.tables[table].joins] if table in source.tables else []
            inputs = [fingerprints.of(path) for name in joined for path in table_files(one.path, name)]
            rule = source.tables[table].model_dump(mode="json") if table in source.tables else None
            label = table if len(config.sources) == 1 else f"{source.name}/{table}"
            for part, path in enumerate(files):
                fingerprint = sha256_json(
                    [STAGE.name, STAGE.version, pl.__version__, rule, source.subject, source.null_values]
                    + [config.buckets, config.deid.model_dump(), deid.key_fingerprint]
                    + [fingerprints.of(path), inputs, label, number, part]
                )
                tasks.append(
                    Task(
                        stage=STAGE.name,
                        function=STAGE.function,
                        key=f"{number}-{table}-{part}",
                        base=str(layout.segments),
                        record=str(layout.segments / f"{fingerprint[:24]}.json"),
                        params={
                            "source": source.model_dump(mode="json"),
                            "table": table,
                            "label": label,
                            "folder": str(one.path),
                            "path": str(path),
                            "first_row": (number << 52) + (part << 40),
                            "deid": config.deid.model_dump(mode="json"),
                            "private": str(layout.private),
                            "buckets": config.buckets,
                            "segment": f"{fingerprint[:24]}.parquet",
                        },
                        fingerprint=fingerprint,
                    )
                )
    return tasks


def _tables(source: Source, folder: Path, deid: Deidentifier) -> dict[str, list[Path]]:
    """Files by table: every mapped one, and every one that lies there and no rule mentions.

    An unmapped file is called by a hash: its name is nobody's choice here, and may be a patient's.
    """
    found: dict[str, list[Path]] = {}
    for table, rule in source.tables.items():
        files = table_files(folder, table)
        if not files and not rule.optional:
            raise TimeloomError(
                f"source {source.name} lacks the table {table}", remedy="export it, or mark it `optional: true`"
            )
        if files:
            found[table] = files
    known = {path for files in found.values() for path in files}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name.endswith(ENDINGS) and path not in known:
            found[f"unmapped-{deid.item_key(str(path.relative_to(folder)))[:8]}"] = [path]
    return found


class _SegmentWriter:
    """Row groups of one bucket each, and their index."""

    def __init__(self, path: Path, buckets: int) -> None:
        self.buckets = buckets
        self.writer = pq.ParquetWriter(path, SEGMENT, compression="zstd", write_page_checksum=True)
        self.groups: dict[int, list[int]] = defaultdict(list)
        self.rows: dict[int, int] = defaultdict(int)
        self.hashes: dict[int, npt.NDArray[np.uint64]] = defaultdict(lambda: np.zeros(2, np.uint64))
        self.written = 0

    def write(self, events: pl.DataFrame) -> None:
        if events.is_empty():
            return
        bucket = bucket_of(events["subject_id"].to_numpy(), self.buckets)
        order = np.argsort(bucket, kind="stable")
        sorted_events = events[order]
        # With the raw row's hash: whether two rows are duplicates may hang on a column that no rule reads.
        content = sorted_events.select(*EVENTS.names, "row_hash")
        hashes = np.stack([content.hash_rows(seed=seed).to_numpy() for seed in (1, 2)])
        table = conform(sorted_events, SEGMENT, "a segment")
        numbers, starts = np.unique(bucket[order], return_index=True)
        for number, start, end in zip(numbers.tolist(), starts, [*starts[1:], len(events)], strict=True):
            self.writer.write_table(table.slice(start, end - start))
            self.groups[number].append(self.written)
            self.rows[number] += int(end - start)
            # A sum, so that the order of the rows in the raw file does not matter.
            self.hashes[number] += hashes[:, start:end].sum(axis=1, dtype=np.uint64)
            self.written += 1

    def index(self) -> dict[str, Any]:
        return {
            str(number): {
                "groups": self.groups[number],
                "rows": self.rows[number],
                "hash": "".join(f"{int(half):016x}" for half in self.hashes[number]),
            }
            for number in sorted(self.groups)
        }


def run(params: dict[str, Any], base: Path) -> Result:
    """Converts one raw file."""
    source, table, folder = Source.model_validate(params["source"]), params["table"], Path(params["folder"])
    deid_config = DeidConfig.model_validate(params["deid"])
    deid = Deidentifier(deid_config, load_key(deid_config, Path(params["private"])))
    raw = RawFile(Path(params["path"]), params["label"], source.null_values)
    target = base / params["segment"]
    with atomic_write(target) as temporary:
        segment = _SegmentWriter(temporary, params["buckets"])
        with segment.writer:
            if table in source.tables:
                account = _convert(source, table, folder, raw, deid, params["first_row"], segment)
            else:
                account = Account(raw=sum(len(block) for block in raw.blocks()))
                account.quarantined["unmapped_table"] = account.raw
    account.raw += raw.malformed
    account.quarantined["malformed_row"] = raw.malformed
    counts = {"table": params["label"], "source": source.name, "segment": params["segment"], "buckets": segment.index()}
    counts |= asdict(account) | {
        "quarantined": {reason: rows for reason, rows in account.quarantined.items() if rows},
        "partial": {reason: rows for reason, rows in account.partial.items() if rows},
    }
    return Result({params["segment"]: sum(segment.rows.values())}, counts)


def _convert(
    source: Source,
    table: str,
    folder: Path,
    raw: RawFile,
    deid: Deidentifier,
    first_row: int,
    segment: _SegmentWriter,
) -> Account:
    raw.require(source.needed_columns(table))
    rule = source.tables[table]
    lookups = [load_lookup(folder, source, join.table, join.key, join.columns) for join in rule.joins]
    converter = Converter(source, table, deid, lookups, first_row, raw.table)
    for block in raw.blocks():
        segment.write(converter.convert(block))
    return converter.account


def check_times(report: StageReport, limit: float) -> None:
    """Stops the run where too many times of a column cannot be read.

    Raises:
        TimeloomError: names table and column, and how many.
    """
    seen: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for entry in report.entries.values():
        for column, (present, unreadable) in entry.counts["times"].items():
            total = seen[entry.counts["table"], column]
            total[0] += present
            total[1] += unreadable
    for (table, column), (present, unreadable) in seen.items():
        if unreadable > limit * present:
            raise TimeloomError(
                f"table {table}: {unreadable} of {present} times in {column} cannot be read, the limit is {limit:.2%}",
                remedy="declare their format in the source's YAML, or raise limits.unparsable_times",
            )


def read_bucket(path: Path, groups: list[int]) -> pl.DataFrame:
    """One bucket's rows of a segment."""
    frame = pl.from_arrow(pq.ParquetFile(path, page_checksum_verification=True).read_row_groups(groups))
    assert isinstance(frame, pl.DataFrame)
    return frame
