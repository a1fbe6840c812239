"""align: one bucket's rows of every segment, and its images, become one file in the total order.

Schema in: segments (CONVERTED) and items (ITEMS). Schema out: EVENTS, SUBJECTS, code counts. A large bucket is done a
range of subjects at a time, so that memory does not grow with it.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from extractors.convert import AT_TIME, AVAILABILITY, AWAITED, CONVERTED, ESTIMATED
from extractors.times import PRECISIONS
from extractors.values import FLAGS
from pipelines.conflicts import find_conflicts
from pipelines.engine import Result, RunContext, Stage, StageReport, Task, make_task
from pipelines.lags import awaited
from pipelines.segments import read_pieces, read_texts
from warehouse.hashing import splitmix64
from warehouse.layout import Layout, ReleaseLayout, bucket_name
from warehouse.order import order_events
from warehouse.schemas import EVENTS, SUBJECTS, empty_frame, read_frame, write_table, write_tables

STAGE = Stage("align", 2, "pipelines.align:run")
CODE_COUNTS = pa.schema([pa.field("code", pa.string(), nullable=False), pa.field("events", pa.int64(), nullable=False)])
BIRTH, DEATH = "MEDS_BIRTH", "MEDS_DEATH"
# Rows that are held at once in their full width.
RANGE_ROWS = 400_000
_RAW = ("row_hash", "rule")
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
    gathered = Gathered.read(params["segments"], images, params["lags"], params["limit"], aligned)
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


@dataclass(frozen=True)
class Gathered:
    """A bucket's rows in their narrow form, texts as numbers.

    Attributes:
        rows: columns of CONVERTED, and `source` and `kind`; `code`, `unit`, `source` and `kind` count in the sorted
            lists below and in _KINDS.
        images: columns of EVENTS.
        lags: by source and code, microseconds.
    """

    rows: pl.DataFrame
    images: pl.DataFrame
    codes: list[str]
    units: list[str]
    sources: list[str]
    lags: dict[str, dict[str, int]]

    @classmethod
    def read(
        cls,
        segments: list[dict[str, Any]],
        items: pl.DataFrame | None,
        lags: dict[str, dict[str, int]],
        limit: str | None,
        aligned: "Aligned",
    ) -> "Gathered":
        """Reads every piece, leaving out the subjects outside `limit`."""
        images = image_events(items) if items is not None else _NO_EVENTS
        sources = sorted({*(one["source"] for one in segments), *images["source"].unique()})
        frames = []
        for one in segments:
            frame = read_pieces(Path(one["path"]), one["pieces"])
            if limit is not None:
                within = within_limit(frame, limit)
                aligned.put_aside("outside_limit", one["source"], frame.filter(~within))
                frame = frame.filter(within)
            frames.append(frame)
        codes = _Union([read_texts(Path(one["path"]), one["codes"]) for one in segments], frames, "code", images)
        units = _Union([read_texts(Path(one["path"]), one["units"]) for one in segments], frames, "unit", images)
        numbered = [
            frame.with_columns(
                codes.renumbered(place, frame),
                units.renumbered(place, frame),
                pl.lit(sources.index(one["source"]), pl.UInt32).alias("source"),
                _KIND_NUMBERS.gather([_KINDS.index(kind) for kind in one["kinds"]]).gather(frame["rule"]).alias("kind"),
            )
            for place, (one, frame) in enumerate(zip(segments, frames, strict=True))
        ]
        rows = pl.concat(numbered) if numbered else _NO_ROWS
        return cls(rows, images, codes.texts, units.texts, sources, lags)

    def ranges(self) -> Iterator[pl.DataFrame]:
        """Full-width rows, columns of EVENTS and of _RAW, of one range of subjects after the other."""
        subjects = pl.concat([self.rows["subject_id"], self.images["subject_id"]])
        if len(subjects) <= RANGE_ROWS:
            if len(subjects):
                yield self._wide(self.rows, self.images)
            return
        counts = subjects.value_counts().sort("subject_id")
        part = (counts["count"].cum_sum() - 1) // RANGE_ROWS
        last = counts.group_by(part.alias("part")).agg(pl.col("subject_id").max()).sort("part")["subject_id"]
        before = pl.lit(True)
        for end in last:
            inside = before & (pl.col("subject_id") <= end)
            yield self._wide(self.rows.filter(inside), self.images.filter(inside))
            before = pl.col("subject_id") > end

    def _wide(self, rows: pl.DataFrame, images: pl.DataFrame) -> pl.DataFrame:
        code = _named(rows["code"], self.codes)
        availability, available = self._availability(rows, code)
        wide = rows.with_columns(
            code.alias("code"),
            _named(rows["unit"], self.units).alias("unit"),
            _named(rows["source"], self.sources).alias("source"),
            _named(rows["kind"], _KINDS).alias("kind"),
            _named(rows["precision"], PRECISIONS).alias("time_precision"),
            _named(rows["flag"], FLAGS).alias("value_flag"),
            _named(availability, AVAILABILITY).alias("availability"),
            available.alias("available_time"),
            pl.lit(None, pl.String).alias("item_key"),
            pl.lit(None, pl.String).alias("conflict"),
        ).select(*EVENTS.names, *_RAW)
        if images.is_empty():
            return wide
        own = images.with_columns(pl.lit(None, pl.UInt64).alias("row_hash"), pl.lit(None, pl.UInt16).alias("rule"))
        return pl.concat([wide, own.select(wide.columns).cast(wide.schema)], rechunk=True)

    def _availability(self, rows: pl.DataFrame, code: pl.Series) -> tuple[pl.Series, pl.Series]:
        """Facts that await a lag get theirs; what has none is taken to be known at its time."""
        availability, available = rows["availability"], rows["available_time"]
        waits = availability == AWAITED
        if not waits.any():
            return availability, available
        known = [[source, text, lag] for source, of in self.lags.items() for text, lag in of.items()]
        lags = pl.DataFrame(known, schema={"source": pl.String, "code": pl.String, "lag": pl.Int64}, orient="row")
        asked = pl.DataFrame({"source": _named(rows["source"], self.sources), "code": code}).filter(waits)
        places = pl.Series(np.flatnonzero(waits.to_numpy()))
        lag = asked.cast(pl.String).join(lags, on=["source", "code"], how="left", maintain_order="left")["lag"]
        later = available.gather(places) + (lag.fill_null(0)).cast(pl.Duration("us"))
        settled = pl.select(
            pl.when(pl.lit(lag).is_null()).then(pl.lit(AT_TIME, pl.UInt8)).otherwise(pl.lit(ESTIMATED, pl.UInt8))
        ).to_series()
        return availability.scatter(places, settled), available.scatter(places, later)


class _Union:
    """The texts that some segments use in one column, sorted, and each segment's numbers of them."""

    def __init__(self, texts: list[list[str]], frames: list[pl.DataFrame], column: str, images: pl.DataFrame) -> None:
        self._column = column
        used = [np.unique(frame[column].drop_nulls().to_numpy()).tolist() for frame in frames]
        of_segments = [[of[place] for place in places] for of, places in zip(texts, used, strict=True)]
        self.texts = sorted({*images[column].drop_nulls().unique(), *(text for of in of_segments for text in of)})
        places = {text: place for place, text in enumerate(self.texts)}
        self._tables = []
        for of, mine, own in zip(texts, used, of_segments, strict=True):
            table = np.zeros(len(of) or 1, np.uint32)
            table[mine] = [places[text] for text in own]
            self._tables.append(pl.Series(table))

    def renumbered(self, segment: int, frame: pl.DataFrame) -> pl.Series:
        """A segment's numbers as numbers of the union."""
        return self._tables[segment].gather(frame[self._column]).alias(self._column)


