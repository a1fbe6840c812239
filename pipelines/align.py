"""align: one bucket's rows of every segment, and its images, become one file in the total order.

Schema in: segments (CONVERTED) and items (ITEMS). Schema out: EVENTS, SUBJECTS, code counts, CONTENTS. A large bucket
is done a range of subjects at a time, so that memory does not grow with it. Subjects of whom every row and item is as
it was are copied from the release before, with the bytes that they would get if they were made again.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import polars as pl
import pyarrow as pa

from extractors.events.converted import AVAILABILITY
from pipelines.aligning.bucket_rows import BucketRows
from pipelines.aligning.cells import row_group_bounds
from pipelines.aligning.columns import NONE_8, NONE_32
from pipelines.aligning.conflicts import CONFLICTS, differing_statics, find_conflicts
from pipelines.aligning.content_changes import MadeOf, contents_since
from pipelines.aligning.contents import ContentSums
from pipelines.aligning.gather import Gathered, Wanted, read_contents
from pipelines.aligning.left_out import (
    ACCOUNT,
    LeftOut,
    account_of,
    conflicts_of_account,
    counts_of_account,
    further_births_and_deaths,
    with_account,
)
from pipelines.aligning.statistics import NO_STATISTICS, subject_statistics, with_images
from pipelines.carrying.cells import Contents
from pipelines.carrying.kept import KeptCells
from pipelines.embed import Counts as EmbedCounts
from pipelines.engine.context import RunContext, StageReport, counts_of
from pipelines.engine.former import Former
from pipelines.engine.run_stage import load_record
from pipelines.engine.task import Carrying, Result, Task, make_task
from pipelines.lags import awaited
from pipelines.meds import Counts as MedsCounts
from pipelines.night import Night, Stage
from pipelines.trial import trial_bound
from warehouse.arrays import I64, U8
from warehouse.errors import TimeloomError
from warehouse.items import each_once
from warehouse.layout import Layout, ReleaseLayout, bucket_name
from warehouse.modalities import INDEXED
from warehouse.parquet import read_frame, write_table, write_tables
from warehouse.schemas import CONTENTS, EVENTS, SUBJECTS

CODES = {"code": pl.String, "events": pl.Int64}
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
    before: MadeOf | None
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
    published = _Published.of(context, layout, meds)
    for bucket in range(buckets):
        segments, inputs = [], []
        wanted: dict[str, set[str]] = {}
        for entry in meds.entries.values():
            counts = counts_of(entry, MedsCounts)
            index = counts["buckets"].get(str(bucket))
            if index:
                source = counts["table"]
                segments.append(segment_of(layout.segments, counts, bucket))
                inputs.append([counts["rules"], source, index["rows"], index["hash"]])
                wanted.setdefault(source, set()).update(index["awaited"])
        rows = sum(segment["rows"] for segment in segments)
        known = awaited(lags, wanted)
        happened = counts_of(items.entries[bucket_name(bucket)], EmbedCounts)["happened"] if items else None
        tasks.append(
            make_task(
                STAGE,
                bucket_name(bucket),
                context.staging,
                settings=[bound, INDEXED],
                inputs=[sorted(inputs), known, happened],
                params=Params(
                    bucket=bucket,
                    segments=segments,
                    before=published.made_of(bucket, lags, wanted) if published is not None else None,
                    lags=known,
                    items=items is not None,
                    trial_bound=bound,
                ),
                weight=rows,
                carrying=partial(
                    Carrying,
                    rules=[bound, INDEXED],
                    reads=published.items(bucket) if published is not None else (),
                ),
            )
        )
    return tasks


@dataclass(frozen=True)
class _Published:
    """What the buckets of the current release were made of.

    Attributes:
        counts: of each raw file.
    """

    context: RunContext
    segments: Path
    counts: list[MedsCounts]
    lags: pl.DataFrame

    @classmethod
    def of(cls, context: RunContext, layout: Layout, meds: StageReport) -> "_Published | None":
        """None where there is no release. A record that is gone is missed in the number of rows."""
        if context.previous is None:
            return None
        (lags,) = context.inherited(ReleaseLayout(Path()).lags)
        tonight = {Path(entry.counts["segment"]).stem: entry for entry in meds.entries.values()}
        entries = [
            tonight.get(name) or load_record(layout.segments / f"{name}.json") for name in context.previous.records
        ]
        if lags is None or not entries:
            return None
        # Other stages have records among them, and older versions of meds, whose rows are missed in their number.
        counts = [counts_of(entry, MedsCounts) for entry in entries if entry is not None and "formers" in entry.counts]
        continued = {part["segment"] for of in counts for part in of["formers"]}
        newest = [of for of in counts if of["segment"] not in continued]
        return cls(context, layout.segments, newest, read_frame(lags.path))

    def items(self, bucket: int) -> list[str]:
        """The file of a bucket's items, where the release has it."""
        path = str(ReleaseLayout(Path()).items(bucket))
        return [path] if self.context.previous is not None and path in self.context.previous.files else []

    def made_of(self, bucket: int, lags: pl.DataFrame, wanted: dict[str, set[str]]) -> MadeOf | None:
        """What a bucket was made of; None where codes got a lag since that its rows await.

        Args:
            lags: tonight's, columns of LAGS.
            wanted: by source, the codes that tonight's rows await.
        """
        codes = {source: set(of) for source, of in wanted.items()}
        for counts in self.counts:
            index = counts["buckets"].get(str(bucket))
            codes.setdefault(counts["table"], set()).update(index["awaited"] if index else ())
        known = awaited(self.lags, codes)
        if known != awaited(lags, codes):
            return None
        made = [segment_of(self.segments, of, bucket) for of in self.counts if str(bucket) in of["buckets"]]
        return MadeOf(segments=made, lags=known, items=bool(self.items(bucket)))


