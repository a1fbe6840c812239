"""One bucket's events, some subjects at a time, each column once: what stands in them, and where something is wrong."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from validation.measure.annotations import count_annotations
from validation.measure.reading import Texts, unreadable
from validation.measure.tally import Tally, tabulated
from warehouse.arrays import I64, NO_TIME, Bools, numbers_of
from warehouse.parquet import subjects_together
from warehouse.schemas import SPLITS

BIRTH, DEATH = "MEDS_BIRTH", "MEDS_DEATH"
# A bucket of many events is taken up so many at a time, give or take a subject.
PART_ROWS = 1 << 20
EARLIEST, LATEST = (int(datetime(year, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000 for year in (1850, 2300))
_TEXTS = ("code", "kind", "source", "availability", "value_flag", "conflict", "item_key")
_COLUMNS = ("subject_id", "time", "available_time", "numeric_value", *_TEXTS)


@dataclass(frozen=True)
class Part:
    """Some subjects' events.

    Attributes:
        subject, time, available: (n,) ids; µs, NO_TIME where there is none.
        whole: (n,) number and text of the value both stand.
        visit: (n,) where it was asked for; `visited` says which rows have one.
    """

    subject: I64
    time: I64
    available: I64
    whole: Bools
    texts: dict[str, Texts]
    visit: I64
    visited: Bools

    @property
    def starts(self) -> I64:
        """Where another subject begins than the row before has."""
        return np.flatnonzero(np.append([True], self.subject[1:] != self.subject[:-1])[: len(self.subject)])


class EventsFile:
    """A bucket's events.

    Attributes:
        breaks: the file has other types than MEDS allows, or null where it allows none; known when all was read.
    """

    def __init__(self, path: Path, *, visits: bool) -> None:
        self.path, self.breaks = path, False
        self._columns = [*_COLUMNS, *(["visit_id"] if visits else [])]

    def parts(self) -> Iterator[Part]:
        """Whole subjects, about PART_ROWS events at a time.

        Raises:
            TimeloomError: the file is damaged.
        """
        self.breaks = _breaks_schema(self.path)
        for table in subjects_together(self.path, self._read, PART_ROWS, _TEXTS):
            visits = table["visit_id"] if "visit_id" in table.column_names else pa.chunked_array([pa.nulls(0)])
            yield Part(
                subject=numbers_of(table["subject_id"], 0),
                time=numbers_of(table["time"].cast(pa.int64()), NO_TIME),
                available=numbers_of(table["available_time"].cast(pa.int64()), NO_TIME),
                whole=table["whole"].to_numpy(),
                texts={name: Texts.of(table[name]) for name in _TEXTS},
                visit=numbers_of(visits.cast(pa.int64()), 0),
                visited=visits.is_valid().to_numpy(),
            )

    def _read(self, file: pq.ParquetFile, groups: list[int]) -> pa.Table:
        table = file.read_row_groups(groups, self._columns)
        self.breaks = self.breaks or table["subject_id"].null_count + table["code"].null_count > 0
        valid = table["numeric_value"].is_valid()
        if table["value_flag"].null_count < len(table):
            valid = pc.and_(valid, file.read_row_groups(groups, ["text_value"])["text_value"].is_valid())
        return table.drop_columns("numeric_value").append_column("whole", valid)


def _breaks_schema(path: Path) -> bool:
    from meds.schema import DataSchema

    try:
        schema = pq.read_schema(path)
    except (OSError, pa.ArrowException) as error:
        raise unreadable(path) from error
    try:
        DataSchema.validate(schema.empty_table())
    except Exception:  # the meds package raises a type per kind of break; all of them mean the same here
        return True
    return False


class EventCounts:
    """What is added up over the parts of a bucket.

    Args:
        schemes: by split scheme, `subject_id` and `split` of its subjects.
    """

    def __init__(self, bucket: int, schemes: dict[str, pl.DataFrame]) -> None:
        self.tally = Tally()
        self._bucket, self._schemes = bucket, schemes
        self._subjects: list[pl.DataFrame] = []
        self._keys: list[pl.DataFrame] = []
        self._starts = 0
        self._last: int | None = None

    def add(self, part: Part) -> None:
        """Counts what stands in a part."""
        if not len(part.subject):
            return
        self._add_order(part)
        self._add_marks(part)
        self._add_codes(part)
        self._add_subjects(part)
        item = part.texts["item_key"]
        if item.size > 1:
            often = np.bincount(item.place, minlength=item.size)[:-1]
            keys = pl.DataFrame(
                {"item_key": item.distinct[:-1], "events": often}, schema_overrides={"item_key": pl.String}
            )
            self._keys.append(keys.filter(pl.col("events") > 0))

    def _add_order(self, part: Part) -> None:
        subject, time, available = part.subject, part.time, part.available
        same = subject[1:] == subject[:-1]
        timed = time != NO_TIME
        code = part.texts["code"]
        self._starts += len(part.starts) - int(self._last == int(subject[0]))
        self._last = int(subject[-1])
        births, deaths = code.starting(BIRTH), code.starting(DEATH)
        twice = {int(who) for which in (births, deaths) for who in _repeated(subject[which])}
        self.tally.count(
            "events",
            {
                "rows": len(subject),
                "empty_codes": int(code.which(("", None)).sum()),
                "rows_out_of_order": int((same & (time[1:] < time[:-1])).sum()),
                "available_before_time": int((timed & (available != NO_TIME) & (available < time)).sum()),
                "implausible_times": int((timed & ((time < EARLIEST) | (time > LATEST))).sum()),
                "born_or_dead_twice": len(twice),
            },
        )

    def _add_marks(self, part: Part) -> None:
        """What events say of their availability, value and conflict, by source."""
        names = ("source", "availability", "value_flag", "conflict")
        marks = {
            "image": part.texts["item_key"].place < part.texts["item_key"].size - 1,
            "timed": part.time != NO_TIME,
            "available": part.available != NO_TIME,
            "whole": part.whole,
        }
        cells = tabulated(
            {name: (flags.astype(np.int64), 2) for name, flags in marks.items()}
            | {name: (part.texts[name].place, part.texts[name].size) for name in names}
        )
        frame = pl.DataFrame(
            {name: cells[name].astype(np.bool_) for name in marks}
            | {name: part.texts[name].at(cells[name]) for name in names}
            | {"rows": cells["n"]}
        )
        self.tally.add("source", count_annotations(frame), of="source")

    def _add_codes(self, part: Part) -> None:
        """Codes; namespaces of each source's events that are no images'; and what could become tokens."""
        code, source, kind, item = (part.texts[name] for name in ("code", "source", "kind", "item_key"))
        timed = part.time != NO_TIME
        splits = {
            scheme: (np.repeat(split_of(part.subject[part.starts], frame), _lengths(part)), len(SPLITS) + 1)
            for scheme, frame in self._schemes.items()
        }
        cells = tabulated(
            {
                "image": ((item.place < item.size - 1).astype(np.int64), 2),
                "timed": (timed.astype(np.int64), 2),
                "clinical": (kind.which(("clinical",)).astype(np.int64), 2),
                **{f"split {scheme}": column for scheme, column in splits.items()},
                "source": (source.place, source.size),
                "code": (code.place, code.size),
            }
        )
        names = [None if text is None else text.partition("/")[0] for text in code.distinct]
        found = {name: place for place, name in enumerate(dict.fromkeys(name for name in names if name is not None))}
        spaces = np.array([-1 if name is None else found[name] for name in names])[cells["code"]]
        frame = pl.DataFrame(
            {
                "image": cells["image"] > 0,
                "static": cells["timed"] == 0,
                "clinical": (cells["clinical"] > 0) & (cells["timed"] > 0),
                "source": source.at(cells["source"]),
                "namespace": pl.Series([*found, None], dtype=pl.String).gather(
                    np.where(spaces < 0, len(found), spaces)
                ),
                "code": code.at(cells["code"]),
                "n": cells["n"],
            }
        )
        number = pl.col("n").sum()
        self.tally.add(
            "code", frame.filter(pl.col("code").is_not_null()).group_by("code").agg(number.alias("events")), of="code"
        )
        self.tally.add(
            "namespace",
            frame.filter(~pl.col("image"))
            .group_by("source", "namespace")
            .agg(number.alias("events"), pl.col("n").filter("static").sum().alias("static")),
            of="source",
            within="namespace",
        )
        for scheme in splits:
            split = pl.Series([*SPLITS, None], dtype=pl.String).gather(cells[f"split {scheme}"]).alias("split")
            by_space = frame.with_columns(split, pl.lit(scheme).alias("scheme")).drop_nulls(["split", "namespace"])
            self.tally.add(
                "tokenised",
                by_space.group_by("scheme", "namespace", "split").agg(
                    number.alias("events"), pl.col("n").filter("clinical").sum().alias("clinical")
                ),
                of="scheme",
                within="namespace",
                split="split",
            )

    def _add_subjects(self, part: Part) -> None:
        """Who has events, and the tables of his events that are no images'."""
        source, item = part.texts["source"], part.texts["item_key"]
        subjects, row = np.unique(part.subject[part.starts], return_inverse=True)
        row = np.repeat(row, _lengths(part))
        seen = np.zeros((len(subjects), source.size), np.bool_)
        fact = item.place == item.size - 1
        seen[row[fact], source.place[fact]] = True
        known = seen.any(axis=1)
        self._subjects.append(
            pl.DataFrame(
                {"subject_id": subjects, "bucket": self._bucket, "known": known}, schema_overrides={"bucket": pl.Int64}
            )
        )
        sets, often = np.unique(seen[known], axis=0, return_counts=True)
        names = [json.dumps(sorted(source.distinct[at] or "" for at in np.flatnonzero(held))) for held in sets]
        rows = pl.DataFrame({"labels": names, "subjects": often}, schema={"labels": pl.String, "subjects": pl.Int64})
        self.tally.add("tables", rows, of="labels")

    def tables(self) -> dict[str, pl.DataFrame]:
        """`counts`, `subjects` and `keys` of the bucket."""
        none = pl.DataFrame(schema={"subject_id": pl.Int64, "bucket": pl.Int64, "known": pl.Boolean})
        subjects = (
            pl.concat([none, *self._subjects])
            .group_by("subject_id", "bucket")
            .agg(pl.col("known").any())
            .sort("subject_id")
        )
        # A subject whose rows stand in two places starts twice.
        self.tally.count("events", {"rows_out_of_order": self._starts - subjects.height})
        keys = pl.concat([pl.DataFrame(schema={"item_key": pl.String, "events": pl.Int64}), *self._keys])
        return {
            "counts": self.tally.table(),
            "subjects": subjects,
            "keys": keys.group_by("item_key").agg(pl.col("events").sum()).sort("item_key"),
        }


def split_of(subjects: I64, splits: pl.DataFrame) -> I64:
    """The place of each subject's split in SPLITS (n,); the number of SPLITS without one.

    Args:
        splits: `subject_id`, `split`.
    """
    number = pl.col("split").replace_strict(
        list(SPLITS), range(len(SPLITS)), default=len(SPLITS), return_dtype=pl.Int64
    )
    found = pl.DataFrame({"subject_id": subjects}).join(
        splits.select("subject_id", number.alias("place")), on="subject_id", how="left", maintain_order="left"
    )
    return found["place"].fill_null(len(SPLITS)).to_numpy()


def _lengths(part: Part) -> I64:
    """(s,) how many rows each run of one subject has."""
    return np.diff(np.append(part.starts, len(part.subject)))


def _repeated(subjects: I64) -> I64:
    found, often = np.unique(subjects, return_counts=True)
    repeated: I64 = found[often > 1]
    return repeated
