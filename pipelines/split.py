"""split: every subject gets a split once, for ever, stratified by images × length × interval.

Schema in: SUBJECTS of every bucket and the ledger of the release before. Schema out: SPLIT_LEDGER, subject_splits.

In each stratum subjects are dealt, in the order of their hash, along one fixed pattern of splits, from a place after
which every stretch is within one subject of its quota. A subject that comes later takes the next place of its stratum:
nobody moves.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from pipelines.config import SplitConfig
from pipelines.engine import Result, RunContext, Stage, StageReport, Task, make_task
from warehouse.errors import TimeloomError
from warehouse.files import sha256_json, write_json
from warehouse.hashing import bucket_of, salt_of, splitmix64
from warehouse.layout import ReleaseLayout
from warehouse.schemas import SPLIT_LEDGER, SPLITS, read_frame, write_table

STAGE = Stage("split", 1, "pipelines.split:run")
PATTERN_LENGTH = 10_000
QUANTILES = (0.25, 0.5, 0.75)
SUBJECT_SPLITS = pa.schema(
    [pa.field("subject_id", pa.int64(), nullable=False), pa.field("split", pa.string(), nullable=False)]
)


_NOBODY = pl.DataFrame(pl.from_arrow(SPLIT_LEDGER.empty_table()))


def plan(context: RunContext, scheme: SplitConfig, align: StageReport) -> list[Task]:
    """One task over every bucket's subjects and the ledger so far."""
    ledger = context.inherited(ReleaseLayout(Path()).split_ledger(scheme.scheme))
    freeze = context.inherited(freeze_path(Path(), scheme.scheme))
    subjects = {path: digest for path, digest in align.hashes().items() if path.startswith("subjects/")}
    return [
        make_task(
            STAGE,
            scheme.scheme,
            context.staging,
            settings=scheme.model_dump(),
            inputs=[subjects, ledger and ledger.sha256, freeze and freeze.sha256],
            params={
                "scheme": scheme.model_dump(),
                "subjects": sorted(subjects),
                "ledger": ledger and str(ledger.path),
                "freeze": freeze and str(freeze.path),
            },
        )
    ]


def freeze_path(tree: Path, scheme: str) -> Path:
    """What was decided when the scheme was first used: fractions, and the edges between strata."""
    return ReleaseLayout(tree).split_ledger(scheme).with_suffix(".json")


def run(params: dict[str, Any], base: Path) -> Result:
    """Assigns new subjects and keeps the old.

    Raises:
        TimeloomError: the scheme was frozen with other fractions.
    """
    scheme = SplitConfig.model_validate(params["scheme"])
    subjects = pl.concat([read_frame(base / path) for path in params["subjects"]])
    known = read_frame(Path(params["ledger"])) if params["ledger"] else _NOBODY
    if params["freeze"]:
        frozen = json.loads(Path(params["freeze"]).read_text(encoding="utf-8"))
        if frozen["scheme"] != params["scheme"]:
            raise TimeloomError(
                f"the split scheme {scheme.scheme} was frozen with other fractions",
                remedy="give the new fractions a scheme name of their own",
            )
        edges = frozen["edges"]
    else:
        edges = quartiles(subjects)
    ledger = assign(subjects, known, scheme, edges)
    tree = ReleaseLayout(base)
    present = ledger.join(subjects.select("subject_id"), on="subject_id", how="semi").select("subject_id", "split")
    ledger_file, splits_file = tree.split_ledger(scheme.scheme), tree.subject_splits
    files: dict[Path, int | None] = {
        ledger_file: write_table(ledger_file, ledger, SPLIT_LEDGER, "the split ledger"),
        splits_file: write_table(splits_file, present, SUBJECT_SPLITS, "subject_splits"),
        freeze_path(base, scheme.scheme): None,
    }
    write_json(freeze_path(base, scheme.scheme), {"scheme": params["scheme"], "edges": edges})
    counts = dict(present.group_by("split").len().sort("split").iter_rows())
    return Result(
        {str(path.relative_to(base)): rows for path, rows in files.items()},
        {"subjects": counts, "new": len(ledger) - len(known)},
    )


def pattern(scheme: SplitConfig) -> npt.NDArray[np.uint8]:
    """(PATTERN_LENGTH,) indices into SPLITS: every prefix of n holds each split within one of n × its fraction."""
    fractions = np.array([scheme.train, scheme.tuning, scheme.held_out])
    dealt = np.zeros(3)
    places = np.empty(PATTERN_LENGTH, dtype=np.uint8)
    for place in range(PATTERN_LENGTH):
        chosen = int(np.argmax(fractions * (place + 1) - dealt))
        dealt[chosen] += 1
        places[place] = chosen
    return places


