"""The gate over every kind of plan: right shards pass, and each way in which a plan can be wrong has its check."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.profiles.plans import PlanConfig
from tests.support.tokens.packing_cases import CONTEXT, timelines
from tests.support.tokens.packing_plans import Case, release_of
from validation.measure.anew import measure_anew
from validation.measure.shards.measure import measure_shards
from validation.measure.tasks import Facts
from warehouse.manifest import PlanEntry, ProfileEntry
from warehouse.parquet import empty_frame, write_table
from warehouse.schemas import ITEMS, SCHEME_SUBJECTS
from warehouse.shards.file import Packs, read_shard, write_shard
from warehouse.tokens import IMAGE_TOKENS, TokenType

FAULTS = (
    "token_difference", "drop_difference", "foreign_subjects", "misplaced_tiers", "budget_differences",
    "misplaced_segments", "malformed_packs", "ids_out_of_range", "dangling_images", "misplaced_images",
    "foreign_images", "changed_subjects",
)  # fmt: skip
_GIVEN = ("item_key", "subject_id", "modality", "verdict", "units_encoded", "units_failed", "artificial_link")
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


def items_of(case: Case) -> pl.DataFrame:
    names = {token: name for name, token in IMAGE_TOKENS.items()}
    return case.tokens.filter(pl.col("item_key").is_not_null()).select(
        "item_key",
        "subject_id",
        pl.col("token_id").replace_strict(names, return_dtype=pl.String).alias("modality"),
        pl.lit("ok").alias("verdict"),
        *(pl.lit(0, pl.Int32).alias(name) for name in ("units_encoded", "units_failed")),
        pl.lit(False).alias("artificial_link"),
        *(pl.lit(None, kind).alias(name) for name, kind in empty_frame(ITEMS).schema.items() if name not in _GIVEN),
    )


def measured(case: Case, profiles: dict[str, ProfileEntry]) -> pl.DataFrame:
    for bucket in range(2):  # whichever bucket a subject's timeline is in
        write_table(case.tree.items(bucket), items_of(case), ITEMS, "items")
    return measure_shards(case.tree, profiles, measure_anew(case.tree, Facts(2, profiles, {}, "s", None)))


def faults(case: Case, profiles: dict[str, ProfileEntry]) -> dict[str, int]:
    sums = measured(case, profiles).select(FAULTS).sum().row(0, named=True)
    return {name: count for name, count in sums.items() if count}


@pytest.mark.whole
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
    stated, packs = read_shard(path)
    copied = {name: np.array(value) for name, value in vars(packs).items() if isinstance(value, np.ndarray)}
    write_shard(path, replace(packs, **copied | columns), replace(stated, **header or {}))


def with_plan(profiles: dict[str, ProfileEntry], **changes: Any) -> dict[str, ProfileEntry]:
    entry = profiles["mehrt"]
    plan: PlanEntry = entry.plans["p"].model_copy(update=changes)
    return {"mehrt": entry.model_copy(update={"plans": {"p": plan}})}


def test_a_lost_shard_is_seen(tmp_path: Path) -> None:
    case, profiles = made(tmp_path, PLANS["packed"])
    case.tree.shard("mehrt", "train", 1, "p").unlink()
    assert set(faults(case, profiles)) == {"token_difference"}


def test_drops_that_are_not_declared_are_seen(tmp_path: Path) -> None:
    case, profiles = made(tmp_path, PLANS["prompts"])
    assert set(faults(case, with_plan(profiles, dropped={}))) == {"drop_difference"}


@pytest.mark.parametrize("name", ["prompts", "structured", "imaging"])
def test_a_plan_that_drops_what_it_should_keep_is_seen(tmp_path: Path, name: str) -> None:
    case, profiles = made(tmp_path, PLANS[name])
    stated = {"mode": PLANS[name].mode, "subjects": "all", "images": True, "context": PLANS[name].context or CONTEXT}
    if name == "prompts":
        stated |= {"mode": "one_subject_per_sequence"}
    found = faults(case, with_plan(profiles, **stated))
    assert {"token_difference", "drop_difference"} <= set(found)


def test_subjects_of_another_split_or_of_none_are_seen(tmp_path: Path) -> None:
    case, profiles = made(tmp_path, PLANS["packed"])
    _, packs = read_shard(case.tree.shard("mehrt", "train", 1, "p"))
    subjects = packs.segment_subject.copy()
    subjects[subjects == subjects[0]] = 424_242
    change(case, "train", 1, segment_subject=subjects)
    found = faults(case, profiles)
    assert found["foreign_subjects"] == 1
    assert set(found) == {"foreign_subjects", "token_difference", "foreign_images"}


def test_a_subject_in_another_tier_is_seen_as_no_longer_nested(tmp_path: Path) -> None:
    case, profiles = made(tmp_path, PLANS["scaling"])
    first, second = (case.tree.shard("mehrt", "train", number, "p") for number in (0, 2))
    (first_header, packs), (second_header, others) = read_shard(first), read_shard(second)
    assert len(packs), len(others)
    write_shard(first, replace(others, pack_id=others.pack_id & 0xFFFFFFFF), replace(second_header, group=0))
    write_shard(second, replace(packs, pack_id=packs.pack_id | 2 << 32), replace(first_header, group=2))
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


def test_budgets_beyond_the_data_are_counted(tmp_path: Path) -> None:
    case, profiles = made(tmp_path, PlanConfig(budgets=(60, 1_000_000, 2_000_000)))
    assert not faults(case, profiles)
    rows = measured(case, profiles)
    assert rows.filter(plan="p").select("split", "budgets_short").rows() == [
        ("train", 2),
        ("tuning", 0),
        ("held_out", 0),
    ]


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
    "stated",
    [{"plan": "other"}, {"mode": "last_n"}, {"split": "tuning"}, {"group": 1}, {"profile": "ethos"},
     {"vocabulary_hash": "0" * 64}],
)  # fmt: skip
def test_a_shard_of_another_place_is_malformed(tmp_path: Path, stated: dict[str, Any]) -> None:
    case, profiles = made(tmp_path, PLANS["packed"])
    change(case, "train", 0, header=stated)
    assert set(faults(case, profiles)) == {"malformed_packs"}


def first_shard(case: Case) -> Packs:
    return read_shard(case.tree.shard("mehrt", "train", 0, "p"))[1]


def other_id(case: Case) -> None:
    packs = first_shard(case)
    ids = packs.input_ids.copy()
    ids[0, np.flatnonzero(packs.token_type[0] == TokenType.STRUCTURED)[0]] += 1
    change(case, "train", 0, input_ids=ids)


def other_type(case: Case) -> None:
    types = first_shard(case).token_type.copy()
    types[0, np.flatnonzero(types[0] == TokenType.STRUCTURED)[0]] = int(TokenType.INTERVAL)
    change(case, "train", 0, token_type=types)


def a_minute_later(case: Case) -> None:
    packs = first_shard(case)
    times = packs.time.copy()
    times[0, np.flatnonzero(times[0] > 0)[0]] += 1
    change(case, "train", 0, time=times)


def no_time(case: Case) -> None:
    packs = first_shard(case)
    times = packs.time.copy()
    times[0, np.flatnonzero(times[0] > 0)[0]] = np.iinfo(times.dtype).min
    change(case, "train", 0, time=times)


def other_origin(case: Case) -> None:
    change(case, "train", 0, segment_origin=first_shard(case).segment_origin + 1)


def two_tokens_swapped(case: Case) -> None:
    """Each with its type and time: the same tokens, in another order."""
    packs = first_shard(case)
    left, right = np.flatnonzero(packs.token_type[0, : packs.segment_length[0]] == TokenType.STRUCTURED)[:2]
    swapped = {}
    for name in ("input_ids", "token_type", "time"):
        matrix = getattr(packs, name).copy()
        matrix[0, [left, right]] = matrix[0, [right, left]]
        swapped[name] = matrix
    change(case, "train", 0, **swapped)


def two_subjects_swapped(case: Case) -> None:
    """Two of equal length: every token is still in some shard of the split."""
    packs = first_shard(case)
    whole = np.flatnonzero((packs.segment_length == 3) & (packs.segment_offset == 0))
    subjects = packs.segment_subject.copy()
    first, second = subjects[whole[0]], subjects[whole[1]]
    subjects[whole[[0, 1]]] = second, first
    change(case, "train", 0, segment_subject=subjects)


CHANGES = [other_id, other_type, a_minute_later, no_time, other_origin, two_tokens_swapped, two_subjects_swapped]


@pytest.mark.parametrize(("harm", "plan"), zip(CHANGES, ["structured", "long"] * 4, strict=False))
def test_tokens_that_are_not_the_timelines_are_seen(tmp_path: Path, harm: Callable[[Case], None], plan: str) -> None:
    case, profiles = made(tmp_path, PLANS[plan])
    harm(case)
    found = faults(case, profiles)
    assert found.pop("changed_subjects") >= 1
    assert set(found) <= {"foreign_images"} if harm is two_subjects_swapped else not found


@pytest.mark.whole
@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.integers(1, 60), min_size=6, max_size=14),
    st.sampled_from(sorted(PLANS)),
    st.integers(0, 2**31),
    st.sampled_from(["input_ids", "token_type", "time"]),
)
def test_any_one_changed_token_is_seen(lengths: list[int], plan: str, seed: int, column: str) -> None:
    with TemporaryDirectory() as folder:
        case = Case(Path(folder), lengths, PLANS[plan])
        profiles = release_of(case)
        assert faults(case, profiles) == {}
        path = case.tree.shard("mehrt", "train", 0, "p")
        packs = read_shard(path)[1]
        rows, places = np.nonzero(np.arange(packs.input_ids.shape[1]) < packs.length[:, None])
        if len(rows):
            at = seed % len(rows)
            matrix = getattr(packs, column).copy()
            matrix[rows[at], places[at]] ^= 1 << seed % 8
            change(case, "train", 0, **{column: matrix})
            assert "changed_subjects" in faults(case, profiles)


def test_images_of_others_and_out_of_place_are_seen(tmp_path: Path) -> None:
    case, profiles = made(tmp_path, PLANS["packed"])
    packs = first_shard(case)
    owner = dict(items_of(case).select("item_key", "subject_id").iter_rows())
    keys = packs.image_key.to_pylist()
    modality = packs.image_modality
    of = [owner[key] for key in keys]
    pairs = [(a, b) for a in range(len(keys)) for b in range(a)]
    # Images of two subjects with one modality change places; so do those of one subject with two modalities.
    of_two_subjects = next((a, b) for a, b in pairs if of[a] != of[b] and modality[a] == modality[b])
    of_one_subject = next((a, b) for a, b in pairs if of[a] == of[b] and modality[a] != modality[b])
    for (a, b), expected in ((of_two_subjects, {"foreign_images": 2, "changed_subjects": 2}),
                             (of_one_subject, {"foreign_images": 2, "changed_subjects": 1})):  # fmt: skip
        order = np.arange(len(keys))
        order[[a, b]] = b, a
        change(case, "train", 0, image_key=packs.image_key.take(pa.array(order)))
        assert faults(case, profiles) == expected
    change(case, "train", 0, image_key=packs.image_key, image_modality=np.append(modality[0] + 1, modality[1:]))
    assert faults(case, profiles) == {"misplaced_images": 1}
    for position in (packs.image_position[0] + 1, 10_000, -1):
        moved = np.append(position, packs.image_position[1:]).astype(np.int32)
        change(case, "train", 0, image_modality=modality, image_position=moved)
        assert faults(case, profiles) == {"misplaced_images": 1, "changed_subjects": 1}


def test_two_images_of_one_subject_may_not_change_places(tmp_path: Path) -> None:
    """Both are the subject's and of one modality, but the later one would be seen too early."""
    case = Case(tmp_path, [80] * 6, PlanConfig())
    profiles = release_of(case)
    packs = first_shard(case)
    pairs = np.flatnonzero(packs.image_modality == packs.image_modality[0])
    owner = dict(items_of(case).select("item_key", "subject_id").iter_rows())
    of = np.array([owner[key] for key in packs.image_key.to_pylist()])
    same = [place for place in pairs if of[place] == of[0]][:2]
    order = np.arange(len(of))
    order[same] = same[::-1]
    change(case, "train", 0, image_key=packs.image_key.take(pa.array(order)))
    assert faults(case, profiles) == {"changed_subjects": 1}


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
