"""What is measured of subjects, split by split: Tables A1 and A2, Figure A1, lengths. Gives aggregates only."""

from collections.abc import Iterable, Sequence
from itertools import combinations

import polars as pl

from pipelines.splitting.strata import modalities_of
from validation.measure.measures import Measures
from validation.measure.reading import gather
from warehouse.layout import ReleaseLayout
from warehouse.modalities import INDEXED, title_of
from warehouse.schemas import SUBJECTS
from warehouse.tokens import TokenType

# The sets of modalities that a subject can have items of, the smaller first.
MODALITY_SETS = (
    "structured only",
    *(
        " and ".join(map(title_of, names))
        for size in range(1, len(INDEXED) + 1)
        for names in combinations(sorted(INDEXED), size)
    ),
)
STRUCTURED, IMAGING = "structured", "imaging"
QUANTILES = {"min": 0.0, "p1": 0.01, "q1": 0.25, "median": 0.5, "q3": 0.75, "p99": 0.99, "max": 1.0}
# The papers do not define their "mean time interval", so each reading has its name.
INTERVALS = {
    "interval_tokens": "a patient's mean over consecutive tokens; tokens of one time are 0 days apart",
    "interval_times": "a patient's mean over consecutive distinct times",
    "interval_pooled": "every gap between a patient's consecutive distinct times, all patients' gaps together",
}
# Of each population, the tokens that its lengths and intervals are about.
KINDS = {STRUCTURED: (TokenType.STRUCTURED,), IMAGING: (TokenType.STRUCTURED, TokenType.IMAGE)}
DAY_US, DAY_S = 86_400_000_000, 86_400


def set_of(modalities: Sequence[str]) -> pl.Expr:
    """The modality set of a subject of SUBJECTS in words, such as `CT and slide`."""
    present = [pl.when(pl.col(name) > 0).then(pl.lit(title_of(name))) for name in modalities]
    named = pl.concat_str(present, separator=" and ", ignore_nulls=True)
    return pl.when(named == "").then(pl.lit(MODALITY_SETS[0])).otherwise(named).alias("set")


def read_sets(tree: ReleaseLayout, buckets: Iterable[int]) -> pl.DataFrame:
    """The statistics of subjects, SUBJECTS, with `set`, in which modalities they have items."""
    statistics = gather(map(tree.subjects, buckets), SUBJECTS, SUBJECTS.names)
    return statistics.with_columns(set_of(modalities_of(statistics)))


def read_subjects(tree: ReleaseLayout, profile: str | None, buckets: int, measures: Measures) -> pl.DataFrame:
    """One row per subject: `set`; `structured` and `tokens`, its lengths; `interval`, in days, what splits are compared
    by; and of each population `interval_tokens_<population>` and `interval_times_<population>`.

    Lengths are in tokens of `profile`; in events where a release has no profile, and then only the interval over
    distinct times is known.
    """
    frame = read_sets(tree, range(buckets))
    if profile is None:
        images = pl.sum_horizontal(modalities_of(frame.drop("set")))
        unknown = [pl.lit(None, pl.Float64).alias(f"interval_tokens_{name}") for name in KINDS]
        known = [
            pl.col("mean_interval_days").alias(name) for name in ("interval", *map("interval_times_{}".format, KINDS))
        ]
        return frame.with_columns(
            (pl.col("events") - images).alias("structured"), pl.col("events").alias("tokens"), *unknown, *known
        )
    return (
        frame.join(measures.of("lengths", profile), on="subject_id", how="left")
        .with_columns(pl.col("structured", "tokens").fill_null(0))
        .with_columns(pl.col(f"interval_tokens_{STRUCTURED}").alias("interval"))
    )


