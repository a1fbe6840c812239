"""Writes a small right release: its tables from a `Content`, its shards, the stores that it points at, its manifest.

`markov.py` and `patients.py` say what is in it: timelines to read, and a record to break.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import meds
import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.splitting.ledger import Freeze
from warehouse.arrays import NO_TIME
from warehouse.embeddings.store import EmbeddingWriter
from warehouse.files import atomic_write, hash_file, write_json
from warehouse.hashing import bucket_of
from warehouse.layout import Layout, ReleaseLayout
from warehouse.manifest import (
    Deidentification,
    EncoderEntry,
    FileEntry,
    Manifest,
    PlanEntry,
    ProfileEntry,
    content_hash,
)
from warehouse.modalities import INDEXED, MODALITIES
from warehouse.parquet import write_table
from warehouse.publish import publish
from warehouse.schemas import (
    EVENTS,
    ITEMS,
    LAGS,
    LEDGER,
    QUARANTINE,
    SCHEME_SUBJECTS,
    SPLIT_LEDGER,
    SPLIT_QUARANTINE,
    SUBJECTS,
    TIMELINES,
    VOCABULARY,
)
from warehouse.shards.file import Packs, ShardHeader, read_shard, write_shard
from warehouse.shards.times import compact_times
from warehouse.tokens import PAD
from warehouse.vocabulary import vocabulary_hash

SCHEME, PROFILE, BUCKETS = "mehrt", "mehrt", 4
FRACTIONS = {"train": 0.8, "tuning": 0.1, "held_out": 0.1}
DIMS = {"ct": 1024, "wsi": 1536}
STORES = {modality: f"random-{modality}-0123" for modality in DIMS}
ENCODER = "random, for demonstration only"
LAB = "LOINC//718-7//g/dL"


@dataclass(frozen=True)
class Content:
    """What a release tells of its subjects, in the columns of the schemas; `splits` has every subject."""

    events: pl.DataFrame
    items: pl.DataFrame
    timelines: pl.DataFrame
    splits: dict[int, str]
    vocabulary: pl.DataFrame
    ledger: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=LEDGER.names))
    quarantine: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=QUARANTINE.names))
    lags: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=LAGS.names))


@dataclass
class Timeline:
    """One subject's tokens; `images` holds (position, modality, key)."""

    subject: int
    split: str
    ids: list[int]
    types: list[int]
    times: list[int]
    images: list[tuple[int, str, str]] = field(default_factory=list)


def rows_of(timelines: list[Timeline]) -> pl.DataFrame:
    """The rows that `TIMELINES` has for these timelines."""
    keys = [{position: key for position, _, key in line.images} for line in timelines]
    frame = pl.DataFrame(
        {
            "subject_id": [line.subject for line in timelines for _ in line.ids],
            "token_id": [token for line in timelines for token in line.ids],
            "type": [int(kind) for line in timelines for kind in line.types],
            "time": [None if time == NO_TIME else time for line in timelines for time in line.times],
            "item_key": [
                at.get(position) for at, line in zip(keys, timelines, strict=True) for position in range(len(line.ids))
            ],
        },
        schema={
            "subject_id": pl.Int64,
            "token_id": pl.UInt32,
            "type": pl.UInt8,
            "time": pl.Int64,
            "item_key": pl.String,
        },
    )
    return frame.with_columns(pl.col("time").cast(pl.Datetime("us"))).sort("subject_id", maintain_order=True)


def timelines_of(rows: pl.DataFrame) -> list[Timeline]:
    """The timelines, of no split, that rows of `TIMELINES` hold; their order is the subjects' first rows'."""
    result = []
    for part in rows.partition_by("subject_id", maintain_order=True):
        keys = [(position, key) for position, key in enumerate(part["item_key"]) if key is not None]
        result.append(
            Timeline(
                subject=part["subject_id"][0],
                split="",
                ids=part["token_id"].to_list(),
                types=part["type"].to_list(),
                times=part["time"].dt.timestamp("us").fill_null(NO_TIME).to_list(),
                images=[(at, next(name for name in MODALITIES if key.startswith(name)), key) for at, key in keys],
            )
        )
    return result


