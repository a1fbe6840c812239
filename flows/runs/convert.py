"""Raw tables to a MEDS dataset, without a release: what other MEDS tools need, and a quick look at a new source."""

import json
import math
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from extractors.deid import Deidentifier
from flows.runs.root import bind_root, forget_scratch
from flows.runs.settings import RunSettings, make_engine
from pipelines import align, lags, meds, metadata
from pipelines.config import RunConfig, load_config
from pipelines.engine.context import Inherited, RunContext, StageReport
from pipelines.engine.fingerprints import Fingerprints
from pipelines.engine.run_stage import run_stage
from pipelines.engine.task import Engine
from warehouse.errors import TimeloomError
from warehouse.files import link_or_copy, sha256_file
from warehouse.layout import Layout, ReleaseLayout
from warehouse.parquet import read_frame
from warehouse.progress import Progress
from warehouse.publish import exclusive

# Raw bytes, as exports are compressed, that make a bucket of a few hundred thousand events.
BUCKET_BYTES = 6 << 20
MOST_BUCKETS = 1024
# What a converted dataset holds; a folder with anything else, such as a release or somebody's labels, is not replaced.
_OURS = {"data", "metadata", "ledger.parquet", "quarantine.parquet", "lags.parquet"}


@dataclass(frozen=True)
class Converted:
    """What a conversion made.

    Attributes:
        quarantined: raw rows that made nothing and are no duplicates.
        rewritten: event files, of `buckets`, that are not those of the conversion before.
    """

    events: int
    subjects: int
    codes: int
    quarantined: int
    buckets: int
    rewritten: int


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
    chosen = settings.root or config.root or out.with_name(f"{out.name}.root")
    layout = Layout(chosen.expanduser().resolve())
    base = settings.config.parent.resolve()
    Deidentifier(config.deid, b"")
    with exclusive(layout):
        config = _with_buckets(config, base, layout)
        forget_scratch(layout)
        new = not layout.settings.exists()
        bind_root(layout, config, None, new=new)
        staging = layout.conversion
        (staging / "release").mkdir(parents=True, exist_ok=True)
        with engine or make_engine(settings, config) as running:
            context = RunContext(running, staging, None, None, progress)
            reports = _stages(config, base, layout, context)
        _put(ReleaseLayout(staging / "release"), reports, out)
    extracted, aligned = reports[meds.STAGE.name], reports[align.STAGE.name]
    reasons: Counter[str] = Counter()
    for entry in extracted.entries.values():
        reasons.update(entry.counts["quarantined"])
    return Converted(
        events=aligned.total("events"),
        subjects=aligned.total("subjects"),
        codes=reports[metadata.STAGE.name].total("codes"),
        quarantined=sum(reasons.values()),
        buckets=config.buckets,
        rewritten=aligned.ran,
    )


def _stages(config: RunConfig, base: Path, layout: Layout, context: RunContext) -> dict[str, StageReport]:
    fingerprints = Fingerprints(layout.private)
    fingerprints.read_ahead(_raw_files(config, base), context.engine.workers)
    extracted = run_stage(meds.STAGE, meds.plan(config, base, layout, fingerprints), context)
    meds.check_times(extracted, config.limits.unparsable_times)
    meds.subjects_of(extracted, layout.segments)
    estimated = run_stage(lags.STAGE, lags.plan(context, layout, extracted, _lags_before(context)), context)
    known = read_frame(ReleaseLayout(context.staging / "release").lags)
    aligned = run_stage(align.STAGE, align.plan(context, layout, config.buckets, extracted, None, known, None), context)
    if aligned.total("events") == 0:
        raise TimeloomError("no events came out of the sources", remedy="try `timeloom check-source`")
    described = run_stage(
        metadata.STAGE,
        metadata.plan(context, config.name, layout, meds.exports(config, base), fingerprints, extracted, aligned),
        context,
    )
    fingerprints.save()
    kept = {Path(name).stem for name in extracted.hashes()}
    for path in layout.segments.glob("*"):
        if path.stem not in kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return {report.name: report for report in (extracted, estimated, aligned, described)}


def _lags_before(context: RunContext) -> Inherited | None:
    """The lags of the conversion before, which hold; a copy, because the new ones take their file's place."""
    given, kept = ReleaseLayout(context.staging / "release").lags, context.staging / "lags.parquet"
    if given.is_file():
        link_or_copy(given, kept)
    return Inherited(kept, sha256_file(kept)) if kept.is_file() else None


def _with_buckets(config: RunConfig, base: Path, layout: Layout) -> RunConfig:
    """The configuration with a number of buckets that suits the export, where it names none."""
    if "buckets" in config.model_fields_set:
        return config
    if layout.settings.exists():
        buckets = json.loads(layout.settings.read_text(encoding="utf-8"))["buckets"]
    else:
        size = sum(path.stat().st_size for path in _raw_files(config, base))
        buckets = min(MOST_BUCKETS, max(2, 2 * math.ceil(size / BUCKET_BYTES / 2)))
    return config.model_copy(update={"buckets": buckets})


def _raw_files(config: RunConfig, base: Path) -> set[Path]:
    """The files of every table that a source maps; a database is one."""
    return {path for export in meds.exports(config, base) for of in export.mapped().values() for path in of}


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


def _put(tree: ReleaseLayout, reports: dict[str, StageReport], out: Path) -> None:
    """The dataset as links, in place of the one before by two renames."""
    new, old = out.with_name(f".{out.name}.new"), out.with_name(f".{out.name}.old")
    for path in (new, old):
        shutil.rmtree(path, ignore_errors=True)
    for name in (align.STAGE.name, metadata.STAGE.name, lags.STAGE.name):
        for relative in reports[name].hashes():
            if not relative.startswith(("codes/", "subjects/")):
                link_or_copy(tree.path / relative, new / relative)
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.exists():
        out.rename(old)
    new.rename(out)
    shutil.rmtree(old, ignore_errors=True)
