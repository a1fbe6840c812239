"""The gate between a finished staging tree and its publication."""

from collections.abc import Collection, Sequence
from typing import Any

from pipelines.config import RunConfig
from pipelines.engine.context import Standing
from warehouse.errors import TimeloomError
from warehouse.layout import Layout, ReleaseLayout
from warehouse.manifest import Manifest


def check_names(accepted: Collection[str], parent: Manifest | None) -> None:
    """Refuses a loss of what the release before does not have, and a name that tables of several sources have.

    A name that is mistyped would agree to nothing, and one of several tables to more than was meant.

    Raises:
        TimeloomError: names what it has.
    """
    from validation.measure.losses import named_parts, names_of_several

    # What an older timeloom published is counted only when it is compared with.
    known = named_parts(parent.contents) if parent else set()
    unknown = sorted(set(accepted) - known) if known else []
    if unknown:
        parts = [entry.name for entry in parent.contents if entry.kind in ("table", "modality")] if parent else []
        raise TimeloomError(
            f"the release before holds no {unknown[0]}, whose loss --accept-loss agrees to",
            remedy=f"name one of {', '.join(dict.fromkeys(parts))}; or a source or namespace",
        )
    several = names_of_several(parent.contents) if parent else {}
    for name in sorted(set(accepted) & several.keys()):
        raise TimeloomError(f"several sources have a table {name}", remedy=f"name one of {', '.join(several[name])}")


def judge_release(
    tree: ReleaseLayout,
    manifest: Manifest,
    config: RunConfig,
    steps: list[dict[str, Any]],
    layout: Layout,
    parent: Manifest | None = None,
    accepted: Sequence[str] = (),
) -> Manifest:
    """Judges a staging tree, and leaves the report in it.

    Args:
        parent: of the release before, which lies in `layout`.
        accepted: names of tables, sources, modalities or namespaces of which less than before may be there.

    Returns:
        The manifest with what the release holds, and with the losses that were agreed to.

    Raises:
        TimeloomError: a critical expectation fails, or a part was not measured; nothing may be published.
    """
    from validation.gate.judge import judge
    from validation.measure.losses import loss_entries
    from validation.measure.measured_release import MeasuredRelease, earlier_releases
    from validation.measure.measures import Measures
    from validation.measure.stage import STAGE
    from validation.measure.tasks import unmeasured
    from validation.measurements import measure_release
    from validation.report.page import write_report

    before = Standing(parent, layout.releases / parent.release_id) if parent else None
    names = dict.fromkeys([config.primary_scheme, *config.splits])
    release = MeasuredRelease(
        tree=tree,
        buckets=config.buckets,
        profiles=manifest.profiles,
        schemes={name: config.splits[name].model_dump() for name in names},
        before=ReleaseLayout(before.path) if before else None,
        sources=manifest.sources,
        limits=config.limits,
        earlier=earlier_releases(layout, parent, config.limits.window) if parent else (),
        accepted=accepted,
        labels=manifest.labels,
        taken=Measures(tree) if STAGE.name in manifest.stages else None,
    )
    left_out = unmeasured(tree, release.facts, release.taken.place) if release.taken else []
    if left_out:
        raise TimeloomError(
            f"the gate refuses the release: {len(left_out)} of its parts were not measured, such as {left_out[0]}",
            remedy="run the night again",
        )
    measurements = measure_release(release)
    manifest = manifest.model_copy(
        update={"contents": tuple(release.contents), "accepted_losses": loss_entries(release.losses)}
    )
    judgement = judge(measurements, tree.quality / "data_docs", before)
    context = {
        "manifest": manifest,
        "steps": steps,
        "scheme": config.primary_scheme,
        "sources": [source.source for source in config.sources],
        "artificial_links": any(block.crosswalk and block.crosswalk.artificial for block in config.modalities.values()),
    }
    write_report(tree, measurements, judgement, context, before)
    if not judgement.passed:
        first = judgement.failures[0]
        raise TimeloomError(
            f"the gate refuses the release: {first.said}",
            remedy=f"{first.remedy}; see {tree.report}" if first.remedy else f"look at {tree.report}",
        )
    return manifest
