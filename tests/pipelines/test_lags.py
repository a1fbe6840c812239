"""The usual delay of results: it is counted, frozen when first known, and given to results without a date."""

import shutil
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from extractors.events.converted import LAG_STEP_US, LAG_STEPS
from extractors.events.lag_counts import LAGS as COUNTED_LAGS
from flows.runs.convert import convert
from flows.runs.settings import RunSettings
from pipelines import align, lags
from pipelines.aligning.segments import read_frame_blob, read_texts
from pipelines.engine.context import RunContext, StageReport
from pipelines.engine.local import LocalEngine
from pipelines.engine.task import Result
from tests.support.raw.raw_tables import BUCKETS, align_one, aligned_events, convert_text, csv_text
from warehouse.hashing import bucket_of
from warehouse.layout import Layout, ReleaseLayout
from warehouse.manifest import TaskEntry
from warehouse.parquet import read_frame
from warehouse.schemas import LAGS

LABS: dict[str, Any] = {
    "events": [{"code": "LAB/{item}", "time": "at", "available": {"column": "stored", "otherwise": "lag"}}]
}
NOON = datetime(2020, 1, 1, 12)
STEP = timedelta(microseconds=LAG_STEP_US)
SEGMENT = "t-t.csv.segment"
NO_LAGS = pl.DataFrame(pl.from_arrow(LAGS.empty_table()))


def labs(*rows: tuple[int, str, datetime | str, datetime | str | None]) -> str:
    return csv_text(["pid", "item", "at", "stored"], rows)


def took(item: str, minutes: list[int], pid: int = 1) -> list[tuple[int, str, datetime | str, datetime | str | None]]:
    """Rows whose results came that many minutes later."""
    return [(pid, item, NOON + timedelta(days=n), NOON + timedelta(days=n, minutes=m)) for n, m in enumerate(minutes)]


