"""What a plan's shards must hold, worked out from the timelines alone, by other means than the packing stage's."""

import polars as pl

from validation.reading import collect, existing, scan
from warehouse.layout import ReleaseLayout
from warehouse.losses import LOSS_TARGETS
from warehouse.manifest import PlanEntry
from warehouse.tokens import TokenType

EXPECTED = {"subject_id": pl.Int64, "given": pl.Int64, "tokens": pl.Int64, "loss": pl.Int64, "offset": pl.Int64}
_IMAGE = pl.col("type") == int(TokenType.IMAGE)


def expected_tokens(tree: ReleaseLayout, profile: str, plan: PlanEntry, buckets: int) -> pl.DataFrame:
    """Every subject of the timelines under a plan, whatever its split or budget.

    Columns: subject_id, given (tokens of the timeline), tokens (that the plan keeps), loss (of these, those that bear
    loss; 0 without budgets), offset (kept tokens before the first one packed).
    """
    paths = existing(tree.timeline(profile, bucket) for bucket in range(buckets))
    parts = [collect(_of_bucket(scan(path).select("subject_id", "type"), plan), path) for path in paths]
    return pl.concat([pl.DataFrame(schema=EXPECTED), *parts])


def _of_bucket(tokens: pl.LazyFrame, plan: PlanEntry) -> pl.LazyFrame:
    images = _IMAGE.any().over("subject_id") if plan.subjects == "imaging" else pl.lit(True)
    marked = tokens.with_columns((images & (~_IMAGE | plan.images)).alias("kept"))
    kept = pl.col("kept").cast(pl.Int64)
    first = (kept.sum() - plan.context).clip(0).over("subject_id") if plan.mode == "last_n" else pl.lit(0, pl.Int64)
    marked = marked.with_columns((kept.cum_sum().over("subject_id") - 1).alias("place"), first.alias("first"))
    packed = pl.col("kept") & (pl.col("place") >= pl.col("first"))
    begins = (pl.col("place") - pl.col("first")) % plan.context == 0
    targets = [int(kind) for kind in LOSS_TARGETS[plan.loss]] if plan.loss else []
    return marked.group_by("subject_id").agg(
        pl.len().cast(pl.Int64).alias("given"),
        packed.sum().cast(pl.Int64).alias("tokens"),
        (packed & ~begins & pl.col("type").is_in(targets)).sum().cast(pl.Int64).alias("loss"),
        pl.col("first").first().alias("offset"),
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
    """Budgets whose figures in the manifest are not those of the subjects that they must hold."""
    wrong = 0
    for number, budget in enumerate(plan.budgets):
        held = tiered.filter(pl.col("tier") <= number)
        figures = (int(held["loss"].sum()), int(held["tokens"].sum()), held.height, (number + 1) * plan.groups)
        wrong += figures != (budget.tokens, budget.all_tokens, budget.subjects, budget.files)
    return wrong
