"""Items and visits → triplets: images become studies, each with its text, and is tied to a visit.

What is known by day only may be of any moment of that day: it stands as the span of that day.
"""

from dataclasses import dataclass

import polars as pl

from pipelines.clinifuse.settings import Beginnings, TripletsConfig
from warehouse.modalities import MODALITIES

REPORT, SUMMARY, NO_TEXT = "report", "summary", "none"
ADMISSION, EMERGENCY, NO_VISIT = "admission", "emergency", "none"
_STUDY = ("subject_id", "source", "study")
# What texts and studies are paired by; of equal distance the earlier one, then the lesser key.
_HOUR_US = 3_600_000_000


@dataclass(frozen=True)
class Paired:
    """What studies became.

    Attributes:
        studies: a row a study: subject_id, source, study, low and high (its span), image_keys, image_times,
            prior_flags, text_key, text_time, text_available_time, text_source, text_modality, text_role, link_rule,
            visit_id, visit, finish.
        funnel: source, step, rule, number.
        out_of_order: visits that end before they begin, to which no study is tied.
    """

    studies: pl.DataFrame
    funnel: pl.DataFrame
    out_of_order: int


def usable(items: pl.DataFrame, config: TripletsConfig) -> pl.DataFrame:
    """Usable images and texts with their span, `low` to `high`, and view, kind, table and tokens of their geometry.

    Args:
        items: columns of ITEMS.
    """
    said = pl.col("geometry")
    return (
        items.filter((pl.col("verdict") == "ok") & pl.col("modality").is_in([*config.images, *config.texts]))
        .with_columns(
            *(said.str.json_path_match(f"$.{name}").alias(name) for name in ("view", "kind", "table")),
            said.str.json_path_match("$.tokens").cast(pl.Int64).fill_null(0).alias("tokens"),
            pl.when(pl.col("time_precision") == "day")
            .then(pl.col("time").dt.truncate("1d"))
            .otherwise("time")
            .alias("low"),
            pl.col("time").alias("high"),
        )
        .sort("subject_id", "modality", "time", "item_key")
    )


def studies_of(images: pl.DataFrame, config: TripletsConfig) -> pl.DataFrame:
    """Images of one modality that follow one another closely, with those of the studies before.

    Args:
        images: as `usable` gives them.

    Returns:
        subject_id, source, study (its number), low, high, image_keys, image_times, prior_flags.
    """
    of = ("subject_id", "modality")
    apart = pl.col("low") - pl.col("high").shift(1).over(of) > pl.duration(
        microseconds=int(config.study_minutes * 60e6)
    )
    studies = (
        images.with_columns(apart.fill_null(False).cast(pl.Int32).cum_sum().over(of).alias("study"))
        .group_by("subject_id", pl.col("modality").alias("source"), "study", maintain_order=True)
        .agg(
            pl.col("low").min(),
            pl.col("high").max(),
            pl.col("item_key").alias("keys"),
            pl.col("time").alias("times"),
        )
    )
    stack = [(pl.col("keys"), pl.col("times"), pl.lit(False).repeat_by(pl.col("keys").list.len()))]
    since = pl.col("low") - pl.duration(microseconds=int(config.prior_days * 24 * _HOUR_US))
    of_source = ("subject_id", "source")
    for number in range(1, config.priors + 1):
        recent = (pl.col("high").shift(number).over(of_source) >= since).fill_null(False)
        keys, times = (
            pl.when(recent).then(pl.col(name).shift(number).over(of_source)).otherwise(pl.col(name).list.head(0))
            for name in ("keys", "times")
        )
        stack.insert(0, (keys, times, pl.lit(True).repeat_by(keys.list.len())))
    names = ("image_keys", "image_times", "prior_flags")
    lists = [pl.concat_list(parts).alias(name) for name, parts in zip(names, zip(*stack, strict=True), strict=True)]
    return studies.select(*_STUDY, "low", "high", *lists)


