"""What is measured of the shards: that they carry what their plan says, once, and point at what exists."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from validation.expected_shards import budget_differences, budget_ks_ratio, expected_tokens, with_tiers
from validation.reading import gather, unreadable
from warehouse.layout import ReleaseLayout
from warehouse.manifest import PlanEntry, ProfileEntry
from warehouse.schemas import SCHEME_SUBJECTS, SPLITS, VOCABULARY
from warehouse.shards import ShardHeader, read_header
from warehouse.vocabulary import vocabulary_hash

READ_COLUMNS = ["length", "segment_length", "segment_subject", "segment_offset", "image_key"]
MANY_PACKS = 20  # below this a split's last, half empty pack decides its fill
SEGMENTS = {"subject_id": pl.Int64, "tier": pl.Int32, "offset": pl.Int64, "tokens": pl.Int64}


@dataclass
class ShardMeasures:
    """What the shards of one split hold, added up over files and row groups.

    Attributes:
        segments: frames of SEGMENTS.
        dangling_images: image places whose key is no usable item's.
    """

    packs: int = 0
    tokens: int = 0
    capacity: int = 0
    max_segments: int = 0
    malformed_packs: int = 0
    ids_out_of_range: int = 0
    dangling_images: int = 0
    image_places: int = 0
    segments: list[pl.DataFrame] = field(default_factory=list)


@dataclass(frozen=True)
class _Place:
    """Which shards are read, and what their headers must say."""

    tree: ReleaseLayout
    profile: str
    name: str
    plan: PlanEntry
    split: str

    def paths(self) -> list[Path]:
        """The split's files, in the order of their numbers."""
        folder = self.tree.shard(self.profile, self.split, 0, self.name).parent
        return sorted(folder.glob("*.parquet"), key=lambda path: int(path.stem))

    def is_of(self, header: ShardHeader, path: Path) -> bool:
        """Whether a shard is what its place says."""
        said = (header.profile, header.plan, header.mode, header.split, header.group, header.context)
        return said == (self.profile, self.name, self.plan.mode, self.split, int(path.stem), self.plan.context)


def read_vocabulary(tree: ReleaseLayout, profile: str) -> pl.DataFrame:
    """`token_id` and `token` of the profile's vocabulary; no rows without one."""
    return gather([tree.vocabulary(profile)], VOCABULARY, ["token_id", "token"])


def _list(table: pa.Table, name: str) -> tuple[pa.Array, pa.Array]:
    """Lengths (P,) and flat values of a list column."""
    column = table.column(name).combine_chunks()
    array = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    return array.value_lengths().to_numpy(zero_copy_only=False), array.flatten()


