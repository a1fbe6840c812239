"""What a run writes down of itself: its name, the manifest of its release, and its line in the lineage."""

import shutil
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

from extractors.deid import Deidentifier, load_key
from flows.runs.root import root_settings
from pipelines.config import RunConfig
from pipelines.engine.context import Standing
from pipelines.engine.task import short_hash
from pipelines.night import Night, Stage
from warehouse.files import atomic_write, hash_file, put_in_place, sha256_json
from warehouse.layout import Layout, ReleaseLayout
from warehouse.manifest import (
    Deidentification,
    FileEntry,
    Manifest,
    TaskEntry,
    content_hash,
)
from warehouse.publish import made_at, new_release_id
from warehouse.sealed import write_sealed

# Keys of a configuration that say nothing of releases: where they lie, how they are made, how long they stay.
NOT_DECLARED = {"root", "workers", "embedding", "keep", "on_publish"}
# What a reader is told of a release besides its files: where one of these changes, so does the release.
DECLARED = (
    "content_hash",
    # Else a stage of a new version would run every night until its bytes change.
    "stages",
    "deid",
    "encoders",
    "profiles",
    "labels",
    "graphs",
    "duplicates",
    "triplets",
    "split_scheme",
)

_RUN_STAMP = "%Y%m%dT%H%M%S%fZ"


def new_run_id(layout: Layout) -> str:
    """The time, UTC, behind that of every run that has a log or a record, whatever the clock says: none of these is
    written over, and the oldest logs are those with the smallest names."""
    now = datetime.now(UTC)
    names = {path.name.partition(".")[0] for folder in (layout.logs, layout.lineage) for path in folder.glob("*")}
    latest = max(filter(None, map(_began_at, names)), default=None)
    return (now if latest is None or now > latest else latest + timedelta(microseconds=1)).strftime(_RUN_STAMP)


def _began_at(run_id: str) -> datetime | None:
    """When a run began, UTC, by its name; None for what timeloom has not named."""
    try:
        return datetime.strptime(run_id, _RUN_STAMP).replace(tzinfo=UTC)
    except ValueError:
        return None


def clock_behind(manifest: Manifest) -> str:
    """That the clock went back since the release before was made, in words; empty where it did not."""
    named, created = made_at(manifest.release_id), datetime.fromisoformat(manifest.created_at)
    if named is None or created >= named:
        return ""
    return (
        f"the clock says {created:%Y-%m-%d %H:%M:%S} UTC, which is before the last release was made: this one is named "
        f"{manifest.release_id}, behind it; set the clock"
    )


def make_manifest(
    night: Night, stages: Sequence[Stage], run_id: str, parent: str | None, tasks: dict[str, TaskEntry]
) -> Manifest:
    """The manifest of a finished staging tree, without the files of its report.

    Args:
        tasks: by `stage/key`, those whose files belong to the release.
    """
    config, layout = night.config, night.layout
    files = {path: file for entry in tasks.values() for path, file in entry.files.items()}
    key = load_key(config.deid, layout.private)
    deid = Deidentifier(config.deid, key)
    declared: dict[str, Any] = {}
    for stage in stages:
        if stage.declare:
            declared |= stage.declare(night.seen_by(stage))
    return Manifest(
        release_id=new_release_id(layout),
        parent=parent,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        run_id=run_id,
        buckets=config.buckets,
        deid=Deidentification(**config.deid.model_dump(), key_fingerprint=deid.key_fingerprint),
        config_hash=sha256_json(config.model_dump(mode="json", exclude=NOT_DECLARED)),
        stages={stage.name: stage.version for stage in stages},
        content_hash=content_hash(files),
        tasks=tasks,
        files=files,
        root=root_settings(config, night.trial_subjects, key),
        records=tuple(sorted(records_of(night, stages))),
        keys=key_hashes(config),
        **declared,
    )


def key_hashes(config: RunConfig) -> dict[str, str]:
    """By each key of a configuration, as `profiles.mehrt.context`, a short hash of its value; where files lie apart, as
    their content counts."""
    return {key: short_hash(value) for key, value in _leaves(config.model_dump(exclude=NOT_DECLARED), "")}


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    is_list = isinstance(value, list | tuple)
    if isinstance(value, Path) or (is_list and any(isinstance(part, Path) for part in value)):
        return
    of_blocks = is_list and any(isinstance(part, dict) for part in value)
    parts = list(value.items() if isinstance(value, dict) else enumerate(value) if of_blocks else ())
    if not parts:
        yield key, value
    for name, part in parts:
        yield from _leaves(part, f"{key}.{name}" if key else str(name))


def records_of(night: Night, stages: Sequence[Stage]) -> set[str]:
    """The names, without their endings, of what the stages left outside the release: segments, and what stands in the
    private folder."""
    reports = [night.reports.get(stage.name) for stage in stages if not stage.in_release]
    return {Path(name).stem for report in reports if report for name in report.hashes()}


def share_with(before: Standing, tree: ReleaseLayout, manifest: Manifest, stages: Sequence[Stage]) -> None:
    """Makes files that the release before has too, byte by byte, links to its own: they take no disk twice.

    What lasts, such as ledgers of splits and vocabularies, becomes a file of its own where it was linked: it cannot be
    made again, and where one release's is damaged, a repair takes the other's.
    """
    lasting = [pattern for stage in stages for pattern in stage.lasting]
    for name, entry in manifest.files.items():
        theirs = before.manifest.files.get(name)
        if theirs is None or theirs.sha256 != entry.sha256:
            continue
        source, made = before.path / name, tree.path / name
        shared = source.exists() and source.samefile(made)
        if any(PurePosixPath(name).match(pattern) for pattern in lasting):
            if shared:
                with atomic_write(made) as temporary:
                    shutil.copy2(source, temporary)
        elif not shared and theirs.is_of(source):
            put_in_place(source, made)


def with_report(manifest: Manifest, tree: ReleaseLayout) -> Manifest:
    """The manifest with the files of the quality report too."""
    quality = {}
    for path in sorted(tree.quality.rglob("*")):
        if path.is_file():
            strong, fast = hash_file(path)
            quality[str(path.relative_to(tree.path))] = FileEntry(sha256=strong, bytes=path.stat().st_size, xxh3=fast)
    return manifest.model_copy(update={"files": manifest.files | quality})


def same_release(release: Manifest, other: Manifest) -> bool:
    """Whether two releases hold and declare the same."""
    return all(getattr(release, name) == getattr(other, name) for name in DECLARED)


def quarantined(night: Night, stages: Sequence[Stage]) -> int:
    """What the stages could not use: images that failed, and raw rows that made nothing and are no duplicates."""
    return sum(stage.quarantined(night.reports[stage.name]) for stage in stages if stage.quarantined)


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
        "acceptedLosses": [loss.model_dump() for loss in manifest.accepted_losses],
        "steps": steps,
    }
    write_sealed(lineage_path(layout, manifest), record)


def lineage_path(layout: Layout, manifest: Manifest) -> Path:
    """Where the record of a release's run stands."""
    return layout.lineage / f"{manifest.run_id}.json"
