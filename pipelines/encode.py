"""encode: the items of many buckets as one stream over one device → vectors, and verdicts of what failed, per store.

What it makes is no part of a release: stores are shared by releases and keyed by content. So a task's record holds its
figures only, and whether there is anything to do is read from the stores themselves.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, cast

import polars as pl

from embedders.encoders.spec import EncoderConfig, EncoderSpec, encoder_spec
from pipelines.aligning.bound import within_bound
from pipelines.engine.context import StageReport
from pipelines.engine.task import Result, Task, make_task
from pipelines.group import whole_items
from pipelines.items import items_of_bucket, private_paths
from pipelines.night import Figures, Night, Stage
from warehouse.errors import TimeloomError
from warehouse.layout import Layout
from warehouse.manifest import EncoderEntry

if TYPE_CHECKING:
    from embedders.encoders.build import Encoder
    from embedders.running.runner import EmbeddedItem, ItemToEmbed


class RawParams(TypedDict):
    """Where items and raw files are, for tasks that read items."""

    segments: list[str]
    folders: dict[str, str]
    root: str
    private: str


class StoreParams(RawParams):
    """What a task of `embed` and one of `encode` are both given: where items, raw files and stores are."""

    trial_bound: str | None
    encoders: dict[str, dict[str, Any]]
    stores: dict[str, dict[str, Any]]


class Params(StoreParams):
    """What a task is given; `device` is the number of its GPU, None for the CPU."""

    buckets: list[int]
    embedding: dict[str, Any]
    device: int | None


def plan(night: Night) -> list[Task]:
    """One task per device worker, over the buckets of those tasks of the stage `embed` that are out of date.

    On GPUs a worker each, which the machine's cores read images for. On the CPU a worker per process of the engine,
    which reads its images itself, so that every core is used once.
    """
    config, context, stale = night.config, night.context, night.stale
    if not stale or not config.modalities:
        return []
    gpu = any(block.encoder.device_kind == "cuda" for block in config.modalities.values())
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
            settings=workers,
            inputs=[task.fingerprint for task in stale[worker::workers]],
            params=Params(
                **shared,
                buckets=[task.params["bucket"] for task in stale[worker::workers]],
                embedding=embedding,
                device=worker if gpu else None,
            ),
            intact="pipelines.encode:is_done",
        )
        for worker in range(workers)
    ]


def _gpus() -> int:
    import torch

    return max(1, torch.cuda.device_count())


def usable_items(params: StoreParams, bucket: int) -> Iterator[tuple[str, pl.DataFrame]]:
    """Per modality, the items of a bucket that the index found usable."""
    items = items_of_bucket([Path(path) for path in params["segments"]], bucket)
    usable = items.filter(within_bound(items, params["trial_bound"])).filter(pl.col("verdict") == "ok")
    for (modality,), part in sorted(usable.partition_by("modality", as_dict=True).items()):
        yield str(modality), part


def store_of(params: StoreParams, modality: str, bucket: int) -> tuple[Path, EncoderEntry]:
    """A modality's store of a bucket, and what fills it."""
    entry = EncoderEntry.model_validate(params["stores"][modality])
    return Layout(Path(params["root"])).embedding_bucket(modality, entry.store, bucket), entry


def known_outcomes(params: StoreParams, modality: str, bucket: int, items: pl.DataFrame) -> "list[EmbeddedItem]":
    """What became of `items`, in their order, as far as their store knows."""
    from embedders.running.store_bucket import outcomes

    path, entry = store_of(params, modality, bucket)
    expected = dict(items.select("item_key", pl.col("units_expected").fill_null(0)).iter_rows())
    known = outcomes(path, expected, entry.dim)
    return [known[key] for key in expected if key in known]


def is_done(params: Params, base: Path) -> bool:
    """Whether every item of the task's buckets has an outcome that lasts."""
    from embedders.running.store_bucket import PASSING

    for bucket in params["buckets"]:
        for modality, items in usable_items(params, bucket):
            known = known_outcomes(params, modality, bucket, items)
            if len(known) < len(items) or any(outcome.verdict in PASSING for outcome in known):
                return False
    return True


