"""align: one bucket's rows of every segment, and its images, become one file in the total order.

Schema in: segments (EVENTS, row, row_hash) and items (ITEMS). Schema out: EVENTS, SUBJECTS, code counts.
"""

from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from pipelines.engine import Result, RunContext, Stage, StageReport, Task, make_task
from pipelines.meds import read_bucket
from warehouse.hashing import splitmix64
from warehouse.layout import Layout, ReleaseLayout, bucket_name
from warehouse.order import sort_events
from warehouse.schemas import EVENTS, SUBJECTS, read_frame, write_table

STAGE = Stage("align", 1, "pipelines.align:run")
CODE_COUNTS = pa.schema([pa.field("code", pa.string(), nullable=False), pa.field("events", pa.int64(), nullable=False)])
BIRTH, DEATH = "MEDS_BIRTH", "MEDS_DEATH"
_EVENT_FRAME = pl.DataFrame(pl.from_arrow(EVENTS.empty_table()))


def plan(
    context: RunContext, layout: Layout, buckets: int, meds: StageReport, items: StageReport, limit: str | None
) -> list[Task]:
    """One task per bucket, fed only by the segments that have rows in it.

    Args:
        limit: hexadecimal bound on the subjects' hash, for a trial run on a few.
    """
    hashes = items.hashes()
    tasks = []
    for bucket in range(buckets):
        segments, inputs = [], []
        for entry in meds.entries.values():
            index = entry.counts["buckets"].get(str(bucket))
            if index:
                segments.append([str(layout.segments / entry.counts["segment"]), index["groups"]])
                inputs.append([entry.counts["table"], index["rows"], index["hash"]])
        item_file = ReleaseLayout(Path()).items(bucket)
        tasks.append(
            make_task(
                STAGE,
                bucket_name(bucket),
                context.staging,
                settings=limit,
                inputs=[sorted(inputs), hashes[str(item_file)]],
                params={"bucket": bucket, "segments": segments, "limit": limit},
            )
        )
    return tasks


def run(params: dict[str, Any], base: Path) -> Result:
    """Aligns one bucket."""
    tree, bucket = ReleaseLayout(base), params["bucket"]
    items = read_frame(tree.items(bucket))
    frames = [read_bucket(Path(path), groups) for path, groups in params["segments"]]
    rows = pl.concat(frames) if frames else _EVENT_FRAME.with_columns(
        pl.lit(0, pl.Int64).alias("row"), pl.lit(0, pl.UInt64).alias("row_hash")
    )  # fmt: skip
    within = within_limit(rows, params["limit"])
    set_aside = {"outside_limit": account(rows.filter(~within))}
    rows = rows.filter(within)
    again = repeated_rows(rows)
    set_aside["duplicate_row"] = account(rows.filter(again))
    rows = rows.filter(~again)
    events = pl.concat([rows.select(EVENTS.names), image_events(items)])
    events, surplus = one_birth_and_death(events)
    events = sort_events(events)
    files = {
        tree.events(bucket): (events, EVENTS),
        tree.subjects(bucket): (subject_statistics(events, items), SUBJECTS),
        tree.codes_of(bucket): (code_counts(events), CODE_COUNTS),
    }
    counts = {"set_aside": set_aside, "conflicts": conflicts(events) | surplus, "events": len(events)}
    written = {
        str(path.relative_to(base)): write_table(path, frame, schema, path.parent.name)
        for path, (frame, schema) in files.items()
    }
    return Result(dict(written), counts)


def within_limit(frame: pl.DataFrame, limit: str | None) -> pl.Series:
    """Whether each row's subject has a hash of at most `limit`; rows without a subject have none."""
    if limit is None:
        return pl.Series([True]).new_from_index(0, len(frame))
    subjects = frame["subject_id"]
    within = splitmix64(subjects.fill_null(0).to_numpy()) <= int(limit, 16)
    return pl.Series(within) & subjects.is_not_null()


def repeated_rows(rows: pl.DataFrame) -> pl.Series:
    """Whether each event comes from a raw row that equals an earlier row of its table in every column."""
    first = pl.col("row").min().over("subject_id", "source", "row_hash")
    return rows.select(pl.col("row") != first).to_series()


