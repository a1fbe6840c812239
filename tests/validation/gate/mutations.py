"""A right release, measured; and for each expectation the change that breaks it alone."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Any

import numpy as np
import polars as pl

from tests.support import patients, releases
from tests.validation.gate import around, clinifuse, labels
from warehouse.layout import ReleaseLayout
from warehouse.parquet import write_table
from warehouse.schemas import EVENTS, LEDGER, SPLIT_LEDGER
from warehouse.shards.file import read_shard, write_shard

Mutation = Callable[[ReleaseLayout], None]
MUTATIONS: dict[str, Mutation] = {**around.MUTATIONS, **clinifuse.MUTATIONS, **labels.MUTATIONS}
FRACTIONS: dict[str, dict[str, float]] = {}  # of mutations that change the scheme, not the tree


def before_of(tree: ReleaseLayout) -> ReleaseLayout:
    """Where the release before the tree's lies, of which only lags are read."""
    return ReleaseLayout(tree.path.with_name("before"))


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


@breaks("items.waiting_share")
def many_waiting(tree: ReleaseLayout) -> None:
    change(tree, "items", of_item("ct-scout", verdict="waiting_for_vector"))


def under_a_second_encoder(tree: ReleaseLayout, *keys: str, **values: object) -> None:
    """Rows of images under a second encoder of their modality."""
    second = pl.col("item_key").is_in(keys)
    literals = [pl.lit(value).alias(name) for name, value in {"store": "second-0123", **values}.items()]
    change(tree, "items", lambda frame: pl.concat([frame, frame.filter(second).with_columns(literals)]))


@breaks("encoders.items_not_given")
def not_given_to_both(tree: ReleaseLayout) -> None:
    under_a_second_encoder(tree, "ct-a")


@breaks("encoders.encoder_failed_share")
def failed_under_one(tree: ReleaseLayout) -> None:
    under_a_second_encoder(tree, "ct-a", "ct-b", verdict="failed_not_finite")


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
