"""A bucket's rows in numbers: read, ordered, counted and written as the texts that they stand for would be."""

from collections import Counter
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extractors.events.converted import AVAILABILITY, CONVERTED
from extractors.events.times import PRECISIONS
from extractors.events.values import FLAGS
from pipelines.aligning import cells
from pipelines.aligning.bucket_rows import BIRTH, DEATH, KINDS, groups
from pipelines.aligning.columns import NONE_8, NONE_32, PieceColumns, masked, occurring, renumbered
from pipelines.aligning.gather import Gathered
from pipelines.aligning.left_out import LeftOut, further_births_and_deaths
from pipelines.aligning.segments import SCHEMA, STORED, frame_batch
from pipelines.aligning.statistics import subject_statistics
from tests.support.tokens.bucket_rows import narrow
from warehouse.arrays import NO_TIME
from warehouse.order import order_events, sort_events
from warehouse.parquet import conform
from warehouse.schemas import EVENTS, ITEMS

NOON = datetime(2020, 1, 1, 12)
COLUMNS = {**pl.DataFrame(pl.from_arrow(EVENTS.empty_table())).schema, "row_hash": pl.UInt64(), "rule": pl.UInt16()}


def few(*values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(values)


TIMES = few(
    None, NOON, NOON + timedelta(microseconds=1), datetime(1931, 1, 1), datetime(9999, 12, 31, 23, 59, 59, 999_999)
)
EVENT = st.fixed_dictionaries(
    {
        "subject_id": few(-(2**63), 1, 2, 2**63 - 1),
        "time": TIMES,
        "code": few("A", "é", BIRTH, DEATH),
        "numeric_value": few(None, 0.0, -1.5, 2.5, float("inf")),
        "text_value": few(None, "", "a", "é"),
        "available_time": TIMES,
        "time_precision": few(None, *PRECISIONS),
        "kind": few(*KINDS),
        "unit": few(None, "mg", "g"),
        "source": few("t", "u"),
        "visit_id": few(None, -7, 7),
        "item_key": few(None, None, "k", "j"),
        "availability": few(None, *AVAILABILITY[:3]),
        "value_flag": few(None, *FLAGS),
        "row_hash": few(1, 2, 2**64 - 1),
        "rule": few(0, 1),
    }
)
ROWS = st.lists(EVENT, min_size=1, max_size=25)
FIRST = {"subject_id": 1, "time": NOON, "code": "A", "time_precision": "s", "kind": "clinical", "source": "t"}
# Equal up to their source, and often further.
TIED_ROWS = st.lists(EVENT, min_size=2, max_size=25).map(lambda rows: [row | FIRST for row in rows])


def frame_of(rows: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame([{"conflict": None} | row for row in rows], schema=COLUMNS)


def written(rows: list[dict[str, Any]], order: np.ndarray[Any, Any]) -> pl.DataFrame:
    events, texts = narrow(frame_of(rows))
    conflict = np.full(len(order), NONE_8, np.uint8)
    frame = pl.from_arrow(conform(events.take(order).table(texts, conflict, ()), EVENTS, "events"))
    assert isinstance(frame, pl.DataFrame)
    return frame.with_columns(pl.col(pl.Categorical).cast(pl.String))


@pytest.mark.whole
@settings(max_examples=150, deadline=None)
@given(ROWS | TIED_ROWS, st.booleans())
def test_numbers_are_ordered_as_their_texts_are(rows: list[dict[str, Any]], in_parts: bool) -> None:
    rows = rows + rows[::3]
    frame = frame_of(rows)
    events, texts = narrow(frame)
    places = np.flatnonzero(np.arange(len(rows)) % 3) if in_parts else None
    order, again = events.order(texts, places)
    asked = frame if places is None else frame[places]
    expected, expected_again = order_events(asked)
    assert frame[order].equals(asked[expected])
    assert np.array_equal(again, expected_again)
    whole = frame[order].rows()
    assert again.tolist() == [place > 0 and row == whole[place - 1] for place, row in enumerate(whole)]


VALUES = {
    "numeric_value": (None, -2.5, -1.5, 0.0, 2.5, float("inf")),
    "text_value": (None, "", "B", "a", "é"),
    "unit": (None, "g", "mg"),
    "visit_id": (None, -7, 0, 7),
    "item_key": (None, "j", "k"),
    "time_precision": ("s", "us", "min"),
    "available_time": (None, datetime(1931, 1, 1), NOON),
    "availability": (None, *AVAILABILITY),
    "value_flag": (None, *FLAGS),
    "row_hash": (0, 1, 2**63, 2**64 - 1),
    "rule": (0, 1, 65535),
}


@pytest.mark.parametrize("column", VALUES)
def test_rows_that_differ_in_one_column_are_ordered_by_it(column: str) -> None:
    usual = dict.fromkeys(COLUMNS) | FIRST | {"row_hash": 1, "rule": 0}
    rows = [usual | {column: value} for value in VALUES[column]]
    for shuffled in (rows, rows[::-1], rows[1:] + rows[:1], rows * 2):
        events, texts = narrow(frame_of(shuffled))
        order, again = events.order(texts, None)
        assert [shuffled[place][column] for place in order] == frame_of(shuffled)[order_events(frame_of(shuffled))[0]][
            column
        ].to_list()
        assert again.sum() == len(shuffled) - len(rows)
        if column not in ("time_precision", "availability", "value_flag"):
            assert [shuffled[place] for place in order[~again]] == rows


@pytest.mark.whole
@settings(max_examples=100, deadline=None)
@given(ROWS, st.randoms(use_true_random=False))
def test_rows_are_written_as_the_texts_that_they_stand_for(rows: list[dict[str, Any]], random: Any) -> None:
    order = np.array(random.sample(range(len(rows)), random.randint(1, len(rows))), np.int64)
    assert written(rows, order).equals(frame_of(rows)[order].select(EVENTS.names))


def test_only_the_texts_that_stand_there_are_written() -> None:
    row = {"subject_id": 1, "code": "A", "kind": "clinical", "source": "t", "row_hash": 1, "rule": 0}
    events, texts = narrow(frame_of([dict.fromkeys(COLUMNS) | row | {"text_value": text} for text in ("a", "b", "c")]))
    table = events.take(np.array([2, 0], np.int64)).table(texts, np.full(2, NONE_8, np.uint8), ())
    assert sorted(table["text_value"].chunk(0).dictionary.to_pylist()) == ["a", "c"]


@pytest.mark.parametrize(("bytes_", "lengths"), [(1 << 20, [4]), (250, [3, 1]), (1, [1, 2, 1])])
def test_a_cell_of_large_texts_becomes_several_row_groups(
    bytes_: int, lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cells, "TEXT_BYTES", bytes_)
    usual = dict.fromkeys(COLUMNS) | FIRST | {"row_hash": 1, "rule": 0}
    rows = [usual | {"text_value": text and text * 100} for text in ("a", "b", None, "c")]
    events, texts = narrow(frame_of(rows))
    bounds = list(cells.row_group_bounds(events, texts, np.array([FIRST["subject_id"]])))
    assert [end - begin for begin, end in bounds] == lengths


# --- reading

PIECE = st.fixed_dictionaries(
    {
        "subject_id": st.integers(-(2**63), 2**63 - 1),
        "time": TIMES,
        "code": few(0, 5),
        "numeric_value": few(None, 1.5, float("nan")),
        "text_value": few(None, None, "", "a", "é"),
        "available_time": TIMES,
        "precision": few(None, 0, 5),
        "unit": few(None, 0, 2),
        "visit_id": few(None, -(2**63), 7),
        "rule": few(0, 65535),
        "availability": few(None, 0, 3),
        "flag": few(None, 1),
        "row_hash": st.integers(0, 2**64 - 1),
    }
)


@pytest.mark.whole
@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(PIECE, max_size=6), max_size=5), st.integers(0, 3), st.integers(0, 2))
def test_pieces_become_the_columns_that_they_are_of(pieces: list[list[Any]], more: int, skipped: int) -> None:
    columns = PieceColumns(sum(map(len, pieces)) + more)
    frames = []
    for rows in pieces:
        batch = (
            frame_batch(pl.DataFrame(rows, schema=CONVERTED).with_columns(block=pl.lit(0, pl.UInt32)))
            .cast(SCHEMA)
            .slice(skipped)
        )
        columns.add(batch)
        frames.append(pl.from_arrow(pa.Table.from_batches([batch], SCHEMA)))
    whole = pl.concat([pl.DataFrame(schema=STORED), *frames])
    assert columns.rows == len(whole)
    none = {"time": NO_TIME, "available_time": NO_TIME, "unit": NONE_32}
    none |= dict.fromkeys(("precision", "availability", "flag"), NONE_8)
    for name, found in columns.numbers.items():
        plain = whole[name].to_physical().to_numpy() if name not in none else None
        column = found[: len(whole)]
        if name in columns.known:
            known = columns.known[name][: len(whole)]
            assert known.tolist() == whole[name].is_not_null().to_list()
            assert pl.Series(masked(column, known)).equals(whole[name].to_physical())
        elif plain is None:
            assert column.tolist() == whole[name].to_physical().fill_null(none[name]).to_list()
        else:
            assert np.array_equal(column, plain)
    texts: list[str | None] = [None] * len(whole)
    for distinct, part in columns.pieces:
        assert len(set(distinct.to_pylist())) == len(distinct)
        for place in range(part.start, part.stop):
            texts[place] = None if columns.text[place] == NONE_32 else distinct[int(columns.text[place])].as_py()
    assert texts == whole["text_value"].to_list()


