"""Packs gathered from mapped shards into tensors. Each token is written once; what has runs is repeated, not looked up.

Shards hold PAD, SPECIAL and no time behind the last segment, so nothing here writes padding again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import torch

from warehouse.arrays import I64, NO_TIME, Bools
from warehouse.embeddings.addresses import VectorAddresses
from warehouse.modalities import MODALITIES
from warehouse.readers.batch import SegmentBatch
from warehouse.readers.open_shards import IMAGE_BYTES, PackAddress, id_bytes, id_dtypes, narrow, stacked
from warehouse.tokens import PAD, UNK

# glibc gives blocks above a threshold back to the kernel as they are freed, and the kernel zeroes each page anew: half
# the time of a batch. Freeing one block of this size, never touched, raises the threshold to it.
_KEPT_BYTES = 31 << 20
np.empty(_KEPT_BYTES, np.uint8)


@lru_cache(maxsize=1)
def _counting(tokens: int) -> I64:
    """0, 1, … tokens - 1; kept, as batches mostly have one size."""
    return np.arange(tokens, dtype=np.int64)


def ragged(starts: I64, counts: I64) -> I64:
    """Flat indices of runs: starts[0], …, starts[0] + counts[0] - 1, starts[1], …; (sum of counts,)."""
    before = np.cumsum(counts) - counts
    return np.repeat(starts - before, counts) + np.arange(int(counts.sum()), dtype=np.int64)


def widened(ids: npt.NDArray[Any], padded: int = 0) -> torch.Tensor:
    """Ids (n, L) as int64, and so many rows of PAD behind them.

    By numpy: torch shares so short a job between threads, which wait where cores are busy.
    """
    if not padded:
        return torch.from_numpy(ids.astype(np.int64))
    whole = np.full((len(ids) + padded, ids.shape[1]), PAD, np.int64)
    whole[: len(ids)] = ids
    return torch.from_numpy(whole)


def _narrow_ids(places: Sequence[PackAddress], context: int) -> npt.NDArray[Any]:
    return narrow([id_bytes(place, context) for place in places], id_dtypes(places), context)


@dataclass(frozen=True)
class Segments:
    """The segments of a batch's packs.

    Attributes:
        table: (S, 4) int64, see warehouse.readers.open_shards.PackColumns.
        edges: (S + 1,) int64, where segments begin among the tokens without padding.
        per_pack, ends: (B,) int64, segments of each pack, and of it and those before.
        runs: (S + B,) int64, the segments' lengths, after each pack's its padding, zero or more.
        starts: (S + B,) int64, where each run begins among the tokens with padding.
        place: (S,) int64, where in `runs` each segment is.
        padding: (B,) int64, where in `runs` each pack's padding is.
    """

    table: I64
    edges: I64
    per_pack: I64
    ends: I64
    runs: I64
    starts: I64
    place: I64
    padding: I64

    def spread(self, values: npt.NDArray[Any], at_padding: int) -> npt.NDArray[Any]:
        """One value a segment (S,) becomes one a token (B * L,)."""
        whole = np.full(len(self.runs), at_padding, dtype=values.dtype)
        whole[self.place] = values
        return np.repeat(whole, self.runs)


def segments(places: Sequence[PackAddress], context: int) -> Segments:
    """The segments of packs whose pages were read."""
    parts: list[Any] = []
    counts = []
    for _, row, pages in places:
        first, last = pages.segment_edges[row], pages.segment_edges[row + 1]
        parts.append(pages.segments[32 * first : 32 * last])
        counts.append(last - first)
    table = np.frombuffer(bytearray().join(parts), np.int64).reshape(-1, 4)
    per_pack = np.array(counts, dtype=np.int64)
    ends = np.cumsum(per_pack)
    number = np.arange(len(counts))
    edges = np.zeros(len(table) + 1, dtype=np.int64)
    np.cumsum(table[:, 0], out=edges[1:])
    padding = ends + number
    place = np.arange(len(table)) + np.repeat(number, per_pack)
    runs = np.empty(len(table) + len(counts), dtype=np.int64)
    runs[place] = table[:, 0]
    runs[padding] = context - (edges[ends] - edges[ends - per_pack])
    starts = np.cumsum(runs) - runs
    return Segments(table, edges, per_pack, ends, runs, starts, place, padding)


def collate_segments(
    places: Sequence[PackAddress], context: int, pack_ids: I64, cursor: tuple[int, ...]
) -> SegmentBatch:
    """Ids and segment boundaries."""
    found = segments(places, context)
    return SegmentBatch(
        input_ids=widened(_narrow_ids(places, context)),
        pack_ids=torch.from_numpy(pack_ids),
        cursor=cursor,
        **_runs(found, context),
    )


def _runs(found: Segments, context: int) -> dict[str, Any]:
    """SegmentBatch's own fields."""
    shape = len(found.per_pack), context
    first = (found.ends - found.per_pack).astype(np.int32)
    local = np.arange(len(found.table), dtype=np.int32) - np.repeat(first, found.per_pack)
    positions = np.repeat(found.starts, found.runs)
    np.subtract(_counting(len(positions)), positions, out=positions)
    empty = found.runs[found.padding]
    if empty.any():
        positions[ragged(found.starts[found.padding], empty)] = 0
    return {
        "segment_ids": torch.from_numpy(found.spread(local, -1).reshape(shape)),
        "position_ids": torch.from_numpy(positions.reshape(shape)),
        "cu_seqlens": torch.from_numpy(found.edges.astype(np.int32)),
        "max_seqlen": int(found.table[:, 0].max(initial=0)),
        "subject_ids": torch.from_numpy(found.table[:, 1].copy()),
        "segment_offset": torch.from_numpy(found.table[:, 2].copy()),
        "segments_per_pack": torch.from_numpy(found.per_pack),
    }