_KINDS = ["clinical", "death", "image", "visit_end", "visit_start"]
_KIND_NUMBERS = pl.Series(range(len(_KINDS)), dtype=pl.UInt32)
_NO_EVENTS = empty_frame(EVENTS)
_NO_ROWS = pl.DataFrame(schema=CONVERTED).with_columns(
    pl.lit(0, pl.UInt32).alias("source"), pl.lit(0, pl.UInt32).alias("kind")
)
_NO_STATISTICS = pl.DataFrame(
    schema={"subject_id": pl.Int64, "events": pl.Int64, "static_events": pl.Int64, "mean_interval_days": pl.Float64}
)


def _named(numbers: pl.Series, names: Sequence[str]) -> pl.Series:
    """Numbers as the texts that they stand for, an enumeration in the order of the texts."""
    return pl.Series(names, dtype=pl.Enum(sorted(names))).gather(numbers.cast(pl.UInt32))


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
        return events.drop(_RAW)

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


def within_limit(frame: pl.DataFrame, limit: str | None) -> pl.Series:
    """Whether each row's subject has a hash of at most `limit`; rows without a subject have none."""
    if limit is None:
        return pl.Series([True]).new_from_index(0, len(frame))
    subjects = frame["subject_id"]
    within = splitmix64(subjects.fill_null(0).to_numpy()) <= np.uint64(int(limit, 16))
    return pl.Series(within) & subjects.is_not_null()


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
            pl.when(pl.col("available_time") == pl.col("time"))
            .then(pl.lit("time"))
            .otherwise(pl.lit("recorded"))
            .alias("availability"),
            pl.lit(None, pl.String).alias("value_flag"),
            pl.lit(None, pl.String).alias("conflict"),
        )
        .cast({"time": pl.Datetime("us"), "available_time": pl.Datetime("us")})
    )


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