@given(st.lists(few(0, 3, 4, NONE_32)))
def test_numbers_get_the_places_of_those_that_occur(numbers: list[int]) -> None:
    asked = np.array(numbers, np.uint32)
    used = occurring(asked, 5)
    assert used.tolist() == sorted({*numbers} - {NONE_32})
    found = renumbered(asked, 5, used, np.arange(len(used)))
    assert found.tolist() == [NONE_32 if number == NONE_32 else used.tolist().index(number) for number in numbers]


def test_images_of_one_key_are_ordered_by_what_else_is_known_of_them() -> None:
    image = dict.fromkeys(ITEMS.names) | {"subject_id": 1, "modality": "ct", "verdict": "ok", "time_precision": "s"}
    late, early = datetime(2020, 1, 3), datetime(2020, 1, 2)
    known = [("k", late), ("j", late), ("k", early), ("k", late)]
    rows = [image | {"time": NOON, "item_key": key, "available_time": at} for key, at in known]
    for ordered in (rows, rows[::-1]):
        items = pl.DataFrame(ordered, schema=pl.DataFrame(pl.from_arrow(ITEMS.empty_table())).schema)
        found = Gathered.read([], items, {}, None, LeftOut().put)
        order, again = found.rows.order(found.texts, None)
        table = pl.from_arrow(found.rows.take(order).table(found.texts, np.full(4, NONE_8, np.uint8), ()))
        assert isinstance(table, pl.DataFrame)
        assert table.select("item_key", "available_time").rows() == [
            ("j", late),
            ("k", early),
            ("k", late),
            ("k", late),
        ]
        assert again.tolist() == [False, False, False, True]


