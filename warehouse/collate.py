"""Packs gathered from mapped shards into tensors. Each token is written once; what has runs is repeated, not looked up.

Shards hold PAD, SPECIAL and no time behind the last segment, so nothing here writes padding again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from warehouse.batches import Batch, IdBatch, SegmentBatch
from warehouse.shard_times import NO_TIME
from warehouse.shelf import Place, segments_of
from warehouse.shuffle import Ints
from warehouse.tokens import MODALITIES, UNK

Bools = npt.NDArray[np.bool_]


def stacked(parts: Sequence[npt.NDArray[Any]], context: int) -> npt.NDArray[Any]:
    """Rows (L,) of one dtype copied into a writable (n, L): one call, where fancy indexing would take one a block."""
    if not parts:
        return np.empty((0, context), np.uint8)
    rows: list[Any] = list(parts)  # arrays are buffers, which their stubs do not say
    return np.frombuffer(bytearray().join(rows), parts[0].dtype).reshape(len(parts), context)


def ragged(starts: Ints, counts: Ints) -> Ints:
    """Flat indices of runs: starts[0], …, starts[0] + counts[0] - 1, starts[1], …; (sum of counts,)."""
    before = np.cumsum(counts) - counts
    return np.repeat(starts - before, counts) + np.arange(int(counts.sum()), dtype=np.int64)


def collate_ids(places: Sequence[Place], context: int, pack_ids: Ints, cursor: tuple[int, ...]) -> IdBatch:
    """Ids alone: nothing is read but the mapped matrix of ids."""
    return IdBatch(torch.from_numpy(_ids(places, context)), torch.from_numpy(pack_ids), cursor)


def _narrow_ids(places: Sequence[Place], context: int) -> npt.NDArray[Any]:
    parts = [place.block.input_ids[place.row] for place in places]
    if len({part.dtype for part in parts}) > 1:  # shards of a vocabulary that has outgrown 16 bits since
        parts = [part.astype(np.uint32) for part in parts]
    return stacked(parts, context)


def _ids(places: Sequence[Place], context: int) -> Ints:
    return _narrow_ids(places, context).astype(np.int64)


@dataclass(frozen=True)
class Segments:
    """The segments of a batch's packs.

    Attributes:
        table: (S, 4) int64, see warehouse.shelf.Pages.
        per_pack: (B,) int64.
        runs: (S + B,) int64, the segments' lengths, after each pack's its padding, zero or more.
        place: (S,) int64, where in `runs` each segment is.
        padding: (B,) int64, where in `runs` each pack's padding is.
    """

    table: Ints
    per_pack: Ints
    runs: Ints
    place: Ints
    padding: Ints

    def spread(self, values: npt.NDArray[Any], at_padding: int) -> npt.NDArray[Any]:
        """One value a segment (S,) becomes one a token (B * L,)."""
        whole = np.full(len(self.runs), at_padding, dtype=values.dtype)
        whole[self.place] = values
        return np.repeat(whole, self.runs)


def segments(places: Sequence[Place], context: int) -> Segments:
    """The segments of packs whose pages were read."""
    parts = [segments_of(place) for place in places]
    per_pack = np.array([len(part) for part in parts], dtype=np.int64)
    table = np.concatenate([np.empty((0, 4), np.int64), *parts])
    padding = np.cumsum(per_pack) + np.arange(len(parts))
    place = np.arange(len(table)) + np.repeat(np.arange(len(parts)), per_pack)
    runs = np.zeros(len(table) + len(parts), dtype=np.int64)
    runs[place] = table[:, 0]
    filled = np.bincount(np.repeat(np.arange(len(parts)), per_pack), table[:, 0], minlength=len(parts))
    runs[padding] = context - filled.astype(np.int64)
    return Segments(table, per_pack, runs, place, padding)


def collate_segments(places: Sequence[Place], context: int, pack_ids: Ints, cursor: tuple[int, ...]) -> SegmentBatch:
    """Ids and segment boundaries."""
    found = segments(places, context)
    return SegmentBatch(
        torch.from_numpy(_ids(places, context)), torch.from_numpy(pack_ids), cursor, *_runs(found, context)
    )


def _runs(
    found: Segments, context: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int, torch.Tensor, torch.Tensor, torch.Tensor]:
    """SegmentBatch's own fields, in order."""
    shape = len(found.per_pack), context
    first = np.cumsum(found.per_pack) - found.per_pack
    local = np.arange(len(found.table), dtype=np.int32) - np.repeat(first, found.per_pack).astype(np.int32)
    starts = np.cumsum(found.runs) - found.runs
    positions = np.repeat(starts, found.runs)
    np.subtract(np.arange(len(positions), dtype=np.int64), positions, out=positions)
    empty = found.runs[found.padding]
    if empty.any():
        positions[ragged(starts[found.padding], empty)] = 0
    lengths = found.table[:, 0]
    bounds = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=bounds[1:])
    return (
        torch.from_numpy(found.spread(local, -1).reshape(shape)),
        torch.from_numpy(positions.reshape(shape)),
        torch.from_numpy(bounds),
        int(lengths.max(initial=0)),
        torch.from_numpy(found.table[:, 1].copy()),
        torch.from_numpy(found.table[:, 2].copy()),
        torch.from_numpy(found.per_pack),
    )


