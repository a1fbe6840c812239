"""What a run writes down of itself: the manifest of its release, and its line in the lineage."""

from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from extractors.deid import Deidentifier, load_key
from pipelines import (
    align,
    count,
    embed,
    encode,
    index,
    lags,
    meds,
    metadata,
    pack,
    split,
    subset,
    tokenize,
    vocabulary,
)
from pipelines.config import RunConfig
from pipelines.engine.context import StageReport
from warehouse.files import sha256_file, sha256_json, write_json
from warehouse.layout import Layout, ReleaseLayout
from warehouse.manifest import (
    Deidentification,
    EncoderEntry,
    FileEntry,
    Manifest,
    ProfileEntry,
    TaskEntry,
    content_hash,
)
from warehouse.publish import new_release_id

STAGES = (
    meds.STAGE, index.STAGE, encode.STAGE, embed.STAGE, lags.STAGE, align.STAGE, metadata.STAGE, split.STAGE,
    count.STAGE, vocabulary.STAGE, tokenize.STAGE, subset.STAGE, pack.STAGE,
)  # fmt: skip
# What a reader is told of a release besides its files: where one of these changes, so does the release.
DECLARED = ("content_hash", "deid", "encoders", "profiles", "split_scheme")


def make_manifest(
    config: RunConfig,
    layout: Layout,
    run_id: str,
    parent: str | None,
    reports: dict[str, StageReport],
    tasks: dict[str, TaskEntry],
    encoders: dict[str, EncoderEntry],
) -> Manifest:
    """The manifest of a finished staging tree, without the files of its report.

    Args:
        reports: by name, every stage's.
        tasks: by `stage/key`, those whose files belong to the release.
    """
    files = {path: file for entry in tasks.values() for path, file in entry.files.items()}
    deid = Deidentifier(config.deid, load_key(config.deid, layout.private))
    fitted = reports[vocabulary.STAGE.name].entries
    return Manifest(
        release_id=new_release_id(layout),
        parent=parent,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        run_id=run_id,
        buckets=config.buckets,
        deid=Deidentification(**config.deid.model_dump(), key_fingerprint=deid.key_fingerprint),
        config_hash=sha256_json(config.model_dump(mode="json", exclude={"root", "workers", "embedding"})),
        split_scheme=config.primary_scheme,
        split_hash=files[str(ReleaseLayout(Path()).subject_splits)].sha256,
        encoders=encoders,
        profiles={
            name: ProfileEntry(
                vocabulary_hash=fitted[name].counts["hash"],
                vocabulary_size=fitted[name].counts["size"],
                scheme=str(profile.scheme),
                rules_hash=sha256_json(profile.token_rules()),
                plans=pack.plan_entries(
                    name, profile, config.pack_groups, reports[pack.STAGE.name], reports.get(subset.STAGE.name)
                ),
            )
            for name, profile in ((name, config.profile(name)) for name in config.profiles)
        },
        stages={stage.name: stage.version for stage in STAGES},
        sources={
            f"{entry.counts['source']}/{entry.counts['table']}/{number}": entry.fingerprint
            for number, entry in enumerate(reports[meds.STAGE.name].entries.values())
        },
        verdicts=_verdicts(reports[embed.STAGE.name]),
        content_hash=content_hash(files),
        tasks=tasks,
        files=files,
    )


def _verdicts(embedded: StageReport) -> dict[str, dict[str, int]]:
    """Images by modality and verdict."""
    total: dict[str, dict[str, int]] = {}
    for entry in embedded.entries.values():
        for modality, counted in entry.counts["verdicts"].items():
            of = total.setdefault(modality, {})
            for verdict, number in counted.items():
                of[verdict] = of.get(verdict, 0) + number
    return {modality: dict(sorted(of.items())) for modality, of in sorted(total.items())}


def with_report(manifest: Manifest, tree: ReleaseLayout) -> Manifest:
    """The manifest with the files of the quality report too."""
    quality = {
        str(path.relative_to(tree.path)): FileEntry(sha256=sha256_file(path), bytes=path.stat().st_size)
        for path in sorted(tree.quality.rglob("*"))
        if path.is_file()
    }
    return manifest.model_copy(update={"files": manifest.files | quality})


def same_release(one: Manifest, other: Manifest) -> bool:
    """Whether two releases hold and declare the same."""
    return all(getattr(one, name) == getattr(other, name) for name in DECLARED)


def quarantined(manifest: Manifest, extracted: StageReport) -> int:
    """Images that failed, and raw rows that made nothing and are no duplicates."""
    images = sum(
        number for of in manifest.verdicts.values() for verdict, number in of.items() if verdict.startswith("failed_")
    )
    rows = sum(sum(entry.counts["quarantined"].values()) for entry in extracted.entries.values())
    return images + rows


def record_lineage(layout: Layout, manifest: Manifest, job: str, steps: list[dict[str, Any]]) -> None:
    """One OpenLineage-shaped record; hashes and counts only."""
    record = {
        "eventType": "COMPLETE",
        "eventTime": manifest.created_at,
        "producer": f"timeloom {version('timeloom')}",
        "run": {"runId": manifest.run_id},
        "job": {"namespace": job, "name": "nightly"},
        "inputs": [{"name": name, "fingerprint": value} for name, value in manifest.sources.items()],
        "outputs": [{"name": manifest.release_id, "contentHash": manifest.content_hash}],
        "configHash": manifest.config_hash,
        "deid": manifest.deid.model_dump(),
        "parent": manifest.parent,
        "steps": steps,
    }
    write_json(layout.lineage / f"{manifest.run_id}.json", record)
