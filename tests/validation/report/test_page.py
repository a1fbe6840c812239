"""The report: what it says, that small cells stay hidden and cannot be worked out, and that it needs no network."""

import html
import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.aligning.conflicts import CONFLICTS
from tests.support import patients, releases
from validation.areas import ledger
from validation.gate.judge import judge
from validation.measure.annotations import LISTED
from validation.measure.cohort.subjects import measure_cohorts
from validation.measure.measured_release import MeasuredRelease
from validation.measure.profiles.budgets import BUDGETS, list_budgets
from validation.measurements import Measurements, measure_release
from validation.report.cells import Cells, Hidden
from validation.report.page import show, write_report
from validation.report.tables import build_tables
from validation.report.vocabulary_tables import budget_table
from warehouse.layout import ReleaseLayout
from warehouse.manifest import BudgetEntry

# In `make test` alone: each test draws the whole report.
pytestmark = pytest.mark.whole

CONTEXT = {
    "release_id": "2026-11-21T02-00-00Z",
    "parent": "2026-11-20T02-00-00Z",
    "encoders": {"ct": [{"label": "random <b>", "dim": 1024, "weights_sha256": "ab" * 32}]},
    "steps": [{"step": "pack", "ran": 3, "linked": 0, "resumed": 0, "seconds": 1.25, "cpu_seconds": 2.5}],
}
MARKED = {"after_death": 5, "overlapping_visit": 3}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> ReleaseLayout:
    return patients.make_tree(tmp_path_factory.mktemp("release"))


@pytest.fixture(scope="module")
def measurements(tree: ReleaseLayout) -> Measurements:
    return measure_release(
        MeasuredRelease(
            tree=tree,
            buckets=releases.BUCKETS,
            profiles={releases.PROFILE: patients.entry()},
            schemes={releases.SCHEME: releases.FRACTIONS},
        )
    )


def written(
    tree: ReleaseLayout, measurements: Measurements, **context: object
) -> tuple[str, dict[str, list[dict[str, Any]]]]:
    write_report(tree, measurements, judge(measurements, None), CONTEXT | context)
    tables = json.loads((tree.quality / "tables.json").read_text(encoding="utf-8"))
    return tree.report.read_text(encoding="utf-8"), {name: table["rows"] for name, table in tables.items()}


@pytest.mark.whole
def test_the_report_of_simulated_patients_shows_every_figure(tree: ReleaseLayout, measurements: Measurements) -> None:
    page, tables = written(tree, measurements, deid_mode="synthetic")
    assert "Published" in page
    assert "2026-11-20T02-00-00Z" in page
    assert "random &lt;b&gt;" in page
    assert "no claim of compliance" in page
    labs = next(row for row in tables["counts"] if row["table"] == "labs")
    assert (labs["raw"], labs["events"], labs["quarantined"], labs["difference"]) == (181, 180, 1, 0)
    assert tables["quarantine"][0]["reason"] == "unparsable_time"
    assert [(row["reason"], row["rows"]) for row in tables["partial"]] == [("unparsable_available_time", 2)]
    assert {row["conflict"]: row["events"] for row in tables["conflicts"]} == MARKED
    assert all(row["meaning"] in html.unescape(page) for row in tables["conflicts"])
    of_labs = next(row for row in tables["availability"] if row["table"] == "labs")
    assert [of_labs[name] for name in ("recorded", "time", "estimated", "static")] == [0, 179, 1, 0]
    formats = {(row["column"], row["format"]): row["values"] for row in tables["time_formats"]}
    assert formats == {
        ("collected", "%Y-%m-%d %H:%M"): 180,
        ("resulted", "%Y-%m-%d"): 3,
        ("resulted", "%Y-%m-%d %H:%M"): 176,
    }
    loinc = next(row for row in tables["codes"] if row["namespace"] == "LOINC")
    assert (loinc["codes"], loinc["described"], loinc["share"], loinc["with_parents"]) == (1, 1, 1.0, 1)
    assert [row["subjects"] for row in tables["table_a1"]] == [32, 4, 4]
    assert [row["subjects"] for row in tables["table_a2"]] == [2, 0, 1]
    assert "1–10" not in page


