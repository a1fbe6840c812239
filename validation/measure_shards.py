"""What is measured of the shards: that they carry every token of the timelines, once, and point at what exists."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from validation.reading import collect, existing, gather, scan, unreadable
from warehouse.layout import ReleaseLayout
from warehouse.schemas import VOCABULARY
from warehouse.shards import ShardHeader, read_header
from warehouse.vocabulary import vocabulary_hash

SMALL_COLUMNS = ["length", "segment_length", "segment_subject", "image_key"]
MANY_PACKS = 20  # below this a split's last, half empty pack decides its fill


@dataclass
class ShardMeasures:
    """What the shards of one split hold, added up over files and row groups.

    Attributes:
        segments: frames of `subject_id`, `tokens`.
        dangling: image places whose key is no usable item's.
    """

    packs: int = 0
    tokens: int = 0
    capacity: int = 0
    max_segments: int = 0
    malformed_packs: int = 0
    ids_out_of_range: int = 0
    dangling_images: int = 0
    image_places: int = 0

    def __post_init__(self) -> None:
        self.segments: list[pl.DataFrame] = []


def shard_paths(tree: ReleaseLayout, profile: str, split: str) -> list[Path]:
    """The shard files of a split, in the order of their groups."""
    return sorted(tree.shard(profile, split, 0).parent.glob("*.parquet"))


def read_vocabulary(tree: ReleaseLayout, profile: str) -> pl.DataFrame:
    """`token_id` and `token` of the profile's vocabulary; no rows without one."""
    return gather([tree.vocabulary(profile)], VOCABULARY, ["token_id", "token"])


def timeline_tokens(tree: ReleaseLayout, profile: str, buckets: int) -> pl.DataFrame:
    """`subject_id`, `tokens` of every subject of the timelines."""
    empty = pl.DataFrame(schema={"subject_id": pl.Int64, "tokens": pl.Int64})
    paths = existing(tree.timeline(profile, bucket) for bucket in range(buckets))
    counts = [
        collect(scan(path).group_by("subject_id").agg(pl.len().cast(pl.Int64).alias("tokens")), path) for path in paths
    ]
    return pl.concat([empty, *counts]).group_by("subject_id").sum()


def _list(table: pa.Table, name: str) -> tuple[pa.Array, pa.Array]:
    """Lengths (P,) and flat values of a list column."""
    column = table.column(name).combine_chunks()
    array = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    return array.value_lengths().to_numpy(zero_copy_only=False), array.flatten()


def _add_group(into: ShardMeasures, table: pa.Table, header: ShardHeader, fits: bool, ok_keys: pl.Series) -> None:
    """Adds one row group's small columns."""
    length = table.column("length").to_numpy()
    counts, tokens = _list(table, "segment_length")
    subjects = _list(table, "segment_subject")[1]
    keys = pl.Series("item_key", _list(table, "image_key")[1], dtype=pl.String)
    starts = np.concatenate([[0], np.cumsum(counts)])
    running = np.concatenate([[0], np.cumsum(tokens.to_numpy(zero_copy_only=False))])
    in_segments = running[starts[1:]] - running[starts[:-1]]
    whole = (in_segments == length) & (length <= header.context) & fits
    into.packs += len(length)
    into.tokens += int(running[-1])
    into.capacity += len(length) * header.context
    into.max_segments = max(into.max_segments, int(counts.max(initial=0)))
    into.malformed_packs += int((~whole).sum())
    into.image_places += len(keys)
    into.dangling_images += int((~keys.is_in(ok_keys.implode())).sum())
    segments = pl.DataFrame({"subject_id": pl.Series(subjects), "tokens": pl.Series(tokens)})
    into.segments.append(segments.group_by("subject_id").agg(pl.col("tokens").sum().cast(pl.Int64)))


def _ids_out_of_range(table: pa.Table, header: ShardHeader, size: int) -> int:
    """Tokens of one row group whose id the vocabulary does not hold."""
    dtype = np.dtype(header.token_dtype).newbyteorder("<")
    chunks = table.column("input_ids").chunks
    return sum(_above(chunk, dtype, size) for chunk in chunks)


def _above(chunk: pa.Array, dtype: np.dtype[np.generic], size: int) -> int:
    width = chunk.type.byte_width
    data = memoryview(chunk.buffers()[1])[chunk.offset * width : (chunk.offset + len(chunk)) * width]
    return int((np.frombuffer(data, dtype=dtype) >= size).sum())


