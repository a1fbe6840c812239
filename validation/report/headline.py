"""What stands at the top of the report: how much the release holds, and what of the raw data it does not."""

import polars as pl

from extractors.items import WAITING
from validation.measurements import Measurements
from validation.report.cells import Cells
from warehouse.shards.packs import DEFAULT_PLAN

USABLE, REFUSED = "ok", "refused_"


def _tokens(measurements: Measurements) -> int:
    """Tokens of the profiles' default plans: further plans hold the same tokens again."""
    shards = measurements.areas["shards"]
    return 0 if shards.is_empty() else int(shards.filter(shards["plan"] == DEFAULT_PLAN)["tokens_shards"].sum())


def headline(measurements: Measurements, cells: Cells) -> list[tuple[str, str]]:
    """Names and totals, in words where a part of a total may be hidden."""
    items = measurements.areas["items"]
    totals = {
        "patients": int(measurements.areas["events"]["subjects"].item()),
        "events": int(measurements.areas["events"]["rows"].item()),
        "usable images": int(items.filter(items["verdict"] == USABLE)["items"].sum()),
        "tokens": _tokens(measurements),
    }
    return [(name, cells.about(value)) for name, value in totals.items()]


def left_out(measurements: Measurements, cells: Cells) -> list[tuple[str, str]]:
    """Of raw rows and of images, what the release cannot use: the table of the report that says why, and a sentence."""
    rows = measurements.outcomes.filter((pl.col("outcome") == "quarantined") & (pl.col("rows") > 0))
    total, duplicates = (int(part["rows"].sum()) for part in (rows, rows.filter(pl.col("reason") == "duplicate_row")))
    sentence = f"Raw rows in quarantine: {cells.about(total)}"
    if duplicates:
        sentence += f", of which duplicates of other rows: {cells.about(duplicates)}"
    said = [("quarantine", sentence + ".")]
    items = measurements.areas["items"]
    if items["items"].sum():
        refused, usable = items["verdict"].str.starts_with(REFUSED), items["verdict"] == USABLE
        waiting = items["verdict"] == WAITING
        parts = {"Images that failed": ~(refused | usable | waiting), "images that were refused": refused}
        if waiting.any():
            parts["images that wait for their vectors"] = waiting
        counted = [f"{name}: {cells.about(int(items.filter(of)['items'].sum()))}" for name, of in parts.items()]
        said.append(("verdicts", "; ".join(counted) + "."))
    return said
