"""align: one bucket's rows of every segment, and its images, become one file in the total order.

Schema in: segments (CONVERTED) and items (ITEMS). Schema out: EVENTS, SUBJECTS, code counts. A large bucket is done a
range of subjects at a time, so that memory does not grow with it.
"""

from collections import Counter
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import polars as pl
import pyarrow as pa

from extractors.events.converted import AVAILABILITY
from pipelines.aligning.columns import NONE_8, NONE_32
from pipelines.aligning.conflicts import CONFLICTS, differing_statics, find_conflicts
from pipelines.aligning.gather import Gathered
from pipelines.aligning.left_out import LeftOut, further_births_and_deaths
from pipelines.aligning.statistics import NO_STATISTICS, subject_statistics, with_images
from pipelines.embed import Counts as EmbedCounts
from pipelines.engine.context import RunContext, StageReport, counts_of
from pipelines.engine.task import Result, Task, make_task
from pipelines.lags import awaited
from pipelines.meds import Counts as MedsCounts
from pipelines.night import Night, Stage
from pipelines.trial import trial_bound
from warehouse.arrays import I64
from warehouse.errors import TimeloomError
from warehouse.items import each_once
from warehouse.layout import Layout, ReleaseLayout, bucket_name
from warehouse.modalities import INDEXED
from warehouse.parquet import read_frame, write_table, write_tables
from warehouse.schemas import EVENTS, SUBJECTS

CODE_COUNTS = pa.schema([pa.field("code", pa.string(), nullable=False), pa.field("events", pa.int64(), nullable=False)])


class Counts(TypedDict):
    """What a task tells: what was left out, contradictions, and how the availability of events is known."""

    set_aside: dict[str, dict[str, dict[str, int]]]
    conflicts: dict[str, int]
    availability: dict[str, int]
    events: int
    subjects: int


class Params(TypedDict):
    """What a task is given: paths and settings."""

    bucket: int
    segments: list[dict[str, Any]]
    lags: dict[str, dict[str, int]]
    items: bool
    trial_bound: str | None


def plan(night: Night) -> list[Task]:
    """One task per bucket, fed only by the segments that have rows in it."""
    return tasks_of(
        night.context,
        night.layout,
        night.config.buckets,
        night.report("meds"),
        night.report_if_run("embed"),
        read_frame(night.tree.lags),
        trial_bound(night),
    )


def tasks_of(
    context: RunContext,
    layout: Layout,
    buckets: int,
    meds: StageReport,
    items: StageReport | None,
    lags: pl.DataFrame,
    bound: str | None,
) -> list[Task]:
    """One task per bucket, fed only by the segments that have rows in it.

    Args:
        items: None where there are no images at all.
        lags: columns of LAGS.
        bound: hexadecimal bound on the subjects' hash, for a trial run on a few.
    """
    tasks = []
    for bucket in range(buckets):
        segments, inputs = [], []
        wanted: dict[str, set[str]] = {}
        rows = 0
        for entry in meds.entries.values():
            index = counts_of(entry, MedsCounts)["buckets"].get(str(bucket))
            if index:
                source = counts_of(entry, MedsCounts)["table"]
                segments.append(
                    {
                        "path": str(layout.segments / counts_of(entry, MedsCounts)["segment"]),
                        "source": source,
                        "kinds": counts_of(entry, MedsCounts)["kinds"],
                        "rows": index["rows"],
                        "pieces": index["pieces"],
                        "codes": counts_of(entry, MedsCounts)["blobs"]["codes"],
                        "units": counts_of(entry, MedsCounts)["blobs"]["units"],
                    }
                )
                inputs.append([counts_of(entry, MedsCounts)["rules"], source, index["rows"], index["hash"]])
                wanted.setdefault(source, set()).update(index["awaited"])
                rows += index["rows"]
        known = awaited(lags, wanted)
        happened = counts_of(items.entries[bucket_name(bucket)], EmbedCounts)["happened"] if items else None
        tasks.append(
            make_task(
                STAGE,
                bucket_name(bucket),
                context.staging,
                settings=[bound, INDEXED],
                inputs=[sorted(inputs), known, happened],
                params=Params(bucket=bucket, segments=segments, lags=known, items=items is not None, trial_bound=bound),
                weight=rows,
            )
        )
    return tasks


