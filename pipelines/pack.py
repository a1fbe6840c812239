"""pack: timelines of one split and pack group → one shard. Schema in: TIMELINES. Schema out: warehouse.shards.Packs.

Best-fit in hash order: a timeline goes into the open pack that it fills best. Sorting by length first would make packs
of thousands of tiny segments, and filling in sequence would leave a sixth of every pack empty.
"""

from bisect import bisect_left, insort
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from pipelines.config import ProfileConfig
from pipelines.engine import Result, RunContext, Stage, StageReport, Task, make_task
from warehouse.errors import TimeloomError
from warehouse.hashing import salt_of, splitmix64
from warehouse.layout import ReleaseLayout
from warehouse.schemas import SPLITS, read_frame
from warehouse.shards import MAX_SEGMENTS, NO_TIME, Packs, ShardHeader, write_shard
from warehouse.tokens import IMAGE_TOKENS, MODALITIES, PAD, RESERVED, TokenType
from warehouse.vocabulary import vocabulary_hash

STAGE = Stage("pack", 1, "pipelines.pack:run")
ORDER_SALT = salt_of("pack order")


def plan(
    context: RunContext,
    name: str,
    profile: ProfileConfig,
    groups: list[list[int]],
    timelines: StageReport,
    splits: dict[int, str],
    vocabulary: pl.DataFrame,
    stores: dict[str, str],
) -> list[Task]:
    """One task per split and pack group.

    Args:
        groups: the buckets of each group.
        splits: per bucket, the hash of its subjects' splits.
        vocabulary: VOCABULARY. A shard depends on the ids up to the largest that its group uses, so that a vocabulary
            which grew leaves the other groups' shards as they are.
    """
    hashes = timelines.hashes()
    token_dtype = "uint16" if len(vocabulary) <= 1 << 16 else "uint32"
    tree = ReleaseLayout(context.staging / "release")
    tasks = []
    for group, buckets in enumerate(groups):
        files = [str(ReleaseLayout(Path()).timeline(name, bucket)) for bucket in buckets]
        known = _ids_used([tree.token_counts(name, bucket) for bucket in buckets], vocabulary)
        for split in SPLITS:
            header = {
                "profile": name,
                "split": split,
                "group": group,
                "context": profile.context,
                "token_dtype": token_dtype,
                "vocabulary_hash": vocabulary_hash(vocabulary, known),
                "vocabulary_size": known,
                "stores": stores,
            }
            tasks.append(
                make_task(
                    STAGE,
                    f"{name}-{split}-{group:04d}",
                    context.staging,
                    settings=header,
                    inputs=[[hashes[file] for file in files], [splits.get(bucket) for bucket in buckets]],
                    params={"header": header, "timelines": files},
                )
            )
    return tasks


def _ids_used(counts: list[Path], vocabulary: pl.DataFrame) -> int:
    """One more than the largest id of the tokens counted; the reserved ids at least."""
    tokens = pl.concat([read_frame(path).select("token") for path in counts]).unique()
    largest = tokens.join(vocabulary, on="token")["token_id"].max()
    return max(len(RESERVED), int(str(largest)) + 1 if largest is not None else 0)


def run(params: dict[str, Any], base: Path) -> Result:
    """Packs one split of one group; no token is lost, or the task fails."""
    tree, header = ReleaseLayout(base), ShardHeader(**params["header"])
    members = read_frame(tree.subject_splits).filter(pl.col("split") == header.split)
    tokens = pl.concat([read_frame(base / path) for path in params["timelines"]]).join(
        members.select("subject_id"), on="subject_id", how="semi", maintain_order="left"
    )
    packs = pack_timelines(tokens, header)
    packed = int(packs.length.sum())
    if packed != len(tokens) or int(packs.segment_length.sum()) != len(tokens):
        raise TimeloomError(f"packing {header.split} lost {len(tokens) - packed} tokens", remedy="report this")
    path = tree.shard(header.profile, header.split, header.group)
    write_shard(path, packs, header)
    fill = packed / max(1, len(packs) * header.context)
    counts = {"packs": len(packs), "tokens": packed, "fill": fill, "images": len(packs.image_key)}
    counts["max_segments"] = int(packs.segments_per_pack.max(initial=0))
    return Result({str(path.relative_to(base)): len(packs)}, counts)