def read_split(
    tree: ReleaseLayout, profile: str, split: str, *, context: int | None, vocabulary: pl.DataFrame, ok_keys: pl.Series
) -> ShardMeasures:
    """Reads the shards of one split, a row group at a time.

    Args:
        context: tokens that a pack must have; None takes each shard's own word for it.
        vocabulary: `token_id` and `token`; a shard must have been written with the first of these ids.
        ok_keys: keys of usable items.

    Raises:
        TimeloomError: a shard is damaged.
    """
    measures = ShardMeasures()
    ids_given = vocabulary["token_id"]
    size = int(ids_given.max()) + 1 if len(ids_given) else 0  # type: ignore[arg-type]  # max() of every dtype
    for path in shard_paths(tree, profile, split):
        header = read_header(path)
        try:
            file = pq.ParquetFile(path, page_checksum_verification=True)
            width = file.schema_arrow.field("input_ids").type.byte_width
            as_said = width == header.context * np.dtype(header.token_dtype).itemsize
            same_ids = vocabulary_hash(vocabulary, header.vocabulary_size) == header.vocabulary_hash
            fits = as_said and same_ids and context in (None, header.context)
            fits = fits and (profile, split) == (header.profile, header.split)
            for group in range(file.metadata.num_row_groups):
                _add_group(measures, file.read_row_group(group, SMALL_COLUMNS), header, fits, ok_keys)
                ids = file.read_row_group(group, ["input_ids"])
                measures.ids_out_of_range += _ids_out_of_range(ids, header, size)
        except (OSError, pa.ArrowException, KeyError, ValueError) as error:
            raise unreadable(path) from error
    return measures


def measure_shards(
    tree: ReleaseLayout,
    profiles: Mapping[str, int | None],
    splits: Sequence[str],
    buckets: int,
    assigned: pl.DataFrame,
    ok_keys: pl.Series,
) -> pl.DataFrame:
    """One row per profile and split.

    Columns: packs, tokens_timeline, tokens_shards, token_difference (summed over subjects without regard to sign, at
    the split that the ledger gives them), subjects_timeline, subjects_shards, foreign_subjects (in this split's
    shards, though the ledger has them elsewhere), fill, fill_judged (null below 20 packs),
    max_segments, malformed_packs (another context, profile or split than their place says, or segments that do not
    add up), ids_out_of_range, image_places, dangling_images (of no usable item).

    Args:
        profiles: profile name to its context in tokens.
        assigned: `subject_id`, `split`.
        ok_keys: keys of usable items.
    """
    return pl.DataFrame(
        [
            row
            for profile, context in profiles.items()
            for row in _profile_rows(tree, profile, context, splits, buckets, assigned, ok_keys)
        ]
    )


def _profile_rows(
    tree: ReleaseLayout,
    profile: str,
    context: int | None,
    splits: Sequence[str],
    buckets: int,
    assigned: pl.DataFrame,
    ok_keys: pl.Series,
) -> list[dict[str, object]]:
    vocabulary = read_vocabulary(tree, profile)
    measures = {
        split: read_split(tree, profile, split, context=context, vocabulary=vocabulary, ok_keys=ok_keys)
        for split in splits
    }
    empty = pl.DataFrame(schema={"subject_id": pl.Int64, "tokens": pl.Int64})
    found = {
        split: pl.concat([empty, *measure.segments]).group_by("subject_id").sum() for split, measure in measures.items()
    }
    assigned = assigned.unique("subject_id")
    timelines = timeline_tokens(tree, profile, buckets)
    compared = (
        timelines.join(
            pl.concat(list(found.values())).group_by("subject_id").sum(),
            on="subject_id",
            how="full",
            coalesce=True,
            suffix="_shards",
        )
        .join(assigned, on="subject_id", how="left")
        # whoever has no split is judged elsewhere; the tokens are compared all the same
        .with_columns(
            pl.when(pl.col("split").is_in(list(splits))).then("split").otherwise(pl.lit(splits[0])).alias("split")
        )
        .with_columns((pl.col("tokens").fill_null(0) - pl.col("tokens_shards").fill_null(0)).abs().alias("difference"))
    )
    return [
        {
            "profile": profile,
            "split": split,
            "packs": measure.packs,
            "subjects_timeline": here.filter(pl.col("tokens").is_not_null()).height,
            "subjects_shards": found[split].height,
            "tokens_timeline": int(here["tokens"].sum()),
            "tokens_shards": measure.tokens,
            "token_difference": int(here["difference"].sum()),
            "foreign_subjects": found[split].join(elsewhere, on="subject_id", how="semi").height,
            "fill": measure.tokens / max(measure.capacity, 1),
            "fill_judged": measure.tokens / measure.capacity if measure.packs >= MANY_PACKS else None,
            "max_segments": measure.max_segments,
            "malformed_packs": measure.malformed_packs,
            "ids_out_of_range": measure.ids_out_of_range,
            "image_places": measure.image_places,
            "dangling_images": measure.dangling_images,
        }
        for split, measure in measures.items()
        for here in [compared.filter(pl.col("split") == split)]
        for elsewhere in [assigned.filter(pl.col("split") != split)]
    ]
