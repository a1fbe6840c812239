"""An expectation is written in one place: an entry is judged, worded in the report and checked by `verify`."""

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from tests.support import patients, releases
from validation.areas import registry
from validation.areas.area import ITS_LIMIT, Area, Check, Expectation
from validation.gate.judge import Judgement, judge
from validation.measure.measured_release import MeasuredRelease
from validation.measurements import measure_release
from validation.report.page import write_report
from validation.verify import Finding, verify_release
from warehouse.layout import ReleaseLayout


def measure_toys(release: MeasuredRelease) -> pl.DataFrame:
    """Broken toys by room: as many as the release has buckets, all in the nursery."""
    return pl.DataFrame({"room": ["hall", "nursery"], "broken_toys": [0, release.buckets]})


TOYS = Check("toys", measure_toys, lambda frame: f"whole in {frame.height} rooms")
BROKEN = Expectation("broken_toys", "No toy of any room is broken.", check=TOYS, fault="broken toys")


def judged(tree: ReleaseLayout) -> Judgement:
    """Measures, judges and reports a release."""
    release = MeasuredRelease(
        tree=tree,
        buckets=releases.BUCKETS,
        profiles={releases.PROFILE: patients.entry()},
        schemes={releases.SCHEME: releases.FRACTIONS},
    )
    measurements = measure_release(release)
    judgement = judge(measurements, tree.quality / "data_docs")
    write_report(tree, measurements, judgement, {"deid_mode": "synthetic"})
    return judgement


def finding_of(root: Path, check: str) -> Finding:
    return next(finding for finding in verify_release(root) if finding.check == check)


WORDS = {0.5: "half", 2: "two", 3: "three"}
EXPECTATIONS = [(area.name_of(entry), entry) for area in registry.AREAS for entry in area.expectations]


@pytest.mark.parametrize("entry", [entry for _, entry in EXPECTATIONS], ids=[name for name, _ in EXPECTATIONS])
def test_a_sentence_says_what_is_judged(entry: Expectation) -> None:
    """A number in a sentence that is not the one judged makes a reader believe what was never looked at."""
    if entry.pattern or entry.high in (None, 0):
        return
    assert entry.high is not None
    if entry.of == ITS_LIMIT:
        assert (entry.high, "within its limit (" in entry.sentence) == (1, True)
        assert entry.rule == "at most 1 times its limit"
        return
    spelt = (f"{entry.high:g}", f"{100 * entry.high:g} %", WORDS.get(entry.high, "?"))
    assert any(word in entry.sentence for word in spelt), entry.sentence
    assert "limit" not in entry.sentence


@pytest.mark.whole
@pytest.mark.parametrize(
    ("expectation", "passed", "detail"),
    [
        (BROKEN, False, f"{releases.BUCKETS} broken toys"),
        (replace(BROKEN, severity="warning", check=replace(TOYS, located_by="room")), True, "broken toys in nursery"),
        (replace(BROKEN, high=releases.BUCKETS), True, "whole in 2 rooms"),
    ],
)
def test_a_new_area_is_judged_reported_and_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expectation: Expectation, passed: bool, detail: str
) -> None:
    monkeypatch.setattr(registry, "AREAS", (*registry.AREAS, Area("toys", measure_toys, (expectation,))))
    _, tree = patients.make_root(tmp_path / "root")
    judgement = judged(tree)
    assert judgement.passed == passed
    outcome = judgement.results[-1]
    assert (outcome.suite, outcome.name, outcome.rule) == ("toys", "toys.broken_toys", expectation.rule)
    assert BROKEN.sentence in tree.report.read_text(encoding="utf-8")
    assert "No toy of any room is broken" in (
        next((tree.quality / "data_docs").rglob("toys.html")).read_text(encoding="utf-8")
    )
    finding = finding_of(tmp_path / "root", "toys")
    assert (finding.ok, finding.detail) == (outcome.success, detail)


@pytest.mark.whole
def test_a_new_expectation_is_one_entry_of_an_area_that_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The area measures the column `subjects` already, and nothing expects anything of it."""
    few = Check("few", lambda release: release.events.summary, lambda _: "few enough")
    entry = Expectation("subjects", "The release has five patients at most.", high=5, check=few, fault="patients")
    changed = [
        replace(area, expectations=(*area.expectations, entry)) if area.name == "events" else area
        for area in registry.AREAS
    ]
    monkeypatch.setattr(registry, "AREAS", tuple(changed))
    _, tree = patients.make_root(tmp_path / "root")
    judgement = judged(tree)
    assert [outcome.name for outcome in judgement.failures] == ["events.subjects"]
    assert "at most 5" in tree.report.read_text(encoding="utf-8")
    assert finding_of(tmp_path / "root", "few") == Finding("few", False, f"{patients.SUBJECT_COUNT} patients")
    assert finding_of(tmp_path / "root", "buckets").ok


def test_what_verify_counts_has_words() -> None:
    for area in registry.AREAS:
        for expectation in area.expectations:
            assert bool(expectation.check) == bool(expectation.fault)
            assert bool(expectation.pattern) == bool(expectation.meaning)


def test_a_missing_value_is_not_judged_and_one_outside_is() -> None:
    frame = pl.DataFrame({"broken_toys": [-1, 0, None, 1, 2]})
    assert BROKEN.broken(frame)["broken_toys"].to_list() == [-1, 1, 2]
    assert replace(BROKEN, low=None, high=1).broken(frame)["broken_toys"].to_list() == [2]
    assert replace(BROKEN, low=1, high=None).broken(frame)["broken_toys"].to_list() == [-1, 0]


def test_the_mapping_of_names_is_unique() -> None:
    names = [area.name_of(expectation) for area in registry.AREAS for expectation in area.expectations]
    assert len(set(names)) == len(names)
    checks = [check.name for area in registry.AREAS for check in area.checks]
    assert len(set(checks)) == len(checks)
