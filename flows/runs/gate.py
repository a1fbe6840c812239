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
    from validation.measure.measured_release import MeasuredRelease
    from validation.measurements import measure_release
    from validation.report.page import write_report

    names = dict.fromkeys([config.primary_scheme, *config.splits])
    release = MeasuredRelease(
        tree=tree,
        buckets=config.buckets,
        profiles=manifest.profiles,
        schemes={name: config.splits[name].model_dump() for name in names},
        before=ReleaseLayout(before) if before else None,
    )
    measurements = measure_release(release)
    judgement = judge(measurements, tree.quality / "data_docs")
    context = {
        "manifest": manifest,
        "steps": steps,
        "scheme": config.primary_scheme,
        "sources": [source.source for source in config.sources],
        "artificial_links": any(block.crosswalk and block.crosswalk.artificial for block in config.modalities.values()),
    }
    write_report(tree, measurements, judgement, context)
    if not judgement.passed:
        first = judgement.failures[0].sentence.rstrip(".")
        raise TimeloomError(f"the gate refuses the release: {first}", remedy=f"look at {tree.report}")
