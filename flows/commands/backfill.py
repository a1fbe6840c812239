"""`timeloom backfill`: a past night made again, where what it read still stands, and held to what it made then."""

import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flows.keeping.choice import released
from flows.runs import gate
from flows.runs.log import RunLog
from flows.runs.paths import configured
from flows.runs.record import key_hashes, make_manifest, with_report
from flows.runs.run import Run, encoding_here
from flows.runs.settings import RunSettings, make_engine
from pipelines import embed, encode
from pipelines.config import RunConfig
from pipelines.engine.context import Standing
from pipelines.engine.fingerprints import Fingerprints
from pipelines.engine.run_stage import load_record
from pipelines.engine.task import Engine, Task
from pipelines.night import Night, Stage
from validation.stages import NIGHT
from warehouse.errors import REPAIR, TimeloomError
from warehouse.files import sync_directory, sync_tree
from warehouse.layout import Layout, ReleaseLayout
from warehouse.manifest import Manifest, content_hash, read_manifest, write_manifest
from warehouse.progress import Progress
from warehouse.sealed import NotWholeError, read_sealed

EXTRACT = "meds"


@dataclass(frozen=True)
class Past:
    """A past night, as the lineage has it, and the release if that is still there.

    Attributes:
        sources: by `source/table/number`, the fingerprint of what was read.
    """

    release: str
    run_id: str
    parent: str | None
    created_at: str
    content_hash: str
    sources: dict[str, str]
    manifest: Manifest | None


@dataclass
class Rebuilt:
    """What came of it.

    Attributes:
        same: the data has the hash that the night made then.
        stands: the release is among those of the root.
        restored: it was put back there.
        from_segments: tables whose raw files are others now, and whose segments stood still.
        other: where the hash is another one: stages whose files differ, and keys that the configuration has otherwise.
    """

    release: str
    content_hash: str
    same: bool
    stands: bool
    restored: bool = False
    from_segments: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)


def past_night(layout: Layout, release: str) -> Past:
    """What the lineage says of a release.

    Raises:
        TimeloomError: nothing, or its record or manifest is damaged.
    """
    for path in sorted(layout.lineage.glob("*.json"), reverse=True):
        try:
            record = read_sealed(path, older=True)
        except (OSError, NotWholeError) as error:
            raise TimeloomError(f"lineage/{path.name} is damaged", remedy=REPAIR) from error
        output = next((output for output in record["outputs"] if output["name"] == release), None)
        if output is None:
            continue
        manifest = layout.releases / release / "manifest.json"
        return Past(
            release=release,
            run_id=record["run"]["runId"],
            parent=record["parent"],
            created_at=record["eventTime"],
            content_hash=output["contentHash"],
            sources={entry["name"]: entry["fingerprint"] for entry in record["inputs"]},
            manifest=read_manifest(manifest) if manifest.is_file() else None,
        )
    known = ", ".join(released(layout)[:3]) or "none"
    raise TimeloomError(
        f"the lineage of {layout.root.name} names no release {release}", remedy=f"the latest releases are {known}"
    )


def backfill(settings: RunSettings, release: str, *, restore: bool, progress: Progress | None = None) -> Rebuilt:
    """Makes a past night again beside the releases, and compares its data with what it made then.

    Args:
        restore: a release that is gone, and comes out as it was, is put back among those of the root.

    Raises:
        TimeloomError: what it read, or the release that it continued, is gone; another run is at work.
    """
    config, layout = configured(settings)
    config = encoding_here(config)
    past = past_night(layout, release)
    base = settings.config.parent.resolve()
    with _PastRun(config, base, layout, make_engine(settings, config), past, settings.limit, progress) as run:
        for name, step in run.steps:
            if name not in ("validate", "publish"):
                run.carry_out(name, step)
        found = run.compared()
        if restore and found.same and not found.stands:
            run.restore()
            found.restored = True
        shutil.rmtree(run.staging)
        with suppress(OSError):  # another night's lies there still
            layout.past.rmdir()
        return found


class _Forgetful(Fingerprints):
    """What tonight's run remembers of its raw files stays as it is."""

    def save(self) -> None:
        pass


