"""The audit of histories and features: a right release has no row with a fault, and each planted leak is counted."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.support.cohort import (
    CODES,
    ETHNICITIES,
    PROFILE,
    SEXES,
    TASK,
    Fact,
    Label,
    cohort,
    draw,
    moment,
    timeline_frame,
    us,
)
from tests.support.releases import BUCKETS
from tests.validation.gate.labels import ENTRY
from validation.measure.anew import measure_anew
from validation.measure.measures import Measures
from validation.measure.probes import features
from validation.measure.probes.bucket import measure_probes
from validation.measure.probes.known import Known, in_order
from validation.measure.tasks import Facts
from warehouse import Release
from warehouse.arrays import NO_TIME
from warehouse.embeddings.store import close_stores
from warehouse.hashing import bucket_of
from warehouse.layout import ReleaseLayout
from warehouse.manifest import LabelsEntry
from warehouse.parquet import write_table
from warehouse.readers.tasks.counting import LabelRows
from warehouse.readers.tasks.windows import LateFacts
from warehouse.schemas import ITEMS, TIMELINES

FEATURES, HISTORIES = "features by available_time", f"histories of {PROFILE}"


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    close_stores()


def audited(release: Release, entry: LabelsEntry = ENTRY) -> dict[str, tuple[int, int]]:
    facts = Facts(BUCKETS, release.manifest.profiles, {TASK: entry}, "none", None)
    found = measure_probes(facts.profiles, facts.labels, measure_anew(ReleaseLayout(release.path), facts))
    return {what: (rows, ahead) for what, rows, ahead in found.iter_rows()}


def moments(labels: Sequence[Label]) -> int:
    return len({(label.subject, label.time) for label in labels})


def between(labels: Sequence[Label], fact: Fact, early: int) -> int:
    """Moments of labels from which a fact is told too early on, until it was known."""
    assert fact.known is not None
    of_subject = (label for label in labels if label.subject == fact.subject and early <= label.time < fact.known)
    return len({label.time for label in of_subject})


def told_early(release: Release, facts: Sequence[Fact], fact: Fact, early: int) -> None:
    """Writes timelines in which a fact stands at an earlier moment; `data/` says nothing of it."""
    tell(release, [replace(each, known=early) if each is fact else each for each in facts])


def tell(release: Release, moved: Sequence[Fact]) -> None:
    """Writes timelines of facts that are not those of `data/`."""
    tree = ReleaseLayout(release.path)
    whole = timeline_frame(moved, (), end=True)
    home = bucket_of(whole["subject_id"].to_numpy(), BUCKETS)
    for bucket in range(BUCKETS):
        write_table(tree.timeline(PROFILE, bucket), whole.filter(pl.Series(home == bucket)), TIMELINES, "timelines")


@pytest.mark.parametrize("seed", range(4))
def test_a_right_release_has_no_row_with_a_fault(tmp_path: Path, seed: int) -> None:
    facts, labels = draw(seed)
    release = cohort(tmp_path / "root", facts, labels)
    rows = moments(labels)
    assert rows > 20
    assert audited(release) == {FEATURES: (rows, 0), HISTORIES: (rows, 0)}


def test_by_time_histories_of_the_other_clock_are_not_looked_at(tmp_path: Path) -> None:
    facts, labels = draw(1)
    release = cohort(tmp_path / "root", facts, labels)
    by_time = ENTRY.model_copy(update={"rules": {"clock": "time"}})
    assert audited(release, by_time) == {"features by time": (moments(labels), 0)}


@pytest.mark.parametrize("image", [False, True])
def test_a_token_that_stands_too_early_is_found(tmp_path: Path, image: bool) -> None:
    """Each late fact in turn is told at a moment at which something else became known."""
    facts, labels = draw(3)
    release = cohort(tmp_path / "root", facts, labels)
    planted = 0
    for fact in facts:
        if (fact.modality is not None) != image or not (fact.modality or fact.code in CODES) or fact.known is None:
            continue
        others = [
            other.known
            for other in facts
            if other.subject == fact.subject and other.known is not None and 0 <= other.known < fact.known
        ]
        wanted = max((between(labels, fact, early) for early in others), default=0)
        if not wanted:
            continue
        early = next(early for early in others if between(labels, fact, early) == wanted)
        # Another event of the same code that was known by then would have been told rightly.
        same = [each for each in facts if (each.subject, each.code) == (fact.subject, fact.code) and each is not fact]
        if same and not image:
            continue
        told_early(release, facts, fact, early)
        assert audited(release)[HISTORIES] == (moments(labels), wanted)
        planted += 1
        if planted == 4:
            return
    assert planted


def leaks(facts: Sequence[Fact], moved: Sequence[Fact], label: Label) -> bool:
    """Whether a history of `moved` tells what nobody knew: more events of a code, or another image, by plain loops."""
    real = [fact for fact in facts if fact.subject == label.subject and (fact.known or 0) <= label.time]
    for fact in moved:
        if fact.subject != label.subject or fact.known is None or fact.known > label.time:
            continue
        if fact.modality:
            if all(fact.key != known.key for known in real):
                return True
        elif fact.code in CODES:
            shown = [each for each in moved if each.subject == label.subject and each.code == fact.code]
            shown = [each for each in shown if each.known is not None and each.known <= label.time]
            if len(shown) > sum(known.code.startswith(fact.code) for known in real):
                return True
    return False


@pytest.mark.parametrize("seed", range(10, 14))
def test_faults_are_counted_as_plain_loops_count_them(tmp_path: Path, seed: int) -> None:
    """Many facts at once are told too early, too late, or as another code."""
    facts, labels = draw(seed)
    release = cohort(tmp_path / "root", facts, labels)
    rng = random.Random(seed)
    moved = [
        replace(fact, known=fact.known - rng.choice((0, 0, 0, 3, -2)), code=rng.choice((fact.code, *CODES)))
        if fact.known is not None and fact.code in CODES and rng.random() < 0.2
        else replace(fact, known=fact.known - rng.choice((0, 4)))
        if fact.known is not None and fact.modality
        else fact
        for fact in facts
    ]
    tell(release, moved)
    expected = {(label.subject, label.time) for label in labels if leaks(facts, moved, label)}
    assert 0 < len(expected) < moments(labels)
    assert audited(release)[HISTORIES] == (moments(labels), len(expected))


def test_features_of_labels_in_several_parts_are_judged_as_those_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts, labels = draw(6)
    release = cohort(tmp_path / "root", facts, labels)
    right = LabelRows.first_knowing
    monkeypatch.setattr(LabelRows, "first_knowing", lambda rows, ids, known: right(rows, ids, known - 60_000_000))
    whole = audited(release)
    monkeypatch.setattr(features, "_HELD", 3)
    assert audited(release) == whole


def test_since_when_a_code_is_known_is_what_plain_loops_find(tmp_path: Path) -> None:
    facts, labels = draw(4)
    release = cohort(tmp_path / "root", facts, labels)
    tree = ReleaseLayout(release.path)
    codes = pl.read_parquet(tree.codes)["code"].unique().sort()
    subjects = np.unique([label.subject for label in labels])
    for bucket in range(BUCKETS):
        home = np.sort(subjects[bucket_of(subjects, BUCKETS) == bucket])
        known = Known.read(tree, bucket, home, "available_time", codes.to_arrow())
        wanted = np.flatnonzero(codes.is_in([*SEXES, *ETHNICITIES]).to_numpy())
        first = known.first(wanted)
        for place, subject in enumerate(home):
            for column, code in enumerate(codes.gather(wanted)):
                shown = [fact.known for fact in facts if (fact.subject, fact.code) == (subject, code)]
                least = min((NO_TIME if at is None else us(at) for at in shown), default=None)
                found = int(first[place, column])
                assert (None if found == known.never else int(known.instants[found])) == least
            shown = [fact.known for fact in facts if fact.subject == subject and fact.time is not None]
            since = int(known.first_timed[place])
            assert (None if since == known.never else int(known.instants[since])) == min(
                (us(at) for at in shown if at is not None), default=None
            )


@pytest.mark.parametrize("above", [0, 1 << 60])
def test_numbers_are_put_in_order_and_equal_ones_stay_in_theirs(above: int) -> None:
    """Numbers that are too large to be packed with their places are sorted otherwise."""
    keys = np.random.default_rng(0).integers(0, 50, 500) + above
    order = sorted(range(500), key=lambda place: keys[place])
    found, places = in_order(keys)
    assert places.tolist() == order and found.tolist() == keys[order].tolist()


def test_an_item_that_is_available_later_than_its_file_says_is_found(tmp_path: Path) -> None:
    facts, labels = draw(5)
    release = cohort(tmp_path / "root", facts, labels)
    tree = ReleaseLayout(release.path)
    late = [fact for fact in facts if fact.modality and fact.known is not None and between(labels, fact, 0)]
    fact = late[0]
    for bucket in range(BUCKETS):
        items = pl.read_parquet(tree.items(bucket))
        hit = pl.col("item_key") == fact.key
        early = items.with_columns(
            pl.when(hit).then(pl.lit(moment(0))).otherwise(pl.col("available_time")).alias("available_time")
        )
        write_table(tree.items(bucket), early, ITEMS, "items")
    assert audited(release) == {FEATURES: (moments(labels), between(labels, fact, 0)), HISTORIES: (moments(labels), 0)}


def test_a_reader_that_counts_what_comes_a_minute_later_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts, labels = draw(6)
    release = cohort(tmp_path / "root", facts, labels)
    right = LabelRows.first_knowing
    monkeypatch.setattr(LabelRows, "first_knowing", lambda rows, ids, known: right(rows, ids, known - 60_000_000))
    leaked = {
        (label.subject, label.time)
        for label in labels
        for fact in facts
        if fact.subject == label.subject and fact.known == label.time + 1
    }
    found = audited(release)
    assert found[HISTORIES] == (moments(labels), 0)
    assert found[FEATURES] == (moments(labels), len(leaked)) and leaked


def test_a_front_that_tells_what_was_not_known_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = [Fact(1, "LOINC/2160-0", 0, 0), Fact(1, ETHNICITIES[0], 1, 9), Fact(2, "LOINC/2160-0", 0, 0)]
    labels = [Label(1, 5, True), Label(1, 9, True), Label(2, 5, False)]
    release = cohort(tmp_path / "root", facts, labels)
    assert audited(release)[HISTORIES] == (3, 0)
    monkeypatch.setattr(LateFacts, "as_known", lambda _late, places, _times, ids: (ids, np.ones(len(places), np.bool_)))
    assert audited(release)[HISTORIES] == (3, 1)


def test_without_labels_there_is_nothing_to_look_at(tmp_path: Path) -> None:
    facts, labels = draw(2)
    release = cohort(tmp_path / "root", facts, labels)
    assert measure_probes(release.manifest.profiles, {}, Measures(ReleaseLayout(release.path))).is_empty()