def _types(places: Sequence[PackAddress], context: int) -> npt.NDArray[np.uint8]:
    rows = [sheet.types[row * context : (row + 1) * context] for sheet, row, _ in places]
    return stacked(rows, np.dtype(np.uint8), context)


def times(places: Sequence[PackAddress], context: int, found: Segments) -> I64:
    """(B, L) microseconds since 1970, NO_TIME where there is none."""
    parts, kinds = [], []
    for sheet, row, _ in places:
        width = context * sheet.time_dtype.itemsize
        parts.append(sheet.time[row * width : (row + 1) * width])
        kinds.append((sheet.time_dtype.itemsize, sheet.unit_us))
    distinct = set(kinds)
    if len(distinct) == 1:
        result, none = _steps(parts, *kinds[0], context)
    else:  # no packs, or shards whose times need different units
        result, none = np.empty((len(parts), context), np.int64), np.empty((len(parts), context), np.bool_)
        for kind in distinct:
            rows = [row for row, its in enumerate(kinds) if its == kind]
            result[rows], none[rows] = _steps([parts[row] for row in rows], *kind, context)
    flat = result.reshape(-1)
    flat += found.spread(found.table[:, 3], 0)
    flat[np.flatnonzero(none)] = NO_TIME
    return result


def _steps(parts: Sequence[memoryview], width: int, unit: int, context: int) -> tuple[I64, Bools]:
    """Rows (n, L) of steps in microseconds, and which are no time."""
    raw = stacked(parts, np.dtype(f"<i{width}"), context)
    none: Bools = np.equal(raw, np.iinfo(raw.dtype).min)
    steps = raw.astype(np.int64)
    if unit != 1:
        steps *= unit
    return steps, none


def targets(types: npt.NDArray[np.uint8], ids: npt.NDArray[Any], kinds: Sequence[int], starts: I64) -> Bools:
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
    """The items (n,) of one modality in a batch: keys, what Batch says of them, and where their vectors are."""

    keys: list[str]
    positions: I64
    segment: I64
    time_us: I64
    marks: VectorAddresses

    def without(self, keys: frozenset[str]) -> "Items":
        """The items but those of some keys."""
        kept = np.array([place for place, key in enumerate(self.keys) if key not in keys], np.int64)
        if len(kept) == len(self.keys):
            return self
        return Items(
            [self.keys[place] for place in kept.tolist()],
            self.positions[kept],
            self.segment[kept],
            self.time_us[kept],
            self.marks.of(kept),
        )


@dataclass(frozen=True)
class _PackAddresses:
    """Where the vectors of a batch's items at `which` (n,) were found: packs have `counts` (B,) and a `table` (I, 4).

    They are copied from and to the pages by memoryviews, during which no other thread runs.
    """

    places: Sequence[PackAddress]
    counts: I64
    table: I64
    which: I64

    def of(self, items: I64) -> "_PackAddresses":
        return replace(self, which=self.which[items])

    def read(self) -> I64:
        return self.table[self.which, 2:]

    def write(self, items: Sequence[int], marks: I64) -> None:
        ends = np.cumsum(self.counts)
        which = self.which[items]
        packs = np.searchsorted(ends, which, side="right")
        within = which - (ends - self.counts)[packs]
        whole = marks.tobytes()
        for item, (pack, number) in enumerate(zip(packs.tolist(), within.tolist(), strict=True)):
            _, row, pages = self.places[pack]
            first = IMAGE_BYTES * (pages.image_edges[row] + number) + 16
            pages.images[first : first + 16] = whole[16 * item : 16 * item + 16]