class _PastRun(Run):
    """A run that continues the release which a past one continued, and publishes nothing."""

    def __init__(
        self,
        config: RunConfig,
        base: Path,
        layout: Layout,
        engine: Engine,
        past: Past,
        limit: int | None,
        progress: Progress | None,
    ) -> None:
        self.past = past
        self.from_segments: list[str] = []
        super().__init__(config, base, layout, engine, limit=limit, progress=progress, stages=self._stages())

    def _stages(self) -> list[Stage]:
        # Workers elsewhere fill what a night wants, and a past one wants nothing of them.
        others: dict[str, Callable[[Stage], Stage]] = {
            EXTRACT: lambda stage: replace(stage, plan=self._plan(stage)),
            encode.STAGE.name: lambda stage: replace(stage, before=None),
            embed.STAGE.name: lambda stage: replace(stage, check=None),
        }
        return [others[stage.name](stage) if stage.name in others else stage for stage in NIGHT]

    def _adopt_work(self) -> None:
        """Its folder is not one that a night would take over."""
        self.run_id = self.past.run_id
        self.staging = self.layout.past / self.past.release
        (self.staging / "release").mkdir(parents=True, exist_ok=True)
        self.log = RunLog(self.layout.logs / f"{self.run_id}.backfill.log")
        self._begin(self._parent(), _Forgetful(self.layout.private))

    def _parent(self) -> Standing | None:
        """The release that the night continued.

        Raises:
            TimeloomError: it is gone.
        """
        parent = self.past.parent
        if parent is None:
            return None
        path = self.layout.releases.resolve() / parent
        if not path.is_dir():
            raise TimeloomError(
                f"release {self.past.release} continued {parent}, which is gone: splits, token ids and usual delays go "
                "on from it",
                remedy=f"make that one first: timeloom backfill CONFIG {parent} --restore",
            )
        return Standing(read_manifest(path / "manifest.json"), path)

    def _plan(self, stage: Stage) -> Callable[[Night], Sequence[Task]]:
        def plan(night: Night) -> list[Task]:
            return self._as_it_was(list(stage.plan(night)))

        return plan

    def _as_it_was(self, tasks: list[Task]) -> list[Task]:
        """The tasks of the raw files that the night read: of a file that is another one now, its segment.

        Raises:
            TimeloomError: neither is there any more.
        """
        had = _by_table(self.past.sources)
        has: dict[str, list[Task]] = {}
        for task in tasks:
            has.setdefault(f"{task.params['source']['name']}/{task.params['label']}", []).append(task)
        lacking = [table for table in had if len(has.get(table, ())) < len(had[table])]
        made = []
        for table, fingerprints in had.items():
            for task, fingerprint in zip(has.get(table, ()), fingerprints, strict=False):
                if task.fingerprint == fingerprint:
                    made.append(task)
                    continue
                record = next(self.layout.segments.glob(f"*-{fingerprint[:24]}.json"), None)
                if record is None or not self._is_whole(record):
                    lacking.append(table)
                    continue
                self.from_segments.append(table)
                made.append(replace(task, fingerprint=fingerprint, record=str(record)))
        if lacking:
            named = ", ".join(dict.fromkeys(lacking))
            raise TimeloomError(
                f"release {self.past.release} cannot be made again: of {named} neither the raw file stands as it was, "
                "nor its segment, or they were read by other rules",
                remedy="give the configuration of that night, over that night's export; keep.segments keeps segments",
            )
        return made

    def _is_whole(self, record: Path) -> bool:
        """Whether all that a task recorded is there byte by byte: else it would be run, on the raw file of now."""
        entry = load_record(record)
        return entry is not None and all(file.is_of(record.parent / name) for name, file in entry.files.items())

    def compared(self) -> Rebuilt:
        """Whether the data is what the night made."""
        files = {path: file for entry in self.tasks().values() for path, file in entry.files.items()}
        now, past = content_hash(files), self.past
        segments = list(dict.fromkeys(self.from_segments))
        found = Rebuilt(past.release, now, now == past.content_hash, past.manifest is not None, from_segments=segments)
        if not found.same and past.manifest is not None:
            stages = {
                key.partition("/")[0]
                for key, entry in past.manifest.tasks.items()
                for name, file in entry.files.items()
                if name not in files or files[name].sha256 != file.sha256
            }
            found.other = [f"files of stage {name}" for name in sorted(stages)]
            keys = key_hashes(self.config)
            known = past.manifest.keys or keys
            found.other += [
                f"key {key}" for key in sorted(known.keys() | keys.keys()) if known.get(key) != keys.get(key)
            ]
        return found

    def restore(self) -> None:
        """Puts the release among the others, judged once more; `current` stays where it is."""
        tree, past = ReleaseLayout(self.staging / "release"), self.past
        manifest = make_manifest(self.night, self.stages, past.run_id, past.parent, self.tasks())
        manifest = manifest.model_copy(update={"release_id": past.release, "created_at": past.created_at})
        known = set(manifest.files)
        for path in list(tree.path.rglob("*")):
            if path.is_file() and str(path.relative_to(tree.path)) not in known:
                path.unlink()
        manifest = gate.judge_release(tree, manifest, self.config, self.summaries, self.layout, self.previous)
        write_manifest(tree.manifest, with_report(manifest, tree))
        sync_tree(tree.path)
        tree.path.rename(self.layout.releases / past.release)
        sync_directory(self.layout.releases)


def _by_table(sources: dict[str, str]) -> dict[str, list[str]]:
    """By `source/table`, the fingerprints of its files in their order."""
    found: dict[str, list[str]] = {}
    for name in sorted(sources, key=lambda name: int(name.rpartition("/")[2])):
        found.setdefault(name.rpartition("/")[0], []).append(sources[name])
    return found


def print_rebuilt(found: Rebuilt, say: Callable[[str], None]) -> None:
    """The same for a person."""
    if found.from_segments:
        say(f"from segments, as the raw files are others now: {', '.join(found.from_segments)}")
    said: dict[bool, Any] = {True: "has the hash that it had", False: "has another hash than it had"}
    say(f"release {found.release} was made again and {said[found.same]}: {found.content_hash}")
    for part in found.other:
        say(f"other than then: {part}")
    if found.restored:
        say("it is among the releases again")
    elif found.same and not found.stands:
        say("it is not among the releases: --restore puts it back")
