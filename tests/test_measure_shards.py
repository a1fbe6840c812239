"""The gate over every kind of plan: right shards pass, and each way in which a plan can be wrong has its check."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from packing_cases import CONTEXT, timelines
from packing_plans import Case, release_of

from pipelines.plans import PlanConfig
from validation.measure_shards import measure_shards
from warehouse.manifest import PlanEntry, ProfileEntry
from warehouse.schemas import SCHEME_SUBJECTS, write_table
from warehouse.shards import read_shard, write_shard

FAULTS = (
    "token_difference", "drop_difference", "foreign_subjects", "misplaced_tiers", "budget_differences",
    "misplaced_segments", "malformed_packs", "ids_out_of_range", "dangling_images",
)  # fmt: skip
LENGTHS = [5, 40, 16, 3, 33, 21] * 8
PLANS = {
    "packed": PlanConfig(),
    "long": PlanConfig(context=64),
    "single": PlanConfig(mode="one_subject_per_sequence"),
    "prompts": PlanConfig(mode="last_n", context=8),
    "structured": PlanConfig(images=False),
    "imaging": PlanConfig(subjects="imaging"),
    "scaling": PlanConfig(budgets=(60, 150, 151)),
    "all at once": PlanConfig(subjects="imaging", images=False, mode="last_n", context=8, budgets=(20, 50)),
}


def made(folder: Path, config: PlanConfig) -> tuple[Case, dict[str, ProfileEntry]]:
    case = Case(folder, LENGTHS, config, without=2)
    return case, release_of(case)


def measured(case: Case, profiles: dict[str, ProfileEntry]) -> pl.DataFrame:
    keys = timelines(LENGTHS)["item_key"].drop_nulls()
    return measure_shards(case.tree, profiles, 2, keys)


def faults(case: Case, profiles: dict[str, ProfileEntry]) -> dict[str, int]:
    sums = measured(case, profiles).select(FAULTS).sum().row(0, named=True)
    return {name: count for name, count in sums.items() if count}


@pytest.mark.parametrize("name", PLANS)
def test_right_shards_pass(tmp_path: Path, name: str) -> None:
    case, profiles = made(tmp_path, PLANS[name])
    assert faults(case, profiles) == {}
    table = measured(case, profiles)
    assert table["tokens_shards"].sum() == sum(result.counts["tokens"] for result in case.results) > 0
    assert (table["tokens_timeline"] == table["tokens_shards"] + table["tokens_dropped"]).all()
    assert table["plan"].unique().to_list() == ["p"]


def change(case: Case, split: str, number: int, header: dict[str, Any] | None = None, **columns: Any) -> None:
    path = case.tree.shard("mehrt", split, number, "p")
    said, packs = read_shard(path)
    copied = {name: np.array(value) for name, value in vars(packs).items() if isinstance(value, np.ndarray)}
    write_shard(path, replace(packs, **copied | columns), replace(said, **header or {}))


def with_plan(profiles: dict[str, ProfileEntry], **changes: Any) -> dict[str, ProfileEntry]:
    entry = profiles["mehrt"]
    plan: PlanEntry = entry.plans["p"].model_copy(update=changes)
    return {"mehrt": entry.model_copy(update={"plans": {"p": plan}})}


def test_a_lost_shard_is_seen(tmp_path: Path) -> None:
    case, profiles = made(tmp_path, PLANS["packed"])
    case.tree.shard("mehrt", "train", 1, "p").unlink()
    assert set(faults(case, profiles)) == {"token_difference"}


def test_drops_that_nobody_declared_are_seen(tmp_path: Path) -> None:
    case, profiles = made(tmp_path, PLANS["prompts"])
    assert set(faults(case, with_plan(profiles, dropped={}))) == {"drop_difference"}


@pytest.mark.parametrize("name", ["prompts", "structured", "imaging"])
def test_a_plan_that_drops_what_it_should_keep_is_seen(tmp_path: Path, name: str) -> None:
    case, profiles = made(tmp_path, PLANS[name])
    said = {"mode": PLANS[name].mode, "subjects": "all", "images": True, "context": PLANS[name].context or CONTEXT}
    if name == "prompts":
        said |= {"mode": "one_subject_per_sequence"}
    found = faults(case, with_plan(profiles, **said))
    assert {"token_difference", "drop_difference"} <= set(found)


def test_subjects_of_another_split_or_of_none_are_seen(tmp_path: Path) -> None:
    case, profiles = made(tmp_path, PLANS["packed"])
    _, packs = read_shard(case.tree.shard("mehrt", "train", 1, "p"))
    subjects = packs.segment_subject.copy()
    subjects[subjects == subjects[0]] = 424_242
    change(case, "train", 1, segment_subject=subjects)
    found = faults(case, profiles)
    assert found["foreign_subjects"] == 1
    assert set(found) == {"foreign_subjects", "token_difference"}


def test_a_subject_in_another_tier_is_seen_as_no_longer_nested(tmp_path: Path) -> None:
    case, profiles = made(tmp_path, PLANS["scaling"])
    first, second = (case.tree.shard("mehrt", "train", number, "p") for number in (0, 2))
    (one, packs), (two, others) = read_shard(first), read_shard(second)
    assert len(packs), len(others)
    write_shard(first, replace(others, pack_id=others.pack_id & 0xFFFFFFFF), replace(two, group=0))
    write_shard(second, replace(packs, pack_id=packs.pack_id | 2 << 32), replace(one, group=2))
    assert set(faults(case, profiles)) == {"misplaced_tiers"}


def test_an_order_that_changed_makes_budgets_wrong(tmp_path: Path) -> None:
    case, profiles = made(tmp_path, PLANS["scaling"])
    path = case.tree.scheme_subjects("s")
    pl.read_parquet(path).with_columns(-pl.col("order")).write_parquet(path)
    assert {"budget_differences", "token_difference"} <= set(faults(case, profiles))


@pytest.mark.parametrize("figure", ["tokens", "all_tokens", "subjects", "files"])
def test_budgets_with_other_figures_are_seen(tmp_path: Path, figure: str) -> None:
    case, profiles = made(tmp_path, PLANS["scaling"])
    first, *rest = profiles["mehrt"].plans["p"].budgets
    changed = first.model_copy(update={figure: getattr(first, figure) + 1})
    assert faults(case, with_plan(profiles, budgets=(changed, *rest))) == {"budget_differences": 1}


def repeat_a_chunk(case: Case) -> None:
    """A subject's second chunk is its first once more: the number of tokens stays right."""
    _, packs = read_shard(case.tree.shard("mehrt", "train", 0, "p"))
    offsets = packs.segment_offset.copy()
    whole = np.flatnonzero((offsets == CONTEXT) & (packs.segment_length == CONTEXT))
    offsets[whole[0]] = 0
    change(case, "train", 0, segment_offset=offsets)