# --- counting


@given(st.lists(st.tuples(few(1, 2), few(1, 2, 3)), max_size=12))
def test_rows_are_brought_together_by_their_keys(rows: list[tuple[int, int]]) -> None:
    order, starts = groups(*(np.array([row[place] for row in rows], np.int64) for place in range(2)))
    assert order.tolist() == sorted(range(len(rows)), key=lambda place: (rows[place], place))
    ordered = [rows[place] for place in order]
    assert starts.tolist() == [n for n, row in enumerate(ordered) if n == 0 or row != ordered[n - 1]]


@pytest.mark.whole
@settings(max_examples=150, deadline=None)
@given(ROWS)
def test_subjects_are_counted_as_a_plain_search_does(rows: list[dict[str, Any]]) -> None:
    frame = sort_events(frame_of(rows))
    found = subject_statistics(*narrow(frame)).rows(named=True)
    plain = []
    for subject in sorted({row["subject_id"] for row in rows}):
        record = [row for row in rows if row["subject_id"] == subject]
        timed = [row["time"] for row in record if row["time"] is not None and row["code"] != BIRTH]
        gaps, span = len({*timed}) - 1, (max(timed) - min(timed)) / timedelta(days=1) if timed else 0
        static = sum(row["time"] is None for row in record)
        mean = pytest.approx(span / gaps) if gaps > 0 else None
        plain.append({"subject_id": subject, "events": len(timed), "static_events": static, "mean_interval_days": mean})
    assert found == plain


