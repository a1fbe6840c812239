"""OMOP CDM: visits, what belongs to them, and when what is coded at their end is known."""

from datetime import date, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from extractors.reading import Reading
from extractors.source import Source
from tests.support.raw.omop_tables import OMOP, codes, end_of, made, table, vocabulary
from tests.support.raw.raw_tables import convert

VISIT: dict[str, Any] = {
    "visit_occurrence_id": 70,
    "visit_concept_id": 9201,
    "visit_start_date": "2020-03-01",
    "visit_start_datetime": "2020-03-01 08:00:00",
    "visit_end_date": "2020-03-05",
}
V53 = {"admitting_source_concept_id": 8870, "discharge_to_concept_id": 8536}
V54 = {"admitted_from_concept_id": 8870, "discharged_to_concept_id": 8536}


@pytest.mark.parametrize("version", [V53, V54], ids=["5.3", "5.4"])
def test_a_visit_starts_and_ends_in_both_versions(tmp_path: Path, version: dict[str, int]) -> None:
    vocabulary(tmp_path / "cdm")
    events = made(tmp_path, "visit_occurrence", VISIT | version)
    start, end = datetime(2020, 3, 1, 8), end_of("2020-03-05")
    assert [(event["code"], event["time"], event["kind"], event["visit_id"]) for event in events] == [
        ("VISIT_START/VISIT/IP", start, "visit_start", 70),
        ("ADMITTED_FROM/CMS PLACE OF SERVICE/23", start, "clinical", 70),
        ("DISCHARGED_TO/CMS PLACE OF SERVICE/12", end, "clinical", 70),
        ("VISIT_END/VISIT/IP", end, "visit_end", 70),
    ]


@pytest.mark.parametrize("version", [V53, V54], ids=["5.3", "5.4"])
def test_a_part_of_a_visit_belongs_to_it(tmp_path: Path, version: dict[str, int]) -> None:
    vocabulary(tmp_path / "cdm")
    row = {
        "visit_detail_id": 5,
        "visit_occurrence_id": 70,
        "visit_detail_concept_id": 32037,
        "visit_detail_start_date": "2020-03-02",
        "visit_detail_end_date": "2020-03-03",
    }
    events = made(tmp_path, "visit_detail", row | version)
    assert [(event["code"], event["time"], event["kind"], event["visit_id"]) for event in events] == [
        ("VISIT_DETAIL_START/VISIT/OMOP4822460", datetime(2020, 3, 2), "visit_start", 70),
        ("VISIT_DETAIL_FROM/CMS PLACE OF SERVICE/23", datetime(2020, 3, 2), "clinical", 70),
        ("VISIT_DETAIL_TO/CMS PLACE OF SERVICE/12", end_of("2020-03-03"), "clinical", 70),
        ("VISIT_DETAIL_END/VISIT/OMOP4822460", end_of("2020-03-03"), "visit_end", 70),
    ]


def test_nothing_of_a_visit_of_which_only_the_days_are_known_precedes_its_start(tmp_path: Path) -> None:
    days = VISIT | {"visit_start_datetime": None}
    (start, end) = made(tmp_path, "visit_occurrence", days)
    lab = {"measurement_concept_id": 1, "measurement_date": "2020-03-01", "visit_occurrence_id": 70}
    (event,) = made(tmp_path, "measurement", lab | {"measurement_datetime": "2020-03-01 00:30:00"})
    assert (start["time"], start["time_precision"], start["available_time"]) == (
        datetime(2020, 3, 1), "day", datetime(2020, 3, 1),
    )  # fmt: skip
    assert start["time"] <= event["time"] < end["time"] == end_of("2020-03-05")


def test_a_site_says_beside_the_source_that_it_writes_the_day_first(tmp_path: Path) -> None:
    row = {"measurement_concept_id": 1, "measurement_date": "02/03/2020", "measurement_time": None}
    (event,) = made(tmp_path, "measurement", row)
    assert event["time"] == end_of("2020-02-03")
    source = OMOP.read_as(Reading.model_validate({"formats": ["%d/%m/%Y", "%d/%m/%Y %H:%M"]}))
    (event,) = made(tmp_path / "b", "measurement", row, source=source)
    assert event["time"] == end_of("2020-03-02")
    (birth,) = [event for event in made(tmp_path / "c", "person", {"year_of_birth": 1963}, source=source)
                if event["code"] == "MEDS_BIRTH"]  # fmt: skip
    assert birth["time"] == datetime(1963, 1, 1)


