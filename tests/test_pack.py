"""Packing: no token lost or moved, best fit as a naive one has it, and shards that keep what they are given."""

import json
from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import pack
from pipelines.pack import MAX_SEGMENTS, best_fit, cut, pack_timelines
from pipelines.split import SUBJECT_SPLITS
from warehouse import shards
from warehouse.errors import TimeloomError
from warehouse.layout import ReleaseLayout
from warehouse.schemas import TIMELINES, write_table
from warehouse.shards import METADATA_KEY, NO_TIME, Packs, ShardHeader, map_shard, read_shard, write_shard
from warehouse.tokens import IMAGE_TOKENS, MODALITIES, PAD, TokenType

CONTEXT = 16
HEADER = ShardHeader("mehrt", "train", 3, CONTEXT, "uint16", "0" * 64, 60_100, {"ct": "random-ct"})
EMPTY = pl.DataFrame(pl.from_arrow(TIMELINES.empty_table()))


def timelines(lengths: list[int], seed: int = 0) -> pl.DataFrame:
    """Subjects with so many tokens each: every seventh an image, every fifth without a time."""
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
            "time": pl.Series(number * 1_000_001 - 10**15).cast(pl.Datetime("us")),
            "item_key": [f"key{one}" if is_image else None for one, is_image in enumerate(image)],
        },
        schema=EMPTY.schema,
    ).with_columns(pl.when(pl.Series(number % 5 != 0)).then("time").alias("time"))


def unpacked(packs: Packs) -> dict[int, list[tuple[int, int, int, str | None]]]:
    """Every subject's (token, type, time, key), put together by its segments' offsets, in plain Python."""
    images: dict[tuple[int, int], tuple[str, int]] = {}
    at = 0
    for row, number in enumerate(packs.images_per_pack.tolist()):
        for _ in range(number):
            images[row, int(packs.image_position[at])] = packs.image_key[at], int(packs.image_modality[at])
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
                assert modality is None or IMAGE_TOKENS[MODALITIES[modality]] == token
                tokens.append((token, int(packs.token_type[row, place]), int(packs.time_us[row, place]), key))
            own = pieces.setdefault(int(packs.segment_subject[segment]), {})
            assert int(packs.segment_offset[segment]) not in own
            own[int(packs.segment_offset[segment])] = tokens
            position += length
            segment += 1
        assert position == packs.length[row]
        assert (packs.input_ids[row, position:] == PAD).all()
        assert (packs.token_type[row, position:] == int(TokenType.SPECIAL)).all()
        assert (packs.time_us[row, position:] == NO_TIME).all()
    assert not images
    joined = {}
    for subject, own in pieces.items():
        joined[subject] = []
        for offset in sorted(own):
            assert offset == len(joined[subject])
            joined[subject] += own[offset]
    return joined


def expected(tokens: pl.DataFrame) -> dict[int, list[tuple[int, int, int, str | None]]]:
    rows: dict[int, list[tuple[int, int, int, str | None]]] = {}
    for subject, token, kind, time, key in tokens.with_columns(pl.col("time").cast(pl.Int64)).iter_rows():
        rows.setdefault(subject, []).append((token, kind, NO_TIME if time is None else time, key))
    return rows


LENGTHS = st.lists(st.integers(1, 3 * CONTEXT + 2), max_size=40)


@settings(max_examples=80, deadline=None)
@given(LENGTHS, st.integers(0, 5))
def test_every_token_of_every_subject_stands_once_and_in_order(lengths: list[int], seed: int) -> None:
    tokens = timelines(lengths, seed)
    packs = pack_timelines(tokens, HEADER)
    assert unpacked(packs) == expected(tokens)
    assert packs.length.max(initial=0) <= CONTEXT
    assert packs.segments_per_pack.max(initial=0) <= MAX_SEGMENTS
    assert packs.pack_id.tolist() == [(3 << 32) + row for row in range(len(packs))]


@settings(max_examples=30, deadline=None)
@given(LENGTHS, st.integers(0, 5))
def test_the_order_of_subjects_does_not_matter(lengths: list[int], seed: int) -> None:
    tokens = timelines(lengths, seed)
    parts = tokens.partition_by("subject_id")
    other = pl.concat([EMPTY, *parts[::-1]])
    first, second = pack_timelines(tokens, HEADER), pack_timelines(other, HEADER)
    for one in fields(Packs):
        assert np.array_equal(getattr(first, one.name), getattr(second, one.name)), one.name