def times(places: Sequence[Place], context: int, found: Segments) -> Ints:
    """(B, L) microseconds since 1970, NO_TIME where there is none."""
    parts = [place.block.time[place.row] for place in places]
    kinds = [(part.dtype.str, place.unit_us) for part, place in zip(parts, places, strict=True)]
    if len(set(kinds)) < 2:
        result, none = _steps(parts, kinds[0][1] if kinds else 1, context)
    else:  # shards whose times need different units
        result, none = np.empty((len(parts), context), np.int64), np.empty((len(parts), context), np.bool_)
        for kind in set(kinds):
            rows = [row for row, its in enumerate(kinds) if its == kind]
            result[rows], none[rows] = _steps([parts[row] for row in rows], kind[1], context)
    flat = result.reshape(-1)
    flat += found.spread(found.table[:, 3], 0)
    flat[np.flatnonzero(none)] = NO_TIME
    return result


def _steps(parts: Sequence[npt.NDArray[Any]], unit: int, context: int) -> tuple[Ints, Bools]:
    raw = stacked(parts, context)
    none: Bools = np.equal(raw, np.iinfo(raw.dtype).min)
    steps = raw.astype(np.int64)
    if unit != 1:
        steps *= unit
    return steps, none


def targets(types: npt.NDArray[np.uint8], ids: npt.NDArray[Any], kinds: Sequence[int], starts: Ints) -> Bools:
    """(B, L) bool: tokens of a type in `kinds` that are no special id, and not the first of their segment.

    The first token of a segment has nothing before it to be predicted from. A few comparisons of bytes are five times
    as fast as looking up a table.
    """
    mask = np.zeros(types.shape, dtype=np.bool_)
    for kind in kinds:
        mask |= types == kind
    mask &= ids > UNK
    mask.reshape(-1)[starts] = False
    return mask


@dataclass(frozen=True)
class Items:
    """The items (n,) of one modality in a batch: keys, and what Batch says of them."""

    keys: list[str]
    positions: Ints
    segment: Ints
    time_us: Ints


def collate(
    places: Sequence[Place],
    context: int,
    pack_ids: Ints,
    cursor: tuple[int, ...],
    kinds: Sequence[int],
    modalities: Sequence[str],
) -> tuple[Batch, dict[str, Items]]:
    """Everything but the vectors of items; those of image tokens are given beside the batch, in the packs' order."""
    found = segments(places, context)
    ids, time = _ids(places, context), times(places, context, found)
    types = stacked([place.block.token_type[place.row] for place in places], context).view(np.uint8)
    starts = (np.cumsum(found.runs) - found.runs)[found.place]
    batch = Batch(
        torch.from_numpy(ids),
        torch.from_numpy(pack_ids),
        cursor,
        *_runs(found, context),
        token_type=torch.from_numpy(types),
        time_us=torch.from_numpy(time),
        loss_mask=torch.from_numpy(targets(types, ids, kinds, starts)),
        item_positions={},
        item_vectors={},
        item_segment={},
        item_time_us={},
        item_units={},
        item_lengths={},
        items_dropped={},
        item_keys={},
    )
    return batch, _tokens_items(places, batch, time, found, modalities)


def _tokens_items(
    places: Sequence[Place], batch: Batch, time: Ints, found: Segments, modalities: Sequence[str]
) -> dict[str, Items]:
    table, keys, rows = [np.empty((0, 2), np.int64)], [pa.array([], pa.string())], []
    for row, place in enumerate(places if modalities else ()):
        assert place.pages is not None
        first, last = place.pages.image_edges[place.row : place.row + 2].tolist()
        if last > first:
            table.append(place.pages.images[first:last])
            keys.append(place.pages.image_keys[first:last])
            rows += [row] * (last - first)
    joined, row_of = np.concatenate(table), np.array(rows, dtype=np.int64)
    key_list = pa.concat_arrays(keys).to_pylist()
    position = joined[:, 0]
    first_segment = np.cumsum(found.per_pack) - found.per_pack
    segment = batch.segment_ids.numpy()[row_of, position] + first_segment[row_of]
    result = {}
    for modality in modalities:
        which = np.flatnonzero(joined[:, 1] == MODALITIES.index(modality))
        result[modality] = Items(
            [key_list[item] for item in which.tolist()],
            np.stack([row_of[which], position[which]], axis=1),
            segment[which],
            time[row_of[which], position[which]],
        )
    return result


class ItemFields(TypedDict):
    """Batch's fields that say which items there are."""

    item_positions: dict[str, torch.Tensor]
    item_segment: dict[str, torch.Tensor]
    item_time_us: dict[str, torch.Tensor]
    item_keys: dict[str, list[str]]


def item_fields(items: Mapping[str, Items]) -> ItemFields:
    """Items as Batch holds them."""
    return {
        "item_positions": {name: torch.from_numpy(one.positions) for name, one in items.items()},
        "item_segment": {name: torch.from_numpy(one.segment) for name, one in items.items()},
        "item_time_us": {name: torch.from_numpy(one.time_us) for name, one in items.items()},
        "item_keys": {name: one.keys for name, one in items.items()},
    }


def count_targets(places: Sequence[Place], context: int, kinds: Sequence[int]) -> Ints:
    """(B,) targets of each pack: what `targets` gives, without a batch."""
    found = segments(places, context)
    types = stacked([place.block.token_type[place.row] for place in places], context)
    starts = (np.cumsum(found.runs) - found.runs)[found.place]
    counts: Ints = targets(types, _narrow_ids(places, context), kinds, starts).sum(axis=1, dtype=np.int64)
    return counts
