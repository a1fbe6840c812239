"""The total order of events: one result for any input order, and the order at equal times."""

import itertools
from datetime import datetime
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warehouse.arrays import NO_TIME
from warehouse.order import KIND_RANK, PRECISION_RANK, order_events, sort_events
from warehouse.schemas import EVENTS
from warehouse.sort_keys import float_keys, pack, ranks, steps

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
        "availability": few(None, "recorded", "time"),
        "value_flag": few(None, "<"),
        "conflict": few(None, "after_death"),
    }
)


@pytest.mark.whole
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
    rows: list[dict[str, Any]] = [{"available_time": NOON}, {"available_time": NOON, column: other}]
    for by in ("time", "available_time"):
        assert sort_events(events(*rows), by=by).equals(sort_events(events(*rows[::-1]), by=by))


def test_kinds_at_one_time() -> None:
    rank = ["visit_start", "clinical", "image", "death", "visit_end"]
    for permutation in itertools.permutations(rank):
        # These codes would sort the other way, so the kind decides.
        frame = events(*({"kind": kind, "code": f"{9 - rank.index(kind)}"} for kind in permutation))
        assert sort_events(frame)["kind"].to_list() == rank
        assert sort_events(frame, by="available_time")["kind"].to_list() == rank


def test_coarser_times_come_after_exact_ones_of_the_same_moment() -> None:
    rank = ["s", "day", "month", "year"]
    for permutation in itertools.permutations(rank):
        frame = events(
            *(
                {"time": NIGHT, "time_precision": precision, "kind": "visit_start"}
                for precision in permutation
                if precision != "s"
            )
        )
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


# --- against Python's own sort

NIGHTS = few(None, NOON, NIGHT, datetime(1931, 1, 1), datetime(1969, 12, 31, 23, 59, 59, 999_999), datetime(9900, 1, 1))
WIDE_ROW = st.fixed_dictionaries(
    {
        "subject_id": few(-(2**63), -1, 0, 1, 2**62, 2**63 - 1),
        "time": NIGHTS,
        "available_time": NIGHTS,
        "code": few("A", "AB", "B", "b", "\u00e9", "Z"),
        "kind": few(*KIND_RANK),
        "source": few("t", "u"),
        "time_precision": few(None, *PRECISION_RANK),
        "numeric_value": few(None, -1.0, 0.0, 2.5),
        "text_value": few(None, "", "a"),
        "visit_id": few(None, -7, 7),
        "value_flag": few(None, "<"),
    }
)
TIES = ["numeric_value", "text_value", "unit", "visit_id", "item_key", "time_precision"]
LAST = ["availability", "value_flag", "conflict"]


def null_first(value: Any) -> tuple[bool, Any]:
    return value is not None, 0 if value is None else value


def plain_key(row: dict[str, Any], by: str) -> list[Any]:
    other = "available_time" if by == "time" else "time"
    exact = by != "time" and row["time"] != row["available_time"]
    precision = 0 if exact or row["time_precision"] is None else PRECISION_RANK[row["time_precision"]]
    first = [row["subject_id"], null_first(row[by]), precision, KIND_RANK[row["kind"]], row["code"], row["source"]]
    return [*first, *(null_first(row[name]) for name in [*TIES, other, *LAST])]


@settings(max_examples=150, deadline=None)
@given(st.lists(WIDE_ROW, max_size=25), st.sampled_from(["time", "available_time"]), st.booleans())
def test_the_order_is_that_of_a_plain_sort(rows: list[dict[str, Any]], by: str, as_enumerations: bool) -> None:
    frame = pl.DataFrame([dict.fromkeys(EVENTS.names) | row for row in rows], schema=EMPTY.schema)
    asked = frame
    if as_enumerations:
        texts = ["code", "source", "kind", "time_precision", "value_flag"]
        kinds = {name: pl.Enum(sorted({*frame[name].drop_nulls(), "unused"})) for name in texts}
        asked = frame.cast(kinds)  # type: ignore[arg-type]
    order, again = order_events(asked, by)
    expected = sorted(frame.rows(named=True), key=lambda row: plain_key(row, by))
    assert sorted(order.tolist()) == list(range(len(rows)))
    assert frame[order].rows(named=True) == expected
    assert again.tolist() == [place > 0 and row == expected[place - 1] for place, row in enumerate(expected)]


INTEGERS = st.one_of(
    st.integers(-3, 3),
    st.sampled_from([-(2**63), 2**63 - 1, 0]),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(0, 2**40),
)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 6).flatmap(lambda width: st.lists(st.tuples(*[INTEGERS] * width), min_size=1, max_size=30)))
def test_packed_keys_compare_as_the_keys_do(rows: list[tuple[int, ...]]) -> None:
    packed = pack([np.array(column, np.int64) for column in zip(*rows, strict=True)]).tolist()
    assert min(packed) >= 0
    for (combination, first), (other, second) in itertools.combinations(zip(rows, packed, strict=True), 2):
        assert (combination < other, combination == other) == (first < second, first == second)


