"""The gate between a finished staging tree and its publication."""

from pathlib import Path
from typing import Any

from pipelines.config import RunConfig
from warehouse.errors import TimeloomError
from warehouse.layout import ReleaseLayout
from warehouse.manifest import Manifest


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
    from validation.gate.judge import judge
    from validation.measure.release import profile_release
    from validation.report.page import write_report

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
    }
    write_report(tree, profile, judgement, context)
    if not judgement.passed:
        failed = [one.sentence for one in judgement.results if not one.success and one.severity == "critical"]
        first = failed[0].rstrip(".")
        raise TimeloomError(f"the gate refuses the release: {first}", remedy=f"look at {tree.report}")