def measure_gaps(measures: Measures, profile: str | None) -> pl.DataFrame:
    """Pooled gaps: `population`, `split`, and `interval_pooled_` n, mean, sd and quantiles, in days.

    Quantiles are those of gaps in whole seconds, in whole minutes from one day on, so that distinct ones stay few.

    They are those of the primary scheme's splits; there are none without a profile.
    """
    counted = measures.of("gaps", profile or "")
    frames = []
    for population in KINDS:
        of_population = counted.filter(pl.col("population") == population).drop("population")
        whole = of_population.group_by("split", "seconds").sum().sort("split", "seconds")
        number = pl.col("gaps").sum()
        # A gap is its seconds and a rest, s + r; its square is s² + 2sr + r².
        seconds, rest, gaps = pl.col("seconds"), pl.col("rest") / 1e6, pl.col("gaps")
        mean = (seconds * gaps + rest).sum() / DAY_S / number
        squares = (seconds.cast(pl.Float64) * (seconds * gaps + 2 * rest) + pl.col("squares") / 1e6).sum() / DAY_S**2
        spread = ((squares - number * mean**2).clip(0) / (number - 1)).sqrt()
        reached = pl.col("gaps").cum_sum()
        frames.append(
            whole.group_by("split", maintain_order=True)
            .agg(
                number.alias("n"),
                mean.alias("mean"),
                pl.when(number > 1).then(spread).alias("sd"),
                *(
                    (pl.col("seconds").filter(reached >= (q * number).ceil().clip(1)).first() / DAY_S).alias(name)
                    for name, q in QUANTILES.items()
                ),
            )
            .select(
                pl.lit(population).alias("population"),
                "split",
                pl.all().exclude("split").name.prefix("interval_pooled_"),
            )
        )
    return pl.concat(frames)


def _describe(column: str, name: str) -> list[pl.Expr]:
    value = pl.col(column)
    return [
        value.count().cast(pl.Int64).alias(f"{name}_n"),
        value.mean().alias(f"{name}_mean"),
        value.std().alias(f"{name}_sd"),
        *(value.quantile(at, "linear").alias(f"{name}_{label}") for label, at in QUANTILES.items()),
    ]


def measure_cohorts(subjects: pl.DataFrame, splits: Sequence[str], gaps: pl.DataFrame | None = None) -> pl.DataFrame:
    """Tables A1 and A2 of MEHRT in form: per population and split, patients, share, tokens, length and intervals.

    `structured`: all subjects, their structured tokens. `imaging`: subjects with an image, structured and image
    tokens. The intervals are those of INTERVALS, in days; nothing is clipped.

    Args:
        gaps: of measure_gaps; without it nothing is said of pooled gaps.
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
            *_describe("length", "length"),
            *_describe(f"interval_tokens_{name}", "interval_tokens"),
            *_describe(f"interval_times_{name}", "interval_times"),
        )
        joined = order.join(described, on="split", how="left", maintain_order="left").with_columns(
            pl.col("^(subjects|tokens|share|.*_n)$").fill_null(0)
        )
        frames.append(joined.select(pl.lit(name).alias("population"), pl.all()))
    whole = pl.concat(frames)
    statistics = ["n", "mean", "sd", *QUANTILES]
    if gaps is None:
        numbers = [pl.lit(None, pl.Float64).alias(f"interval_pooled_{name}") for name in statistics[1:]]
        return whole.with_columns(pl.lit(0, pl.Int64).alias("interval_pooled_n"), *numbers)
    return whole.join(gaps, on=["population", "split"], how="left", maintain_order="left").with_columns(
        pl.col("interval_pooled_n").fill_null(0)
    )


def measure_sets(subjects: pl.DataFrame, splits: Sequence[str]) -> pl.DataFrame:
    """Figure A1 in form: `split`, `set`, `subjects`, `share` within the split; every combination, zeros included."""
    kinds = dict.fromkeys([*MODALITY_SETS, *subjects["set"].unique().drop_nulls().sort().to_list()])
    grid = pl.DataFrame({"split": list(splits)}).join(pl.DataFrame({"set": list(kinds)}), how="cross")
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