def fitted(work: Path, *accounts: dict[str, Any], before: Path | None = None) -> dict[str, tuple[int, int]]:
    """The result of the lags stage: minutes and rows by code."""
    segments = [
        {"source": account["table"], "path": str(work / account["segment"])}
        | {name: account["blobs"][name] for name in ("codes", "lags")}
        for account in accounts
    ]
    base = work / "release"
    result: Result = lags.run({"segments": segments, "before": str(before) if before else None}, base)
    frame = read_frame(ReleaseLayout(base).lags)
    assert frame.select("source", "code").equals(frame.select("source", "code").sort("source", "code"))
    assert result.counts == {"codes": len(frame)}
    return {code: (lag // 60_000_000, rows) for _, code, lag, rows in frame.iter_rows()}


def report_of(work: Path, **accounts: dict[str, Any]) -> StageReport:
    entries = {name: TaskEntry(fingerprint="", files={}, counts=counts) for name, counts in accounts.items()}
    return StageReport("meds", entries=entries)


# --- what one row gives


def test_availability_is_never_before_time_nor_empty(tmp_path: Path) -> None:
    rows = [
        (1, "2020-01-02 00:00:00", "2020-01-01 00:00:00"),
        (2, "2020-01-02 00:00:00", "2020-01-03 00:00:00"),
        (3, "2020-01-02 00:00:00", None),
        (4, "2020-01-02 00:00:00", "rubbish"),
    ]
    for otherwise, kind in (("time", "time"), ("lag", "awaited")):
        available = {"column": "known", "otherwise": otherwise}
        rule = {"events": [{"code": "X", "time": "at", "available": available}]}
        found, counts = convert_text(tmp_path, rule, csv_text(["pid", "at", "known"], rows))
        found = found.sort("subject_id")
        assert [at.day for at in found["available_time"]] == [2, 3, 2, 2]
        assert found["availability"].to_list() == ["recorded", "recorded", kind, kind]
        assert counts["partial"] == {"unknown_available_time": 1, "unparsable_available_time": 1}
        assert counts["events"] == 4
    plain = {"events": [{"code": "X", "time": "at"}]}
    found, _ = convert_text(tmp_path, plain, csv_text(["pid", "at", "known"], rows))
    assert found["availability"].unique().to_list() == ["time"]
    assert found["available_time"].equals(found["time"], check_names=False)


def test_lags_are_counted_by_code_in_steps_of_five_minutes(tmp_path: Path) -> None:
    minutes = [0, 1, 5, 6, 10, 11, 60, 60 * 24 * 13, 60 * 24 * 400]
    rows = [*took("A", minutes), (1, "B", NOON, NOON - timedelta(hours=1)), (1, "A", NOON, None)]
    # A lag is counted neither from a date, nor from a row that makes no event.
    rows += [(1, "A", "2020-01-01", NOON + timedelta(days=1)), ("x", "A", NOON, NOON), (1, "A", "bad", NOON)]  # type: ignore[list-item]
    _, counts = convert_text(tmp_path, LABS, labs(*rows))
    found = read_frame_blob(tmp_path / SEGMENT, counts["blobs"]["lags"], COUNTED_LAGS)
    codes = read_texts(tmp_path / SEGMENT, counts["blobs"]["codes"])
    steps = [0, 1, 1, 2, 2, 3, 12, 12 * 24 * 13, LAG_STEPS]
    plain = {("LAB/A", step): steps.count(step) for step in steps} | {("LAB/B", 0): 1}
    assert {(codes[code], step): rows for code, step, rows in found.iter_rows()} == plain


def test_where_no_lag_is_asked_for_none_is_counted(tmp_path: Path) -> None:
    rule = {"events": [{"code": "LAB/{item}", "time": "at", "available": "stored"}]}
    _, counts = convert_text(tmp_path, rule, labs(*took("A", [5] * 9)))
    assert read_frame_blob(tmp_path / SEGMENT, counts["blobs"]["lags"], COUNTED_LAGS).is_empty()
    assert fitted(tmp_path, counts) == {}


# --- the percentile


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["A", "B", "C"]), st.lists(st.integers(0, 40), min_size=1, max_size=300), min_size=1
    )
)
def test_a_lag_is_the_percentile_that_numpy_gives(steps: dict[str, list[int]]) -> None:
    rows = [("t", code, step, 1) for code, steps_of_code in steps.items() for step in steps_of_code]
    counted = pl.DataFrame(rows, schema={"source": str, "code": str, "step": pl.Int64, "rows": pl.Int64}, orient="row")
    found = {code: (lag, number) for _, code, lag, number in lags.fit(counted).iter_rows()}
    plain = {
        # "inverted_cdf" is the smallest value at which at least that share of the values lies at or below it.
        code: (int(np.percentile(steps_of_code, 95, method="inverted_cdf")) * LAG_STEP_US, len(steps_of_code))
        for code, steps_of_code in steps.items()
    }
    assert found == plain


def test_a_code_with_few_rows_takes_its_tables_lag(tmp_path: Path) -> None:
    many, few = [10] * 190 + [60] * 10, [600] * (lags.MIN_ROWS - 1)
    _, counts = convert_text(tmp_path, LABS, labs(*took("MANY", many), *took("FEW", few)))
    # Of 299 sorted rows the 285th has 600 minutes; of 200 rows the 190th has 10 minutes.
    assert fitted(tmp_path, counts) == {"": (600, 299), "LAB/MANY": (10, 200)}
    frame = read_frame(ReleaseLayout(tmp_path / "release").lags)
    asked = {"t": {"LAB/MANY", "LAB/FEW", "LAB/NEVER"}, "other": {"LAB/MANY"}}
    minute = 60_000_000
    assert lags.awaited(frame, asked) == {
        "other": {},
        "t": {"LAB/FEW": 600 * minute, "LAB/MANY": 10 * minute, "LAB/NEVER": 600 * minute},
    }
    # With one more row the code has its own lag.
    _, counts = convert_text(tmp_path, LABS, labs(*took("MANY", many), *took("FEW", [*few, 5])))
    assert fitted(tmp_path, counts)["LAB/FEW"] == (600, lags.MIN_ROWS)


