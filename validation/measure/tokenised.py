"""Which events become tokens in a profile: by namespace and split, held against what vocabularies leave out."""

from collections.abc import Mapping

import polars as pl

from validation.measure.contents import BIRTH, namespace_of
from validation.measure.reading import collect, existing, scan
from warehouse.layout import ReleaseLayout
from warehouse.manifest import ProfileEntry
from warehouse.parquet import read_frame

TOKENISED = pl.Schema(
    {
        "profile": pl.String,
        "namespace": pl.String,
        "split": pl.String,
        "events": pl.Int64,
        "clinical": pl.Int64,
        "in_tokens": pl.Int64,
        "left_out": pl.Boolean,
    }
)
# Of what a vocabulary leaves out, what is a part of an event and not the event.
NO_EVENT = "value_without_quantiles"


def measure_tokenised(
    tree: ReleaseLayout, buckets: int, profiles: Mapping[str, ProfileEntry], schemes: Mapping[str, pl.DataFrame]
) -> pl.DataFrame:
    """A row per profile, namespace of clinical events and split, TOKENISED.

    `events` has all of the namespace, `clinical` those with a time that are neither image, visit nor death, and
    `in_tokens` how many of these became tokens, where a namespace's events do so in equal shares. Births are left out:
    they become ages. `left_out`: the profile says that it makes no token of the namespace.

    Args:
        schemes: of each split scheme its subjects, `subject_id`, `split`.

    Raises:
        TimeloomError: a file is damaged.
    """
    counted = {scheme: _by_namespace(tree, buckets, schemes[scheme]) for scheme in sorted(schemes)}
    frames = [TOKENISED.to_frame()]
    for name, profile in profiles.items():
        made = pl.col("events") - pl.min_horizontal("events", pl.col("dropped").fill_null(0))
        share = made / pl.col("events")
        frames.append(
            counted[profile.scheme]
            .filter((pl.col("clinical") > 0) & (pl.col("namespace") != BIRTH))
            .join(_dropped(tree, name), on=["namespace", "split"], how="left")
            .select(
                pl.lit(name).alias("profile"),
                "namespace",
                "split",
                "events",
                "clinical",
                (pl.col("clinical") * share).round().cast(pl.Int64).alias("in_tokens"),
                pl.col("namespace").is_in(list(profile.left_out)).alias("left_out"),
            )
        )
    return pl.concat(frames).sort("profile", "namespace", "split")


def _by_namespace(tree: ReleaseLayout, buckets: int, splits: pl.DataFrame) -> pl.DataFrame:
    """`namespace`, `split`, `events`, `clinical`: of subjects that have a split."""
    frames = [pl.DataFrame(schema={name: TOKENISED[name] for name in ("namespace", "split", "events", "clinical")})]
    clinical = (pl.col("kind") == "clinical") & pl.col("time").is_not_null()
    for path in existing(tree.events(bucket) for bucket in range(buckets)):
        by_code = (
            scan(path)
            .select("subject_id", "code", clinical.alias("clinical"))
            .join(splits.lazy().select("subject_id", "split"), on="subject_id")
            .group_by("code", "split")
            .agg(pl.len().cast(pl.Int64).alias("events"), pl.col("clinical").sum().cast(pl.Int64))
        )
        summed = collect(by_code, path).group_by(namespace_of(pl.col("code")).alias("namespace"), "split")
        frames.append(summed.agg(pl.col("events", "clinical").sum()))
    return pl.concat(frames).group_by("namespace", "split").sum()


def _dropped(tree: ReleaseLayout, profile: str) -> pl.DataFrame:
    """`namespace`, `split`, `dropped`: events that the profile makes no token of."""
    frames = [pl.DataFrame(schema={"namespace": pl.String, "split": pl.String, "dropped": pl.Int64})]
    for path in existing([tree.coverage(profile)]):
        left_out = (pl.col("outcome") == "dropped") & (pl.col("reason") != NO_EVENT)
        summed = read_frame(path).filter(left_out).group_by("namespace", "split")
        frames.append(summed.agg(pl.col("count").sum().alias("dropped")))
    return pl.concat(frames)
