"""Splits: exact quotas in every stratum, nobody ever moves, the same for any order of input, any number of schemes."""

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipelines.split import SPLITS, assign, unevenness
from pipelines.splitting.ledger import INHERITED, Freeze, no_ledger
from pipelines.splitting.order import order_of
from pipelines.splitting.quota import WHOLE, Quota
from pipelines.splitting.strata import lined_up, quartiles, spread, strata
from tests.support.tokens.populations import SCHEMES, Fractions, freeze_all, frozen, population


def furthest(ledger: pl.DataFrame, fractions: Fractions) -> float:
    """How far the number of any split is from its quota, in subjects."""
    counts = np.array([(ledger["split"] == name).sum() for name in SPLITS])
    return float(np.abs(counts - np.array(fractions) * len(ledger)).max())


def ks(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> float:
    grid = np.unique(np.concatenate([first, second]))
    below = [np.searchsorted(np.sort(sample), grid, side="right") / len(sample) for sample in (first, second)]
    return float(np.abs(below[0] - below[1]).max())


# --- quotas


@pytest.mark.parametrize("fractions", SCHEMES.values(), ids=SCHEMES)
def test_every_prefix_of_a_line_is_within_one_of_its_quota_under_every_phase(fractions: Fractions) -> None:
    quota = Quota.of(dict(zip(SPLITS, fractions, strict=True)))
    places = np.arange(400)
    for pair in quota.phases():
        dealt = np.eye(3)[quota.deal(places, pair)].cumsum(axis=0)
        assert np.abs(dealt - (places + 1)[:, None] * quota.fractions).max() <= 1 + 1e-6
        assert not dealt[:, quota.fractions == 0].any()


def test_a_line_of_millions_keeps_its_quota_where_fractions_have_no_decimals() -> None:
    quota = Quota.of({"train": 1 / 3, "tuning": 1 / 7, "held_out": 1 - 1 / 3 - 1 / 7})
    assert quota.train + quota.tuning + quota.held_out == WHOLE
    for pair in quota.phases()[::37]:
        counts = quota.counts(np.array([10**7, 10**7 + 1, 3 * 10**9]), pair)
        assert np.abs(counts[:2] - np.array([[10**7], [10**7 + 1]]) * quota.fractions).max() <= 1 + 1e-6
        assert counts.sum(axis=1).tolist() == [10**7, 10**7 + 1, 3 * 10**9]


@pytest.mark.parametrize("fractions", SCHEMES.values(), ids=SCHEMES)
@pytest.mark.parametrize("seed", range(3))
def test_each_stratum_and_the_whole_are_within_one_subject_of_their_quota(fractions: Fractions, seed: int) -> None:
    subjects = population(500, seed)
    ledger, freeze = freeze_all(subjects, fractions)
    assert sorted(ledger["subject_id"]) == sorted(subjects["subject_id"])
    assert ledger["stratum"].n_unique() > 20
    worst = {stratum["stratum"][0]: furthest(stratum, fractions) for stratum in ledger.partition_by("stratum")}
    assert max(worst.values()) <= 1 + 1e-6, worst
    assert furthest(ledger, fractions) <= 1 + 1e-6
    assert freeze.strata == dict(ledger["stratum"].value_counts().iter_rows())


@pytest.mark.whole
@settings(max_examples=25, deadline=None)
@given(
    st.tuples(st.integers(0, 100), st.integers(0, 100)).filter(lambda pair: sum(pair) <= 100),
    st.lists(st.integers(0, 120), min_size=1, max_size=4),
)
@example((0, 0), [7, 50])
@example((100, 0), [7, 50])
@example((40, 60), [1, 1, 1])
def test_any_fractions_and_any_growth_keep_every_stratum_within_one(pair: tuple[int, int], growth: list[int]) -> None:
    tuning, held = (number / 100 for number in pair)
    fractions = (round(1 - tuning - held, 2), tuning, held)
    known, first = no_ledger(), 1
    freeze = frozen(population(200), fractions)
    for night, number in enumerate(growth):
        known, _, freeze = assign(population(number, seed=night, first=first), known, freeze)
        first += number
    assert len(known) == sum(growth)
    for stratum in known.partition_by("stratum"):
        assert furthest(stratum, fractions) <= 1 + 1e-6
        assert stratum["ordinal"].to_list() == list(range(len(stratum)))


def test_a_ledger_that_was_dealt_by_other_rules_goes_on() -> None:
    """Everyone so far is in held_out, which no turn leads to: the others get theirs from here on."""
    subjects = population(400)
    known = freeze_all(subjects[:100])[0].with_columns(pl.lit("held_out").alias("split"))
    ledger, _, _ = assign(subjects, known, frozen(subjects))
    assert ledger[:100].equals(known)
    assert furthest(ledger[100:], SCHEMES["mehrt"]) <= 20


@pytest.mark.whole
def test_the_whole_stays_at_its_quota_over_many_nights() -> None:
    """A quarter of the subjects at first, then two a night: strata are rounded so that their sum is right."""
    everyone = population(200)
    ledger, freeze = freeze_all(everyone[:50])
    for end in range(52, 201, 2):
        ledger, _, freeze = assign(everyone[:end], ledger, freeze)
        assert furthest(ledger, SCHEMES["mehrt"]) <= 2


# --- nobody moves


@settings(max_examples=15, deadline=None)
@given(st.integers(20, 200), st.integers(0, 120), st.integers(0, 2**32), st.floats(0, 1))
def test_nobody_moves_whatever_changes(number: int, more: int, seed: int, share: float) -> None:
    """Lengths, intervals and images change, some vanish for a night, others come, rows are shuffled."""
    subjects = population(number, seed)
    first, freeze = freeze_all(subjects)
    changed = subjects.with_columns(
        pl.col("events") * 50,
        (1 - pl.col("ct").clip(0, 1)).alias("ct"),
        (400 - pl.col("mean_interval_days")).abs().alias("mean_interval_days"),
    )
    assert not strata(changed, freeze.edges).cast(pl.String).equals(strata(subjects, freeze.edges).cast(pl.String))
    nights = [
        changed.sample(fraction=share, seed=1),
        pl.concat([population(more, seed + 1, first=10_000), changed]).sample(fraction=1, shuffle=True, seed=2),
        changed,
    ]
    ledger = first
    for night in nights:
        before = ledger
        ledger, _, freeze = assign(night, before, freeze)
        assert ledger[: len(before)].equals(before)
    assert len(ledger) == number + more
    assert ledger["subject_id"].is_unique().all()


def test_shuffled_input_gives_the_same_ledger() -> None:
    subjects = population(300)
    ledger, freeze = freeze_all(subjects)
    again, same = freeze_all(subjects.sample(fraction=1, shuffle=True, seed=3))
    assert again.equals(ledger)
    assert same == freeze


def test_schemes_deal_independently() -> None:
    subjects = population(500)
    first, second = (
        assign(subjects, no_ledger(), frozen(subjects, scheme=name))[0].sort("subject_id")["split"]
        for name in ("a", "b")
    )
    assert not first.equals(second)


# --- strata and their lines


def test_a_stratum_is_named_by_whatever_modalities_there_are() -> None:
    subjects = population(3).with_columns(ecg=pl.Series([0, 2, 1]), ct=pl.Series([0, 0, 3]), wsi=pl.lit(0))
    edges = {"events": [0.0, 0.0, 1e9], "mean_interval_days": [1e9] * 3}
    assert strata(subjects, edges).to_list() == ["none|2|0", "ecg|2|0", "ct+ecg|2|0"]


def test_a_line_is_a_permutation_of_its_stratum_and_follows_the_length() -> None:
    subjects = population(2_000)
    stratum = strata(subjects, quartiles(subjects))
    line = lined_up(subjects, stratum, 7)
    assert sorted(line["subject_id"]) == sorted(subjects["subject_id"])
    of = dict(zip(subjects["subject_id"], stratum.cast(pl.String), strict=True))
    assert line["stratum"].cast(pl.String).to_list() == [of[subject] for subject in line["subject_id"]]
    lengths = line.join(subjects, on="subject_id", how="left", maintain_order="left")
    for members in lengths.partition_by("stratum"):
        assert members["place"].to_list() == list(range(len(members)))
        if len(members) > 60:
            assert members.select(pl.corr("place", "events", method="spearman")).item() > 0.6
    assert not lined_up(subjects, stratum, 8).equals(line)


def test_bits_in_reverse_spread_places_evenly() -> None:
    assert spread(np.array([0, 1, 2, 3])).tolist() == [0, 1 << 31, 1 << 30, 3 << 30]
    numbers = np.random.default_rng(0).integers(0, 2**32, 50)
    assert spread(numbers).tolist() == [int(f"{number:032b}"[::-1], 2) for number in numbers.tolist()]


def test_unevenness_is_the_largest_distance_in_length_or_interval() -> None:
    subjects = population(400, seed=2)
    splits = np.random.default_rng(1).integers(0, 3, 400).astype(np.uint8)
    expected = max(
        ks(values[splits == split], values)
        for column in ("events", "mean_interval_days")
        for values in [subjects[column].fill_null(0).to_numpy()]
        for split in range(3)
    )
    assert unevenness(subjects, subjects["subject_id"], splits) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(3))