def start_late(case: Case) -> None:
    _, packs = read_shard(case.tree.shard("mehrt", "train", 0, "p"))
    change(case, "train", 0, segment_offset=packs.segment_offset + 1)


@pytest.mark.parametrize("harm", [repeat_a_chunk, start_late])
def test_pieces_out_of_place_are_seen(tmp_path: Path, harm: Callable[[Case], None]) -> None:
    case, profiles = made(tmp_path, PLANS["packed"])
    harm(case)
    assert set(faults(case, profiles)) == {"misplaced_segments"}


@pytest.mark.parametrize(
    "said",
    [{"plan": "other"}, {"mode": "last_n"}, {"split": "tuning"}, {"group": 1}, {"profile": "ethos"},
     {"vocabulary_hash": "0" * 64}],
)  # fmt: skip
def test_a_shard_of_another_place_is_malformed(tmp_path: Path, said: dict[str, Any]) -> None:
    case, profiles = made(tmp_path, PLANS["packed"])
    change(case, "train", 0, header=said)
    assert set(faults(case, profiles)) == {"malformed_packs"}


def test_two_subjects_in_a_pack_of_one_are_malformed(tmp_path: Path) -> None:
    case, profiles = made(tmp_path, PLANS["packed"])
    for number in (0, 1):
        for split in ("train", "tuning", "held_out"):
            change(case, split, number, header={"mode": "one_subject_per_sequence"})
    found = faults(case, with_plan(profiles, mode="one_subject_per_sequence"))
    assert set(found) == {"malformed_packs"}


def test_budgets_unlike_train_are_seen(tmp_path: Path) -> None:
    """A fair order gives small subsets like the whole; one by length does not."""
    lengths = np.random.default_rng(0).integers(1, 300, 400).tolist()
    case = Case(tmp_path, lengths, PlanConfig(budgets=(5_000,)))
    profiles = release_of(case)
    found = {}
    for name, order in {
        "fair": np.random.default_rng(1).random(400),
        "by length": np.argsort(np.argsort(lengths)),
    }.items():
        of_subject = (
            timelines(lengths).group_by("subject_id", maintain_order=True).agg().with_columns(order=order * 1.0)
        )
        given = case.splits.drop("order").join(of_subject, on="subject_id")
        write_table(case.tree.scheme_subjects("s"), given, SCHEME_SUBJECTS, "subjects")
        train = measured(case, profiles).filter(pl.col("split") == "train")
        found[name] = train["budget_ks_ratio"].item()
    assert found["fair"] < 1 < found["by length"]


def test_fill_is_judged_where_packs_are_meant_to_be_full(tmp_path: Path) -> None:
    for number, (name, judged) in enumerate({"packed": True, "single": False, "prompts": False}.items()):
        case, profiles = made(tmp_path / str(number), PLANS[name])
        train = measured(case, profiles).filter(pl.col("split") == "train")
        assert train["packs"].item() >= 20
        assert (train["fill_judged"].item() is not None) == judged
