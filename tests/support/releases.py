"""Fabricates a small valid release from the contracts alone: codes that follow a Markov chain, and images."""

import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from warehouse.arrays import NO_TIME
from warehouse.embeddings.store import EmbeddingWriter
from warehouse.files import hash_file, write_json
from warehouse.hashing import bucket_of
from warehouse.layout import Layout, ReleaseLayout
from warehouse.manifest import (
    BudgetEntry,
    Deidentification,
    EncoderEntry,
    FileEntry,
    Manifest,
    PlanEntry,
    ProfileEntry,
    content_hash,
)
from warehouse.modalities import MODALITIES
from warehouse.parquet import empty_frame, write_table
from warehouse.publish import publish
from warehouse.schemas import EVENTS, ITEMS, LAGS, SCHEME_SUBJECTS, SPLIT_LEDGER, VOCABULARY
from warehouse.shards import file as shards
from warehouse.shards.file import Packs, ShardHeader, write_shard
from warehouse.shards.times import compact_times
from warehouse.tokens import BOS, IMAGE_TOKENS, PAD, RESERVED, TYPE_NAMES, TokenType
from warehouse.vocabulary import vocabulary_hash

BUCKETS, GROUPS, CODES, PROFILE = 4, 2, 40, "mehrt"
DIMS = {"ct": 1024, "wsi": 1536}
STORES = {modality: f"random-{modality}-0123" for modality in DIMS}
SEX = (len(RESERVED), len(RESERVED) + 1)
FIRST_CODE = len(RESERVED) + 2
START_US = 1_500_000_000_000_000


@dataclass
class Timeline:
    """One subject's tokens; `images` holds (position, modality, key)."""

    subject: int
    split: str
    ids: list[int]
    types: list[int]
    times: list[int]
    images: list[tuple[int, str, str]] = field(default_factory=list)


