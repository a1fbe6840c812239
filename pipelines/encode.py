"""encode: the items of many buckets as one stream over one device → vectors, and verdicts of what failed, per store.

What it makes is no part of a release: stores are shared by releases and keyed by content. So a task's record holds its
figures only, and whether there is anything to do is read from the stores themselves. Each bucket of a store is filled
under a lease, by a process of the night or by a worker of another machine (`pipelines.filling`).
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict, cast

import polars as pl

from embedders.encoders.spec import store_spec
from pipelines.dealing import await_workers, units_of, want
from pipelines.engine.context import StageReport
from pipelines.engine.parcel import code_here
from pipelines.engine.task import Result, Task, make_task
from pipelines.filling import fill
from pipelines.night import Figures, Night, Stage
from pipelines.stores import Store, StoreParams, stores_of, usable_items
from pipelines.vectors import items_to_import


class Params(StoreParams):
    """What a task is given.

    Attributes:
        embedding: as configured.
        device: the number of its GPU, None for the CPU.
        elsewhere: workers of other machines encode, so that the task takes imported vectors alone.
    """

    buckets: list[int]
    embedding: dict[str, Any]
    device: int | None
    elsewhere: bool


def deal(night: Night) -> None:
    """Writes down what the out-of-date tasks of the stage `embed` want encoded, for workers of any machine."""
    params = [cast("StoreParams", task.params) for task in night.stale]
    if params and night.config.modalities:
        want(night.layout, params[0], sorted(task.params["bucket"] for task in night.stale), code_here())


def await_others(night: Night) -> None:
    """Waits for workers of other machines, where the night's own processes do not encode.

    Raises:
        TimeloomError: none of them lives.
    """
    settings, stale = night.config.embedding, night.stale
    if settings.workers == "here" or not settings.wait or not stale or not night.config.modalities:
        return
    units = units_of(cast("StoreParams", stale[0].params), [task.params["bucket"] for task in stale])

    def show(done: int, total: int) -> None:
        if night.context.progress:
            night.context.progress(STAGE.name, done, total)

    await_workers(units, settings.worker_timeout, show, night.tell)


def plan(night: Night) -> list[Task]:
    """One task per device worker, over the buckets of those tasks of the stage `embed` that are out of date.

    On GPUs a worker each, which the machine's cores read images for. On the CPU a worker per process of the engine,
    which reads its images itself, so that every core is used once.
    """
    config, context, stale = night.config, night.context, night.stale
    elsewhere = config.embedding.workers == "elsewhere"
    if not stale or not config.modalities or (elsewhere and not stale[0].params["tied"]):
        return []
    encoders = [encoder for block in config.modalities.values() for encoder in block.all_encoders]
    gpu = not elsewhere and any(encoder.device_kind == "cuda" for encoder in encoders)
    workers = min(context.engine.workers, len(stale), _gpus() if gpu else len(stale))
    embedding = config.embedding.model_dump(mode="json")
    if embedding["decoders"] is None:
        embedding["decoders"] = max(1, len(os.sched_getaffinity(0)) // workers - 1) if gpu else 0
    shared = cast("StoreParams", {name: stale[0].params[name] for name in StoreParams.__annotations__})
    return [
        make_task(
            STAGE,
            f"{worker:04d}",
            context.staging,
            settings=[workers, elsewhere],
            inputs=[task.fingerprint for task in stale[worker::workers]],
            params=Params(
                **shared,
                buckets=[task.params["bucket"] for task in stale[worker::workers]],
                embedding=embedding,
                device=worker if gpu else None,
                elsewhere=elsewhere,
            ),
            intact="pipelines.encode:is_done",
        )
        for worker in range(workers)
    ]


def _gpus() -> int:
    import torch

    return max(1, torch.cuda.device_count())


class Imported(TypedDict):
    """What a worker took of one set of imported vectors; `errors` by the exception's type."""

    modality: str
    label: str
    items: int
    units: int
    errors: dict[str, int]


def is_done(params: Params, base: Path) -> bool:
    """Whether every item of the task's buckets has an outcome that lasts."""
    from embedders.running.store_bucket import PASSING

    for bucket in params["buckets"]:
        for modality, items in usable_items(params, bucket):
            for store in stores_of(params, modality):
                if store.tied is None and params["elsewhere"]:
                    continue
                known = store.outcomes(bucket, items)
                if len(known) < len(items) or any(outcome.verdict in PASSING for outcome in known):
                    return False
    return True


def run(params: Params, base: Path) -> Result:
    """Embeds what is missing of the task's buckets, one encoder after the other; then takes what is imported."""
    usable: dict[str, dict[int, pl.DataFrame]] = {}
    for bucket in sorted(params["buckets"]):
        for modality, items in usable_items(params, bucket):
            usable.setdefault(modality, {})[bucket] = items
    units = [] if params["elsewhere"] else units_of(params, params["buckets"])
    figures = fill(params, units, params["embedding"], params["device"])
    imports = [
        _import(params, store, by_bucket)
        for modality, by_bucket in sorted(usable.items())
        for store in stores_of(params, modality)
        if store.tied is not None
    ]
    return Result({}, {**figures.counts(), "imported": imports})


def _import(params: Params, store: Store, by_bucket: "Mapping[int, pl.DataFrame]") -> Imported:
    """Fills the buckets of a store with vectors that were made elsewhere."""
    from embedders.encoders.golden import record_import
    from embedders.running.importing import ImportBucket, import_buckets

    declared, tied, spec = store.config.imported, store.tied, store_spec(store.config, store.modality)
    assert declared is not None and tied is not None
    private = Path(params["private"])
    buckets = [
        ImportBucket(store.bucket(bucket), items_to_import(tied, items, private)) for bucket, items in by_bucket.items()
    ]
    figures = import_buckets(buckets, declared, spec)
    record_import(spec, declared.model_dump(mode="json", exclude={"path", "index"}), store.folder)
    return Imported(
        modality=store.modality, label=spec.label, items=figures.items, units=figures.units, errors=figures.errors
    )


def figures(report: StageReport) -> list[dict[str, Any]]:
    """What each worker of a run reports, JSON; none where nothing was to be embedded."""
    return [{"worker": key, **entry.counts} for key, entry in report.entries.items()]


def described(worker: dict[str, Any]) -> str:
    """A worker's figures as a line of a log."""
    shares = {"device idle": worker["device_idle_share"], "of the FLOP limit": worker["flop_fraction"]}
    known = "".join(f", {share:.1%} {what}" for what, share in shares.items() if share is not None)
    taken = "".join(f", {each['items']} items imported from {each['label']}" for each in worker["imported"])
    return (
        f"worker {worker['worker']}: {worker['items']} items, {worker['units']} units in {worker['seconds']:.1f} s"
        f" ({worker['units_per_second'] or 0} a second){known}, {worker['decode_seconds']:.1f} s of decoding,"
        f" rounding error {worker['rounding_error']:.1e}{taken}"
    )


STAGE = Stage(
    "encode",
    version=2,
    run="pipelines.encode:run",
    after=("index",),
    prepares="embed",
    in_release=False,
    before=deal,
    plan=plan,
    behind=await_others,
    figures=Figures(rows=figures, line=described),
)
