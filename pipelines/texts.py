"""texts: the texts of one bucket's usable items, where the configuration keeps them. Schema out: TEXTS.

Only a release that is declared to be of pseudonymised texts has them: `RunConfig` refuses any other. What de-identifies
a text is the site's own work, before timeloom: nothing in it is changed.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

import polars as pl

from extractors.extractor import imported
from extractors.items import OK, UnitRequest, VerdictError
from extractors.modalities import EXTRACTORS
from pipelines.embed import Counts as EmbedCounts
from pipelines.engine.context import counts_of
from pipelines.engine.task import Result, Task, make_task
from pipelines.night import Night, Stage
from pipelines.stores import RawParams, raw_items
from warehouse.errors import TimeloomError
from warehouse.items import each_once
from warehouse.layout import ReleaseLayout, bucket_name
from warehouse.parquet import read_frame, write_tables
from warehouse.schemas import TEXTS

_AT_A_TIME = 1 << 10


class Counts(TypedDict):
    """How many texts a bucket has."""

    texts: int


class Params(RawParams):
    """What a task is given: paths and settings, and the modalities whose texts are kept."""

    bucket: int
    modalities: list[str]


def plan(night: Night) -> list[Task]:
    """One task a bucket; none where no modality keeps its texts."""
    config, layout = night.config, night.layout
    kept = sorted(name for name, block in config.modalities.items() if block.keeps_texts)
    if not kept:
        return []
    embedded = night.report("embed").entries
    return [
        make_task(
            STAGE,
            bucket_name(bucket),
            night.context.staging,
            settings=kept,
            inputs=counts_of(embedded[bucket_name(bucket)], EmbedCounts)["happened"],
            params=Params(
                bucket=bucket,
                modalities=kept,
                segments=[str(layout.segments / path) for path in sorted(night.report("index").hashes())],
                folders={name: str(block.path) for name, block in config.modalities.items()},
                root=str(layout.root),
                private=str(layout.private),
            ),
        )
        for bucket in range(config.buckets)
    ]


def run(params: Params, base: Path) -> Result:
    """Writes one bucket's texts, some at a time.

    Raises:
        TimeloomError: what the index left of a text went, or its file changed since.
    """
    tree = ReleaseLayout(base)
    items = each_once(read_frame(tree.items(params["bucket"])))
    usable = items.filter((pl.col("verdict") == OK) & pl.col("modality").is_in(params["modalities"]))
    usable = usable.unique("item_key", keep="first", maintain_order=True)  # an item has a row for each encoder
    path = tree.texts(params["bucket"])
    rows = write_tables(path, _frames(params, usable), TEXTS, "texts")
    return Result({str(path.relative_to(base)): rows}, Counts(texts=rows))


def _frames(params: Params, usable: pl.DataFrame) -> Iterator[pl.DataFrame]:
    for (modality,), part in usable.partition_by("modality", as_dict=True, maintain_order=True).items():
        text_of = imported(EXTRACTORS[str(modality)].text)
        for chunk in part.iter_slices(_AT_A_TIME):
            raw = raw_items(params, str(modality), dict(chunk.select("item_key", "units_expected").iter_rows()))
            texts = [_text(text_of, raw[key]) for key in chunk["item_key"]]
            yield chunk.with_columns(pl.Series("text", texts, dtype=pl.String)).select(TEXTS.names)


def _text(text_of: Any, item: Any) -> str:
    try:
        found: str = text_of(UnitRequest(item.root, item.paths, item.geometry))
    except VerdictError as error:
        raise TimeloomError(
            f"texts of {item.modality} items are not what they were when they were indexed", remedy="run again"
        ) from error
    return found


def declare(night: Night) -> dict[str, Any]:
    """How many texts the release has."""
    counts = (counts_of(entry, Counts)["texts"] for entry in night.report(STAGE.name).entries.values())
    return {"texts": sum(counts)}


STAGE = Stage(
    "texts",
    1,
    "pipelines.texts:run",
    after=("index", "embed"),
    keys=("modalities",),
    plan=plan,
    declare=declare,
    settings_are=("modalities",),
    inputs_are=("items",),
)
