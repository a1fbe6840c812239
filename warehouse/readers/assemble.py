"""From packs on a shelf to a batch with what was asked for: ids, segments, everything, vectors, retrieved items."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
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

Fields = Literal["ids", "segments", "full"]
Vectors = Literal["pooled", "sequences"] | bool
FIELDS = ("ids", "segments", "full")
VECTORS = ("pooled", "sequences", False, True)


@dataclass(frozen=True)
class Recipe:
    """What batches hold.

    Attributes:
        fields: `ids`, `segments` (ids and where segments begin) or `full`.
        kinds: token types that are targets of the loss.
        vectors: whether item vectors are attached, `pooled` to one an item or also as `sequences` of its units.
        items_per_segment: None for the items of image tokens; k for the at most k most recent items a modality of each
            segment's subject within the segment's time span, whether or not they have tokens.
    """

    fields: Fields
    kinds: tuple[int, ...]
    vectors: Literal["pooled", "sequences", "none"]
    items_per_segment: int | None = None


def recipe(
    fields: Fields, loss: str | Iterable[TokenType], vectors: Vectors, items_per_segment: int | None = None
) -> Recipe:
    """A checked Recipe.

    Raises:
        TimeloomError: unknown fields, loss or kind of vectors, or less than one item a segment.
    """
    if fields not in FIELDS:
        raise TimeloomError(f"there are no fields called {fields}", remedy=f"choose one of {', '.join(FIELDS)}")
    if vectors not in VECTORS:
        raise TimeloomError("vectors are neither pooled nor sequences", remedy='give "pooled", "sequences" or False')
    if items_per_segment is not None and items_per_segment < 1:
        raise TimeloomError("items_per_segment is below 1", remedy="give a positive number, or None")
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
    asked: Literal["pooled", "sequences", "none"] = "none"
    if vectors:
        asked = "sequences" if vectors == "sequences" else "pooled"
    return Recipe(fields, tuple(int(kind) for kind in kinds), asked, items_per_segment)


def assemble(
    parts: Sequence[tuple[OpenShards, I64]],
    asked: Recipe,
    cursor: tuple[int, ...],
    window: WindowItems | None = None,
    padded: int = 0,
) -> IdBatch:
    """The batch of packs (n,) of each shelf, one shelf after the other; all of one release, profile and context.

    Args:
        padded: rows of padding behind them.

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
    items, dropped = made.items, dict[str, int]()
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
        if asked.vectors == "none":
            means[modality] = torch.empty(0, width)
        elif asked.vectors == "pooled":
            means[modality] = torch.from_numpy(pooled(layout, modality, store, width, item, owners, buckets))
        else:
            whole, counts = sequences(layout, modality, store, width, item.keys, owners, buckets)
            units[modality], lengths[modality] = torch.from_numpy(whole), torch.from_numpy(counts)
            means[modality] = torch.from_numpy(_means(whole, counts))
    return Batch(
        **made.whole,
        **item_fields(items),
        item_vectors=means,
        item_units=units,
        item_lengths=lengths,
        items_dropped=dropped,
    )


def _means(units: npt.NDArray[np.floating], counts: I64) -> npt.NDArray[np.float32]:
    if not len(counts):
        return np.empty((0, units.shape[1]), np.float32)
    sums: npt.NDArray[np.float32] = np.add.reduceat(units, np.cumsum(counts) - counts, axis=0, dtype=np.float32)
    return np.divide(sums, counts[:, None], dtype=np.float32)
