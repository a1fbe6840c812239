"""A bucket's rows, gathered from every segment: narrow, with numbers for texts, until they are put in order.

A large bucket is given out a range of subjects at a time, so that memory does not grow with it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from extractors.convert import AT_TIME, AVAILABILITY, AWAITED, CONVERTED, ESTIMATED
from extractors.times import PRECISIONS
from extractors.values import FLAGS
from pipelines.segments import read_pieces, read_texts
from warehouse.hashing import splitmix64
from warehouse.schemas import EVENTS, empty_frame

# Rows that are held at once in their full width.
RANGE_ROWS = 400_000
# What tells the events of a raw row: its hash and the rule that made them.
RAW = ("row_hash", "rule")


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
        put_aside: Callable[[str, str, pl.DataFrame], None],
    ) -> "Gathered":
        """Reads every piece, leaving out the subjects outside `limit`, whose events go to `put_aside`."""
        images = image_events(items) if items is not None else _NO_EVENTS
        sources = sorted({*(one["source"] for one in segments), *images["source"].unique()})
        frames = []
        for one in segments:
            frame = read_pieces(Path(one["path"]), one["pieces"])
            if limit is not None:
                within = within_limit(frame, limit)
                put_aside("outside_limit", one["source"], frame.filter(~within))
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
        """Full-width rows, columns of EVENTS and of RAW, of one range of subjects after the other."""
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
        ).select(*EVENTS.names, *RAW)
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


def _named(numbers: pl.Series, names: Sequence[str]) -> pl.Series:
    """Numbers as the texts that they stand for, an enumeration in the order of the texts."""
    return pl.Series(names, dtype=pl.Enum(sorted(names))).gather(numbers.cast(pl.UInt32))


def within_limit(frame: pl.DataFrame, limit: str | None) -> pl.Series:
    """Whether each row's subject has a hash of at most `limit`; rows without a subject have none."""
    if limit is None:
        return pl.Series([True]).new_from_index(0, len(frame))
    subjects = frame["subject_id"]
    within = splitmix64(subjects.fill_null(0).to_numpy()) <= np.uint64(int(limit, 16))
    return pl.Series(within) & subjects.is_not_null()


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
