"""Crosswalks: the site's CSV that ties images to subjects and times."""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import polars as pl
from pydantic import Field

from extractors.events.times import parse_times
from extractors.ids import SubjectIds, known_ids
from extractors.reading import SubjectReading
from extractors.time_rule import TimeRule
from warehouse.configuration import LocatedPath, Settings
from warehouse.errors import TimeloomError

Match = Literal["path", "patient_id", "study_uid", "series_uid", "accession_number", "note_id"]
_COLUMNS = ("match", "subject_id", "time", "available_time", "mpp")
_TOLD = {"subject_id": "subjects", "time": "times", "available_time": "times of being available", "mpp": "pixel sizes"}


class CrosswalkConfig(SubjectReading, Settings):
    """A CSV that ties images to subjects. `subject_pattern` and `subject_normalise` are of its column subject_id.

    Attributes:
        match: the CSV's column `match` holds a `path` below the images' folder, or what stands in DICOM headers: a
            `patient_id` (PatientID), `study_uid`, `series_uid` or `accession_number`; or the `note_id` of a
            table of notes.
        columns: names of the CSV's columns where they are not match, subject_id, time, available_time, mpp.
        artificial: the ties are made up, as when public data sets are joined for a demonstration; recorded per item.
    """

    file: LocatedPath
    match: Match = "path"
    columns: dict[Literal["match", "subject_id", "time", "available_time", "mpp"], str] = Field(default_factory=dict)
    artificial: bool = False


def read_crosswalk(
    crosswalk: CrosswalkConfig, key: str = "crosswalk", patients: SubjectIds | None = None
) -> pl.DataFrame:
    """One row for each value of `match`: subject_id (text), time, available_time (datetime[us]), time_precision, mpp.

    Of a subject_id that is none, or does not match the crosswalk's pattern, stands null. Lines of one value complete
    each other.

    Args:
        key: where the crosswalk stands in the configuration, for messages: neither its name nor a value is said.
        patients: how PatientIDs become one spelling, where `match` is patient_id.

    Raises:
        TimeloomError: no CSV, a column is missing, a time or size cannot be read, or two lines contradict each other.
    """
    columns, lines, records = _read(crosswalk.file, key)
    raw = pl.DataFrame(records, schema=dict.fromkeys(columns, pl.String), orient="row")
    names: dict[str, str] = {name: name for name in _COLUMNS} | {str(k): v for k, v in crosswalk.columns.items()}
    for required in ("match", "subject_id"):
        if names[required] not in columns:
            raise TimeloomError(
                f"{key}.file lacks the column {names[required]}", remedy=f"add it, or name another under {key}.columns"
            )
    frame = raw.select(
        (pl.col(names[name]) if names[name] in columns else pl.lit(None, pl.String)).alias(name) for name in _COLUMNS
    )
    mpp = frame["mpp"].str.strip_chars().replace("", None)
    frame = frame.with_columns(mpp.cast(pl.Float64, strict=False))
    time, available = (parse_times(frame, TimeRule(column=[name])) for name in ("time", "available_time"))
    _refuse(time.unreadable | available.unreadable, lines, f"{key}.file has a time that cannot be read")
    _refuse(mpp.is_not_null() & frame["mpp"].is_null(), lines, f"{key}.file has an mpp that is no number")
    frame = frame.with_columns(
        time.time.alias("time"),
        time.precision.cast(pl.String).alias("time_precision"),
        available.time.alias("available_time"),
        _spelt(frame["match"], crosswalk.match, patients or SubjectIds()).alias("match"),
        crosswalk.subject_ids.of(frame["subject_id"]),
        pl.Series("line", lines, dtype=pl.Int64),
    )
    _refuse_contradictions(frame, key, crosswalk.match)
    one_each = frame.group_by("match", maintain_order=True).agg(pl.exclude("line").drop_nulls().first())
    return one_each.select(frame.drop("line").columns)


