"""subset: a plan's token budgets → tiers of train's subjects. Schema in: TIMELINES. Schema out: SUBSETS.

A budget is a prefix of the scheme's fixed order of subjects, in which every prefix has the distribution of the whole,
so D1 ⊂ D2 ⊂ … and all of them are matched by construction. Tokens are counted as the plan lays them: the first token
of a segment has nothing to be predicted from, so it is no target.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import numpy.typing as npt
import polars as pl

from pipelines.engine.context import RunContext, StageReport
from pipelines.engine.task import Result, Task, make_task
from pipelines.night import Night, Stage
from pipelines.packing.lay import cut, select
from pipelines.packing.timelines import Timelines, read_timelines
from pipelines.profiles.plans import PlanConfig, plans_of
from warehouse.files import sha256_file
from warehouse.layout import ReleaseLayout
from warehouse.losses import loss_table
from warehouse.parquet import read_frame, write_table
from warehouse.schemas import SUBSETS

if TYPE_CHECKING:
    from pipelines.profiles.rules import ProfileConfig


class Counts(TypedDict):
    """What each token budget of a plan holds."""

    budgets: list[dict[str, int]]


class Params(TypedDict):
    """What a task is given: paths and settings."""

    profile: str
    plan: str
    scheme: str
    settings: dict[str, Any]
    timelines: list[str]


def plan(night: Night) -> list[Task]:
    """One task for each plan with budgets of each profile."""
    timelines = night.report("tokenize")
    return [
        task
        for name, profile in night.profiles
        for task in tasks_of(night.context, name, profile, night.config.buckets, timelines)
    ]


def tasks_of(
    context: RunContext, name: str, profile: "ProfileConfig", buckets: int, timelines: StageReport
) -> list[Task]:
    """One task for each plan with budgets.

    Args:
        profile: with its scheme filled in.
    """
    tree, hashes = ReleaseLayout(context.staging / "release"), timelines.hashes()
    files = [str(ReleaseLayout(Path()).timeline(name, bucket)) for bucket in range(buckets)]
    return [
        make_task(
            STAGE,
            f"{name}.{plan_name}",
            context.staging,
            settings=plan.model_dump(mode="json"),
            inputs=[[hashes[file] for file in files], sha256_file(tree.scheme_subjects(str(profile.scheme)))],
            params=Params(
                profile=name,
                plan=plan_name,
                scheme=str(profile.scheme),
                settings=plan.model_dump(mode="json"),
                timelines=files,
            ),
        )
        for plan_name, plan in plans_of(profile.context, profile.plans).items()
        if plan.budgets
    ]


def run(params: Params, base: Path) -> Result:
    """Writes the tier of every train subject that the plan keeps, and counts what each budget holds."""
    tree, config = ReleaseLayout(base), PlanConfig.model_validate(params["settings"])
    train = read_frame(tree.scheme_subjects(params["scheme"])).filter(pl.col("split") == "train")
    members = train["subject_id"].to_numpy()
    counted = [pl.DataFrame(schema={"subject_id": pl.Int64, "tokens": pl.Int64, "loss_tokens": pl.Int64})]
    for path in params["timelines"]:
        bucket = read_timelines(base / path, np.dtype(np.uint32))
        bucket = bucket.of_subjects(np.isin(bucket.subjects, members))
        counted.append(count_targets(select(bucket, config)[0], config))
    ordered = pl.concat(counted).join(train.select("subject_id", "order"), on="subject_id").sort("order", "subject_id")
    tier = tiers(ordered["loss_tokens"].to_numpy(), config.budgets)
    frame = ordered.with_columns(pl.Series("tier", tier).replace(len(config.budgets), None))
    written = tree.subset(params["profile"], params["plan"])
    rows = write_table(written, frame, SUBSETS, "subset")
    return Result({str(written.relative_to(base)): rows}, Counts(budgets=figures(frame, config.budgets)))


def count_targets(timelines: Timelines, config: PlanConfig) -> pl.DataFrame:
    """subject_id, tokens and loss_tokens of each subject of one bucket, as the plan cuts them."""
    target = loss_table(config.loss)[timelines.token_type]
    _, _, length = cut(timelines.lengths, config.length)
    target[np.cumsum(length) - length] = False
    running = np.concatenate([[0], np.cumsum(target)])
    ends = np.cumsum(timelines.lengths)
    return pl.DataFrame(
        {
            "subject_id": timelines.subjects,
            "tokens": timelines.lengths,
            "loss_tokens": running[ends] - running[ends - timelines.lengths],
        }
    )


def tiers(loss_tokens: npt.NDArray[np.int64], budgets: tuple[int, ...]) -> npt.NDArray[np.int32]:
    """The tier (n,) of each subject (n,), in order: 0 up to the subject that fills the first budget, and so on.

    Behind the last budget it is the number of budgets. No subject is cut, so a budget has at least what was asked,
    where there is as much.
    """
    filled = np.searchsorted(np.cumsum(loss_tokens), budgets) + 1
    return np.searchsorted(filled, np.arange(len(loss_tokens)), side="right").astype(np.int32)


def figures(subset: pl.DataFrame, budgets: tuple[int, ...]) -> list[dict[str, int]]:
    """Of each budget: asked, loss-bearing and all tokens, and subjects; of everything up to its tier."""
    return [
        {
            "asked": asked,
            "tokens": int(held["loss_tokens"].sum()),
            "all_tokens": int(held["tokens"].sum()),
            "subjects": held.height,
        }
        for number, asked in enumerate(budgets)
        for held in [subset.filter(pl.col("tier") <= number)]
    ]


STAGE = Stage(
    "subset",
    1,
    "pipelines.subset:run",
    after=("split", "tokenize"),
    keys=("profiles",),
    plan=plan,
    settings_are=("plan",),
    inputs_are=("timelines", "splits"),
)