def test_lengths_are_far_more_alike_than_by_chance(seed: int) -> None:
    subjects = population(20_000, seed)
    ledger, _ = freeze_all(subjects)
    lengths = ledger.join(subjects, on="subject_id", how="left", maintain_order="left")["events"].to_numpy()
    train = lengths[(ledger["split"] == "train").to_numpy()]
    for name in ("tuning", "held_out"):
        assert ks(train, lengths[(ledger["split"] == name).to_numpy()]) <= 0.010


@pytest.mark.whole
def test_a_length_does_not_tell_the_split() -> None:
    """At each place of a stratum's order of lengths, every split occurs as often as anywhere."""
    held = []
    for seed in range(40):
        subjects = population(1_000, seed)
        ledger, _, _ = assign(subjects, no_ledger(), frozen(subjects, scheme=f"s{seed}"))
        ranked = ledger.join(subjects, on="subject_id").sort("stratum", "events", "subject_id")
        place = pl.int_range(pl.len()).over("stratum").alias("place")
        held.append(ranked.select(place, pl.col("split") == "held_out").filter(pl.col("place") < 20))
    share = pl.concat(held).group_by("place").agg(pl.col("split").mean())["split"]
    assert len(share) == 20
    assert float(str(share.min())) > 0.05 and float(str(share.max())) < 0.15


