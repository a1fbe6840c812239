"""What is measured of the shards: that they carry what their plan says, once, and point at what exists."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from validation.measure.reading import gather, unreadable
from validation.measure.shards.expected import budget_differences, budget_ks_ratio, expected_tokens, with_tiers
from validation.measure.shards.groups import Group, image_places, read_group, segment_sums
from validation.measure.shards.token_sums import kept_by, per_subject, timeline_sums
from warehouse.layout import ReleaseLayout
from warehouse.manifest import PlanEntry, ProfileEntry
from warehouse.modalities import MODALITIES
from warehouse.schemas import SCHEME_SUBJECTS, SPLITS, VOCABULARY
from warehouse.shards.file import ShardHeader, read_header
from warehouse.vocabulary import vocabulary_hash

MANY_PACKS = 20  # below this a split's last, half empty pack decides its fill
SEGMENTS = {"subject_id": pl.Int64, "tier": pl.Int32, "offset": pl.Int64, "tokens": pl.Int64, "sum": pl.UInt64}

_NUMBERS = {name: modality.number for name, modality in MODALITIES.items()}


@dataclass
class ShardMeasures:
    """What the shards of one split hold, added up over files and row groups.

    Attributes:
        segments: frames of SEGMENTS; `sum` is that of validation.measure.shards.token_sums.
        misplaced_images: image places that are not where an image token of their modality is, or the reverse.
        dangling_images: image places whose key is no usable item's.
        foreign_images: image places in their place whose key is another subject's usable item, or of another modality.
    """

    packs: int = 0
    tokens: int = 0
    capacity: int = 0
    max_segments: int = 0
    malformed_packs: int = 0
    ids_out_of_range: int = 0
    misplaced_images: int = 0
    dangling_images: int = 0
    foreign_images: int = 0
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
        stated = (header.profile, header.plan, header.mode, header.split, header.group, header.context)
        return stated == (self.profile, self.name, self.plan.mode, self.split, int(path.stem), self.plan.context)


def read_vocabulary(tree: ReleaseLayout, profile: str) -> pl.DataFrame:
    """`token_id` and `token` of the profile's vocabulary; no rows without one."""
    return gather([tree.vocabulary(profile)], VOCABULARY, ["token_id", "token"])


