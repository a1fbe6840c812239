"""Some row groups of one shard: what their segments are, and whether their images are usable and in their place."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from validation.measure.reading import unreadable
from validation.measure.shards.groups import Group, image_places, read_group, segment_sums
from warehouse.manifest import PlanEntry
from warehouse.modalities import MODALITIES
from warehouse.shards.file import ShardHeader, read_header

SEGMENTS = {"subject_id": pl.Int64, "tier": pl.Int32, "offset": pl.Int64, "tokens": pl.Int64, "sum": pl.UInt64}
COUNTED = (
    "packs", "tokens", "capacity", "max_segments", "malformed_packs", "ids_out_of_range", "image_places",
    "misplaced_images", "dangling_images", "foreign_images",
)  # fmt: skip
_NUMBERS = {name: modality.number for name, modality in MODALITIES.items()}
# Row groups that are measured together, so that several processes can share a large shard.
PART_GROUPS = 4


@dataclass(frozen=True)
class Place:
    """Where a shard stands, and so what its header must say."""

    path: Path
    profile: str
    name: str
    plan: PlanEntry
    split: str

    @property
    def number(self) -> int:
        number: int = int(self.path.stem)
        return number

    def is_of(self, header: ShardHeader) -> bool:
        """Whether a shard is what its place says."""
        stated = (header.profile, header.plan, header.mode, header.split, header.group, header.context)
        place = (self.profile, self.name, self.plan.mode, self.split, self.number, self.plan.context)
        return stated == place


def parts_of(path: Path) -> int:
    """In how many parts a shard is measured; one where it is damaged, which shows when that is read."""
    try:
        groups = pq.read_metadata(path).num_row_groups
    except (OSError, pa.ArrowException):
        return 1
    return max(1, math.ceil(int(groups) / PART_GROUPS))


def usable_items(items: pl.DataFrame, stores: Mapping[str, str]) -> pl.DataFrame:
    """The items that a profile may use: `item_key`, `subject_id`, `modality` as its number in MODALITIES.

    Args:
        items: at least `item_key`, `subject_id`, `modality`, `verdict`, `store`.
        stores: by modality, the store of the encoder that the profile names.
    """
    usable = items.filter(pl.col("verdict") == "ok")
    if stores:
        wanted = pl.col("modality").replace_strict(stores, default=None, return_dtype=pl.String)
        usable = usable.filter(pl.col("store") == wanted)
    number = pl.col("modality").replace_strict(_NUMBERS, default=-1).cast(pl.Int64)
    return usable.select("item_key", "subject_id", number).unique("item_key", keep="any")


def measure_part(place: Place, part: int, items: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """`shards` and `segments` of some row groups, a row group at a time.

    What the vocabulary must be is not known here: a shard that was written with another one is found by the hash.

    Args:
        part: which PART_GROUPS row groups.
        items: as `usable_items` gives them.

    Raises:
        TimeloomError: the shard is damaged.
    """
    sums, segments = dict.fromkeys(COUNTED, 0), [pl.DataFrame(schema=SEGMENTS)]
    header = read_header(place.path)
    try:
        file = pq.ParquetFile(place.path, page_checksum_verification=True)
        width = file.schema_arrow.field("input_ids").type.byte_width
        fits = width == header.context * np.dtype(header.token_dtype).itemsize and place.is_of(header)
        first = part * PART_GROUPS
        for number in range(first, min(first + PART_GROUPS, file.metadata.num_row_groups)):
            group = read_group(file, number, header)
            _add_packs(sums, group, place.plan, header, fits=fits)
            _add_images(sums, group, items)
            segments.append(_segments(group, place, header))
    except (OSError, pa.ArrowException, KeyError, ValueError, IndexError) as error:
        raise unreadable(place.path) from error
    known = {"vocabulary_size": header.vocabulary_size, "vocabulary_hash": header.vocabulary_hash}
    return {"shards": pl.DataFrame([sums | known]), "segments": pl.concat(segments)}


def _add_packs(sums: dict[str, int], group: Group, plan: PlanEntry, header: ShardHeader, *, fits: bool) -> None:
    alone = plan.mode == "packed" or group.segments <= 1
    whole = group.whole & (group.length <= plan.context) & fits & alone
    sums["packs"] += len(group.length)
    sums["tokens"] += int(group.segment_length.sum())
    sums["capacity"] += len(group.length) * plan.context
    sums["max_segments"] = max(sums["max_segments"], int(group.segments.max(initial=0)))
    sums["malformed_packs"] += int((~whole).sum())
    sums["ids_out_of_range"] += int(np.count_nonzero(group.ids >= header.vocabulary_size))


def _segments(group: Group, place: Place, header: ShardHeader) -> pl.DataFrame:
    columns = {
        "subject_id": group.subject,
        "tier": np.full(len(group.subject), place.number // place.plan.groups),
        "offset": group.offset,
        "tokens": group.segment_length,
        "sum": segment_sums(group, header.time_unit_us),
    }
    return pl.DataFrame(columns).cast(SEGMENTS)  # type: ignore[arg-type]  # dtypes by name


def _add_images(sums: dict[str, int], group: Group, items: pl.DataFrame) -> None:
    images, misplaced = image_places(group)
    sums["misplaced_images"] += misplaced
    sums["image_places"] += images.height
    known = images.join(items, on="item_key", suffix="_of_item")
    sums["dangling_images"] += images.height - known.height
    other = (pl.col("subject_id") != pl.col("subject_id_of_item")) | (pl.col("modality") != pl.col("modality_of_item"))
    sums["foreign_images"] += known.filter(pl.col("subject_id").is_not_null() & other).height
