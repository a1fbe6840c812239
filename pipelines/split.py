"""split: every subject gets a split in each scheme once, for ever, stratified by modalities × length × interval.

Schema in: SUBJECTS of every bucket, the scheme's ledger of the release before, merged ids. Schema out: SPLIT_LEDGER,
SCHEME_SUBJECTS, SPLIT_QUARANTINE, and MEDS' subject_splits for the first scheme.

Each stratum's subjects stand in a line (pipelines.splitting.strata) and are dealt by turns (pipelines.splitting.quota).
A subject that comes later takes a later place of its stratum's line: nobody moves.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from pipelines.engine.context import RunContext, StageReport, counts_of
from pipelines.engine.task import Result, Task, make_task
from pipelines.night import Night, Stage
from pipelines.splitting.ledger import INHERITED, REMEDY, Freeze, is_whole, no_ledger, read_freeze
from pipelines.splitting.merges import ACROSS_SPLITS, judge_merges, read_merges, unknown_ids, write_merges
from pipelines.splitting.order import order_of
from pipelines.splitting.quota import Quota, choose_phases
from pipelines.splitting.strata import STRATIFIED, lined_up, quartiles, strata
from warehouse.errors import TimeloomError
from warehouse.files import sha256_file, sha256_json
from warehouse.hashing import bucket_of, salt_of
from warehouse.layout import ReleaseLayout
from warehouse.parquet import read_frame, write_table
from warehouse.schemas import SCHEME_SUBJECTS, SPLIT_LEDGER, SPLIT_QUARANTINE, SPLITS

if TYPE_CHECKING:
    from pipelines.splitting.schemes import SplitConfig

MOST_TRIES = 16
TRIED_SUBJECTS = 400_000  # lines of few subjects are drawn several times, and the most even one is dealt
SUBJECT_SPLITS = pa.schema(
    [pa.field("subject_id", pa.int64(), nullable=False), pa.field("split", pa.string(), nullable=False)]
)


class Counts(TypedDict):
    """What a task tells: subjects by split, those new to the ledger, and those set aside by reason."""

    subjects: dict[str, int]
    new: int
    inherited: int
    quarantined: dict[str, int]
    merged_ids_unknown: int


class Params(TypedDict):
    """What a task is given: paths and settings."""

    scheme: str
    fractions: dict[str, float]
    primary: bool
    subjects: list[str]
    ledger: list[str] | None
    freeze: list[str] | None
    merges: str | None


def ready(night: Night) -> None:
    """Reads the merges: a file that is wrong should not be found out after hours of encoding.

    Raises:
        TimeloomError: the file is missing or wrong.
    """
    _merges(night)


def _merges(night: Night) -> "pl.DataFrame | None":
    config = night.config
    if not config.merges:
        return None
    subjects = {export.source.reading.subject_ids for export in night.exports}
    return read_merges(config.merges, config.deid, night.layout.private, subjects)


def plan(night: Night) -> list[Task]:
    """One task per scheme, over every bucket's subjects and the scheme's ledger so far."""
    return tasks_of(night.context, night.config.splits, night.report("align"), _merges(night))


def tasks_of(
    context: RunContext,
    schemes: Mapping[str, "SplitConfig"],
    align: StageReport,
    merges: pl.DataFrame | None = None,
) -> list[Task]:
    """One task per scheme, over every bucket's subjects and the scheme's ledger so far.

    Args:
        schemes: by name; the first one's splits are those of metadata/subject_splits.parquet.
        merges: of pipelines.splitting.merges.read_merges; None where the site names none.
    """
    subjects = {path: digest for path, digest in align.hashes().items() if path.startswith("subjects/")}
    pairs = None if merges is None or merges.is_empty() else context.staging / "merges.parquet"
    if merges is not None and pairs is not None:
        write_merges(merges, pairs)
    digest = sha256_json([merges["old"].to_list(), merges["new"].to_list()]) if merges is not None and pairs else None
    tasks = []
    relative = ReleaseLayout(Path())
    for name, fractions in schemes.items():
        ledger, freeze = context.inherited(relative.split_ledger(name), relative.split_freeze(name))
        primary = name == next(iter(schemes))
        tasks.append(
            make_task(
                STAGE,
                name,
                context.staging,
                settings=[fractions.model_dump(), primary],
                inputs=[subjects, digest],
                continued={
                    str(relative.split_ledger(name)): ledger.sha256 if ledger else None,
                    str(relative.split_freeze(name)): freeze.sha256 if freeze else None,
                },
                params=Params(
                    scheme=name,
                    fractions=fractions.model_dump(),
                    primary=primary,
                    subjects=sorted(subjects),
                    ledger=[str(ledger.path), ledger.sha256] if ledger else None,
                    freeze=[str(freeze.path), freeze.sha256] if freeze else None,
                    merges=str(pairs) if pairs else None,
                ),
            )
        )
    return tasks


def run(params: Params, base: Path) -> Result:
    """Assigns new subjects and keeps the old.

    Raises:
        TimeloomError: the scheme was frozen with other fractions, or its ledger is not what runs have written.
    """
    scheme, tree = params["scheme"], ReleaseLayout(base)
    subjects = pl.concat([read_frame(base / path) for path in params["subjects"]])
    known, freeze = _inherited(params)
    if freeze is None:
        freeze = Freeze(scheme, params["fractions"], quartiles(subjects))
    pairs = pl.read_parquet(params["merges"]) if params["merges"] else None
    ledger, aside, freeze = assign(subjects, known, freeze, pairs)

    present = (
        ledger.select("subject_id", "split")
        .with_columns(pl.Series("order", order_of(ledger, freeze)))
        .join(subjects.select("subject_id"), on="subject_id", how="semi")
        .join(aside, on="subject_id", how="anti")
        .sort("subject_id")
    )
    written: dict[Path, int | None] = {}
    outputs: list[tuple[Path, pl.DataFrame, pa.Schema]] = [
        (tree.split_ledger(scheme), ledger, SPLIT_LEDGER),
        (tree.scheme_subjects(scheme), present, SCHEME_SUBJECTS),
        (tree.split_quarantine(scheme), aside, SPLIT_QUARANTINE),
    ]
    if params["primary"]:
        outputs.append((tree.subject_splits, present, SUBJECT_SPLITS))
    for path, frame, schema in outputs:
        written[path] = write_table(path, frame, schema, f"{path.stem} of the split scheme")
    freeze.write(tree.split_freeze(scheme))
    written[tree.split_freeze(scheme)] = None
    return Result(
        {str(path.relative_to(base)): rows for path, rows in written.items()},
        Counts(
            subjects=dict(present.group_by("split").len().sort("split").iter_rows()),
            new=len(ledger) - len(known),
            inherited=int((ledger["stratum"][len(known) :] == INHERITED).sum()),
            quarantined=dict(aside.group_by("reason").len().sort("reason").iter_rows()),
            merged_ids_unknown=0 if pairs is None else unknown_ids(pairs, subjects, known),
        ),
    )


def _inherited(params: Params) -> tuple[pl.DataFrame, Freeze | None]:
    """The scheme's ledger and freeze of the release before, checked."""
    scheme = params["scheme"]
    if not params["ledger"] and not params["freeze"]:
        return no_ledger(), None
    if not params["ledger"] or not params["freeze"]:
        lost = "ledger.parquet" if not params["ledger"] else "freeze.json"
        raise TimeloomError(f"the split scheme {scheme} has lost its {lost}", remedy=REMEDY)
    known, freeze = read_frame(Path(params["ledger"][0])), read_freeze(Path(params["freeze"][0]))
    changed = [sha256_file(Path(path)) != digest for path, digest in (params["ledger"], params["freeze"])]
    if any(changed) or not is_whole(known, freeze):
        raise TimeloomError(f"the ledger of the split scheme {scheme} is not what runs have written", remedy=REMEDY)
    if Quota.of(freeze.fractions) != Quota.of(params["fractions"]):
        raise TimeloomError(
            f"the split scheme {scheme} was frozen with other fractions",
            remedy="give the new fractions a scheme name of their own",
        )
    return known, freeze


