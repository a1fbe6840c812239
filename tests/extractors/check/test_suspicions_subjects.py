"""Patients of one table whom no other knows are counted, and a finding where they are many."""

from pathlib import Path
from typing import Any

import pytest

from extractors.check.explain import explain
from extractors.reading import Reading
from extractors.source import Source
from extractors.tables import csv_reader
from extractors.tables.export import Export
from tests.support.raw.raw_tables import csv_text, source_of

PATIENTS = {"events": [{"code": "MEDS_BIRTH", "time": "at"}]}
LABS: dict[str, Any] = {"events": [{"code": "LAB", "time": "at"}]}


def found(
    work: Path, source: Source, rows: int = 10_000, **ids: list[str]
) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """By table the patients that others know, and those that none does; and the tables with a finding."""
    for table, column in ids.items():
        (work / f"{table}.csv").write_text(csv_text(["pid", "at"], [(raw_id, "2020-01-01") for raw_id in column]))
    explanation = explain(source, Export(work, source), rows)
    counted = {
        table.table: (table.subjects.known, table.subjects.alone) for table in explanation.tables if table.subjects
    }
    return counted, [entry.table for entry in explanation.suspicions if entry.check == "subjects_of_one_table"]


def test_ids_that_one_table_writes_otherwise_are_found(tmp_path: Path) -> None:
    source = source_of(patients=PATIENTS, labs=LABS, notes=LABS)
    right = [f"P{number:04}" for number in range(300)]
    wrong = [f"p{number:04}" for number in range(5)]
    counts, findings = found(tmp_path, source, patients=right, labs=[*right[:200], *wrong], notes=wrong)
    assert counts == {"labs": (200, 5), "notes": (0, 5)}
    assert findings == ["labs", "notes"]


def test_patients_without_facts_and_a_few_strangers_are_no_finding(tmp_path: Path) -> None:
    source = source_of(patients=PATIENTS, labs=LABS)
    ids = [str(number) for number in range(300)]
    assert found(tmp_path, source, patients=ids, labs=[*ids[:200], "900"]) == ({"labs": (200, 1)}, [])


def test_the_tables_that_are_asked_are_read_whole(tmp_path: Path) -> None:
    """The first rows of a table name other patients than those of another."""
    source = source_of(patients=PATIENTS, labs=LABS)
    ids = [str(number) for number in range(100)]
    assert found(tmp_path, source, 10, patients=ids, labs=ids[::-1]) == ({"labs": (10, 0)}, [])


def test_where_no_table_defines_patients_any_other_knows_them(tmp_path: Path) -> None:
    source = source_of(labs=LABS, notes=LABS)
    assert found(tmp_path, source, labs=["1", "2"], notes=["2", "3.0"])[0] == {"labs": (1, 1), "notes": (1, 1)}
    assert found(tmp_path, source_of(labs=LABS), labs=["1"]) == ({}, [])


def test_ids_that_are_derived_are_written_as_the_others(tmp_path: Path) -> None:
    notes = {"subject": "who", "derive": {"who": "'p' || pid"}, **LABS}
    source = source_of(patients=PATIENTS, notes=notes)
    source = source.model_copy(update={"reading": Reading(subject_normalise=["upper"])})
    assert found(tmp_path, source, patients=["P1", "p2"], notes=["1", "2", "3"])[0] == {"notes": (2, 1)}


def test_a_table_that_breaks_off_behind_its_first_rows_is_said_beside_the_findings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_reader, "CHUNK_BYTES", 128)
    source = source_of(patients=PATIENTS, labs=LABS)
    ids = [str(number) for number in range(30)]
    found(tmp_path, source, patients=ids, labs=ids)
    with (tmp_path / "patients.csv").open("a") as file:
        file.write('30,"2020-01-01\n')
    explanation = explain(source, Export(tmp_path, source), 10)
    errors = {table.table: table.error for table in explanation.tables}
    assert errors["labs"] == "" and "record 31 has a quoted field" in errors["patients"]
