"""The shard format: written shards are read and mapped, other readers understand them, and damage is one line."""

import json
import mmap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.tokens.packing_cases import CONTEXT, HEADER, LENGTHS, expected, packed, same, timelines, unpacked
from warehouse.arrays import NO_TIME
from warehouse.errors import TimeloomError
from warehouse.shards import file as shards
from warehouse.shards.file import METADATA_KEY, map_shard, open_shard, read_header, read_shard, write_shard
from warehouse.shards.packs import FORMAT_VERSION, no_packs
from warehouse.shards.times import UNITS_US, compact_times, micros

MINUTE = 60_000_000


# --- a reader that uses only docs/shards.md, pyarrow's footer and numpy


def foreign_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Every pack as plain Python values; the wide columns from the mapped file, the small ones from Parquet."""
    footer = pq.read_metadata(path)
    header = json.loads(footer.metadata[b"timeloom"])
    assert header["format_version"] == 2
    length, unit = header["context"], header["time_unit_us"]
    kinds = {"input_ids": header["token_dtype"], "token_type": "uint8", "time": header["time_dtype"]}
    names = [footer.schema.column(number).name for number in range(footer.num_columns)]
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    parquet, number = pq.ParquetFile(path), 0
    for group in range(footer.num_row_groups):
        rows, wide = footer.row_group(group).num_rows, {}
        for name, kind in kinds.items():
            chunk, dtype = footer.row_group(group).column(names.index(name)), np.dtype(kind).newbyteorder("<")
            start = chunk.data_page_offset + chunk.total_compressed_size - rows * length * dtype.itemsize
            assert 0 < start - chunk.data_page_offset <= 256
            wide[name] = np.frombuffer(mapped, dtype, rows * length, start).reshape(rows, length)
        for row, pack in enumerate(parquet.read_row_group(group).drop_columns(list(kinds)).to_pylist()):
            assert pack["pack_id"] == header["group"] << 32 | number
            number += 1
            images = dict(zip(pack["image_position"], pack["image_key"], strict=True))
            columns = [pack[f"segment_{name}"] for name in ("length", "subject", "offset", "origin")]
            segments, place, none = [], 0, np.iinfo(wide["time"].dtype).min
            for size, subject, offset, origin in zip(*columns, strict=True):
                part = slice(place, place + size)
                values = wide["time"][row, part].tolist()
                times = [None if value == none else origin + value * unit for value in values]
                keys = [images.get(position) for position in range(place, place + size)]
                ids, types = wide["input_ids"][row, part].tolist(), wide["token_type"][row, part].tolist()
                segments.append((subject, offset, list(zip(ids, types, times, keys, strict=True))))
                place += size
            assert place == pack["length"]
            yield {"segments": segments, "padding": wide["input_ids"][row, place:].tolist()}


@settings(max_examples=25, deadline=None)
@given(LENGTHS, st.sampled_from([MINUTE, 1_000_001]))
def test_a_reader_written_from_the_page_alone_reads_every_token(lengths: list[int], step: int) -> None:
    tokens = timelines(lengths, step_us=step)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "0003.parquet"
        write_shard(path, *packed(tokens))
        found: dict[int, dict[int, list[Any]]] = {}
        for pack in foreign_rows(path):
            assert not any(pack["padding"])
            for subject, offset, rows in pack["segments"]:
                found.setdefault(subject, {})[offset] = rows
    joined = {entry: [row for offset in sorted(parts) for row in parts[offset]] for entry, parts in found.items()}
    wanted = {subject: [(*row[:2], None if row[2] == NO_TIME else row[2], row[3]) for row in rows]
              for subject, rows in expected(tokens).items()}  # fmt: skip
    assert joined == wanted


def test_duckdb_and_polars_read_it_too(tmp_path: Path) -> None:
    path = tmp_path / "0003.parquet"
    packs, header = packed(timelines([9, 40, 16, 3] * 5))
    write_shard(path, packs, header)
    frame = pl.read_parquet(path)
    assert frame["length"].to_list() == packs.length.tolist()
    assert frame["segment_subject"].explode().to_list() == packs.segment_subject.tolist()
    assert frame["image_key"].list.explode(empty_as_null=False).to_list() == packs.image_key.to_pylist()
    ids = [np.frombuffer(row, "<u2").tolist() for row in frame["input_ids"]]
    assert ids == packs.input_ids.tolist()
    relation = duckdb.sql(f"SELECT length, input_ids, segment_length, image_key FROM '{path}' ORDER BY pack_id")
    rows = relation.fetchall()
    assert [row[0] for row in rows] == packs.length.tolist()
    assert [np.frombuffer(row[1], "<u2").tolist() for row in rows] == packs.input_ids.tolist()
    assert [sum(row[2]) for row in rows] == packs.length.tolist()
    assert [key for row in rows for key in row[3]] == packs.image_key.to_pylist()


def test_the_page_names_every_column_and_header_key() -> None:
    page = (Path(__file__).parents[3] / "docs" / "shards.md").read_text(encoding="utf-8")
    assert f"version {FORMAT_VERSION}" in page
    for name in (*vars(HEADER), *shards.MATRICES, *shards.SMALL_COLUMNS):
        assert f"`{name}`" in page, name


# --- reading and mapping written shards


@settings(max_examples=20, deadline=None)
@given(LENGTHS, st.sampled_from(["uint16", "uint32"]))
def test_a_shard_reads_as_it_was_written(lengths: list[int], dtype: str) -> None:
    tokens = timelines(lengths)
    packs, header = packed(tokens, replace(HEADER, token_dtype=dtype))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "0003.parquet"
        write_shard(path, packs, header)
        found, read = read_shard(path)
        assert found == header == read_header(path)
        same(read, packs)
        assert unpacked(read, header) == expected(tokens)


def test_a_shard_of_several_row_groups_reads_and_maps_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "ROW_GROUP_ROWS", 4)
    packs, header = packed(timelines([9] * 23))
    path = tmp_path / "0003.parquet"
    write_shard(path, packs, header)
    assert pq.ParquetFile(path).num_row_groups == 6
    same(read_shard(path)[1], packs)
    shard = open_shard(path)
    assert [(block.first, block.rows) for block in shard.blocks] == [(0, 4), (4, 4), (8, 4), (12, 4), (16, 4), (20, 3)]
    assert len(shard) == 23
    for name in shards.MATRICES:
        mapped = np.concatenate([getattr(block, name) for block in shard.blocks])
        assert np.array_equal(mapped, getattr(packs, name))
        assert not any(getattr(block, name).flags.owndata for block in shard.blocks)
    for number, block in enumerate(map_shard(path)[1]):
        same(block, shards.take(packs, slice(4 * number, 4 * number + 4)))


def test_an_empty_shard_is_a_shard(tmp_path: Path) -> None:
    write_shard(tmp_path / "s.parquet", no_packs(HEADER), HEADER)
    assert len(open_shard(tmp_path / "s.parquet")) == 0
    assert len(read_shard(tmp_path / "s.parquet")[1]) == 0
    assert list(foreign_rows(tmp_path / "s.parquet")) == []


def test_a_wide_context_makes_smaller_row_groups() -> None:
    assert [shards.row_group_rows(context) for context in (16, 2048, 8192, 1 << 20)] == [4096, 4096, 1024, 8]


def test_an_opened_shard_holds_one_descriptor_and_gives_it_back(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    write_shard(path, *packed(timelines([9] * 23)))

    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = descriptors()
    opened = [open_shard(path) for _ in range(20)]
    assert all(shard.small(0).length[0] == 9 for shard in opened)
    assert descriptors() == before + 20
    del opened
    assert descriptors() == before


def test_the_largest_ids_keep_their_value(tmp_path: Path) -> None:
    for dtype in ("uint16", "uint32"):
        largest = np.iinfo(dtype).max
        tokens = timelines([3]).with_columns(
            pl.lit(largest, pl.UInt32).alias("token_id"), pl.lit(1, pl.UInt8).alias("type")
        )
        write_shard(tmp_path / "s.parquet", *packed(tokens, replace(HEADER, token_dtype=dtype)))
        assert read_shard(tmp_path / "s.parquet")[1].input_ids[0, :3].tolist() == [largest] * 3


# --- times


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.lists(st.none() | st.integers(-(2**62) // MINUTE, 2**62 // MINUTE), min_size=1, max_size=6), max_size=5
    ),
    st.sampled_from([MINUTE, 1_000_000, 1_000, 1]),
    st.integers(-(10**17), 10**17),
)
def test_compact_times_are_exact(segments: list[list[int | None]], step: int, origin: int) -> None:
    flat = [NO_TIME if time is None else origin + time * step for segment in segments for time in segment]
    times, lengths = np.array(flat, np.int64), np.array([len(segment) for segment in segments], np.int64)
    small = compact_times(times, lengths)
    row = micros(small.values[None], np.array([len(flat)]), lengths, small.origins, small.unit_us)
    assert row[0].tolist() == flat


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=8))
def test_times_at_the_ends_of_the_world_are_exact_too(given_times: list[int]) -> None:
    times, lengths = np.array(given_times, np.int64), np.array([len(given_times)])
    small = compact_times(times, lengths)
    row = micros(small.values[None], lengths, lengths, small.origins, small.unit_us)
    assert row[0].tolist() == given_times


@pytest.mark.parametrize(
    ("times", "unit", "dtype"),
    [
        ([0, 3 * MINUTE, 10 * MINUTE], MINUTE, "int32"),
        ([7, 7 + MINUTE], MINUTE, "int32"),  # offsets count, not the times themselves
        ([0, 3 * MINUTE + 1_000_000], 1_000_000, "int32"),
        ([0, 1_000], 1_000, "int32"),
        ([0, 1], 1, "int32"),
        ([0, 2**31 - 1], 1, "int32"),
        ([0, 2**31], 1, "int64"),
        ([0, (2**31 - 1) * MINUTE], MINUTE, "int32"),
        ([NO_TIME, NO_TIME], MINUTE, "int32"),
    ],
)
def test_the_unit_is_the_coarsest_that_is_exact(times: list[int], unit: int, dtype: str) -> None:
    small = compact_times(np.array(times, np.int64), np.array([len(times)]))
    assert (small.unit_us, small.dtype) == (unit, dtype)
    assert unit in UNITS_US


def test_one_odd_second_among_a_million_minutes_decides_the_unit() -> None:
    lengths = np.full(3000, 1000)
    times = np.arange(3_000_000, dtype=np.int64) * MINUTE
    assert compact_times(times, lengths).unit_us == MINUTE
    times[-1] += 1_000_000
    small = compact_times(times, lengths)
    assert small.unit_us == 1_000_000
    restored = small.values.astype(np.int64) * small.unit_us + np.repeat(small.origins, lengths)
    assert np.array_equal(restored, times)


def test_times_take_four_bytes_a_token(tmp_path: Path) -> None:
    packs, header = packed(timelines([CONTEXT] * 8, step_us=MINUTE))
    assert (packs.time.dtype, header.time_unit_us) == (np.int32, MINUTE)
    wide, at_large = packed(timelines([CONTEXT] * 8, step_us=10**12 + 1))
    assert (wide.time.dtype, at_large.time_dtype) == (np.int64, "int64")
    with pytest.raises(ValueError, match="other types than the header says"):
        write_shard(tmp_path / "s.parquet", packs, at_large)


# --- damage


def test_a_flipped_byte_anywhere_in_the_data_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    packs, header = packed(timelines([11] * 40))
    write_shard(path, packs, header)
    whole = path.read_bytes()
    group = pq.ParquetFile(path).metadata.row_group(0)
    columns = [group.column(number) for number in range(group.num_columns)]
    places = [
        column.data_page_offset + column.total_compressed_size - 1 - shift for column in columns for shift in (0, 3)
    ]
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(TimeloomError, match=r"^shard s\.parquet is (corrupt|unreadable); run `timeloom repair`.*$"):
            read_shard(path)
    path.write_bytes(whole)
    same(read_shard(path)[1], packs)


def test_a_flipped_byte_of_a_small_column_is_noticed_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    write_shard(path, *packed(timelines([11] * 40)))
    raw = bytearray(path.read_bytes())
    metadata = pq.read_metadata(path)
    column = next(
        metadata.row_group(0).column(number)
        for number in range(metadata.num_columns)
        if metadata.schema.column(number).path.startswith("segment_subject")
    )
    raw[column.data_page_offset + column.total_compressed_size - 1] ^= 1
    path.write_bytes(raw)
    shard = open_shard(path)
    with pytest.raises(TimeloomError, match=r"shard s\.parquet is corrupt"):
        shard.small(0)


@pytest.mark.parametrize("kept", [0, 3, 200])
def test_a_truncated_shard_is_one_line(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "s.parquet"
    write_shard(path, *packed(timelines([11] * 4)))
    path.write_bytes(path.read_bytes()[:kept])
    for function in (read_shard, open_shard, read_header):
        with pytest.raises(TimeloomError, match=r"^shard s\.parquet is unreadable; run `timeloom repair`.*$"):
            function(path)


def test_a_shard_without_its_middle_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    write_shard(path, *packed(timelines([CONTEXT] * 400)))
    raw = path.read_bytes()
    path.write_bytes(raw[:100] + raw[-8000:])
    with pytest.raises(TimeloomError, match=r"^shard s\.parquet is (corrupt|unreadable); .*$"):
        shard = open_shard(path)
        shard.small(0)


@pytest.mark.whole
@pytest.mark.parametrize("seed", range(3))
def test_a_flipped_bit_anywhere_is_one_line_or_leaves_the_small_columns_right(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "s.parquet"
    write_shard(path, *packed(timelines([11] * 6)))
    whole, right = path.read_bytes(), open_shard(path).packs(0)
    rng = np.random.default_rng(seed)
    # The footer has the place of everything else; it starts where the last page ends.
    footer = len(whole) - int.from_bytes(whole[-8:-4], "little") - 8
    refused = 0
    for place in rng.integers(footer, len(whole), 300).tolist() + rng.integers(0, footer, 300).tolist():
        raw = bytearray(whole)
        raw[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(raw)
        try:
            read_shard(path)
            read = open_shard(path).packs(0)
        except TimeloomError as error:
            assert "\n" not in str(error)
            refused += 1
            continue
        assert len(read) == len(right)
    assert refused > 300


def with_header(path: Path, **changes: Any) -> None:
    table = pq.read_table(path)
    header = json.loads(table.schema.metadata[METADATA_KEY]) | changes
    pq.write_table(table.replace_schema_metadata({METADATA_KEY: json.dumps(header)}), path)


@pytest.mark.parametrize("extra", [{}, {"a_field_of_tomorrow": 1}])
def test_a_newer_format_is_refused_as_such(tmp_path: Path, extra: dict[str, Any]) -> None:
    path = tmp_path / "s.parquet"
    write_shard(path, *packed(timelines([5])))
    with_header(path, format_version=FORMAT_VERSION + 1, **extra)
    for function in (read_shard, open_shard):
        with pytest.raises(TimeloomError, match=r"^shard s\.parquet has format 3; upgrade timeloom$"):
            function(path)


def test_an_older_format_is_refused_as_such(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    write_shard(path, *packed(timelines([5])))
    with_header(path, format_version=1)
    for function in (read_shard, open_shard):
        with pytest.raises(TimeloomError, match=r"^shard s\.parquet has format 1, .* reads 2; run `timeloom run`.*$"):
            function(path)


def test_a_shard_rewritten_with_another_layout_is_not_mapped(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    write_shard(path, *packed(timelines([5] * 9)))
    for options in ({"compression": "zstd"}, {"use_dictionary": True}):
        pq.write_table(pq.read_table(path), tmp_path / "other.parquet", **options)
        with pytest.raises(TimeloomError, match="not laid out for mapping"):
            open_shard(tmp_path / "other.parquet")


def test_a_parquet_file_that_is_no_shard_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    pl.DataFrame({"a": [1]}).write_parquet(path)
    for function in (read_shard, open_shard):
        with pytest.raises(TimeloomError, match="is unreadable"):
            function(path)


def test_a_killed_write_leaves_no_shard(tmp_path: Path) -> None:
    packs, header = packed(timelines([5]))
    with pytest.raises(RuntimeError), shards.open_writer(tmp_path / "s.parquet", header) as writer:
        writer.write(packs)
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