def run(params: Params, base: Path) -> Result:
    """Aligns one bucket."""
    tree, bucket = ReleaseLayout(base), params["bucket"]
    images = each_once(read_frame(tree.items(bucket))) if params["items"] else None
    set_aside = LeftOut()
    gathered = Gathered.read(params["segments"], images, params["lags"], params["trial_bound"], set_aside.put)
    aligned = Aligned(gathered, set_aside)
    events, subjects, codes = tree.events(bucket), tree.subjects(bucket), tree.codes_of(bucket)
    written = {events: write_tables(events, map(aligned.take, gathered.ranges()), EVENTS, "data")}
    statistics = with_images(aligned.subjects(), images)
    written[subjects] = write_table(subjects, statistics, SUBJECTS, "subjects")
    written[codes] = write_table(codes, aligned.codes(), CODE_COUNTS, "codes")
    counts: Counts = {
        "set_aside": set_aside.counts,
        "conflicts": dict(sorted(aligned.conflicts.items())),
        "availability": aligned.availability(),
        "events": written[events],
        "subjects": len(statistics),
    }
    return Result({str(path.relative_to(base)): rows for path, rows in written.items()}, counts)


class Aligned:
    """Takes a bucket's ranges one by one, and adds up what is said of them.

    Args:
        set_aside: takes the account of events that are left out.
    """

    def __init__(self, gathered: Gathered, set_aside: LeftOut) -> None:
        self._gathered, self._set_aside = gathered, set_aside
        self._codes = np.zeros(len(gathered.texts.codes), np.int64)
        self._availability = np.zeros(NONE_8 + 1, np.int64)
        self._statistics = [NO_STATISTICS]
        self.conflicts: Counter[str] = Counter()

    def take(self, places: I64 | None) -> pa.Table:
        """Some subjects' rows, or all, as events in the total order: columns of EVENTS."""
        rows, texts = self._gathered.rows, self._gathered.texts
        order, again = rows.order(texts, places)
        # Equal rows of a table are one row that stands there twice; of equal images, each is one.
        again &= rows.item[order] == NONE_32
        if again.any():
            self._set_aside.put_all("duplicate_row", rows.take(order[again]), texts)
            order = order[~again]
        events = rows.take(order)
        differing = differing_statics(events, texts)
        surplus = further_births_and_deaths(events, texts)
        if surplus.any():
            self._set_aside.put_surplus("further_birth_or_death", events, surplus, texts)
            self.conflicts["further_birth_or_death"] += int(surplus.sum())
            events, differing = events.take(np.flatnonzero(~surplus)), differing[~surplus]
        conflict, found = find_conflicts(events, texts, differing)
        self.conflicts.update(found)
        self._codes += np.bincount(events.code, minlength=len(self._codes))
        self._availability += np.bincount(events.availability, minlength=len(self._availability))
        self._statistics.append(subject_statistics(events, texts))
        return events.table(texts, conflict, CONFLICTS)

    def codes(self) -> pa.Table:
        """How many events each code has, columns of CODE_COUNTS."""
        used_codes = np.flatnonzero(self._codes)
        return pa.table(
            {"code": self._gathered.texts.codes.take(pa.array(used_codes)), "events": self._codes[used_codes]}
        )

    def availability(self) -> dict[str, int]:
        """How many events are known to be available how."""
        counts = zip(AVAILABILITY, self._availability.tolist(), strict=False)
        return {name: number for name, number in sorted(counts) if number}

    def subjects(self) -> pl.DataFrame:
        """What is said of each subject, columns of NO_STATISTICS."""
        return pl.concat(self._statistics)


def has_events(report: StageReport, night: Night) -> None:
    """Stops a run of which nothing came out.

    Raises:
        TimeloomError: no events.
    """
    if report.total("events") == 0:
        raise TimeloomError(
            "no events came out of the sources",
            remedy="look at the ledger and the source's YAML, or try `timeloom check-source`",
        )


STAGE = Stage(
    "align",
    version=5,
    run="pipelines.align:run",
    after=("meds", "lags", "embed"),
    in_conversion=True,
    plan=plan,
    check=has_events,
)