def assign(
    subjects: pl.DataFrame, known: pl.DataFrame, freeze: Freeze, pairs: pl.DataFrame | None = None
) -> tuple[pl.DataFrame, pl.DataFrame, Freeze]:
    """The ledger with every subject of `subjects`: known rows unchanged, new rows appended.

    Args:
        subjects: columns of SUBJECTS, in any order, a subject once.
        known: the ledger so far.
        pairs: merged ids, `old` and `new`.

    Returns:
        The ledger; subjects that must have no split and why (SPLIT_QUARANTINE); the freeze, with what is new noted.
    """
    aside = heirs = together = None
    if pairs is not None:
        aside, heirs, together = judge_merges(pairs, subjects, known)
    taken = [frame.select("subject_id") for frame in (known, aside, heirs, together) if frame is not None]
    new = subjects.join(pl.concat(taken), on="subject_id", how="anti")
    freeze = replace(freeze, strata=dict(freeze.strata), nights=list(freeze.nights))
    rows = _deal(new, known, freeze)
    if heirs is not None and together is not None:
        dealt = together.join(rows, left_on="dealt", right_on="subject_id").select("subject_id", "split")
        rows = pl.concat([rows, _inherit(pl.concat([heirs, dealt]).sort("subject_id"), known)])
    freeze.append(rows)
    aside = no_ledger().select("subject_id") if aside is None else aside
    return pl.concat([known, rows]), aside.with_columns(pl.lit(ACROSS_SPLITS).alias("reason")), freeze


def _inherit(heirs: pl.DataFrame, known: pl.DataFrame) -> pl.DataFrame:
    """Rows of the ledger for subjects that take the split of another: outside every stratum's quota."""
    first = int((known["stratum"] == INHERITED).sum())
    ordinal = pl.int_range(first, first + pl.len(), dtype=pl.Int64)
    return heirs.with_columns(pl.lit(INHERITED).alias("stratum"), ordinal.alias("ordinal")).select(known.columns)