def with_reports(studies: pl.DataFrame, texts: pl.DataFrame, config: TripletsConfig) -> pl.DataFrame:
    """Studies with the text that is theirs: a text is of the study nearest to it, a study has the nearest of its texts.

    Args:
        texts: as `usable` gives them, reports alone.

    Returns:
        `_STUDY` and text_key; studies without a report are left out.
    """
    after = pl.col("source").replace_strict(
        {name: int(config.report_hours.get(name, 24.0) * _HOUR_US) for name in MODALITIES}, return_dtype=pl.Int64
    )
    before = int(config.report_hours_before * _HOUR_US)
    reports = texts.select("subject_id", text_key="item_key", text_low="low", text_high="high")
    late = (pl.col("text_low") - pl.col("high")).dt.total_microseconds()
    early = (pl.col("low") - pl.col("text_high")).dt.total_microseconds()
    pairs = (
        studies.select(*_STUDY, "low", "high")
        .join(reports, on="subject_id")
        .filter((late <= after) & (early <= before))
        .with_columns(pl.max_horizontal(late, early, 0).alias("distance"))
    )
    nearest_study = pairs.sort("distance", "low", "study").unique(["text_key", "source"], keep="first")
    return (
        nearest_study.sort("distance", "text_low", "text_key")
        .unique(list(_STUDY), keep="first")
        .select(*_STUDY, "text_key")
    )


def with_visits(studies: pl.DataFrame, visits: pl.DataFrame, config: TripletsConfig) -> pl.DataFrame:
    """Studies with the visit that they are of, the last to begin of those that fit the first rule that fits any.

    Args:
        visits: as `pipelines.clinifuse.visits.visits_of` gives them.

    Returns:
        The studies with link_rule, visit_id, visit, finish (the visit's end, or its last event) and begun.
    """
    finish = pl.coalesce("end", "last_time")
    known = visits.filter(~pl.col("out_of_order")).select(
        "subject_id", "visit_id", "visit", "starts", begun="start", finish=finish
    )
    pairs = studies.select(*_STUDY, "low", "high").join(known, on="subject_id")
    waiting = pl.duration(microseconds=int(config.admission_hours * _HOUR_US))
    reaches = {ADMISSION: pl.col("begun") - waiting, EMERGENCY: pl.col("begun")}
    beginnings = {ADMISSION: config.admissions, EMERGENCY: config.emergency}
    found = []
    for rank, rule in enumerate(config.link):
        during = (pl.col("high") >= reaches[rule]) & (pl.col("low") <= pl.col("finish"))
        found.append(
            pairs.filter(during & _begins(beginnings[rule])).with_columns(
                pl.lit(rank).alias("rank"), pl.lit(rule).alias("link_rule")
            )
        )
    columns = ["link_rule", "visit_id", "visit", "begun", "finish"]
    if not found:
        found = [pairs.clear().with_columns(pl.lit(0).alias("rank"), pl.lit("").alias("link_rule"))]
    best = (
        pl.concat(found)
        .sort("rank", pl.col("begun"), "visit", descending=[False, True, True])
        .unique(list(_STUDY), keep="first", maintain_order=True)
        .select(*_STUDY, *columns)
    )
    return studies.join(best, on=list(_STUDY), how="left", maintain_order="left").with_columns(
        pl.col("link_rule").fill_null(NO_VISIT)
    )


def _begins(beginnings: Beginnings) -> pl.Expr:
    """Whether one of the codes that begin a visit is one of some beginnings, or goes on behind one with a slash."""
    slashed = pl.element() + "/"
    fits = pl.any_horizontal(pl.lit(False), *(slashed.str.starts_with(f"{begin}/") for begin in beginnings))
    return pl.col("starts").list.eval(fits).list.any().fill_null(False)


def with_summaries(studies: pl.DataFrame, summaries: pl.DataFrame, config: TripletsConfig) -> pl.DataFrame:
    """Of studies that are of an admission, the last summary of it: `_STUDY` and text_key."""
    after = pl.duration(microseconds=int(config.summary_hours * _HOUR_US))
    known = summaries.select("subject_id", text_key="item_key", text_low="low", text_high="high")
    return (
        studies.filter(pl.col("link_rule") == ADMISSION)
        .select(*_STUDY, "begun", "finish")
        .join(known, on="subject_id")
        .filter((pl.col("text_high") >= pl.col("begun")) & (pl.col("text_low") <= pl.col("finish") + after))
        .sort("text_high", "text_key", descending=[True, False])
        .unique(list(_STUDY), keep="first")
        .select(*_STUDY, "text_key")
    )


