"""What a stage is, and what every `plan(night)` is given: the configuration, the root, and what earlier stages did."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from embedders.encoders.spec import store_spec
from extractors.source import load_source
from extractors.tables.export import Export
from pipelines.config import ModalityConfig, RunConfig
from pipelines.engine.context import RunContext, StageReport
from pipelines.engine.cost import Cost, used_here
from pipelines.engine.fingerprints import Fingerprints
from pipelines.engine.run_stage import run_stage
from pipelines.engine.task import StageFunction, Task
from pipelines.profiles.rules import ProfileConfig
from warehouse.errors import TimeloomError
from warehouse.layout import Layout, ReleaseLayout, bucket_name
from warehouse.manifest import EncoderEntry

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What a stage says of its workers, for a table of the scheduler and for the run's log.

    Attributes:
        rows: the rows of the table, JSON.
        line: one row in words.
    """

    rows: Callable[[StageReport], list[dict[str, Any]]]
    line: Callable[[dict[str, Any]], str]


@dataclass(frozen=True, kw_only=True)
class Stage(StageFunction):
    """A stage of a night; `pipelines.stages.STAGES` lists them in order.

    Attributes:
        after: the stages whose reports its `plan`, `check` and `declare` read.
        plan: gives the tasks, all of them: the engine finds those that are out of date.
        ready: raises what can be known to be wrong before any work is done.
        check: looks at what the stage did, and raises what must stop the run.
        prepares: the stage whose out-of-date tasks this one works for. It runs before them, and only if there are some;
            its plan reads them from `night.stale`.
        before, behind: of a stage that prepares another one: what is done before its plan, and after its tasks.
        lasting: patterns of files that later releases carry on, even those whose configuration does not name them.
        in_release: whether its files belong to the release; else they lie in `segments/` and are shared by releases.
        in_conversion: whether `timeloom meds` runs it too.
        declare: fields of the manifest that the stage knows.
        quarantined: how many rows or items the stage could not use.
        figures: what it says of its workers.
        keys: of the configuration's, the first words of those that its tasks depend on.
    """

    after: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    plan: "Callable[[Night], Iterable[Task]]"
    ready: "Callable[[Night], None] | None" = None
    check: "Callable[[StageReport, Night], None] | None" = None
    prepares: str | None = None
    before: "Callable[[Night], None] | None" = None
    behind: "Callable[[Night], None] | None" = None
    lasting: tuple[str, ...] = ()
    in_release: bool = True
    in_conversion: bool = False
    declare: "Callable[[Night], dict[str, Any]] | None" = None
    quarantined: Callable[[StageReport], int] | None = None
    figures: Figures | None = None


def _say_nothing(_line: str) -> None:
    """The log of a run that keeps none."""


