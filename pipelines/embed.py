"""embed: one bucket's items → vectors in LMDB and one row per item with its final verdict.

Schema in: indexed items. Schema out: ITEMS; a vector per item with verdict ok, under its key in its modality's store.
"""

import json
from pathlib import Path
from typing import Any

import polars as pl

from embedders.encoders import EncoderConfig, encoder_spec
from pipelines.config import RunConfig
from pipelines.engine import Result, RunContext, Stage, StageReport, Task, make_task
from pipelines.gather import within_limit
from pipelines.index import items_of_bucket, private_paths
from warehouse.layout import Layout, ReleaseLayout, bucket_name
from warehouse.manifest import EncoderEntry
from warehouse.schemas import ITEMS, read_frame, write_table

STAGE = Stage("embed", 1, "pipelines.embed:run")


def encoders(config: RunConfig) -> dict[str, EncoderEntry]:
    """What each modality's vectors are made by.

    Raises:
        TimeloomError: weights that are missing.
    """
    entries: dict[str, EncoderEntry] = {}
    for modality in sorted(config.images):
        spec = encoder_spec(config.encoders[modality], modality)
        entries[modality] = EncoderEntry(
            label=spec.label, store=spec.store_name, dim=spec.width, weights_sha256=spec.weights_sha256
        )
    return entries


def plan(config: RunConfig, context: RunContext, layout: Layout, index: StageReport, limit: str | None) -> list[Task]:
    """One task per bucket. It is up to date as long as the bucket's items and their encoders are."""
    segments = [str(layout.segments / path) for path in sorted(index.hashes())]
    made_by = encoders(config)
    hashes = _bucket_hashes([Path(path) for path in segments], config.buckets)
    return [
        make_task(
            STAGE,
            bucket_name(bucket),
            context.staging,
            settings=[limit, {name: entry.store for name, entry in made_by.items()}],
            inputs=hashes.get(bucket),
            params={
                "bucket": bucket,
                "limit": limit,
                "segments": segments,
                "root": str(layout.root),
                "private": str(layout.private),
                "encoders": {name: encoder.model_dump(mode="json") for name, encoder in config.encoders.items()},
                "stores": {name: entry.model_dump(mode="json") for name, entry in made_by.items()},
            },
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


def has_vectors(params: dict[str, Any], base: Path) -> bool:
    """Whether every usable item of the bucket still has its vector; a store that went is filled again."""
    items = read_frame(ReleaseLayout(base).items(params["bucket"])).filter(pl.col("verdict") == "ok")
    if items.is_empty():
        return True
    from warehouse.embeddings import EmbeddingStore

    layout = Layout(Path(params["root"]))
    for (modality, store), part in items.partition_by("modality", "store", as_dict=True).items():
        path = layout.embedding_bucket(str(modality), str(store), params["bucket"])
        if not path.is_file() or not set(part["item_key"]) <= set(EmbeddingStore.open(path).keys()):
            return False
    return True


def run(params: dict[str, Any], base: Path) -> Result:
    """Embeds one bucket's items, those that are not in their store yet."""
    bucket = params["bucket"]
    segments = [Path(path) for path in params["segments"]]
    items = items_of_bucket(segments, bucket)
    items = items.filter(within_limit(items, params["limit"]))
    outcomes = []
    for modality, usable in sorted(
        items.filter(pl.col("verdict") == "ok").partition_by("modality", as_dict=True).items()
    ):
        outcomes += _embed(str(modality[0]), usable, segments, params)
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
    return Result({str(path.relative_to(base)): rows}, {"verdicts": verdicts, "items": rows})


def _embed(modality: str, usable: pl.DataFrame, segments: list[Path], params: dict[str, Any]) -> list[tuple[Any, ...]]:
    from embedders.encoders import get_encoder
    from embedders.runner import ItemToEmbed, embed_items
    from warehouse.embeddings import EmbeddingWriter

    segment = next(path for path in segments if path.name.startswith(f"items-{modality}-"))
    private = json.loads(private_paths(Path(params["private"]), segment.name).read_text(encoding="utf-8"))
    entry = EncoderEntry.model_validate(params["stores"][modality])
    config = EncoderConfig.model_validate(params["encoders"][modality])
    found = private["items"]
    todo = [
        ItemToEmbed(
            item_key=key,
            modality=modality,
            root=Path(private["folder"]),
            paths=tuple(found[key]["paths"]),
            geometry=found[key]["geometry"],
            units_expected=expected,
        )
        for key, expected in usable.select("item_key", "units_expected").iter_rows()
    ]
    store = Layout(Path(params["root"])).embedding_bucket(modality, entry.store, params["bucket"])
    with EmbeddingWriter(store) as writer:
        results = embed_items(todo, get_encoder(config, modality), writer)
    return [
        (
            result.item_key,
            result.verdict,
            result.units_expected,
            result.units_encoded,
            result.units_failed,
            result.dim,
            entry.store if result.verdict == "ok" else None,
            entry.label if result.verdict == "ok" else None,
        )
        for result in results
    ]
