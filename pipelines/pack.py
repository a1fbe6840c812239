"""pack: timelines of one pack group → shards of one plan. Schema in: TIMELINES. Schema out: shards.packs.Packs.

A task writes every split's shard of its group, and with token budgets one of train for each tier. No token is lost:
what the timelines have is what the shards have and what the plan says that it leaves out, or the task fails.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import numpy.typing as npt
import polars as pl

from pipelines.engine.context import RunContext, StageReport, counts_of
from pipelines.engine.task import Result, Task, make_task
from pipelines.night import Night, Stage
from pipelines.packing.lay import lay, row_groups, select
from pipelines.packing.timelines import Timelines, joined, read_timelines
from pipelines.profiles.plans import PlanConfig, plans_of
from pipelines.split import hashes_of
from pipelines.subset import Counts as SubsetCounts
from pipelines.tokenize import Counts as TokenizeCounts
from pipelines.vocabulary import Counts as VocabularyCounts
from warehouse.errors import TimeloomError
from warehouse.files import sha256_json
from warehouse.hashing import bucket_of
from warehouse.layout import ReleaseLayout, bucket_name
from warehouse.manifest import BudgetEntry, PlanEntry, ProfileEntry
from warehouse.parquet import read_frame
from warehouse.schemas import SPLITS
from warehouse.shards.file import open_writer, row_group_rows
from warehouse.shards.packs import MAX_SEGMENTS, ShardHeader
from warehouse.tokens import RESERVED
from warehouse.vocabulary import vocabulary_hash

if TYPE_CHECKING:
    from pipelines.profiles.rules import ProfileConfig


class SplitCounts(TypedDict):
    """Of one split: tokens packed, and tokens left out by reason."""

    tokens: int
    dropped: dict[str, int]


class Counts(TypedDict):
    """What a task tells of its packs; `fill` is the share of their places that hold a token."""

    packs: int
    tokens: int
    images: int
    max_segments: int
    fill: float
    splits: dict[str, SplitCounts]


class Params(TypedDict):
    """What a task is given: paths and settings."""

    header: dict[str, Any]
    plan: str
    settings: dict[str, Any]
    scheme: str
    group: int
    groups: int
    timelines: list[str]


def plan(night: Night) -> list[Task]:
    """One task for each plan of each profile and pack group."""
    return [
        task
        for name, profile in night.profiles
        for task in tasks_of(
            night.context,
            name,
            profile,
            night.pack_groups,
            night.report("tokenize"),
            hashes_of(night, str(profile.scheme)),
            read_frame(night.tree.vocabulary(name)),
            night.stores_of(profile),
        )
    ]


def tasks_of(
    context: RunContext,
    name: str,
    profile: "ProfileConfig",
    groups: list[list[int]],
    timelines: StageReport,
    splits: dict[int, str],
    vocabulary: pl.DataFrame,
    stores: dict[str, str],
) -> list[Task]:
    """One task for each plan of the profile and pack group; `subset`'s tasks have run before.

    Args:
        profile: with its scheme filled in.
        groups: the buckets of each group.
        timelines: what `tokenize` did; a bucket's count `largest_id` says which ids it uses.
        splits: per bucket, the hash of its subjects' splits.
        vocabulary: VOCABULARY. A shard depends on the ids up to the largest that its group uses, so that a vocabulary
            which grew leaves the other groups' shards as they are.
        stores: by modality, the store whose vectors the profile's tokens carry.
    """
    hashes = timelines.hashes()
    token_dtype = "uint16" if len(vocabulary) <= 1 << 16 else "uint32"
    prefix = cache(lambda size: vocabulary_hash(vocabulary, size))
    tasks = []
    for plan_name, plan in plans_of(profile.context, profile.plans).items():
        tiers = _tier_hashes(context, name, plan_name, plan, groups)
        for group, buckets in enumerate(groups):
            files = [str(ReleaseLayout(Path()).timeline(name, bucket)) for bucket in buckets]
            used = [
                counts_of(timelines.entries[f"{name}-{bucket_name(bucket)}"], TokenizeCounts)["largest_id"]
                for bucket in buckets
            ]
            known = max(len(RESERVED), *(int(largest) + 1 for largest in used))
            header = {
                "profile": name,
                "token_dtype": token_dtype,
                "vocabulary_hash": prefix(known),
                "vocabulary_size": known,
                "stores": stores,
            }
            settings = plan.model_dump(mode="json", exclude={"budgets", "loss"})
            tasks.append(
                make_task(
                    STAGE,
                    f"{name}.{plan_name}-{group:04d}",
                    context.staging,
                    settings=[header, settings, plan_name, group, len(plan.budgets)],
                    inputs=[[hashes[file] for file in files], [splits.get(bucket) for bucket in buckets], tiers[group]],
                    params=Params(
                        header=header,
                        plan=plan_name,
                        settings=plan.model_dump(mode="json"),
                        scheme=str(profile.scheme),
                        group=group,
                        groups=len(groups),
                        timelines=files,
                    ),
                )
            )
    return tasks


def _tier_hashes(
    context: RunContext, profile: str, name: str, config: PlanConfig, groups: list[list[int]]
) -> list[str | None]:
    """Per group, the hash of its subjects' tiers; None without budgets."""
    if not config.budgets:
        return [None] * len(groups)
    subset = read_frame(ReleaseLayout(context.staging / "release").subset(profile, name)).sort("subject_id")
    bucket = pl.Series(bucket_of(subset["subject_id"].to_numpy(), sum(map(len, groups))))
    return [
        sha256_json([subjects["subject_id"].to_list(), subjects["tier"].to_list()])
        for buckets in groups
        for subjects in [subset.filter(bucket.is_in(buckets))]
    ]