def naive_best_fit(lengths: list[int], context: int, most: int) -> list[int]:
    """Looks at every open pack for every segment; of equal ones the pack filled last."""
    free: list[int] = []
    segments: list[int] = []
    filled: list[int] = []
    chosen = []
    for now, length in enumerate(lengths):
        fitting = [
            (free[one], -filled[one], one) for one in range(len(free)) if free[one] >= length and segments[one] < most
        ]
        if fitting:
            best = min(fitting)[2]
        else:
            best = len(free)
            free.append(context)
            segments.append(0)
            filled.append(0)
        free[best] -= length
        segments[best] += 1
        filled[best] = now
        chosen.append(best)
    return chosen


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 20), max_size=120), st.sampled_from([1, 2, 3, 64]))
def test_best_fit_equals_the_naive_one(lengths: list[int], most: int) -> None:
    fast = best_fit(np.array(lengths, dtype=np.int64), 20, most)
    assert fast.tolist() == naive_best_fit(lengths, 20, most)


def test_best_fit_takes_the_fullest_pack_with_room() -> None:
    assert best_fit(np.array([6, 8, 2, 4]), 10).tolist() == [0, 1, 1, 0]


def test_a_pack_closes_at_64_segments() -> None:
    placed = best_fit(np.ones(200, dtype=np.int64), 1000)
    assert np.bincount(placed).tolist() == [64, 64, 64, 8]


def test_long_timelines_are_cut() -> None:
    document, offset, length = cut(np.array([5, 40, 16, 0, 33]), 16)
    assert document.tolist() == [0, 1, 1, 1, 2, 4, 4, 4]
    assert offset.tolist() == [0, 0, 16, 32, 0, 0, 16, 32]
    assert length.tolist() == [5, 16, 16, 8, 16, 16, 16, 1]


def test_twenty_thousand_lognormal_timelines_fill_99_percent() -> None:
    rng = np.random.default_rng(7)
    lengths = np.clip(rng.lognormal(5.8, 1.3, 20_000), 1, 98_861).astype(np.int64)
    context = 2048
    _, _, pieces = cut(lengths, context)
    placed = best_fit(pieces, context)
    per_pack = np.bincount(placed, weights=pieces)
    assert per_pack.max() <= context
    assert np.bincount(placed).max() <= MAX_SEGMENTS
    assert per_pack.sum() == lengths.sum()
    assert lengths.sum() / (len(per_pack) * context) >= 0.99


# --- shards


def same(first: Packs, second: Packs) -> None:
    for one in fields(Packs):
        left, right = getattr(first, one.name), getattr(second, one.name)
        assert np.array_equal(left, right), one.name
        if isinstance(left, np.ndarray):
            assert left.dtype == right.dtype, one.name


@settings(max_examples=20, deadline=None)
@given(LENGTHS, st.sampled_from(["uint16", "uint32"]))
def test_a_shard_reads_as_it_was_written(lengths: list[int], dtype: str) -> None:
    tokens = timelines(lengths)
    header = replace(HEADER, token_dtype=dtype)
    packs = pack_timelines(tokens, header)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "0003.parquet"
        write_shard(path, packs, header)
        read_header, read = read_shard(path)
        assert read_header == header
        same(read, packs)
        assert unpacked(read) == expected(tokens)


def test_a_shard_of_several_row_groups_reads_and_maps_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "ROW_GROUP_ROWS", 4)
    packs = pack_timelines(timelines([9] * 23), HEADER)
    path = tmp_path / "0003.parquet"
    write_shard(path, packs, HEADER)
    assert pq.ParquetFile(path).num_row_groups == 6
    same(read_shard(path)[1], packs)
    _, blocks = map_shard(path)
    assert np.array_equal(np.concatenate([block.input_ids for block in blocks]), packs.input_ids)
    assert np.array_equal(np.concatenate([block.time_us for block in blocks]), packs.time_us)


def test_the_largest_ids_keep_their_value(tmp_path: Path) -> None:
    for dtype in ("uint16", "uint32"):
        largest = np.iinfo(dtype).max
        header = replace(HEADER, token_dtype=dtype)
        tokens = timelines([3]).with_columns(
            pl.lit(largest, pl.UInt32).alias("token_id"), pl.lit(1, pl.UInt8).alias("type")
        )
        write_shard(tmp_path / "s.parquet", pack_timelines(tokens, header), header)
        assert read_shard(tmp_path / "s.parquet")[1].input_ids[0, :3].tolist() == [largest] * 3