def test_what_is_once_given_stays_and_new_codes_are_added(tmp_path: Path) -> None:
    _, first = convert_text(tmp_path, LABS, labs(*took("A", [10] * 100)))
    assert fitted(tmp_path, first) == {"": (10, 100), "LAB/A": (10, 100)}
    kept = tmp_path / "before.parquet"
    shutil.copyfile(ReleaseLayout(tmp_path / "release").lags, kept)
    _, second = convert_text(tmp_path, LABS, labs(*took("A", [500] * 900), *took("B", [20] * 100)))
    assert fitted(tmp_path, second, before=kept) == {"": (10, 100), "LAB/A": (10, 100), "LAB/B": (20, 100)}
    # Otherwise the lags would have changed.
    assert fitted(tmp_path, second)["LAB/A"] == (500, 900)


# --- what waits for a lag


def test_facts_that_await_a_lag_get_it_or_their_time(tmp_path: Path) -> None:
    rows = [(1, "A", NOON, None), (1, "B", NOON, "rubbish"), (1, "A", NOON, NOON), (1, "A", "2020-01-05", None)]
    _, counts = convert_text(tmp_path, LABS, labs(*rows))  # type: ignore[arg-type]
    (bucket,) = counts["buckets"]
    assert counts["buckets"][bucket]["awaited"] == ["LAB/A", "LAB/B"]
    result = align_one(tmp_path, {SEGMENT: counts}, int(bucket), lags={"t": {"LAB/A": 3600 * 10**6}})
    end = datetime(2020, 1, 5, 23, 59, 59, 999_999)
    found = aligned_events(tmp_path, int(bucket)).select("code", "time", "available_time", "availability").rows()
    assert sorted(found) == [
        ("LAB/A", NOON, NOON, "recorded"),
        ("LAB/A", NOON, NOON + timedelta(hours=1), "estimated"),
        ("LAB/A", end, end + timedelta(hours=1), "estimated"),
        ("LAB/B", NOON, NOON, "time"),
    ]
    assert result.counts["availability"] == {"estimated": 2, "recorded": 1, "time": 1}
    for nothing in ({}, {"other": {"LAB/A": 1}}, {"t": {"LAB/C": 1}}):
        align_one(tmp_path, {SEGMENT: counts}, int(bucket), lags=nothing)
        events = aligned_events(tmp_path, int(bucket))
        assert events.filter(pl.col("availability") == "estimated").is_empty()
        assert (events["available_time"] == events["time"]).all()


def test_shifted_dates_keep_their_lags(tmp_path: Path) -> None:
    shifting = {"mode": "synthetic", "subject_ids": "hash", "dates": "shift"}
    _, counts = convert_text(tmp_path, LABS, labs(*took("A", [10] * 100), (1, "A", NOON, None)), shifting)
    assert fitted(tmp_path, counts)["LAB/A"] == (10, 100)
    (bucket,) = counts["buckets"]
    align_one(tmp_path, {SEGMENT: counts}, int(bucket), lags={"t": {"LAB/A": 600 * 10**6}})
    events = aligned_events(tmp_path, int(bucket))
    assert (events["available_time"] - events["time"]).unique().to_list() == [timedelta(minutes=10)]
    assert events["time"].min() != NOON


