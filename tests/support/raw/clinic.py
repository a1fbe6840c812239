"""The made-up clinic of docs/sources.md, and ways to spoil its YAML or its tables."""

import csv
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flows.commands.check_source import check

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "docs" / "examples"


class Clinic:
    """The clinic of the documents, which tests spoil."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.yaml = folder / "clinic", folder / "clinic-source.yaml"
        shutil.copytree(EXAMPLES / "clinic", self.folder)
        shutil.copy(EXAMPLES / self.yaml.name, self.yaml)

    def yaml_with(self, old: str, new: str) -> None:
        text = self.yaml.read_text(encoding="utf-8")
        assert old in text
        self.yaml.write_text(text.replace(old, new), encoding="utf-8")

    def rows(self, table: str) -> list[dict[str, str]]:
        with (self.folder / f"{table}.csv").open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    def write(self, table: str, rows: list[dict[str, str]]) -> None:
        with (self.folder / f"{table}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    def change(self, table: str, change: Callable[[int, dict[str, str]], dict[str, str]]) -> None:
        self.write(table, [change(number, row) for number, row in enumerate(self.rows(table))])

    def check(self, rows: int = 10_000, path: bool = True) -> dict[str, Any]:
        return check(str(self.yaml), self.folder if path else None, rows)

    def found(self, path: bool = True) -> set[str]:
        return {finding["check"] for finding in self.check(path=path)["suspicious"]}


def timeloom(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "flows.cli", "check-source", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


# Suspicious choices, and the name of each.


def spoil_admission(clinic: Clinic) -> None:
    clinic.yaml_with("columns: {left: left}", "columns: {left: arrived}")


def spoil_no_time(clinic: Clinic) -> None:
    clinic.yaml_with('"ICD10CM/{icd:icd}", time: *left, value: rank', '"ICD10CM/{icd:icd}", value: rank')


def spoil_coded_early(clinic: Clinic) -> None:
    arrived = {row["visit_no"]: row["arrived"] for row in clinic.rows("visits")}
    clinic.change("diagnoses", lambda _, row: row | {"coded": arrived[row["visit_no"]]})
    clinic.yaml_with("time: *left, value: rank", 'time: {column: coded, formats: "%d.%m.%Y %H:%M"}, value: rank')


def spoil_visit_in_code(clinic: Clinic) -> None:
    clinic.yaml_with("VISIT_START/{ward}", "VISIT_START/{visit_no}")


def spoil_name_in_code(clinic: Clinic) -> None:
    clinic.change("patients", lambda _, row: row | {"first_name": "X"})
    clinic.yaml_with("DEMO/SEX/{sex:upper}", "DEMO/NAME/{first_name}")


def spoil_uuid_in_code(clinic: Clinic) -> None:
    clinic.change("visits", lambda number, row: row | {"ward": f"00000000-0000-0000-0000-{number:012d}"})


def spoil_swapped(clinic: Clinic) -> None:
    clinic.change("labs", lambda _, row: row | {"sampled": row["reported"], "reported": row["sampled"]})


def spoil_mostly_empty(clinic: Clinic) -> None:
    clinic.change("labs", lambda number, row: row if number % 3 == 0 else row | {"reported": ""})


def spoil_dose_as_text(clinic: Clinic) -> None:
    clinic.yaml_with("value: dose, unit: dose_unit, keep_empty: true", "text: dose")


def spoil_no_unit(clinic: Clinic) -> None:
    clinic.yaml_with("        unit: unit\n", "")


def spoil_free_text(clinic: Clinic) -> None:
    row = clinic.rows("prescriptions")[0]
    clinic.write("prescriptions", [row | {"atc": f"note {number}"} for number in range(2500)])


def spoil_date(clinic: Clinic) -> None:
    clinic.yaml_with(
        '{column: first_day, formats: "%d.%m.%Y"}', '{column: first_day, formats: ["%d.%m.%Y %H:%M", "%d.%m.%Y"]}'
    )


def spoil_midnight(clinic: Clinic) -> None:
    clinic.change("visits", lambda _, row: row | {"arrived": row["arrived"][:10] + " 00:00"})


def spoil_no_subject(clinic: Clinic) -> None:
    clinic.change("labs", lambda number, row: row if number % 9 else row | {"patient_no": ""})


def spoil_some_integers(clinic: Clinic) -> None:
    clinic.change("labs", lambda number, row: row if number % 9 else row | {"patient_no": "17"})


def spoil_other_ids(clinic: Clinic) -> None:
    clinic.change("labs", lambda number, row: row | {"patient_no": str(number)})


def spoil_keys(clinic: Clinic) -> None:
    clinic.change("lab_catalogue", lambda _, row: row | {"test": row["test"].lower()})


def spoil_where(clinic: Clinic) -> None:
    clinic.yaml_with("        unit: unit\n", "        unit: unit\n        where: test = 'crp'\n")


def spoil_other_unit(clinic: Clinic) -> None:
    clinic.write("poct", [row | {"unit": "g/L"} for row in clinic.rows("labs") if row["test"] == "HB"])
    clinic.yaml_with(
        "  lab_catalogue: {role",
        "  poct: {visit: visit_no, events: [{code: LOINC/718-7, time: {column: sampled, formats: '%Y-%m-%dT%H:%M%z'}, "
        "value: result, unit: unit}]}\n  lab_catalogue: {role",
    )


def spoil_idle_zone(clinic: Clinic) -> None:
    clinic.change("labs", lambda _, row: row | {"sampled": row["sampled"][:16], "reported": row["reported"][:16]})
    clinic.yaml_with("%Y-%m-%dT%H:%M%z", "%Y-%m-%dT%H:%M")


def spoil_no_zone(clinic: Clinic) -> None:
    clinic.yaml_with("time_zone: Europe/Vienna", "")


def spoil_bad_times(clinic: Clinic) -> None:
    clinic.change("labs", lambda number, row: row if number else row | {"sampled": "31.02.2024"})


def spoil_wrong_format(clinic: Clinic) -> None:
    clinic.yaml_with('{column: first_day, formats: "%d.%m.%Y"}', '{column: first_day, formats: "%m/%d/%Y"}')
    clinic.yaml_with('{column: last_day, formats: "%d.%m.%Y"}', '{column: last_day, formats: "%m/%d/%Y"}')


def spoil_further_table(clinic: Clinic) -> None:
    clinic.write("appointments_20241107", clinic.rows("visits"))


def spoil_optional_join(clinic: Clinic) -> None:
    clinic.yaml_with("lab_catalogue: {role: reference}", "lab_catalogue: {role: reference, optional: true}")


SPOILT: dict[Callable[[Clinic], None], str] = {
    spoil_admission: "billing_code_at_the_start",
    spoil_no_time: "billing_code_without_time",
    spoil_coded_early: "billing_code_before_the_end",
    spoil_visit_in_code: "telling_code",
    spoil_name_in_code: "telling_code",
    spoil_uuid_in_code: "telling_code",
    spoil_swapped: "available_before_time",
    spoil_mostly_empty: "availability_mostly_empty",
    spoil_dose_as_text: "numbers_as_text",
    spoil_no_unit: "value_without_unit",
    spoil_free_text: "too_many_codes",
    spoil_date: "date_as_time",
    spoil_midnight: "midnight_as_time",
    spoil_no_subject: "subject_missing",
    spoil_some_integers: "subject_not_integer",
    spoil_other_ids: "subject_not_integer",
    spoil_keys: "join_misses",
    spoil_where: "where_never_holds",
    spoil_other_unit: "units_differ",
    spoil_idle_zone: "time_zone_without_offsets",
    spoil_no_zone: "offsets_without_time_zone",
    spoil_bad_times: "unreadable_times",
    spoil_wrong_format: "no_events",
    spoil_further_table: "unmentioned_tables",
    spoil_optional_join: "join_of_an_optional_table",
}
