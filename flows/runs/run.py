"""One run, from raw exports to a published release, as named steps that a scheduler may wrap.

A run works in `work/<run>`; a killed run's folder is taken over, so that what it finished is not done again.
"""

import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Self

from extractors.deid import Deidentifier
from flows.keeping.collect import collect, recorded_files, records_kept, remove, stores_of
from flows.runs import gate
from flows.runs.log import RunLog
from flows.runs.paths import configured
from flows.runs.record import (
    clock_behind,
    make_manifest,
    new_run_id,
    quarantined,
    record_lineage,
    records_of,
    same_release,
    share_with,
    with_report,
)
from flows.runs.root import bind_root, forget_scratch, is_used, with_numbers
from flows.runs.settings import RunSettings, make_engine
from flows.runs.standing import parent_of, put_back, standing_releases
from pipelines.config import RunConfig
from pipelines.embed import STAGE as EMBED
from pipelines.embed import waiting_vectors
from pipelines.engine.context import RunContext, Standing
from pipelines.engine.cost import Cost, used_here
from pipelines.engine.fingerprints import Fingerprints
from pipelines.engine.task import Engine
from pipelines.night import Night, Stage, carry_out
from validation import stages as list_of_stages
from validation.measure.stage import STAGE as MEASURE
from warehouse.errors import TimeloomError
from warehouse.file_system import require_fit
from warehouse.files import link_or_copy
from warehouse.layout import Layout, ReleaseLayout
from warehouse.manifest import Manifest, TaskEntry, tokenised_shares
from warehouse.progress import Progress
from warehouse.publish import complete_publication, exclusive, publish


@dataclass(frozen=True)
class RunOutcome:
    """How a run ended.

    Attributes:
        release: the current release's id.
        published: a new one was published; False where nothing changed.
        quarantined: images that failed, and raw rows that made nothing and are no duplicates.
        steps: per step that had work, its tasks run, linked and resumed, its seconds by the clock and of processors; of
            one that another stage prepares also the seconds of each.
        tokenised: by profile, the share of clinical events that became tokens.
        accepted: the parts of the release whose loss was agreed to, in words.
        damaged: files of the release before, and stores of vectors, that were damaged or gone and are made anew.
        withheld: why tasks have no labels, a line each.
        collected: what of older nights was removed, in words; empty where nothing was.
        waiting: by modality, the vectors that wait to be made: workers elsewhere make them.
        unannounced: how `on_publish` failed, in words; empty where it did not.
        clock: that the clock went back since the release before was made, in words; empty where it did not.
    """

    release: str
    published: bool
    quarantined: int
    report: Path
    steps: list[dict[str, Any]]
    tokenised: dict[str, float] = field(default_factory=dict)
    accepted: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    withheld: list[str] = field(default_factory=list)
    collected: str = ""
    unannounced: str = ""
    clock: str = ""
    waiting: dict[str, int] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        return 2 if self.quarantined else 0

    def lines(self) -> list[str]:
        """What a person is told of it."""
        what = "published" if self.published else "nothing changed, nothing published; current is"
        lines = [f"{what} release {self.release}"]
        if self.quarantined:
            lines.append(
                f"{self.quarantined} images or raw rows (duplicates apart) are quarantined; the report says why"
            )
        if self.waiting:
            named = ", ".join(f"{number} {modality}" for modality, number in self.waiting.items())
            lines.append(
                f"vectors that wait to be made: {named}; their places are empty, and the next night fills them"
            )
        lines += [
            f"profile {name}: {share:.1%} of clinical events are tokens" for name, share in self.tokenised.items()
        ]
        if self.damaged:
            named = ", ".join(self.damaged[:5]) + (", …" if len(self.damaged) > 5 else "")
            lines.append(f"{len(self.damaged)} damaged or lost files were made anew: {named}")
        lines += [f"loss agreed to: {part}" for part in self.accepted]
        lines += self.withheld
        lines += [said for said in (self.clock, self.collected, self.unannounced) if said]
        return [*lines, f"report: {self.report}"]