@dataclass
class _Shard:
    """What goes into one file, gathered bucket by bucket."""

    split: str
    number: int
    parts: list[Timelines] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)


def run(params: Params, base: Path) -> Result:
    """Packs one group under one plan."""
    tree, config = ReleaseLayout(base), PlanConfig.model_validate(params["settings"])
    shards, given, over_budget = _gathered(tree, params, config)
    files: dict[str, int | None] = {}
    counts = Counts(packs=0, tokens=0, images=0, max_segments=0, fill=0.0, splits={})
    for split in SPLITS:
        dropped = Counter({"over_budget": over_budget} if split == "train" and over_budget else {})
        tokens = 0
        for shard in [shard for shard in shards.values() if shard.split == split]:
            tokens += _write(tree, params, config, shard, files, counts)
            dropped.update(shard.dropped)
        lost = given[split] - tokens - dropped.total()
        if lost:
            raise TimeloomError(f"packing {split} lost {lost} tokens", remedy="report this")
        counts["splits"][split] = SplitCounts(tokens=tokens, dropped=dict(sorted(dropped.items())))
        counts["tokens"] += tokens
    counts["fill"] = counts["tokens"] / max(1, counts["packs"] * config.length)
    return Result(files, counts)


def _gathered(
    tree: ReleaseLayout, params: Params, config: PlanConfig
) -> tuple[dict[tuple[str, int], _Shard], Counter[str], int]:
    """The group's timelines by split and tier, tokens given by split, and tokens of train behind the last budget."""
    group, groups, tier_count = params["group"], params["groups"], max(1, len(config.budgets))
    shards = {
        (split, tier): _Shard(split, tier * groups + group)
        for split in SPLITS
        for tier in range(tier_count if split == "train" else 1)
    }
    places = _places(tree, params, config)
    given: Counter[str] = Counter()
    over_budget = 0
    for path in params["timelines"]:
        bucket = read_timelines(tree.path / path, np.dtype(params["header"]["token_dtype"]))
        split_of, tier_of = _place(bucket.subjects, places)
        for split in SPLITS:
            given[split] += int(bucket.lengths[split_of == split].sum())
        for (split, tier), shard in shards.items():
            kept, dropped = select(bucket.of_subjects((split_of == split) & (tier_of == tier)), config)
            shard.parts.append(kept)
            shard.dropped.update(dropped)
        over_budget += int(bucket.lengths[(split_of == "train") & (tier_of < 0)].sum())
    return shards, given, over_budget


def _places(tree: ReleaseLayout, params: Params, config: PlanConfig) -> pl.DataFrame:
    """subject_id, split and tier of every subject; the tier is -1 behind the last budget."""
    subjects = read_frame(tree.scheme_subjects(params["scheme"])).select("subject_id", "split")
    if not config.budgets:
        return subjects.with_columns(pl.lit(0, pl.Int32).alias("tier"))
    subset = read_frame(tree.subset(params["header"]["profile"], params["plan"]))
    tiers = subset.select("subject_id", pl.col("tier").fill_null(-1))
    # Whoever the plan keeps no token of is in no tier; the tokens are dropped for the plan's own reason.
    return subjects.join(tiers, on="subject_id", how="left").with_columns(pl.col("tier").fill_null(0))