def _add_group(
    into: ShardMeasures, table: pa.Table, place: _Place, number: int, fits: bool, ok_keys: pl.Series
) -> None:
    """Adds one row group's small columns."""
    length = table.column("length").to_numpy()
    counts, tokens = _list(table, "segment_length")
    keys = pl.Series("item_key", _list(table, "image_key")[1], dtype=pl.String)
    starts = np.concatenate([[0], np.cumsum(counts)])
    running = np.concatenate([[0], np.cumsum(tokens.to_numpy(zero_copy_only=False))])
    in_segments = running[starts[1:]] - running[starts[:-1]]
    alone = place.plan.mode == "packed" or counts <= 1
    whole = (in_segments == length) & (length <= place.plan.context) & fits & alone
    into.packs += len(length)
    into.tokens += int(running[-1])
    into.capacity += len(length) * place.plan.context
    into.max_segments = max(into.max_segments, int(counts.max(initial=0)))
    into.malformed_packs += int((~whole).sum())
    into.image_places += len(keys)
    into.dangling_images += int((~keys.is_in(ok_keys.implode())).sum())
    columns = {
        "subject_id": pl.Series(_list(table, "segment_subject")[1]),
        "tier": np.full(len(tokens), number // place.plan.groups),
        "offset": pl.Series(_list(table, "segment_offset")[1]),
        "tokens": pl.Series(tokens),
    }
    into.segments.append(pl.DataFrame(columns).cast(SEGMENTS))  # type: ignore[arg-type]  # dtypes by name


def _ids_out_of_range(table: pa.Table, header: ShardHeader, size: int) -> int:
    """Tokens of one row group whose id the vocabulary does not hold."""
    dtype = np.dtype(header.token_dtype).newbyteorder("<")
    chunks = table.column("input_ids").chunks
    return sum(_above(chunk, dtype, size) for chunk in chunks)


def _above(chunk: pa.Array, dtype: np.dtype[np.generic], size: int) -> int:
    width = chunk.type.byte_width
    data = memoryview(chunk.buffers()[1])[chunk.offset * width : (chunk.offset + len(chunk)) * width]
    return int((np.frombuffer(data, dtype=dtype) >= size).sum())


def _read(place: _Place, vocabulary: pl.DataFrame, ok_keys: pl.Series) -> ShardMeasures:
    """Reads the shards of one split, a row group at a time.

    Args:
        vocabulary: `token_id` and `token`; a shard must have been written with the first of these ids.
        ok_keys: keys of usable items.

    Raises:
        TimeloomError: a shard is damaged.
    """
    measures, prefix = ShardMeasures(), cache(partial(vocabulary_hash, vocabulary))
    ids_given = vocabulary["token_id"]
    size = int(ids_given.max()) + 1 if len(ids_given) else 0  # type: ignore[arg-type]  # max() of every dtype
    for path in place.paths():
        header = read_header(path)
        try:
            file = pq.ParquetFile(path, page_checksum_verification=True)
            width = file.schema_arrow.field("input_ids").type.byte_width
            as_said = width == header.context * np.dtype(header.token_dtype).itemsize
            same_ids = prefix(header.vocabulary_size) == header.vocabulary_hash
            fits = as_said and same_ids and place.is_of(header, path)
            for group in range(file.metadata.num_row_groups):
                table = file.read_row_group(group, READ_COLUMNS)
                _add_group(measures, table, place, int(path.stem), fits, ok_keys)
                ids = file.read_row_group(group, ["input_ids"])
                measures.ids_out_of_range += _ids_out_of_range(ids, header, size)
        except (OSError, pa.ArrowException, KeyError, ValueError) as error:
            raise unreadable(path) from error
    return measures


def measure_shards(
    tree: ReleaseLayout, profiles: Mapping[str, ProfileEntry], buckets: int, ok_keys: pl.Series
) -> pl.DataFrame:
    """One row per profile, plan and split.

    Columns: packs, subjects_timeline (that the plan keeps tokens of), subjects_shards, tokens_timeline (of the split's
    subjects), tokens_dropped (as the manifest declares them), tokens_shards, token_difference (from what the plan must
    keep, summed over subjects without regard to sign), drop_difference (declared drops that are not the plan's, over
    reasons), foreign_subjects (in this split's shards, though the scheme has them elsewhere or nowhere),
    misplaced_tiers (subjects in another tier of the budgets than the fixed order gives them), budget_differences
    (budgets with other figures than the manifest's), budget_ks_ratio (see there), misplaced_segments (that do not begin
    where the subject's one before ends), fill, fill_judged (null below 20 packs, and where packs are not meant to be
    full), max_segments, malformed_packs (another context, profile, plan, mode or split than their place says, or
    segments that do not add up), ids_out_of_range, image_places, dangling_images (of no usable item).

    Args:
        profiles: as the manifest has them.
        ok_keys: keys of usable items.
    """
    return pl.DataFrame(
        [
            row
            for profile, entry in profiles.items()
            for name, plan in entry.plans.items()
            for row in _plan_rows(tree, profile, entry.scheme, name, plan, buckets, ok_keys)
        ],
        schema_overrides={"budget_ks_ratio": pl.Float64, "fill_judged": pl.Float64},
        infer_schema_length=None,
    )


def _plan_rows(
    tree: ReleaseLayout, profile: str, scheme: str, name: str, plan: PlanEntry, buckets: int, ok_keys: pl.Series
) -> list[dict[str, object]]:
    vocabulary = read_vocabulary(tree, profile)
    columns = ["subject_id", "split", "order"]
    assigned = gather([tree.scheme_subjects(scheme)], SCHEME_SUBJECTS, columns).unique("subject_id")
    expected = expected_tokens(tree, profile, plan, buckets).join(assigned, on="subject_id", how="inner")
    measured = {split: _read(_Place(tree, profile, name, plan, split), vocabulary, ok_keys) for split in SPLITS}
    found = pl.concat(
        [pl.DataFrame(schema=SEGMENTS), *(part for measures in measured.values() for part in measures.segments)]
    )
    rows: list[dict[str, object]] = []
    for split, measures in measured.items():
        here = expected.filter(pl.col("split") == split)
        kept = here.filter(pl.col("tokens") > 0)
        tiered = with_tiers(kept, plan) if split == "train" else kept.with_columns(pl.lit(0, pl.Int32).alias("tier"))
        wanted = tiered.filter(pl.col("tier") < max(1, len(plan.budgets)))
        segments = pl.concat([pl.DataFrame(schema=SEGMENTS), *measures.segments])
        own = assigned.filter(pl.col("split") == split)
        rows.append(
            {
                "profile": profile,
                "plan": name,
                "split": split,
                "packs": measures.packs,
                "subjects_timeline": wanted.height,
                "subjects_shards": segments["subject_id"].n_unique(),
                "tokens_timeline": int(here["given"].sum()),
                "tokens_dropped": sum(plan.dropped.get(split, {}).values()),
                "tokens_shards": measures.tokens,
                "token_difference": _token_difference(wanted, found.join(own, on="subject_id", how="semi")),
                "drop_difference": _drop_difference(plan, split, here, wanted),
                "foreign_subjects": segments.join(own, on="subject_id", how="anti")["subject_id"].n_unique(),
                "misplaced_tiers": _misplaced_tiers(wanted, segments),
                "budget_differences": budget_differences(tiered, plan) if split == "train" else 0,
                "budget_ks_ratio": budget_ks_ratio(tiered, plan) if split == "train" else None,
                "misplaced_segments": _misplaced_segments(wanted, segments),
                "fill": measures.tokens / max(measures.capacity, 1),
                "fill_judged": _judged_fill(measures, plan),
                "max_segments": measures.max_segments,
                "malformed_packs": measures.malformed_packs,
                "ids_out_of_range": measures.ids_out_of_range,
                "image_places": measures.image_places,
                "dangling_images": measures.dangling_images,
            }
        )
    return rows


def _judged_fill(measures: ShardMeasures, plan: PlanEntry) -> float | None:
    judged = plan.mode == "packed" and measures.packs >= MANY_PACKS
    return measures.tokens / measures.capacity if judged else None


def _drop_difference(plan: PlanEntry, split: str, here: pl.DataFrame, wanted: pl.DataFrame) -> int:
    """How far the declared drops are from what the plan leaves out of these subjects."""
    left_out = int(here["given"].sum()) - int(wanted["tokens"].sum())
    return abs(left_out - sum(plan.dropped.get(split, {}).values()))


def _token_difference(wanted: pl.DataFrame, found: pl.DataFrame) -> int:
    """Tokens too many or too few, over subjects and wherever they were found."""
    tokens = found.group_by("subject_id").agg(pl.col("tokens").sum().alias("found"))
    both = wanted.select("subject_id", "tokens").join(tokens, on="subject_id", how="full", coalesce=True)
    return int(both.select((pl.col("tokens").fill_null(0) - pl.col("found").fill_null(0)).abs().sum()).item())


def _misplaced_tiers(wanted: pl.DataFrame, segments: pl.DataFrame) -> int:
    """Subjects with a segment in another tier than theirs."""
    tiers = segments.select("subject_id", "tier").unique()
    other = tiers.join(wanted.select("subject_id", "tier"), on=["subject_id", "tier"], how="anti")
    return other.join(wanted, on="subject_id", how="semi")["subject_id"].n_unique()


def _misplaced_segments(wanted: pl.DataFrame, segments: pl.DataFrame) -> int:
    """Segments that do not begin where the subject's one before ends, or where the plan's first one must."""
    end = (pl.col("offset") + pl.col("tokens")).shift(1).over("subject_id")
    first = wanted.select("subject_id", pl.col("offset").alias("first"))
    ordered = segments.sort("subject_id", "offset", "tokens").join(
        first, on="subject_id", how="inner", maintain_order="left"
    )
    return ordered.filter(pl.col("offset") != end.fill_null(pl.col("first"))).height