@pytest.mark.whole
@settings(max_examples=150, deadline=None)
@given(ROWS)
def test_the_earliest_birth_and_death_of_each_subject_stay(rows: list[dict[str, Any]]) -> None:
    frame = sort_events(frame_of(rows))
    further = further_births_and_deaths(*narrow(frame)).tolist()
    events = frame.rows(named=True)
    assert not any(extra for extra, event in zip(further, events, strict=True) if event["code"] not in (BIRTH, DEATH))
    for subject, code in {(event["subject_id"], event["code"]) for event in events if event["code"] in (BIRTH, DEATH)}:
        events_of_code = [
            n for n, event in enumerate(events) if (event["subject_id"], event["code"]) == (subject, code)
        ]
        timed = [n for n in events_of_code if events[n]["time"] is not None]
        assert [n for n in events_of_code if not further[n]] == (timed or events_of_code)[:1]


@pytest.mark.whole
@settings(max_examples=150, deadline=None)
@given(ROWS, st.lists(st.booleans(), min_size=25, max_size=25))
def test_what_is_taken_out_is_counted_by_raw_row(rows: list[dict[str, Any]], drawn: list[bool]) -> None:
    frame = frame_of(rows)
    events, texts = narrow(frame)
    surplus = np.array(drawn[: len(rows)])
    account = LeftOut()
    account.put_surplus("r", events, surplus, texts)
    plain: dict[str, Counter[str]] = {}

    def raw(row: dict[str, Any]) -> tuple[Any, ...]:
        return row["subject_id"], row["source"], row["row_hash"]

    for row_raw in {raw(row) for row, gone in zip(rows, drawn, strict=False) if gone}:
        gone = [row for row, out in zip(rows, drawn, strict=False) if out and raw(row) == row_raw]
        left = [row for row, out in zip(rows, drawn, strict=False) if not out and raw(row) == row_raw]
        of = plain.setdefault(row_raw[1], Counter())
        of["events"] += len(gone)
        if not left:
            # As many rows as the first rule made events.
            number = sum(row["rule"] == min(row["rule"] for row in gone) for row in gone)
            of["rows"] += number
            of["timed"] += number * any(row["time"] is not None for row in gone)
        else:
            of["timed"] += all(row["time"] is None for row in left)
    assert account.counts.get("r", {}) == {
        source: {name: of[name] for name in ("rows", "events", "timed")} for source, of in plain.items()
    }


def test_texts_are_written_in_the_order_of_the_rows_whatever_numbers_they_have() -> None:
    rows = [{**FIRST, "text_value": text} for text in ("b", None, "é", "b", "a", "é")]
    narrowed, texts = narrow(pl.DataFrame(rows, schema=COLUMNS).with_columns(pl.col("row_hash", "rule").fill_null(1)))
    last = np.uint32(len(texts.values) - 1)
    other = replace(narrowed, text=np.where(narrowed.text == NONE_32, NONE_32, last - narrowed.text).astype(np.uint32))
    turned = replace(texts, values=texts.values[::-1])
    conflict = np.full(len(rows), NONE_8, np.uint8)
    for made, of in ((narrowed, texts), (other, turned)):
        column = made.table(of, conflict, ("x",)).column("text_value").combine_chunks()
        assert column.to_pylist() == [row["text_value"] for row in rows]
        assert column.dictionary.to_pylist() == ["b", "é", "a"]