def segment_of(folder: Path, counts: MedsCounts, bucket: int) -> dict[str, Any]:
    """What a task is told of a bucket's rows of one raw file.

    Args:
        folder: of the segments.
    """
    index = counts["buckets"][str(bucket)]
    return {
        "path": str(folder / counts["segment"]),
        "source": counts["table"],
        "kinds": counts["kinds"],
        "rules": counts["rules"],
        "rows": index["rows"],
        "hash": index["hash"],
        "pieces": index["pieces"],
        "spans": index["spans"],
        "formers": [
            {"path": str(folder / part["segment"]), "dead": part["dead"], **places}
            for part, places in zip(counts["formers"], index.get("formers", ()), strict=True)
        ],
        "codes": counts["blobs"]["codes"],
        "units": counts["blobs"]["units"],
    }


def run(params: Params, base: Path, former: Former | None = None) -> Result:
    """Aligns one bucket."""
    tree, bucket = ReleaseLayout(base), params["bucket"]
    images = each_once(read_frame(tree.items(bucket))) if params["items"] else None
    set_aside = LeftOut()
    kept = _kept(params, bucket, images, former)
    wanted, sums = None, ContentSums()
    if kept is not None:
        wanted = Wanted(kept.now.subjects[kept.changed], int(kept.now.rows[kept.changed].sum()))
    gathered = Gathered.read(
        params["segments"],
        images,
        params["lags"],
        params["trial_bound"],
        set_aside.put,
        sums=sums if kept is None else None,
        wanted=wanted,
    )
    now = sums.total() if kept is None else kept.now
    aligned = Aligned(gathered, set_aside, now)
    events, subjects, codes, contents = (
        tree.events(bucket), tree.subjects(bucket), tree.codes_of(bucket), tree.contents(bucket)
    )  # fmt: skip
    groups = aligned.cells()
    if kept is None or former is None:
        written = {events: _write(events, groups)}
        carried = Carried()
    else:
        written = {events: kept.write(events, groups, _write)}
        carried = Carried.of(kept, former, bucket)
    statistics = pl.concat([aligned.subjects(), carried.statistics]).sort("subject_id")
    account = pl.concat([set_aside.account(), carried.account])
    counted = aligned.codes() + carried.codes
    written[subjects] = write_table(subjects, with_images(statistics, images), SUBJECTS, "subjects")
    written[codes] = write_table(
        codes, pl.DataFrame(sorted(counted.items()), CODES, orient="row"), CODE_COUNTS, "codes"
    )
    written[contents] = write_table(contents, with_account(now.frame(), account), CONTENTS, "contents")
    counts: Counts = {
        "set_aside": counts_of_account(account),
        "conflicts": dict.fromkeys(sorted(CONFLICTS), 0) | conflicts_of_account(account),
        "availability": dict(sorted((aligned.availability() + carried.availability).items())),
        "events": written[events],
        "subjects": len(statistics),
    }
    return Result({str(path.relative_to(base)): rows for path, rows in written.items()}, counts)


def _write(path: Path, groups: Iterable[pa.Table]) -> int:
    return write_tables(path, groups, EVENTS, "data")