def pack_timelines(timelines: list[Timeline], context: int, group: int = 0) -> Packs:
    """Next-fit, for tests only: timelines in order, cut where they are longer than the context.

    Times are microseconds since 1970, as a header with `time_dtype="int64"` has them; `compact` makes them small.
    """
    pieces = [(line, start) for line in timelines for start in range(0, len(line.ids), context)]
    bins: list[list[tuple[Timeline, int, int]]] = []
    room = 0
    for line, start in pieces:
        size = min(context, len(line.ids) - start)
        if size > room:
            bins.append([])
            room = context
        bins[-1].append((line, start, size))
        room -= size
    ids = np.full((len(bins), context), PAD, np.uint16)
    types = np.zeros((len(bins), context), np.uint8)
    times = np.full((len(bins), context), NO_TIME, np.int64)
    images: list[list[tuple[int, str, str]]] = []
    for row, members in enumerate(bins):
        at = 0
        images.append([])
        for line, start, size in members:
            stop = start + size
            ids[row, at : at + size] = line.ids[start:stop]
            types[row, at : at + size] = line.types[start:stop]
            times[row, at : at + size] = line.times[start:stop]
            images[-1] += [(at + where - start, name, key) for where, name, key in line.images if start <= where < stop]
            at += size
    members_flat = [member for members in bins for member in members]
    images_flat = [image for row_images in images for image in row_images]
    return Packs(
        pack_id=(np.int64(group) << 32) | np.arange(len(bins), dtype=np.int64),
        length=np.array([sum(size for *_, size in members) for members in bins], np.int32),
        input_ids=ids,
        token_type=types,
        time=times,
        segments_per_pack=np.array([len(members) for members in bins], np.int32),
        segment_length=np.array([size for *_, size in members_flat], np.int32),
        segment_subject=np.array([line.subject for line, *_ in members_flat], np.int64),
        segment_offset=np.array([start for _, start, _ in members_flat], np.int32),
        segment_origin=np.zeros(len(members_flat), np.int64),
        images_per_pack=np.array([len(row_images) for row_images in images], np.int32),
        image_position=np.array([where for where, *_ in images_flat], np.int32),
        image_key=pa.array([key for *_, key in images_flat], pa.string()),
        image_modality=np.array([MODALITIES[name].number for _, name, _ in images_flat], np.uint8),
    )


def compact(packs: Packs, header: ShardHeader) -> tuple[Packs, ShardHeader]:
    """Packs with times in microseconds as the packing stage writes them, and the header that says so."""
    real = np.arange(packs.time.shape[1]) < packs.length[:, None]
    small = compact_times(packs.time[real], packs.segment_length.astype(np.int64))
    time = np.full(packs.time.shape, np.iinfo(small.dtype).min, small.dtype)
    time[real] = small.values
    return (
        replace(packs, time=time, segment_origin=small.origins),
        replace(header, time_unit_us=small.unit_us, time_dtype=small.dtype),
    )


def file_entry(path: Path) -> FileEntry:
    """A file's entry in a manifest, as the engine makes it."""
    strong, fast = hash_file(path)
    rows = pq.read_metadata(path).num_rows if path.suffix == ".parquet" else None
    return FileEntry(sha256=strong, xxh3=fast, bytes=path.stat().st_size, rows=rows)


def meds_table(path: Path, table: pa.Table) -> None:
    with atomic_write(path) as temporary:
        pq.write_table(table, temporary)


def write_codes(tree: ReleaseLayout, codes: list[str]) -> None:
    described = pl.DataFrame({"code": codes}).select(
        "code",
        pl.when(code=LAB).then(pl.lit("Hemoglobin")).alias("description"),
        pl.when(code=LAB).then(pl.lit(["LAB//HGB"])).alias("parent_codes"),
    )
    meds_table(tree.codes, meds.CodeMetadataSchema.align(described.to_arrow()))


