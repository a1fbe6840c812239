"""A release to read: subjects whose codes follow a Markov chain, many of them with images."""

import zlib
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from tests.support.releases import (
    DIMS,
    ENCODER,
    PROFILE,
    STORES,
    Content,
    Timeline,
    compact,
    pack_timelines,
    profile_entry,
    publish_tree,
    rows_of,
    write_tables,
    write_vectors,
)
from warehouse import Release
from warehouse.arrays import NO_TIME
from warehouse.layout import Layout, ReleaseLayout
from warehouse.manifest import BudgetEntry, EncoderEntry, PlanEntry
from warehouse.readers.batch import IdBatch
from warehouse.readers.dataset import ShardDataset
from warehouse.schemas import EVENTS, ITEMS
from warehouse.shards import file as shards
from warehouse.shards.file import ShardHeader, write_shard
from warehouse.tokens import BOS, IMAGE_TOKENS, RESERVED, TYPE_NAMES, TokenType
from warehouse.vocabulary import vocabulary_hash

CONTEXT, GROUPS, CODES = 64, 2, 40
SEX = (len(RESERVED), len(RESERVED) + 1)
FIRST_CODE = len(RESERVED) + 2
START_US = 1_500_000_000_000_000


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


def vector_of(modality: str, key: str, width: int | None = None) -> npt.NDArray[np.float32]:
    """The vector that the fabricated stores hold for an item."""
    seed = zlib.crc32(key.encode())
    return np.random.default_rng(seed).standard_normal(width or DIMS[modality]).astype(np.float32)


def units_of(modality: str, key: str, width: int | None = None) -> npt.NDArray[np.float32]:
    """(1 to 4, d): the units of an item where the stores hold sequences; their mean is no `vector_of`."""
    first = vector_of(modality, key, width)
    return np.stack([first * (unit + 1) for unit in range(1 + len(key.encode()) * int(first[0] > 0) % 4)])


def without_images(line: Timeline) -> Timeline:
    """A timeline's tokens that are no images."""
    kept = [place for place, kind in enumerate(line.types) if kind != TokenType.IMAGE]
    ids, types, times = ([values[place] for place in kept] for values in (line.ids, line.types, line.times))
    return Timeline(line.subject, line.split, ids, types, times)


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


Encoders = dict[str, tuple[EncoderEntry, ...]]
ENCODERS: Encoders = {
    name: (EncoderEntry(label=ENCODER, store=store, dim=DIMS[name]),) for name, store in STORES.items()
}


def fails(entry: EncoderEntry, key: str) -> bool:
    """Whether a fabricated encoder called `second` failed at an item: at about half of them."""
    return entry.name.startswith("second") and zlib.crc32(key.encode()) % 2 == 1


def vector_in(entry: EncoderEntry, modality: str, key: str, sequences: bool = False) -> npt.NDArray[np.float32]:
    """What an encoder's fabricated store holds for an item: a vector, or a sequence of units."""
    salted = f"{key}/{entry.name}" if entry.name.startswith("second") else key
    return (units_of if sequences else vector_of)(modality, salted, entry.dim)


def _items(timelines: list[Timeline], encoders: Encoders) -> pl.DataFrame:
    rows = [
        {
            "subject_id": line.subject,
            "item_key": key,
            "modality": modality,
            "verdict": "failed_not_finite" if fails(entry, key) else "ok",
            "units_encoded": 3,
            "units_failed": 0,
            "store": entry.store,
            "dim": entry.dim,
            "artificial_link": True,
            "time": line.times[where],
        }
        for line in timelines
        for where, modality, key in line.images
        for entry in encoders[modality]
    ]
    columns = ("subject_id", "item_key", "modality", "verdict", "units_encoded", "units_failed", "store", "dim")
    schema = {**dict.fromkeys([*columns, "artificial_link"]), "time": pl.Datetime("us")}
    frame = pl.DataFrame(rows, schema=schema)
    return frame.with_columns(pl.lit(None).alias(name) for name in ITEMS.names if name not in frame.columns)


def fabricate(
    root: Path,
    timelines: list[Timeline],
    context: int = CONTEXT,
    name: str = "one",
    row_group_rows: int = 4096,
    sequences: bool = False,
    structured: bool = False,
    encoders: Encoders = ENCODERS,
) -> Path:
    """Publishes a release of these timelines under `root` and gives `root`.

    Args:
        sequences: stores a sequence of units an item (see `units_of`) in place of one vector.
        structured: a further plan without image tokens, whose train shards are two token budgets.
        encoders: by modality; tokens carry the vectors of the first. One called `second` failed at some items.
    """
    layout = Layout(root)
    staging = ReleaseLayout(layout.work / name / "release")
    vocabulary = _vocabulary()
    content = Content(
        events=_events(timelines),
        items=_items(timelines, encoders),
        timelines=rows_of(timelines),
        splits={line.subject: line.split for line in timelines},
        vocabulary=vocabulary,
    )
    write_tables(staging, content)
    carried = {modality: entries[0].store for modality, entries in encoders.items()}
    for entry in [entry for entries in encoders.values() for entry in entries]:
        of_store = content.items.filter(pl.col("store") == entry.store)
        write_vectors(layout, of_store, partial(vector_in, entry, sequences=sequences))
    hashed = vocabulary_hash(vocabulary)
    usual = shards.ROW_GROUP_ROWS
    shards.ROW_GROUP_ROWS = row_group_rows
    try:
        for split in ("train", "tuning", "held_out"):
            for group in range(GROUPS):
                members = [line for line in timelines if line.split == split and line.subject % 3 % GROUPS == group]
                header = ShardHeader(PROFILE, split, group, context, "uint16", hashed, len(vocabulary), carried)
                write_shard(
                    staging.shard(PROFILE, split, group),
                    *compact(pack_timelines(members, context, group), header),
                )
                if structured:
                    plain = replace(header, plan="structured", stores={})
                    write_shard(
                        staging.shard(PROFILE, split, group, "structured"),
                        *compact(pack_timelines([without_images(line) for line in members], context, group), plain),
                    )
    finally:
        shards.ROW_GROUP_ROWS = usual
    budgets = tuple(
        BudgetEntry(asked=1, tokens=1, all_tokens=1, subjects=1, files=files_of) for files_of in range(1, GROUPS + 1)
    )
    plans = {"default": PlanEntry(context=context, groups=GROUPS)}
    if structured:
        plans["structured"] = PlanEntry(context=context, groups=GROUPS, images=False, budgets=budgets)
    profile = profile_entry(vocabulary, plans).model_copy(update={"stores": carried})
    publish_tree(layout, staging, name, profile, encoders)
    return root


def train(release: Release, **options: Any) -> ShardDataset:
    """A release's shards of train, without vectors unless the options ask for them."""
    return release.shards("mehrt", split="train", **{"seed": 7, "vectors": False, **options})


def packs_of(batches: Iterable[IdBatch]) -> list[list[int]]:
    """The packs of each batch, in the order of its rows."""
    return [batch.pack_ids[batch.real_rows].tolist() for batch in batches]
