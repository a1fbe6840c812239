"""What is measured of triplets: whether they add up, are of one subject, and share nothing over splits."""

import polars as pl

from validation.measure.measures import Measures
from validation.measure.reading import gather
from warehouse.layout import ReleaseLayout
from warehouse.schemas import COPIES, FUNNEL

# Of a release: triplets; studies of which the funnel's steps, or the triplets themselves, are not as many as the step
# before says; triplets of which an image, the text or a visit is not the subject's; those whose record is there without
# a visit, or not with one; and usable ones that share a subject, a picture or a text with another split.
MEASURED = {
    "triplets": pl.Int64,
    "difference": pl.Int64,
    "foreign": pl.Int64,
    "unmasked": pl.Int64,
    "across_splits": pl.Int64,
}
# Of the funnel, in order.
STEPS = ("images", "texts", "text", "visit", "outcome", "subjects")


def measure_triplets(tree: ReleaseLayout, buckets: int, measures: Measures) -> pl.DataFrame:
    """One row, columns of MEASURED.

    Raises:
        TimeloomError: a file is damaged.
    """
    made = measures.counted("triplets", ["made"], of="source")
    sums = measures.counted("triplets", ["foreign", "unmasked", "subjects_across"])
    funnel = gather(map(tree.funnel, range(buckets)), FUNNEL, FUNNEL.names)
    row = {
        "triplets": int(made["made"].sum()),
        "difference": _difference(funnel, made),
        "foreign": sums["foreign"].item(),
        "unmasked": sums["unmasked"].item(),
        "across_splits": sums["subjects_across"].item() + _across(tree, measures),
    }
    return pl.DataFrame([row], schema=MEASURED)


def read_funnel(tree: ReleaseLayout, buckets: int) -> pl.DataFrame:
    """What became of images, studies, texts and subjects, summed over the buckets; columns of FUNNEL.

    Raises:
        TimeloomError: a file is damaged.
    """
    funnel = gather(map(tree.funnel, range(buckets)), FUNNEL, FUNNEL.names)
    by = FUNNEL.names[:3]
    order = pl.col("step").cast(pl.Enum(STEPS))
    return funnel.group_by(by).agg(pl.col("number").sum()).sort(order, "source", "rule")


def count_copies(tree: ReleaseLayout) -> pl.DataFrame:
    """A row per modality and method: `groups` of copies, `copies` in them, groups `across` splits, items `set_aside`.

    Raises:
        TimeloomError: the file is damaged.
    """
    copies = gather([tree.copies], COPIES, COPIES.names)
    return (
        copies.group_by("modality", "method")
        .agg(
            pl.col("group").n_unique().cast(pl.Int64).alias("groups"),
            pl.len().cast(pl.Int64).alias("copies"),
            pl.col("group").filter("across").n_unique().cast(pl.Int64).alias("across"),
            pl.col("set_aside").sum().cast(pl.Int64),
        )
        .sort("modality", "method")
    )


def _difference(funnel: pl.DataFrame, made: pl.DataFrame) -> int:
    def summed(step: str) -> pl.DataFrame:
        wanted = (pl.col("step") == step) & ~((pl.col("step") == "text") & (pl.col("rule") == "none"))
        return funnel.filter(wanted).group_by("source").agg(pl.col("number").sum().alias(step))

    for step in ("text", "visit", "outcome"):
        made = made.join(summed(step), on="source", how="full", coalesce=True)
    last = pl.col("made", "text", "visit", "outcome").fill_null(0)
    made = made.with_columns(last)
    return int(
        made.select(pl.max_horizontal(pl.exclude("source")) - pl.min_horizontal(pl.exclude("source"))).sum().item()
    )


def _across(tree: ReleaseLayout, measures: Measures) -> int:
    """Groups of copies that may not lie in two splits, and do."""
    copies = gather([tree.copies], COPIES, ["modality", "method", "group", "item_key", "set_aside"])
    used = measures.counted("triplets", ["uses"], of="item_key", split="split")
    # Pictures that look alike may be of two patients.
    set_aside_at_all = pl.col("set_aside").any().over("modality", "method")
    bound = copies.filter((pl.col("method") == "exact") | set_aside_at_all).select("method", "group", "item_key")
    shared = used.join(bound, on="item_key").group_by("method", "group").agg(pl.col("split").n_unique())
    return shared.filter(pl.col("split") > 1).height