def markov_timelines(subjects: int, seed: int = 0, length: int = 60, images: bool = True) -> list[Timeline]:
    """[BOS], sex, then codes of which each has one frequent and two rare successors; equal times are common."""
    random = np.random.default_rng(seed)
    successors = np.stack([np.random.default_rng(7 + which).permutation(CODES) for which in range(3)])
    result = []
    for subject in range(subjects):
        split = ("train", "train", "train", "train", "tuning", "held_out")[subject % 6]
        line = Timeline(
            subject=1000 + subject,
            split=split,
            ids=[BOS, SEX[int(random.integers(2))]],
            types=[TokenType.SPECIAL, TokenType.DEMOGRAPHIC],
            times=[NO_TIME, NO_TIME],
        )
        code, time = int(random.integers(CODES)), START_US + int(random.integers(10**9))
        for _ in range(int(random.integers(length // 4, length * 2))):
            time += int(random.integers(2)) * int(random.integers(1, 3))
            line.ids.append(FIRST_CODE + code)
            line.types.append(TokenType.STRUCTURED)
            line.times.append(time)
            code = int(successors[random.choice(3, p=[0.8, 0.1, 0.1]), code])
            if images and random.random() < 0.05:
                modality = ("ct", "wsi")[int(random.integers(2))]
                line.images.append((len(line.ids), modality, f"{modality}{subject:04d}x{len(line.ids):04d}"))
                line.ids.append(IMAGE_TOKENS[modality])
                line.types.append(TokenType.IMAGE)
                line.times.append(time)
        result.append(line)
    return result


def vector_of(modality: str, key: str) -> npt.NDArray[np.float32]:
    """The vector that the fabricated stores hold for an item."""
    seed = zlib.crc32(key.encode())
    return np.random.default_rng(seed).standard_normal(DIMS[modality]).astype(np.float32)


def units_of(modality: str, key: str) -> npt.NDArray[np.float32]:
    """(1 to 4, d): the units of an item where the stores hold sequences; their mean is no `vector_of`."""
    first = vector_of(modality, key)
    return np.stack([first * (unit + 1) for unit in range(1 + len(key.encode()) * int(first[0] > 0) % 4)])


def without_images(line: Timeline) -> Timeline:
    """A timeline's tokens that are no images."""
    kept = [place for place, kind in enumerate(line.types) if kind != TokenType.IMAGE]
    ids, types, times = ([values[place] for place in kept] for values in (line.ids, line.types, line.times))
    return Timeline(line.subject, line.split, ids, types, times)


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
        image_modality=np.array([MODALITIES.index(name) for _, name, _ in images_flat], np.uint8),
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


def _vocabulary() -> pl.DataFrame:
    names = [
        *RESERVED,
        ("DEMO/SEX/F", TokenType.DEMOGRAPHIC),
        ("DEMO/SEX/M", TokenType.DEMOGRAPHIC),
        *((f"LOINC/{code}", TokenType.STRUCTURED) for code in range(CODES)),
    ]
    return pl.DataFrame(
        {
            "token_id": range(len(names)),
            "token": [token for token, _ in names],
            "type": [TYPE_NAMES[kind] for _, kind in names],
            "train_count": [0] * len(names),
        }
    )


def _events(timelines: list[Timeline]) -> pl.DataFrame:
    rows = [
        {
            "subject_id": line.subject,
            "time": None if time == NO_TIME else time,
            "code": f"T{token}",
            "kind": "image" if kind == TokenType.IMAGE else "clinical",
            "source": "fabricated",
        }
        for line in timelines
        for token, kind, time in zip(line.ids, line.types, line.times, strict=True)
        if kind != TokenType.SPECIAL
    ]
    missing = [name for name in EVENTS.names if rows and name not in rows[0]]
    frame = pl.DataFrame(rows, schema_overrides={"time": pl.Datetime("us")}, infer_schema_length=None)
    return frame.with_columns(pl.lit(None).alias(name) for name in missing)


def _items(timelines: list[Timeline]) -> pl.DataFrame:
    rows = [
        {
            "subject_id": line.subject,
            "item_key": key,
            "modality": modality,
            "verdict": "ok",
            "units_encoded": 3,
            "units_failed": 0,
            "store": STORES[modality],
            "dim": DIMS[modality],
            "artificial_link": True,
            "time": line.times[where],
        }
        for line in timelines
        for where, modality, key in line.images
    ]
    columns = ("subject_id", "item_key", "modality", "verdict", "units_encoded", "units_failed", "store", "dim")
    schema = {**dict.fromkeys([*columns, "artificial_link"]), "time": pl.Datetime("us")}
    frame = pl.DataFrame(rows, schema=schema)
    return frame.with_columns(pl.lit(None).alias(name) for name in ITEMS.names if name not in frame.columns)


def file_entry(path: Path) -> FileEntry:
    """A file's entry in a manifest, as the engine makes it."""
    strong, fast = hash_file(path)
    rows = pq.read_metadata(path).num_rows if path.suffix == ".parquet" else None
    return FileEntry(sha256=strong, xxh3=fast, bytes=path.stat().st_size, rows=rows)


def fabricate(
    root: Path,
    timelines: list[Timeline],
    context: int = 64,
    name: str = "one",
    row_group_rows: int = 4096,
    sequences: bool = False,
    structured: bool = False,
) -> Path:
    """Publishes a release of these timelines under `root` and gives `root`.

    Args:
        sequences: stores a sequence of units an item (see `units_of`) in place of one vector.
        structured: a further plan without image tokens, whose train shards are two token budgets.
    """
    layout = Layout(root)
    staging = ReleaseLayout(layout.work / name / "release")
    vocabulary = _vocabulary()
    hashed = vocabulary_hash(vocabulary)
    write_table(staging.vocabulary(PROFILE), vocabulary, VOCABULARY, "vocabulary")
    splits = pl.DataFrame([(line.subject, line.split) for line in timelines], ["subject_id", "split"], orient="row")
    write_table(
        staging.split_ledger(PROFILE),
        splits.with_columns(pl.lit("all").alias("stratum"), pl.int_range(pl.len()).alias("ordinal")),
        SPLIT_LEDGER,
        "ledger",
    )
    placed = splits.with_columns(pl.int_range(pl.len()).cast(pl.Float64).alias("order")).sort("subject_id")
    write_table(staging.scheme_subjects(PROFILE), placed, SCHEME_SUBJECTS, "subjects")
    staging.subject_splits.parent.mkdir(parents=True)
    splits.write_parquet(staging.subject_splits)
    of_bucket = bucket_of(np.array([line.subject for line in timelines]), BUCKETS)
    for bucket in range(BUCKETS):
        mine = sorted(
            (line for line, where in zip(timelines, of_bucket, strict=True) if where == bucket),
            key=lambda line: line.subject,
        )
        if not mine:
            continue
        write_table(staging.events(bucket), _events(mine), EVENTS, "events")
        write_table(staging.items(bucket), _items(mine), ITEMS, "items")
        for modality, store in STORES.items():
            keys = [key for line in mine for _, its, key in line.images if its == modality]
            if keys:
                with EmbeddingWriter(layout.embedding_bucket(modality, store, bucket)) as writer:
                    stored = units_of if sequences else vector_of
                    writer.put_many([(key, stored(modality, key), 3) for key in keys])
    usual = shards.ROW_GROUP_ROWS
    shards.ROW_GROUP_ROWS = row_group_rows
    try:
        for split in ("train", "tuning", "held_out"):
            for group in range(GROUPS):
                mine = [line for line in timelines if line.split == split and line.subject % 3 % GROUPS == group]
                header = ShardHeader(PROFILE, split, group, context, "uint16", hashed, len(vocabulary), STORES)
                write_shard(
                    staging.shard(PROFILE, split, group),
                    *compact(pack_timelines(mine, context, group), header),
                )
                if structured:
                    plain = replace(header, plan="structured", stores={})
                    write_shard(
                        staging.shard(PROFILE, split, group, "structured"),
                        *compact(pack_timelines([without_images(line) for line in mine], context, group), plain),
                    )
    finally:
        shards.ROW_GROUP_ROWS = usual
    write_table(staging.lags, empty_frame(LAGS), LAGS, "lags")
    write_json(staging.dataset_metadata, {"dataset_name": "fabricated"})
    files = {
        path.relative_to(staging.path).as_posix(): file_entry(path)
        for path in sorted(staging.path.rglob("*"))
        if path.is_file()
    }
    encoders = {
        modality: EncoderEntry(label="random, for demonstration only", store=store, dim=DIMS[modality])
        for modality, store in STORES.items()
    }
    budgets = tuple(
        BudgetEntry(asked=1, tokens=1, all_tokens=1, subjects=1, files=files_of) for files_of in range(1, GROUPS + 1)
    )
    plain_plan = PlanEntry(context=context, groups=GROUPS, images=False, budgets=budgets)
    further = {"structured": plain_plan} if structured else {}
    manifest = Manifest(
        release_id=name,
        parent=None,
        created_at="2026-01-01T00:00:00Z",
        run_id=name,
        buckets=BUCKETS,
        deid=Deidentification(mode="synthetic", subject_ids="none", dates="none", key_fingerprint=""),
        config_hash="",
        split_scheme=PROFILE,
        split_hash="",
        encoders=encoders,
        profiles={
            PROFILE: ProfileEntry(
                vocabulary_hash=hashed,
                vocabulary_size=len(vocabulary),
                scheme=PROFILE,
                rules_hash="",
                plans={"default": PlanEntry(context=context, groups=GROUPS), **further},
            )
        },
        stages={},
        sources={},
        verdicts={},
        content_hash=content_hash(files),
        tasks={},
        files=files,
    )
    publish(layout, staging.path, manifest)
    return root
