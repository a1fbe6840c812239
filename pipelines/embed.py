"""embed: one bucket's items, and what `encode` made of them → one row per item and encoder, with its final verdict.

Schema in: indexed items. Schema out: ITEMS; a vector per row with verdict ok, under the item's key in the row's store.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import polars as pl

from embedders.encoders.spec import cut_for
from extractors.items import WAITING
from pipelines.aligning.bound import within_bound
from pipelines.dealing import wants_nothing
from pipelines.engine.context import StageReport, counts_of
from pipelines.engine.task import Result, Task, make_task
from pipelines.items import items_of_bucket
from pipelines.night import Night, Stage
from pipelines.stores import EncoderParams, StoreParams, stores_of, units_of_items, usable_items
from pipelines.trial import trial_bound
from pipelines.vectors import bucket_hashes, files_sha256, strangers_of, tied_stores
from warehouse.embeddings.bucket_lease import undisturbed
from warehouse.errors import TimeloomError
from warehouse.files import sha256_json
from warehouse.items import each_once
from warehouse.layout import Layout, ReleaseLayout, bucket_name
from warehouse.parquet import read_frame, write_table
from warehouse.schemas import ITEMS

if TYPE_CHECKING:
    from embedders.running.spans import EmbeddedItem


class Counts(TypedDict):
    """What a task tells of its items.

    Attributes:
        verdicts: items by modality and verdict; one that any encoder of several made a vector of is usable.
        of_stores: the items that an encoder was to read, by `modality/store` and what became of them.
        failed: items that failed under any encoder; what a rule refuses did not.
        happened: a hash of the items as their subjects' events: all that `align` takes of them.
        usable: by `modality/store`, a hash of the items that have a vector there: all that tokens depend on.
    """

    verdicts: dict[str, dict[str, int]]
    of_stores: dict[str, dict[str, int]]
    failed: int
    happened: str
    usable: dict[str, str]
    items: int


class Params(StoreParams):
    """What a task is given: paths and settings; whether it makes do with items that wait for their vectors."""

    bucket: int
    may_wait: bool


def plan(night: Night) -> list[Task]:
    """One task per bucket. It is up to date as long as the bucket's items and their encoders are, and none waits."""
    config, layout = night.config, night.layout
    waiting = _waiting_before(night)
    segments = [str(layout.segments / path) for path in sorted(night.report("index").hashes())]
    made_by, bound = night.encoders, trial_bound(night)
    hashes = _bucket_hashes([Path(path) for path in segments], config.buckets)
    tied = tied_stores(night.report("vectors"), layout.segments)
    vectors = bucket_hashes(tied)
    encoders = {
        name: [
            EncoderParams(
                config=encoder.model_dump(mode="json"),
                entry=entry.model_dump(mode="json"),
                cut=cut_for(encoder, name),
            )
            for encoder, entry in zip(block.all_encoders, made_by[name], strict=True)
        ]
        for name, block in config.modalities.items()
    }
    return [
        make_task(
            STAGE,
            bucket_name(bucket),
            night.context.staging,
            settings=[bound, {name: sorted(entry.store for entry in entries) for name, entries in made_by.items()}],
            inputs=_inputs(hashes.get(bucket), vectors.get(bucket), waiting.get(bucket)),
            params=Params(
                bucket=bucket,
                may_wait=not config.embedding.wait,
                trial_bound=bound,
                segments=segments,
                folders={name: str(block.path) for name, block in config.modalities.items()},
                root=str(layout.root),
                private=str(layout.private),
                encoders=encoders,
                tied=tied,
            ),
            intact="pipelines.embed:has_vectors",
        )
        for bucket in range(config.buckets)
    ]


def _inputs(items: Any, vectors: Any, waiting: str | None) -> Any:
    found = items if vectors is None else [items, vectors]
    return found if waiting is None else {"waiting in": waiting, "items": found}


