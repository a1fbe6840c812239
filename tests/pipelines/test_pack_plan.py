"""What packing depends on: a further plan adds only its own tasks, and only the inputs of a task matter."""

from hashlib import sha256
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import xxhash

from pipelines import pack, subset
from pipelines.engine.context import RunContext, StageReport
from pipelines.engine.local import LocalEngine
from pipelines.engine.run_stage import run_stage
from pipelines.engine.task import Task
from pipelines.profiles.plans import PlanConfig
from pipelines.profiles.rules import ProfileConfig
from warehouse.errors import TimeloomError
from warehouse.layout import ReleaseLayout
from warehouse.manifest import FileEntry, ProfileEntry, TaskEntry
from warehouse.parquet import empty_frame, write_table
from warehouse.schemas import SCHEME_SUBJECTS, TIMELINES
from warehouse.shards.file import read_header

BUCKETS = 4
GROUPS = [[0, 1], [2, 3]]
VOCABULARY = pl.DataFrame({"token_id": range(40), "token": [f"T{number}" for number in range(40)]})
SPLITS = {bucket: f"split hash {bucket}" for bucket in range(BUCKETS)}


@pytest.fixture
def context(tmp_path: Path) -> RunContext:
    tree = ReleaseLayout(tmp_path / "release")
    subjects = pl.DataFrame(
        {"subject_id": range(30), "split": ["train"] * 30, "order": [number / 30 for number in range(30)]}
    )
    write_table(tree.scheme_subjects("mehrt"), subjects, SCHEME_SUBJECTS, "subjects")
    return RunContext(engine=LocalEngine(1), staging=tmp_path, previous=None, previous_path=None)


def timelines(context: RunContext, **largest: int) -> StageReport:
    report = StageReport("tokenize")
    tree = ReleaseLayout(context.staging / "release")
    for bucket in range(BUCKETS):
        subject = bucket * 5
        frame = empty_frame(TIMELINES).vstack(
            pl.DataFrame(
                {"subject_id": [subject] * 6, "token_id": [1, 11, 12, 13, 12, 11], "type": [0, 1, 1, 1, 1, 1],
                 "time": [None] * 6, "item_key": [None] * 6}, schema=empty_frame(TIMELINES).schema
            )
        )  # fmt: skip
        path = tree.timeline("m", bucket)
        write_table(path, frame, TIMELINES, "timelines")
        file = FileEntry(sha256=f"hash {bucket}", bytes=1)
        report.entries[f"m-{bucket:04d}"] = TaskEntry(
            fingerprint="", files={str(path.relative_to(tree.path)): file},
            counts={"largest_id": largest.get(f"bucket{bucket}", 20)},
        )  # fmt: skip
    return report


def tasks(context: RunContext, profile: ProfileConfig, **changes: Any) -> dict[str, Task]:
    given = {
        "timelines": timelines(context),
        "splits": SPLITS,
        "vocabulary": VOCABULARY,
        "stores": {},
    } | changes
    planned = pack.tasks_of(context, "m", profile, GROUPS, **given)
    return {task.key: task for task in planned}


def profile(**plans: PlanConfig) -> ProfileConfig:
    return ProfileConfig(context=8, scheme="mehrt", plans=plans)


def changed(before: dict[str, Task], after: dict[str, Task]) -> set[str]:
    return {key for key in before | after if key not in before or key not in after
            or before[key].fingerprint != after[key].fingerprint}  # fmt: skip


def test_a_further_plan_costs_its_own_tasks_alone(context: RunContext) -> None:
    plain = tasks(context, profile())
    assert set(plain) == {"m.default-0000", "m.default-0001"}
    more = tasks(context, profile(long=PlanConfig(context=32), single=PlanConfig(mode="one_subject_per_sequence")))
    assert changed(plain, more) == {f"m.{plan}-{group:04d}" for plan in ("long", "single") for group in range(2)}