def _kept(params: Params, bucket: int, images: pl.DataFrame | None, former: Former | None) -> KeptCells | None:
    """What may be copied from the release before; nothing in a trial, which has an account of those left out."""
    if former is None or params["trial_bound"] is not None:
        return None
    before = Contents.of_frame(read_frame(former.tree.contents(bucket)))
    now, made_of = None, params["before"]
    if made_of is not None:
        items_before = each_once(read_frame(former.tree.items(bucket))) if made_of["items"] else None
        now = contents_since(before, made_of, items_before, params["segments"], images, params["lags"])
    if now is None:
        now = read_contents(params["segments"], images, params["lags"])
    kept = KeptCells.of(now, before, former.tree.events(bucket))
    return kept if (kept.kept >= 0).any() else None


class Aligned:
    """Takes a bucket's ranges one by one, and adds up what is said of them.

    Args:
        set_aside: takes the account of events that are left out or contradict others.
        contents: of the bucket, whose cells are row groups.
    """

    def __init__(self, gathered: Gathered, set_aside: LeftOut, contents: Contents) -> None:
        self._gathered, self._set_aside, self._contents = gathered, set_aside, contents
        self._codes = np.zeros(len(gathered.texts.codes), np.int64)
        self._availability = np.zeros(NONE_8 + 1, np.int64)
        self._statistics = [NO_STATISTICS]

    def cells(self) -> Iterator[pa.Table]:
        """The events in the total order, a cell at a time: columns of EVENTS."""
        firsts = self._contents.subjects[self._contents.starts]
        for places in self._gathered.ranges(firsts):
            events, conflict = self._take(places)
            for begin, end in row_group_bounds(events, self._gathered.texts, firsts):
                yield events.part(begin, end).table(self._gathered.texts, conflict[begin:end], CONFLICTS)

    def _take(self, places: I64 | None) -> tuple[BucketRows, U8]:
        """Some subjects' rows, or all, as events in the total order, and the contradiction of each (n,)."""
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
            self._set_aside.put_conflict("further_birth_or_death", events.subject[surplus])
            events, differing = events.take(np.flatnonzero(~surplus)), differing[~surplus]
        conflict, found = find_conflicts(events, texts, differing)
        for name, marked in found.items():
            self._set_aside.put_conflict(name, events.subject[marked])
        self._codes += np.bincount(events.code, minlength=len(self._codes))
        self._availability += np.bincount(events.availability, minlength=len(self._availability))
        self._statistics.append(subject_statistics(events, texts))
        return events, conflict

    def codes(self) -> Counter[str]:
        """How many events each code has."""
        used_codes = np.flatnonzero(self._codes)
        names = self._gathered.texts.codes.take(pa.array(used_codes)).to_pylist()
        return Counter(dict(zip(names, self._codes[used_codes].tolist(), strict=True)))

    def availability(self) -> Counter[str]:
        """How many events are known to be available how."""
        counts = zip(AVAILABILITY, self._availability.tolist(), strict=False)
        return Counter({name: number for name, number in counts if number})

    def subjects(self) -> pl.DataFrame:
        """What is said of each subject, columns of NO_STATISTICS."""
        return pl.concat(self._statistics)


@dataclass(frozen=True)
class Carried:
    """What the release before says of the subjects that are copied from it; nothing where none is."""

    statistics: pl.DataFrame = field(default_factory=lambda: NO_STATISTICS)
    account: pl.DataFrame = field(default_factory=lambda: ACCOUNT)
    codes: Counter[str] = field(default_factory=Counter)
    availability: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, kept: KeptCells, before: Former, bucket: int) -> "Carried":
        """Of the kept cells of a bucket."""
        theirs = pl.col("subject_id").is_in(kept.kept_subjects)
        return cls(
            read_frame(before.tree.subjects(bucket)).filter(theirs).select(NO_STATISTICS.columns),
            account_of(read_frame(before.tree.contents(bucket)).filter(theirs)),
            Counter(kept.counted("code", dict(read_frame(before.tree.codes_of(bucket)).iter_rows()))),
            Counter(kept.counted("availability", before.counts["availability"])),
        )


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
    version=7,
    run="pipelines.align:run",
    after=("meds", "lags", "embed"),
    in_conversion=True,
    keys=("buckets",),
    plan=plan,
    check=has_events,
    settings_are=("trial", "columns of items"),
    inputs_are=("rows of tables", "lags", "items"),
)