def strata(subjects: pl.DataFrame, edges: dict[str, list[float]]) -> pl.Series:
    """The stratum of each subject: images it has, quarter of its length, quarter of its mean interval."""

    def quarter(column: str) -> pl.Expr:
        return pl.sum_horizontal(pl.col(column).fill_null(0) > edge for edge in edges[column]).cast(pl.String)

    images = pl.when(pl.col("ct") > 0).then(pl.lit("ct")).otherwise(pl.lit("")) + pl.when(pl.col("wsi") > 0).then(
        pl.lit("wsi")
    ).otherwise(pl.lit(""))
    named = pl.when(images == "").then(pl.lit("none")).otherwise(images)
    label = pl.concat_str([named, quarter("events"), quarter("mean_interval_days")], separator="|")
    return subjects.select(label.alias("stratum")).to_series()


def quartiles(subjects: pl.DataFrame) -> dict[str, list[float]]:
    """The edges between strata: quartiles of length and of mean interval, fixed at the first freeze."""
    return {
        column: [float(subjects[column].fill_null(0).quantile(q, "linear") or 0.0) for q in QUANTILES]
        for column in ("events", "mean_interval_days")
    }


def assign(
    subjects: pl.DataFrame, known: pl.DataFrame, scheme: SplitConfig, edges: dict[str, list[float]]
) -> pl.DataFrame:
    """The ledger with every subject of `subjects`: known rows unchanged, new rows appended.

    A row's `ordinal` is the subject's place in the pattern. A stratum first seen starts where it is within one subject
    of its quota whatever its length, and of such places where the whole comes closest to its own quota.
    """
    new = subjects.join(known.select("subject_id"), on="subject_id", how="anti")
    if new.is_empty():
        return known
    placed = (
        new.with_columns(
            strata(new, edges),
            pl.Series("_hash", splitmix64(new["subject_id"].to_numpy(), salt_of(f"split {scheme.scheme}"))),
        )
        .sort("stratum", "_hash", "subject_id")
        .select("subject_id", "stratum")
    )
    places = pattern(scheme)
    starts = _starts(placed, known, scheme, places)
    fresh = placed.join(starts, on="stratum", how="left", maintain_order="left").with_columns(
        (pl.col("_start") + pl.int_range(pl.len()).over("stratum")).cast(pl.Int64).alias("ordinal")
    )
    chosen = places[fresh["ordinal"].to_numpy() % PATTERN_LENGTH]
    names = pl.Series("split", np.array(SPLITS, dtype=object)[chosen], dtype=pl.String)
    return pl.concat([known, fresh.with_columns(names).select(known.columns)])


def _starts(
    placed: pl.DataFrame, known: pl.DataFrame, scheme: SplitConfig, places: npt.NDArray[np.uint8]
) -> pl.DataFrame:
    """Where each stratum of `placed` goes on in the pattern: columns stratum, _start."""
    fractions = np.array([scheme.train, scheme.tuning, scheme.held_out])
    # (PATTERN_LENGTH + 1, 3): by how much each split leads its quota after so many places.
    dealt = np.eye(3)[places].cumsum(axis=0)
    lead = np.vstack([np.zeros(3), dealt - np.arange(1, len(places) + 1)[:, None] * fractions])
    good = np.flatnonzero(((lead >= lead.max(axis=0) - 1) & (lead <= lead.min(axis=0) + 1)).all(axis=1)[:-1])
    held = known["split"].value_counts()
    total = np.array([held.filter(pl.col("split") == name)["count"].sum() for name in SPLITS]) - fractions * len(known)
    last = dict(known.group_by("stratum").agg(pl.col("ordinal").max()).iter_rows())
    starts: list[tuple[str, int]] = []
    for stratum, size in placed.group_by("stratum", maintain_order=True).len().iter_rows():
        if stratum in last:
            start = last[stratum] + 1
        else:
            after = total + lead[(good + size) % PATTERN_LENGTH] - lead[good]
            start = int(good[np.abs(after).max(axis=1).round(9).argmin()])
        total = total + lead[(start + size) % PATTERN_LENGTH] - lead[start % PATTERN_LENGTH]
        starts.append((stratum, start))
    return pl.DataFrame(starts, schema={"stratum": pl.String, "_start": pl.Int64}, orient="row")


def slice_hashes(path: Path, buckets: int) -> dict[int, str]:
    """Per bucket, a hash of its subjects' splits: what later stages of the bucket depend on."""
    frame = read_frame(path).sort("subject_id")
    grouped = (
        frame.with_columns(pl.Series("bucket", bucket_of(frame["subject_id"].to_numpy(), buckets)))
        .group_by("bucket", maintain_order=True)
        .agg("subject_id", "split")
    )
    return {bucket: sha256_json([ids, splits]) for bucket, ids, splits in grouped.iter_rows()}
