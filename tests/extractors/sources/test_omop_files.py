"""OMOP as databases, data frames and Athena write its files."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from extractors.source import load_source
from extractors.tables.export import Export
from tests.support.raw.raw_tables import convert, csv_text

OMOP = load_source("omop")
PERSON = [
    "person_id", "gender_concept_id", "year_of_birth", "month_of_birth", "day_of_birth", "race_concept_id",
    "ethnicity_concept_id", "race_source_value",
]  # fmt: skip
MEASUREMENT = [
    "measurement_id", "person_id", "measurement_concept_id", "measurement_date", "measurement_datetime",
    "operator_concept_id", "value_as_number", "value_as_concept_id", "unit_concept_id", "visit_occurrence_id",
    "measurement_source_value", "unit_source_value",
]  # fmt: skip
# As Athena writes them: tabs, and quotes that are signs like others.
CONCEPT = (
    "concept_id\tconcept_name\tdomain_id\tvocabulary_id\tconcept_class_id\tstandard_concept\tconcept_code\n"
    '3000963\tHemoglobin "A1c\tMeasurement\tLOINC\tLab Test\tS\t718-7\n'
    '9201\t"Inpatient" visit\tVisit\tVisit\tVisit\tS\tIP\n'
)
Converted = dict[str, tuple[pl.DataFrame, dict[str, Any]]]


def converted(folder: Path, nothing: str, suffix: str) -> Converted:
    """Two persons with a measurement each, and one of nobody; `nothing` stands for null, `suffix` behind every id."""

    def ids(*numbers: int) -> list[str]:
        return [f"{number}{suffix}" for number in numbers]

    persons = [
        [*ids(1, 8507), "1960", "5", "6", *ids(0, 0), nothing],
        [*ids(2, 8532), "1970", "1", "2", *ids(0, 0), "F"],
    ]
    hour = ["2020-01-02", "2020-01-02 08:00:00"]
    empty = [nothing] * 3
    measurements = [
        ["10", *ids(1, 3000963), *hour, nothing, "14.3", nothing, nothing, *ids(21), "Hb", nothing],
        ["11", *ids(2, 3000963), *hour, *empty, nothing, nothing, "Hb", nothing],
        ["12", nothing, *ids(3000963), *hour, nothing, "9.9", *empty, "Hb", nothing],
    ]
    (folder / "person.csv").write_text(csv_text(PERSON, persons))
    (folder / "measurement.csv").write_text(csv_text(MEASUREMENT, measurements))
    (folder / "CONCEPT.csv").write_text(CONCEPT)
    export = Export(folder, OMOP)
    tables = ("person", "measurement")
    return {table: convert(folder, OMOP, table, export.files(table)[0], folder=folder) for table in tables}


@pytest.mark.whole
@pytest.mark.parametrize("suffix", ["", ".0"])
@pytest.mark.parametrize("nothing", ["", "NULL", "NA", r"\N", "None", "nan"])
def test_nothing_is_nothing_and_floats_are_ids(tmp_path: Path, nothing: str, suffix: str) -> None:
    found = converted(tmp_path, nothing, suffix)
    person, (measurement, counts) = found["person"][0], found["measurement"]
    codes = ["DEMO/RACE/OMOP_SOURCE/F", "DEMO/SEX/F", "DEMO/SEX/M", "MEDS_BIRTH", "MEDS_BIRTH"]
    assert sorted(person["code"]) == codes
    assert measurement.select("subject_id", "code", "numeric_value", "text_value", "unit", "visit_id").rows() == [
        (1, "LOINC/718-7", pytest.approx(14.3), None, None, 21),
        (2, "LOINC/718-7", None, None, None, None),
    ]
    assert counts["quarantined"] == {"bad_subject_id": 1}
