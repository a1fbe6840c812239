"""The gate: a right release passes whole, and each expectation is broken once, alone."""

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import patients, releases
from tests.validation.gate import around
from validation.areas.registry import AREAS
from validation.gate.judge import Judgement, judge
from validation.measure.events import misplaced_subjects
from validation.measure.measured_release import MeasuredRelease
from validation.measure.splits import ks_statistic, measure_splits
from validation.measurements import Measurements, measure_release
from warehouse.errors import TimeloomError
from warehouse.hashing import bucket_of
from warehouse.layout import ReleaseLayout
from warehouse.parquet import write_table
from warehouse.schemas import EVENTS, LAGS, LEDGER, SPLIT_LEDGER
from warehouse.shards.file import read_shard, write_shard

Mutation = Callable[[ReleaseLayout], None]
MUTATIONS: dict[str, Mutation] = {**around.MUTATIONS}
FRACTIONS: dict[str, dict[str, float]] = {}  # of mutations that change the scheme, not the tree
EXPECTATIONS = {area.name_of(expectation): expectation for area in AREAS for expectation in area.expectations}


@pytest.fixture
def tree(tmp_path: Path) -> ReleaseLayout:
    return patients.make_tree(tmp_path / "release")


def before_of(tree: ReleaseLayout) -> ReleaseLayout:
    """Where the release before the tree's lies, of which only lags are read."""
    return ReleaseLayout(tree.path.with_name("before"))


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


def breaks(name: str) -> Callable[[Mutation], Mutation]:
    def register(mutation: Mutation) -> Mutation:
        MUTATIONS[name] = mutation
        return mutation

    return register