def write_subject_splits(tree: ReleaseLayout, splits: dict[int, str]) -> None:
    frame = pl.DataFrame({"subject_id": list(splits), "split": list(splits.values())})
    meds_table(tree.subject_splits, meds.SubjectSplitSchema.align(frame.to_arrow()))


def write_split_ledger(tree: ReleaseLayout, rows: list[tuple[int, str]]) -> None:
    """The scheme's ledger, whole, and the freeze that says so."""
    frame = pl.DataFrame(rows, schema=["subject_id", "split"], orient="row").with_columns(
        pl.lit("all").alias("stratum"), pl.int_range(pl.len()).alias("ordinal")
    )
    write_table(tree.split_ledger(SCHEME), frame, SPLIT_LEDGER, "split ledger")
    freeze = Freeze(SCHEME, FRACTIONS, {})
    freeze.append(frame.select(SPLIT_LEDGER.names))
    freeze.write(tree.split_freeze(SCHEME))


def write_scheme_subjects(tree: ReleaseLayout, rows: list[tuple[int, str]], aside: Sequence[int] = ()) -> None:
    """The release's subjects with their splits, and those that are set aside."""
    frame = pl.DataFrame(rows, schema=["subject_id", "split"], orient="row")
    ordered = frame.with_columns((pl.int_range(pl.len()) / max(len(rows), 1)).alias("order"))
    write_table(tree.scheme_subjects(SCHEME), ordered, SCHEME_SUBJECTS, "subjects of the scheme")
    left = pl.DataFrame({"subject_id": list(aside)}, schema={"subject_id": pl.Int64})
    reasons = left.with_columns(pl.lit("merged_across_splits").alias("reason"))
    write_table(tree.split_quarantine(SCHEME), reasons, SPLIT_QUARANTINE, "subjects set aside")


def write_splits(tree: ReleaseLayout, splits: dict[int, str]) -> None:
    """Ledger, subjects and MEDS' splits, all alike."""
    write_split_ledger(tree, list(splits.items()))
    write_scheme_subjects(tree, list(splits.items()))
    write_subject_splits(tree, splits)


def write_buckets(tree: ReleaseLayout, frame: pl.DataFrame, kind: str) -> None:
    """Writes events, items, subjects or timelines of all buckets."""
    schema = {"events": EVENTS, "items": ITEMS, "subjects": SUBJECTS, "timeline": TIMELINES}[kind]
    home = bucket_of(frame["subject_id"].to_numpy(), BUCKETS)
    for bucket in range(BUCKETS):
        path = tree.timeline(PROFILE, bucket) if kind == "timeline" else getattr(tree, kind)(bucket)
        write_table(path, frame.filter(pl.Series(home == bucket)), schema, kind)


def read_all(tree: ReleaseLayout, kind: str) -> pl.DataFrame:
    """What `write_buckets` wrote."""
    paths = [
        tree.timeline(PROFILE, bucket) if kind == "timeline" else getattr(tree, kind)(bucket)
        for bucket in range(BUCKETS)
    ]
    return pl.concat([pl.read_parquet(path) for path in paths]).sort("subject_id", maintain_order=True)


def _subjects(events: pl.DataFrame, items: pl.DataFrame) -> pl.DataFrame:
    usable = items.filter(pl.col("verdict") == "ok")
    per_subject = usable.group_by("subject_id").agg(
        (pl.col("modality") == modality).sum().alias(modality) for modality in INDEXED
    )
    return (
        events.group_by("subject_id")
        .agg(
            pl.len().alias("events"),
            pl.col("time").is_null().sum().alias("static_events"),
            (pl.col("time").unique().sort().diff().dt.total_seconds().mean() / 86400).alias("mean_interval_days"),
        )
        .join(per_subject, on="subject_id", how="left")
        .with_columns(pl.col(*INDEXED).fill_null(0))
        .sort("subject_id")
    )


