"""What is measured of the shards: that they carry what their plan says, once, and point at what exists."""

from collections.abc import Callable, Mapping
from functools import cache, partial

import polars as pl

from validation.measure.measures import Measures
from validation.measure.reading import gather
from validation.measure.shards.expected import budget_differences, budget_ks_ratio, expected_tokens, with_tiers
from validation.measure.shards.parts import COUNTED, SEGMENTS
from validation.measure.shards.token_sums import Kept, kept_by, per_subject
from warehouse.layout import ReleaseLayout
from warehouse.manifest import PlanEntry, ProfileEntry
from warehouse.schemas import SCHEME_SUBJECTS, SPLITS, VOCABULARY
from warehouse.vocabulary import vocabulary_hash

MANY_PACKS = 20  # below this a split's last, half empty pack decides its fill


def read_vocabulary(tree: ReleaseLayout, profile: str) -> pl.DataFrame:
    """`token_id` and `token` of the profile's vocabulary; no rows without one."""
    return gather([tree.vocabulary(profile)], VOCABULARY, ["token_id", "token"])


def measure_shards(tree: ReleaseLayout, profiles: Mapping[str, ProfileEntry], measures: Measures) -> pl.DataFrame:
    """One row per profile, plan and split.

    Columns: packs, subjects_timeline (that the plan keeps tokens of), subjects_shards, tokens_timeline (of the split's
    subjects), tokens_dropped (as the manifest declares them), tokens_shards, token_difference (from what the plan must
    keep, summed over subjects without regard to sign), drop_difference (declared drops that are not the plan's, over
    reasons), foreign_subjects (in this split's shards, though the scheme has them elsewhere or nowhere),
    misplaced_tiers (subjects in another tier of the budgets than the fixed order gives them), budget_differences
    (budgets with other numbers than the manifest's), budgets_short (that ask for more than train has), budget_ks_ratio
    (see there), misplaced_segments (that do not begin where the subject's one before ends), changed_subjects (all of
    whose tokens are there and in place, but with another id, type, time or image than in the timeline), fill,
    fill_judged (null below 20 packs, and where packs are not meant to be full), max_segments, malformed_packs (another
    context, profile, plan, mode or split than their place says, or segments that do not add up), ids_out_of_range,
    image_places, misplaced_images (whose position or modality is not that of a token), dangling_images (of no usable
    item), foreign_images (of another subject's usable item, or of another modality).

    Args:
        profiles: as the manifest has them.
        measures: of the tree: `timelines`, `losses`, `shards` and `segments`.

    Raises:
        TimeloomError: a file is damaged.
    """
    return pl.DataFrame(
        [row for profile, entry in profiles.items() for row in _profile_rows(tree, profile, entry, measures)],
        schema_overrides={"budget_ks_ratio": pl.Float64, "fill_judged": pl.Float64},
        infer_schema_length=None,
    )


def _profile_rows(
    tree: ReleaseLayout, profile: str, entry: ProfileEntry, measures: Measures
) -> list[dict[str, object]]:
    timelines, losses = measures.of("timelines", profile), measures.of("losses", profile)
    given = timelines.select("subject_id", "given", "images").unique("subject_id")
    columns = ["subject_id", "split", "order"]
    assigned = gather([tree.scheme_subjects(entry.scheme)], SCHEME_SUBJECTS, columns).unique("subject_id")
    prefix = cache(partial(vocabulary_hash, read_vocabulary(tree, profile)))
    sums = cache(partial(_sums, timelines))
    return [
        row
        for name, plan in entry.plans.items()
        for expected in [expected_tokens(given, losses, name, plan).join(assigned, on="subject_id")]
        for row in _plan_rows(profile, name, plan, measures, expected, assigned, sums(kept_by(plan)), prefix)
    ]


def _sums(timelines: pl.DataFrame, kept: Kept) -> pl.DataFrame:
    """`subject_id`, `sum` of what plans keep."""
    of_kept = (pl.col("with_images") == kept.images) & pl.col("last").eq_missing(kept.last)
    return per_subject([timelines.filter(of_kept).select("subject_id", "sum")])


