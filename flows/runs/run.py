"""One run, from raw exports to a published release, as named steps that a scheduler may wrap.

A run works in `work/<run>`; a killed run's folder is taken over, so that what it finished is not done again.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from extractors.deid import Deidentifier
from flows.extras import require
from flows.runs.log import RunLog
from flows.runs.record import make_manifest, quarantined, record_lineage, same_release, with_report
from flows.runs.root import bind_root, forget_scratch
from flows.runs.settings import RunSettings, make_engine, root_of
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
from pipelines.config import RunConfig, load_config
from pipelines.engine.context import RunContext, StageReport
from pipelines.engine.fingerprints import Fingerprints
from pipelines.engine.run_stage import run_stage
from pipelines.engine.task import Engine, Task
from pipelines.profiles.rules import ProfileConfig
from pipelines.splitting.merges import read_merges
from pipelines.trial import trial_bound
from warehouse.errors import TimeloomError
from warehouse.files import link_or_copy, sha256_file
from warehouse.layout import Layout, ReleaseLayout
from warehouse.manifest import EncoderEntry, Manifest, TaskEntry, read_manifest
from warehouse.parquet import read_frame
from warehouse.progress import Progress
from warehouse.publish import complete_publication, current_release, exclusive, publish

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True)
class RunOutcome:
    """How a run ended.

    Attributes:
        release: the current release's id.
        published: a new one was published; False where nothing changed.
        quarantined: images that failed, and raw rows that made nothing and are no duplicates.
        steps: per step, its tasks run, linked and resumed, and its seconds.
    """

    release: str
    published: bool
    quarantined: int
    report: Path
    steps: list[dict[str, Any]]

    @property
    def exit_code(self) -> int:
        return 2 if self.quarantined else 0


@dataclass
class _State:
    """What steps hand on to later steps."""

    reports: dict[str, StageReport] = field(default_factory=dict)
    tasks: dict[str, TaskEntry] = field(default_factory=dict)
    splits: dict[str, dict[int, str]] = field(default_factory=dict)  # scheme to bucket to the hash of its splits
    stores: dict[str, EncoderEntry] = field(default_factory=dict)
    merges: "pl.DataFrame | None" = None
    limit: str | None = None
    manifest: Manifest | None = None
    unchanged: bool = False  # equal to the current release, and that one is whole
    published: bool = False


class Run:
    """A run over one root. Use as a context manager, then carry out `steps` in order.

    Args:
        base: the folder that the configuration's source files are relative to.
        limit: run on that many subjects only, those with the smallest hash.
    """

    def __init__(
        self,
        config: RunConfig,
        base: Path,
        layout: Layout,
        engine: Engine,
        *,
        limit: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.config, self.base, self.layout, self.engine = config, base, layout, engine
        self.limit_subjects = limit
        self.progress = progress
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
        self.context = RunContext(
            engine=self.engine,
            staging=self.staging,
            previous=self.previous,
            previous_path=current.path if current else None,
            progress=self.progress,
        )

    @property
    def steps(self) -> list[tuple[str, Callable[[], None]]]:
        """Name and function of each step, in order."""
        return [
            ("extract", self._extract),
            ("embed", self._embed),
            ("align", self._align),
            ("split", self._split),
            ("vocabulary", self._vocabulary),
            ("tokenize", self._tokenize),
            ("pack", self._pack),
            ("validate", self._validate),
            ("publish", self._publish),
        ]

    def carry_out(self, name: str, step: Callable[[], None]) -> dict[str, Any]:
        """Runs one step and says what it did."""
        before = set(self._state.reports)
        start = time.monotonic()
        step()
        new = [report for key, report in self._state.reports.items() if key not in before]
        summary = {
            "step": name,
            "ran": sum(report.ran for report in new),
            "linked": sum(report.linked for report in new),
            "resumed": sum(report.resumed for report in new),
            "seconds": round(time.monotonic() - start, 2),
        }
        self.log.line(f"{name}: {summary['ran']} run, {summary['linked']} linked, {summary['resumed']} resumed")
        devices = [one for report in new if report.name == encode.STAGE.name for one in encode.figures(report)]
        if devices:
            summary["devices"] = devices
            for device in devices:
                self.log.line(f"{name}: {encode.described(device)}")
        self.summaries.append(summary)
        return summary

    def _run(
        self,
        stage: Any,
        tasks: list[Task],
        *,
        in_release: bool = True,
        prepare: Callable[[Sequence[Task]], None] | None = None,
    ) -> StageReport:
        report = run_stage(stage, tasks, self.context, prepare)
        known = self._state.reports.get(stage.name)
        if known is not None:
            report.entries = known.entries | report.entries
            report.ran, report.linked = report.ran + known.ran, report.linked + known.linked
            report.resumed += known.resumed
        self._state.reports[stage.name] = report
        if in_release:
            self._state.tasks |= {f"{stage.name}/{key}": entry for key, entry in report.entries.items()}
        return report

    def _extract(self) -> None:
        if self.config.merges:
            # Used by the splits only, but a file that is wrong should not be found out after hours of encoding.
            self._state.merges = read_merges(self.config.merges, self.config.deid, self.layout.private)
        self._fingerprints = fingerprints = Fingerprints(self.layout.private)
        extracted = self._run(
            meds.STAGE, meds.plan(self.config, self.base, self.layout, fingerprints), in_release=False
        )
        meds.check_times(extracted, self.config.limits.unparsable_times)
        subjects = meds.subjects_of(extracted, self.layout.segments)
        self._run(index.STAGE, index.plan(self.config, self.layout, fingerprints), in_release=False)
        fingerprints.save()
        self._state.stores = embed.encoders(self.config)
        if self.limit_subjects is not None:
            self._state.limit = trial_bound(subjects["subject_id"], self.limit_subjects)

    def _embed(self) -> None:
        indexed = self._state.reports[index.STAGE.name]
        tasks = embed.plan(self.config, self.context, self.layout, indexed, self._state.limit)

        def fill_stores(stale: Sequence[Task]) -> None:
            self._run(encode.STAGE, encode.plan(self.config, self.context, stale), in_release=False)

        self._run(embed.STAGE, tasks, prepare=fill_stores)

    def _align(self) -> None:
        reports = self._state.reports
        before = self.context.inherited(ReleaseLayout(Path()).lags)
        self._run(lags.STAGE, lags.plan(self.context, self.layout, reports[meds.STAGE.name], before))
        tasks = align.plan(
            self.context,
            self.layout,
            self.config.buckets,
            reports[meds.STAGE.name],
            reports[embed.STAGE.name],
            read_frame(self._tree.lags),
            self._state.limit,
        )
        aligned = self._run(align.STAGE, tasks)
        if aligned.total("events") == 0:
            raise TimeloomError("no events came out of the sources", remedy="look at the ledger and the source's YAML")
        self._run(
            metadata.STAGE,
            metadata.plan(
                self.context,
                self.config.name,
                self.layout,
                meds.exports(self.config, self.base),
                self._fingerprints,
                reports[meds.STAGE.name],
                aligned,
            ),
        )

    def _split(self) -> None:
        aligned = self._state.reports[align.STAGE.name]
        tasks = split.plan(self.context, self.config.splits, aligned, self._state.merges)
        first = self._run(split.STAGE, tasks).entries[self.config.primary_scheme]
        if unknown := first.counts["merged_ids_unknown"]:
            self.log.line(f"split: {unknown} ids of the merges are in no table of this or an earlier night")
        self._state.splits = {
            scheme: split.slice_hashes(self._tree.scheme_subjects(scheme), self.config.buckets)
            for scheme in self.config.splits
        }

    @property
    def _profiles(self) -> list[tuple[str, ProfileConfig, dict[int, str]]]:
        """Each profile's name and rules, and the hashes of its scheme's splits."""
        named = [(name, self.config.profile(name)) for name in self.config.profiles]
        return [(name, profile, self._state.splits[str(profile.scheme)]) for name, profile in named]

    @property
    def _tree(self) -> ReleaseLayout:
        return ReleaseLayout(self.staging / "release")

    def _bucket_inputs(self) -> dict[int, Any]:
        events, items = (self._state.reports[stage.name].hashes() for stage in (align.STAGE, embed.STAGE))
        relative = ReleaseLayout(Path())
        return {
            bucket: [events[str(relative.events(bucket))], items[str(relative.items(bucket))]]
            for bucket in range(self.config.buckets)
        }

    def _vocabulary(self) -> None:
        inputs = self._bucket_inputs()
        for name, profile, splits in self._profiles:
            tasks = count.plan(self.context, name, profile, inputs, splits)
            counts = self._run(count.STAGE, tasks)
            self._run(vocabulary.STAGE, [vocabulary.plan(self.context, name, profile, counts)])

    def _tokenize(self) -> None:
        inputs = self._bucket_inputs()
        for name, profile, _ in self._profiles:
            self._run(tokenize.STAGE, tokenize.plan(self.context, name, profile, inputs))

    def _pack(self) -> None:
        buckets, number = self.config.buckets, self.config.pack_groups
        groups = [list(range(buckets * one // number, buckets * (one + 1) // number)) for one in range(number)]
        tokenized = self._state.reports[tokenize.STAGE.name]
        for name, profile, splits in self._profiles:
            self._run(subset.STAGE, subset.plan(self.context, name, profile, buckets, tokenized))
            tasks = pack.plan(
                self.context,
                name,
                profile,
                groups,
                tokenized,
                splits,
                read_frame(self._tree.vocabulary(name)),
                {modality: entry.store for modality, entry in self._state.stores.items()},
            )
            self._run(pack.STAGE, tasks)

    def _carry_forward(self) -> None:
        """Ledgers of schemes and vocabularies of profiles that this run does not use: they hold for ever.

        Dropping them would move subjects, or renumber tokens, when a scheme or profile comes back.
        """
        known = {path for entry in self._state.tasks.values() for path in entry.files}
        for path, file in self.previous.files.items() if self.previous else ():
            lasting = (path.startswith("splits/") and path.endswith(("/ledger.parquet", "/freeze.json"))) or (
                path.startswith("vocabularies/") and "/counts/" not in path
            )
            inherited = self.context.inherited(Path(path))
            if lasting and path not in known and inherited is not None:
                if not inherited.path.is_file() or sha256_file(inherited.path) != file.sha256:
                    raise TimeloomError(
                        f"{path} of the current release is damaged", remedy="point `current` at an older release"
                    )
                link_or_copy(inherited.path, self._tree.path / path)
                self._state.tasks[f"carried/{path}"] = TaskEntry(fingerprint=file.sha256, files={path: file})

    def _validate(self) -> None:
        """Judges the staging tree; an unchanged one was judged when it was published."""
        self._carry_forward()
        self._state.manifest = make_manifest(
            self.config,
            self.layout,
            self.run_id,
            self.previous.release_id if self.previous else None,
            self._state.reports,
            self._state.tasks,
            self._state.stores,
        )
        same = self.previous is not None and same_release(self.previous, self._state.manifest)
        self._state.unchanged = same and not self.context.damaged
        if self._state.unchanged:
            return
        _remove_strangers(self._tree.path, set(self._state.manifest.files))
        from flows.runs.gate import judge_release

        judge_release(self._tree, self._state.manifest, self.config, self.summaries, before=self.context.previous_path)

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
        reports = [self._state.reports[stage.name] for stage in (meds.STAGE, index.STAGE)]
        kept = {Path(name).stem for report in reports for name in report.hashes()}
        for path in (*self.layout.segments.glob("*"), *(self.layout.private / "items").glob("*")):
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
        release = self.previous.release_id if self._state.unchanged and self.previous else manifest.release_id
        return RunOutcome(
            release=release,
            published=not self._state.unchanged,
            quarantined=quarantined(manifest, self._state.reports[meds.STAGE.name]),
            report=ReleaseLayout(self.layout.releases / release).report,
            steps=self.summaries,
        )


def open_run(settings: RunSettings, progress: Progress | None) -> Run:
    """A run, ready to be entered."""
    config = load_config(settings.config)
    if config.images:
        require("images", "images")
    layout = Layout(root_of(config, settings.root))
    return Run(
        config,
        settings.config.parent.resolve(),
        layout,
        make_engine(settings, config),
        limit=settings.limit,
        progress=progress,
    )


def _remove_strangers(tree: Path, known: set[str]) -> None:
    """Files that a killed run with other settings left in the staging tree."""
    for path in tree.rglob("*"):
        if path.is_file() and str(path.relative_to(tree)) not in known:
            path.unlink()