@dataclass(frozen=True)
class Night:
    """One run, as its stages see it.

    Attributes:
        base: the folder that the configuration's source files are relative to.
        trial_subjects: a trial runs on that many subjects only; None for all.
        log: takes a line for the run's log; never a patient's value.
        stale: the tasks that a stage which `prepares` another one works for.
        handed_on: what was worked out once for all stages, by name; see `once`.
    """

    config: RunConfig
    base: Path
    layout: Layout
    context: RunContext
    fingerprints: Fingerprints
    trial_subjects: int | None = None
    log: Callable[[str], None] = _say_nothing
    stale: Sequence[Task] = ()
    reports: dict[str, StageReport] = field(default_factory=dict)
    handed_on: dict[Any, Any] = field(default_factory=dict)
    reader: Stage | None = None

    def seen_by(self, stage: Stage, stale: Sequence[Task] = ()) -> "Night":
        """This night as a stage may see it: with the reports of the stages that it names in `after`, and its own."""
        return replace(self, reader=stage, stale=stale)

    def report(self, name: str) -> StageReport:
        """What a stage did.

        Raises:
            LookupError: the stage that asks does not name that one in `after`, or it has not run.
        """
        found = self.report_if_run(name)
        if found is None:
            raise LookupError(f"the stage {name} has not run")
        return found

    def report_if_run(self, name: str) -> StageReport | None:
        """What a stage did; None where this run does without it, as a conversion does without items.

        Raises:
            LookupError: the stage that asks does not name that one in `after`.
        """
        if self.reader is not None and name not in (*self.reader.after, self.reader.name):
            raise LookupError(f"the stage {self.reader.name} reads {name}, which it does not name in `after`")
        return self.reports.get(name)

    def tell(self, line: str) -> None:
        """A line for whoever watches the run, and for its log."""
        self.log(line)
        if self.context.notice:
            self.context.notice(line)

    def once(self, key: Any, compute: Callable[[], T]) -> T:
        """A value that several stages need and one works out."""
        if key not in self.handed_on:
            self.handed_on[key] = compute()
        value: T = self.handed_on[key]
        return value

    @cached_property
    def tree(self) -> ReleaseLayout:
        """The release that is being built."""
        return ReleaseLayout(self.context.staging / "release")

    @property
    def exports(self) -> list[Export]:
        """The exports that the configuration names; see `exports_of`."""
        return self.once("exports", lambda: exports_of(self.config, self.base))

    @property
    def profiles(self) -> list[tuple[str, ProfileConfig]]:
        """Each token profile's name and rules, its scheme and its encoders filled in."""
        return [(name, self.config.profile(name)) for name in self.config.profiles]

    @property
    def encoders(self) -> dict[str, tuple[EncoderEntry, ...]]:
        """What each modality's vectors are made by, in the order of the configuration.

        Raises:
            TimeloomError: weights that are missing, or two names for one encoder.
        """
        return self.once("encoders", lambda: _encoders(self.config))

    def stores_of(self, profile: ProfileConfig) -> dict[str, str]:
        """By modality, the store of the encoder that a profile of `profiles` names."""
        return {
            modality: next(entry.store for entry in entries if entry.name == profile.encoders[modality])
            for modality, entries in self.encoders.items()
        }

    @property
    def pack_groups(self) -> list[list[int]]:
        """The buckets of each pack group."""
        buckets, number = self.config.buckets, self.config.pack_groups
        edges = [buckets * group // number for group in range(number + 1)]
        return [list(range(first, end)) for first, end in pairwise(edges)]

    def bucket_inputs(self, profile: ProfileConfig) -> dict[int, list[Any]]:
        """Per bucket, the hashes of its events and of the items that have a vector of the profile's encoders; for
        stages after `align` and `embed`."""
        events, embedded = self.report("align").hashes(), self.report("embed").entries
        relative, stores = ReleaseLayout(Path()), sorted(self.stores_of(profile).items())
        return {
            bucket: [
                events[str(relative.events(bucket))],
                [embedded[bucket_name(bucket)].counts["usable"].get("/".join(store)) for store in stores],
            ]
            for bucket in range(self.config.buckets)
        }


def exports_of(config: RunConfig, base: Path) -> list[Export]:
    """The exports that a configuration names.

    Raises:
        TimeloomError: no such source, or a crosswalk that it does not know.
    """
    return [
        Export(named.path, load_source(named.source, base).read_as(named.reading), dict(named.crosswalks))
        for named in config.sources
    ]


def raw_files(exports: Iterable[Export]) -> set[Path]:
    """The files of every table that a source maps; a database is one."""
    return {path for export in exports for files in export.mapped().values() for path in files}


def _encoders(config: RunConfig) -> dict[str, tuple[EncoderEntry, ...]]:
    return {modality: _entries(modality, block) for modality, block in sorted(config.modalities.items())}


def _entries(modality: str, block: ModalityConfig) -> tuple[EncoderEntry, ...]:
    by_store: dict[str, EncoderEntry] = {}
    for encoder in block.all_encoders:
        spec = store_spec(encoder, modality)
        if spec.store_name in by_store:
            raise TimeloomError(
                f"modalities.{modality}: {by_store[spec.store_name].name} and {encoder.called} are one encoder",
                remedy="take one of the two out",
            )
        by_store[spec.store_name] = EncoderEntry(
            name=encoder.called,
            label=spec.label,
            store=spec.store_name,
            dim=spec.width,
            weights_sha256=spec.weights_sha256,
        )
    return tuple(by_store.values())


def carry_out(stage: Stage, night: Night, stages: Sequence[Stage]) -> list[StageReport]:
    """Brings a stage's tasks up to date, looks at what it did, and keeps its report.

    Args:
        stages: of the run; those that prepare this one run before its out-of-date tasks.

    Returns:
        The reports of the stages that ran, this one's last.

    Raises:
        TimeloomError: a task failed, or the stage's check stops the run.
    """
    seen = night.seen_by(stage)
    reports: list[StageReport] = []
    start = used_here()

    def prepare(stale: Sequence[Task]) -> None:
        for helper in stages:
            if helper.prepares == stage.name:
                began, seen_by_helper = used_here(), night.seen_by(helper, stale)
                if helper.before:
                    helper.before(seen_by_helper)
                tasks = list(helper.plan(seen_by_helper))
                prepared = night.reports[helper.name] = run_stage(helper, tasks, night.context)
                if helper.behind:
                    helper.behind(seen_by_helper)
                prepared.cost = used_here() - began + Cost(0.0, prepared.workers_seconds)
                reports.append(prepared)

    def plan() -> list[Task]:
        return list(stage.plan(seen))

    report = night.reports[stage.name] = run_stage(stage, plan(), night.context, prepare, plan)
    if stage.check:
        stage.check(report, seen)
    report.cost = used_here() - start + Cost(0.0, report.workers_seconds)
    for prepared in reports:
        report.cost -= prepared.cost - Cost(0.0, prepared.workers_seconds)
    return [*reports, report]
