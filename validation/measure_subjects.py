"""What is measured of subjects: how they are split, and how alike the splits are. Aggregates leave this module."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from validation.reading import collect, existing, gather, scan
from warehouse.layout import ReleaseLayout
from warehouse.schemas import SPLIT_LEDGER, SUBJECTS
from warehouse.tokens import TokenType

MODALITY_SETS = ("structured only", "CT", "slide", "CT and slide")
STRUCTURED, IMAGING = "structured", "imaging"
QUANTILES = {"p1": 0.01, "q1": 0.25, "median": 0.5, "q3": 0.75, "p99": 0.99}
KS_COEFFICIENT = 1.949  # of the two-sample Kolmogorov-Smirnov statistic at alpha = 0.001


def read_assignments(tree: ReleaseLayout, scheme: str) -> pl.DataFrame:
    """`subject_id`, `split` of the append-only ledger; it may hold subjects that are no longer in the data."""
    return gather([tree.split_ledger(scheme)], SPLIT_LEDGER, ["subject_id", "split"])


def disagreements(tree: ReleaseLayout, scheme: str, subjects: pl.DataFrame) -> dict[str, int]:
    """Counts of subjects of the data without a split, in two, or published with another than the ledger's.

    Args:
        subjects: `subject_id`, at least once for each subject of the data.
    """
    assigned = read_assignments(tree, scheme)
    present = subjects.select("subject_id").unique()
    here = assigned.join(present, on="subject_id", how="semi")
    published = (
        collect(scan(tree.subject_splits).select("subject_id", "split"), tree.subject_splits)
        if tree.subject_splits.is_file()
        else here.clear()
    )
    published = published.join(present, on="subject_id", how="semi")
    only_one = pl.concat(
        [here.join(published, on=here.columns, how="anti"), published.join(here, on=here.columns, how="anti")]
    )
    twice = here.group_by("subject_id").agg(pl.col("split").len().alias("splits")).filter(pl.col("splits") > 1)
    return {
        "subjects_without_split": present.join(assigned, on="subject_id", how="anti").height,
        "subjects_in_two_splits": twice.height,
        # a subject without a split, or with two, is counted above, not here again
        "published_differently": only_one.join(assigned, on="subject_id", how="semi")
        .join(twice, on="subject_id", how="anti")["subject_id"]
        .n_unique(),
    }


def read_subjects(tree: ReleaseLayout, scheme: str, profile: str | None, buckets: int) -> pl.DataFrame:
    """One row per subject: `split`, `set`, `structured`, `tokens` (lengths), `mean_interval_days`.

    Lengths are in tokens of `profile`; in events where a release has no profile.
    """
    statistics = gather((tree.subjects(bucket) for bucket in range(buckets)), SUBJECTS, SUBJECTS.names)
    ct, wsi = pl.col("ct") > 0, pl.col("wsi") > 0
    kind = pl.when(ct & wsi).then(3).when(wsi).then(2).when(ct).then(1).otherwise(0)
    frame = statistics.with_columns(
        kind.replace_strict(dict(enumerate(MODALITY_SETS)), return_dtype=pl.String).alias("set")
    ).join(read_assignments(tree, scheme).unique("subject_id"), on="subject_id", how="left")
    if profile is None:
        images = pl.col("ct") + pl.col("wsi")
        return frame.with_columns((pl.col("events") - images).alias("structured"), pl.col("events").alias("tokens"))
    paths = existing(tree.timeline(profile, bucket) for bucket in range(buckets))
    lengths = [collect(_lengths(path), path) for path in paths]
    empty = pl.DataFrame(schema={"subject_id": pl.Int64, "structured": pl.Int64, "tokens": pl.Int64})
    return frame.join(pl.concat([empty, *lengths]), on="subject_id", how="left").with_columns(
        pl.col("structured", "tokens").fill_null(0)
    )


def _lengths(path: Path) -> pl.LazyFrame:
    return (
        scan(path)
        .group_by("subject_id")
        .agg(
            (pl.col("type") != TokenType.IMAGE).sum().cast(pl.Int64).alias("structured"),
            pl.len().cast(pl.Int64).alias("tokens"),
        )
    )


def ks_statistic(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> float:
    """The two-sample Kolmogorov-Smirnov distance of two samples (n,), (m,); 0 where one is empty."""
    if not len(first) or not len(second):
        return 0.0
    grid = np.concatenate([first, second])
    below = [np.searchsorted(np.sort(sample), grid, side="right") / len(sample) for sample in (first, second)]
    return float(np.abs(below[0] - below[1]).max())


def measure_splits(
    subjects: pl.DataFrame, fractions: Mapping[str, float | None], disagreement: Mapping[str, int]
) -> pl.DataFrame:
    """One row per split of the scheme, in its order; compared with the first one, which is train.

    Columns: subjects, share, target, share_z (deviation in standard errors, null without a target), length_ks and
    length_ks_ratio (to the critical value at alpha 0.001), set_z (the largest deviation of a modality set's share
    from train's, in standard errors), and `disagreements` on every row.
    """
    total = max(subjects.filter(pl.col("split").is_not_null()).height, 1)
    parts = {name: subjects.filter(pl.col("split") == name) for name in fractions}
    train = next(iter(parts.values()))
    rows = []
    for name, part in parts.items():
        share, target = part.height / total, fractions[name]
        distance = ks_statistic(train["tokens"].to_numpy(), part["tokens"].to_numpy())
        harmonic = part.height * train.height / max(part.height + train.height, 1)
        rows.append(
            {
                "split": name,
                "subjects": part.height,
                "share": share,
                "target": target,
                "share_z": _share_deviation(share, target, total),
                "length_ks": distance,
                "length_ks_ratio": distance * float(np.sqrt(harmonic)) / KS_COEFFICIENT,
                "set_z": max(_set_deviation(train, part, kind) for kind in MODALITY_SETS),
                **disagreement,
            }
        )
    return pl.DataFrame(rows, schema_overrides={"target": pl.Float64, "share_z": pl.Float64})


def _share_deviation(share: float, target: float | None, total: int) -> float | None:
    """|z| of a share of `total` subjects against its target; None without a target."""
    if target is None:
        return None
    return abs(share - target) / max(float(np.sqrt(target * (1 - target) / total)), 1e-9)


def _set_deviation(train: pl.DataFrame, part: pl.DataFrame, kind: str) -> float:
    """|z| of two proportions of a modality set, pooled; 0 where either has no subjects."""
    if not train.height or not part.height:
        return 0.0
    first, second = (frame.filter(pl.col("set") == kind).height for frame in (train, part))
    pooled = (first + second) / (train.height + part.height)
    error = float(np.sqrt(pooled * (1 - pooled) * (1 / train.height + 1 / part.height)))
    return abs(first / train.height - second / part.height) / error if error else 0.0


def _describe(column: str) -> list[pl.Expr]:
    value = pl.col(column)
    return [
        value.count().cast(pl.Int64).alias(f"{column}_n"),
        value.mean().alias(f"{column}_mean"),
        value.std().alias(f"{column}_sd"),
        *(value.quantile(at, "linear").alias(f"{column}_{name}") for name, at in QUANTILES.items()),
    ]


def measure_cohorts(subjects: pl.DataFrame, splits: Sequence[str]) -> pl.DataFrame:
    """Tables A1 and A2 of MEHRT in form: per population and split, patients, share, tokens, length and interval.

    `structured`: all subjects, their structured tokens. `imaging`: subjects with an image, structured and image
    tokens. The interval is each subject's mean over consecutive distinct times, in days.
    """
    populations = {
        STRUCTURED: subjects.with_columns(pl.col("structured").alias("length")),
        IMAGING: subjects.filter(pl.col("set") != MODALITY_SETS[0]).with_columns(pl.col("tokens").alias("length")),
    }
    frames = []
    for name, population in populations.items():
        known = population.filter(pl.col("split").is_in(list(splits)))
        order = pl.DataFrame({"split": list(splits)})
        described = known.group_by("split").agg(
            pl.len().cast(pl.Int64).alias("subjects"),
            (pl.len() / max(known.height, 1)).alias("share"),
            pl.col("length").sum().cast(pl.Int64).alias("tokens"),
            *_describe("length"),
            *_describe("mean_interval_days"),
        )
        joined = order.join(described, on="split", how="left", maintain_order="left").with_columns(
            pl.col("subjects", "tokens", "share", "length_n", "mean_interval_days_n").fill_null(0)
        )
        frames.append(joined.select(pl.lit(name).alias("population"), pl.all()))
    return pl.concat(frames)


def measure_sets(subjects: pl.DataFrame, splits: Sequence[str]) -> pl.DataFrame:
    """Figure A1 in form: `split`, `set`, `subjects`, `share` within the split; every combination, zeros included."""
    grid = pl.DataFrame({"split": list(splits)}).join(pl.DataFrame({"set": list(MODALITY_SETS)}), how="cross")
    counted = subjects.group_by("split", "set").agg(pl.len().cast(pl.Int64).alias("subjects"))
    return (
        grid.join(counted, on=["split", "set"], how="left", maintain_order="left")
        .with_columns(pl.col("subjects").fill_null(0))
        .with_columns((pl.col("subjects") / pl.col("subjects").sum().over("split")).fill_nan(0.0).alias("share"))
    )


def measure_histogram(subjects: pl.DataFrame, splits: Sequence[str]) -> pl.DataFrame:
    """Subjects by length: `split`, `low`, `subjects`, `share`; a bin runs from `low` to twice that, less one token."""
    power = pl.col("tokens").clip(lower_bound=1).log(2).add(1e-9).floor().cast(pl.Int64)
    binned = subjects.filter(pl.col("split").is_in(list(splits)) & (pl.col("tokens") > 0))
    counted = binned.group_by("split", power.alias("power")).agg(pl.len().cast(pl.Int64).alias("subjects"))
    if counted.is_empty():
        return pl.DataFrame(schema={"split": pl.String, "low": pl.Int64, "subjects": pl.Int64, "share": pl.Float64})
    low, high = (
        int(value) for value in counted.select(pl.col("power").min(), pl.col("power").max().alias("high")).row(0)
    )
    grid = pl.DataFrame({"split": list(splits)}).join(pl.DataFrame({"power": range(low, high + 1)}), how="cross")
    return (
        grid.join(counted, on=["split", "power"], how="left", maintain_order="left")
        .with_columns(pl.col("subjects").fill_null(0))
        .with_columns((pl.col("subjects") / pl.col("subjects").sum().over("split")).fill_nan(0.0).alias("share"))
        .select("split", pl.lit(2, pl.Int64).pow(pl.col("power")).cast(pl.Int64).alias("low"), "subjects", "share")
    )