def _add_group(
    into: ShardMeasures, group: Group, place: _Place, header: ShardHeader, number: int, fits: bool, items: pl.DataFrame
) -> None:
    """Adds one row group."""
    alone = place.plan.mode == "packed" or group.segments <= 1
    whole = group.whole & (group.length <= place.plan.context) & fits & alone
    into.packs += len(group.length)
    into.tokens += int(group.segment_length.sum())
    into.capacity += len(group.length) * place.plan.context
    into.max_segments = max(into.max_segments, int(group.segments.max(initial=0)))
    into.malformed_packs += int((~whole).sum())
    columns = {
        "subject_id": group.subject,
        "tier": np.full(len(group.subject), number // place.plan.groups),
        "offset": group.offset,
        "tokens": group.segment_length,
        "sum": segment_sums(group, header.time_unit_us),
    }
    into.segments.append(pl.DataFrame(columns).cast(SEGMENTS))  # type: ignore[arg-type]  # dtypes by name
    _add_images(into, group, items)


def _add_images(into: ShardMeasures, group: Group, items: pl.DataFrame) -> None:
    images, misplaced = image_places(group)
    into.misplaced_images += misplaced
    into.image_places += images.height
    known = images.join(items, on="item_key", suffix="_of_item")
    into.dangling_images += images.height - known.height
    other = (pl.col("subject_id") != pl.col("subject_id_of_item")) | (pl.col("modality") != pl.col("modality_of_item"))
    into.foreign_images += known.filter(pl.col("subject_id").is_not_null() & other).height


def _read(place: _Place, vocabulary: pl.DataFrame, items: pl.DataFrame) -> ShardMeasures:
    """Reads the shards of one split, a row group at a time.

    Args:
        vocabulary: `token_id` and `token`; a shard must have been written with the first of these ids.
        items: usable ones: `item_key`, `subject_id`, and `modality` as its number in MODALITIES.

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
            for number in range(file.metadata.num_row_groups):
                group = read_group(file, number, header)
                _add_group(measures, group, place, header, int(path.stem), fits, items)
                measures.ids_out_of_range += int(np.count_nonzero(group.ids >= size))
        except (OSError, pa.ArrowException, KeyError, ValueError, IndexError) as error:
            raise unreadable(path) from error
    return measures


def measure_shards(
    tree: ReleaseLayout, profiles: Mapping[str, ProfileEntry], buckets: int, items: pl.DataFrame
) -> pl.DataFrame:
    """One row per profile, plan and split.

    Columns: packs, subjects_timeline (that the plan keeps tokens of), subjects_shards, tokens_timeline (of the split's
    subjects), tokens_dropped (as the manifest declares them), tokens_shards, token_difference (from what the plan must
    keep, summed over subjects without regard to sign), drop_difference (declared drops that are not the plan's, over
    reasons), foreign_subjects (in this split's shards, though the scheme has them elsewhere or nowhere),
    misplaced_tiers (subjects in another tier of the budgets than the fixed order gives them), budget_differences
    (budgets with other numbers than the manifest's), budgets_short (that ask for more than train has), budget_ks_ratio
    (see there), misplaced_segments (that do not begin where the subject's one before ends), changed_subjects (all of
    whose tokens are there and in place, but with another id, type, time or image than in the timeline), fill,
    fill_judged (null below 20 packs, and where packs are not meant to be full), max_segments, malformed_packs (another
    context, profile, plan, mode or split than their place says, or segments that do not add up), ids_out_of_range,
    image_places, misplaced_images (whose position or modality is not that of a token), dangling_images (of no usable
    item), foreign_images (of another subject's usable item, or of another modality).

    Args:
        profiles: as the manifest has them.
        items: the release's, at least `item_key`, `subject_id`, `modality`, `verdict`, `store`. Those with a vector of
            the encoders that a profile names are usable for it.
    """
    return pl.DataFrame(
        [
            row
            for profile, entry in profiles.items()
            for sums in [timeline_sums(tree, profile, entry.plans.values(), buckets)]
            for usable in [_usable(items, entry)]
            for name, plan in entry.plans.items()
            for row in _plan_rows(tree, profile, entry.scheme, name, plan, buckets, usable, sums[kept_by(plan)])
        ],
        schema_overrides={"budget_ks_ratio": pl.Float64, "fill_judged": pl.Float64},
        infer_schema_length=None,
    )


def _usable(items: pl.DataFrame, profile: ProfileEntry) -> pl.DataFrame:
    usable = items.filter(pl.col("verdict") == "ok")
    if profile.stores:
        stores = pl.col("modality").replace_strict(profile.stores, default=None, return_dtype=pl.String)
        usable = usable.filter(pl.col("store") == stores)
    number = pl.col("modality").replace_strict(_NUMBERS, default=-1).cast(pl.Int64)
    return usable.select("item_key", "subject_id", number).unique("item_key", keep="any")


def _plan_rows(
    tree: ReleaseLayout,
    profile: str,
    scheme: str,
    name: str,
    plan: PlanEntry,
    buckets: int,
    items: pl.DataFrame,
    sums: pl.DataFrame,
) -> list[dict[str, object]]:
    vocabulary = read_vocabulary(tree, profile)
    columns = ["subject_id", "split", "order"]
    assigned = gather([tree.scheme_subjects(scheme)], SCHEME_SUBJECTS, columns).unique("subject_id")
    expected = expected_tokens(tree, profile, plan, buckets).join(assigned, on="subject_id", how="inner")
    measured = {split: _read(_Place(tree, profile, name, plan, split), vocabulary, items) for split in SPLITS}
    found = pl.concat(
        [pl.DataFrame(schema=SEGMENTS), *(part for measures in measured.values() for part in measures.segments)]
    )
    rows: list[dict[str, object]] = []
    for split, measures in measured.items():
        in_split = expected.filter(pl.col("split") == split)
        kept = in_split.filter(pl.col("tokens") > 0)
        tiered = with_tiers(kept, plan) if split == "train" else kept.with_columns(pl.lit(0, pl.Int32).alias("tier"))
        wanted = tiered.filter(pl.col("tier") < max(1, len(plan.budgets)))
        segments = pl.concat([pl.DataFrame(schema=SEGMENTS), *measures.segments])
        members = assigned.filter(pl.col("split") == split)
        of_members = found.join(members, on="subject_id", how="semi")
        misplaced = _misplaced_segments(wanted, segments)
        rows.append(
            {
                "profile": profile,
                "plan": name,
                "split": split,
                "packs": measures.packs,
                "subjects_timeline": wanted.height,
                "subjects_shards": segments["subject_id"].n_unique(),
                "tokens_timeline": int(in_split["given"].sum()),
                "tokens_dropped": sum(plan.dropped.get(split, {}).values()),
                "tokens_shards": measures.tokens,
                "token_difference": _token_difference(wanted, of_members),
                "drop_difference": _drop_difference(plan, split, in_split, wanted),
                "foreign_subjects": segments.join(members, on="subject_id", how="anti")["subject_id"].n_unique(),
                "misplaced_tiers": _misplaced_tiers(wanted, segments),
                "budget_differences": budget_differences(tiered, plan) if split == "train" else 0,
                "budget_ks_ratio": budget_ks_ratio(tiered, plan) if split == "train" else None,
                "budgets_short": sum(budget.tokens < budget.asked for budget in plan.budgets)
                if split == "train"
                else 0,
                "misplaced_segments": misplaced.height,
                "changed_subjects": _changed_subjects(wanted, of_members, sums, misplaced),
                "fill": measures.tokens / max(measures.capacity, 1),
                "fill_judged": _judged_fill(measures, plan),
                "max_segments": measures.max_segments,
                "malformed_packs": measures.malformed_packs,
                "ids_out_of_range": measures.ids_out_of_range,
                "image_places": measures.image_places,
                "misplaced_images": measures.misplaced_images,
                "dangling_images": measures.dangling_images,
                "foreign_images": measures.foreign_images,
            }
        )
    return rows


def _budgets_short(plan: PlanEntry) -> int:
    return sum(budget.tokens < budget.asked for budget in plan.budgets)


def _judged_fill(measures: ShardMeasures, plan: PlanEntry) -> float | None:
    judged = plan.mode == "packed" and measures.packs >= MANY_PACKS
    return measures.tokens / measures.capacity if judged else None


def _drop_difference(plan: PlanEntry, split: str, in_split: pl.DataFrame, wanted: pl.DataFrame) -> int:
    """How far the declared drops are from what the plan leaves out of these subjects."""
    left_out = int(in_split["given"].sum()) - int(wanted["tokens"].sum())
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


def _misplaced_segments(wanted: pl.DataFrame, segments: pl.DataFrame) -> pl.DataFrame:
    """Segments that do not begin where the subject's one before ends, or where the plan's first one must."""
    end = (pl.col("offset") + pl.col("tokens")).shift(1).over("subject_id")
    first = wanted.select("subject_id", pl.col("offset").alias("first"))
    ordered = segments.sort("subject_id", "offset", "tokens").join(
        first, on="subject_id", how="inner", maintain_order="left"
    )
    return ordered.filter(pl.col("offset") != end.fill_null(pl.col("first")))


def _changed_subjects(wanted: pl.DataFrame, found: pl.DataFrame, sums: pl.DataFrame, misplaced: pl.DataFrame) -> int:
    """Subjects with as many tokens as wanted, all in place, whose sum is another than their timeline's.

    The others are counted by what is wrong with them, and their sums cannot be right.
    """
    tokens = found.group_by("subject_id").agg(pl.col("tokens").sum())
    judged = wanted.join(tokens, on=["subject_id", "tokens"], how="semi").join(misplaced, on="subject_id", how="anti")
    both = judged.join(per_subject([found.select("subject_id", "sum")]), on="subject_id")
    return both.join(sums, on=["subject_id", "sum"], how="anti").height
