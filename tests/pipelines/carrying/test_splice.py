"""Row groups are copied as they are: the file has the bytes that pyarrow writes when it is handed all of it."""

from datetime import datetime
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.carrying.footer import Footer
from pipelines.carrying.splice import splice
from warehouse.parquet import empty_frame, read_frame, write_tables
from warehouse.schemas import CONTENTS, EVENTS, TIMELINES

SCHEMAS = {"events": EVENTS, "timelines": TIMELINES, "contents": CONTENTS}


def group(name: str, number: int, rows: int) -> pl.DataFrame:
    """Rows of a schema that differ by a number; large numbers need more bytes in a footer."""
    frame = empty_frame(SCHEMAS[name])
    values = {"subject_id": [number * 10**9 + row for row in range(rows)]}
    if name == "events":
        values |= {"code": [f"C{number}-{row % 3}" for row in range(rows)], "kind": ["clinical"] * rows}
        values |= {"source": ["t"] * rows, "text_value": ["x" * (number * 50)] * rows}
        values |= {"time": [datetime(2020, 1, 1 + number % 20)] * rows}
    elif name == "timelines":
        values |= {"token_id": [number] * rows, "type": [1] * rows}
    else:
        values |= {"rows": [number] * rows, "low": [number] * rows, "high": [1] * rows}
    return pl.DataFrame(values, schema_overrides={k: v for k, v in frame.schema.items() if k in values}).select(
        pl.col(column) if column in values else pl.lit(None, frame.schema[column]).alias(column)
        for column in frame.columns
    )


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(sorted(SCHEMAS)),
    st.lists(st.tuples(st.booleans(), st.integers(1, 9), st.sampled_from([1, 7, 3000])), max_size=20),
)
def test_a_spliced_file_is_the_file_that_is_written_whole(
    tmp_path_factory: pytest.TempPathFactory, name: str, wanted: list[tuple[bool, int, int]]
) -> None:
    folder, schema = tmp_path_factory.mktemp("spliced"), SCHEMAS[name]
    frames = [group(name, number, rows) for _, number, rows in wanted]
    old = [frame for frame, (is_old, *_) in zip(frames, wanted, strict=True) if is_old]
    new = [frame for frame, (is_old, *_) in zip(frames, wanted, strict=True) if not is_old]
    # What is not copied stands before, between and behind what is.
    padded = [frame for each in old for frame in (group(name, 3, 5), each)] + [group(name, 2, 2)]
    write_tables(folder / "whole", frames, schema, "rows")
    write_tables(folder / "old", padded, schema, "rows")
    write_tables(folder / "new", new, schema, "rows")
    places = {True: iter(range(1, len(padded), 2)), False: iter(range(len(new)))}
    rows = splice(folder / "made", folder / "new", folder / "old", [(o, next(places[o])) for o, *_ in wanted])
    assert rows == sum(rows for *_, rows in wanted)
    assert (folder / "made").read_bytes() == (folder / "whole").read_bytes()
    if frames:
        assert read_frame(folder / "made").equals(pl.concat(frames))


def test_a_footer_says_where_row_groups_lie(tmp_path: Path) -> None:
    write_tables(tmp_path / "f", [group("events", number, 400) for number in range(5)], EVENTS, "rows")
    footer, said = Footer.read(tmp_path / "f"), pq.ParquetFile(tmp_path / "f").metadata
    assert len(footer.groups) == said.num_row_groups
    for number, found in enumerate(footer.groups):
        columns = [said.row_group(number).column(column) for column in range(said.num_columns)]
        assert found.rows == said.row_group(number).num_rows
        assert found.end - found.begin == sum(column.total_compressed_size for column in columns)
        first = columns[0]
        assert found.begin == min(place for place in (first.dictionary_page_offset, first.data_page_offset) if place)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\x00" * 20, b"PAR1\x00\x01\x00\x00\x00PAR1"])
def test_what_is_no_parquet_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(ValueError, match=r"Parquet|form"):
        Footer.read(tmp_path / "f")
