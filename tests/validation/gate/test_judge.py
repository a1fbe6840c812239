"""The gate: a right release passes whole, and each expectation is broken once, alone."""

import html
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import patients, releases
from tests.validation.gate import around, labels
from tests.validation.gate.mutations import (
    FRACTIONS,
    MUTATIONS,
    OF_PLANS,
    PARTS,
    SIZES,
    before_of,
    change,
    in_splits,
    lost_event,
    lost_rows,
)
from validation.areas import registry
from validation.areas.registry import AREAS
from validation.gate.judge import Judgement, judge
from validation.measure.cohort.splits import ks_statistic, measure_splits
from validation.measure.events import misplaced_subjects
from validation.measure.measured_release import MeasuredRelease
from validation.measurements import Measurements, measure_release
from warehouse.errors import TimeloomError
from warehouse.hashing import bucket_of
from warehouse.layout import ReleaseLayout
from warehouse.parquet import write_table
from warehouse.schemas import LAGS, LEDGER
from warehouse.shards.file import read_shard, write_shard

# In `make test` alone: each test runs Great Expectations over a whole release.
pytestmark = pytest.mark.whole

EXPECTATIONS = {area.name_of(expectation): expectation for area in AREAS for expectation in area.expectations}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> ReleaseLayout:
    """A right release. Change nothing: copy it."""
    return patients.make_tree(tmp_path_factory.mktemp("made") / "release")


@pytest.fixture(scope="module")
def right(made: ReleaseLayout) -> Measurements:
    """What is measured of it."""
    return measure(made)


@pytest.fixture
def tree(made: ReleaseLayout, tmp_path: Path) -> ReleaseLayout:
    return ReleaseLayout(shutil.copytree(made.path, tmp_path / "release"))


def measure(tree: ReleaseLayout, fractions: dict[str, float] | None = None, **known: Any) -> Measurements:
    return measure_release(
        MeasuredRelease(
            tree=tree,
            buckets=releases.BUCKETS,
            profiles={releases.PROFILE: patients.entry()},
            schemes={releases.SCHEME: fractions or releases.FRACTIONS},
            before=before_of(tree),
            **known,
        )
    )


def with_area(measurements: Measurements, name: str, frame: pl.DataFrame) -> Measurements:
    return replace(measurements, areas={**measurements.areas, name: frame})


def failed(judgement: Judgement) -> set[str]:
    return {result.name for result in judgement.results if not result.success}


def test_a_right_release_passes_every_expectation(tree: ReleaseLayout) -> None:
    judgement = judge(measure(tree), None)
    assert judgement.passed
    assert failed(judgement) == set()
    assert len(judgement.results) == len(EXPECTATIONS)


def test_every_expectation_has_its_mutation() -> None:
    assert set(MUTATIONS) == set(EXPECTATIONS)
    assert len(EXPECTATIONS) == sum(len(area.expectations) for area in AREAS)


# What cannot fail alone: no events and no ledger are the same release without content.
# What is grossly unlike the other splits is unlike them.
TOGETHER = {
    "ledger.*": {"events.rows", "ledger.*"},
    "subjects.alone_many": {"subjects.alone_many", "subjects.alone_some"},
    "splits.length_smd_ratio": {"splits.length_smd_ratio", "splits.match_ratio"},
    "splits.interval_smd_ratio": {"splits.interval_smd_ratio", "splits.match_ratio"},
}


RIGHT = (
    "subjects_without_split",
    "subjects_in_two_splits",
    "published_differently",
    "ledgers_changed",
    "subjects_moved",
)


def compared(subjects: pl.DataFrame) -> pl.DataFrame:
    """What is measured of subjects whose ledger is right."""
    fractions = {name: size / sum(SIZES.values()) for name, size in SIZES.items()}
    return measure_splits(subjects, "mehrt", fractions, dict.fromkeys(RIGHT, 0))


def test_splits_that_are_alike_pass(tree: ReleaseLayout) -> None:
    measured = compared(in_splits())
    assert measured.select("length_ks_ratio", "modality_ratio", "match_ratio").null_count().sum_horizontal().item() == 0
    assert failed(judge(with_area(measure(tree), "splits", measured), None)) == set()


