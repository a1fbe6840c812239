"""Contradictions in a subject's events: each is marked and counted, and nothing is repaired."""

import random
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extractors.events.times import PRECISIONS
from pipelines.aligning.columns import NONE_8
from pipelines.aligning.conflicts import CONFLICTS, differing_statics, earliest, find_conflicts
from pipelines.engine.context import StageReport
from pipelines.metadata import ledger_rows
from tests.support.raw.raw_tables import NO_ITEMS, align_one, aligned_events, convert_text, csv_text
from tests.support.tokens.bucket_rows import narrow
from validation.measure.ledger import balance
from warehouse.arrays import NO_TIME
from warehouse.layout import ReleaseLayout
from warehouse.manifest import TaskEntry
from warehouse.order import sort_events
from warehouse.schemas import EVENTS, LEDGER

SEGMENT = "t-t.csv.segment"
# One table of life: births, deaths, visits and what happens between.
RULE: dict[str, Any] = {
    "events": [
        {"code": "MEDS_BIRTH", "time": "born"},
        {"code": "MEDS_DEATH", "time": "died", "kind": "death"},
        {"code": "ADMISSION", "time": "started", "kind": "visit_start"},
        {"code": "DISCHARGE", "time": "ended", "kind": "visit_end"},
        {"code": "LAB", "time": "at"},
        {"code": "SEX", "where": "sex IS NOT NULL"},
    ]
}
FIELDS = ["pid", "born", "died", "started", "ended", "at", "sex", "note"]


def day(number: int) -> str:
    return f"{datetime(2020, 1, 1) + timedelta(days=number):%Y-%m-%d %H:%M:%S}"


def row(pid: int = 1, **fields: Any) -> list[Any]:
    values = {name: day(value) if isinstance(value, int) else value for name, value in fields.items()}
    return [pid, *(values.get(name) for name in FIELDS[1:])]


