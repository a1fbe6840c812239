"""The total order of events: one answer for any input order, and who comes first at equal times."""

import itertools
from datetime import datetime
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warehouse.order import KIND_RANK, PRECISION_RANK, sort_events
from warehouse.schemas import EVENTS

NOON, NIGHT = datetime(2020, 1, 1, 12), datetime(2020, 1, 1, 23, 59, 59, 999_999)
EMPTY = pl.DataFrame(pl.from_arrow(EVENTS.empty_table()))


def events(*rows: dict[str, Any]) -> pl.DataFrame:
    usual = {"subject_id": 1, "time": NOON, "code": "X", "kind": "clinical", "source": "t", "time_precision": "s"}
    filled = [dict.fromkeys(EVENTS.names) | usual | row for row in rows]
    for row in filled:
        row["available_time"] = row["available_time"] or row["time"]
    return pl.DataFrame(filled, schema=EMPTY.schema)


def few(*values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(values)


ROW = st.fixed_dictionaries(
    {
        "subject_id": few(1, 2),
        "time": few(None, NOON, NIGHT),
        "available_time": few(NOON, NIGHT),
        "code": few("A", "B"),
        "kind": few(*KIND_RANK),
        "source": few("t", "u"),
        "time_precision": few(None, *PRECISION_RANK),
        "numeric_value": few(None, 1.0, 2.0),
        "text_value": few(None, "a"),
        "unit": few(None, "mg"),
        "visit_id": few(None, 7),
        "item_key": few(None, "k"),
    }
)


@settings(max_examples=150, deadline=None)
@given(st.lists(ROW, max_size=12), st.randoms(use_true_random=False), st.sampled_from(["time", "available_time"]))
def test_any_shuffle_gives_the_same_rows(rows: list[dict[str, Any]], random: Any, by: str) -> None:
    first = sort_events(events(*rows), by=by)
    again = sort_events(events(*random.sample(rows, len(rows))), by=by)
    assert first.equals(again)
    assert first["subject_id"].is_sorted()


@pytest.mark.parametrize("column", [name for name in EVENTS.names if name != "subject_id"])
def test_rows_that_differ_in_one_column_alone_have_one_order(column: str) -> None:
    other = {
        "time": NIGHT, "available_time": NIGHT, "kind": "image", "time_precision": "min", "numeric_value": 1.0,
        "visit_id": 3,
    }.get(column, "other")  # fmt: skip
    rows = [{"available_time": NOON}, {"available_time": NOON, column: other}]
    for by in ("time", "available_time"):
        assert sort_events(events(*rows), by=by).equals(sort_events(events(*rows[::-1]), by=by))


def test_kinds_at_one_time() -> None:
    rank = ["visit_start", "clinical", "image", "death", "visit_end"]
    for some in itertools.permutations(rank):
        # Codes that would sort the other way, so that the kind decides.
        frame = events(*({"kind": kind, "code": f"{9 - rank.index(kind)}"} for kind in some))
        assert sort_events(frame)["kind"].to_list() == rank
        assert sort_events(frame, by="available_time")["kind"].to_list() == rank


def test_coarser_times_come_after_exact_ones_of_the_same_moment() -> None:
    rank = ["s", "day", "month", "year"]
    for some in itertools.permutations(rank):
        frame = events(*({"time": NIGHT, "time_precision": one, "kind": "visit_start"} for one in some if one != "s"))
        exact = events({"time": NIGHT, "time_precision": "s", "kind": "visit_end"})
        assert sort_events(pl.concat([frame, exact]))["time_precision"].to_list() == rank


def test_a_date_comes_after_every_moment_of_its_day() -> None:
    frame = events({"time": NIGHT, "time_precision": "day", "code": "A"}, {"time": NOON, "code": "Z"})
    assert sort_events(frame)["code"].to_list() == ["Z", "A"]


def test_a_date_that_is_known_at_discharge_stands_before_the_discharge() -> None:
    # A procedure's date is coarse, but the moment it becomes available is exact: the visit ends after it.
    late = datetime(2020, 1, 5, 9)
    frame = events(
        {"code": "PROCEDURE", "time": NIGHT, "time_precision": "day", "available_time": late},
        {"code": "DISCHARGE", "time": late, "kind": "visit_end"},
        {"code": "IMAGE/CT", "time": late, "kind": "image"},
    )
    assert sort_events(frame, by="available_time")["code"].to_list() == ["PROCEDURE", "IMAGE/CT", "DISCHARGE"]


def test_static_facts_come_first_then_time() -> None:
    frame = events({"time": datetime(1931, 1, 1)}, {"time": None, "code": "Z"}, {"time": NOON})
    assert sort_events(frame)["time"].to_list() == [None, datetime(1931, 1, 1), NOON]


def test_codes_then_sources_break_ties() -> None:
    frame = events(*({"code": code, "source": source} for code, source in itertools.product("BA", "ba")))
    assert sort_events(frame).select("code", "source").rows() == [("A", "a"), ("A", "b"), ("B", "a"), ("B", "b")]
