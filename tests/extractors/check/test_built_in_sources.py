"""On exports as built-in sources expect them nothing is suspicious, and what is wrong is found."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from extractors.check.explain import explain
from extractors.source import Source, load_source
from extractors.tables.export import Export
from tests.support.raw.raw_tables import csv_text, source_of

SUBJECTS = range(1, 31)
DAY = datetime(2020, 3, 1, 8)


def write(work: Path, table: str, rows: list[dict[str, Any]]) -> None:
    work.mkdir(parents=True, exist_ok=True)
    (work / f"{table}.csv").write_text(csv_text([*rows[0]], [[*row.values()] for row in rows]))


def omop(work: Path, *, visits: int = 70) -> None:
    """Persons whose race is concept 0, labs without a value's concept, drugs that end on the day they start."""
    write(
        work,
        "concept",
        [
            {"concept_id": number, "concept_name": name, "domain_id": "x", "vocabulary_id": vocabulary,
             "concept_class_id": "x", "standard_concept": "S", "concept_code": code}
            for number, name, vocabulary, code in (
                (9201, "stay", "Visit", "IP"), (3000963, "haemoglobin", "LOINC", "718-7"),
                (313782, "drug", "RxNorm", "1"),
                (201826, "diabetes", "SNOMED", "44054006"),
            )
        ],
    )  # fmt: skip
    person = {"gender_concept_id": 8507, "year_of_birth": 1950, "race_concept_id": 0, "ethnicity_concept_id": 0}
    write(work, "person", [{"person_id": subject} | person for subject in SUBJECTS])
    visit = {"visit_concept_id": 9201, "visit_start_date": "2020-03-01", "visit_start_datetime": DAY}
    visit |= {"visit_end_date": "2020-03-05", "visit_end_datetime": DAY + timedelta(days=4)}
    write(
        work,
        "visit_occurrence",
        [{"visit_occurrence_id": 70 + subject, "person_id": subject} | visit for subject in SUBJECTS],
    )
    # Half of them without a visit, in both spellings of that.
    links = {subject: (visits + subject, "0", None)[max(subject % 4 - 1, 0)] for subject in SUBJECTS}
    write(
        work,
        "measurement",
        [
            {"person_id": subject, "measurement_concept_id": 3000963, "measurement_date": "2020-03-02",
             "measurement_datetime": DAY + timedelta(days=1, minutes=subject), "value_as_number": 14.3,
             "value_as_concept_id": 0, "unit_concept_id": 0, "unit_source_value": "g/dL",
             "measurement_source_concept_id": 0, "visit_occurrence_id": links[subject]}
            for subject in SUBJECTS
        ],
    )  # fmt: skip
    write(
        work,
        "condition_occurrence",
        [
            {"person_id": subject, "condition_concept_id": 201826, "condition_start_date": "2020-03-02",
             "condition_start_datetime": DAY + timedelta(days=1), "condition_end_date": None,
             "condition_source_concept_id": 0,
             "visit_occurrence_id": links[subject] if subject % 4 < 2 else visits + subject}
            for subject in SUBJECTS
        ],
    )  # fmt: skip
    write(
        work,
        "drug_exposure",
        [
            {"person_id": subject, "drug_concept_id": 313782, "drug_exposure_start_date": "2020-03-02",
             "drug_exposure_end_date": "2020-03-02", "drug_source_concept_id": 0, "quantity": 1}
            for subject in SUBJECTS
        ],
    )  # fmt: skip


def found(source: Source, folder: Path) -> list[tuple[str, str]]:
    explanation = explain(source, Export(folder, source))
    assert [table.error for table in explanation.tables if table.error] == []
    return sorted((suspicion.check, suspicion.table) for suspicion in explanation.suspicions)


def test_concept_0_and_empty_links_are_no_missed_joins(tmp_path: Path) -> None:
    omop(tmp_path)
    assert found(load_source("omop"), tmp_path) == []


def test_links_that_point_to_no_visit_are_missed_joins(tmp_path: Path) -> None:
    omop(tmp_path, visits=7000)
    assert found(load_source("omop"), tmp_path) == [
        ("availability_mostly_empty", "condition_occurrence"), ("join_misses", "condition_occurrence"),
    ]  # fmt: skip


def test_synthea_as_its_exporter_writes_it(tmp_path: Path) -> None:
    """Series of one image each, encounters without a reason: rules of which none holds here."""
    stay = {"START": "2020-03-01T08:00:00Z", "STOP": "2020-03-05T08:00:00Z"}
    write(
        tmp_path,
        "patients",
        [{"Id": f"p{subject}", "BIRTHDATE": "1950-01-01", "DEATHDATE": None, "RACE": "white",
          "ETHNICITY": "nonhispanic", "GENDER": "F"} for subject in SUBJECTS],
    )  # fmt: skip
    write(
        tmp_path,
        "encounters",
        [{"Id": f"e{subject}"} | stay | {"PATIENT": f"p{subject}", "ENCOUNTERCLASS": "inpatient", "CODE": "185347001",
          "DESCRIPTION": "stay", "REASONCODE": None, "REASONDESCRIPTION": None} for subject in SUBJECTS],
    )  # fmt: skip
    write(
        tmp_path,
        "conditions",
        [{"START": "2020-03-02", "STOP": None, "PATIENT": f"p{subject}", "ENCOUNTER": f"e{subject}", "CODE": "44054006",
          "DESCRIPTION": "diabetes"}
         for subject in SUBJECTS],
    )  # fmt: skip
    write(
        tmp_path,
        "imaging_studies",
        [{"Id": f"s{subject}", "DATE": "2020-03-02T08:00:00Z", "PATIENT": f"p{subject}", "ENCOUNTER": f"e{subject}",
          "SERIES_UID": f"1.2.{subject}", "BODYSITE_CODE": "51185008", "BODYSITE_DESCRIPTION": "chest",
          "MODALITY_CODE": "CT", "MODALITY_DESCRIPTION": "CT", "INSTANCE_UID": f"1.2.{subject}.1"}
         for subject in SUBJECTS],
    )  # fmt: skip
    assert found(load_source("synthea"), tmp_path) == []


@pytest.mark.parametrize(
    ("shift", "expected"), [(-1, []), (1, [("available_before_time", "t")])], ids=["orders ahead", "exchanged"]
)
def test_orders_that_are_entered_ahead_are_no_exchanged_columns(
    tmp_path: Path, shift: int, expected: list[tuple[str, str]]
) -> None:
    # Nine of ten orders are entered before their start, one behind it; of exchanged columns there stands none behind.
    rows = [
        {"pid": subject, "at": DAY, "entered": DAY + timedelta(hours=-1 if subject % 10 else -shift)}
        for subject in range(1, 101)
    ]  # fmt: skip
    write(tmp_path, "t", rows)
    rule = {"events": [{"code": "ORDER", "time": "at", "available": "entered"}]}
    assert found(source_of(t=rule), tmp_path) == expected


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("a <> b", []),
        ("a IS NULL", []),
        ("a = 'Y'", ["where_never_holds"]),
        ("CAST(a AS BIGINT) > 7", ["where_never_holds"]),
    ],
)
def test_only_a_condition_that_may_be_misspelt_must_hold(tmp_path: Path, where: str, expected: list[str]) -> None:
    write(tmp_path, "t", [{"pid": subject, "a": "1", "b": "1"} for subject in SUBJECTS])
    rule = {"events": [{"code": "X"}, {"code": "Y", "where": where}]}
    assert [check for check, _ in found(source_of(t=rule), tmp_path)] == expected
