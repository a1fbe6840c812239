"""digests: one bucket's pictures and texts → what copies are found by. Schema out: DIGESTS, in the private folder.

Both are read only where `duplicates` asks, and once: what earlier nights found of an item is taken over.
"""

from hashlib import sha256
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import polars as pl
import pyarrow as pa

from extractors.extractor import Extractor, imported
from extractors.items import OK, UnitRequest, VerdictError
from extractors.modalities import EXTRACTORS
from pipelines.clinifuse.settings import DuplicatesConfig
from pipelines.engine.task import Result, Task
from pipelines.night import Night, Stage
from pipelines.scan import earlier_files
from pipelines.stores import RawParams, raw_items
from warehouse.errors import TimeloomError
from warehouse.files import sha256_json
from warehouse.items import each_once
from warehouse.layout import bucket_name
from warehouse.parquet import empty_frame, read_frame, write_table

_AT_A_TIME = 1 << 10
# `content` is the SHA-256 of what was decoded, hexadecimal; `look` the perceptual hash of a picture that is not flat;
# `words` the MinHash signature of a text that is long enough.
DIGESTS = pa.schema(
    [
        pa.field("subject_id", pa.int64(), nullable=False),
        pa.field("item_key", pa.string(), nullable=False),
        pa.field("modality", pa.string(), nullable=False),
        pa.field("content", pa.string()),
        pa.field("look", pa.uint64()),
        pa.field("words", pa.list_(pa.uint32())),
    ]
)


class Counts(TypedDict):
    """How many items a bucket compares, and how many of them were read."""

    items: int
    read: int


class Params(RawParams):
    """What a task is given: paths and settings, the bucket's file of items, the file that it writes, and those that
    earlier nights wrote by the same settings."""

    items: str
    settings: dict[str, Any]
    known: list[str]
    out: str


def raw_params(night: Night) -> RawParams:
    """Where raw files, and what is known of them, lie."""
    config, layout = night.config, night.layout
    return RawParams(
        segments=[str(layout.segments / path) for path in sorted(night.report("index").hashes())],
        folders={name: str(block.path) for name, block in config.modalities.items()},
        root=str(layout.root),
        private=str(layout.private),
    )


def compared(config: DuplicatesConfig) -> list[str]:
    """The modalities that are compared, in order."""
    return sorted({*config.images, *config.texts})


def plan(night: Night) -> list[Task]:
    """One task a bucket, up to date as long as its usable items are the same, and texts are cut by what they were."""
    config = night.config.duplicates
    if config is None:
        return []
    night.report("embed")
    folder = night.layout.digests
    settings = config.model_dump(mode="json", include={"images", "texts", "least_tokens", "least_deviation"})
    blocks = night.config.modalities
    cuts = {name: blocks[name].cut for name in compared(config) if name in blocks and blocks[name].cut}
    rules = sha256_json([STAGE.name, STAGE.version, settings, *([cuts] if cuts else [])])[:12]
    tasks = []
    for bucket in range(night.config.buckets):
        path = night.tree.items(bucket)
        fingerprint = sha256_json([rules, usable_of(path, config)["item_key"].to_list()])
        before = f"{bucket_name(bucket)}-{rules}"
        name = f"{before}-{fingerprint[:24]}"
        record = folder / f"{name}.json"
        tasks.append(
            Task(
                stage=STAGE.name,
                function=STAGE.run,
                key=bucket_name(bucket),
                base=str(folder),
                record=str(record),
                params=Params(
                    **raw_params(night),
                    items=str(path),
                    settings=settings,
                    known=[] if record.is_file() else [str(earlier) for earlier in earlier_files(folder, before)],
                    out=f"{name}.parquet",
                ),
                fingerprint=fingerprint,
            )
        )
    return tasks


def usable_of(path: Path, config: DuplicatesConfig) -> pl.DataFrame:
    """The usable items of a bucket that are compared, each once: subject_id, item_key, modality, units_expected."""
    items = read_frame(path).filter((pl.col("verdict") == OK) & pl.col("modality").is_in(compared(config)))
    return each_once(items).select("subject_id", "item_key", "modality", "units_expected").sort("modality", "item_key")


def run(params: Params, base: Path) -> Result:
    """Reads one bucket's pictures and texts.

    Raises:
        TimeloomError: a file changed since it was indexed.
    """
    config = DuplicatesConfig.model_validate(params["settings"])
    items, found = usable_of(Path(params["items"]), config), [empty_frame(DIGESTS)]
    for path in map(Path, params["known"]):
        found.append(read_frame(path).join(items, on=["subject_id", "item_key"], how="semi"))
        items = items.join(found[-1], on="item_key", how="anti")
    for (modality,), part in items.group_by("modality"):
        for chunk in part.iter_slices(_AT_A_TIME):
            found.append(_digested(params, config, str(modality), chunk))
    digests = pl.concat(found, how="vertical_relaxed").sort("modality", "item_key")
    rows = write_table(base / params["out"], digests, DIGESTS, "digests")
    return Result({params["out"]: rows}, Counts(items=rows, read=sum(map(len, found[1 + len(params["known"]) :]))))


def _digested(params: Params, config: DuplicatesConfig, modality: str, items: pl.DataFrame) -> pl.DataFrame:
    raw = raw_items(params, modality, dict(items.select("item_key", "units_expected").iter_rows()))
    extractor, known = EXTRACTORS[modality], []
    for key in items["item_key"]:
        item = raw[key]
        try:
            known.append(_of_item(extractor, UnitRequest(item.root, item.paths, item.geometry), config))
        except VerdictError as error:
            raise TimeloomError(
                f"{modality} items are not what they were when they were indexed", remedy="run again"
            ) from error
    schema: dict[str, Any] = {"content": pl.String, "look": pl.UInt64, "words": pl.List(pl.UInt32)}
    found = pl.DataFrame(known, schema=schema, orient="row")
    return items.select("subject_id", "item_key", "modality").hstack(found)


def _of_item(
    extractor: Extractor, request: UnitRequest, config: DuplicatesConfig
) -> tuple[str | None, int | None, list[int] | None]:
    """SHA-256 of the content, the perceptual hash of a picture, the signature of a text; nothing of a short text."""
    if extractor.tokens:
        from extractors.note.copies import signatures_of

        tokens = imported(extractor.tokens)(request)
        if len(tokens) < max(1, config.least_tokens):
            return None, None, None
        signature = signatures_of(tokens, np.array([len(tokens)]))[0]
        return sha256(np.ascontiguousarray(tokens, "<u4").tobytes()).hexdigest(), None, signature.tolist()
    from pipelines.clinifuse.perceptual import perceptual_hash

    digest, look, units = sha256(), None, 0
    for batch in imported(extractor.read_units)(request, extractor.units_a_batch):
        for pixels in batch.pixels:
            digest.update(f"{pixels.dtype.str}{pixels.shape}".encode() + np.ascontiguousarray(pixels).tobytes())
            look = perceptual_hash(pixels, config.least_deviation) if not units and pixels.ndim == 2 else None
            units += 1
    return digest.hexdigest(), look, None


STAGE = Stage(
    "digests",
    version=1,
    run="pipelines.papers.digests:run",
    after=("index", "embed"),
    in_release=False,
    keys=("duplicates", "modalities"),
    plan=plan,
)
