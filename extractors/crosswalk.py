"""Crosswalks: the site's CSV that ties images to subjects and times."""

from typing import Literal

import polars as pl
from pydantic import Field

from extractors.events.times import parse_times
from extractors.ids import SubjectIds
from extractors.items import OK, TWO_SUBJECTS
from extractors.reading import SubjectReading
from extractors.source import TimeRule
from warehouse.configuration import LocatedPath, Settings
from warehouse.errors import TimeloomError

_COLUMNS = ("match", "subject_id", "time", "available_time", "mpp")


class CrosswalkConfig(SubjectReading, Settings):
    """A CSV that ties images to subjects. `subject_pattern` and `subject_normalise` are of its column subject_id.

    Attributes:
        match: the CSV's column `match` holds a `path` below the images' folder, or a DICOM `patient_id`.
        columns: names of the CSV's columns where they are not match, subject_id, time, available_time, mpp.
        artificial: the ties are made up, as when public data sets are joined for a demonstration; recorded per item.
    """

    file: LocatedPath
    match: Literal["path", "patient_id"] = "path"
    columns: dict[Literal["match", "subject_id", "time", "available_time", "mpp"], str] = Field(default_factory=dict)
    artificial: bool = False


def read_crosswalk(crosswalk: CrosswalkConfig) -> pl.DataFrame:
    """Columns match, subject_id (text), time, available_time (datetime[us]), time_precision, mpp (float).

    Of a subject_id that is none, or does not match the crosswalk's pattern, stands null.

    Raises:
        TimeloomError: no CSV, a column is missing, or a time cannot be read.
    """
    try:
        raw = pl.read_csv(crosswalk.file, infer_schema=False, comment_prefix="#")
    except (OSError, pl.exceptions.PolarsError) as error:
        raise TimeloomError("the crosswalk is no CSV", remedy=f"mend {crosswalk.file.name}") from error
    names: dict[str, str] = {name: name for name in _COLUMNS} | {str(k): v for k, v in crosswalk.columns.items()}
    for required in ("match", "subject_id"):
        if names[required] not in raw.columns:
            raise TimeloomError(
                f"the crosswalk {crosswalk.file.name} lacks the column {names[required]}",
                remedy="add it, or name another under crosswalk.columns",
            )
    frame = raw.select(
        (pl.col(names[name]) if names[name] in raw.columns else pl.lit(None, pl.String)).alias(name)
        for name in _COLUMNS
    )
    time, available = (parse_times(frame, TimeRule(column=[name])) for name in ("time", "available_time"))
    if time.unreadable.any() or available.unreadable.any():
        raise TimeloomError(
            f"the crosswalk {crosswalk.file.name} has times that cannot be read", remedy="write 2024-05-01 13:30:00"
        )
    return frame.with_columns(
        time.time.alias("time"),
        time.precision.cast(pl.String).alias("time_precision"),
        available.time.alias("available_time"),
        pl.col("mpp").cast(pl.Float64, strict=False),
        pl.col("match").str.strip_chars().replace("", None),
        crosswalk.subject_ids.of(frame["subject_id"]),
    )


def relink(items: pl.DataFrame, links: pl.DataFrame, patients: SubjectIds) -> pl.DataFrame:
    """Subjects, and times where it gives them, from a crosswalk by PatientID; unknown patients have no subject.

    A PatientID that the crosswalk ties to two subjects has none: its usable items get the verdict for that.

    Args:
        items: columns raw_subject, time, available_time, time_source, time_precision, verdict, and others that stay.
        links: as `read_crosswalk` gives them.
        patients: how PatientIDs become one spelling, those of `items` and those of `links`.
    """
    links = links.with_columns(patients.of(links["match"])).filter(pl.col("match").is_not_null())
    # A line without a subject, of which another spelling of the PatientID may have one, stands behind those with one.
    links = links.sort(pl.col("subject_id").is_null(), maintain_order=True)
    renamed = links.rename(
        {"match": "raw_subject", "time": "_time", "available_time": "_available", "time_precision": "_precision"}
    ).unique("raw_subject", keep="first", maintain_order=True)
    several = links.group_by("match").agg((pl.col("subject_id").drop_nulls().n_unique() > 1).alias("_several"))
    renamed = renamed.join(several, left_on="raw_subject", right_on="match")
    joined = items.join(renamed, on="raw_subject", how="left", maintain_order="left")
    given, of_two = pl.col("_time").is_not_null(), pl.col("_several").fill_null(False)
    return joined.with_columns(
        pl.when(~of_two).then("subject_id").alias("raw_subject"),
        pl.when(of_two & (pl.col("verdict") == OK)).then(pl.lit(TWO_SUBJECTS)).otherwise("verdict").alias("verdict"),
        pl.coalesce("_time", "time").alias("time"),
        pl.when(given).then("_available").otherwise("available_time").alias("available_time"),
        pl.when(given).then(pl.lit("crosswalk")).otherwise("time_source").alias("time_source"),
        pl.coalesce("_precision", "time_precision").alias("time_precision"),
    ).select(items.columns)
