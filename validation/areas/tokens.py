"""Tokens: that what is frequent in the data becomes tokens in every profile."""

import polars as pl

from validation.areas.area import Area, Expectation
from validation.measure.measured_release import MeasuredRelease


def measure(release: MeasuredRelease) -> pl.DataFrame:
    """A row per profile and namespace of train's clinical events: `clinical`, `in_tokens`, their `share`.

    `silent`: 1 where the namespace is no small part, makes no token, and the profile does not say that it shall not.
    """
    of_profile = pl.col("clinical").sum().over("profile")
    share = (pl.col("clinical") / of_profile).alias("share")
    silent = (pl.col("in_tokens") == 0) & ~pl.col("left_out") & (share >= release.limits.without_tokens)
    return (
        release.tokenised.filter(pl.col("split") == "train")
        .select("profile", "namespace", "clinical", "in_tokens", "left_out", share)
        .with_columns(silent.cast(pl.Int64).alias("silent"))
    )


def _words(broken: pl.DataFrame) -> str:
    return "; ".join(
        f"profile {line['profile']} makes no token of {line['namespace']}, {line['share']:.1%} of train's events"
        for line in broken.iter_rows(named=True)
    )


def _remedy(broken: pl.DataFrame) -> str:
    profile, spaces = broken["profile"][0], broken.filter(pl.col("profile") == pl.col("profile").first())["namespace"]
    return f"add to profiles.{profile}.namespaces, or to profiles.{profile}.left_out: {', '.join(spaces)}"


AREA = Area(
    "tokens",
    measure,
    (
        Expectation(
            "silent",
            "In every profile each namespace of many clinical events makes tokens, or is left out by name.",
            kind="number",
            words=_words,
            remedy=_remedy,
        ),
    ),
)