def run(params: Params, base: Path) -> Result:
    """Embeds what is missing of the task's buckets, one modality after the other."""
    from embedders.running.runner import Bucket, RunnerSettings, embed_buckets

    found = [
        (modality, bucket, items) for bucket in params["buckets"] for modality, items in usable_items(params, bucket)
    ]
    found.sort(key=lambda span: span[:2])
    buckets = []
    specs = {modality: _spec(params, modality) for modality in {modality for modality, *_ in found}}
    for modality, bucket, items in found:
        store, _ = store_of(params, modality, bucket)
        expected = dict(items.select("item_key", pl.col("units_expected").fill_null(0)).iter_rows())
        raw = raw_items(params, modality, expected)
        todo = [raw[key] for key in expected]
        buckets.append(Bucket(store, specs[modality], todo, _encoder(params, modality, store.parent)))
    _, figures = embed_buckets(buckets, RunnerSettings(**params["embedding"]))
    return Result({}, figures.counts())


def _spec(params: StoreParams, modality: str) -> EncoderSpec:
    spec = encoder_spec(EncoderConfig.model_validate(params["encoders"][modality]), modality)
    planned = params["stores"][modality]["store"]
    if spec.store_name != planned:
        raise TimeloomError(
            f"the {modality} vectors were planned as {planned}, and this worker would make {spec.store_name}",
            remedy=f"set precision and batch_size in modalities.{modality}.encoder: auto follows the machine",
        )
    return spec


def raw_items(params: RawParams, modality: str, expected: "Mapping[str, int]") -> "dict[str, ItemToEmbed]":
    """Items by key, with what the private folder alone knows of them.

    Args:
        expected: by key, the units of the items that are wanted.
    """
    from embedders.running.runner import ItemToEmbed

    segment = next(Path(path) for path in params["segments"] if Path(path).name.startswith(f"items-{modality}-"))
    places = pl.read_parquet(private_paths(Path(params["private"]), segment.name))
    wanted = places.filter(pl.col("item_key").is_in(pl.Series(list(expected), dtype=pl.String).implode()))
    items = {}
    for (grouped,), part in wanted.partition_by("grouped", as_dict=True, maintain_order=True).items():
        whole = whole_items(Layout(Path(params["root"])).grouped / str(grouped), part["row"].to_list())
        for key, item in zip(part["item_key"], whole, strict=True):
            folder = Path(params["folders"][modality])
            items[key] = ItemToEmbed(key, modality, folder, item.paths, item.geometry, expected[key])
    return items


def _encoder(params: Params, modality: str, folder: Path) -> "Callable[[], Encoder]":
    """Builds a modality's encoder when the first item needs it, and holds it against its golden vectors."""

    @cache
    def encoder() -> "Encoder":
        from embedders.encoders.build import check_golden, get_encoder

        built = get_encoder(EncoderConfig.model_validate(params["encoders"][modality]), modality, params["device"])
        check_golden(built, folder)
        return built

    return encoder


def figures(report: StageReport) -> list[dict[str, Any]]:
    """What each worker of a run reports, JSON; none where nothing was to be embedded."""
    return [{"worker": key, **entry.counts} for key, entry in report.entries.items()]


def described(worker: dict[str, Any]) -> str:
    """A worker's figures as a line of a log."""
    shares = {"device idle": worker["device_idle_share"], "of the FLOP limit": worker["flop_fraction"]}
    known = "".join(f", {share:.1%} {what}" for what, share in shares.items() if share is not None)
    return (
        f"worker {worker['worker']}: {worker['items']} items, {worker['units']} units in {worker['seconds']:.1f} s"
        f" ({worker['units_per_second'] or 0} a second){known}, {worker['decode_seconds']:.1f} s of decoding,"
        f" rounding error {worker['rounding_error']:.1e}"
    )


STAGE = Stage(
    "encode",
    version=1,
    run="pipelines.encode:run",
    step="embed",
    after=("index",),
    prepares="embed",
    in_release=False,
    plan=plan,
    figures=Figures(rows=figures, line=described),
)