def test_the_banner_says_what_the_release_cannot_use(tree: ReleaseLayout, measurements: Measurements) -> None:
    def banner(made: Measurements, **context: object) -> str:
        page, _ = written(tree, made, **context)
        return re.sub(r"\s+", " ", page[page.index('<div class="banner') : page.index('<dl class="headline')])

    assert 'Raw rows in quarantine: 1. <a href="#quarantine">' in banner(measurements, deid_mode="synthetic")
    more = pl.DataFrame(
        {"table": "labs", "outcome": "quarantined", "reason": ["duplicate_row", "bad_subject_id"], "rows": [30, 1_500]}
    )
    items = pl.DataFrame(
        {"modality": "ct", "verdict": ["ok", "failed_unreadable", "failed_no_time", "refused_localizer"]}
        | {"items": [800, 90, 4, 120], "units_expected": 0, "units_encoded": 0, "units_failed": 0}
    )
    broken = replace(
        measurements,
        outcomes=pl.concat([measurements.outcomes, more], how="diagonal_relaxed"),
        areas={
            **measurements.areas,
            "items": pl.concat([measurements.areas["items"].clear(), items], how="diagonal_relaxed"),
        },
    )
    opened, closed = (banner(broken, deid_mode=mode) for mode in ("synthetic", "expert"))
    assert "Raw rows in quarantine: 1,531, of which duplicates of other rows: 30." in opened
    assert 'Images that failed: 94; images that were refused: 120. <a href="#verdicts">' in opened
    assert "Raw rows in quarantine: about 1,500, of which duplicates of other rows: fewer than 100." in closed
    assert "Images that failed: fewer than 100; images that were refused: about 120." in closed


def test_the_page_is_whole_without_a_network(tree: ReleaseLayout, measurements: Measurements) -> None:
    page, _ = written(tree, measurements, deid_mode="synthetic")
    assert "<script" not in page
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", page)
    assert all(f'id="{name}"' in page for name in re.findall(r"href=\"#(\w+)\"", page))
    assert page.count("data:image/png;base64,") == 2
    assert "url(" not in page


def test_a_refusal_says_so_first(tree: ReleaseLayout, measurements: Measurements) -> None:
    events = measurements.areas["events"].with_columns(pl.lit(12).alias("empty_codes"))
    broken = replace(measurements, areas={**measurements.areas, "events": events})
    page, tables = written(tree, broken, deid_mode="synthetic")
    assert "Refused: nothing was published" in page
    assert page.index("no code is empty") < page.index("<h2>Expectations")
    assert [row["sentence"] for row in tables["expectations"] if row["result"] == "fail"] == [
        "Every event says what happened: no code is empty."
    ]


@pytest.mark.parametrize("context", [{"deid_mode": "expert"}, {"deid_mode": "limited"}, {}])
def test_small_cells_are_hidden_unless_patients_are_simulated(
    tree: ReleaseLayout, measurements: Measurements, context: dict[str, str]
) -> None:
    page, tables = written(tree, measurements, **context)
    labs = next(row for row in tables["counts"] if row["table"] == "labs")
    assert labs["raw"] == 181
    # 181 - 180 would give the one quarantined row away, and so would 180 events made
    assert (labs["events"], labs["quarantined"], labs["stored"]) == (None, None, None)
    assert labs["withheld"] == "events: withheld; quarantined: 1–10; stored: withheld"
    assert "1–10" in page
    assert "180" not in re.sub(r"base64,[^\"]*", "", page)
    # neither by how events are known, nor by the values that formats read, nor by the share of estimates
    of_labs = next(row for row in tables["availability"] if row["table"] == "labs")
    assert [of_labs[name] for name in ("recorded", "time", "estimated", "static", "share")] == [0, None, None, 0, None]
    assert [row["values"] for row in tables["time_formats"]] == [None, None, None]
    counts = {
        "recorded",
        "time",
        "estimated",
        "values",
        "tokens",
        "train_count",
        "rows",
        "subjects",
        "items",
        "events",
        "static",
        "reference",
        "quarantined",
        "raw",
        "stored",
    }
    for rows in tables.values():
        for row in rows:
            assert not any(0 < (row[name] or 0) <= 10 for name in counts & set(row))
    for name in ("table_a1", "table_a2"):
        for row in tables[name]:
            assert row["subjects"] in (None, 0, 32)
            hidden = row["subjects"] is None
            assert not hidden or all(value is None for key, value in row.items() if key not in {"split", "withheld"})


