"""From packs on a shelf to a batch with what was asked for: ids, segments, everything, vectors, retrieved items."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import torch

from warehouse.arrays import I64
from warehouse.errors import TimeloomError
from warehouse.losses import loss_table
from warehouse.modalities import MODALITIES
from warehouse.readers.batch import NO_PACK, Batch, IdBatch
from warehouse.readers.collate import collate, collate_segments, item_fields, widened
from warehouse.readers.item_vectors import pooled, sequences
from warehouse.readers.open_shards import OpenShards, padding
from warehouse.readers.retrieved_items import WindowItems
from warehouse.tokens import TokenType

T = TypeVar("T")
Fields = Literal["ids", "segments", "full"]
Kind = Literal["pooled", "sequences"] | bool
Vectors = Kind | Mapping[str, Kind]
ItemsPerSegment = int | Mapping[str, int] | None
FIELDS = ("ids", "segments", "full")
VECTORS = ("pooled", "sequences", False, True)


@dataclass(frozen=True)
class Recipe:
    """What batches hold.

    Attributes:
        fields: `ids`, `segments` (ids and where segments begin) or `full`.
        kinds: token types that are targets of the loss.
        vectors: by modality, whether item vectors are attached: `pooled` to one an item, or also as `sequences` of its
            units. A modality that is not named has none.
        items_per_segment: None for the items of image tokens; else, by modality, k for the at most k most recent items
            of each segment's subject within the segment's time span, whether or not they have tokens. A modality that
            is not named has no items then.
    """

    fields: Fields
    kinds: tuple[int, ...]
    vectors: Mapping[str, Literal["pooled", "sequences"]]
    items_per_segment: Mapping[str, int] | None = None


def recipe(
    fields: Fields,
    loss: str | Iterable[TokenType],
    vectors: Vectors,
    items_per_segment: ItemsPerSegment = None,
    modalities: Iterable[str] = tuple(MODALITIES),
) -> Recipe:
    """A checked Recipe.

    Args:
        modalities: of the release; what is not given by modality holds for all of them.

    Raises:
        TimeloomError: unknown fields, loss, modality or kind of vectors, or less than one item a segment.
    """
    if fields not in FIELDS:
        raise TimeloomError(f"there are no fields called {fields}", remedy=f"choose one of {', '.join(FIELDS)}")
    names = list(modalities)
    by_modality = _of_each(vectors, names)
    if any(kind not in VECTORS for kind in by_modality.values()):
        raise TimeloomError("vectors are neither pooled nor sequences", remedy='give "pooled", "sequences" or False')
    most = None if items_per_segment is None else _of_each(items_per_segment, names)
    if most is not None and any(number < 1 for number in most.values()):
        raise TimeloomError("items_per_segment is below 1", remedy="give positive numbers, or None")
    try:
        kinds = (
            np.flatnonzero(loss_table(loss))
            if isinstance(loss, str)
            else sorted({int(TokenType(kind)) for kind in loss})
        )
    except (TypeError, ValueError):
        raise TimeloomError(
            "the loss is neither a name nor token types", remedy="give a name, or e.g. [TokenType.STRUCTURED]"
        ) from None
    asked: dict[str, Literal["pooled", "sequences"]] = {
        name: "sequences" if kind == "sequences" else "pooled" for name, kind in by_modality.items() if kind
    }
    return Recipe(fields, tuple(int(kind) for kind in kinds), asked, most)


def _of_each(given: T | Mapping[str, T], modalities: Sequence[str]) -> dict[str, T]:
    if not isinstance(given, Mapping):
        return dict.fromkeys(modalities, given)
    unknown = [name for name in given if name not in modalities]
    if unknown:
        known = ", ".join(modalities) or "none"
        raise TimeloomError(f"the release has no vectors of {unknown[0]}", remedy=f"choose one of: {known}")
    return dict(given)


def assemble(
    parts: Sequence[tuple[OpenShards, I64]],
    asked: Recipe,
    cursor: tuple[int, ...],
    window: WindowItems | None = None,
    padded: int = 0,
    absent: Mapping[str, frozenset[str]] | None = None,
) -> IdBatch:
    """The batch of packs (n,) of each shelf, one shelf after the other; all of one release, profile and context.

    Args:
        padded: rows of padding behind them.
        absent: by modality, keys of items that have no vector, and so are none of the batch's.

    Raises:
        TimeloomError: a shard or an embedding store that these packs need is missing or damaged.
    """
    first = parts[0][0]
    context = first.context
    numbers = [shelf.pack_ids[packs] for shelf, packs in parts]
    if padded:
        numbers.append(np.full(padded, NO_PACK, np.int64))
    pack_ids = numbers[0] if len(numbers) == 1 else np.concatenate(numbers)
    if asked.fields == "ids":
        found = [shelf.ids(packs) for shelf, packs in parts]
        ids = found[0] if len(found) == 1 else np.concatenate(found)
        return IdBatch(widened(ids, padded), torch.from_numpy(pack_ids), cursor)
    places = [place for shelf, packs in parts for place in shelf.places(packs)]
    if padded:
        places += padding(padded, places, context)
    if asked.fields == "segments":
        return collate_segments(places, context, pack_ids, cursor)
    modalities = [name for name in MODALITIES if any(name in shelf.stores for shelf, _ in parts)]
    made = collate(places, context, pack_ids, cursor, asked.kinds, modalities)
    items = {
        name: item.without(absent[name]) if absent and name in absent else item for name, item in made.items.items()
    }
    dropped = dict[str, int]()
    encoders = {name: (shelf.stores[name], shelf.dims[name]) for shelf, _ in parts for name in shelf.stores}
    if window is not None and asked.items_per_segment is not None:
        items, dropped = window.of(made, asked.items_per_segment)
        encoders = window.encoders
    means: dict[str, torch.Tensor] = {}
    units: dict[str, torch.Tensor] = {}
    lengths: dict[str, torch.Tensor] = {}
    layout, buckets = first.release.layout, first.release.manifest.buckets
    for modality, item in items.items():
        store, width = encoders[modality]
        owners = made.subjects[item.segment]
        kind = asked.vectors.get(modality)
        if kind is None:
            means[modality] = torch.empty(0, width)
        elif kind == "pooled":
            means[modality] = torch.from_numpy(pooled(layout, modality, store, width, item, owners, buckets))
        else:
            whole, counts = sequences(layout, modality, store, width, item.keys, owners, buckets)
            units[modality], lengths[modality] = torch.from_numpy(whole), torch.from_numpy(counts)
            means[modality] = _means(units[modality], counts)
    return Batch(
        **made.whole,
        **item_fields(items),
        item_vectors=means,
        item_units=units,
        item_lengths=lengths,
        items_dropped=dropped,
    )


def _means(units: torch.Tensor, counts: I64) -> torch.Tensor:
    """(n, d) float32 of sequences, by torch: numpy takes six times as long to widen 16 bits."""
    means = torch.empty(len(counts), units.shape[1])
    for mean, sequence in zip(means, torch.split(units, counts.tolist()), strict=True):
        torch.mean(sequence, 0, dtype=torch.float32, out=mean)
    return means
