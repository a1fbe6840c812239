"""Made-up OMOP tables, in both versions of the model, and the events that they become."""

from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from extractors.source import Source, load_source
from tests.support.raw.raw_tables import convert, csv_text

OMOP = load_source("omop")
COLUMNS = yaml.safe_load((Path(__file__).parents[2] / "fixtures" / "omop_columns.yaml").read_text(encoding="utf-8"))
CONCEPTS = [
    # concept_id, vocabulary_id, concept_code, domain_id
    (0, "None", "No matching concept", "Metadata"),
    (201826, "SNOMED", "44054006", "Condition"),
    (35208414, "ICD10CM", "K92.2", "Condition"),
    (2108115, "ICD9Proc", "45.13", "Procedure"),
    (2000000001, "ICDO3", "8140/3-C50.9", "Condition"),
    (1127433, "RxNorm", "313782", "Drug"),
    (1125315, "RxNorm", "161", "Drug"),
    (3004501, "LOINC", "2345-7", "Measurement"),
    (8840, "UCUM", "mg/dL", "Unit"),
    (45884084, "LOINC", "LA6576-8", "Meas Value"),
    (9201, "Visit", "IP", "Visit"),
    (32037, "Visit", "OMOP4822460", "Visit"),
    (8870, "CMS Place of Service", "23", "Visit"),
    (8536, "CMS Place of Service", "12", "Visit"),
    (8527, "Race", "5", "Race"),
    (38003564, "Ethnicity", "Not Hispanic", "Ethnicity"),
    (32531, "Episode", "OMOP4822241", "Episode"),
    (32676, "LOINC", "11488-4", "Note"),
    (289, "SOPT", "3", "Payer"),
]


def table(folder: Path, name: str, *rows: dict[str, Any]) -> Path:
    """Writes a table with the columns that the model requires and the columns that the rows have."""
    path = folder / f"{name}.csv"
    folder.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys([*COLUMNS[name]["required"], *(column for row in rows for column in row)]))
    path.write_text(csv_text(columns, [[row.get(column) for column in columns] for row in rows]))
    return path


def vocabulary(folder: Path) -> None:
    columns = ("concept_id", "vocabulary_id", "concept_code", "domain_id")
    rows = (dict(zip(columns, concept, strict=True), concept_name=f"name of {concept[0]}") for concept in CONCEPTS)
    table(folder, "concept", *rows)


def made(work: Path, name: str, *rows: dict[str, Any], source: Source = OMOP) -> list[dict[str, Any]]:
    """Events of rows of one table; the other tables are already in `work`/cdm."""
    return account_and_events(work, name, *rows, source=source)[1]


def account_and_events(
    work: Path, name: str, *rows: dict[str, Any], source: Source = OMOP
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    path = table(work / "cdm", name, *({"person_id": 1, **row} for row in rows))
    events, account = convert(work, source, name, path)
    account["quarantined"] = {reason: rows for reason, rows in account["quarantined"].items() if rows}
    assert_conserved(account)
    return account, events.to_dicts()


def assert_conserved(account: dict[str, Any]) -> None:
    settled = account["events"] + account["static"] + account["reference"] + sum(account["quarantined"].values())
    assert account["raw"] == settled


def codes(events: list[dict[str, Any]]) -> list[str]:
    return [str(event["code"]) for event in events]


def end_of(day: str) -> datetime:
    return datetime.fromisoformat(f"{day} 23:59:59.999999")


CONDITION = {"condition_start_date": "2020-03-01", "condition_type_concept_id": 32020}