@pytest.mark.whole
@pytest.mark.parametrize("name", sorted(MUTATIONS))
def test_a_mutation_fails_exactly_its_expectation(
    tree: ReleaseLayout, right: Measurements, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    MUTATIONS[name](tree)
    measured = measure(tree, FRACTIONS.get(name), **around.KNOWN.get(name, {}))
    if name in PARTS:
        measured = with_area(measured, "splits", compared(PARTS[name]))
    if name in OF_PLANS:
        column = pl.lit(2).alias(name.split(".")[1])
        measured = with_area(measured, "shards", measured.areas["shards"].with_columns(column))
    if name in labels.FIGURES:
        area, column = name.split(".")
        figure = pl.lit(1, pl.Int64).alias(column)
        measured = with_area(measured, area, measured.areas[area].with_columns(figure))
    # Of an area with the right release's frame each expectation holds, as that release passes; the others are judged.
    changed = [area for area in AREAS if not measured.areas[area.name].equals(right.areas[area.name])]
    monkeypatch.setattr(registry, "AREAS", changed)
    judgement = judge(measured, None)
    expected = TOGETHER.get(name, {name})
    assert failed(judgement) == expected
    critical = {name for name, expectation in EXPECTATIONS.items() if expectation.severity == "critical"}
    assert judgement.passed == (not expected & critical)
    first = judgement.failures[0]
    assert (first.said, first.remedy) == around.SAID.get(name, (first.sentence.rstrip("."), ""))


def test_an_expectation_that_cannot_be_evaluated_fails(tree: ReleaseLayout) -> None:
    whole = measure(tree)
    lacking = with_area(whole, "shards", whole.areas["shards"].drop("token_difference"))
    judgement = judge(lacking, None)
    assert failed(judgement) == {"shards.token_difference"}
    assert not judgement.passed


@pytest.mark.whole
def test_data_docs_are_written_without_values_and_fetch_nothing(tree: ReleaseLayout) -> None:
    lost_rows(tree)
    judge(measure(tree), tree.quality / "data_docs")
    pages = list((tree.quality / "data_docs").rglob("*.html"))
    assert {page.name for page in pages} >= {"index.html", "events.html", "shards.html"}
    # Fonts and pictures of theirs are no part of a release.
    assert {path.suffix for path in (tree.quality / "data_docs").rglob("*") if path.is_file()} == {".html"}
    texts = [page.read_text(encoding="utf-8") for page in pages]
    assert any("raw rows are exactly events" in text for text in texts)
    for text in texts:
        assert "<script" not in text
        assert 'rel="stylesheet" href="http' not in text
        assert 'src="http' not in text
        assert "static/" not in text
        # A number that stands alone: Data Docs' own identifiers and moments may hold any digits.
        assert not re.search(r"(?<![\w.-])(?<!\d:)190(?!\w)", text)


# In `make test` alone: Great Expectations print all pages.
@pytest.mark.whole
def test_the_first_page_of_data_docs_leads_to_the_others(tree: ReleaseLayout) -> None:
    measured = measure(tree)
    events = measured.areas["events"].with_columns(pl.lit(1).alias("empty_codes"))
    judge(with_area(measured, "events", events), tree.quality / "data_docs")
    docs = tree.quality / "data_docs"
    page = (docs / "index.html").read_text(encoding="utf-8")
    rows = re.findall(r"<tr><td>(\w+)</td><td>(\d+)</td><td>(\d+)</td>(.*?)</tr>", page, re.DOTALL)
    assert {name: (int(expected), int(failed)) for name, expected, failed, _ in rows} == {
        area.name: (len(area.expectations), int(area.name == "events")) for area in AREAS
    }
    for name, _, failed, rest in rows:
        assert ('class="text-danger"' in rest) == (failed == "1")
        links = re.findall(r'href="([^"]+)"', rest)
        assert len(links) == 2
        for link in links:
            words = re.sub(
                r"<style.*?</style>|<[^>]*>", " ", (docs / link).read_text(encoding="utf-8"), flags=re.DOTALL
            )
            sentences = next(area.expectations for area in AREAS if area.name == name)
            assert all(html.escape(entry.sentence, quote=False)[:40] in words for entry in sentences)


def test_a_damaged_file_is_named_not_traced(tree: ReleaseLayout) -> None:
    path = tree.events(0)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(TimeloomError, match=r"data/0000\.parquet"):
        measure(tree)


def test_a_split_shard_under_the_wrong_name_is_malformed(tree: ReleaseLayout) -> None:
    tuning = tree.shard(releases.PROFILE, "tuning", 0)
    _, packs = read_shard(tuning)
    write_shard(tuning, packs, patients.header("train"))
    assert failed(judge(measure(tree), None)) == {"shards.malformed_packs"}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=50, unique=True), st.integers(1, 64))