def with_budgets(measurements: Measurements, *subjects: int, plan: str = "scaling") -> Measurements:
    """The measurements with a plan of token budgets that hold so many patients."""
    budgets = tuple(
        BudgetEntry(asked=1000 * place + 1, tokens=1000 * place + 40, all_tokens=1300 * place, subjects=number, files=1)
        for place, number in enumerate(subjects, 1)
    )
    entry = patients.entry()
    scaled = entry.model_copy(update={"plans": {plan: entry.plans["default"].model_copy(update={"budgets": budgets})}})
    listed = pl.concat([measurements.budgets, list_budgets({releases.PROFILE: scaled})])
    return replace(measurements, budgets=listed)


def test_token_budgets_are_shown_where_there_are_any(tree: ReleaseLayout, measurements: Measurements) -> None:
    page, tables = written(tree, measurements, deid_mode="synthetic")
    assert "<h2>Token budgets" not in page and tables["budgets"] == []
    page, tables = written(tree, with_budgets(measurements, 3, 20), deid_mode="synthetic")
    assert "<h2>Token budgets" in page and "1,040" in page
    first = {"profile": "mehrt", "plan": "scaling", "asked": 1001, "tokens": 1040, "all_tokens": 1300, "subjects": 3}
    assert tables["budgets"][0] == first | {"withheld": ""}
    assert tables["budgets"][1]["subjects"] == 20


def test_budgets_of_few_patients_and_those_that_differ_by_few_are_hidden(
    tree: ReleaseLayout, measurements: Measurements
) -> None:
    """The report shows that train has 32 patients: with 20 and 28, differences of 8 and of 4 could be worked out."""
    both = with_budgets(with_budgets(measurements, 4, 20, 28, 32), 12, 20, plan="other")
    page, tables = written(tree, both, deid_mode="expert")
    assert [row["subjects"] for row in tables["budgets"]] == [None, 20, None, 32, None, 20]
    for row in tables["budgets"]:
        assert (row["subjects"] is None) == (row["tokens"] is None) == (row["all_tokens"] is None)
        assert row["asked"] > 1000
    assert tables["budgets"][0]["withheld"] == "tokens: withheld; all_tokens: withheld; subjects: 1–10"
    assert tables["budgets"][2]["withheld"] == "tokens: withheld; all_tokens: withheld; subjects: withheld"
    assert "3,040" not in page


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 60), max_size=6), st.sets(st.integers(0, 60), max_size=2))
def test_no_two_budgets_that_are_shown_differ_by_few_patients(subjects: list[int], known: set[int]) -> None:
    frame = pl.DataFrame(
        {"profile": "p", "plan": "s", "asked": 1, "tokens": 1, "all_tokens": 1, "subjects": subjects},
        schema=BUDGETS,
    )
    shown = [row["subjects"] for row in budget_table(frame, known, Cells(open=False)).rows]
    numbers = [cell for cell in shown if isinstance(cell, int)]
    assert not any(0 < abs(number - other) <= 10 for number in numbers for other in {0, *known, *numbers})
    assert [row["subjects"] for row in budget_table(frame, known, Cells(open=True)).rows] == subjects