def _deal(new: pl.DataFrame, known: pl.DataFrame, freeze: Freeze) -> pl.DataFrame:
    """Rows of the ledger for new subjects, by stratum and place; notes strata never seen before in `freeze`."""
    if new.is_empty():
        return known.clear()
    quota = Quota.of(freeze.fractions)
    stratum = strata(new, freeze.edges)
    names = stratum.cat.get_categories()
    counted = np.bincount(stratum.to_physical().to_numpy(), minlength=len(names))
    arrived = pl.DataFrame({"stratum": names, "new": counted.astype(np.int64)})
    freeze.strata.update({name: size for name, size in arrived.iter_rows() if name not in freeze.strata})
    of = pl.col("split")
    before = known.filter(pl.col("stratum") != INHERITED).group_by("stratum").agg(
        (of == name).sum().cast(pl.Int64).alias(name) for name in SPLITS
    )  # fmt: skip
    table = arrived.join(before, on="stratum", how="full", coalesce=True).fill_null(0).sort("stratum")
    table = table.with_columns(pl.Series("phase", choose_phases(quota, table)))
    growing = table.filter(pl.col("new") > 0)
    start, phases = growing.select(pl.sum_horizontal(SPLITS)).to_series().to_numpy(), growing["phase"].to_numpy()

    def drawn(attempt: int) -> tuple[pl.DataFrame, npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
        line = lined_up(new, stratum, salt_of(f"split {freeze.scheme} {attempt}"))
        code = line["stratum"].to_physical().to_numpy()
        ordinal = start[code] + line["place"].to_numpy()
        return line, ordinal, quota.deal(ordinal, phases[code])

    line, ordinal, chosen = drawn(0)
    tries = min(MOST_TRIES, TRIED_SUBJECTS // len(new))
    if tries > 1:
        further = [drawn(attempt) for attempt in range(1, tries)]
        line, ordinal, chosen = min(
            ((line, ordinal, chosen), *further),
            key=lambda candidate: unevenness(new, candidate[0]["subject_id"], candidate[2]),
        )
    return line.select(
        "subject_id",
        pl.Series("split", chosen).replace_strict(dict(enumerate(SPLITS)), return_dtype=pl.String).alias("split"),
        pl.col("stratum").cast(pl.String),
        pl.Series("ordinal", ordinal),
    )


def unevenness(subjects: pl.DataFrame, ids: pl.Series, splits: npt.NDArray[np.uint8]) -> float:
    """The largest Kolmogorov-Smirnov distance between a split and all, in length or in interval.

    Args:
        ids, splits: (n,) the split of each subject of `subjects`, as an index into SPLITS.
    """
    dealt = subjects.join(pl.DataFrame({"subject_id": ids, "_split": splits}), on="subject_id", how="left")
    worst = 0.0
    for column in STRATIFIED:
        ordered = dealt.select(pl.col(column).fill_null(0), "_split").sort(column)
        values, of = ordered[column].to_numpy(), ordered["_split"].to_numpy()
        last = np.append(np.flatnonzero(values[1:] != values[:-1]), len(values) - 1)
        for split in np.unique(of):
            reached = np.cumsum(of == split)[last]
            worst = max(worst, float(np.abs(reached / reached[-1] - (last + 1) / len(values)).max()))
    return worst


def slice_hashes(path: Path, buckets: int) -> dict[int, str]:
    """Per bucket, a hash of its subjects' splits: what later stages of the bucket depend on."""
    frame = read_frame(path).sort("subject_id")
    grouped = (
        frame.with_columns(pl.Series("bucket", bucket_of(frame["subject_id"].to_numpy(), buckets)))
        .group_by("bucket", maintain_order=True)
        .agg("subject_id", "split")
    )
    return {bucket: sha256_json([ids, splits]) for bucket, ids, splits in grouped.iter_rows()}


def hashes_of(night: Night, scheme: str) -> dict[int, str]:
    """Per bucket, a hash of its subjects' splits in a scheme; for stages after `split`."""
    night.report(STAGE.name)
    path = night.tree.scheme_subjects(scheme)
    return night.once(("splits", scheme), lambda: slice_hashes(path, night.config.buckets))


def check(report: StageReport, night: Night) -> None:
    """Says how many merged ids nobody has."""
    if unknown := counts_of(report.entries[night.config.primary_scheme], Counts)["merged_ids_unknown"]:
        night.log(f"split: {unknown} ids of the merges are in no table of this or an earlier night")


def declare(night: Night) -> dict[str, Any]:
    """The scheme that MEDS tools see, and the hash of its splits."""
    hashes = night.report(STAGE.name).hashes()
    return {
        "split_scheme": night.config.primary_scheme,
        "split_hash": hashes[str(ReleaseLayout(Path()).subject_splits)],
    }


STAGE = Stage(
    "split",
    version=3,
    run="pipelines.split:run",
    after=("align",),
    keys=("splits", "merges"),
    plan=plan,
    ready=ready,
    check=check,
    declare=declare,
    lasting=("splits/*/ledger.parquet", "splits/*/freeze.json"),
    settings_are=("fractions", "first scheme"),
    inputs_are=("subjects", "merges"),
)
