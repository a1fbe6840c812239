"""The stores of a night's encoders: which items they want, what is known of these, and where their raw files are."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import polars as pl

from embedders.encoders.spec import EncoderConfig
from extractors.items import CUTS
from pipelines.aligning.bound import within_bound
from pipelines.group import whole_items
from pipelines.items import items_of_bucket, private_paths
from pipelines.vectors import Tied, items_to_import
from warehouse.errors import TimeloomError
from warehouse.layout import Layout, bucket_name
from warehouse.manifest import EncoderEntry

if TYPE_CHECKING:
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


def usable_items(params: StoreParams, bucket: int) -> Iterator[tuple[str, pl.DataFrame]]:
    """Per modality, the items of a bucket that the index found usable."""
    items = items_of_bucket([Path(path) for path in params["segments"]], bucket)
    usable = items.filter(within_bound(items, params["trial_bound"])).filter(pl.col("verdict") == "ok")
    for (modality,), part in sorted(usable.partition_by("modality", as_dict=True).items()):
        yield str(modality), part


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

        expected = units_of_items(items, self.cut)
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


def units_of_items(items: pl.DataFrame, cut: str = "") -> dict[str, int]:
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


def to_embed(params: RawParams, modality: str, items: pl.DataFrame) -> "list[ItemToEmbed]":
    """Items with what the private folder alone knows of them, in their order."""
    expected = units_of_items(items)
    raw = raw_items(params, modality, expected)
    return [raw[key] for key in expected]