def _waiting_before(night: Night) -> dict[int, str]:
    """By bucket, the release before, where it has items that wait: this night looks for their vectors again."""
    previous = night.context.previous
    if previous is None:
        return {}
    prefix = f"{STAGE.name}/"
    return {
        int(key.removeprefix(prefix)): previous.release_id
        for key, entry in previous.tasks.items()
        if key.startswith(prefix) and any(WAITING in found for found in entry.counts.get("of_stores", {}).values())
    }


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
        with undisturbed(path):
            if not path.is_file() or not EmbeddingStore.open(path).has_whole(part["item_key"].to_list()):
                return False
    if (items["verdict"] == WAITING).any():
        return False
    # Of what failed, only items that an encoder was to read name its store.
    failed = items.filter((pl.col("verdict") != "ok") & pl.col("store").is_not_null())
    for (modality, store), part in failed.partition_by("modality", "store", as_dict=True).items():
        known = read_verdicts(layout.embedding_bucket(str(modality), str(store), bucket))
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
        for store in stores_of(params, modality):
            with undisturbed(store.bucket(bucket)):
                known = store.outcomes(bucket, usable)
            if len(known) < len(usable) and params["may_wait"] and store.tied is None:
                known += _waiting(usable, known, store.cut)
            if len(known) < len(usable):
                raise TimeloomError(
                    f"the {modality} store {store.entry.store} lacks what was just made", remedy="run again; it resumes"
                )
            outcomes += [
                (
                    outcome.item_key,
                    outcome.verdict,
                    outcome.units_expected,
                    outcome.units_encoded,
                    outcome.units_failed,
                    outcome.dim,
                    store.entry.store,
                    store.entry.label,
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
    frame = items.join(encoded, on="item_key", how="left").with_columns(
        pl.coalesce("_verdict", "verdict").alias("verdict"),
        pl.coalesce("_expected", "units_expected").alias("units_expected"),
    )
    if bucket == 0:
        frame = pl.concat([frame, strangers_of(params["tied"])], how="diagonal_relaxed")
    frame = frame.with_columns(pl.col("units_encoded", "units_failed").fill_null(0)).sort(
        "subject_id", "modality", "item_key", "store"
    )
    path = ReleaseLayout(base).items(bucket)
    rows = write_table(path, frame, ITEMS, "items")
    items = each_once(frame)
    of_stores = frame.drop_nulls("store").with_columns(pl.format("{}/{}", "modality", "store").alias("made_in"))
    with_vectors = of_stores.filter(pl.col("verdict") == "ok").sort("item_key").partition_by("made_in", as_dict=True)
    counts = Counts(
        verdicts=_counted(items, "modality"),
        of_stores=_counted(of_stores, "made_in"),
        failed=frame.filter(pl.col("verdict").str.starts_with("failed_"))["item_key"].n_unique(),
        happened=_hash_of(_happened(items)),
        usable={str(made_in): _hash_of(part.select("item_key")) for (made_in,), part in with_vectors.items()},
        items=len(items),
    )
    return Result({str(path.relative_to(base)): rows}, counts)


def _waiting(usable: pl.DataFrame, known: "list[EmbeddedItem]", cut: str) -> "list[EmbeddedItem]":
    """The outcome of items that nobody has encoded yet: an empty place."""
    from embedders.running.spans import EmbeddedItem

    there = {outcome.item_key for outcome in known}
    units = units_of_items(usable, cut)
    return [EmbeddedItem(key, WAITING, units[key], 0, 0, None) for key in units if key not in there]


def _counted(items: pl.DataFrame, by: str) -> dict[str, dict[str, int]]:
    counted = items.group_by(by, "verdict").len().sort(by, "verdict")
    verdicts: dict[str, dict[str, int]] = {}
    for name, verdict, number in counted.iter_rows():
        verdicts.setdefault(name, {})[verdict] = number
    return verdicts


def _happened(items: pl.DataFrame) -> pl.DataFrame:
    """What `align` takes of items, one row each: those that make an event, and which of them are usable."""
    columns = ("subject_id", "modality", "item_key", "time", "available_time", "time_precision")
    happened = items.filter(~pl.col("verdict").str.starts_with("refused_"))
    return happened.select(*columns, pl.col("verdict") == "ok")


def _hash_of(frame: pl.DataFrame) -> str:
    return sha256_json([frame[name].cast(pl.String).to_list() for name in frame.columns])


def ready(night: Night) -> None:
    """Finds weights that are missing before hours of work.

    Raises:
        TimeloomError: weights that are missing.
    """
    _ = night.encoders


def declare(night: Night) -> dict[str, Any]:
    """Which encoders made the vectors, what became of their items, and the items by modality and verdict."""
    counts = [counts_of(entry, Counts) for entry in night.report(STAGE.name).entries.values()]
    of_stores = _total(entry["of_stores"] for entry in counts)
    files = files_sha256(night.report("vectors"))
    encoders = {
        modality: tuple(
            entry.model_copy(
                update={"verdicts": of_stores.get(f"{modality}/{entry.store}", {})}
                | _files_of(files.get(f"{modality}/{entry.store}"))
            )
            for entry in entries
        )
        for modality, entries in night.encoders.items()
    }
    return {"encoders": encoders, "verdicts": _total(entry["verdicts"] for entry in counts)}


def _files_of(sha256: str | None) -> dict[str, str]:
    """Imported vectors have no weights: the hash of the files that they were taken from stands for them."""
    return {} if sha256 is None else {"weights_sha256": sha256}


def _total(counts: Iterable[dict[str, dict[str, int]]]) -> dict[str, dict[str, int]]:
    total: dict[str, Counter[str]] = {}
    for counted in counts:
        for name, verdicts in counted.items():
            total.setdefault(name, Counter()).update(verdicts)
    return {name: dict(sorted(verdicts.items())) for name, verdicts in sorted(total.items())}


def waiting_vectors(report: StageReport) -> dict[str, int]:
    """By modality, the vectors that wait to be made."""
    counts = [counts_of(entry, Counts)["of_stores"] for entry in report.entries.values()]
    waiting = Counter[str]()
    for of_stores in counts:
        for made_in, verdicts in of_stores.items():
            waiting[made_in.partition("/")[0]] += verdicts.get(WAITING, 0)
    return {modality: number for modality, number in sorted(waiting.items()) if number}


def check(report: StageReport, night: Night) -> None:
    """Says which vectors wait; where none does, workers have nothing more to do."""
    waiting = waiting_vectors(report)
    if not waiting:
        wants_nothing(night.layout)
    for modality, number in waiting.items():
        night.log(f"{number} {modality} vectors wait to be made; the next night fills them in")


def failed_items(report: StageReport) -> int:
    """Items that failed under any encoder; what a rule refuses did not."""
    return sum(counts_of(entry, Counts)["failed"] for entry in report.entries.values())


STAGE = Stage(
    "embed",
    version=3,
    run="pipelines.embed:run",
    after=("meds", "index", "vectors"),
    keys=("modalities", "buckets"),
    plan=plan,
    ready=ready,
    check=check,
    declare=declare,
    quarantined=failed_items,
    settings_are=("trial", "encoders"),
    inputs_are=("items and vectors",),
)
