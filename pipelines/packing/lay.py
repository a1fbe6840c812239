"""Laying timelines into packs: what a plan keeps, where it is cut, which pack takes which piece, and the packs.

Best-fit in hash order: a piece goes into the open pack that it fills best. Sorting by length first would make packs of
thousands of tiny segments, and filling in sequence would leave a sixth of every pack empty. Everything but the choice
of the pack is numpy over whole columns.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipelines.packing.timelines import Timelines, ranges
from pipelines.profiles.plans import PlanConfig
from warehouse.arrays import I64
from warehouse.hashing import salt_of, splitmix64
from warehouse.shards.packs import MAX_SEGMENTS, Packs
from warehouse.shards.times import CompactTimes, compact_times
from warehouse.tokens import FIRST_IMAGE, PAD, TokenType

ORDER_SALT = salt_of("pack order")
_STEP_TOKENS = 1 << 20


def select(timelines: Timelines, plan: PlanConfig) -> tuple[Timelines, dict[str, int]]:
    """What a plan keeps, and how many tokens it leaves out, by reason: not_imaging, image, before_last_n."""
    dropped: dict[str, int] = {}

    def note(reason: str, rest: Timelines) -> Timelines:
        if left_out := len(timelines.token_id) - len(rest.token_id):
            dropped[reason] = left_out
        return rest

    if plan.subjects == "imaging":
        timelines = note("not_imaging", timelines.of_subjects(timelines.images_per_subject() > 0))
    if not plan.images:
        timelines = note("image", timelines.without_images())
    if plan.mode == "last_n":
        timelines = note("before_last_n", timelines.last(plan.length))
    return timelines, dropped


def cut(lengths: I64, context: int) -> tuple[I64, I64, I64]:
    """Timelines longer than a pack as chunks: (document, offset, length) of each, in order."""
    chunks = -(-lengths // context)
    document = np.repeat(np.arange(len(lengths)), chunks)
    offset = ranges(np.zeros_like(chunks), chunks) * context
    return document, offset, np.minimum(lengths[document] - offset, context)


def best_fit(lengths: I64, context: int, max_segments: int = MAX_SEGMENTS) -> I64:
    """The pack (n,) of each segment (n,), in the order given: the fullest open pack that still has room.

    Open packs are kept by free space; of those with equal space the one filled last is taken. A pack closes when it
    is full or has `max_segments`.
    """
    packs = []
    segments: list[int] = []
    free: list[int] = []
    by_free: dict[int, list[int]] = {}
    for length in lengths.tolist():
        at = bisect_left(free, length)
        if at < len(free):
            space = free[at]
            stack = by_free[space]
            chosen = stack.pop()
            if not stack:
                del by_free[space], free[at]
            segments[chosen] += 1
        else:
            space, chosen = context, len(segments)
            segments.append(1)
        packs.append(chosen)
        left = space - length
        if left and segments[chosen] < max_segments:
            if left in by_free:
                by_free[left].append(chosen)
            else:
                by_free[left] = [chosen]
                insort(free, left)
    return np.array(packs, dtype=np.int64)


@dataclass(frozen=True)
class PackLayout:
    """Which pack holds which piece of the timelines; S segments, by pack.

    Attributes:
        pack: (S,) increasing.
        start, length: (S,) the segment's tokens in the timelines.
        subject, offset: (S,) whose they are, and how many of the subject's tokens stand before.
        times: of all tokens, in the order of the timelines.
        origins: (S,) microseconds since 1970 that the segment's times count from.
    """

    pack: I64
    start: I64
    length: I64
    subject: I64
    offset: I64
    times: CompactTimes
    origins: I64

    @property
    def packs(self) -> int:
        """How many packs there are."""
        return int(self.pack[-1]) + 1 if len(self.pack) else 0


def lay(timelines: Timelines, mode: str, context: int, max_segments: int = MAX_SEGMENTS) -> PackLayout:
    """Cuts timelines into segments and gives each its pack.

    Args:
        mode: `packed`; any other gives every segment a pack of its own. Either way subjects stand in the order of their
            hashes, so that neighbours in a file have nothing in common.
    """
    document, chunk, length = cut(timelines.lengths, context)
    times = compact_times(timelines.time, length)
    by_hash = np.lexsort((timelines.subjects, splitmix64(timelines.subjects, ORDER_SALT)))
    rank = np.empty_like(by_hash)
    rank[by_hash] = np.arange(len(by_hash))
    order = np.argsort(rank[document], kind="stable")
    if mode == "packed":
        pack = best_fit(length[order], context, max_segments)
        by_pack = np.argsort(pack, kind="stable")
        pack, order = pack[by_pack], order[by_pack]
    else:
        pack = np.arange(len(order), dtype=np.int64)
    return PackLayout(
        pack=pack,
        start=(np.cumsum(length) - length)[order],
        length=length[order],
        subject=timelines.subjects[document][order],
        offset=(timelines.offsets[document] + chunk)[order],
        times=times,
        origins=times.origins[order],
    )


def row_groups(timelines: Timelines, layout: PackLayout, group: int, context: int, rows: int) -> Iterator[Packs]:
    """The packs, `rows` at a time: nothing is held but the timelines and one row group."""
    for first in range(0, layout.packs, rows):
        bounds = np.searchsorted(layout.pack, [first, min(first + rows, layout.packs)])
        yield _packs(timelines, layout, slice(*bounds.tolist()), first, group, context)


def _packs(timelines: Timelines, layout: PackLayout, part: slice, first: int, group: int, context: int) -> Packs:
    pack, length = layout.pack[part] - first, layout.length[part]
    count = int(pack[-1]) + 1
    total = np.bincount(pack, weights=length, minlength=count).astype(np.int32)
    columns = {"input_ids": (timelines.token_id, PAD), "token_type": (timelines.token_type, int(TokenType.SPECIAL))}
    columns |= {"time": (layout.times.values, int(np.iinfo(layout.times.dtype).min))}
    matrices = {name: np.full((count, context), fill, values.dtype) for name, (values, fill) in columns.items()}
    # A few packs at a time: the places of a million tokens take as much as the tokens of a whole row group.
    step = max(1, _STEP_TOKENS // context)
    for low in range(0, count, step):
        step_segments = slice(*np.searchsorted(pack, [low, low + step]).tolist())
        source = ranges(layout.start[part][step_segments], length[step_segments])
        real = np.arange(context) < total[low : low + step, None]
        for name, (values, _) in columns.items():
            matrices[name][low : low + step][real] = values[source]
    row, position = np.nonzero(matrices["token_type"] == int(TokenType.IMAGE))
    return Packs(
        pack_id=(np.int64(group) << 32) + np.arange(first, first + count, dtype=np.int64),
        length=total,
        segments_per_pack=np.bincount(pack, minlength=count).astype(np.int32),
        segment_length=length.astype(np.int32),
        segment_subject=layout.subject[part],
        segment_offset=layout.offset[part].astype(np.int32),
        segment_origin=layout.origins[part],
        images_per_pack=np.bincount(row, minlength=count).astype(np.int32),
        image_position=position.astype(np.int32),
        image_key=timelines.image_key.take(pa.array(_images_within(timelines, layout.start[part], length))),
        image_modality=(matrices["input_ids"][row, position].astype(np.int64) - FIRST_IMAGE).astype(np.uint8),
        **matrices,
    )


def _images_within(timelines: Timelines, starts: I64, lengths: I64) -> I64:
    """Which of the timelines' images lie in the segments, segment by segment."""
    low, high = (np.searchsorted(timelines.image_place, bound) for bound in (starts, starts + lengths))
    return ranges(low, high - low)
