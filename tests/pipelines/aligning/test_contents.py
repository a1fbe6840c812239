"""What a subject is made of: a number that any row, rule, lag and item changes, and that no order does."""

from datetime import datetime
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from extractors.events.converted import AWAITED, CONVERTED, RECORDED
from pipelines.aligning.contents import ContentSums, SegmentHashes
from pipelines.aligning.segments import frame_batch
from warehouse.parquet import empty_frame
from warehouse.schemas import ITEMS

SEGMENT = {"source": "labs", "rules": "r", "kinds": ["clinical", "clinical"]}
CODES = pa.array(["A", "B"], pa.large_string())
ROWS = [(1, 10, 0, RECORDED, 0), (1, 11, 1, AWAITED, 1), (2, 10, 0, AWAITED, 0), (2, 12, 0, RECORDED, 0)]
LAGS = {"labs": {"A": 50, "B": 60}}
ITEM = {
    "subject_id": 1, "item_key": "i", "modality": "ct", "time": datetime(2020, 1, 1),
    "available_time": datetime(2020, 1, 2), "time_precision": "s", "verdict": "ok",
    "units_encoded": 1, "units_failed": 0, "artificial_link": False,
}  # fmt: skip


def made_of(
    *parts: list[tuple[int, ...]],
    segment: dict[str, Any] = SEGMENT,
    lags: dict[str, dict[str, int]] = LAGS,
    items: list[dict[str, Any]] | None = None,
) -> dict[int, tuple[int, int, int]]:
    """By subject both halves of the hash and the rows, of batches of (subject, hash, rule, availability, code)."""
    sums, hashes = ContentSums(), SegmentHashes(segment, CODES, lags)
    for part in parts:
        names = ("subject_id", "row_hash", "rule", "availability", "code")
        values = dict(zip(names, zip(*part, strict=True), strict=True))
        frame = pl.DataFrame({name: pl.Series(list(values[name]), dtype=CONVERTED[name]) for name in names})
        frame = frame.select(
            pl.col(name) if name in names else pl.lit(None, kind).alias(name) for name, kind in CONVERTED.items()
        )
        batch = frame_batch(frame)
        sums.add(batch.column("subject_id").to_numpy(), hashes.of(batch))
    if items is not None:
        sums.add_items(pl.DataFrame(items, empty_frame(ITEMS).schema))
    total = sums.total()
    halves = total.hashes.tolist()
    return {subject: (*halves[place], int(total.rows[place])) for place, subject in enumerate(total.subjects.tolist())}


def test_neither_the_order_of_rows_nor_their_parts_count() -> None:
    whole = made_of(ROWS)
    assert whole == made_of(ROWS[::-1]) == made_of([ROWS[2], ROWS[0]], [ROWS[1]], [ROWS[3]])
    assert [rows for *_, rows in whole.values()] == [2, 2]


@pytest.mark.parametrize(
    ("row", "changed"),
    [(0, (1, 99, 0, RECORDED, 0)), (0, (1, 10, 1, RECORDED, 0)), (2, (2, 10, 0, AWAITED, 1))],
    ids=["row", "rule", "awaited lag"],
)
def test_a_changed_row_changes_its_subject_alone(row: int, changed: tuple[int, ...]) -> None:
    before, now = made_of(ROWS), made_of([changed if place == row else r for place, r in enumerate(ROWS)])
    assert [subject for subject in before if before[subject][:2] != now[subject][:2]] == [changed[0]]


def test_a_row_that_stands_there_once_more_counts() -> None:
    before, now = made_of(ROWS), made_of([*ROWS, ROWS[3]])
    assert before[1] == now[1] and before[2] != now[2]


@pytest.mark.parametrize("key", ["source", "rules"])
def test_other_rules_of_a_table_change_those_who_have_rows_in_it(key: str) -> None:
    lags = LAGS | {"other": LAGS["labs"]}
    before, now = made_of(ROWS, lags=lags), made_of(ROWS, segment=SEGMENT | {key: "other"}, lags=lags)
    assert all(before[subject][0] != now[subject][0] and before[subject][1] != now[subject][1] for subject in (1, 2))


def test_another_lag_changes_those_who_await_it() -> None:
    before, now = made_of(ROWS), made_of(ROWS, lags={"labs": {"A": 50, "B": 61}})
    assert before[1] != now[1] and before[2] == now[2]
    assert made_of(ROWS, lags={"labs": {"B": 60}})[2] != before[2], "a lag that is new"


@pytest.mark.parametrize(
    "changed",
    [
        {"item_key": "j"}, {"modality": "wsi"}, {"time": datetime(2020, 1, 3)}, {"time": None}, {"verdict": "failed_x"},
        {"available_time": None}, {"time_precision": "day"}, {"subject_id": 2},
    ],
    ids=str,
)  # fmt: skip
def test_a_changed_item_changes_its_subject(changed: dict[str, Any]) -> None:
    before, now = made_of(ROWS, items=[ITEM]), made_of(ROWS, items=[ITEM | changed])
    assert before[1][:2] != now[1][:2]
    assert made_of(ROWS, items=[ITEM | {"verdict": "refused_x"}]) == made_of(ROWS)


def test_who_has_an_item_without_a_time_alone_has_no_events() -> None:
    lone = ITEM | {"subject_id": 7, "time": None}
    assert made_of(ROWS, items=[lone]) == made_of(ROWS)
    assert made_of(ROWS, items=[lone, ITEM | {"subject_id": 7}])[7][2] == 1
    assert np.uint64(made_of(ROWS)[1][0]) != 0
