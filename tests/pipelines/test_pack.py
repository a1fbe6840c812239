"""Packing: every mode loses only the tokens that the plan declares, and best fit equals a naive best fit."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import pack
from pipelines.packing import lay as laying
from pipelines.packing.lay import best_fit, cut
from pipelines.profiles.plans import PlanConfig
from pipelines.subset import tiers
from tests.support.tokens.packing_cases import CONTEXT, EMPTY, LENGTHS, expected, packed, same, timelines, unpacked
from tests.support.tokens.packing_plans import Case
from warehouse.errors import TimeloomError
from warehouse.losses import LOSS_TARGETS
from warehouse.parquet import write_table
from warehouse.schemas import SPLITS, TIMELINES
from warehouse.shards.file import read_shard
from warehouse.shards.packs import MAX_SEGMENTS
from warehouse.tokens import IMAGE_TOKENS, TokenType


@settings(max_examples=30, deadline=None)
@given(LENGTHS, st.integers(0, 5))
def test_the_order_of_subjects_does_not_matter(lengths: list[int], seed: int) -> None:
    tokens = timelines(lengths, seed)
    parts = tokens.partition_by("subject_id")
    (first, header), (second, _) = packed(tokens), packed(pl.concat([EMPTY, *parts[::-1]]))
    same(first, second)
    assert unpacked(first, header) == expected(tokens)


def naive_best_fit(lengths: list[int], context: int, most: int) -> list[int]:
    """Looks at every open pack for every segment; among equal packs it takes the one that was filled last."""
    free: list[int] = []
    segments: list[int] = []
    filled: list[int] = []
    chosen = []
    for now, length in enumerate(lengths):
        fitting = [
            (free[candidate], -filled[candidate], candidate)
            for candidate in range(len(free))
            if free[candidate] >= length and segments[candidate] < most
        ]
        if fitting:
            best = min(fitting)[2]
        else:
            best = len(free)
            free.append(context)
            segments.append(0)
            filled.append(0)
        free[best] -= length
        segments[best] += 1
        filled[best] = now
        chosen.append(best)
    return chosen


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 20), max_size=120), st.sampled_from([1, 2, 3, 64]))
def test_best_fit_equals_the_naive_one(lengths: list[int], most: int) -> None:
    fast = best_fit(np.array(lengths, dtype=np.int64), 20, most)
    assert fast.tolist() == naive_best_fit(lengths, 20, most)


def test_best_fit_takes_the_fullest_pack_with_room() -> None:
    assert best_fit(np.array([6, 8, 2, 4]), 10).tolist() == [0, 1, 1, 0]


def test_a_pack_closes_at_64_segments() -> None:
    placed = best_fit(np.ones(200, dtype=np.int64), 1000)
    assert np.bincount(placed).tolist() == [64, 64, 64, 8]


def test_long_timelines_are_cut() -> None:
    document, offset, length = cut(np.array([5, 40, 16, 33]), 16)
    assert document.tolist() == [0, 1, 1, 1, 2, 3, 3, 3]
    assert offset.tolist() == [0, 0, 16, 32, 0, 0, 16, 32]
    assert length.tolist() == [5, 16, 16, 8, 16, 16, 16, 1]


def test_twenty_thousand_lognormal_timelines_fill_99_percent() -> None:
    rng = np.random.default_rng(7)
    lengths = np.clip(rng.lognormal(5.8, 1.3, 20_000), 1, 98_861).astype(np.int64)
    context = 2048
    _, _, pieces = cut(lengths, context)
    placed = best_fit(pieces, context)
    per_pack = np.bincount(placed, weights=pieces)
    assert per_pack.max() <= context
    assert np.bincount(placed).max() <= MAX_SEGMENTS
    assert per_pack.sum() == lengths.sum()
    assert lengths.sum() / (len(per_pack) * context) >= 0.99


# --- the stage: plans


def kept_by(tokens: pl.DataFrame, config: PlanConfig) -> dict[int, list[Any]]:
    """What a plan keeps of each subject, in plain Python."""
    rows = expected(tokens)
    if config.subjects == "imaging":
        rows = {subject: line for subject, line in rows.items() if any(kind == TokenType.IMAGE for _, kind, *_ in line)}
    if not config.images:
        rows = {subject: [token for token in line if token[1] != TokenType.IMAGE] for subject, line in rows.items()}
    if config.mode == "last_n":
        rows = {subject: line[-config.length :] for subject, line in rows.items()}
    return {subject: line for subject, line in rows.items() if line}


PLANS = st.builds(
    PlanConfig,
    context=st.sampled_from([8, CONTEXT, 33]),
    mode=st.sampled_from(["packed", "one_subject_per_sequence", "last_n"]),
    subjects=st.sampled_from(["all", "imaging"]),
    images=st.booleans(),
)


@pytest.mark.whole
@settings(max_examples=30, deadline=None)
@given(LENGTHS, PLANS, st.integers(0, 3))
def test_every_plan_keeps_what_it_says_and_declares_the_rest(lengths: list[int], config: PlanConfig, seed: int) -> None:
    with TemporaryDirectory() as folder:
        case = Case(Path(folder), lengths, config, seed, without=min(1, len(lengths)))
        for split in SPLITS:
            tokens = case.of_split(split)
            kept = kept_by(tokens, case.config)
            assert case.read(split) == kept
            out = sum(map(len, kept.values()))
            assert sum(result.counts["splits"][split]["tokens"] for result in case.results) == out
            assert len(tokens) == out + sum(case.dropped(split).values())


@pytest.mark.parametrize(
    ("config", "reasons"),
    [
        (PlanConfig(), set()),
        (PlanConfig(images=False), {"image"}),
        (PlanConfig(subjects="imaging"), {"not_imaging"}),
        (PlanConfig(mode="last_n", context=8), {"before_last_n"}),
        (PlanConfig(budgets=(20,)), {"over_budget"}),
        (PlanConfig(subjects="imaging", images=False, mode="last_n", context=8, budgets=(9,)),
         {"image", "not_imaging", "before_last_n", "over_budget"}),
    ],
)  # fmt: skip
def test_drops_have_their_reasons(tmp_path: Path, config: PlanConfig, reasons: set[str]) -> None:
    case = Case(tmp_path, [1, 2, 3, 4, 50, 60] * 6, config)
    assert set(case.dropped("train")) == reasons
    header, _ = read_shard(case.tree.shard("mehrt", "train", 0, "p"))
    assert set(header.dropped) <= reasons - {"over_budget"}


def test_one_subject_stands_alone_in_its_packs(tmp_path: Path) -> None:
    case = Case(tmp_path, [5, 40, 16, 33] * 6, PlanConfig(mode="one_subject_per_sequence"))
    _, packs = read_shard(case.tree.shard("mehrt", "train", 0, "p"))
    assert set(packs.segments_per_pack.tolist()) == {1}
    assert (packs.length == packs.segment_length).all()


def test_a_subject_of_images_alone_leaves_no_pack_where_images_are_left_out(tmp_path: Path) -> None:
    tokens = timelines([4] * 7)
    only = tokens["subject_id"][3 - 3 % 4]
    case = Case(tmp_path, [4] * 7, PlanConfig(images=False))
    image = pl.lit(int(TokenType.IMAGE), pl.UInt8)
    all_images = tokens.with_columns(
        pl.when(pl.col("subject_id") == only).then(image).otherwise("type").alias("type"),
        pl.when(pl.col("subject_id") == only).then(IMAGE_TOKENS["ct"]).otherwise("token_id").alias("token_id"),
        pl.when(pl.col("subject_id") == only).then(pl.lit("k")).otherwise("item_key").alias("item_key"),
    )
    write_table(tmp_path / "t.parquet", all_images, TIMELINES, "timelines")
    read = packing_of(tmp_path / "t.parquet")
    assert only in read.subjects
    kept, dropped = laying.select(read, case.config)
    assert only not in kept.subjects
    assert len(kept.token_id) == kept.lengths.sum() == len(tokens) - dropped["image"]


@pytest.mark.parametrize("harm", [pl.lit(None, pl.String).alias("item_key"), pl.lit(77, pl.UInt32).alias("token_id")])
def test_an_image_token_without_its_image_is_never_packed(tmp_path: Path, harm: pl.Expr) -> None:
    write_table(tmp_path / "t.parquet", timelines([9, 9]).with_columns(harm), TIMELINES, "timelines")
    with pytest.raises(TimeloomError, match=r"/t\.parquet has an image token without its image; report this"):
        packing_of(tmp_path / "t.parquet")


def packing_of(path: Path) -> Any:
    from pipelines.packing.timelines import read_timelines

    return read_timelines(path, np.dtype(np.uint16))


def test_a_lost_token_fails_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = laying.cut
    monkeypatch.setattr(laying, "cut", lambda lengths, context: tuple(part[:-1] for part in whole(lengths, context)))
    with pytest.raises(TimeloomError, match="packing train lost"):
        Case(tmp_path, [5, 6, 7] * 6, PlanConfig())


def test_an_undeclared_drop_fails_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = laying.select
    monkeypatch.setattr(pack, "select", lambda timelines, plan: (whole(timelines, plan)[0], {}))
    with pytest.raises(TimeloomError, match="packing train lost"):
        Case(tmp_path, [50, 60, 70] * 6, PlanConfig(mode="last_n"))


# --- token budgets


def loss_bearing(rows: list[Any], config: PlanConfig) -> int:
    targets = LOSS_TARGETS[config.loss]
    return sum(kind in targets for place, (_, kind, *_) in enumerate(rows) if place % config.length)


@pytest.mark.whole
@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.integers(1, 3 * CONTEXT), min_size=4, max_size=40),
    st.lists(st.integers(1, 700), min_size=1, max_size=4, unique=True).map(sorted),
    PLANS,
)
def test_budgets_are_nested_prefixes_of_whole_subjects(
    lengths: list[int], asked: list[int], config: PlanConfig
) -> None:
    config = config.model_copy(update={"budgets": tuple(asked)})
    with TemporaryDirectory() as folder:
        case = Case(Path(folder), lengths, config)
        kept = kept_by(case.of_split("train"), case.config)
        order = case.splits.filter(pl.col("split") == "train").sort("order", "subject_id")["subject_id"].to_list()
        order = [subject for subject in order if subject in kept]
        before: set[int] = set()
        for number, figures in enumerate(case.budgets):
            held = case.read("train", range(2 * (number + 1)))
            subjects = set(held)
            assert before <= subjects == set(order[: len(subjects)])
            assert held == {subject: kept[subject] for subject in subjects}
            tokens = sum(loss_bearing(line, case.config) for line in held.values())
            everything = sum(loss_bearing(line, case.config) for line in kept.values())
            assert figures == {
                "asked": asked[number],
                "tokens": tokens,
                "all_tokens": sum(map(len, held.values())),
                "subjects": len(subjects),
            }
            assert tokens >= min(asked[number], everything)
            if tokens > asked[number]:
                last = order[len(subjects) - 1]
                assert tokens - loss_bearing(kept[last], case.config) < asked[number]
            before = subjects
        assert set(case.read("train")) == before
        for split in ("tuning", "held_out"):
            assert case.read(split) == kept_by(case.of_split(split), case.config)


def test_a_tier_ends_with_the_subject_that_fills_its_budget() -> None:
    assert tiers(np.array([5, 5, 5, 5]), (5, 11)).tolist() == [0, 1, 1, 2]
    assert tiers(np.array([5, 5]), (100,)).tolist() == [0, 0]
    assert tiers(np.array([50, 5]), (10, 20)).tolist() == [0, 2]
    assert tiers(np.array([], dtype=np.int64), (10,)).tolist() == []
