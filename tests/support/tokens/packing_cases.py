"""Timelines to pack, and the reading of packs in plain Python, for the tests of packing and of shards."""

from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
from hypothesis import strategies as st

from pipelines.packing.lay import lay, row_groups
from pipelines.packing.timelines import read_timelines
from warehouse.arrays import NO_TIME
from warehouse.modalities import MODALITIES
from warehouse.parquet import write_table
from warehouse.schemas import TIMELINES
from warehouse.shards.packs import Packs, ShardHeader, no_packs
from warehouse.tokens import FIRST_IMAGE, IMAGE_TOKENS, PAD, TokenType

CONTEXT = 16
HEADER = ShardHeader("mehrt", "train", 3, CONTEXT, "uint16", "0" * 64, 60_100, {"ct": "random-ct"})
LENGTHS = st.lists(st.integers(1, 3 * CONTEXT + 2), max_size=40)
Rows = dict[int, list[tuple[int, int, int, str | None]]]
EMPTY = pl.DataFrame(pl.from_arrow(TIMELINES.empty_table()))


def timelines(lengths: list[int], seed: int = 0, step_us: int = 1_000_001) -> pl.DataFrame:
    """Subjects with the given numbers of tokens: every seventh token is an image, every fifth has no time."""
    rng = np.random.default_rng(seed)
    subject = np.repeat(rng.permutation(len(lengths)).astype(np.int64) * 1_000_003 + 1, lengths)
    number = np.arange(len(subject))
    image = number % 7 == 3
    modality = number % len(MODALITIES)
    return pl.DataFrame(
        {
            "subject_id": subject,
            "token_id": np.where(image, IMAGE_TOKENS["ct"] + modality, 100 + number % 60_000).astype(np.uint32),
            "type": np.where(image, int(TokenType.IMAGE), int(TokenType.STRUCTURED)).astype(np.uint8),
            "time": pl.Series(number * step_us - 10**15).cast(pl.Datetime("us")),
            "item_key": [f"key{place}" if is_image else None for place, is_image in enumerate(image)],
        },
        schema=EMPTY.schema,
    ).with_columns(pl.when(pl.Series(number % 5 != 0)).then("time").alias("time"))


def packed(tokens: pl.DataFrame, header: ShardHeader = HEADER) -> tuple[Packs, ShardHeader]:
    """All packs of TIMELINES rows, and the header that is needed to read their times."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "0000.parquet"
        write_table(path, tokens, TIMELINES, "timelines")
        read = read_timelines(path, np.dtype(header.token_dtype))
    layout = lay(read, header.mode, header.context)
    header = replace(header, time_unit_us=layout.times.unit_us, time_dtype=layout.times.dtype)
    made = list(row_groups(read, layout, header.group, header.context, rows=1 << 20))
    return (made or [no_packs(header)])[0], header


def unpacked(packs: Packs, header: ShardHeader, whole: bool = True) -> Rows:
    """Every subject's (token, type, time, key), put together by its segments' offsets, in plain Python.

    Args:
        whole: each subject's first segment has nothing before it.
    """
    times = packs.times_us(header)
    keys = packs.image_key.to_pylist()
    images: dict[tuple[int, int], tuple[str, int]] = {}
    at = 0
    for row, number in enumerate(packs.images_per_pack.tolist()):
        for _ in range(number):
            images[row, int(packs.image_position[at])] = keys[at], int(packs.image_modality[at])
            at += 1
    assert at == len(packs.image_key) == len(images)
    pieces: dict[int, dict[int, list[Any]]] = {}
    segment = 0
    for row, number in enumerate(packs.segments_per_pack.tolist()):
        position = 0
        for _ in range(number):
            length = int(packs.segment_length[segment])
            tokens = []
            for place in range(position, position + length):
                key, modality = images.pop((row, place), (None, None))
                token = int(packs.input_ids[row, place])
                assert modality is None or FIRST_IMAGE + modality == token
                tokens.append((token, int(packs.token_type[row, place]), int(times[row, place]), key))
            by_offset = pieces.setdefault(int(packs.segment_subject[segment]), {})
            assert int(packs.segment_offset[segment]) not in by_offset
            by_offset[int(packs.segment_offset[segment])] = tokens
            position += length
            segment += 1
        assert position == packs.length[row]
        assert (packs.input_ids[row, position:] == PAD).all()
        assert (packs.token_type[row, position:] == int(TokenType.SPECIAL)).all()
        assert (times[row, position:] == NO_TIME).all()
    assert not images
    joined: Rows = {}
    for subject, by_offset in pieces.items():
        joined[subject] = []
        first = min(by_offset)
        assert first == 0 or not whole
        for offset in sorted(by_offset):
            assert offset == first + len(joined[subject])
            joined[subject] += by_offset[offset]
    return joined


def expected(tokens: pl.DataFrame) -> Rows:
    rows: Rows = {}
    for subject, token, kind, time, key in tokens.with_columns(pl.col("time").cast(pl.Int64)).iter_rows():
        rows.setdefault(subject, []).append((token, kind, NO_TIME if time is None else time, key))
    return rows


def same(first: Packs, second: Packs) -> None:
    """Asserts that two sets of packs are equal, with their types."""
    for field in fields(Packs):
        left, right = getattr(first, field.name), getattr(second, field.name)
        assert left.equals(right) if field.name == "image_key" else np.array_equal(left, right), field.name
        if isinstance(left, np.ndarray):
            assert left.dtype == right.dtype, field.name
