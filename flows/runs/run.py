"""One run, from raw exports to a published release, as named steps that a scheduler may wrap.

A run works in `work/<run>`; a killed run's folder is taken over, so that what it finished is not done again.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import TYPE_CHECKING, Any

from extractors.deid import Deidentifier
from flows.extras import require
from flows.runs import gate
from flows.runs.log import RunLog
from flows.runs.record import make_manifest, quarantined, record_lineage, same_release, with_report
from flows.runs.root import bind_root, forget_scratch
from flows.runs.settings import RunSettings, make_engine, root_of
from pipelines import stages as list_of_stages
from pipelines.config import RunConfig, load_config
from pipelines.engine.context import RunContext
from pipelines.engine.fingerprints import Fingerprints
from pipelines.engine.task import Engine
from pipelines.night import Night, Stage, carry_out
from warehouse.errors import TimeloomError
from warehouse.files import link_or_copy, sha256_file
from warehouse.layout import Layout, ReleaseLayout
from warehouse.manifest import Manifest, TaskEntry, read_manifest, tokenised_shares
from warehouse.progress import Progress
from warehouse.publish import complete_publication, current_release, exclusive, publish

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class RunOutcome:
    """How a run ended.

    Attributes:
        release: the current release's id.
        published: a new one was published; False where nothing changed.
        quarantined: images that failed, and raw rows that made nothing and are no duplicates.
        steps: per step, its tasks run, linked and resumed, and its seconds.
        tokenised: by profile, the share of clinical events that became tokens.
        accepted: the parts of the release whose loss was agreed to, in words.
    """

    release: str
    published: bool
    quarantined: int
    report: Path
    steps: list[dict[str, Any]]
    tokenised: dict[str, float] = field(default_factory=dict)
    accepted: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        return 2 if self.quarantined else 0


@dataclass
class _State:
    """How far the run has come."""

    manifest: Manifest | None = None
    unchanged: bool = False  # equal to the current release, and that one is whole
    published: bool = False


class Run:
    """A run over one root. Use as a context manager, then carry out `steps` in order.

    Args:
        base: the folder that the configuration's source files are relative to.
        limit: run on that many subjects only, those with the smallest hash.
        accept_loss: names of tables, sources, modalities or namespaces of which tonight's release may hold much less
            than those before.
        rehash: read every raw file again, whatever is remembered of it.
        stages: what a night consists of; the whole list where None.
    """

    def __init__(
        self,
        config: RunConfig,
        base: Path,
        layout: Layout,
        engine: Engine,
        *,
        limit: int | None = None,
        accept_loss: Sequence[str] = (),
        rehash: bool = False,
        progress: Progress | None = None,
        stages: Sequence[Stage] | None = None,
    ) -> None:
        self.config, self.base, self.layout, self.engine = config, base, layout, engine
        self.limit_subjects, self.rehash = limit, rehash
        self.accept_loss = tuple(accept_loss)
        self.progress = progress
        self.stages = tuple(stages or list_of_stages.STAGES)
        self.summaries: list[dict[str, Any]] = []
        self._state = _State()
        self._stack = ExitStack()

    def __enter__(self) -> "Run":
        Deidentifier(self.config.deid, b"")
        self._stack.enter_context(exclusive(self.layout))
        try:
            complete_publication(self.layout)
            forget_scratch(self.layout)
            self._check_root()
            self._adopt_work()
            self._stack.enter_context(self.engine)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.log.failure(error)
            if isinstance(error, TimeloomError):
                error.log = self.log.path
        self._stack.close()

    def _check_root(self) -> None:
        """Holds the run against what was fixed when the root was made."""
        published = self.layout.releases.is_dir() and any(self.layout.releases.iterdir())
        used = published or self.layout.conversion.is_dir()
        new = not (used and self.layout.settings.exists())
        bind_root(self.layout, self.config, self.limit_subjects, new=new)

    def _adopt_work(self) -> None:
        folders = sorted(path for path in self.layout.work.glob("*") if path.is_dir())
        # A run without its release tree was killed after it had published: its name stays its own.
        left = [path for path in folders if (path / "release").is_dir()][-1:]
        self.run_id = left[0].name if left else datetime.now(UTC).strftime("%Y%m%dT%H%M%S%fZ")
        for older in folders:
            if older not in left:
                shutil.rmtree(older)
        self.staging = self.layout.work / self.run_id
        (self.staging / "release").mkdir(parents=True, exist_ok=True)
        self.log = RunLog(self.layout.logs / f"{self.run_id}.log")
        self.log.line(f"run {self.run_id} {'resumed' if left else 'started'}")
        current = current_release(self.layout)
        self.previous = read_manifest(current.manifest) if current else None
        if self.accept_loss:
            gate.check_names(self.accept_loss, self.previous)
        self.context = RunContext(
            engine=self.engine,
            staging=self.staging,
            previous=self.previous,
            previous_path=current.path if current else None,
            progress=self.progress,
        )
        self.night = Night(
            config=self.config,
            base=self.base,
            layout=self.layout,
            context=self.context,
            fingerprints=Fingerprints(self.layout.private, rehash=self.rehash),
            trial_subjects=self.limit_subjects,
            log=self.log.line,
        )

    @property
    def steps(self) -> list[tuple[str, Callable[[], None]]]:
        """Name and function of each step, in order: those of the stages, then the judgement and the publication."""
        named = dict.fromkeys(stage.step for stage in self.stages)
        work: list[tuple[str, Callable[[], None]]] = [(name, partial(self._work, name)) for name in named]
        return [*work, ("validate", self._validate), ("publish", self._publish)]

    def carry_out(self, name: str, step: Callable[[], None]) -> dict[str, Any]:
        """Runs one step and says what it did."""
        before = set(self.night.reports)
        start = time.monotonic()
        step()
        new = [report for key, report in self.night.reports.items() if key not in before]
        summary = {
            "step": name,
            "ran": sum(report.ran for report in new),
            "linked": sum(report.linked for report in new),
            "resumed": sum(report.resumed for report in new),
            "seconds": round(time.monotonic() - start, 2),
        }
        self.log.line(f"{name}: {summary['ran']} run, {summary['linked']} linked, {summary['resumed']} resumed")
        devices = []
        for stage in self.stages:
            if stage.figures and stage.name not in before and stage.name in self.night.reports:
                rows = stage.figures.rows(self.night.reports[stage.name])
                devices += rows
                for row in rows:
                    self.log.line(f"{name}: {stage.figures.line(row)}")
        if devices:
            summary["devices"] = devices
        self.summaries.append(summary)
        return summary

    def _work(self, step: str) -> None:
        """Carries out the stages of a step."""
        stages = [stage for stage in self.stages if stage.step == step]
        if self.stages[0] in stages:
            for stage in self.stages:
                if stage.ready:
                    stage.ready(self.night.seen_by(stage))
        for stage in stages:
            if not stage.prepares:
                carry_out(stage, self.night, self.stages)
        self.night.fingerprints.save()

    @property
    def _tree(self) -> ReleaseLayout:
        return self.night.tree

    def _tasks(self) -> dict[str, TaskEntry]:
        """By `stage/key`, the tasks whose files belong to the release."""
        return {
            f"{stage.name}/{key}": entry
            for stage in self.stages
            if stage.in_release
            for key, entry in self.night.reports[stage.name].entries.items()
        }

    def _carry_forward(self, tasks: dict[str, TaskEntry]) -> dict[str, TaskEntry]:
        """What stages declare as lasting and this run did not make: ledgers of schemes, vocabularies of profiles.

        Dropping them would move subjects, or renumber tokens, when a scheme or profile comes back.
        """
        known = {path for entry in tasks.values() for path in entry.files}
        patterns = [pattern for stage in self.stages for pattern in stage.lasting]
        carried = {}
        for path, file in self.previous.files.items() if self.previous else ():
            lasting = any(PurePosixPath(path).match(pattern) for pattern in patterns)
            inherited = self.context.inherited(Path(path))
            if lasting and path not in known and inherited is not None:
                if not inherited.path.is_file() or sha256_file(inherited.path) != file.sha256:
                    raise TimeloomError(
                        f"{path} of the current release is damaged", remedy="point `current` at an older release"
                    )
                link_or_copy(inherited.path, self._tree.path / path)
                carried[f"carried/{path}"] = TaskEntry(fingerprint=file.sha256, files={path: file})
        return carried

    def _validate(self) -> None:
        """Judges the staging tree; an unchanged one was judged when it was published."""
        tasks = self._tasks()
        tasks |= self._carry_forward(tasks)
        parent = self.previous.release_id if self.previous else None
        self._state.manifest = make_manifest(self.night, self.stages, self.run_id, parent, tasks)
        same = self.previous is not None and same_release(self.previous, self._state.manifest)
        self._state.unchanged = same and not self.context.damaged
        if self._state.unchanged:
            return
        _remove_strangers(self._tree.path, set(self._state.manifest.files))
        self._state.manifest = gate.judge_release(
            self._tree,
            self._state.manifest,
            self.config,
            self.summaries,
            self.layout,
            self.previous,
            self.accept_loss,
        )
        for loss in self._state.manifest.accepted_losses:
            self.log.line(f"loss agreed to: {loss.kind} {loss.name}, {loss.measure} {loss.before} to {loss.now}")

    def _publish(self) -> None:
        manifest = self._state.manifest
        if manifest is None:
            raise TimeloomError("nothing was judged", remedy="run the step validate first")
        if self._state.published:
            pass  # a scheduler asks again: what is left is to tidy up
        elif self._state.unchanged:
            self.log.line("nothing changed, nothing published")
        else:
            manifest = with_report(manifest, self._tree)
            # First, so that no kill leaves a release without its lineage: a run that is taken over writes it again.
            record_lineage(self.layout, manifest, self.config.name, self.summaries)
            publish(self.layout, self._tree.path, manifest)
            self._state.published = True
            self.log.line(f"published {manifest.release_id}")
        shutil.rmtree(self.staging, ignore_errors=True)
        self._forget_old_segments()

    def _forget_old_segments(self) -> None:
        reports = [self.night.reports.get(stage.name) for stage in self.stages if not stage.in_release]
        kept = {Path(name).stem for report in reports if report for name in report.hashes()}
        folders = (self.layout.segments, self.layout.private / "items", self.layout.scanned, self.layout.grouped)
        for path in (path for folder in folders for path in folder.glob("*")):
            if path.stem in kept:
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def outcome(self) -> RunOutcome:
        """How the run ended."""
        manifest = self._state.manifest
        if manifest is None:
            raise TimeloomError("the run has not ended", remedy="carry out every step")
        if self._state.unchanged and self.previous:
            manifest = self.previous
        lost = dict.fromkeys(f"{loss.kind} {loss.name}" for loss in manifest.accepted_losses)
        return RunOutcome(
            release=manifest.release_id,
            published=not self._state.unchanged,
            quarantined=quarantined(self.night, self.stages),
            report=ReleaseLayout(self.layout.releases / manifest.release_id).report,
            steps=self.summaries,
            tokenised=tokenised_shares(manifest),
            accepted=[] if self._state.unchanged else list(lost),
        )


def open_run(settings: RunSettings, progress: Progress | None) -> Run:
    """A run, ready to be entered."""
    config = load_config(settings.config)
    if config.modalities:
        require("images", "images")
    layout = Layout(root_of(config, settings.root))
    return Run(
        config,
        settings.config.parent.resolve(),
        layout,
        make_engine(settings, config),
        limit=settings.limit,
        accept_loss=settings.accept_loss,
        rehash=settings.rehash,
        progress=progress,
    )


def _remove_strangers(tree: Path, known: set[str]) -> None:
    """Files that a killed run with other settings left in the staging tree."""
    for path in tree.rglob("*"):
        if path.is_file() and str(path.relative_to(tree)) not in known:
            path.unlink()
