"""align: one bucket's rows of every segment, and its images, become one file in the total order.

Schema in: segments (CONVERTED) and items (ITEMS). Schema out: EVENTS, SUBJECTS, code counts. A large bucket is done a
range of subjects at a time, so that memory does not grow with it.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from pipelines.conflicts import find_conflicts
from pipelines.engine import Result, RunContext, Stage, StageReport, Task, make_task
from pipelines.gather import RAW, Gathered
from pipelines.lags import awaited
from warehouse.layout import Layout, ReleaseLayout, bucket_name
from warehouse.order import order_events
from warehouse.schemas import EVENTS, SUBJECTS, read_frame, write_table, write_tables

STAGE = Stage("align", 2, "pipelines.align:run")
CODE_COUNTS = pa.schema([pa.field("code", pa.string(), nullable=False), pa.field("events", pa.int64(), nullable=False)])
BIRTH, DEATH = "MEDS_BIRTH", "MEDS_DEATH"
_PUT_ASIDE = ("rows", "events", "timed")

I64 = npt.NDArray[np.int64]


def plan(
    context: RunContext,
    layout: Layout,
    buckets: int,
    meds: StageReport,
    items: StageReport | None,
    lags: pl.DataFrame,
    limit: str | None,
) -> list[Task]:
    """One task per bucket, fed only by the segments that have rows in it.

    Args:
        items: None where there are no images at all.
        lags: columns of LAGS.
        limit: hexadecimal bound on the subjects' hash, for a trial run on a few.
    """
    hashes = items.hashes() if items else {}
    tasks = []
    for bucket in range(buckets):
        segments, inputs = [], []
        wanted: dict[str, set[str]] = {}
        rows = 0
        for entry in meds.entries.values():
            index = entry.counts["buckets"].get(str(bucket))
            if index:
                source = entry.counts["table"]
                segments.append(
                    {
                        "path": str(layout.segments / entry.counts["segment"]),
                        "source": source,
                        "kinds": entry.counts["kinds"],
                        "pieces": index["pieces"],
                        "codes": entry.counts["blobs"]["codes"],
                        "units": entry.counts["blobs"]["units"],
                    }
                )
                inputs.append([entry.counts["rules"], source, index["rows"], index["hash"]])
                wanted.setdefault(source, set()).update(index["awaited"])
                rows += index["rows"]
        known = awaited(lags, wanted)
        item_file = str(ReleaseLayout(Path()).items(bucket)) if items else None
        tasks.append(
            make_task(
                STAGE,
                bucket_name(bucket),
                context.staging,
                settings=limit,
                inputs=[sorted(inputs), known, hashes[item_file] if item_file else None],
                params={
                    "bucket": bucket,
                    "segments": segments,
                    "lags": known,
                    "items": items is not None,
                    "limit": limit,
                },
                weight=rows,
            )
        )
    return tasks


def run(params: dict[str, Any], base: Path) -> Result:
    """Aligns one bucket."""
    tree, bucket = ReleaseLayout(base), params["bucket"]
    images = read_frame(tree.items(bucket)) if params["items"] else None
    aligned = Aligned()
    gathered = Gathered.read(params["segments"], images, params["lags"], params["limit"], aligned.put_aside)
    written = {
        tree.events(bucket): write_tables(
            tree.events(bucket), (aligned.take(part) for part in gathered.ranges()), EVENTS, "data"
        )
    }
    statistics = with_images(pl.concat([_NO_STATISTICS, *aligned.statistics]), images)
    written[tree.subjects(bucket)] = write_table(tree.subjects(bucket), statistics, SUBJECTS, "subjects")
    codes = pl.DataFrame(sorted(aligned.codes.items()), schema={"code": pl.String, "events": pl.Int64}, orient="row")
    written[tree.codes_of(bucket)] = write_table(tree.codes_of(bucket), codes, CODE_COUNTS, "codes")
    counts = {
        "set_aside": aligned.set_aside,
        "conflicts": dict(sorted(aligned.conflicts.items())),
        "availability": dict(sorted(aligned.availability.items())),
        "events": written[tree.events(bucket)],
        "subjects": len(statistics),
    }
    return Result({str(path.relative_to(base)): rows for path, rows in written.items()}, counts)


_NO_STATISTICS = pl.DataFrame(
    schema={"subject_id": pl.Int64, "events": pl.Int64, "static_events": pl.Int64, "mean_interval_days": pl.Float64}
)


class Aligned:
    """Takes a bucket's ranges one by one, and adds up what is said of them."""

    def __init__(self) -> None:
        self.set_aside: dict[str, dict[str, dict[str, int]]] = {}
        self.conflicts: Counter[str] = Counter()
        self.availability: Counter[str] = Counter()
        self.codes: Counter[str] = Counter()
        self.statistics: list[pl.DataFrame] = []

    def take(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Rows of some subjects as events in the total order, columns of EVENTS."""
        order, tied = order_events(rows)
        again = repeated_rows(rows, order, np.flatnonzero(tied))
        if again.any():
            self._put_aside_all("duplicate_row", rows[order[again]])
            order = order[~again]
        events = rows[order]
        surplus = further_births_and_deaths(events)
        if surplus.any():
            gone, events = events.filter(surplus), events.filter(~surplus)
            raw = ["subject_id", "source", "row_hash"]
            left = events.select(*raw, "time").join(gone.select(raw).unique(), on=raw, how="semi", nulls_equal=True)
            alone = gone.join(left, on=raw, how="anti", nulls_equal=True)
            self._put_aside_all("further_birth_or_death", alone)
            self._lessen("further_birth_or_death", gone.join(left, on=raw, how="semi", nulls_equal=True), left)
            self.conflicts["further_birth_or_death"] += len(gone)
        events, found = find_conflicts(events)
        self.conflicts.update(found)
        counted = np.bincount(events["code"].to_physical().to_numpy())
        names = events["code"].cat.get_categories().to_list()
        self.codes.update({names[place]: int(counted[place]) for place in np.flatnonzero(counted).tolist()})
        for name, number in events["availability"].drop_nulls().value_counts().iter_rows():
            self.availability[str(name)] += number
        self.statistics.append(subject_statistics(events))
        return events.drop(RAW)

    def _put_aside_all(self, reason: str, rows: pl.DataFrame) -> None:
        for (source,), of_source in rows.group_by("source"):
            self.put_aside(reason, str(source), of_source)

    def _lessen(self, reason: str, gone: pl.DataFrame, left: pl.DataFrame) -> None:
        """Counts events that are taken out of rows which keep others, and rows that keep static facts only."""
        raw = ["subject_id", "source", "row_hash"]
        timed = gone.select(raw).unique().join(left.drop_nulls("time"), on=raw, how="anti", nulls_equal=True)
        for counted, name in ((gone, "events"), (timed, "timed")):
            for source, number in counted["source"].cast(pl.String).value_counts().iter_rows():
                of = self.set_aside.setdefault(reason, {}).setdefault(source, dict.fromkeys(_PUT_ASIDE, 0))
                of[name] += number

    def put_aside(self, reason: str, source: str, events: pl.DataFrame) -> None:
        """Counts raw rows whose events are taken out: rows, events, and rows with timed events.

        Equal raw rows have the same hash, and each has made one event by each rule that applied.
        """
        if events.is_empty():
            return
        row = ["subject_id", "row_hash"]
        first = pl.col("rule") == pl.col("rule").min().over(row)
        counted = events.select(
            first.sum().alias("rows"),
            pl.len().alias("events"),
            (first & pl.col("time").is_not_null().any().over(row)).sum().alias("timed"),
        )
        of = self.set_aside.setdefault(reason, {}).setdefault(source, dict.fromkeys(_PUT_ASIDE, 0))
        for name, number in counted.row(0, named=True).items():
            of[name] += number


def repeated_rows(rows: pl.DataFrame, order: I64, tied: I64) -> npt.NDArray[np.bool_]:
    """Which of the ordered events (n,) come from a raw row that equals an earlier row of its table in every column.

    Args:
        order: the total order (n,).
        tied: places in the order that may: their events equal another up to time, code and source.
    """
    again = np.zeros(len(rows), np.bool_)
    asked = rows.select("subject_id", "source", "rule", "row_hash")[order[tied]]
    of_table = asked["row_hash"].is_not_null()
    again[tied] = (of_table & ~asked.select(pl.struct(pl.all()).is_first_distinct()).to_series()).to_numpy()
    return again


def further_births_and_deaths(events: pl.DataFrame) -> pl.Series:
    """Whether each event, in the total order, is a birth or death of a subject that has an earlier one; a source's own
    priorities stand in its YAML."""
    categories = events["code"].cat.get_categories()
    further = np.zeros(len(events), np.bool_)
    code = events["code"].to_physical().to_numpy()
    for name in (BIRTH, DEATH):
        if name in categories:
            places = np.flatnonzero(code == categories.index_of(name))
            # In the order of time, so the first one stands first; one without a time is no better than none.
            own = events.select("subject_id", "time")[places].with_row_index("place")
            first = own.sort("subject_id", "time", nulls_last=True, maintain_order=True).unique(
                "subject_id", keep="first", maintain_order=True
            )
            further[np.delete(places, first["place"].to_numpy())] = True
    return pl.Series(further)


def subject_statistics(events: pl.DataFrame) -> pl.DataFrame:
    """Of events in the total order: per subject the timed ones, the static ones, mean days between distinct times."""
    birth = pl.col("code") == BIRTH if BIRTH in events["code"].cat.get_categories() else pl.lit(False)
    columns = events.select("subject_id", "time", (pl.col("time").is_not_null() & ~birth).alias("timed"))
    timed = columns.filter("timed")
    distinct = (pl.col("time") != pl.col("time").shift()) | (pl.col("subject_id") != pl.col("subject_id").shift())
    spans = (
        timed.with_columns(distinct.fill_null(True).alias("distinct"))
        .group_by("subject_id")
        .agg(
            (pl.col("time").max() - pl.col("time").min()).dt.total_microseconds().alias("span"),
            (pl.col("distinct").sum().cast(pl.Int64) - 1).alias("gaps"),
        )
    )
    return (
        columns.group_by("subject_id")
        .agg(
            pl.col("timed").sum().cast(pl.Int64).alias("events"),
            pl.col("time").is_null().sum().cast(pl.Int64).alias("static_events"),
        )
        .join(spans, on="subject_id", how="left")
        .select(
            "subject_id",
            "events",
            "static_events",
            pl.when(pl.col("gaps") > 0)
            .then(pl.col("span") / pl.col("gaps") / 86_400_000_000)
            .alias("mean_interval_days"),
        )
        .sort("subject_id")
    )


def with_images(statistics: pl.DataFrame, items: pl.DataFrame | None) -> pl.DataFrame:
    """The statistics with each subject's usable images of each modality."""
    for modality in ("ct", "wsi"):
        count = pl.lit(0, pl.Int64).alias(modality)
        if items is not None:
            usable = items.filter((pl.col("verdict") == "ok") & (pl.col("modality") == modality))
            of_subject = usable.drop_nulls("subject_id").group_by("subject_id").agg(
                pl.len().cast(pl.Int64).alias(modality)
            )  # fmt: skip
            statistics = statistics.join(of_subject, on="subject_id", how="left")
            count = pl.col(modality).fill_null(0)
        statistics = statistics.with_columns(count)
    return statistics