@dataclass
class _State:
    """How far the run has come."""

    manifest: Manifest | None = None
    unchanged: bool = False  # equal to the current release, and that one is whole
    published: bool = False
    damaged: list[str] = field(default_factory=list)
    collected: str = ""


class Run:
    """A run over one root. Use as a context manager, then carry out `steps` in order.

    Args:
        base: the folder that the configuration's source files are relative to.
        limit: run on that many subjects only, those with the smallest hash.
        accept_loss: names of tables, sources, modalities or namespaces of which tonight's release may hold much less
            than those before.
        rehash: read every raw file again, whatever is remembered of it.
        repair: what is damaged in the current release and cannot be made again is taken from the release before.
        stages: what a night consists of; the whole list where None.
        wait: for another run of the root to end; else this one is refused.
        notice: takes lines for whoever watches the run.
    """

    # The steps that are no stages.
    JUDGEMENT = ("validate", "publish")

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
        repair: bool = False,
        progress: Progress | None = None,
        stages: Sequence[Stage] | None = None,
        wait: bool = False,
        notice: Callable[[str], None] | None = None,
    ) -> None:
        self.config, self.base, self.layout, self.engine = config, base, layout, engine
        self.limit_subjects, self.rehash, self.repair = limit, rehash, repair
        self.accept_loss = tuple(accept_loss)
        self.progress, self.wait, self.notice = progress, wait, notice
        self.stages = tuple(stages or list_of_stages.NIGHT)
        self.summaries: list[dict[str, Any]] = []
        self._state = _State()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        Deidentifier(self.config.deid, b"")
        self._stack.enter_context(exclusive(self.layout, wait=self.wait))
        try:
            complete_publication(self.layout)
            forget_scratch(self.layout)
            self.config = with_numbers(self.config, self.base, self.layout)
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
        # Engines end their workers at once where the run was told to end.
        self._stack.__exit__(kind, error, trace)

    def _check_root(self) -> None:
        """Holds the run against what was fixed when the root was made."""
        new = not is_used(self.layout)
        if new:
            require_fit(self.layout.root)
        bind_root(self.layout, self.config, self.limit_subjects, new=new)

    def _adopt_work(self) -> None:
        folders = sorted(path for path in self.layout.work.glob("*") if path.is_dir())
        # A run without its release tree was killed after it had published: its name stays its own.
        left = [path for path in folders if (path / "release").is_dir()][-1:]
        self.run_id = left[0].name if left else new_run_id(self.layout)
        for older in folders:
            if older not in left:
                shutil.rmtree(older)
        self.staging = self.layout.work / self.run_id
        (self.staging / "release").mkdir(parents=True, exist_ok=True)
        self.log = RunLog(self.layout.logs / f"{self.run_id}.log")
        self.log.line(f"run {self.run_id} {'resumed' if left else 'started'}")
        standing, lenders = standing_releases(self.layout, repair=self.repair)
        if self.accept_loss:
            gate.check_names(self.accept_loss, standing.manifest if standing else None)
        self._begin(standing, Fingerprints(self.layout.private, rehash=self.rehash), lenders if self.repair else None)

    def _begin(
        self, standing: Standing | None, fingerprints: Fingerprints, older: Sequence[Standing] | None = None
    ) -> None:
        """Makes what the stages share.

        Args:
            standing: the release that this run continues.
            older: what a repair may take from.
        """
        self.previous = standing.manifest if standing else None
        self.context = RunContext(
            engine=self.engine,
            staging=self.staging,
            previous=self.previous,
            previous_path=standing.path if standing else None,
            progress=self.progress,
            notice=self.notice,
            older=older,
        )
        self.night = Night(
            config=self.config,
            base=self.base,
            layout=self.layout,
            context=self.context,
            fingerprints=fingerprints,
            trial_subjects=self.limit_subjects,
            log=self.log.line,
        )

    @property
    def steps(self) -> list[tuple[str, Callable[[], None]]]:
        """Name and function of each step, in order: the stages, then the judgement and the publication.

        A stage that prepares another one is no step of its own.
        """
        work: list[tuple[str, Callable[[], None]]] = [
            (stage.name, partial(self._work, stage)) for stage in self.stages if not stage.prepares
        ]
        return [*work, *zip(self.JUDGEMENT, (self._validate, self._publish), strict=True)]

    def carry_out(self, name: str, step: Callable[[], None]) -> dict[str, Any]:
        """Runs one step and says what it did; one without any task is not listed among what the run did."""
        before = set(self.night.reports)
        start = used_here()
        step()
        new = [report for key, report in self.night.reports.items() if key not in before]
        cost = used_here() - start + Cost(0.0, sum(report.workers_seconds for report in new))
        summary: dict[str, Any] = {
            "step": name,
            "ran": sum(report.ran for report in new),
            "linked": sum(report.linked for report in new),
            "resumed": sum(report.resumed for report in new),
            **cost.as_json(),
        }
        if new and not any(report.entries for report in new):
            # The configuration asks for nothing of it.
            return summary
        if len(new) > 1:
            summary["stages"] = [{"stage": report.name, **report.cost.as_json()} for report in new]
        self.log.line(f"{name}: {summary['ran']} run, {summary['linked']} linked, {summary['resumed']} resumed, {cost}")
        for report in new if len(new) > 1 else ():
            self.log.line(f"{name}: of it {report.name} {report.cost}")
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

    def _work(self, stage: Stage) -> None:
        """Carries out a stage; before the first one, what can be known to be wrong with any is looked at."""
        if stage is self.stages[0]:
            for each in self.stages:
                if each.ready:
                    each.ready(self.night.seen_by(each))
        carry_out(stage, self.night, self.stages)
        self.night.fingerprints.save()

    @property
    def _tree(self) -> ReleaseLayout:
        return self.night.tree

    def tasks(self) -> dict[str, TaskEntry]:
        """By `stage/key`, the tasks whose files belong to the release, once all stages have run; what it carries on is
        there too."""
        made = {
            f"{stage.name}/{key}": entry
            for stage in self.stages
            if stage.in_release
            for key, entry in self.night.reports[stage.name].entries.items()
        }
        return made | self._carry_forward(made)

    def _carry_forward(self, tasks: dict[str, TaskEntry]) -> dict[str, TaskEntry]:
        """What stages declare as lasting and this run did not make: ledgers of schemes, vocabularies of profiles.

        Dropping them would move subjects, or renumber tokens, when a scheme or profile comes back.
        """
        known = {path for entry in tasks.values() for path in entry.files}
        patterns = [pattern for stage in self.stages for pattern in stage.lasting]
        folders: dict[Path, list[Path]] = {}
        for name in self.previous.files if self.previous else ():
            if name not in known and any(PurePosixPath(name).match(pattern) for pattern in patterns):
                folders.setdefault(Path(name).parent, []).append(Path(name))
        carried = {}
        for paths in folders.values():
            for path, inherited in zip(paths, self.context.inherited(*paths), strict=True):
                if inherited is not None:
                    link_or_copy(inherited.path, self._tree.path / path)
                    carried[f"carried/{path}"] = TaskEntry(
                        fingerprint=inherited.entry.sha256, files={str(path): inherited.entry}
                    )
        return carried

    def _validate(self) -> None:
        """Judges the staging tree; an unchanged one was judged when it was published."""
        tasks = self.tasks()
        self._state.manifest = make_manifest(self.night, self.stages, self.run_id, None, tasks)
        put_back(self.context, self.layout, self._tree, self._state.manifest)
        stores = [f"stores of {task}" for task in self.context.unsound]
        self._state.damaged = [*self.context.damaged, *stores]
        if self._state.damaged:
            self.log.line(f"damaged or gone, and made anew: {', '.join(self._state.damaged)}")
        parent = parent_of(self.context)
        self._state.manifest = self._state.manifest.model_copy(update={"parent": parent.release_id if parent else None})
        same = self.previous is not None and same_release(self.previous, self._state.manifest)
        # A repair may stand on an older release than the current one.
        stands = self.context.previous_path == self.layout.current.resolve()
        self._state.unchanged = same and stands and not self.context.damaged
        if self._state.unchanged:
            return
        _remove_strangers(self._tree.path, set(self._state.manifest.files))
        try:
            self._state.manifest = gate.judge_release(
                self._tree,
                self._state.manifest,
                self.config,
                self.summaries,
                self.layout,
                parent,
                self.accept_loss,
            )
        except Exception:
            # A file that was spoilt before it was measured is made again by the next run, and then measured again.
            shutil.rmtree(self.staging / "tasks" / MEASURE.name, ignore_errors=True)
            raise
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
            if self.previous is not None and self.context.previous_path is not None:
                standing = Standing(self.previous, self.context.previous_path)
                share_with(standing, self._tree, manifest, self.stages)
            # First, so that no kill leaves a release without its lineage: a run that is taken over writes it again.
            record_lineage(self.layout, manifest, self.config.name, self.summaries)
            publish(self.layout, self._tree.path, manifest)
            self._state.published = True
            self.log.line(f"published {manifest.release_id}")
            if behind := clock_behind(manifest):
                self.log.line(behind)
        # The run's folder stands until then: it says that files without a record may be there.
        self._forget_old_segments()
        shutil.rmtree(self.staging, ignore_errors=True)
        self._collect()

    def _forget_old_segments(self) -> None:
        kept = records_of(self.night, self.stages)
        if self.config.keep is not None:
            kept |= records_kept(self.layout, self.config.keep)
        for path in list(recorded_files(self.layout)):
            if path.stem not in kept:
                remove(path)

    def _collect(self) -> None:
        """Removes what the configuration does not keep. The night is done: what stops this is said, and no failure."""
        keep = self.config.keep
        if keep is None or not keep.nightly:
            return
        try:
            collection = collect(self.layout, keep, self.config.limits.window, stores_of(self.config), apply=True)
            said = collection.line() if collection.gone else ""
        except (TimeloomError, OSError) as error:
            said = f"collecting stopped: {error if isinstance(error, TimeloomError) else type(error).__name__}"
        if said:
            self.log.line(said)
            self._state.collected = said

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
            damaged=self._state.damaged,
            withheld=[
                f"task {name} has no labels: {line}" for name, task in manifest.labels.items() for line in task.withheld
            ],
            collected=self._state.collected,
            clock="" if self._state.unchanged else clock_behind(manifest),
            waiting=waiting_vectors(self.night.reports[EMBED.name]) if EMBED.name in self.night.reports else {},
        )


def encoding_here(config: RunConfig) -> RunConfig:
    """The configuration of a run whose own processes make vectors, whatever the file says."""
    embedding = config.embedding.model_copy(update={"workers": "here", "wait": True})
    return config.model_copy(update={"embedding": embedding})


def open_run(
    settings: RunSettings,
    progress: Progress | None,
    *,
    repair: bool = False,
    notice: Callable[[str], None] | None = None,
    encodes: bool = False,
) -> Run:
    """A run, ready to be entered.

    Args:
        notice: takes lines for whoever watches the run.
        encodes: its own processes encode, whatever the configuration says.
    """
    config, layout = configured(settings)
    if encodes:
        config = encoding_here(config)
    return Run(
        config,
        settings.config.parent.resolve(),
        layout,
        make_engine(settings, config),
        limit=settings.limit,
        accept_loss=settings.accept_loss,
        rehash=settings.rehash,
        repair=repair,
        progress=progress,
        wait=settings.wait,
        notice=notice,
    )


def _remove_strangers(tree: Path, known: set[str]) -> None:
    """Files that a killed run with other settings left in the staging tree."""
    for path in tree.rglob("*"):
        if path.is_file() and str(path.relative_to(tree)) not in known:
            path.unlink()