def test_an_encounter_number_never_becomes_a_code(tmp_path: Path) -> None:
    row = VISIT | {"visit_concept_id": 0, "visit_end_date": None}
    kinds = ["Inpatient", "b2a6f7d3-bed4-4e23-aaf3-74bc5ad2d0c6", "1234", None]
    events = made(tmp_path, "visit_occurrence", *(row | {"visit_source_value": kind} for kind in kinds))
    unknown = "VISIT_START/OMOP_SOURCE/visit_occurrence/UNKNOWN"
    assert codes(events) == ["VISIT_START/OMOP_SOURCE/visit_occurrence/Inpatient", unknown, unknown, unknown]


def coded_at(work: Path, source: Source) -> list[dict[str, Any]]:
    """Conditions and procedures during a stay, after it, without a stay, and with an unknown stay."""
    table(work / "cdm", "visit_occurrence", {"person_id": 1} | VISIT | {"visit_end_datetime": "2020-03-05 11:00:00"})
    dates = {"condition_start_date": "2020-03-02", "condition_end_date": "2020-03-03"}
    conditions = [dates | {"visit_occurrence_id": visit, "condition_concept_id": 9} for visit in (70, None, 71)]
    procedures = [
        {"procedure_date": day, "visit_occurrence_id": 70, "procedure_concept_id": 8}
        for day in ("2020-03-02", "2020-03-09")
    ]
    return [
        *made(work, "condition_occurrence", *conditions, source=source),
        *made(work, "procedure_occurrence", *procedures, source=source),
    ]


def leaks(events: list[dict[str, Any]]) -> int:
    """The number of facts that are coded at the end of the stay, but available before it ends."""
    return sum(event["available_time"] < datetime(2020, 3, 5, 11) for event in events if event["visit_id"] == 70)


def test_what_is_coded_at_the_end_of_a_visit_is_not_known_in_it(tmp_path: Path) -> None:
    events = coded_at(tmp_path, OMOP)
    assert [(event["code"], event["time"], event["available_time"], event["availability"]) for event in events] == [
        ("OMOP/9", end_of("2020-03-02"), datetime(2020, 3, 5, 11), "recorded"),
        ("CONDITION_END/OMOP/9", end_of("2020-03-03"), datetime(2020, 3, 5, 11), "recorded"),
        ("OMOP/9", end_of("2020-03-02"), end_of("2020-03-02"), "time"),
        ("CONDITION_END/OMOP/9", end_of("2020-03-03"), end_of("2020-03-03"), "time"),
        # Before a bucket is aligned: then it becomes the estimate.
        ("OMOP/9", end_of("2020-03-02"), end_of("2020-03-02"), "missed"),
        ("CONDITION_END/OMOP/9", end_of("2020-03-03"), end_of("2020-03-03"), "missed"),
        ("OMOP/8", end_of("2020-03-02"), datetime(2020, 3, 5, 11), "recorded"),
        ("OMOP/8", end_of("2020-03-09"), end_of("2020-03-09"), "recorded"),
    ]
    assert leaks(events) == 0


def test_ids_that_a_tool_made_floats_are_still_those_ids(tmp_path: Path) -> None:
    vocabulary(tmp_path)
    pl.DataFrame(
        {"visit_occurrence_id": [70], "person_id": [1], "visit_concept_id": [9201]}
        | {"visit_start_date": ["2020-03-01"], "visit_end_date": ["2020-03-05"]}
    ).write_parquet(tmp_path / "visit_occurrence.parquet")
    rows = {"person_id": [1.0, 1.0], "condition_concept_id": [201826.0, None], "visit_occurrence_id": [70.0, None]}
    path = tmp_path / "condition_occurrence.parquet"
    pl.DataFrame(rows | {"condition_start_date": [date(2020, 3, 2)] * 2}).write_parquet(path)
    events, _ = convert(tmp_path / "work", OMOP, "condition_occurrence", path)
    assert events.select("subject_id", "code", "visit_id", "available_time").rows() == [
        (1, "SNOMED/44054006", 70, end_of("2020-03-05")),
        (1, "OMOP_SOURCE/condition_occurrence/UNKNOWN", None, end_of("2020-03-02")),
    ]


@pytest.mark.parametrize("column", ["visit_start_datetime", "condition_start_date"])
def test_another_column_of_availability_leaks(tmp_path: Path, column: str) -> None:
    raw = OMOP.model_dump(mode="json")
    conditions = raw["tables"]["condition_occurrence"]
    if column.startswith("visit"):
        (join,) = (condition for condition in conditions["joins"] if condition["table"] == "visit_occurrence")
        join["columns"][column] = column
    for event in conditions["events"]:
        event["available"]["column"] = [column]
    assert leaks(coded_at(tmp_path, Source.model_validate(raw))) > 0