def _place(subjects: npt.NDArray[np.int64], places: pl.DataFrame) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Split (empty without one) and tier (-1 behind the last budget) of each subject."""
    found = pl.DataFrame({"subject_id": subjects}).join(places, on="subject_id", how="left", maintain_order="left")
    return found["split"].fill_null("").to_numpy(), found["tier"].fill_null(-1).to_numpy()


def _write(
    tree: ReleaseLayout,
    params: Params,
    config: PlanConfig,
    shard: _Shard,
    files: dict[str, int | None],
    counts: Counts,
) -> int:
    """Packs and writes one shard, adds it to the result, and gives the tokens written."""
    timelines = joined(shard.parts)
    most = MAX_SEGMENTS if config.mode == "packed" else 1
    layout = lay(timelines, config.mode, config.length, most)
    timelines = replace(timelines, time=timelines.time[:0].copy())  # the layout has them, in half the space
    header = ShardHeader(
        **params["header"],
        split=shard.split,
        group=shard.number,
        context=config.length,
        plan=params["plan"],
        mode=config.mode,
        time_unit_us=layout.times.unit_us,
        time_dtype=layout.times.dtype,
        max_segments=most,
        dropped=dict(sorted(shard.dropped.items())),
    )
    path = tree.shard(header.profile, header.split, header.group, header.plan)
    tokens = packs_written = 0
    with open_writer(path, header) as writer:
        for packs in row_groups(timelines, layout, header.group, header.context, row_group_rows(header.context)):
            written = int(packs.length.sum())
            if int(packs.segment_length.sum()) != written or int((packs.input_ids != 0).sum()) != written:
                raise TimeloomError(f"packs of {header.split} do not add up to their segments", remedy="report this")
            tokens += written
            packs_written += len(packs)
            counts["images"] += len(packs.image_key)
            counts["max_segments"] = max(counts["max_segments"], int(packs.segments_per_pack.max(initial=0)))
            writer.write(packs)
    counts["packs"] += packs_written
    files[str(path.relative_to(tree.path))] = packs_written
    return tokens


def plan_entries(
    name: str, profile: "ProfileConfig", groups: int, packed: StageReport, subsets: StageReport | None
) -> dict[str, PlanEntry]:
    """What the manifest says of a profile's plans.

    Args:
        groups: how many pack groups there are.
        packed, subsets: what the stages `pack` and `subset` did; None where no plan has budgets.
    """
    return {
        plan_name: _entry(
            plan,
            groups,
            [counts_of(packed.entries[f"{name}.{plan_name}-{group:04d}"], Counts)["splits"] for group in range(groups)],
            counts_of(subsets.entries[f"{name}.{plan_name}"], SubsetCounts)["budgets"]
            if plan.budgets and subsets
            else [],
        )
        for plan_name, plan in plans_of(profile.context, profile.plans).items()
    }


def _entry(
    config: PlanConfig, groups: int, counts: Sequence[dict[str, SplitCounts]], budgets: Sequence[dict[str, int]]
) -> PlanEntry:
    dropped: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
    for split in SPLITS:
        for count in counts:
            dropped[split].update(count[split]["dropped"])
    return PlanEntry(
        context=config.length,
        mode=config.mode,
        subjects=config.subjects,
        images=config.images,
        groups=groups,
        loss=config.loss if config.budgets else None,
        budgets=tuple(BudgetEntry(**budget, files=(tier + 1) * groups) for tier, budget in enumerate(budgets)),
        tokens={split: sum(count[split]["tokens"] for count in counts) for split in SPLITS},
        dropped={split: dict(sorted(dropped[split].items())) for split in SPLITS},
    )


def declare(night: Night) -> dict[str, Any]:
    """What the manifest says of each profile: its vocabulary, its rules, its plans."""
    fitted, packed, subsets = (night.report(name) for name in ("vocabulary", STAGE.name, "subset"))
    profiles = {
        name: ProfileEntry(
            vocabulary_hash=counts_of(fitted.entries[name], VocabularyCounts)["hash"],
            vocabulary_size=counts_of(fitted.entries[name], VocabularyCounts)["size"],
            scheme=str(profile.scheme),
            rules_hash=sha256_json(profile.token_rules()),
            left_out=tuple(sorted(profile.left_out)),
            stores=night.stores_of(profile),
            order=profile.order,
            unknown=tuple(sorted(profile.unknown_demographics)),
            plans=plan_entries(name, profile, night.config.pack_groups, packed, subsets),
        )
        for name, profile in night.profiles
    }
    return {"profiles": profiles}


STAGE = Stage(
    "pack",
    version=2,
    run="pipelines.pack:run",
    after=("embed", "split", "vocabulary", "tokenize", "subset"),
    keys=("profiles", "pack_groups"),
    plan=plan,
    declare=declare,
    settings_are=("shard header", "plan", "plan's name", "group", "budgets"),
    inputs_are=("timelines", "splits", "tiers of budgets"),
)