def aligned(work: Path, rows: list[list[Any]], items: pl.DataFrame = NO_ITEMS) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Events of both buckets, and their counts added up."""
    _, counts = convert_text(work, RULE, csv_text(FIELDS, rows))
    conflicts: Counter[str] = Counter()
    frames = []
    for bucket in range(2):
        result = align_one(work, {SEGMENT: counts}, bucket, items)
        conflicts.update(result.counts["conflicts"])
        frames.append(aligned_events(work, bucket))
    return pl.concat(frames), {name: number for name, number in conflicts.items() if number}


def marked(events: pl.DataFrame) -> list[tuple[str, int, str]]:
    """Code, day and conflict of every event that has one."""
    days = (pl.col("time") - datetime(2020, 1, 1)).dt.total_days()
    return sorted(events.drop_nulls("conflict").select("code", days, "conflict").rows())


ANCHORED: dict[str, Any] = {
    "events": [
        {"code": "MEDS_BIRTH", "time": "born"},
        {"code": "ADMISSION", "time": {"column": "started", "anchor": "start"}, "kind": "visit_start"},
        {"code": "DISCHARGE", "time": "ended", "kind": "visit_end"},
    ]
}


def test_a_stay_that_starts_its_day_is_not_too_early(tmp_path: Path) -> None:
    """Born at noon and admitted that day; discharged at noon and admitted again that day, then a day too early."""
    rows = [
        row(born="2020-01-01 12:00:00"),
        row(started="2020-01-01", ended="2020-01-05 12:00:00"),
        row(started="2020-01-05", ended="2020-01-09 12:00:00", note="b"),
        row(started="2020-01-08", ended="2020-01-11 12:00:00", note="c"),
    ]
    _, counts = convert_text(tmp_path, ANCHORED, csv_text(FIELDS, rows))
    conflicts: Counter[str] = Counter()
    for bucket in range(2):
        conflicts.update(align_one(tmp_path, {SEGMENT: counts}, bucket).counts["conflicts"])
    assert {name: number for name, number in conflicts.items() if number} == {"overlapping_visit": 1}


DRUGS: dict[str, Any] = {
    "events": [
        {"code": "RXNORM/1", "time": "started"},
        {"code": "DRUG_END/RXNORM/1", "time": "ended"},
        {"code": "LEGEND/1", "time": "at"},
    ]
}


@pytest.mark.parametrize(
    ("started", "ended", "wrong"),
    [
        ("2020-01-05 10:00:00", "2020-01-05 09:00:00", True),
        ("2020-01-05 10:00:00", "2020-01-05 10:00:00", False),
        ("2020-01-05", "2020-01-04", True),
        # Of the same day nothing is known, nor of an end whose start is not there.
        ("2020-01-05", "2020-01-05 00:00:01", False),
        ("2020-01-05 10:00:00", "2020-01-05", False),
        (None, "2020-01-05", False),
    ],
)
def test_a_drug_that_ends_before_it_starts_is_a_conflict(
    tmp_path: Path, started: str | None, ended: str, *, wrong: bool
) -> None:
    # Another row of the same patient, and another patient, are no part of it.
    rows = [row(started=started, ended=ended), row(started="2021-01-01", note="b"), row(2, at="2022-01-01 00:00:00")]
    rows.append(row(2, ended="2019-01-01"))
    _, counts = convert_text(tmp_path, DRUGS, csv_text(FIELDS, rows))
    conflicts: Counter[str] = Counter()
    frames = []
    for bucket in range(2):
        conflicts.update(align_one(tmp_path, {SEGMENT: counts}, bucket).counts["conflicts"])
        frames.append(aligned_events(tmp_path, bucket))
    marked_codes = pl.concat(frames).drop_nulls("conflict").select("code", "conflict").rows()
    assert marked_codes == ([("DRUG_END/RXNORM/1", "end_before_start")] if wrong else [])
    assert conflicts["end_before_start"] == int(wrong)


PLAIN = [
    row(born=0, sex="F"), row(died=50), row(started=10, ended=20), row(started=20, ended=30, note="b"), row(at=15),
    row(at=50), row(at=0), row(2, at=99), row(2, at=-99),
]  # fmt: skip


def test_a_life_without_contradictions_has_no_marks(tmp_path: Path) -> None:
    events, conflicts = aligned(tmp_path, PLAIN)
    assert conflicts == {}
    assert events["conflict"].null_count() == len(events) == 12


@pytest.mark.whole
@pytest.mark.parametrize(
    ("more", "marks"),
    [
        ([row(at=-1)], [("LAB", -1, "before_birth")]),
        ([row(at=51), row(at=52)], [("LAB", 51, "after_death"), ("LAB", 52, "after_death")]),
        ([row(started=44, ended=40)], [("DISCHARGE", 40, "end_before_start")]),
        ([row(started=15, ended=25)], [("ADMISSION", 15, "overlapping_visit"), ("ADMISSION", 20, "overlapping_visit")]),
        ([row(started=12, ended=13)], [("ADMISSION", 12, "overlapping_visit")]),
        ([row(started=48, ended=55)], [("DISCHARGE", 55, "after_death")]),
        ([row(started=-5, ended=1)], [("ADMISSION", -5, "before_birth")]),
        # The first that holds is written down.
        ([row(started=60, ended=52)], [("ADMISSION", 60, "after_death"), ("DISCHARGE", 52, "after_death")]),
        # Another subject's birth and death say nothing.
        ([row(2, started=-50, ended=-60)], [("DISCHARGE", -60, "end_before_start")]),
        ([row(2, started=15, ended=25)], []),
        ([row(started=45)], []),
        ([row(ended=45)], []),
    ],
)
def test_each_contradiction_is_marked_and_the_event_stays(
    tmp_path: Path, more: list[Any], marks: list[tuple[str, int, str]]
) -> None:
    before, _ = aligned(tmp_path, PLAIN)
    events, conflicts = aligned(tmp_path, PLAIN + more)
    assert marked(events) == marks
    # What is there is there as it stood: nothing is moved, and nothing taken out.
    same = [name for name in EVENTS.names if name != "conflict"]
    assert len(events) == len(before) + sum(value is not None for value in more[0][1:7]) * len(more)
    assert before.select(same).join(events.select(same), on=same, how="anti", nulls_equal=True).is_empty()
    assert (sum(conflicts.values()) > 0) == bool(marks)
    if len({mark for *_, mark in marks}) == 1 and marks[0][0] == "LAB":
        assert conflicts == {marks[0][2]: len(marks)}


def test_every_contradiction_is_counted_though_one_is_written(tmp_path: Path) -> None:
    events, conflicts = aligned(tmp_path, [*PLAIN, row(started=60, ended=52)])
    assert conflicts == {"after_death": 2, "end_before_start": 1}
    assert [conflict for *_, conflict in marked(events)] == ["after_death", "after_death"]


def test_a_second_birth_or_death_is_taken_out_and_counted(tmp_path: Path) -> None:
    rows = [*PLAIN, row(died=60), row(born=-1), row(died=55, at=40)]
    events, conflicts = aligned(tmp_path, rows)
    deaths = events.filter(pl.col("code") == "MEDS_DEATH")["time"].to_list()
    births = events.filter(pl.col("code") == "MEDS_BIRTH")["time"].to_list()
    # The earliest of each stays.
    assert (deaths, births) == ([datetime(2020, 2, 20)], [datetime(2019, 12, 31)])
    assert conflicts == {"further_birth_or_death": 3}
    assert events.filter(pl.col("code") == "LAB").height == 6


LISTED: dict[str, Any] = {
    "events": [{"code": "MEDS_BIRTH", "time": "born"}, {"code": "SEX/{sex}"}, {"code": "NAME", "text": "note"}]
}


@pytest.mark.parametrize(
    ("rows", "differing"),
    [
        ([row(born=0, sex="M")], []),
        ([row(born=0, sex="M", note="a"), row(born=0, sex="F", note="a")], ["SEX/M"]),
        ([row(born=0, sex="M", note="a"), row(born=0, sex="M", note="b")], ["NAME"]),
        ([row(born=0, sex="M"), row(born=7, sex="F"), row(born=9, sex="F")], ["SEX/M"]),
        ([row(born=0, sex="M"), row(born=0, note="a")], []),
        ([row(born=0, sex="M"), row(2, born=0, sex="F")], []),
        # These say nothing of who is a patient: a subject may have two.
        ([row(born=0, sex="M"), row(sex="F"), row(sex="X")], []),
    ],
)
def test_a_patient_who_is_listed_twice_is_one_whose_facts_differ(
    tmp_path: Path, rows: list[list[Any]], differing: list[str]
) -> None:
    _, counts = convert_text(tmp_path, LISTED, csv_text(FIELDS, rows))
    events, conflicts, entries = [], Counter[str](), {}
    for bucket in range(2):
        result = align_one(tmp_path, {SEGMENT: counts}, bucket)
        conflicts.update(result.counts["conflicts"])
        entries[str(bucket)] = TaskEntry(fingerprint="", files={}, counts=result.counts)
        events.append(aligned_events(tmp_path, bucket))
    found = pl.concat(events)
    assert found.filter(pl.col("conflict") == "static_differs")["code"].to_list() == differing
    assert conflicts["static_differs"] == len(differing)
    assert found.filter(pl.col("code") == "MEDS_BIRTH").height == len({fields[0] for fields in rows})
    # What the ledger says that the table made is what there is.
    meds = StageReport("meds", entries={"t": TaskEntry(fingerprint="", files={}, counts=counts)})
    ledger = pl.DataFrame(ledger_rows(meds, StageReport("align", entries=entries)), LEDGER.names, orient="row")
    assert balance(ledger).select("difference", "emitted").rows() == [(0, found.height)]


TWICE = st.lists(
    st.tuples(st.integers(1, 2), *[st.none() | st.integers(0, 2)] * 2, st.sampled_from([None, "F", "M"])), max_size=6
)


@settings(max_examples=60, deadline=None)
@given(TWICE)
def test_the_ledger_takes_off_what_further_births_and_deaths_were(
    tmp_path_factory: pytest.TempPathFactory, listed: list[tuple[int, int | None, int | None, str | None]]
) -> None:
    work = tmp_path_factory.mktemp("listed")
    rows = [row(pid, born=born, died=died, sex=sex) for pid, born, died, sex in listed]
    _, counts = convert_text(work, RULE, csv_text(FIELDS, rows))
    results = [align_one(work, {SEGMENT: counts}, bucket) for bucket in range(2)]
    entries = {
        str(place): TaskEntry(fingerprint="", files={}, counts=result.counts) for place, result in enumerate(results)
    }
    meds = StageReport("meds", entries={"t": TaskEntry(fingerprint="", files={}, counts=counts)})
    ledger = pl.DataFrame(ledger_rows(meds, StageReport("align", entries=entries)), LEDGER.names, orient="row")
    stored = sum(aligned_events(work, bucket).height for bucket in range(2))
    assert balance(ledger).select("raw", "difference", "emitted").rows() == [(len(rows), 0, stored)]


IMAGE = {
    "subject_id": 1, "item_key": "k", "modality": "ct", "time": datetime(2021, 1, 1),
    "available_time": datetime(2021, 1, 1), "time_source": "x", "time_precision": "s", "verdict": "ok",
    "units_expected": 1, "units_encoded": 1, "units_failed": 0, "store": None, "encoder": None, "dim": None,
    "geometry": None, "artificial_link": False,
}  # fmt: skip


def test_images_are_marked_as_any_event_and_static_facts_are_not(tmp_path: Path) -> None:
    items = pl.DataFrame([IMAGE, IMAGE | {"item_key": "l", "time": datetime(2020, 1, 9)}], schema=NO_ITEMS.schema)
    rows = [*PLAIN, row(sex="M", note="later")]
    _, counts = convert_text(tmp_path, RULE, csv_text(FIELDS, rows))
    (bucket,) = (number for number, bucket_counts in counts["buckets"].items() if bucket_counts["rows"] > 2)
    align_one(tmp_path, {SEGMENT: counts}, int(bucket), items)
    events = aligned_events(tmp_path, int(bucket))
    images = events.filter(pl.col("kind") == "image").select("item_key", "conflict").rows()
    assert sorted(images) == [("k", "after_death"), ("l", None)]
    assert events.filter(pl.col("time").is_null())["conflict"].to_list() == [None, None]


def test_the_ledger_counts_them_under_all_tables(tmp_path: Path) -> None:
    _, counts = convert_text(tmp_path, RULE, csv_text(FIELDS, [*PLAIN, row(at=51), row(2, started=9, ended=3)]))
    entries = {}
    for bucket in range(2):
        result = align_one(tmp_path, {SEGMENT: counts}, bucket)
        entries[str(bucket)] = TaskEntry(fingerprint="", files={}, counts=result.counts)
    meds = StageReport("meds", entries={"t": TaskEntry(fingerprint="", files={}, counts=counts)})
    found = ledger_rows(meds, StageReport("align", entries=entries))
    assert {reason: rows for table, outcome, reason, rows, _ in found if outcome == "conflict"} == {
        "after_death": 1, "end_before_start": 1,
    }  # fmt: skip
    assert {table for table, outcome, *_ in found if outcome == "conflict"} == {"all tables"}


VISITS = st.lists(
    st.tuples(st.integers(1, 3), st.integers(0, 8) | st.none(), st.integers(0, 8) | st.none()), max_size=9
)


@settings(max_examples=80, deadline=None)
@given(VISITS, st.lists(st.tuples(st.integers(1, 3), st.integers(-2, 9)), max_size=8), st.integers(0, 9))
def test_the_marks_are_those_of_a_plain_search(
    visits: list[tuple[int, int | None, int | None]], facts: list[tuple[int, int]], death: int
) -> None:
    hour = datetime(2020, 1, 1)
    made: list[dict[str, Any]] = [{"subject_id": 1, "code": "MEDS_DEATH", "kind": "death", "at": death}]
    made.append({"subject_id": 2, "code": "MEDS_BIRTH", "kind": "clinical", "at": 0})
    made += [{"subject_id": subject_id, "code": "X", "kind": "clinical", "at": at} for subject_id, at in facts]
    for number, (subject, start, end) in enumerate(visits):
        for kind, at in (("visit_start", start), ("visit_end", end)):
            if at is not None:
                made.append({"subject_id": subject, "code": kind, "kind": kind, "at": at, "row_hash": number})
    rows = [
        dict.fromkeys(EVENTS.names)
        | {"time": hour + timedelta(hours=event["at"]), "source": "t", "row_hash": None}
        | {name: value for name, value in event.items() if name != "at"}
        for event in made
    ]
    schema = {**pl.DataFrame(pl.from_arrow(EVENTS.empty_table())).schema, "row_hash": pl.UInt64()}
    frame = sort_events(pl.DataFrame(rows, schema=schema))
    events, texts = narrow(frame.with_columns(pl.lit(0).alias("rule")))
    found, marked = find_conflicts(events, texts, differing_statics(events, texts))
    counts = {name: len(places) for name, places in marked.items()}

    def reasons(event: dict[str, Any]) -> list[str]:
        at, subject = (event["time"] - hour) // timedelta(hours=1), event["subject_id"]
        visit = visits[event["row_hash"]] if event["row_hash"] is not None else None
        begun = [
            (start, end, number)
            for number, (visitor, start, end) in enumerate(visits)
            if visitor == subject and start is not None and end is not None
        ]
        holds = {
            "before_birth": subject == 2 and at < 0,
            "after_death": subject == 1 and at > death,
            "end_before_start": event["kind"] == "visit_end"
            and visit is not None
            and visit[1] is not None
            and at < visit[1],
            "overlapping_visit": event["kind"] == "visit_start"
            and visit is not None
            and visit[2] is not None
            and any((start, end, n) < (visit[1], visit[2], event["row_hash"]) and at < end for start, end, n in begun),
        }
        return [name for name in CONFLICTS if holds.get(name)]

    plain = [reasons(event) for event in frame.rows(named=True)]
    # Of events that are alike but for their raw rows those without a mark stand first, then by the marks' names.
    shown = frame.drop("row_hash", "conflict").rows()
    marks = [names[0] if names else "" for names in plain]
    expected = [mark for _, mark in sorted(zip(map(shown.index, shown), marks, strict=True))]
    assert found.tolist() == [CONFLICTS.index(mark) if mark else NONE_8 for mark in expected]
    assert counts == {name: sum(name in names for names in plain) for name in CONFLICTS}


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.none() | st.datetimes(datetime(1, 1, 1), datetime(9999, 1, 1)), st.sampled_from(PRECISIONS)))
)
def test_a_coarse_time_may_be_as_early_as_its_day_month_or_year(times: list[tuple[datetime | None, str]]) -> None:
    micros = pl.Series([time for time, _ in times], dtype=pl.Datetime("us")).to_physical().fill_null(NO_TIME)
    found = earliest(micros.to_numpy(), np.array([PRECISIONS.index(name) for _, name in times], np.uint8))
    midnight = {"hour": 0, "minute": 0, "second": 0, "microsecond": 0}
    starts = {"day": midnight, "month": {"day": 1, **midnight}, "year": {"month": 1, "day": 1, **midnight}}
    plain = [None if time is None else time.replace(**starts.get(name, {})) for time, name in times]
    assert found.tolist() == pl.Series(plain, dtype=pl.Datetime("us")).to_physical().fill_null(NO_TIME).to_list()


def test_the_bytes_do_not_hang_on_the_order_of_contradictory_rows(tmp_path: Path) -> None:
    # Two visit ends that are equal in every column: one of them contradicts its own row.
    rows = [row(started=5, ended=3), row(started=1, ended=3), row(started=4, ended=3), row(started=2, ended=3)]
    seen = set()
    for seed in range(6):
        events, conflicts = aligned(tmp_path, random.Random(seed).sample(rows, len(rows)))
        assert conflicts == {"end_before_start": 2, "overlapping_visit": 1}
        files = [ReleaseLayout(tmp_path / "release").events(bucket).read_bytes() for bucket in range(2)]
        seen.add((*files, str(events["conflict"].to_list())))
    assert len(seen) == 1