# --- the order of subsets


def nights_of(sizes: list[int]) -> tuple[list[tuple[pl.DataFrame, Freeze]], pl.DataFrame]:
    """Ledger and freeze after each night with so many new subjects, and all subjects."""
    everyone = population(sum(sizes))
    freeze, ledger, end, nights = frozen(everyone[: sizes[0]]), no_ledger(), 0, []
    for size in sizes:
        end += size
        ledger, _, freeze = assign(everyone[:end], ledger, freeze)
        nights.append((ledger, freeze))
    return nights, everyone


@pytest.mark.whole
@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 150), min_size=1, max_size=4))
def test_new_subjects_stand_behind_and_change_no_place(sizes: list[int]) -> None:
    nights, _ = nights_of(sizes)
    orders = [order_of(ledger, freeze) for ledger, freeze in nights]
    assert len(np.unique(orders[-1])) == sum(sizes)
    assert np.array_equal(np.floor(orders[-1]), np.repeat(np.arange(len(sizes)), sizes))
    for order in orders:
        assert np.array_equal(order, orders[-1][: len(order)])


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.02, 0.7))
def test_a_prefix_is_more_like_the_whole_than_a_random_one(seed: int, share: float) -> None:
    everyone = population(3_000, seed)
    ledger, freeze = freeze_all(everyone)
    train = (
        ledger.with_columns(pl.Series("order", order_of(ledger, freeze)))
        .filter(split="train")
        .sort("order")
        .join(everyone, on="subject_id", how="left", maintain_order="left")
    )
    size = int(share * len(train))
    lengths, images = train["events"].to_numpy(), train["ct"].to_numpy() > 0
    rng = np.random.default_rng(seed)
    chance = [ks(rng.permutation(lengths)[:size], lengths) for _ in range(40)]
    assert ks(lengths[:size], lengths) < np.median(chance)
    assert abs(images[:size].mean() - images.mean()) <= 4 / size


def test_a_prefix_of_every_split_has_its_share() -> None:
    [(ledger, freeze)], _ = nights_of([4_000])
    ordered = ledger.with_columns(pl.Series("order", order_of(ledger, freeze))).sort("order")
    for size in (100, 500, 2_000):
        assert furthest(ordered[:size], SCHEMES["mehrt"]) <= 4


def test_those_who_inherit_have_their_place_too() -> None:
    subjects = population(60)
    ids = subjects["subject_id"]
    ledger, _, freeze = assign(subjects, no_ledger(), frozen(subjects), pl.DataFrame({"old": ids[:1], "new": ids[1:2]}))
    assert (ledger["stratum"] == INHERITED).sum() == 1
    assert len(np.unique(order_of(ledger, freeze))) == 60


def test_an_empty_ledger_has_an_empty_order() -> None:
    subjects = population(0)
    ledger, freeze = freeze_all(subjects)
    assert ledger.is_empty() and not freeze.nights
    assert len(order_of(ledger, freeze)) == 0