def account(removed: pl.DataFrame) -> dict[str, dict[str, int]]:
    """Per table, the raw rows whose events were taken out: rows, events, and rows with timed events."""
    counted = (
        removed.group_by("source", "row")
        .agg(pl.len().alias("events"), pl.col("time").is_not_null().any().alias("timed"))
        .group_by("source")
        .agg(pl.len().alias("rows"), pl.col("events").sum(), pl.col("timed").sum())
        .sort("source")
    )
    return {
        source: {"rows": number, "events": events, "timed": timed}
        for source, number, events, timed in counted.select("source", "rows", "events", "timed").iter_rows()
    }


def image_events(items: pl.DataFrame) -> pl.DataFrame:
    """One event per image that happened, usable or not; what is not the modality makes none."""
    return (
        items.filter(
            pl.col("subject_id").is_not_null()
            & pl.col("time").is_not_null()
            & ~pl.col("verdict").str.starts_with("refused_")
        )
        .select(
            "subject_id",
            "time",
            ("IMAGE/" + pl.col("modality").str.to_uppercase()).alias("code"),
            pl.lit(None, pl.Float32).alias("numeric_value"),
            pl.lit(None, pl.String).alias("text_value"),
            "available_time",
            "time_precision",
            pl.lit("image").alias("kind"),
            pl.lit(None, pl.String).alias("unit"),
            ("images/" + pl.col("modality")).alias("source"),
            pl.lit(None, pl.Int64).alias("visit_id"),
            "item_key",
        )
        .cast({"time": pl.Datetime("us"), "available_time": pl.Datetime("us")})
    )


def one_birth_and_death(events: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, int]]:
    """Keeps a subject's earliest birth and death; a source's own priorities stand in its YAML."""
    once = pl.col("code").is_in([BIRTH, DEATH])
    total = sort_events(events.filter(once))
    ordered = total.sort("subject_id", "code", "time", "source", nulls_last=True, maintain_order=True)
    kept = ordered.unique(["subject_id", "code"], keep="first", maintain_order=True)
    extra = {"extra_birth_or_death": len(ordered) - len(kept)}
    return pl.concat([events.filter(~once), kept]), extra


def conflicts(events: pl.DataFrame) -> dict[str, int]:
    """Contradictions, counted and left as they are."""
    death = events.filter(pl.col("code") == DEATH).select("subject_id", pl.col("time").alias("_death"))
    birth = events.filter(pl.col("code") == BIRTH).select("subject_id", pl.col("time").alias("_birth"))
    joined = events.join(death, on="subject_id", how="left").join(birth, on="subject_id", how="left")
    after = joined.filter(pl.col("time") > pl.col("_death"))
    return {
        "events_after_death": len(after),
        "death_before_admission": after.filter(pl.col("kind") == "visit_start")["subject_id"].n_unique(),
        "events_before_birth": len(joined.filter(pl.col("time") < pl.col("_birth"))),
    }


def subject_statistics(events: pl.DataFrame, items: pl.DataFrame) -> pl.DataFrame:
    """What splits are stratified by: events, usable images, mean days between distinct times."""
    timed = pl.col("time").is_not_null() & (pl.col("code") != BIRTH)
    span = (pl.col("time").filter(timed).max() - pl.col("time").filter(timed).min()).dt.total_microseconds()
    gaps = pl.col("time").filter(timed).n_unique() - 1
    statistics = events.group_by("subject_id").agg(
        timed.sum().cast(pl.Int64).alias("events"),
        pl.col("time").is_null().sum().cast(pl.Int64).alias("static_events"),
        pl.when(gaps > 0).then(span / gaps / 86_400_000_000).alias("mean_interval_days"),
    )
    usable = items.filter((pl.col("verdict") == "ok") & pl.col("subject_id").is_not_null())
    for modality in ("ct", "wsi"):
        count = usable.filter(pl.col("modality") == modality).group_by("subject_id").agg(
            pl.len().cast(pl.Int64).alias(modality)
        )  # fmt: skip
        statistics = statistics.join(count, on="subject_id", how="left").with_columns(pl.col(modality).fill_null(0))
    return statistics.sort("subject_id")


def code_counts(events: pl.DataFrame) -> pl.DataFrame:
    """Events per code."""
    return events.group_by("code").agg(pl.len().cast(pl.Int64).alias("events")).sort("code")