def test_subjects_in_their_own_bucket_are_never_misplaced(ids: list[int], buckets: int) -> None:
    subjects = np.array(ids, np.int64)
    home = bucket_of(subjects, buckets).astype(np.int64)
    frame = pl.DataFrame({"subject_id": subjects, "bucket": home})
    assert misplaced_subjects(frame, buckets) == 0
    moved = frame.with_columns(pl.col("bucket") + 1)
    assert misplaced_subjects(moved, buckets) == len(ids)
    assert misplaced_subjects(pl.concat([frame, moved]), buckets) == len(ids)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.lists(st.integers(0, 9), min_size=1, max_size=30))
def test_the_distance_of_lengths_is_that_of_scipy(first: list[int], second: list[int]) -> None:
    stats = pytest.importorskip("scipy.stats")
    assert ks_statistic(np.array(first), np.array(second)) == pytest.approx(stats.ks_2samp(first, second).statistic)


def add_to_ledger(tree: ReleaseLayout, *rows: tuple[str, str, str, int, int]) -> None:
    added = pl.DataFrame(rows, schema=LEDGER.names, orient="row")
    write_table(tree.ledger, pl.concat([pl.read_parquet(tree.ledger), added]), LEDGER, "ledger")


def test_further_deaths_explain_no_event_that_is_gone(tree: ReleaseLayout) -> None:
    """They are taken off what a table emitted, so the event that is gone is another's."""
    lost_event(tree)
    add_to_ledger(tree, ("all tables", "conflict", "further_birth_or_death", 1, 0))
    measured = measure(tree)
    assert failed(judge(measured, None)) == {"ledger.events_unexplained"}
    assert "all tables" not in measured.areas["ledger"]["table"].to_list()


def test_an_estimate_before_its_own_time_is_refused(tree: ReleaseLayout) -> None:
    early = pl.col("time") - pl.duration(minutes=1)
    estimated = pl.col("availability") == "estimated"
    change(
        tree,
        "events",
        lambda frame: frame.with_columns(
            pl.when(estimated).then(early).otherwise(pl.col("available_time")).alias("available_time")
        ),
    )
    assert failed(judge(measure(tree), None)) == {"events.available_before_time"}


def test_a_conflict_hidden_by_an_earlier_one_is_no_fault_and_a_lost_one_is(tree: ReleaseLayout) -> None:
    add_to_ledger(tree, ("all tables", "conflict", "end_before_start", 2, 0))
    assert failed(judge(measure(tree), None)) == set()
    add_to_ledger(tree, ("all tables", "conflict", "before_birth", 1, 0))
    assert failed(judge(measure(tree), None)) == {"events.conflicts_uncounted"}


def test_lags_may_be_added_and_not_lost(tree: ReleaseLayout) -> None:
    before = before_of(tree)
    patients.write_lags(before, 120)
    first = pl.read_parquet(before.lags).head(1)
    write_table(before.lags, first, LAGS, "lags")
    assert failed(judge(measure(tree), None)) == set()
    write_table(tree.lags, pl.read_parquet(tree.lags).tail(1), LAGS, "lags")
    assert failed(judge(measure(tree), None)) == {"events.lags_changed"}
