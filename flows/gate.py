"""The gate between a finished staging tree and its publication."""

from pathlib import Path
from typing import Any

import polars as pl

from pipelines.config import RunConfig
from warehouse.errors import TimeloomError
from warehouse.layout import ReleaseLayout
from warehouse.manifest import Manifest
from warehouse.schemas import read_frame


def judge_release(
    tree: ReleaseLayout,
    manifest: Manifest,
    config: RunConfig,
    steps: list[dict[str, Any]],
    before: Path | None = None,
) -> None:
    """Judges a staging tree, and leaves the report in it.

    Args:
        before: where the release before lies.

    Raises:
        TimeloomError: a critical expectation fails; nothing may be published.
    """
    from validation.profile import profile_release
    from validation.report import write_report
    from validation.suites import judge

    fractions = {scheme: one.model_dump() for scheme, one in config.splits.items()}
    profile = profile_release(
        tree,
        scheme=config.primary_scheme,
        fractions=fractions.pop(config.primary_scheme),
        others=fractions,
        profiles=manifest.profiles,
        buckets=config.buckets,
        before=ReleaseLayout(before) if before else None,
    )
    judgement = judge(profile, tree.quality / "data_docs")
    context = {
        "manifest": manifest,
        "steps": steps,
        "scheme": config.primary_scheme,
        "sources": [one.source for one in config.sources],
        "artificial_links": any(one.crosswalk and one.crosswalk.artificial for one in config.images.values()),
        "namespaces": namespaces(tree, next(iter(config.profiles)), config.buckets),
    }
    write_report(tree, profile, judgement, context)
    if not judgement.passed:
        failed = [one.sentence for one in judgement.results if not one.success and one.severity == "critical"]
        first = failed[0].rstrip(".")
        raise TimeloomError(f"the gate refuses the release: {first}", remedy=f"look at {tree.report}")


def namespaces(tree: ReleaseLayout, profile: str, buckets: int) -> list[dict[str, Any]]:
    """Tokens of each namespace, those in train, and the share that the vocabulary does not know."""
    counts = pl.concat([read_frame(tree.token_counts(profile, bucket)) for bucket in range(buckets)])
    known = read_frame(tree.vocabulary(profile))["token"]
    number = pl.col("count")
    summed = (
        counts.with_columns(pl.col("token").str.split("/").list.first().alias("namespace"))
        .group_by("namespace")
        .agg(
            number.sum().alias("tokens"),
            number.filter(pl.col("split") == "train").sum().alias("train_count"),
            (number.filter(~pl.col("token").is_in(known.implode())).sum() / number.sum()).alias("unknown_share"),
        )
        .sort(["tokens", "namespace"], descending=[True, False])
    )
    return summed.to_dicts()
