"""The gate between a finished staging tree and its publication."""

from typing import Any

from pipelines.config import RunConfig
from warehouse.errors import TimeloomError
from warehouse.layout import ReleaseLayout
from warehouse.manifest import Manifest


def judge_release(
    tree: ReleaseLayout, manifest: Manifest, config: RunConfig, steps: list[dict[str, Any]]
) -> None:
    """Judges a staging tree, and leaves the report in it.

    Raises:
        TimeloomError: a critical expectation fails; nothing may be published.
    """
    from validation.profile import profile_release
    from validation.report import write_report
    from validation.suites import judge

    profile = profile_release(
        tree,
        scheme=config.split.scheme,
        profiles=list(config.profiles),
        buckets=config.buckets,
    )
    judgement = judge(profile, tree.quality / "data_docs")
    write_report(tree, profile, judgement, {"manifest": manifest, "steps": steps})
    if not judgement.passed:
        failed = [result.sentence for result in judgement.results if not result.success and result.severity == "critical"]
        raise TimeloomError(f"the gate refuses the release: {failed[0]}", remedy=f"look at {tree.report}")