def test_a_flipped_byte_anywhere_in_the_data_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    packs = pack_timelines(timelines([11] * 40), HEADER)
    write_shard(path, packs, HEADER)
    whole = path.read_bytes()
    group = pq.ParquetFile(path).metadata.row_group(0)
    columns = [group.column(number) for number in range(group.num_columns)]
    places = [one.data_page_offset + one.total_compressed_size - 1 - shift for one in columns for shift in (0, 3)]
    noticed = 0
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(TimeloomError, match=r"is (corrupt|unreadable)"):
            read_shard(path)
        noticed += 1
    assert noticed == 2 * group.num_columns
    path.write_bytes(whole)
    same(read_shard(path)[1], packs)


@pytest.mark.parametrize("kept", [0, 3, 200])
def test_a_truncated_shard_is_one_line(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "s.parquet"
    write_shard(path, pack_timelines(timelines([11] * 4), HEADER), HEADER)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(TimeloomError, match=r"shard s\.parquet is unreadable"):
        read_shard(path)


@pytest.mark.parametrize("extra", [{}, {"a_field_of_tomorrow": 1}])
def test_a_newer_format_is_refused_as_such(tmp_path: Path, extra: dict[str, Any]) -> None:
    path = tmp_path / "s.parquet"
    write_shard(path, pack_timelines(timelines([5]), HEADER), HEADER)
    table = pq.read_table(path)
    header = json.loads(table.schema.metadata[METADATA_KEY]) | {"format_version": shards.FORMAT_VERSION + 1} | extra
    pq.write_table(table.replace_schema_metadata({METADATA_KEY: json.dumps(header)}), path)
    with pytest.raises(TimeloomError, match="has format 2; upgrade timeloom"):
        read_shard(path)


def test_a_parquet_file_that_is_no_shard_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    pl.DataFrame({"a": [1]}).write_parquet(path)
    with pytest.raises(TimeloomError, match="is unreadable"):
        read_shard(path)


# --- the stage


def run(base: Path, split: str, lengths: list[int]) -> tuple[pl.DataFrame, Packs, dict[str, Any]]:
    tokens = timelines(lengths)
    tree = ReleaseLayout(base)
    subjects = tokens["subject_id"].unique().sort()
    names = pl.Series([("train", "tuning", "held_out")[number % 3] for number in range(len(subjects))], dtype=pl.String)
    assigned = pl.DataFrame({"subject_id": subjects, "split": names})
    write_table(tree.subject_splits, assigned, SUBJECT_SPLITS, "splits")
    halves = tokens.filter(pl.col("subject_id") % 2 == 0), tokens.filter(pl.col("subject_id") % 2 == 1)
    files = []
    for bucket, half in enumerate(halves):
        write_table(tree.timeline("mehrt", bucket), half, TIMELINES, "timelines")
        files.append(str(tree.timeline("mehrt", bucket).relative_to(base)))
    header = {one.name: getattr(replace(HEADER, split=split), one.name) for one in fields(ShardHeader)}
    result = pack.run({"header": header, "timelines": files}, base)
    (path,) = result.files
    own = tokens.join(assigned.filter(pl.col("split") == split), on="subject_id", how="semi")
    return own, read_shard(base / path)[1], result.counts


def test_the_stage_packs_its_own_split_alone(tmp_path: Path) -> None:
    seen = 0
    lengths = [number % 37 + 1 for number in range(60)]
    for split in ("train", "tuning", "held_out"):
        own, packs, counts = run(tmp_path, split, lengths)
        assert unpacked(packs) == expected(own)
        assert counts["tokens"] == len(own)
        assert counts["fill"] == pytest.approx(len(own) / (len(packs) * CONTEXT))
        seen += counts["tokens"]
    assert seen == sum(lengths)


def test_a_split_without_subjects_is_an_empty_shard(tmp_path: Path) -> None:
    _, packs, counts = run(tmp_path, "held_out", [5, 6])
    assert (len(packs), counts["tokens"]) == (0, 0)


def test_a_lost_token_fails_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pack.cut
    monkeypatch.setattr(pack, "cut", lambda lengths, context: tuple(part[:-1] for part in whole(lengths, context)))
    with pytest.raises(TimeloomError, match="packing train lost"):
        run(tmp_path, "train", [5, 6, 7])