def write_tables(tree: ReleaseLayout, content: Content) -> None:
    """Everything of a release but its shards and its manifest."""
    tables = {"events": content.events, "items": content.items, "timeline": content.timelines}
    for kind, frame in (tables | {"subjects": _subjects(content.events, content.items)}).items():
        write_buckets(tree, frame, kind)
    write_codes(tree, sorted(content.events["code"].unique()))
    write_splits(tree, content.splits)
    write_json(tree.dataset_metadata, {"dataset_name": "fabricated", "meds_version": "0.4.1"})
    write_table(tree.vocabulary(PROFILE), content.vocabulary, VOCABULARY, "vocabulary")
    write_table(tree.ledger, content.ledger, LEDGER, "ledger")
    write_table(tree.quarantine, content.quarantine, QUARANTINE, "quarantine")
    write_table(tree.lags, content.lags, LAGS, "lags")


def write_vectors(layout: Layout, items: pl.DataFrame, stored: Callable[[str, str], npt.NDArray[np.float32]]) -> None:
    """The stores' buckets: `stored` gives the vectors of a modality's item, each of three units."""
    usable = items.filter(pl.col("verdict") == "ok")
    home = bucket_of(usable["subject_id"].to_numpy(), BUCKETS)
    placed = usable.with_columns(pl.Series("bucket", home)).group_by("modality", "store", "bucket")
    for (modality, store, bucket), part in placed:
        path = layout.embedding_bucket(str(modality), str(store), int(str(bucket)))
        with EmbeddingWriter(path) as writer:
            writer.put_many([(key, stored(str(modality), key), 3) for key in part["item_key"]])


def profile_entry(vocabulary: pl.DataFrame, plans: dict[str, PlanEntry]) -> ProfileEntry:
    """The manifest's account of the profile."""
    return ProfileEntry(
        vocabulary_hash=vocabulary_hash(vocabulary),
        vocabulary_size=len(vocabulary),
        scheme=SCHEME,
        rules_hash="",
        plans=plans,
    )


def change_shard(tree: ReleaseLayout, split: str, **changes: Any) -> None:
    """Rewrites a split's shard with some columns of its packs changed."""
    shard_header, packs = read_shard(tree.shard(PROFILE, split, 0))
    copied = {name: np.array(value) for name, value in vars(packs).items() if isinstance(value, np.ndarray)}
    write_shard(tree.shard(PROFILE, split, 0), replace(packs, **copied | changes), shard_header)


def make_manifest(
    tree: ReleaseLayout,
    release_id: str,
    profile: ProfileEntry,
    encoders: dict[str, tuple[EncoderEntry, ...]] | None = None,
) -> Manifest:
    files = {
        path.relative_to(tree.path).as_posix(): file_entry(path)
        for path in sorted(tree.path.rglob("*"))
        if path.is_file()
    }
    return Manifest(
        release_id=release_id,
        parent=None,
        created_at=datetime(2026, 11, 21, tzinfo=UTC).isoformat(),
        run_id="run",
        buckets=BUCKETS,
        deid=Deidentification(mode="synthetic", subject_ids="kept", dates="kept", key_fingerprint=""),
        config_hash="c",
        split_scheme=SCHEME,
        split_hash="s",
        encoders=encoders
        or {
            modality: (EncoderEntry(label=ENCODER, store=store, dim=DIMS[modality]),)
            for modality, store in STORES.items()
        },
        profiles={PROFILE: profile},
        stages={},
        sources={},
        verdicts={},
        content_hash=content_hash(files),
        tasks={},
        files=files,
    )


def publish_tree(
    layout: Layout,
    tree: ReleaseLayout,
    release_id: str,
    profile: ProfileEntry,
    encoders: dict[str, tuple[EncoderEntry, ...]] | None = None,
) -> ReleaseLayout:
    """Publishes what lies in `tree`, in a root whose settings fit."""
    write_json(layout.settings, {"buckets": BUCKETS})
    return publish(layout, tree.path, make_manifest(tree, release_id, profile, encoders))
