"""Small raw tables and the stages that read them, run in this process."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from extractors.deid import DeidConfig, load_key
from extractors.source import Source
from pipelines import align, meds
from pipelines.engine import Result
from warehouse.layout import ReleaseLayout
from warehouse.schemas import ITEMS, read_frame, write_table

KEEP: dict[str, Any] = {"mode": "synthetic", "subject_ids": "keep", "dates": "keep"}
NO_ITEMS = pl.DataFrame(pl.from_arrow(ITEMS.empty_table()))
BUCKETS = 2


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
    first_row: int = 0,
    private: Path | None = None,
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """One raw file through the meds stage: the segment's rows and the account.

    `work` gets the segment, and the private folder unless that is given.
    """
    config = DeidConfig.model_validate(deid or KEEP)
    load_key(config, private or work / "private", create=True)
    result: Result = meds.run(
        {
            "source": source.model_dump(mode="json"),
            "table": table,
            "label": table,
            "folder": str(path.parent),
            "path": str(path),
            "first_row": first_row,
            "deid": config.model_dump(mode="json"),
            "private": str(private or work / "private"),
            "buckets": BUCKETS,
            "segment": f"{table.replace('/', '-')}-{first_row}.parquet",
        },
        work,
    )
    (segment,) = result.files
    return pl.read_parquet(work / segment).sort("row", maintain_order=True), result.counts


def convert_text(
    work: Path, rule: dict[str, Any], text: str | bytes, deid: dict[str, Any] | None = None, **tables: dict[str, Any]
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """`convert` on one table `t` of this text; other tables of the source must lie in `work`/raw already."""
    raw = work / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    path = raw / "t.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return convert(work, source_of(t=rule, **tables), "t", path, deid)


def align_one(work: Path, segments: dict[str, dict[str, Any]], bucket: int, items: pl.DataFrame = NO_ITEMS) -> Result:
    """The align stage on one bucket; `segments` are accounts by segment file. Writes below `work`/release."""
    base = work / "release"
    write_table(ReleaseLayout(base).items(bucket), items, ITEMS, "items")
    found = [
        [str(work / name), counts["buckets"][str(bucket)]["groups"]]
        for name, counts in segments.items()
        if str(bucket) in counts["buckets"]
    ]
    return align.run({"bucket": bucket, "segments": found, "limit": None}, base)


def aligned_events(work: Path, bucket: int) -> pl.DataFrame:
    return read_frame(ReleaseLayout(work / "release").events(bucket))