@dataclass(frozen=True)
class Collated:
    """Everything of a batch but its items; numpy arrays share the tensors' memory.

    Attributes:
        whole: Batch's fields but those of items.
        subjects: (S,) whose segments they are.
        items: those of image tokens, by modality, in the packs' order.
        time: (B, L), as in the batch.
        found: its segments.
    """

    whole: dict[str, Any]
    subjects: I64
    items: dict[str, Items]
    time: I64
    found: Segments

    def spans(self) -> tuple[I64, I64]:
        """The first and the last time of each segment (S,); NO_TIME where it has none."""
        if not len(self.subjects):
            return np.empty(0, np.int64), np.empty(0, np.int64)
        latest = np.iinfo(np.int64).max
        real = self.time.ravel()[ragged(self.found.starts[self.found.place], self.found.table[:, 0])]
        starts = self.found.edges[:-1]
        first = np.minimum.reduceat(np.where(real == NO_TIME, latest, real), starts)
        return np.where(first == latest, NO_TIME, first), np.maximum.reduceat(real, starts)


def collate(
    places: Sequence[PackAddress],
    context: int,
    pack_ids: I64,
    cursor: tuple[int, ...],
    kinds: Sequence[int],
    modalities: Sequence[str],
) -> Collated:
    """Everything but the vectors of items."""
    found = segments(places, context)
    ids, time = _narrow_ids(places, context), times(places, context, found)
    types = _types(places, context)
    mask = targets(types, ids, kinds, found.starts[found.place])
    runs = _runs(found, context)
    whole = {
        "input_ids": widened(ids),
        "pack_ids": torch.from_numpy(pack_ids),
        "cursor": cursor,
        **runs,
        "token_type": torch.from_numpy(types),
        "time_us": torch.from_numpy(time),
        "loss_mask": torch.from_numpy(mask),
    }
    items = _tokens_items(places, runs["segment_ids"].numpy(), time, found, modalities)
    return Collated(whole, found.table[:, 1], items, time, found)


def _tokens_items(
    places: Sequence[PackAddress], segment_ids: npt.NDArray[Any], time: I64, found: Segments, modalities: Sequence[str]
) -> dict[str, Items]:
    parts: list[Any] = []
    keys: list[str] = []
    each = []
    for _, row, pages in places if modalities else ():
        first, last = pages.image_edges[row], pages.image_edges[row + 1]
        each.append(last - first)
        if last > first:
            parts.append(pages.images[IMAGE_BYTES * first : IMAGE_BYTES * last])
            keys += pages.image_keys[first:last]
    table = np.frombuffer(bytearray().join(parts), np.int64).reshape(-1, IMAGE_BYTES // 8)
    position, kind = table[:, 0], table[:, 1]
    counts = np.array(each, dtype=np.int64)
    row_of = np.repeat(np.arange(len(counts)), counts)
    segment = segment_ids[row_of, position] + (found.ends - found.per_pack)[row_of]
    when, where = time[row_of, position], np.stack([row_of, position], axis=1)
    result = {}
    for modality in modalities:
        which = np.flatnonzero(kind == MODALITIES[modality].number)
        item_keys = keys if len(which) == len(keys) else [keys[item] for item in which.tolist()]
        marks = _PackAddresses(places, counts, table, which)
        result[modality] = Items(item_keys, where[which], segment[which], when[which], marks)
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
        "item_positions": {name: torch.from_numpy(item.positions) for name, item in items.items()},
        "item_segment": {name: torch.from_numpy(item.segment) for name, item in items.items()},
        "item_time_us": {name: torch.from_numpy(item.time_us) for name, item in items.items()},
        "item_keys": {name: item.keys for name, item in items.items()},
    }


def count_targets(places: Sequence[PackAddress], context: int, kinds: Sequence[int]) -> I64:
    """(B,) targets of each pack: what `targets` gives, without a batch."""
    found = segments(places, context)
    types = _types(places, context)
    starts = found.starts[found.place]
    counts: I64 = targets(types, _narrow_ids(places, context), kinds, starts).sum(axis=1, dtype=np.int64)
    return counts
