"""What a plan's shards must hold, worked out from the timelines alone, without the code of the packing stage."""

import math

import polars as pl

from validation.measure.cohort.splits import ks_statistic
from warehouse.manifest import PlanEntry

KS_CRITICAL = 1.95  # over the root of the sample's size: alpha 0.001, for samples of 10 and more


def expected_tokens(timelines: pl.DataFrame, losses: pl.DataFrame, name: str, plan: PlanEntry) -> pl.DataFrame:
    """Every subject of the timelines under a plan, whatever its split or budget.

    Columns: subject_id, given (tokens of the timeline), tokens (that the plan keeps), loss (of these, those that bear
    loss; 0 without budgets), offset (kept tokens before the first one packed).

    Args:
        timelines: `subject_id`, `given`, `images`, one row a subject.
        losses: `plan`, `subject_id`, `loss`.
    """
    left = pl.col("given") if plan.images else pl.col("given") - pl.col("images")
    left = pl.when(pl.col("images") > 0).then(left).otherwise(0) if plan.subjects == "imaging" else left
    packed = left.clip(upper_bound=plan.context) if plan.mode == "last_n" else left
    of_plan = losses.filter(pl.col("plan") == name).select("subject_id", "loss")
    counted = timelines.join(of_plan, on="subject_id", how="left") if plan.loss else timelines
    loss = pl.col("loss").fill_null(0) if plan.loss else pl.lit(0, pl.Int64)
    return counted.select(
        "subject_id",
        "given",
        packed.cast(pl.Int64).alias("tokens"),
        loss.alias("loss"),
        (left - packed).cast(pl.Int64).alias("offset"),
    )


def with_tiers(expected: pl.DataFrame, plan: PlanEntry) -> pl.DataFrame:
    """One split's subjects with the tier that each must be in; the number of budgets for none, 0 without budgets.

    Args:
        expected: with `order`. A subject is in budget k if those before it have not filled it.
    """
    ordered = expected.sort("order", "subject_id")
    before = pl.col("loss").cum_sum() - pl.col("loss")
    filled = [(before >= budget.asked).cast(pl.Int32) for budget in plan.budgets]
    return ordered.with_columns(pl.sum_horizontal(pl.lit(0, pl.Int32), *filled).alias("tier"))


def budget_differences(tiered: pl.DataFrame, plan: PlanEntry) -> int:
    """Budgets whose numbers in the manifest are not those of the subjects that they must hold."""
    wrong = 0
    for number, budget in enumerate(plan.budgets):
        held = tiered.filter(pl.col("tier") <= number)
        numbers = (int(held["loss"].sum()), int(held["tokens"].sum()), held.height, (number + 1) * plan.groups)
        wrong += numbers != (budget.tokens, budget.all_tokens, budget.subjects, budget.files)
    return wrong


def budget_ks_ratio(tiered: pl.DataFrame, plan: PlanEntry) -> float | None:
    """How far the lengths of timelines in token budgets are from those of train; None without budgets.

    The largest Kolmogorov-Smirnov distance of a budget's subjects to all that the plan keeps, divided by the distance
    that a random sample of that size exceeds once in a thousand times.
    """
    everyone = tiered["tokens"].to_numpy()
    held = [tiered.filter(pl.col("tier") <= number)["tokens"].to_numpy() for number in range(len(plan.budgets))]
    ratios = [
        ks_statistic(lengths, everyone) * math.sqrt(len(lengths)) / KS_CRITICAL for lengths in held if len(lengths)
    ]
    return max(ratios, default=None)