def test_a_bucket_is_aligned_again_only_where_a_code_that_it_awaits_has_another_lag(tmp_path: Path) -> None:
    ids = range(40)
    buckets = bucket_of(np.array(ids), BUCKETS)
    subject_a, subject_b = (next(n for n in ids if buckets[n] == bucket) for bucket in range(BUCKETS))
    rows = [(subject_a, "A", NOON, None), (subject_b, "B", NOON, None), (subject_b, "A", NOON, NOON)]
    _, counts = convert_text(tmp_path, LABS, labs(*rows))
    report = report_of(tmp_path, t=counts)
    with LocalEngine(1) as engine:
        context = RunContext(engine, tmp_path / "staging", None, None)

        def prints(*known: tuple[str, str, int]) -> list[str]:
            frame = pl.DataFrame([(*row, 100) for row in known], schema=NO_LAGS.schema, orient="row")
            tasks = align.tasks_of(context, Layout(tmp_path), BUCKETS, report, None, frame, None)
            return [task.fingerprint for task in tasks]

        first = prints(("t", "LAB/A", 5))
        # Lags of codes that no bucket awaits, or of another table, change nothing.
        assert prints(("t", "LAB/A", 5), ("t", "LAB/C", 7), ("u", "LAB/A", 9), ("u", "", 9)) == first
        # The table's lag is for the codes that have no lag of their own.
        assert [a == b for a, b in zip(prints(("t", "LAB/A", 5), ("t", "", 7)), first, strict=True)] == [True, False]
        assert [a == b for a, b in zip(prints(("t", "LAB/A", 6)), first, strict=True)] == [False, True]


MAPPING = """
name: labs
subject: pid
tables:
  labs:
    events:
    - code: LAB/{item}
      time: at
      available: {column: stored, otherwise: lag}
"""
CONFIG = """
name: labs
sources: [{source: labs.yaml, path: export}]
deid: {mode: synthetic, subject_ids: keep, dates: keep}
buckets: 4
"""


def test_a_second_conversion_with_more_rows_moves_no_earlier_estimate(tmp_path: Path) -> None:
    (tmp_path / "labs.yaml").write_text(MAPPING)
    (tmp_path / "export").mkdir()
    (tmp_path / "run.yaml").write_text(CONFIG)
    people = range(1, 61)
    rows = [row for pid in people for row in took("A", [10, 10, 10], pid)]
    rows += [(pid, "A", NOON + timedelta(days=9), None) for pid in people]
    tree = ReleaseLayout(tmp_path / "dataset")

    def converted(more: list[Any]) -> tuple[pl.DataFrame, pl.DataFrame, int]:
        (tmp_path / "export" / "labs.csv").write_text(labs(*rows, *more))
        done = convert(RunSettings(tmp_path / "run.yaml", workers=1), tree.path)
        return (
            pl.concat([read_frame(tree.events(bucket)) for bucket in range(4)]),
            read_frame(tree.lags),
            done.rewritten,
        )

    first, known, _ = converted([])
    estimated = first.filter(pl.col("availability") == "estimated")
    assert len(estimated) == len(people)
    assert (estimated["available_time"] - estimated["time"]).unique().to_list() == [timedelta(minutes=10)]
    assert known.select("code", "rows").rows() == [("", 180), ("LAB/A", 180)]
    # One subject has slow results of a new code: only that subject's bucket is written again.
    again, later, rewritten = converted([*took("A", [900] * 200), *took("B", [30] * 100)])
    assert rewritten == 1
    assert later.select("code", "lag_us").rows()[:2] == known.select("code", "lag_us").rows()
    assert later["code"].to_list() == ["", "LAB/A", "LAB/B"]
    assert again.filter(pl.col("availability") == "estimated").sort("subject_id").equals(estimated.sort("subject_id"))


def test_an_awaited_fact_is_never_known_before_it_happened(tmp_path: Path) -> None:
    rows = took("A", [0] * 100) + [(1, "A", NOON + timedelta(days=300), None), (1, "A", NOON, NOON - timedelta(days=3))]
    _, counts = convert_text(tmp_path, LABS, labs(*rows))
    assert fitted(tmp_path, counts)["LAB/A"] == (0, 101)
    (bucket,) = counts["buckets"]
    align_one(tmp_path, {SEGMENT: counts}, int(bucket), lags={"t": {"LAB/A": 0}})
    events = aligned_events(tmp_path, int(bucket))
    assert (events["available_time"] >= events["time"]).all()
    assert events["availability"].value_counts().sort("count").rows() == [("estimated", 1), ("recorded", 101)]