def test_a_group_depends_on_its_own_timelines_splits_and_ids(context: RunContext) -> None:
    before = tasks(context, profile())
    assert changed(before, tasks(context, profile())) == set()
    assert changed(before, tasks(context, profile(), splits=SPLITS | {3: "moved"})) == {"m.default-0001"}
    grown = pl.concat([VOCABULARY, pl.DataFrame({"token_id": [40], "token": ["new"]})])
    assert changed(before, tasks(context, profile(), vocabulary=grown)) == set()
    used = timelines(context, bucket0=30)
    assert changed(before, tasks(context, profile(), timelines=used)) == {"m.default-0000"}
    assert changed(before, tasks(context, profile(), stores={"ct": "other"})) == set(before)


def test_budgets_come_from_a_task_of_their_own(context: RunContext) -> None:
    config = profile(scaling=PlanConfig(budgets=(4, 9)))
    assert subset.tasks_of(context, "m", profile(long=PlanConfig(context=32)), BUCKETS, timelines(context)) == []
    planned = subset.tasks_of(context, "m", config, BUCKETS, timelines(context))
    subsets = run_stage(subset.STAGE, planned, context)
    packing = tasks(context, config)
    packed = run_stage(pack.STAGE, list(packing.values()), context)
    plans = pack.plan_entries("m", config, 2, packed, subsets)
    assert [vars(budget) for budget in plans["scaling"].budgets] == [
        {"asked": 4, "tokens": 5, "all_tokens": 6, "subjects": 1, "files": 2},
        {"asked": 9, "tokens": 10, "all_tokens": 12, "subjects": 2, "files": 4},
    ]
    assert plans["scaling"].dropped["train"] == {"over_budget": 12}
    assert plans["default"].tokens["train"] == 24
    assert plans["scaling"].files("train", 0) == 2
    assert plans["scaling"].files("train") == 4
    assert plans["scaling"].files("tuning") == plans["default"].files("train") == 2
    tree = ReleaseLayout(context.staging / "release")
    numbers = [int(path.stem) for path in sorted(tree.shard("m", "train", 0, "scaling").parent.iterdir())]
    assert numbers == [0, 1, 2, 3]
    assert [read_header(tree.shard("m", "train", number, "scaling")).group for number in numbers] == numbers
    shard = packed.entries["m.scaling-0000"].files["shards/m.scaling/train/0000.parquet"]
    raw = (tree.path / "shards/m.scaling/train/0000.parquet").read_bytes()
    assert (shard.xxh3, shard.sha256) == (xxhash.xxh3_128_hexdigest(raw), sha256(raw).hexdigest())


def test_other_budgets_leave_other_plans_alone(context: RunContext) -> None:
    def both(budget: int) -> dict[str, Task]:
        config = profile(scaling=PlanConfig(budgets=(budget,)))
        run_stage(subset.STAGE, subset.tasks_of(context, "m", config, BUCKETS, timelines(context)), context)
        return tasks(context, config)

    assert changed(both(4), both(9)) <= {"m.scaling-0000", "m.scaling-0001"}
    assert changed(both(4), both(9)) != set()


def test_a_missing_plan_is_one_line() -> None:
    entry = ProfileEntry(
        vocabulary_hash="", vocabulary_size=1, scheme="s", rules_hash="",
        plans=pack.plan_entries("m", profile(), 0, StageReport("pack"), None),
    )  # fmt: skip
    with pytest.raises(
        TimeloomError, match=r"^profile m has no plan long in this release; choose one of: default; .*$"
    ):
        entry.plan("m", "long")
    assert entry.plan("m", "default").context == entry.context == 8


def test_a_damaged_timeline_is_named(context: RunContext) -> None:
    planned = tasks(context, profile())
    path = ReleaseLayout(context.staging / "release").timeline("m", 1)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(TimeloomError, match=r"cannot read m/0001\.parquet; run `timeloom repair`"):
        run_stage(pack.STAGE, list(planned.values()), context)