def change(tree: ReleaseLayout, kind: str, edit: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
    releases.write_buckets(tree, edit(releases.read_all(tree, kind)), kind)


def first_lab(column: str, value: object) -> Callable[[pl.DataFrame], pl.DataFrame]:
    """Sets a column of the first laboratory event of subject 0."""
    hit = (pl.col("subject_id") == 0) & (pl.col("source") == "labs")
    first = hit & (hit.cum_sum() == 1)
    return lambda frame: frame.with_columns(pl.when(first).then(pl.lit(value)).otherwise(pl.col(column)).alias(column))


def of_item(key: str, **values: object) -> Callable[[pl.DataFrame], pl.DataFrame]:
    hit = pl.col("item_key") == key
    return lambda frame: frame.with_columns(
        pl.when(hit).then(pl.lit(value, frame.schema[name])).otherwise(pl.col(name)).alias(name)
        for name, value in values.items()
    )


def ledger_rows(tree: ReleaseLayout, table: str, outcome: str, rows: int) -> None:
    hit = (pl.col("table") == table) & (pl.col("outcome") == outcome)
    frame = pl.read_parquet(tree.ledger).with_columns(
        pl.when(hit).then(rows).otherwise(pl.col("rows")).cast(pl.Int64).alias("rows")
    )
    write_table(tree.ledger, frame, LEDGER, "ledger")


@breaks("events.rows")
def no_events(tree: ReleaseLayout) -> None:
    change(tree, "events", lambda frame: frame.clear())
    change(tree, "items", lambda frame: frame.filter(pl.col("verdict") != "ok"))
    change(tree, "subjects", lambda frame: frame.clear())
    change(tree, "timeline", lambda frame: frame.clear())
    patients.write_shards(tree, releases.read_all(tree, "timeline"), {})
    frame = pl.read_parquet(tree.ledger).filter(pl.col("table") == "units")
    write_table(tree.ledger, frame, LEDGER, "ledger")
    patients.write_quarantine(tree, 0)


@breaks("events.schema_breaks")
def wrong_type(tree: ReleaseLayout) -> None:
    path = tree.events(0)
    pl.read_parquet(path).with_columns(pl.col("numeric_value").cast(pl.Float64)).write_parquet(path)


@breaks("events.misplaced_subjects")
def swapped_buckets(tree: ReleaseLayout) -> None:
    first, second, spare = tree.events(0), tree.events(1), tree.path / "spare"
    first.rename(spare)
    second.rename(first)
    spare.rename(second)


@breaks("events.rows_out_of_order")
def reversed_rows(tree: ReleaseLayout) -> None:
    for bucket in range(releases.BUCKETS):
        path = tree.events(bucket)
        write_table(path, pl.read_parquet(path).reverse(), EVENTS, "events")


@breaks("events.empty_codes")
def empty_code(tree: ReleaseLayout) -> None:
    change(tree, "events", first_lab("code", ""))
    releases.write_codes(tree, ["", *pl.read_parquet(tree.codes)["code"]])


@breaks("events.undescribed_codes")
def new_code(tree: ReleaseLayout) -> None:
    change(tree, "events", first_lab("code", "LOINC//NEW"))


@breaks("events.available_before_time")
def too_early(tree: ReleaseLayout) -> None:
    change(tree, "events", first_lab("available_time", datetime(2019, 12, 31)))


@breaks("events.repeated_codes")
def code_twice(tree: ReleaseLayout) -> None:
    codes = pl.read_parquet(tree.codes)["code"].to_list()
    releases.write_codes(tree, [*codes, codes[0]])


@breaks("events.unavailable")
def never_available(tree: ReleaseLayout) -> None:
    change(tree, "events", first_lab("available_time", None))


@breaks("events.availability_unknown")
def guessed(tree: ReleaseLayout) -> None:
    change(tree, "events", first_lab("availability", "guessed"))


@breaks("events.availability_of_static")
def available_static(tree: ReleaseLayout) -> None:
    static = pl.col("time").is_null() & (pl.col("subject_id") == 0)
    marked = pl.when(static).then(pl.lit("time")).otherwise(pl.col("availability")).alias("availability")
    change(tree, "events", lambda frame: frame.with_columns(marked))


@breaks("events.value_flag_unknown")
def unknown_flag(tree: ReleaseLayout) -> None:
    flag = pl.when(pl.col("value_flag") == "<").then(pl.lit("about")).alias("value_flag")
    change(tree, "events", lambda frame: frame.with_columns(flag))


@breaks("events.value_flag_alone")
def flag_without_text(tree: ReleaseLayout) -> None:
    change(tree, "events", first_lab("value_flag", ">="))


@breaks("events.conflict_unknown")
def unknown_conflict(tree: ReleaseLayout) -> None:
    change(tree, "events", first_lab("conflict", "odd"))


@breaks("events.conflicts_uncounted")
def uncounted_conflict(tree: ReleaseLayout) -> None:
    change(tree, "events", first_lab("conflict", "before_birth"))


@breaks("events.lags_changed")
def other_lags(tree: ReleaseLayout) -> None:
    before = before_of(tree)
    patients.write_lags(before, 90)


@breaks("events.unknown_items")
def unknown_item(tree: ReleaseLayout) -> None:
    change(tree, "events", first_lab("item_key", "ct-nowhere"))


@breaks("events.implausible_times")
def year_one(tree: ReleaseLayout) -> None:
    born = (pl.col("subject_id") == 3) & (pl.col("code") == "MEDS_BIRTH")
    year = pl.when(born).then(pl.lit(datetime(1700, 1, 1))).otherwise(pl.col("time"))
    change(tree, "events", lambda frame: frame.with_columns(year.alias("time"), year.alias("available_time")))


@breaks("events.born_or_dead_twice")
def born_twice(tree: ReleaseLayout) -> None:
    change(tree, "events", first_lab("code", "MEDS_BIRTH"))


@breaks("ledger.*")
def no_ledger(tree: ReleaseLayout) -> None:
    no_events(tree)
    write_table(tree.ledger, pl.read_parquet(tree.ledger).clear(), LEDGER, "ledger")


@breaks("ledger.difference")
def lost_rows(tree: ReleaseLayout) -> None:
    ledger_rows(tree, "labs", "raw", 190)


@breaks("ledger.events_unexplained")
def lost_event(tree: ReleaseLayout) -> None:
    lab = (pl.col("subject_id") == 0) & (pl.col("source") == "labs")
    change(tree, "events", lambda frame: frame.filter(~(lab & (lab.cum_sum() == 1))))


@breaks("ledger.quarantined_share")
def many_quarantined(tree: ReleaseLayout) -> None:
    ledger_rows(tree, "labs", "raw", 190)
    ledger_rows(tree, "labs", "quarantined", 10)
    patients.write_quarantine(tree, 10)


@breaks("ledger.quarantine_unlisted")
def unlisted(tree: ReleaseLayout) -> None:
    patients.write_quarantine(tree, 2)


@breaks("ledger.estimated_share")
def mostly_estimated(tree: ReleaseLayout) -> None:
    estimated = pl.when(pl.col("source") == "labs").then(pl.lit("estimated")).otherwise(pl.col("availability"))
    change(tree, "events", lambda frame: frame.with_columns(estimated.alias("availability")))


@breaks("items.duplicate_keys")
def same_key(tree: ReleaseLayout) -> None:
    refused = pl.col("verdict") == "refused_localizer"
    change(tree, "items", lambda frame: pl.concat([frame, frame.filter(refused)]))


@breaks("items.ok_incomplete")
def no_encoder(tree: ReleaseLayout) -> None:
    change(tree, "items", of_item("ct-a", encoder=None))


@breaks("items.ok_units_off")
def lost_slices(tree: ReleaseLayout) -> None:
    change(tree, "items", of_item("ct-a", units_encoded=39))


@breaks("items.ok_events_off")
def unseen_image(tree: ReleaseLayout) -> None:
    change(tree, "events", lambda frame: frame.filter(pl.col("item_key").fill_null("") != "wsi-a"))


@breaks("items.verdict")
def unknown_verdict(tree: ReleaseLayout) -> None:
    change(tree, "items", of_item("ct-scout", verdict="fine"))


@breaks("items.failed_share")
def many_failed(tree: ReleaseLayout) -> None:
    change(tree, "items", of_item("ct-scout", verdict="failed_no_time"))


def all_splits() -> dict[int, str]:
    return {subject: patients.split_of(subject) for subject in range(patients.SUBJECT_COUNT)}


@breaks("splits.subjects_without_split")
def unassigned(tree: ReleaseLayout) -> None:
    """The subject has no tokens, so that no shard lacks it."""
    splits = {subject: split for subject, split in all_splits().items() if subject != 5}
    releases.write_scheme_subjects(tree, list(splits.items()))
    releases.write_subject_splits(tree, splits)
    without_tokens(tree, 5)


def without_tokens(tree: ReleaseLayout, subject: int) -> None:
    timelines = releases.read_all(tree, "timeline").filter(pl.col("subject_id") != subject)
    releases.write_buckets(tree, timelines, "timeline")
    patients.write_shards(tree, timelines, all_splits())


@breaks("splits.subjects_in_two_splits")
def in_two(tree: ReleaseLayout) -> None:
    releases.write_split_ledger(tree, [*all_splits().items(), (5, "tuning")])


@breaks("splits.published_differently")
def published_elsewhere(tree: ReleaseLayout) -> None:
    releases.write_subject_splits(tree, all_splits() | {5: "held_out"})


@breaks("splits.ledgers_changed")
def changed_ledger(tree: ReleaseLayout) -> None:
    path = tree.split_ledger(releases.SCHEME)
    other = pl.lit("another").alias("stratum")
    write_table(path, pl.read_parquet(path).with_columns(other), SPLIT_LEDGER, "split ledger")


@breaks("splits.subjects_moved")
def moved_subject(tree: ReleaseLayout) -> None:
    releases.write_split_ledger(before_of(tree), [*all_splits().items(), (4711, "held_out")])


@breaks("splits.share_z")
def other_fractions(tree: ReleaseLayout) -> None:
    FRACTIONS["splits.share_z"] = {"train": 0.4, "tuning": 0.3, "held_out": 0.3}


# What is measured of subjects, for mutations of how they are split: a tree of so many subjects would take long.
PARTS: dict[str, pl.DataFrame] = {}
SIZES = {"train": 800, "tuning": 100, "held_out": 100}


def in_splits(**columns: Callable[[str, int], np.ndarray[Any, Any]]) -> pl.DataFrame:
    """1,000 subjects that are alike in all splits, but for the columns that a function of split and size gives."""

    def part(split: str, size: int) -> pl.DataFrame:
        place = (np.arange(size) + 0.5) / size
        made = {
            "tokens": np.exp(3 + 4 * place).round(),
            "interval": 100 * place**3,
            "set": np.where(place > 0.8, "CT", "structured only"),
        }
        return pl.DataFrame(made | {name: make(split, size) for name, make in columns.items()}).with_columns(
            pl.lit(split).alias("split"), pl.col("tokens").cast(pl.Int64)
        )

    return pl.concat([part(split, size) for split, size in SIZES.items()])


def stretched(by: float) -> Callable[[str, int], np.ndarray[Any, Any]]:
    """Lengths whose logarithms lie higher in tuning."""

    def lengths(split: str, size: int) -> np.ndarray[Any, Any]:
        place = (np.arange(size) + 0.5) / size
        return np.exp(3 + 4 * place + by * (split == "tuning"))

    return lengths


@breaks("splits.length_smd_ratio")
def few_short_ones(tree: ReleaseLayout) -> None:
    """A quarter of tuning is far shorter: too few for the distance of the distributions, not for the mean."""

    def lengths(split: str, size: int) -> np.ndarray[Any, Any]:
        place = (np.arange(size) + 0.5) / size
        return np.where((split == "tuning") & (place < 0.25), 2, np.exp(10 + 0.5 * place))

    PARTS["splits.length_smd_ratio"] = in_splits(tokens=lengths)


@breaks("splits.length_ks_ratio")
def at_both_ends(tree: ReleaseLayout) -> None:
    """The mean is the same and the distribution is another."""

    def lengths(split: str, size: int) -> np.ndarray[Any, Any]:
        place = (np.arange(size) + 0.5) / size
        return np.exp(5 + (np.where(place > 0.5, 3, -3) if split == "tuning" else 0.2 * (place - 0.5)))

    PARTS["splits.length_ks_ratio"] = in_splits(tokens=lengths)


@breaks("splits.interval_smd_ratio")
def slow_tuning(tree: ReleaseLayout) -> None:
    PARTS["splits.interval_smd_ratio"] = in_splits(
        interval=lambda split, size: 100 * ((np.arange(size) + 0.5) / size) ** 3 + 25 * (split == "held_out")
    )


@breaks("splits.modality_ratio")
def images_in_tuning(tree: ReleaseLayout) -> None:
    PARTS["splits.modality_ratio"] = in_splits(
        set=lambda split, size: np.where(
            np.arange(size) < size * (0.45 if split == "tuning" else 0.2), "CT", "structured only"
        )
    )


@breaks("splits.match_ratio")
def a_little_longer(tree: ReleaseLayout) -> None:
    """More than two standard errors, and less than is gross."""
    PARTS["splits.match_ratio"] = in_splits(tokens=stretched(0.35))


def change_timelines(tree: ReleaseLayout, edit: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
    """Changes timelines, and packs them as they are."""
    change(tree, "timeline", edit)
    patients.write_shards(tree, releases.read_all(tree, "timeline"), all_splits())


def with_keys(other: dict[str, str]) -> Callable[[pl.DataFrame], pl.DataFrame]:
    return lambda frame: frame.with_columns(pl.col("item_key").replace(other))


@breaks("shards.token_difference")
def lost_pack(tree: ReleaseLayout) -> None:
    timelines = releases.read_all(tree, "timeline").filter(pl.col("subject_id") != 3)
    patients.write_shards(tree, timelines, all_splits())


@breaks("shards.foreign_subjects")
def leaked_subject(tree: ReleaseLayout) -> None:
    patients.write_shards(tree, releases.read_all(tree, "timeline"), all_splits() | {5: "held_out"})


@breaks("shards.malformed_packs")
def other_context(tree: ReleaseLayout) -> None:
    timelines = releases.read_all(tree, "timeline").filter(pl.col("subject_id") % 10 == 8)
    path = tree.shard(releases.PROFILE, "tuning", 0)
    write_shard(path, patients.make_packs(timelines, 64), patients.header("tuning", 64))


@breaks("shards.ids_out_of_range")
def unknown_token(tree: ReleaseLayout) -> None:
    """In the timeline as in the shard."""
    subject = pl.col("subject_id") == 8
    hit = subject & (subject.cum_sum() == 1)
    unknown = pl.when(hit).then(len(patients.VOCABULARY_ROWS)).otherwise(pl.col("token_id")).cast(pl.UInt32)
    change_timelines(tree, lambda frame: frame.with_columns(unknown.alias("token_id")))


@breaks("shards.dangling_images")
def dangling_image(tree: ReleaseLayout) -> None:
    change_timelines(tree, with_keys({"ct-a": "ct-nowhere"}))


@breaks("shards.foreign_images")
def exchanged_images(tree: ReleaseLayout) -> None:
    """As if tokenising had given a patient another's image: the timelines say so too."""
    keys = read_shard(tree.shard(releases.PROFILE, "train", 0))[1].image_key.to_pylist()
    assert keys == ["ct-a", "wsi-a"]
    change_timelines(tree, with_keys({"ct-a": "ct-b"}))


@breaks("shards.misplaced_images")
def other_modality(tree: ReleaseLayout) -> None:
    modality = np.array(read_shard(tree.shard(releases.PROFILE, "train", 0))[1].image_modality)
    releases.change_shard(tree, "train", image_modality=modality[::-1])


@breaks("shards.changed_subjects")
def other_time(tree: ReleaseLayout) -> None:
    time = np.array(read_shard(tree.shard(releases.PROFILE, "tuning", 0))[1].time)
    time[0, 1] += 1
    releases.change_shard(tree, "tuning", time=time)


@breaks("shards.max_segments")
def many_segments(tree: ReleaseLayout) -> None:
    """One pack of 65 segments: each subject's tokens are cut into single ones."""
    packs = read_shard(tree.shard(releases.PROFILE, "tuning", 0))[1]
    empty = 65 - int(packs.segments_per_pack[0])
    releases.change_shard(
        tree,
        "tuning",
        segments_per_pack=np.array([65], np.int32),
        segment_length=np.concatenate([packs.segment_length, np.zeros(empty, np.int32)]),
        segment_subject=np.concatenate([packs.segment_subject, np.repeat(packs.segment_subject[:1], empty)]),
        segment_offset=np.zeros(65, np.int32),
        segment_origin=np.zeros(65, np.int64),
    )


@breaks("shards.misplaced_segments")
def late_start(tree: ReleaseLayout) -> None:
    packs = read_shard(tree.shard(releases.PROFILE, "tuning", 0))[1]
    releases.change_shard(tree, "tuning", segment_offset=packs.segment_offset + 1)


@breaks("shards.drop_difference")
@breaks("shards.misplaced_tiers")
@breaks("shards.budget_differences")
@breaks("shards.budget_ks_ratio")
@breaks("shards.budgets_short")
def another_plan(_: ReleaseLayout) -> None:
    """Changes nothing: tests/validation/measure/test_shards.py breaks plans. Their figure is set by the test."""


OF_PLANS = {
    "shards.drop_difference", "shards.misplaced_tiers", "shards.budget_differences", "shards.budget_ks_ratio",
    "shards.budgets_short",
}  # fmt: skip


@breaks("shards.fill_judged")
def empty_packs(tree: ReleaseLayout) -> None:
    timelines = releases.read_all(tree, "timeline").filter(pl.col("subject_id") % 10 < 8)
    packs = patients.make_packs(timelines, 10)
    wide = {name: np.zeros((len(packs), patients.CONTEXT), dtype) for name, dtype in
            (("input_ids", np.uint16), ("token_type", np.uint8), ("time", np.int64))}  # fmt: skip
    for name, matrix in wide.items():
        matrix[:, : getattr(packs, name).shape[1]] = getattr(packs, name)
    write_shard(tree.shard(releases.PROFILE, "train", 0), replace(packs, **wide), patients.header("train"))


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
def test_a_mutation_fails_exactly_its_expectation(tree: ReleaseLayout, name: str) -> None:
    MUTATIONS[name](tree)
    measured = measure(tree, FRACTIONS.get(name), **around.KNOWN.get(name, {}))
    if name in PARTS:
        measured = with_area(measured, "splits", compared(PARTS[name]))
    if name in OF_PLANS:
        column = pl.lit(2).alias(name.split(".")[1])
        measured = with_area(measured, "shards", measured.areas["shards"].with_columns(column))
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


def test_data_docs_are_written_without_values_and_fetch_nothing(tree: ReleaseLayout) -> None:
    lost_rows(tree)
    judge(measure(tree), tree.quality / "data_docs")
    pages = list((tree.quality / "data_docs").rglob("*.html"))
    assert {page.name for page in pages} >= {"index.html", "events.html", "shards.html"}
    texts = [page.read_text(encoding="utf-8") for page in pages]
    assert any("raw rows are exactly events" in text for text in texts)
    for text in texts:
        assert "<script" not in text
        assert 'rel="stylesheet" href="http' not in text
        assert 'src="http' not in text
        # A number that stands alone: Data Docs' own identifiers and moments may hold any digits.
        assert not re.search(r"(?<![\w.-])(?<!\d:)190(?!\w)", text)


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


def test_second_deaths_that_the_ledger_explains_are_not_missed(tree: ReleaseLayout) -> None:
    lost_event(tree)
    add_to_ledger(tree, ("all tables", "conflict", "further_birth_or_death", 1, 0))
    measured = measure(tree)
    assert failed(judge(measured, None)) == set()
    assert "all tables" not in measured.areas["ledger"]["table"].to_list()


def test_second_deaths_in_quarantine_explain_nothing_else(tree: ReleaseLayout) -> None:
    """Their rows made nothing, and the ledger says so already: the event that is gone is another's."""
    lost_event(tree)
    add_to_ledger(
        tree,
        ("all tables", "conflict", "further_birth_or_death", 1, 0),
        ("patients", "quarantined", "further_birth_or_death", 1, 0),
        ("patients", "raw", "", 1, 0),
    )
    assert failed(judge(measure(tree), None)) == {"ledger.events_unexplained", "ledger.quarantined_share"}


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
