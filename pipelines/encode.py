"""encode: the items of many buckets as one stream over one device → vectors, and verdicts of what failed, per store.

What it makes is no part of a release: stores are shared by releases and keyed by content. So a task's record holds its
figures only, and whether there is anything to do is read from the stores themselves.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, cast

import polars as pl

from embedders.encoders.spec import EncoderConfig, EncoderSpec, encoder_spec, store_spec
from extractors.items import CUTS
from pipelines.aligning.bound import within_bound
from pipelines.engine.context import StageReport
from pipelines.engine.task import Result, Task, make_task
from pipelines.group import whole_items
from pipelines.items import items_of_bucket, private_paths
from pipelines.night import Figures, Night, Stage
from pipelines.vectors import Tied, items_to_import
from warehouse.errors import TimeloomError
from warehouse.layout import Layout, bucket_name
from warehouse.manifest import EncoderEntry

if TYPE_CHECKING:
    from embedders.encoders.build import Encoder
    from embedders.running.runner import EmbeddedItem, ItemToEmbed


class EncoderParams(TypedDict):
    """One encoder of a modality: as configured, as the manifest names it, and the way in which its items are cut."""

    config: dict[str, Any]
    entry: dict[str, Any]
    cut: str


class RawParams(TypedDict):
    """Where items and raw files are, for tasks that read items."""

    segments: list[str]
    folders: dict[str, str]
    root: str
    private: str


class StoreParams(RawParams):
    """What a task of `embed` and one of `encode` are both given: where items, raw files and stores are.

    Attributes:
        tied: by `modality/store`, what was found for stores of imported vectors.
    """

    trial_bound: str | None
    encoders: dict[str, list[EncoderParams]]
    tied: dict[str, Tied]


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
    gpu = any(encoder.device_kind == "cuda" for block in config.modalities.values() for encoder in block.all_encoders)
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


class Imported(TypedDict):
    """What a worker took of one set of imported vectors; `errors` by the exception's type."""

    modality: str
    label: str
    items: int
    units: int
    errors: dict[str, int]


@dataclass(frozen=True)
class Store:
    """The store of one encoder of a modality, and what fills it; `cut` is the way in which its items are cut."""

    modality: str
    config: EncoderConfig
    entry: EncoderEntry
    cut: str
    folder: Path
    tied: Tied | None  # of imported vectors alone

    def bucket(self, bucket: int) -> Path:
        """Its file of a bucket."""
        return self.folder / f"{bucket_name(bucket)}.lmdb"

    def outcomes(self, bucket: int, items: pl.DataFrame) -> "list[EmbeddedItem]":
        """What became of `items` of a bucket, in their order, as far as the store knows."""
        from embedders.running import importing
        from embedders.running.store_bucket import outcomes

        expected = _units_of(items, self.cut)
        if self.tied is None:
            known = outcomes(self.bucket(bucket), expected, self.entry.dim)
        else:
            known = importing.outcomes(self.bucket(bucket), items_to_import(self.tied, items), self.entry.dim)
        return [known[key] for key in expected if key in known]


def stores_of(params: StoreParams, modality: str) -> list[Store]:
    """The stores of a modality's encoders, in the order of their names on disk."""
    layout = Layout(Path(params["root"]))
    stores = []
    for given in params["encoders"][modality]:
        entry = EncoderEntry.model_validate(given["entry"])
        config = EncoderConfig.model_validate(given["config"])
        tied = params["tied"].get(f"{modality}/{entry.store}")
        folder = layout.embeddings(modality, entry.store)
        stores.append(Store(modality, config, entry, given["cut"], folder, tied))
    return sorted(stores, key=lambda store: store.entry.store)


def _units_of(items: pl.DataFrame, cut: str = "") -> dict[str, int]:
    """By item, how many units it has for who takes it cut in one way, or whatever the way.

    Raises:
        TimeloomError: an item is not cut so.
    """
    units = pl.col("units_expected").fill_null(0)
    if cut:
        units = pl.col("geometry").str.json_path_match(f'$["{CUTS}"]["{cut}"]["units"]').cast(pl.Int32)
    found = items.select("item_key", units.alias("units"))
    if found["units"].null_count():
        raise TimeloomError("items were not cut into units as an encoder takes them", remedy="run again with --rehash")
    return dict(found.iter_rows())


def is_done(params: Params, base: Path) -> bool:
    """Whether every item of the task's buckets has an outcome that lasts."""
    from embedders.running.store_bucket import PASSING

    for bucket in params["buckets"]:
        for modality, items in usable_items(params, bucket):
            for store in stores_of(params, modality):
                known = store.outcomes(bucket, items)
                if len(known) < len(items) or any(outcome.verdict in PASSING for outcome in known):
                    return False
    return True


def run(params: Params, base: Path) -> Result:
    """Embeds what is missing of the task's buckets, one encoder after the other; then takes what is imported."""
    from embedders.running.runner import Bucket, RunnerSettings, embed_buckets

    usable: dict[str, dict[int, pl.DataFrame]] = {}
    for bucket in sorted(params["buckets"]):
        for modality, items in usable_items(params, bucket):
            usable.setdefault(modality, {})[bucket] = items
    buckets, imports = [], list[Imported]()
    for modality, by_bucket in sorted(usable.items()):
        stores = stores_of(params, modality)
        todo: dict[int, list[ItemToEmbed]] = {}
        if any(store.tied is None for store in stores):
            todo = {bucket: _to_embed(params, modality, items) for bucket, items in by_bucket.items()}
        for store in stores:
            if store.tied is not None:
                imports.append(_import(params, store, by_bucket))
                continue
            spec, encoder = _spec(store), _encoder(store, params["device"])
            buckets += [
                Bucket(store.bucket(bucket), spec, [item.cut_in(store.cut) for item in wanted], encoder)
                for bucket, wanted in todo.items()
            ]
    _, figures = embed_buckets(buckets, RunnerSettings(**params["embedding"]))
    return Result({}, {**figures.counts(), "imported": imports})


def _to_embed(params: Params, modality: str, items: pl.DataFrame) -> "list[ItemToEmbed]":
    expected = _units_of(items)
    raw = raw_items(params, modality, expected)
    return [raw[key] for key in expected]


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


def _spec(store: Store) -> EncoderSpec:
    spec = encoder_spec(store.config, store.modality)
    planned = store.entry.store
    if spec.store_name != planned:
        raise TimeloomError(
            f"the {store.modality} vectors were planned as {planned}, and this worker would make {spec.store_name}",
            remedy=f"set precision and batch_size of modalities.{store.modality}.encoder: auto follows the machine",
        )
    return spec


def raw_items(params: RawParams, modality: str, expected: "Mapping[str, int]") -> "dict[str, ItemToEmbed]":
    """Items by key, with what the private folder alone knows of them.

    Args:
        expected: by key, the units of the items that are wanted.
    """
    from embedders.running.runner import ItemToEmbed

    if not expected:  # a night may index no item of this kind at all
        return {}
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


def _encoder(store: Store, device: int | None) -> "Callable[[], Encoder]":
    """Builds an encoder when the first item needs it, and holds it against its golden vectors."""

    @cache
    def encoder() -> "Encoder":
        from embedders.encoders.build import check_golden, get_encoder

        built = get_encoder(store.config, store.modality, device)
        check_golden(built, store.folder)
        return built

    return encoder


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
    plan=plan,
    figures=Figures(rows=figures, line=described),
)
