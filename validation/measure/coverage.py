"""How much of the events the vocabularies know: read from what the stage vocabulary counted, shown per namespace."""

from collections.abc import Iterable

import polars as pl

from validation.measure.reading import existing
from validation.report.cells import WITHHELD, Cells, Hidden
from validation.report.table import Column, Row, Table
from warehouse.layout import ReleaseLayout
from warehouse.schemas import SPLITS, read_frame

# Per profile, namespace and split: tokens, those of them that are unknown, and events that the profile leaves out.
COVERAGE = pl.Schema(
    {
        "profile": pl.String,
        "namespace": pl.String,
        "split": pl.String,
        "tokens": pl.Int64,
        "unknown": pl.Int64,
        "dropped": pl.Int64,
    }
)


def measure_coverage(tree: ReleaseLayout, profiles: Iterable[str]) -> pl.DataFrame:
    """One row per profile, namespace and split; columns of COVERAGE.

    Raises:
        TimeloomError: a file is damaged.
    """
    frames = [COVERAGE.to_frame()]
    for profile in profiles:
        for path in existing([tree.coverage(profile)]):
            counted = pl.col("count")
            outcome = pl.col("outcome")
            frames.append(
                read_frame(path)
                .group_by("namespace", "split")
                .agg(
                    counted.filter(outcome != "dropped").sum().alias("tokens"),
                    counted.filter(outcome == "unknown").sum().alias("unknown"),
                    counted.filter(outcome == "dropped").sum().alias("dropped"),
                )
                .with_columns(pl.lit(profile).alias("profile"))
                .select(pl.col(name).cast(kind) for name, kind in COVERAGE.items())
            )
    return pl.concat(frames).sort("profile", "namespace", "split")


def coverage_table(coverage: pl.DataFrame, cells: Cells) -> Table:
    """A line per profile and namespace: what became tokens, what did not, and what each split's tokens lack."""
    rows: list[Row] = []
    for (profile, namespace), part in coverage.group_by("profile", "namespace", maintain_order=True):
        of = {line["split"]: line for line in part.iter_rows(named=True)}
        row: Row = {
            "profile": str(profile),
            "namespace": str(namespace),
            "tokens": cells.rounded(int(part["tokens"].sum())),
            "dropped": cells.rounded(int(part["dropped"].sum())),
        }
        for split in SPLITS:
            tokens, unknown = (of[split]["tokens"], of[split]["unknown"]) if split in of else (0, 0)
            hidden = any(isinstance(cell, Hidden) for cell in cells.parts([unknown, tokens - unknown]))
            row[split] = WITHHELD if hidden else unknown / tokens if tokens else None
        rows.append(row)
    columns = [
        Column("profile", "Profile", "text"),
        Column("namespace", "Namespace", "text"),
        Column("tokens", "Tokens"),
        Column("dropped", "Events left out"),
        *(Column(split, f"Unknown in {split}", "share") for split in SPLITS),
    ]
    note = "Unknown: in no train patient, so [UNK]. Reasons for what is left out: vocabularies/*/coverage.parquet."
    if not cells.open:
        note += " Tokens and events are cut to two figures."
    return Table("coverage", "Vocabulary", columns, rows, note)