def _read(path: Path, key: str) -> tuple[list[str], list[int], list[list[str | None]]]:
    """The columns' names, and of each record the line that it begins at and its fields; an empty field is None."""
    lines: list[int] = []
    records: list[list[str | None]] = []
    reader = None
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(("\n" if line.startswith("#") else line for line in file), strict=True)
            header: list[str] | None = None
            before = 0
            for record in reader:
                if record and header is None:
                    header = record
                elif record and header is not None:
                    if len(record) > len(header):
                        raise csv.Error
                    lines.append(before + 1)
                    records.append([field or None for field in record] + [None] * (len(header) - len(record)))
                before = reader.line_num
    except (OSError, UnicodeDecodeError) as error:
        raise TimeloomError(f"{key}.file cannot be read", remedy="write a CSV in UTF-8 that may be read") from error
    except csv.Error as error:
        line = reader.line_num if reader is not None else 1
        raise TimeloomError(f"{key}.file is no CSV at line {line}", remedy="mend quotes and commas there") from error
    if not header or len(set(header)) < len(header):
        raise TimeloomError(f"{key}.file has no header of different names", remedy="write a line of column names")
    return header, lines, records


def _refuse(rows: pl.Series, lines: list[int], what: str) -> None:
    """An error that names the first lines of `rows` (n,)."""
    if rows.any():
        first = [lines[place] for place in rows.arg_true().to_list()]
        others = f", and at {len(first) - 1} more" if len(first) > 1 else ""
        raise TimeloomError(f"{what} at line {first[0]}{others}", remedy="write 2024-05-01 13:30:00, an mpp as 0.25")


def _spelt(values: pl.Series, match: Match, patients: SubjectIds) -> pl.Series:
    """What names items, in the spelling that the extractors' own names have; null where there is none."""
    if match == "patient_id":
        return patients.of(values)
    if match in ("accession_number", "note_id"):
        return known_ids(values)
    bare = values.str.strip_chars()
    if match == "path":  # as programs for Windows write them, too
        bare = bare.str.replace_all(r"\\", "/").str.replace_all("/+", "/").str.replace(r"^(?:\./)+", "")
    return bare.replace("", None)


def _refuse_contradictions(frame: pl.DataFrame, key: str, match: Match) -> None:
    """An error that names the first two lines that say two things of one item."""
    for column, meaning in _TOLD.items():
        given = frame.filter(pl.col("match").is_not_null() & pl.col(column).is_not_null())
        firsts = given.select(pl.col("line", column).first().over("match").name.suffix("_first"), "line", column)
        against = firsts.filter(pl.col(column) != pl.col(f"{column}_first")).sort("line")
        if len(against):
            first, second = against.select("line_first", "line").row(0)
            others = f", and {len(against) - 1} other lines do so too" if len(against) > 1 else ""
            raise TimeloomError(
                f"lines {first} and {second} of {key}.file give one {match} two {meaning}{others}",
                remedy="leave the line that is right",
            )


def relink(items: pl.DataFrame, links: pl.DataFrame, *, keep_others: bool = False) -> pl.DataFrame:
    """Subjects, and times where it gives them, from a crosswalk; items that it does not name have no subject.

    Args:
        items: columns raw_subject, reference (what the crosswalk may name it by, in the spelling of `read_crosswalk`),
            time, available_time, time_source, time_precision, and others that stay.
        links: as `read_crosswalk` gives them.
        keep_others: items that it does not name keep the subject that they have.
    """
    renamed = links.filter(pl.col("match").is_not_null()).rename(
        {"match": "reference", "time": "_time", "available_time": "_available", "time_precision": "_precision"}
    )
    renamed = renamed.with_columns(pl.lit(value=True).alias("_named"))
    joined = items.join(renamed, on="reference", how="left", maintain_order="left")
    given = pl.col("_time").is_not_null()
    others = pl.col("raw_subject") if keep_others else None
    return joined.with_columns(
        pl.when(pl.col("_named")).then("subject_id").otherwise(others).alias("raw_subject"),
        pl.coalesce("_time", "time").alias("time"),
        pl.when(given).then("_available").otherwise("available_time").alias("available_time"),
        pl.when(given).then(pl.lit("crosswalk")).otherwise("time_source").alias("time_source"),
        pl.coalesce("_precision", "time_precision").alias("time_precision"),
    ).select(items.columns)


def references(values: Iterable[str | None], match: Match) -> pl.Series:
    """What items are named by in their files, in the spelling of `read_crosswalk` (n,); PatientIDs are spelt before."""
    texts = pl.Series(list(values), dtype=pl.String)
    return texts if match == "patient_id" else _spelt(texts, match, SubjectIds())
