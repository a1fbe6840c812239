"""Raw tables to a MEDS dataset, without a release: what other MEDS tools need, and a quick look at a new source."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from extractors.deid import Deidentifier
from flows.runs.paths import check_paths, local_folder
from flows.runs.record import quarantined
from flows.runs.root import bind_root, forget_scratch, with_numbers
from flows.runs.settings import RunSettings, make_engine
from pipelines.config import load_config
from pipelines.engine.context import Inherited, RunContext, StageReport
from pipelines.engine.fingerprints import Fingerprints
from pipelines.engine.run_stage import load_record
from pipelines.engine.task import Engine
from pipelines.night import Night, carry_out
from pipelines.stages import STAGES
from warehouse.errors import TimeloomError
from warehouse.files import link_or_copy, sha256_file, sync_tree
from warehouse.layout import Layout
from warehouse.manifest import FileEntry
from warehouse.progress import Progress
from warehouse.publish import exclusive

CONVERSION = tuple(stage for stage in STAGES if stage.in_conversion)
# What a converted dataset holds; a folder with anything else, such as a release or somebody's labels, is not replaced.
_OURS = {"data", "metadata", "ledger.parquet", "quarantine.parquet", "lags.parquet"}


@dataclass(frozen=True)
class Converted:
    """What a conversion made.

    Attributes:
        quarantined: raw rows that made nothing and are no duplicates.
        rewritten: event files, of `buckets`, that are not those of the conversion before.
        said: what a run would write to its log, such as separators that nobody named.
    """

    events: int
    subjects: int
    codes: int
    quarantined: int
    buckets: int
    rewritten: int
    said: list[str]


def convert(
    settings: RunSettings, out: Path, progress: Progress | None = None, engine: Engine | None = None
) -> Converted:
    """Converts a configuration's sources into a MEDS dataset at `out`.

    Args:
        engine: where tasks run; the one that is asked for where None.

    Raises:
        TimeloomError: `out` holds something else, or what a run would stop at.
    """
    _refuse_strangers(out)
    config = load_config(settings.config)
    said: list[str] = []
    chosen = settings.root or config.root or out.with_name(f"{out.name}.root")
    layout = Layout(local_folder(chosen, "--root"))
    check_paths(config.model_copy(update={"modalities": {}, "merges": None}), layout, out)
    base = settings.config.parent.resolve()
    Deidentifier(config.deid, b"")
    with exclusive(layout):
        config = with_numbers(config, base, layout, unnamed=True)
        forget_scratch(layout)
        new = not layout.settings.exists()
        bind_root(layout, config, None, new=new)
        staging = layout.conversion
        (staging / "release").mkdir(parents=True, exist_ok=True)
        with engine or make_engine(settings, config) as running:
            context = _Conversion(running, staging, None, None, progress)
            fingerprints = Fingerprints(layout.private, rehash=settings.rehash)
            night = Night(config, base, layout, context, fingerprints, log=said.append)
            _carry_out(night)
        _put(night, out)
    aligned = next(report for report in night.reports.values() if _of(report, "data/"))
    return Converted(
        events=sum(_of(aligned, "data/").values()),
        subjects=sum(_of(aligned, "subjects/").values()),
        codes=sum(rows for report in night.reports.values() for rows in _of(report, "metadata/codes").values()),
        quarantined=quarantined(night, CONVERSION),
        buckets=config.buckets,
        rewritten=aligned.ran,
        said=said,
    )


def _of(report: StageReport, prefix: str) -> dict[str, int]:
    """Rows of a stage's files below a folder."""
    return {
        path: file.rows or 0
        for entry in report.entries.values()
        for path, file in entry.files.items()
        if path.startswith(prefix)
    }


def _carry_out(night: Night) -> None:
    """Runs the stages that a conversion needs, and removes segments of rows that are gone."""
    for stage in CONVERSION:
        if stage.ready:
            stage.ready(night.seen_by(stage))
    for stage in CONVERSION:
        carry_out(stage, night, CONVERSION)
    night.fingerprints.save()
    kept = {
        Path(name).stem for stage in CONVERSION if not stage.in_release for name in night.reports[stage.name].hashes()
    }
    for path in night.layout.segments.glob("*"):
        if path.stem not in kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


class _Conversion(RunContext):
    """A conversion has no release before. What a night would take from one lies where the last conversion left it."""

    def inherited(self, *relatives: Path) -> list[Inherited | None]:
        """Files of the conversion before; copies, because the new ones take their files' places."""
        return [self._kept(relative) for relative in relatives]

    def _recorded(self, relative: Path) -> FileEntry | None:
        """What the task that wrote a file says of it."""
        records = (load_record(path) for path in (self.staging / "tasks").glob("*/all.json"))
        return next(
            (record.files[str(relative)] for record in records if record and str(relative) in record.files), None
        )

    def _kept(self, relative: Path) -> Inherited | None:
        given, kept = self.staging / "release" / relative, self.staging / relative.name
        if given.is_file():
            entry = self._recorded(relative)
            if entry is not None and not entry.is_of(given):
                raise TimeloomError(
                    f"{relative} of the conversion before is damaged",
                    remedy=f"delete the folder {self.staging}: all is converted anew, and usual delays are found anew",
                )
            link_or_copy(given, kept)
        if not kept.is_file():
            return None
        return Inherited(kept, FileEntry(sha256=sha256_file(kept), bytes=kept.stat().st_size))


def _refuse_strangers(out: Path) -> None:
    if not out.exists():
        return
    try:
        described = json.loads((out / "metadata" / "dataset.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        described = {}
    empty = out.is_dir() and not any(out.iterdir())
    strangers = {path.name for path in out.iterdir()} - _OURS if out.is_dir() else {out.name}
    if not empty and (described.get("etl_name") != "timeloom" or strangers):
        raise TimeloomError(f"{out.name} holds something else than a converted dataset", remedy="give another --out")


def _put(night: Night, out: Path) -> None:
    """The dataset as links, in place of the one before by two renames."""
    new, old = out.with_name(f".{out.name}.new"), out.with_name(f".{out.name}.old")
    for path in (new, old):
        shutil.rmtree(path, ignore_errors=True)
    for stage in CONVERSION:
        for relative in night.reports[stage.name].hashes() if stage.in_release else ():
            if not relative.startswith(("codes/", "contents/", "subjects/")):
                link_or_copy(night.tree.path / relative, new / relative)
    sync_tree(new)
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.exists():
        out.rename(old)
    new.rename(out)
    shutil.rmtree(old, ignore_errors=True)
