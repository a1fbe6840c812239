"""Shards, of every plan: they hold the tokens that the plan keeps of the timelines, once, and usable images."""

import polars as pl

from validation.areas.area import ITS_LIMIT, Area, Check, Expectation
from validation.measure.measured_release import MeasuredRelease
from validation.measure.shards.measure import measure_shards
from warehouse.shards.file import MAX_SEGMENTS


def measure(release: MeasuredRelease) -> pl.DataFrame:
    """A row per token profile, plan and split, see `measure_shards`."""
    return measure_shards(release.tree, release.profiles, release.measures)


def _right(shards: pl.DataFrame) -> str:
    if shards.is_empty():
        return "the release has none"
    tokens, images = shards["tokens_shards"].sum(), shards["image_places"].sum()
    return f"{tokens:,} tokens and {images:,} image places are where they must be"


SHARDS = Check("shards", measure, _right)

AREA = Area(
    "shards",
    measure,
    (
        Expectation(
            "token_difference",
            "Every patient's tokens that a plan keeps are in its shards, once.",
            check=SHARDS,
            fault="tokens that shards and timelines do not share",
        ),
        Expectation(
            "drop_difference",
            "Tokens that a plan leaves out are those that it declares.",
            check=SHARDS,
            fault="tokens left out that no plan declares",
        ),
        Expectation(
            "misplaced_segments",
            "Each piece of a timeline begins where the one before ends.",
            check=SHARDS,
            fault="pieces of timelines out of place",
        ),
        Expectation(
            "changed_subjects",
            "Every token of the shards has the id, type, time and image of the timeline's.",
            check=SHARDS,
            fault="subjects with other tokens than in their timelines",
        ),
        Expectation(
            "foreign_subjects",
            "No split's shards hold a patient of another split.",
            check=SHARDS,
            fault="subjects in another split's shards",
        ),
        Expectation(
            "misplaced_tiers",
            "Token budgets are nested: each is a prefix of the one fixed order of patients.",
            check=SHARDS,
            fault="subjects in another token budget than theirs",
        ),
        Expectation(
            "budget_differences",
            "Token budgets hold what the manifest says.",
            check=SHARDS,
            fault="token budgets that are not what the manifest says",
        ),
        Expectation("budgets_short", "Train has as many tokens as every token budget asks for.", "warning", "number"),
        Expectation(
            "budget_ks_ratio",
            "Timelines are as long in every token budget as in train: the Kolmogorov-Smirnov distance is within its "
            "limit (that of alpha 0.001).",
            "warning",
            "derived",
            high=1,
            of=ITS_LIMIT,
        ),
        Expectation(
            "malformed_packs",
            "Every pack has its profile's length, and its segments add up to its tokens.",
            check=SHARDS,
            fault="malformed packs",
        ),
        Expectation(
            "ids_out_of_range",
            "Every token of the shards is in the vocabulary.",
            check=SHARDS,
            fault="tokens outside the vocabulary",
        ),
        Expectation(
            "misplaced_images",
            "Every image place in the shards is where a token stands for such an image.",
            check=SHARDS,
            fault="images that are not where their tokens are",
        ),
        Expectation(
            "dangling_images",
            "Every image place in the shards points at a usable image.",
            check=SHARDS,
            fault="images that are no usable item",
        ),
        Expectation(
            "foreign_images",
            "Every image in the shards is one of the patient in whose timeline it is.",
            check=SHARDS,
            fault="images of another subject or modality",
        ),
        Expectation(
            "max_segments",
            f"No pack holds more than {MAX_SEGMENTS} segments.",
            kind="number",
            high=MAX_SEGMENTS,
        ),
        Expectation(
            "fill_judged",
            "Packs are at least 90 % full, in splits of 20 packs and more.",
            "warning",
            "number",
            low=0.9,
            high=None,
        ),
    ),
)