def test_the_files_for_programs_hold_what_the_page_shows(tree: ReleaseLayout, measurements: Measurements) -> None:
    _, tables = written(tree, measurements, deid_mode="expert")
    for name, rows in tables.items():
        assert pl.read_parquet(tree.quality / f"{name}.parquet").to_dicts() == rows
    assert (tree.quality / "figure_a1.png").read_bytes().startswith(b"\x89PNG")


def test_what_a_split_lacks_is_withheld_where_its_patients_are(measurements: Measurements) -> None:
    """Tuning and held-out have four patients each: no share of their tokens is shown, whatever its numbers are."""
    coverage = pl.DataFrame(
        {"profile": "mehrt", "namespace": "LOINC", "split": list(releases.FRACTIONS), "tokens": 289, "dropped": 0}
        | {"unknown": [28, 28, 28]}
    )
    made = replace(measurements, coverage=coverage)
    closed, opened = (build_tables(made, judge(made, None), Cells(open=open_)) for open_ in (False, True))
    (row,) = closed["coverage"].rows
    assert isinstance(row["tuning"], Hidden) and isinstance(row["held_out"], Hidden)
    assert opened["coverage"].rows[0]["tuning"] == 28 / 289


def test_percentiles_of_few_patients_are_withheld(measurements: Measurements) -> None:
    rng = np.random.default_rng(1)
    subjects = pl.DataFrame(
        {
            "split": ["train"] * 2000 + ["tuning"] * 200 + ["held_out"] * 30,
            "set": ["structured only"] * 2230,
            "structured": rng.integers(2, 500, 2230),
            "tokens": rng.integers(2, 500, 2230),
        }
        | {
            f"{name}_{population}": rng.random(2230)
            for name in ("interval_tokens", "interval_times")
            for population in ("structured", "imaging")
        }
    )
    cohorts = measure_cohorts(subjects, list(releases.FRACTIONS))
    wide = replace(measurements, cohorts=cohorts)
    train, tuning, held_out = build_tables(wide, judge(wide, None), Cells(open=False))["table_a1"].rows
    assert isinstance(train["length_p1"], float)
    assert isinstance(tuning["length_p1"], Hidden)
    assert isinstance(tuning["length_q1"], float)
    assert isinstance(held_out["length_q3"], Hidden)
    assert isinstance(held_out["length_median"], float)
    assert isinstance(held_out["length_mean"], float)
    assert isinstance(train["length_max"], Hidden) and isinstance(train["interval_tokens_min"], Hidden)
    assert isinstance(train["interval_times_q3"], float)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=6))
def test_no_small_part_can_be_worked_out_from_its_sum(values: list[int]) -> None:
    shown = Cells(open=False).parts(values)
    hidden = [value for value, cell in zip(values, shown, strict=True) if isinstance(cell, Hidden)]
    assert all(not isinstance(cell, int) or cell == 0 or cell > 10 for cell in shown)
    others = [value for value in values if value]
    if hidden and len(hidden) < len(others):
        assert len(hidden) > 1 and sum(hidden) > 10
    assert Cells(open=True).parts(values) == values


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**9))
def test_a_rounded_total_is_never_above_and_keeps_its_size(value: int) -> None:
    cell = Cells(open=False).rounded(value)
    if 0 < value <= 10:
        assert isinstance(cell, Hidden)
    else:
        assert isinstance(cell, int) and 0.9 * value <= cell <= value


def test_every_outcome_has_its_meaning() -> None:
    assert set(ledger.CONFLICTS) == {*CONFLICTS, "further_birth_or_death"}
    assert set(LISTED) < set(ledger.QUARANTINED)
    in_pipelines = {"duplicate_row", "further_birth_or_death", "outside_limit", "unmapped_table"}
    assert set(ledger.QUARANTINED) - set(LISTED) == in_pipelines


def test_figures_are_printed_for_people() -> None:
    assert show(1234567, "count") == "1,234,567"
    assert show(0.12345, "share") == "12.35 %"
    assert show(None, "count") == "–"
    assert show(12.25, "tenths") == "12.2"
    assert show(Hidden("1–10"), "count") == "1–10"