SUBJECTS = st.sampled_from([10, 2**40]).flatmap(lambda far: st.lists(st.integers(-far, far), min_size=1, max_size=40))


@settings(max_examples=150, deadline=None)
@given(
    SUBJECTS, st.integers(1, 30), st.sampled_from([2**30, 2**52, 2**61]), st.sampled_from([3, 300, 2**21]), st.data()
)
def test_many_packed_keys_order_as_the_keys_do(
    subjects: list[int], each: int, times: int, codes: int, data: st.DataObject
) -> None:
    # Sorted in runs, as exports are, or not; narrow and wide keys, so that every way of saving bits is used.
    rows = len(subjects) * each
    random = np.random.default_rng(data.draw(st.integers(0, 9)))
    subject = np.repeat(np.array(subjects, np.int64), each)
    if data.draw(st.booleans()):
        subject = random.permutation(subject)
    keys = [
        subject,
        random.integers(-times, times, rows),
        random.integers(0, 4, rows).astype(np.uint8),
        random.integers(0, codes, rows).astype(np.uint32),
        random.integers(0, 30, rows).astype(np.uint16),
    ]
    for key in keys:
        key[random.random(rows) < 0.5] = key[0]
    packed = pack(keys)
    assert np.array_equal(np.argsort(packed, kind="stable"), np.lexsort(keys[::-1]))
    equal = np.all([key[:, None] == key[None] for key in keys], axis=0)
    assert np.array_equal(packed[:, None] == packed[None], equal)


BESIDE_SECONDS = st.integers(-30, 30).map(lambda n: n // 3 * 1_000_000 + n % 3 - 1)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.just(NO_TIME) | BESIDE_SECONDS | st.integers(-(2**62), 2**62), min_size=1),
    st.lists(BESIDE_SECONDS, min_size=1),
    st.lists(st.integers(-50, 50).map(lambda n: n // 2 * 1_000_000 - n % 2), min_size=1),
)
def test_steps_order_as_the_times_do(times: list[int], beside: list[int], whole_seconds: list[int]) -> None:
    for moments in (times, beside, whole_seconds, [*whole_seconds, NO_TIME]):
        number = steps(np.array(moments, np.int64)).tolist()
        for (combination, first), (other, second) in itertools.combinations(zip(moments, number, strict=True), 2):
            assert (combination < other, combination == other) == (first < second, first == second)
    # Whole seconds and what is just before them are numbered without gaps in between.
    span = max(whole_seconds) - min(whole_seconds)
    numbered = steps(np.array(whole_seconds, np.int64))
    assert numbered.max() - numbered.min() <= span / 500_000 + 1


@given(st.lists(st.floats(width=32), max_size=20))
def test_keys_of_numbers_order_as_the_numbers_do(numbers: list[float]) -> None:
    keys = float_keys(np.array(numbers, np.float32)).tolist()
    for (combination, first), (other, second) in itertools.combinations(zip(numbers, keys, strict=True), 2):
        if combination == combination and other == other:
            assert (combination < other, combination == other) == (first < second, first == second)
        else:
            assert (combination == combination) == (first < second) if other != other else first > second


def test_no_rows_pack_to_none() -> None:
    assert len(pack([np.zeros(0, np.int64)] * 3)) == 0
    assert len(sort_events(EMPTY)) == 0


@settings(max_examples=100, deadline=None)
@given(st.lists(st.none() | st.text("ab\u00e9Z", max_size=2), min_size=1, max_size=15))
def test_ranks_are_those_of_the_texts_and_null_is_below_them(texts: list[str | None]) -> None:
    plain = pl.Series(texts, dtype=pl.String)
    number = {text: place for place, text in enumerate(sorted({text for text in texts if text is not None}))}
    assert ranks(plain).tolist() == [-1 if text is None else number[text] for text in texts]
    # Texts that are in an enumeration but in no row do not change the order of rows.
    listed = plain.cast(pl.Enum(sorted({*number, "a", "zz"})))
    assert np.array_equal(np.argsort(ranks(listed), kind="stable"), np.argsort(ranks(plain), kind="stable"))
    assert ranks(plain, {"a": 3, "b": 1}).tolist() == [{"a": 3, "b": 1}.get(text or "", 0) for text in texts]
    assert ranks(listed, {"a": 3, "b": 1}).tolist() == ranks(plain, {"a": 3, "b": 1}).tolist()
