"""What a simulated hospital says of itself: its tables, and the truth of what was planted."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import polars as pl

TIME = "%Y-%m-%d %H:%M:%S"


def tree_hash(root: Path) -> str:
    """Of every file below a folder, name and content."""
    digest = hashlib.sha256()
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def table(root: Path, name: str) -> pl.DataFrame:
    """A table of the export, all columns text."""
    return pl.read_csv(root / "tables" / f"{name}.csv", infer_schema=False)


def signal_of(root: Path, *kinds: str) -> pl.DataFrame:
    """truth/signal.csv; of some kinds where they are named."""
    signal = pl.read_csv(root / "truth" / "signal.csv", schema_overrides={"patient_id": pl.String})
    return signal.filter(pl.col("image_kind").is_in(kinds)) if kinds else signal


def faults_of(root: Path) -> dict[str, dict[str, Any]]:
    """truth/faults.json by the faults' names."""
    return {fault["name"]: fault for fault in json.loads((root / "truth" / "faults.json").read_text())}


def moments(root: Path) -> pl.DataFrame:
    """When anything in the tables happens or becomes known: patient_id and `at`, as text."""
    columns = {
        "encounters": ("start_time", "end_time"),
        "medications": ("start_time",),
        "labs": ("collected_time", "result_time"),
        "deaths": ("death_time",),
    }
    found = [
        table(root, name).select("patient_id", pl.col(column).alias("at"))
        for name, names in columns.items()
        for column in names
    ]
    # Facts that are known to the day have the time of the day's end.
    found += [
        table(root, name).select("patient_id", (pl.col(column) + " 23:59:59").alias("at"))
        for name, column in (("diagnoses", "recorded_date"), ("procedures", "procedure_date"))
    ]
    return pl.concat(found).drop_nulls().filter(pl.col("at").str.to_datetime(TIME, strict=False).is_not_null())


def not_the_very_next(root: Path, signal: Iterable[dict[str, Any]]) -> list[str]:
    """Ids of images between which and their finding's result something else happens or becomes known."""
    every = moments(root).partition_by("patient_id", as_dict=True)
    return [
        row["image_id"]
        for row in signal
        if sorted(
            every[row["patient_id"],].filter(
                (pl.col("at") >= row["image_time"]) & (pl.col("at") <= row["finding_result_time"])
            )["at"]
        )
        != [row["finding_time"], row["finding_result_time"]]
    ]
