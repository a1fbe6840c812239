"""Which events become tokens in a profile: by namespace and split, held against what vocabularies leave out."""

from collections.abc import Mapping

import polars as pl

from validation.measure.contents import BIRTH
from validation.measure.measures import Measures
from validation.measure.reading import existing
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


def measure_tokenised(tree: ReleaseLayout, profiles: Mapping[str, ProfileEntry], measures: Measures) -> pl.DataFrame:
    """A row per profile, namespace of clinical events and split, TOKENISED.

    `events` has all of the namespace, `clinical` those with a time that are neither image, visit nor death, and
    `in_tokens` how many of these became tokens, where a namespace's events do so in equal shares. Births are left out:
    they become ages. `left_out`: the profile says that it makes no token of the namespace.

    Raises:
        TimeloomError: a file is damaged.
    """
    counted = measures.counted("tokenised", ["events", "clinical"], of="scheme", within="namespace", split="split")
    frames = [TOKENISED.to_frame()]
    for name, profile in profiles.items():
        made = pl.col("events") - pl.min_horizontal("events", pl.col("dropped").fill_null(0))
        share = made / pl.col("events")
        frames.append(
            counted.filter(pl.col("scheme") == profile.scheme, pl.col("clinical") > 0, pl.col("namespace") != BIRTH)
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


def _dropped(tree: ReleaseLayout, profile: str) -> pl.DataFrame:
    """`namespace`, `split`, `dropped`: events that the profile makes no token of."""
    frames = [pl.DataFrame(schema={"namespace": pl.String, "split": pl.String, "dropped": pl.Int64})]
    for path in existing([tree.coverage(profile)]):
        left_out = (pl.col("outcome") == "dropped") & (pl.col("reason") != NO_EVENT)
        summed = read_frame(path).filter(left_out).group_by("namespace", "split")
        frames.append(summed.agg(pl.col("count").sum().alias("dropped")))
    return pl.concat(frames)
