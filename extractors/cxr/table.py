"""The table of a set of images: whose each is, when it was taken, from which side."""

import re
from collections.abc import Collection
from datetime import datetime
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import polars as pl

from extractors.cxr.settings import COLUMNS, CxrSettings, CxrTable, Match
from extractors.events.times import parse_times
from extractors.time_rule import TimeRule
from extractors.trees import walk
from warehouse.errors import TimeloomError
from warehouse.files import signature_of

KEY = "modalities.cxr.table"
_TIME = re.compile(r"(\d{1,6})(\.\d{1,6}\d*)?")


class Row(NamedTuple):
    """What the table says of an image; empty, or None, where it says nothing.

    Attributes:
        subjects: ids of subjects, different ones.
    """

    subjects: tuple[str, ...]
    time: datetime | None
    precision: str
    available: datetime | None
    view: str
    view_code: str
    laterality: str
    burned_in: str
    body_part: str


def name_of(path: str, match: Match) -> str:
    """What the table calls the file at `path`."""
    if match == "path":
        return path
    name = PurePosixPath(path).name
    return name if match == "name" else name.removesuffix(PurePosixPath(name).suffix)


def rows_of(table: CxrTable, names: Collection[str]) -> dict[str, Row]:
    """What the table says of some images; those that it does not name are left out.

    Raises:
        TimeloomError: no CSV, or a column is missing.
    """
    frame = _frame(table).filter(pl.col("image").is_in(list(names)))
    times, available = _times(frame)
    rows: dict[str, Row] = {}
    for line, time, precision, readable in zip(
        frame.iter_rows(named=True), times.time, times.precision.cast(pl.String), available.time, strict=True
    ):
        found = rows.get(line["image"])
        texts = {name: (line[name] or "").strip() for name in COLUMNS}
        subjects = (texts["subject_id"],) if texts["subject_id"] else ()
        if found is not None:  # a second line completes the first, and may name another subject
            rows[line["image"]] = found._replace(subjects=tuple(dict.fromkeys((*found.subjects, *subjects))))
            continue
        rows[line["image"]] = Row(
            subjects, time, precision or "day", readable, texts["view"], texts["view_code"], texts["laterality"],
            texts["burned_in"], texts["body_part"],
        )  # fmt: skip
    return rows


def check(settings: CxrSettings) -> None:
    """Holds the table against the names of the files.

    Raises:
        TimeloomError: it cannot be read, or names files that are not there.
    """
    table = settings.table
    if table is None:
        return
    named = set(_frame(table)["image"].drop_nulls())
    found = {name_of(entry.path, table.matched_by) for entry in walk(settings.path) if entry.kind == "file"}
    absent = len(named - found)
    if named and absent == len(named):
        raise TimeloomError(
            f"none of the {absent:,} files that {KEY}.file names is there",
            remedy=f"see that modalities.cxr.path is their folder, and {KEY}.match what the table calls them by",
        )
    if absent and not table.partial:
        raise TimeloomError(
            f"{absent:,} of the {len(named):,} files that {KEY}.file names are not there",
            remedy=f"copy them, or set {KEY}.partial: true where only some are meant to be there",
        )


def _frame(table: CxrTable) -> pl.DataFrame:
    """All columns of COLUMNS as text, null where the table has none."""
    names = table.names
    required = ["image", *table.columns] if table.layout is None else [*names]
    seen = tuple(signature_of(table.file.stat())) if table.file.is_file() else ()
    return _read(table.file, seen, tuple((column, name, column in required) for column, name in names.items()))


@lru_cache(maxsize=1)
def _read(file: Path, seen: tuple[int, ...], names: tuple[tuple[str, str, bool], ...]) -> pl.DataFrame:
    """A CSV's columns under our names; `seen` is what the file system says of it, `names` also whether it is needed."""
    try:
        raw = pl.read_csv(file, infer_schema=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise TimeloomError(f"{KEY}.file cannot be read", remedy="give a CSV in UTF-8, plain or .gz") from error
    for _, name, needed in names:
        if needed and name not in raw.columns:
            raise TimeloomError(
                f"{KEY}.file lacks the column {name}", remedy=f"add it, or name another under {KEY}.columns"
            )
    given = {column: name for column, name, _ in names if name in raw.columns}
    frame = raw.select(
        (pl.col(given[column]) if column in given else pl.lit(None, pl.String)).alias(column) for column in COLUMNS
    )
    image = pl.col("image").str.strip_chars().str.replace_all(r"\\", "/").str.replace(r"^(?:\./)+", "")
    return frame.with_columns(image.replace("", None))


def _times(frame: pl.DataFrame) -> "tuple[_Times, _Times]":
    """The times of acquisition and of being available: texts of any usual form, or DICOM's date and time."""
    dated = [
        _dicom(day, clock) or text for text, day, clock in frame.select("time", "study_date", "study_time").iter_rows()
    ]
    dated_frame = frame.with_columns(pl.Series("time", dated, dtype=pl.String))
    time, available = (parse_times(dated_frame, TimeRule(column=[name])) for name in ("time", "available_time"))
    return _Times(time.time, time.precision), _Times(available.time, available.precision)


class _Times(NamedTuple):
    time: pl.Series
    precision: pl.Series


def _dicom(day: str | None, clock: str | None) -> str | None:
    """DICOM's DA and TM as one time. A table that read TM as a number lost the zeros in front: 32759.0 is 03:27:59.

    >>> _dicom("21800506", "32759.5"), _dicom("21800506", "")
    ('2180-05-06 03:27:59.5', '2180-05-06')
    """
    digits = (day or "").strip()
    if not re.fullmatch(r"\d{8}", digits):
        return None
    date = f"{digits[:4]}-{digits[4:6]}-{digits[6:]}"
    found = _TIME.fullmatch((clock or "").strip())
    if found is None:
        return date
    whole, fraction = found[1].zfill(6), (found[2] or "").rstrip("0").rstrip(".")
    return f"{date} {whole[:2]}:{whole[2:4]}:{whole[4:]}{fraction[:7]}"
