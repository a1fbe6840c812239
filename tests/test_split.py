"""Splits: exact quotas in every stratum, nobody ever moves, the same for any order of input."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import split
from pipelines.config import SplitConfig
from pipelines.split import SPLITS, assign, pattern, quartiles, strata
from warehouse.errors import TimeloomError
from warehouse.hashing import bucket_of
from warehouse.schemas import SPLIT_LEDGER, SUBJECTS, read_frame, write_table

MEHRT = SplitConfig()
SCHEMES = {
    "mehrt": MEHRT,
    "multimodal": SplitConfig(scheme="multimodal", train=0.8, tuning=0.1, held_out=0.1),
    "clinifuse": SplitConfig(scheme="clinifuse", train=0.95, tuning=0.025, held_out=0.025),
}
NOBODY = pl.DataFrame(pl.from_arrow(SPLIT_LEDGER.empty_table()))


def population(number: int, seed: int = 0, first: int = 1) -> pl.DataFrame:
    """Subjects with lognormal lengths, intervals and images in 15 %, as the simulated hospital has."""
    rng = np.random.default_rng(seed)
    image = rng.random(number)
    events = rng.lognormal(5, 1.2, number).astype(np.int64) + 1
    return pl.DataFrame(
        {
            "subject_id": np.arange(first, first + number, dtype=np.int64) * 7919,
            "events": events,
            "static_events": np.ones(number, dtype=np.int64),
            "ct": (image < 0.12).astype(np.int64),
            "wsi": ((image > 0.06) & (image < 0.15)).astype(np.int64),
            "mean_interval_days": rng.lognormal(2, 1, number),
        }
    ).with_columns(pl.when(pl.col("events") > 2).then("mean_interval_days").alias("mean_interval_days"))


def fractions(scheme: SplitConfig) -> np.ndarray[Any, Any]:
    return np.array([scheme.train, scheme.tuning, scheme.held_out])


def furthest(ledger: pl.DataFrame, scheme: SplitConfig) -> float:
    """How far the number of any split is from its quota, in subjects."""
    counts = np.array([(ledger["split"] == name).sum() for name in SPLITS])
    return float(np.abs(counts - fractions(scheme) * len(ledger)).max())


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_every_prefix_of_the_pattern_is_within_one_of_its_quota(scheme: SplitConfig) -> None:
    places = pattern(scheme)
    dealt = np.eye(3)[places].cumsum(axis=0)
    quota = np.arange(1, len(places) + 1)[:, None] * fractions(scheme)
    assert np.abs(dealt - quota).max() < 1


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
@pytest.mark.parametrize("seed", range(4))
def test_each_stratum_and_the_whole_are_within_one_subject_of_their_quota(scheme: SplitConfig, seed: int) -> None:
    subjects = population(500, seed)
    ledger = assign(subjects, NOBODY, scheme, quartiles(subjects))
    assert sorted(ledger["subject_id"]) == sorted(subjects["subject_id"])
    assert ledger["stratum"].n_unique() > 20
    worst = {one["stratum"][0]: furthest(one, scheme) for one in ledger.partition_by("stratum")}
    assert max(worst.values()) <= 1 + 1e-6, worst
    assert furthest(ledger, scheme) <= 1 + 1e-6


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(st.integers(1, 98), st.integers(1, 98)).filter(lambda pair: sum(pair) < 100),
    st.lists(st.integers(0, 120), min_size=1, max_size=4),
)
def test_any_fractions_and_any_growth_keep_every_stratum_within_one(pair: tuple[int, int], growth: list[int]) -> None:
    tuning, held = (number / 100 for number in pair)
    scheme = SplitConfig(scheme="x", train=round(1 - tuning - held, 2), tuning=tuning, held_out=held)
    known, first = NOBODY, 1
    edges = quartiles(population(200))
    for night, number in enumerate(growth):
        known = assign(population(number, seed=night, first=first), known, scheme, edges)
        first += number
    for one in known.partition_by("stratum"):
        assert furthest(one, scheme) <= 1 + 1e-6


def test_adding_subjects_moves_nobody_and_appends() -> None:
    subjects = population(300)
    edges = quartiles(subjects)
    first = assign(subjects, NOBODY, MEHRT, edges)
    more = pl.concat([population(200, seed=5, first=5_000), subjects.sample(fraction=1, shuffle=True, seed=1)])
    second = assign(more, first, MEHRT, edges)
    assert second[: len(first)].equals(first)
    assert len(second) == 500
    assert assign(more, second, MEHRT, edges).equals(second)
    for one in second.partition_by("stratum"):
        assert one["ordinal"].sort().diff().drop_nulls().eq(1).all()


def test_nobody_moves_when_length_and_images_change() -> None:
    subjects = population(300)
    edges = quartiles(subjects)
    first = assign(subjects, NOBODY, MEHRT, edges)
    changed = subjects.with_columns(pl.col("events") * 50, pl.lit(1, pl.Int64).alias("ct"))
    assert not strata(changed, edges).equals(strata(subjects, edges))
    assert assign(changed, first, MEHRT, edges).equals(first)


def test_shuffled_input_gives_the_same_ledger() -> None:
    subjects = population(300)
    shuffled = subjects.sample(fraction=1, shuffle=True, seed=3)
    assert assign(subjects, NOBODY, MEHRT, quartiles(subjects)).equals(
        assign(shuffled, NOBODY, MEHRT, quartiles(shuffled))
    )


def test_schemes_deal_independently() -> None:
    subjects = population(500)
    edges = quartiles(subjects)
    one, other = (
        assign(subjects, NOBODY, SplitConfig(scheme=name), edges).sort("subject_id")["split"] for name in ("a", "b")
    )
    assert not one.equals(other)


# --- the stage


def run(base: Path, subjects: pl.DataFrame, scheme: SplitConfig = MEHRT, before: Path | None = None) -> pl.DataFrame:
    buckets = bucket_of(subjects["subject_id"].to_numpy(), 3)
    paths = []
    for bucket in range(3):
        paths.append(f"subjects/{bucket:04d}.parquet")
        mine = subjects.filter(pl.Series(buckets == bucket))
        write_table(base / paths[-1], mine, SUBJECTS, "subjects")
    ledger = before / "splits" / f"{scheme.scheme}.parquet" if before else None
    params = {
        "scheme": scheme.model_dump(),
        "subjects": paths,
        "ledger": ledger and str(ledger),
        "freeze": ledger and str(ledger.with_suffix(".json")),
    }
    result = split.run(params, base)
    found = read_frame(base / "metadata/subject_splits.parquet")
    assert sum(result.counts["subjects"].values()) == len(found) == len(subjects)
    return found


def test_totals_at_five_hundred(tmp_path: Path) -> None:
    found = run(tmp_path, population(500))
    assert dict(found["split"].value_counts().iter_rows()) == {"train": 425, "tuning": 25, "held_out": 50}


def test_edges_are_frozen_and_those_who_left_stay_in_the_ledger(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    subjects = population(200)
    run(first, subjects)
    longer = pl.concat([subjects[50:], population(100, seed=9, first=9_000).with_columns(pl.col("events") * 100)])
    run(second, longer, before=first)
    edges = [json.loads((base / "splits/mehrt.json").read_text())["edges"] for base in (first, second)]
    assert edges[0] == edges[1] != quartiles(longer)
    old, new = (read_frame(base / "splits/mehrt.parquet") for base in (first, second))
    assert new[:200].equals(old)
    assert len(new) == 300


def test_other_fractions_under_the_same_name_are_refused(tmp_path: Path) -> None:
    run(tmp_path / "first", population(50))
    changed = SplitConfig(train=0.8, tuning=0.1, held_out=0.1)
    with pytest.raises(TimeloomError, match="frozen with other fractions; give the new fractions a scheme name"):
        run(tmp_path / "second", population(50), changed, before=tmp_path / "first")
    run(tmp_path / "third", population(50), SCHEMES["multimodal"])


def test_a_buckets_hash_changes_with_its_own_subjects_alone(tmp_path: Path) -> None:
    subjects = population(60)
    run(tmp_path, subjects)
    path = tmp_path / "metadata/subject_splits.parquet"
    before = split.slice_hashes(path, 3)
    frame = read_frame(path)
    moved = frame.with_columns(
        pl.when(pl.int_range(pl.len()) == 0).then(pl.lit("tuning")).otherwise("split").alias("split")
    )
    assert frame["split"][0] == "train"
    moved.sample(fraction=1, shuffle=True, seed=1).write_parquet(path)
    after = split.slice_hashes(path, 3)
    own = int(bucket_of(frame["subject_id"][:1].to_numpy(), 3)[0])
    assert {bucket for bucket in before if before[bucket] != after[bucket]} == {own}