def pair(items: pl.DataFrame, visits: pl.DataFrame, config: TripletsConfig) -> Paired:
    """Studies of some subjects with their texts and visits, and what became of everything.

    Args:
        items: columns of ITEMS.
        visits: as `pipelines.clinifuse.visits.visits_of` gives them.
    """
    every = usable(items, config)
    images = every.filter(pl.col("modality").is_in(config.images))
    seen = images.filter(pl.col("view").is_in(list(config.views)).fill_null(True)) if config.views else images
    texts = every.filter(pl.col("modality").is_in(config.texts))
    long_enough = texts.filter(pl.col("tokens") >= config.least_tokens)
    is_summary = pl.col("kind").is_in(list(config.summaries)).fill_null(False)
    wanted = ~is_summary if config.kinds is None else pl.col("kind").is_in(list(config.kinds)).fill_null(False)
    studies = with_visits(studies_of(seen, config), visits, config)
    reports = with_reports(studies, long_enough.filter(wanted), config)
    rest = studies.join(reports, on=list(_STUDY), how="anti")
    summaries = with_summaries(rest, long_enough.filter(is_summary), config)
    roles = pl.concat(
        frame.with_columns(pl.lit(role).alias("text_role")) for frame, role in ((reports, REPORT), (summaries, SUMMARY))
    )
    known_texts = texts.select(
        text_key="item_key", text_time="time", text_available_time=pl.coalesce("available_time", "time"),
        text_source="table", text_modality="modality",
    )  # fmt: skip
    studies = (
        studies.join(roles, on=list(_STUDY), how="left", maintain_order="left")
        .join(known_texts, on="text_key", how="left", maintain_order="left")
        .with_columns(pl.col("text_role").fill_null(NO_TEXT))
    )
    return Paired(studies, funnel_of(images, seen, texts, long_enough, studies), int(visits["out_of_order"].sum()))


def funnel_of(
    images: pl.DataFrame, seen: pl.DataFrame, texts: pl.DataFrame, long_enough: pl.DataFrame, studies: pl.DataFrame
) -> pl.DataFrame:
    """What became of images, texts, studies and subjects: source, step, rule, number."""
    with_text = studies.filter(pl.col("text_role") != NO_TEXT)
    used = with_text.select("text_key", rule="text_role").sort("rule").unique("text_key", keep="first")
    rule_of_text = (
        texts.select("modality", text_key="item_key")
        .join(used, on="text_key", how="left")
        .with_columns(
            pl.when(pl.col("rule").is_not_null())
            .then("rule")
            .when(~pl.col("text_key").is_in(long_enough["item_key"].implode()))
            .then(pl.lit("too_short"))
            .otherwise(pl.lit("of_no_study"))
            .alias("rule")
        )
    )
    whose = (
        pl.concat([images.select("subject_id", has="modality"), texts.select("subject_id", has=pl.lit("text"))])
        .group_by("subject_id")
        .agg((pl.col("has") == "text").any().alias("text"), (pl.col("has") != "text").any().alias("image"))
        .with_columns(
            pl.when(pl.col("subject_id").is_in(with_text["subject_id"].implode()))
            .then(pl.lit("triplet"))
            .when(~pl.col("text"))
            .then(pl.lit("images_alone"))
            .when(~pl.col("image"))
            .then(pl.lit("texts_alone"))
            .otherwise(pl.lit("unpaired"))
            .alias("rule")
        )
    )
    left_out = images.join(seen.select("item_key"), on="item_key", how="anti")
    steps = [
        _counted(seen, "modality", "images", pl.lit("taken")),
        _counted(left_out, "modality", "images", pl.lit("other_view")),
        _counted(studies, "source", "text", pl.col("text_role")),
        _counted(with_text, "source", "visit", pl.col("link_rule")),
        _counted(rule_of_text, "modality", "texts", pl.col("rule")),
        _counted(whose.with_columns(pl.lit("all").alias("all")), "all", "subjects", pl.col("rule")),
    ]
    return pl.concat(steps)


def _counted(frame: pl.DataFrame, source: str, step: str, rule: pl.Expr) -> pl.DataFrame:
    return (
        frame.select(pl.col(source).alias("source"), pl.lit(step).alias("step"), rule.alias("rule"))
        .group_by("source", "step", "rule")
        .agg(pl.len().cast(pl.Int64).alias("number"))
    )