def _plan_rows(
    profile: str,
    name: str,
    plan: PlanEntry,
    measures: Measures,
    expected: pl.DataFrame,
    assigned: pl.DataFrame,
    sums: pl.DataFrame,
    prefix: Callable[[int], str],
) -> list[dict[str, object]]:
    segments_of = {split: measures.of("segments", f"{profile}.{name}", split) for split in SPLITS}
    found = pl.concat([pl.DataFrame(schema=SEGMENTS), *segments_of.values()])
    rows: list[dict[str, object]] = []
    for split, segments in segments_of.items():
        counted = _counted(measures.of("shards", f"{profile}.{name}", split), prefix)
        in_split = expected.filter(pl.col("split") == split)
        kept = in_split.filter(pl.col("tokens") > 0)
        tiered = with_tiers(kept, plan) if split == "train" else kept.with_columns(pl.lit(0, pl.Int32).alias("tier"))
        wanted = tiered.filter(pl.col("tier") < max(1, len(plan.budgets)))
        members = assigned.filter(pl.col("split") == split)
        of_members = found.join(members, on="subject_id", how="semi")
        misplaced = _misplaced_segments(wanted, segments)
        of_train = split == "train"
        rows.append(
            {
                "profile": profile,
                "plan": name,
                "split": split,
                "packs": counted["packs"],
                "subjects_timeline": wanted.height,
                "subjects_shards": segments["subject_id"].n_unique(),
                "tokens_timeline": int(in_split["given"].sum()),
                "tokens_dropped": sum(plan.dropped.get(split, {}).values()),
                "tokens_shards": counted["tokens"],
                "token_difference": _token_difference(wanted, of_members),
                "drop_difference": _drop_difference(plan, split, in_split, wanted),
                "foreign_subjects": segments.join(members, on="subject_id", how="anti")["subject_id"].n_unique(),
                "misplaced_tiers": _misplaced_tiers(wanted, segments),
                "budget_differences": budget_differences(tiered, plan) if of_train else 0,
                "budget_ks_ratio": budget_ks_ratio(tiered, plan) if of_train else None,
                "budgets_short": sum(budget.tokens < budget.asked for budget in plan.budgets) if of_train else 0,
                "misplaced_segments": misplaced.height,
                "changed_subjects": _changed_subjects(wanted, of_members, sums, misplaced),
                "fill": counted["tokens"] / max(counted["capacity"], 1),
                "fill_judged": _judged_fill(counted, plan),
                **{measure: counted[measure] for measure in COUNTED if measure not in ("packs", "tokens", "capacity")},
            }
        )
    return rows


def _counted(shards: pl.DataFrame, prefix: Callable[[int], str]) -> dict[str, int]:
    """What was counted of a split's shards; those of another vocabulary than the release's have no right pack."""
    right = pl.Series(
        [prefix(size) == digest for size, digest in shards.select("vocabulary_size", "vocabulary_hash").iter_rows()],
        dtype=pl.Boolean,
    )
    malformed = pl.when(right).then("malformed_packs").otherwise("packs").alias("malformed_packs")
    judged = shards.with_columns(malformed)
    sums = {name: int(judged[name].sum()) for name in COUNTED}
    return sums | {"max_segments": max(judged["max_segments"].to_list(), default=0)}


def _judged_fill(counted: dict[str, int], plan: PlanEntry) -> float | None:
    judged = plan.mode == "packed" and counted["packs"] >= MANY_PACKS
    return counted["tokens"] / counted["capacity"] if judged else None


def _drop_difference(plan: PlanEntry, split: str, in_split: pl.DataFrame, wanted: pl.DataFrame) -> int:
    """How far the declared drops are from what the plan leaves out of these subjects."""
    left_out = int(in_split["given"].sum()) - int(wanted["tokens"].sum())
    return abs(left_out - sum(plan.dropped.get(split, {}).values()))


def _token_difference(wanted: pl.DataFrame, found: pl.DataFrame) -> int:
    """Tokens too many or too few, over subjects and wherever they were found."""
    tokens = found.group_by("subject_id").agg(pl.col("tokens").sum().alias("found"))
    both = wanted.select("subject_id", "tokens").join(tokens, on="subject_id", how="full", coalesce=True)
    return int(both.select((pl.col("tokens").fill_null(0) - pl.col("found").fill_null(0)).abs().sum()).item())


def _misplaced_tiers(wanted: pl.DataFrame, segments: pl.DataFrame) -> int:
    """Subjects with a segment in another tier than theirs."""
    tiers = segments.select("subject_id", "tier").unique()
    other = tiers.join(wanted.select("subject_id", "tier"), on=["subject_id", "tier"], how="anti")
    return other.join(wanted, on="subject_id", how="semi")["subject_id"].n_unique()


def _misplaced_segments(wanted: pl.DataFrame, segments: pl.DataFrame) -> pl.DataFrame:
    """Segments that do not begin where the subject's one before ends, or where the plan's first one must."""
    end = (pl.col("offset") + pl.col("tokens")).shift(1).over("subject_id")
    first = wanted.select("subject_id", pl.col("offset").alias("first"))
    ordered = segments.sort("subject_id", "offset", "tokens").join(
        first, on="subject_id", how="inner", maintain_order="left"
    )
    return ordered.filter(pl.col("offset") != end.fill_null(pl.col("first")))


def _changed_subjects(wanted: pl.DataFrame, found: pl.DataFrame, sums: pl.DataFrame, misplaced: pl.DataFrame) -> int:
    """Subjects with as many tokens as wanted, all in place, whose sum is another than their timeline's.

    The others are counted by what is wrong with them, and their sums cannot be right.
    """
    tokens = found.group_by("subject_id").agg(pl.col("tokens").sum())
    judged = wanted.join(tokens, on=["subject_id", "tokens"], how="semi").join(misplaced, on="subject_id", how="anti")
    both = judged.join(per_subject([found.select("subject_id", "sum")]), on="subject_id")
    return both.join(sums, on=["subject_id", "sum"], how="anti").height
