"""embed: one bucket's items, and what `encode` made of them → one row per item with its final verdict.

Schema in: indexed items. Schema out: ITEMS; a vector per item with verdict ok, under its key in its modality's store.
"""

from pathlib import Path
from typing import Any, TypedDict

import polars as pl

from pipelines.aligning.bound import within_bound
from pipelines.encode import StoreParams, known_outcomes, store_of, usable_items
from pipelines.engine.context import StageReport, counts_of
from pipelines.engine.task import Result, Task, make_task
from pipelines.items import items_of_bucket
from pipelines.night import Night, Stage
from pipelines.trial import trial_bound
from warehouse.errors import TimeloomError
from warehouse.layout import Layout, ReleaseLayout, bucket_name
from warehouse.parquet import read_frame, write_table
from warehouse.schemas import ITEMS


class Counts(TypedDict):
    """What a task tells: its items, by modality and verdict."""

    verdicts: dict[str, dict[str, int]]
    items: int


class Params(StoreParams):
    """What a task is given: paths and settings."""

    bucket: int


def plan(night: Night) -> list[Task]:
    """One task per bucket. It is up to date as long as the bucket's items and their encoders are."""
    config, layout = night.config, night.layout
    segments = [str(layout.segments / path) for path in sorted(night.report("index").hashes())]
    made_by, bound = night.encoders, trial_bound(night)
    hashes = _bucket_hashes([Path(path) for path in segments], config.buckets)
    return [
        make_task(
            STAGE,
            bucket_name(bucket),
            night.context.staging,
            settings=[bound, {name: entry.store for name, entry in made_by.items()}],
            inputs=hashes.get(bucket),
            params=Params(
                bucket=bucket,
                trial_bound=bound,
                segments=segments,
                folders={name: str(block.path) for name, block in config.modalities.items()},
                root=str(layout.root),
                private=str(layout.private),
                encoders={name: block.encoder.model_dump(mode="json") for name, block in config.modalities.items()},
                stores={name: entry.model_dump(mode="json") for name, entry in made_by.items()},
            ),
            intact="pipelines.embed:has_vectors",
        )
        for bucket in range(config.buckets)
    ]


def _bucket_hashes(segments: list[Path], buckets: int) -> dict[int, list[list[str]]]:
    """Per bucket, the items' keys, times and verdicts: all that its outputs depend on."""
    if not segments:
        return {}
    items = pl.concat([pl.read_parquet(path) for path in segments])
    row = pl.concat_list(pl.exclude("bucket").cast(pl.String).fill_null(""))
    grouped = items.sort("modality", "item_key").group_by("bucket", maintain_order=True).agg(row.alias("rows"))
    return dict(grouped.select("bucket", "rows").iter_rows())


def has_vectors(params: Params, base: Path) -> bool:
    """Whether the stores still say of every item of the bucket what was written here: what went, or was changed by a
    byte, is made again. Reads every vector of the bucket once, as `timeloom verify` does."""
    from embedders.running.store_bucket import PASSING, read_verdicts
    from warehouse.embeddings.store import EmbeddingStore

    bucket = params["bucket"]
    items = read_frame(ReleaseLayout(base).items(bucket))
    layout = Layout(Path(params["root"]))
    usable = items.filter(pl.col("verdict") == "ok")
    for (modality, store), part in usable.partition_by("modality", "store", as_dict=True).items():
        path = layout.embedding_bucket(str(modality), str(store), bucket)
        if not path.is_file() or not EmbeddingStore.open(path).has_whole(part["item_key"].to_list()):
            return False
    # Of what failed, only items that an encoder was to read have units that failed.
    failed = items.filter((pl.col("verdict") != "ok") & (pl.col("units_failed") > 0))
    for (modality,), part in failed.partition_by("modality", as_dict=True).items():
        known = read_verdicts(store_of(params, str(modality), bucket)[0])
        if not set(part["item_key"]) <= known.keys() or not PASSING.isdisjoint(part["verdict"]):
            return False
    return True


def run(params: Params, base: Path) -> Result:
    """Writes one bucket's items.

    Raises:
        TimeloomError: an item has no outcome, because a store went since its vectors were made.
    """
    bucket = params["bucket"]
    items = items_of_bucket([Path(path) for path in params["segments"]], bucket)
    items = items.filter(within_bound(items, params["trial_bound"]))
    outcomes = []
    for modality, usable in usable_items(params, bucket):
        _, entry = store_of(params, modality, bucket)
        known = known_outcomes(params, modality, bucket, usable)
        if len(known) < len(usable):
            raise TimeloomError(
                f"the {modality} store {entry.store} lacks what was just made", remedy="run again; it resumes"
            )
        outcomes += [
            (
                outcome.item_key,
                outcome.verdict,
                outcome.units_expected,
                outcome.units_encoded,
                outcome.units_failed,
                outcome.dim,
                entry.store if outcome.verdict == "ok" else None,
                entry.label if outcome.verdict == "ok" else None,
            )
            for outcome in known
        ]
    encoded = pl.DataFrame(
        outcomes,
        schema={
            "item_key": pl.String, "_verdict": pl.String, "_expected": pl.Int32, "units_encoded": pl.Int32,
            "units_failed": pl.Int32, "dim": pl.Int32, "store": pl.String, "encoder": pl.String,
        },
        orient="row",
    )  # fmt: skip
    frame = (
        items.join(encoded, on="item_key", how="left")
        .with_columns(
            pl.coalesce("_verdict", "verdict").alias("verdict"),
            pl.coalesce("_expected", "units_expected").alias("units_expected"),
            pl.col("units_encoded", "units_failed").fill_null(0),
        )
        .sort("subject_id", "modality", "item_key")
    )
    path = ReleaseLayout(base).items(bucket)
    rows = write_table(path, frame, ITEMS, "items")
    counted = frame.group_by("modality", "verdict").len().sort("modality", "verdict")
    verdicts: dict[str, dict[str, int]] = {}
    for modality_name, verdict, number in counted.iter_rows():
        verdicts.setdefault(modality_name, {})[verdict] = number
    return Result({str(path.relative_to(base)): rows}, Counts(verdicts=verdicts, items=rows))


def ready(night: Night) -> None:
    """Finds weights that are missing before hours of work.

    Raises:
        TimeloomError: weights that are missing.
    """
    _ = night.encoders


def declare(night: Night) -> dict[str, Any]:
    """Which encoders made the vectors, and the items by modality and verdict."""
    total: dict[str, dict[str, int]] = {}
    for entry in night.report(STAGE.name).entries.values():
        for modality, counted in counts_of(entry, Counts)["verdicts"].items():
            verdicts = total.setdefault(modality, {})
            for verdict, number in counted.items():
                verdicts[verdict] = verdicts.get(verdict, 0) + number
    ordered = {modality: dict(sorted(verdicts.items())) for modality, verdicts in sorted(total.items())}
    return {"encoders": night.encoders, "verdicts": ordered}


def failed_items(report: StageReport) -> int:
    """Items that failed; what a rule refuses did not."""
    return sum(
        number
        for entry in report.entries.values()
        for counted in counts_of(entry, Counts)["verdicts"].values()
        for verdict, number in counted.items()
        if verdict.startswith("failed_")
    )


STAGE = Stage(
    "embed",
    version=2,
    run="pipelines.embed:run",
    step="embed",
    after=("meds", "index"),
    plan=plan,
    ready=ready,
    declare=declare,
    quarantined=failed_items,
)
