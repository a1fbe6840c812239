"""What is measured of triplets: whether they add up, are of one subject, and share nothing over splits."""

import polars as pl

from validation.measure.reading import collect, existing, gather, scan
from warehouse.layout import ReleaseLayout
from warehouse.schemas import COPIES, FUNNEL, TRIPLETS

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
_RECORD = ("ehr_cutoff_time", "visit_id", "visit_ids")
_READ = ["subject_id", "split", "source", "image_keys", "text_key", "has_ehr", *_RECORD, "set_aside"]


def measure_triplets(tree: ReleaseLayout, buckets: int) -> pl.DataFrame:
    """One row, columns of MEASURED; one bucket's events are in memory at a time.

    Raises:
        TimeloomError: a file is damaged.
    """
    used = [bucket for bucket in range(buckets) if existing([tree.triplets(bucket)])]
    if not used:
        return pl.DataFrame([dict.fromkeys(MEASURED, 0)], schema=MEASURED)
    foreign, found = 0, []
    for bucket in used:
        part = gather([tree.triplets(bucket)], TRIPLETS, _READ).with_row_index("row")
        foreign += _foreign(tree, bucket, part)
        found.append(part)
    triplets = pl.concat(found)
    copies = gather([tree.copies], COPIES, ["modality", "method", "group", "item_key", "set_aside"])
    whole = pl.all_horizontal(pl.col(name).is_not_null() for name in _RECORD)
    partly = pl.any_horizontal(pl.col(name).is_not_null() for name in _RECORD)
    row = {
        "triplets": len(triplets),
        "difference": _difference(gather(map(tree.funnel, used), FUNNEL, FUNNEL.names), triplets),
        "foreign": foreign,
        "unmasked": triplets.filter(pl.when("has_ehr").then(~whole).otherwise(partly)).height,
        "across_splits": _across(triplets.filter(pl.col("set_aside").is_null()), copies),
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


def _keys(triplets: pl.DataFrame, *columns: str) -> pl.DataFrame:
    """A row for each image and text of a triplet: `item_key`, and some columns."""
    images = triplets.select(*columns, item_key="image_keys").explode("item_key")
    return pl.concat([images, triplets.select(*columns, item_key="text_key")])


def _foreign(tree: ReleaseLayout, bucket: int, triplets: pl.DataFrame) -> int:
    items = collect(
        scan(tree.items(bucket)).filter(pl.col("verdict") == "ok").select("subject_id", "item_key"), tree.items(bucket)
    )
    path = tree.events(bucket)
    visits = collect(scan(path).select("subject_id", visit_ids="visit_id").drop_nulls().unique(), path)
    listed = triplets.select("row", "subject_id", "visit_ids").drop_nulls("visit_ids").explode("visit_ids")
    wrong = [
        _keys(triplets, "row", "subject_id").join(items, on=["subject_id", "item_key"], how="anti").select("row"),
        listed.join(visits, on=["subject_id", "visit_ids"], how="anti").select("row"),
    ]
    return pl.concat(wrong).unique().height


def _difference(funnel: pl.DataFrame, triplets: pl.DataFrame) -> int:
    def summed(step: str) -> pl.DataFrame:
        wanted = (pl.col("step") == step) & ~((pl.col("step") == "text") & (pl.col("rule") == "none"))
        return funnel.filter(wanted).group_by("source").agg(pl.col("number").sum().alias(step))

    made = triplets.group_by("source").agg(pl.len().cast(pl.Int64).alias("made"))
    for step in ("text", "visit", "outcome"):
        made = made.join(summed(step), on="source", how="full", coalesce=True)
    last = pl.col("made", "text", "visit", "outcome").fill_null(0)
    made = made.with_columns(last)
    return int(
        made.select(pl.max_horizontal(pl.exclude("source")) - pl.min_horizontal(pl.exclude("source"))).sum().item()
    )


def _across(triplets: pl.DataFrame, copies: pl.DataFrame) -> int:
    """Subjects, and groups of copies that may not lie in two splits, that do."""
    subjects = triplets.group_by("subject_id").agg(pl.col("split").n_unique()).filter(pl.col("split") > 1)
    # Pictures that look alike may be of two patients.
    set_aside_at_all = pl.col("set_aside").any().over("modality", "method")
    bound = copies.filter((pl.col("method") == "exact") | set_aside_at_all).select("method", "group", "item_key")
    shared = (
        _keys(triplets, "split").join(bound, on="item_key").group_by("method", "group").agg(pl.col("split").n_unique())
    )
    return subjects.height + shared.filter(pl.col("split") > 1).height
