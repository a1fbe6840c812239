"""How much of the events the vocabularies know: read from what the stage vocabulary counted, shown per namespace."""

from collections.abc import Iterable

import polars as pl

from validation.measure.reading import existing
from warehouse.layout import ReleaseLayout
from warehouse.parquet import read_frame

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