def cut(lengths: npt.NDArray[np.int64], context: int) -> tuple[npt.NDArray[np.int64], ...]:
    """Timelines longer than a pack as chunks: (document, offset, length) of each, in order."""
    chunks = np.maximum(1, -(-lengths // context))
    document = np.repeat(np.arange(len(lengths)), chunks)
    first = np.concatenate([[0], np.cumsum(chunks)[:-1]]) if len(lengths) else np.empty(0, np.int64)
    offset = (np.arange(len(document)) - np.repeat(first, chunks)) * context
    length = np.minimum(lengths[document] - offset, context)
    keep = length > 0
    return document[keep], offset[keep], length[keep]


def best_fit(lengths: npt.NDArray[np.int64], context: int, max_segments: int = MAX_SEGMENTS) -> npt.NDArray[np.int64]:
    """The pack (n,) of each segment (n,), in the order given: the fullest open pack that still has room.

    Open packs are kept by free space; of those with equal space the one filled last is taken. A pack closes when it
    is full or has `max_segments`.
    """
    packs = np.empty(len(lengths), dtype=np.int64)
    segments: list[int] = []
    free: list[int] = []
    by_free: dict[int, list[int]] = {}
    for index, length in enumerate(lengths.tolist()):
        at = bisect_left(free, length)
        if at < len(free):
            space = free[at]
            stack = by_free[space]
            chosen = stack.pop()
            if not stack:
                del by_free[space], free[at]
        else:
            space, chosen = context, len(segments)
            segments.append(0)
        packs[index] = chosen
        segments[chosen] += 1
        left = space - length
        if left and segments[chosen] < max_segments:
            if left not in by_free:
                by_free[left] = []
                insort(free, left)
            by_free[left].append(chosen)
    return packs


def pack_timelines(tokens: pl.DataFrame, header: ShardHeader) -> Packs:
    """Packs TIMELINES rows, a subject's together and in order, into Packs."""
    context = header.context
    subjects, starts, lengths = _runs(tokens["subject_id"].to_numpy())
    order = np.lexsort((subjects, splitmix64(subjects, ORDER_SALT)))
    document, offset, length = cut(lengths[order], context)
    pack = best_fit(length, context)
    placed = np.argsort(pack, kind="stable")
    document, offset, length, pack = document[placed], offset[placed], length[placed], pack[placed]
    count = int(pack.max(initial=-1)) + 1
    per_pack = np.bincount(pack, minlength=count).astype(np.int32)
    total = np.bincount(pack, weights=length, minlength=count).astype(np.int32)
    # Where each token comes from and where it goes, without a loop over tokens.
    source = _ranges(starts[order][document] + offset, length)
    before = np.cumsum(length) - length
    target = _ranges(pack * context + before - before[np.searchsorted(pack, pack)], length)
    dtype = np.dtype(header.token_dtype)
    input_ids = np.full(count * context, PAD, dtype=dtype)
    token_type = np.full(count * context, int(TokenType.SPECIAL), dtype=np.uint8)
    time_us = np.full(count * context, NO_TIME, dtype=np.int64)
    ids = tokens["token_id"].to_numpy()[source]
    types = tokens["type"].to_numpy()[source]
    input_ids[target] = ids.astype(dtype)
    token_type[target] = types
    time_us[target] = tokens["time"].cast(pl.Int64).fill_null(NO_TIME).to_numpy()[source]
    image = np.flatnonzero(types == int(TokenType.IMAGE))

    return Packs(
        pack_id=(np.int64(header.group) << 32) + np.arange(count, dtype=np.int64),
        length=total,
        input_ids=input_ids.reshape(count, context),
        token_type=token_type.reshape(count, context),
        time_us=time_us.reshape(count, context),
        segments_per_pack=per_pack,
        segment_length=length.astype(np.int32),
        segment_subject=subjects[order][document],
        segment_offset=offset.astype(np.int32),
        images_per_pack=np.bincount(target[image] // context, minlength=count).astype(np.int32),
        image_position=(target[image] % context).astype(np.int32),
        image_key=tokens["item_key"].gather(source[image]).to_list(),
        image_modality=(ids[image] - IMAGE_TOKENS[MODALITIES[0]]).astype(np.uint8),
    )


def _runs(values: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], ...]:
    """(value, start, length) of each run of equal neighbours."""
    if not len(values):
        return (np.empty(0, np.int64),) * 3
    starts = np.concatenate([[0], np.flatnonzero(values[1:] != values[:-1]) + 1])
    return values[starts], starts, np.diff(np.append(starts, len(values)))


def _ranges(starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """start, start + 1, … for each start, one after the other."""
    ends = np.cumsum(lengths)
    ranges: npt.NDArray[np.int64] = np.arange(int(ends[-1]) if len(ends) else 0, dtype=np.int64)
    ranges += np.repeat(starts - (ends - lengths), lengths)
    return ranges
