"""`timeloom check-source`: what it finds, what it says, what it never shows; and the JSON schema of the YAML."""

import csv
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import jsonschema
import polars as pl
import pytest
import yaml

from extractors.explain import explain
from extractors.source import SOURCES, Source, load_source
from extractors.tables import Export
from flows.check_source import check, describe, json_schema
from flows.run import Run
from pipelines.config import load_config
from pipelines.engine import LocalEngine
from warehouse.errors import TimeloomError
from warehouse.layout import Layout

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "docs" / "examples"
DOCUMENT = ROOT / "docs" / "sources.md"


class Clinic:
    """The documents' clinic, to be spoiled."""

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
        return {one["check"] for one in self.check(path=path)["suspicious"]}


@pytest.fixture
def clinic(tmp_path: Path) -> Clinic:
    return Clinic(tmp_path)


def timeloom(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "flows.cli", "check-source", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


# Suspicious choices: each is found where it is made, and the clinic as it stands makes none.


def _admission(clinic: Clinic) -> None:
    clinic.yaml_with("columns: {left: left}", "columns: {left: arrived}")


def _no_time(clinic: Clinic) -> None:
    clinic.yaml_with('"ICD10CM/{icd:icd}", time: *left, value: rank', '"ICD10CM/{icd:icd}", value: rank')


def _coded_early(clinic: Clinic) -> None:
    arrived = {row["visit_no"]: row["arrived"] for row in clinic.rows("visits")}
    clinic.change("diagnoses", lambda _, row: row | {"coded": arrived[row["visit_no"]]})
    clinic.yaml_with("time: *left, value: rank", 'time: {column: coded, formats: "%d.%m.%Y %H:%M"}, value: rank')


def _visit_in_code(clinic: Clinic) -> None:
    clinic.yaml_with("VISIT_START/{ward}", "VISIT_START/{visit_no}")


def _name_in_code(clinic: Clinic) -> None:
    clinic.change("patients", lambda _, row: row | {"first_name": "X"})
    clinic.yaml_with("DEMO/SEX/{sex:upper}", "DEMO/NAME/{first_name}")


def _uuid_in_code(clinic: Clinic) -> None:
    clinic.change("visits", lambda number, row: row | {"ward": f"00000000-0000-0000-0000-{number:012d}"})


def _swapped(clinic: Clinic) -> None:
    clinic.change("labs", lambda _, row: row | {"sampled": row["reported"], "reported": row["sampled"]})


def _mostly_empty(clinic: Clinic) -> None:
    clinic.change("labs", lambda number, row: row if number % 3 == 0 else row | {"reported": ""})


def _dose_as_text(clinic: Clinic) -> None:
    clinic.yaml_with("value: dose, unit: dose_unit", "text: dose")


def _no_unit(clinic: Clinic) -> None:
    clinic.yaml_with("        unit: unit\n", "")


def _free_text(clinic: Clinic) -> None:
    row = clinic.rows("prescriptions")[0]
    clinic.write("prescriptions", [row | {"atc": f"note {number}"} for number in range(2500)])


def _date(clinic: Clinic) -> None:
    clinic.yaml_with(
        '{column: first_day, formats: "%d.%m.%Y"}', '{column: first_day, formats: ["%d.%m.%Y %H:%M", "%d.%m.%Y"]}'
    )


def _midnight(clinic: Clinic) -> None:
    clinic.change("visits", lambda _, row: row | {"arrived": row["arrived"][:10] + " 00:00"})


def _no_subject(clinic: Clinic) -> None:
    clinic.change("labs", lambda number, row: row if number % 9 else row | {"patient_no": ""})


def _some_integers(clinic: Clinic) -> None:
    clinic.change("labs", lambda number, row: row if number % 9 else row | {"patient_no": "17"})


def _other_ids(clinic: Clinic) -> None:
    clinic.change("labs", lambda number, row: row | {"patient_no": str(number)})


def _keys(clinic: Clinic) -> None:
    clinic.change("lab_catalogue", lambda _, row: row | {"test": row["test"].lower()})


def _where(clinic: Clinic) -> None:
    clinic.yaml_with("        unit: unit\n", "        unit: unit\n        where: test = 'crp'\n")


def _other_unit(clinic: Clinic) -> None:
    clinic.write("poct", [row | {"unit": "g/L"} for row in clinic.rows("labs") if row["test"] == "HB"])
    clinic.yaml_with(
        "  lab_catalogue: {role",
        "  poct: {visit: visit_no, events: [{code: LOINC/718-7, time: {column: sampled, formats: '%Y-%m-%dT%H:%M%z'}, "
        "value: result, unit: unit}]}\n  lab_catalogue: {role",
    )


def _idle_zone(clinic: Clinic) -> None:
    clinic.change("labs", lambda _, row: row | {"sampled": row["sampled"][:16], "reported": row["reported"][:16]})
    clinic.yaml_with("%Y-%m-%dT%H:%M%z", "%Y-%m-%dT%H:%M")


def _no_zone(clinic: Clinic) -> None:
    clinic.yaml_with("time_zone: Europe/Vienna", "")


def _bad_times(clinic: Clinic) -> None:
    clinic.change("labs", lambda number, row: row if number else row | {"sampled": "31.02.2024"})


def _wrong_format(clinic: Clinic) -> None:
    clinic.yaml_with('{column: first_day, formats: "%d.%m.%Y"}', '{column: first_day, formats: "%m/%d/%Y"}')
    clinic.yaml_with('{column: last_day, formats: "%d.%m.%Y"}', '{column: last_day, formats: "%m/%d/%Y"}')


def _further_table(clinic: Clinic) -> None:
    clinic.write("appointments_20241107", clinic.rows("visits"))


def _optional_join(clinic: Clinic) -> None:
    clinic.yaml_with("lab_catalogue: {role: reference}", "lab_catalogue: {role: reference, optional: true}")


SPOILT: dict[Callable[[Clinic], None], str] = {
    _admission: "billing_code_at_the_start",
    _no_time: "billing_code_without_time",
    _coded_early: "billing_code_before_the_end",
    _visit_in_code: "telling_code",
    _name_in_code: "telling_code",
    _uuid_in_code: "telling_code",
    _swapped: "available_before_time",
    _mostly_empty: "availability_mostly_empty",
    _dose_as_text: "numbers_as_text",
    _no_unit: "value_without_unit",
    _free_text: "too_many_codes",
    _date: "date_as_time",
    _midnight: "midnight_as_time",
    _no_subject: "subject_missing",
    _some_integers: "subject_not_integer",
    _other_ids: "subject_not_integer",
    _keys: "join_misses",
    _where: "where_never_holds",
    _other_unit: "units_differ",
    _idle_zone: "time_zone_without_offsets",
    _no_zone: "offsets_without_time_zone",
    _bad_times: "unreadable_times",
    _wrong_format: "no_events",
    _further_table: "unmentioned_tables",
    _optional_join: "join_of_an_optional_table",
}


def test_the_clinic_as_it_stands_is_clean(clinic: Clinic) -> None:
    description = clinic.check()
    assert description["suspicious"] == []
    assert description["exit_code"] == 0


@pytest.mark.parametrize("spoil", SPOILT, ids=lambda spoil: spoil.__name__)
def test_a_suspicious_choice_is_found(clinic: Clinic, spoil: Callable[[Clinic], None]) -> None:
    values = private_values(clinic)
    spoil(clinic)
    description = clinic.check()
    found = [one for one in description["suspicious"] if one["check"] == SPOILT[spoil]]
    assert found
    assert found[0]["what"] and found[0]["remedy"] and "\n" not in found[0]["what"] + found[0]["remedy"]
    assert description["exit_code"] == 2
    assert shown_values(description, values | private_values(clinic)) == set()


@pytest.mark.parametrize("spoil", [_admission, _no_time, _visit_in_code, _name_in_code, _optional_join])
def test_some_choices_show_without_an_export(clinic: Clinic, spoil: Callable[[Clinic], None]) -> None:
    assert clinic.found(path=False) == set()
    spoil(clinic)
    assert clinic.found(path=False) == {SPOILT[spoil]}


def test_a_date_that_is_declared_is_no_mistake(clinic: Clinic) -> None:
    _date(clinic)
    clinic.yaml_with('["%d.%m.%Y %H:%M", "%d.%m.%Y"]}', '["%d.%m.%Y %H:%M", "%d.%m.%Y"], anchor: end}')
    assert clinic.found() == set()


def test_midnight_that_is_declared_is_no_mistake(clinic: Clinic) -> None:
    _midnight(clinic)
    clinic.yaml_with(
        '{column: arrived, formats: "%d.%m.%Y %H:%M"}',
        '{column: arrived, formats: "%d.%m.%Y %H:%M", midnight_is_date: true}',
    )
    assert "midnight_as_time" not in clinic.found()


def test_an_end_that_is_ahead_is_no_mistake_where_its_start_is_not(clinic: Clinic) -> None:
    """What is stored between the start and the end of an infusion is stored after all: of its start."""
    clinic.yaml_with(
        "  lab_catalogue: {role",
        """  drips:
    events:
      - {code: DRIP_START, time: begun, available: stored}
      - {code: DRIP_END, time: ended, available: stored}
  lab_catalogue: {role""",
    )
    row = {"patient_no": "P1", "begun": "2024-01-01 10:00:00", "ended": "2024-01-01 12:00:00"}
    clinic.write("drips", [row | {"stored": "2024-01-01 11:00:00"}])
    assert "available_before_time" not in clinic.found()
    clinic.write("drips", [row | {"stored": "2024-01-01 09:00:00"}])
    assert "available_before_time" in clinic.found()


# What is told.


def test_facts_of_a_table(clinic: Clinic) -> None:
    clinic.change("labs", lambda _, row: row | {"device": "x"})
    facts = explain(load_source(str(clinic.yaml)), Export(clinic.folder, load_source(str(clinic.yaml))))
    tables = {one.table: one for one in facts.tables}
    labs = tables["labs"]
    assert (labs.account.raw, labs.account.events, labs.account.static) == (69, 69, 0)
    assert {one.namespace: one.events for one in labs.rules[0].made} == {"LOINC": 55, "CLINIC_LAB": 14}
    assert labs.times[1].formats == {"%Y-%m-%dT%H:%M%z": 67} and labs.times[1].empty == 2
    assert (labs.joins[0].found, labs.joins[0].missed) == (69, 0)
    assert labs.unmapped == ["device"]
    assert tables["patients"].account.static == 0 and tables["patients"].rules[0].made[0].events == 16
    assert tables["prescriptions"].unmapped == ["drug"]
    assert tables["lab_catalogue"].account.reference == 5
    assert tables["transfusions"].state == "absent, optional"
    assert facts.crosswalks == ["formulary"]


def test_the_converter_itself_makes_the_events(clinic: Clinic) -> None:
    """Quarantine reasons and their counts are those of a run."""
    clinic.change(
        "labs", lambda number, row: row | ({"sampled": ""} if number < 20 else {"test": ""} if number < 33 else {})
    )
    facts = clinic.check()
    labs = next(one for one in facts["tables"] if one["table"] == "labs")
    assert labs["became"] == {"events": 36, "missing_time": 20, "missing_code": 13}


def test_a_malformed_row_is_counted(clinic: Clinic) -> None:
    with (clinic.folder / "labs.csv").open("a", encoding="utf-8") as file:
        file.write("one,field,too,few\n" * 12)
    labs = next(one for one in clinic.check()["tables"] if one["table"] == "labs")
    assert labs["became"] == {"events": 69, "malformed_row": 12} and labs["rows"] == 81


def test_only_the_first_rows_are_read(clinic: Clinic) -> None:
    tables = {one["table"]: one for one in clinic.check(rows=12)["tables"]}
    assert tables["labs"]["rows"] == tables["visits"]["rows"] == 12
    assert tables["diagnoses"]["joins"][0]["found"] == 12, "a joined table is read whole"


def test_parts_of_a_table(clinic: Clinic) -> None:
    (clinic.folder / "labs").mkdir()
    text = (clinic.folder / "labs.csv").read_text(encoding="utf-8")
    for part in range(2):
        (clinic.folder / "labs" / f"{part}.csv").write_text(text, encoding="utf-8")
    (clinic.folder / "labs.csv").unlink()
    tables = {one["table"]: one for one in clinic.check(rows=100)["tables"]}
    assert tables["labs"]["rows"] == 100


def test_a_database_file(clinic: Clinic, tmp_path: Path) -> None:
    with duckdb.connect(str(tmp_path / "clinic.duckdb")) as database:
        for path in clinic.folder.glob("*.csv"):
            database.execute(f"CREATE TABLE {path.stem} AS FROM read_csv('{path}', all_varchar=true)")
    description = check(str(clinic.yaml), tmp_path / "clinic.duckdb")
    assert description == clinic.check()


def test_a_table_without_rows(clinic: Clinic) -> None:
    for table in ("labs", "visits", "lab_catalogue"):
        path = clinic.folder / f"{table}.csv"
        path.write_text(path.read_text(encoding="utf-8").partition("\n")[0] + "\n", encoding="utf-8")
    description = clinic.check()
    labs = next(one for one in description["tables"] if one["table"] == "labs")
    assert (labs["rows"], labs["became"], labs["error"]) == (0, {}, "")
    assert {one["check"] for one in description["suspicious"]} == {"join_misses", "no_events"}, "of the diagnoses"


def test_a_missing_table_and_a_missing_column_are_errors(clinic: Clinic) -> None:
    (clinic.folder / "visits.csv").unlink()
    clinic.change("prescriptions", lambda _, row: {name: value for name, value in row.items() if name != "dose"})
    description = clinic.check()
    tables = {one["table"]: one for one in description["tables"]}
    assert tables["visits"]["state"] == "absent"
    assert "visits is missing" in tables["diagnoses"]["error"]
    assert "lacks the column dose" in tables["prescriptions"]["error"]
    assert tables["labs"]["state"] == "read" and not tables["labs"]["error"]
    assert description["exit_code"] == 1


def test_crosswalks_are_given_by_name(clinic: Clinic) -> None:
    given = check(str(clinic.yaml), clinic.folder, crosswalks=[f"formulary={EXAMPLES / 'clinic-formulary.csv'}"])
    assert given["crosswalks_not_given"] == []
    with pytest.raises(TimeloomError, match="NAME=FILE"):
        check(str(clinic.yaml), clinic.folder, crosswalks=["formulary"])
    with pytest.raises(TimeloomError, match="no crosswalk other"):
        check(str(clinic.yaml), clinic.folder, crosswalks=["other=x.csv"])


# What is never shown.


def private_values(clinic: Clinic) -> set[str]:
    """Every identifier, time and result of the clinic; codes that eleven patients share may be shown."""
    columns = {
        "patient_no",
        "visit_no",
        "born",
        "died",
        "arrived",
        "left",
        "sampled",
        "reported",
        "first_day",
        "last_day",
        "result",
        "dose",
        "icd",
        "atc",
        "coded",
    }
    rows = [row for path in clinic.folder.glob("*.csv") for row in clinic.rows(path.stem)]
    return {row[name] for row in rows for name in columns & set(row) if len(row[name] or "") > 3}


def numbers(value: Any) -> Iterator[int]:
    if isinstance(value, bool):
        return
    if isinstance(value, int):
        yield value
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from numbers(one)


def shown_values(description: dict[str, Any], values: set[str]) -> set[str]:
    text = json.dumps(description)
    return {value for value in values if re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text)}


def test_no_value_of_a_patient_and_no_small_count_is_shown(clinic: Clinic) -> None:
    description = clinic.check()
    assert shown_values(description, private_values(clinic)) == set()
    assert not [number for number in numbers(description["tables"]) if 1 <= number <= 10]
    patients = description["tables"][0]
    died = next(one for one in patients["times"] if one["column"] == "died")
    assert died == {"column": "died", "%Y-%m-%d": "<11", "unreadable": 0, "empty": "withheld"}, (
        "16 less 14 tells it too"
    )


def test_a_rare_namespace_is_not_named(clinic: Clinic) -> None:
    clinic.change("labs", lambda number, row: row if number > 3 else row | {"test": f"Muster, Maria {number}"})
    clinic.yaml_with("THEN 'CLINIC_LAB/' || test", "THEN test")
    description = clinic.check()
    assert "Muster" not in json.dumps(description)
    labs = next(one for one in description["tables"] if one["table"] == "labs")
    assert {one["namespace"] for one in labs["rules"][0]["made"]} == {"LOINC", "SARS", "{code}"}


def test_a_common_code_is_named_and_a_rare_one_is_not(clinic: Clinic) -> None:
    description = clinic.check()
    shown = [code for table in description["tables"] for rule in table["rules"] for code in rule["common_codes"]]
    assert "LOINC/718-7" in shown
    subjects: dict[str, set[str]] = {}
    for row in clinic.rows("diagnoses"):
        subjects.setdefault("ICD10CM/" + row["icd"].replace(".", ""), set()).add(row["patient_no"])
    rare = [code for code, of in subjects.items() if len(of) < 11]
    assert rare and not set(rare) & set(shown)


def test_numbers_in_the_names_of_unmentioned_tables_are_masked(clinic: Clinic) -> None:
    _further_table(clinic)
    assert clinic.check()["unmentioned_tables"] == ["appointments_#.csv"]


# The command.


def test_the_command(clinic: Clinic) -> None:
    clean = timeloom(clinic.yaml, clinic.folder)
    assert clean.returncode == 0, clean.stderr
    assert "nothing is suspicious" in clean.stdout and "unmapped columns: drug" in clean.stdout
    _admission(clinic)
    suspicious = timeloom(clinic.yaml, clinic.folder, "--json")
    assert suspicious.returncode == 2
    assert json.loads(suspicious.stdout) == clinic.check()
    clinic.yaml_with("subject:", "subjekt:")
    wrong = timeloom(clinic.yaml, clinic.folder)
    assert wrong.returncode == 1 and wrong.stdout == "" and wrong.stderr.count("\n") == 1
    assert "subjekt" in wrong.stderr or "subject" in wrong.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "needs a source"),
        (["no-such-source"], "no source no-such-source"),
        (["docs/examples/clinic-source.yaml", "no/such/folder"], "no export at no/such/folder"),
    ],
)
def test_wrong_arguments_give_one_line(arguments: list[str], said: str) -> None:
    done = timeloom(*arguments)
    assert done.returncode == 1 and said in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", sorted(path.stem for path in SOURCES.glob("*.yaml")))
def test_built_in_sources_show_nothing_suspicious_in_their_yaml(name: str) -> None:
    description = check(name)
    assert description["suspicious"] == []
    assert description["exit_code"] == 0


def test_the_demo_of_mimic(real_data: Path) -> None:
    description = check("mimic-iv", real_data / "mimic-iv-demo-2.2", 2000)
    assert not [one for one in description["tables"] if one["error"]]
    assert not [number for number in numbers(description["tables"]) if 1 <= number <= 10]
    assert not [one for one in description["suspicious"] if one["check"].startswith("billing_code")]


# The JSON schema.


def schema() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((ROOT / "docs" / "source.schema.json").read_text(encoding="utf-8"))
    return loaded


def test_the_schema_file_is_the_models() -> None:
    """If not: timeloom check-source --schema > docs/source.schema.json"""
    assert (ROOT / "docs" / "source.schema.json").read_text(encoding="utf-8") == json_schema()
    assert timeloom("--schema").stdout == json_schema()


def test_every_key_is_explained() -> None:
    whole = schema()
    jsonschema.Draft202012Validator.check_schema(whole)
    for model in [whole, *whole["$defs"].values()]:
        silent = [name for name, one in model["properties"].items() if not one.get("description")]
        assert silent == [], model["title"]


def documented_sources() -> list[Path]:
    return [*SOURCES.glob("*.yaml"), *EXAMPLES.glob("*-source.yaml")]


@pytest.mark.parametrize("path", documented_sources(), ids=lambda path: path.stem)
def test_sources_keep_the_schema(path: Path) -> None:
    jsonschema.validate(yaml.safe_load(path.read_text(encoding="utf-8")), schema())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("subject: patient_no", "subjekt: patient_no"),
        ("kind: visit_end", "kind: visit_over"),
        ("otherwise: lag", "otherwise: never"),
        ("value: result", "value: [result]"),
        ("role: reference", "role: dictionary"),
        ("key: test, ", ""),
    ],
)
def test_the_schema_and_the_model_refuse_the_same(clinic: Clinic, old: str, new: str) -> None:
    clinic.yaml_with(old, new)
    raw = yaml.safe_load(clinic.yaml.read_text(encoding="utf-8"))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(raw, schema())
    with pytest.raises(ValueError, match="validation error"):
        Source.model_validate(raw)


# The document.


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", DOCUMENT.read_text(encoding="utf-8"), flags=re.M | re.S)


def bare(text: str) -> list[str]:
    """Lines without what a terminal pads them with."""
    return [line.rstrip() for line in text.strip().splitlines()]


def test_the_documents_example_is_the_file() -> None:
    (shown,) = blocks("yaml")
    assert shown == (EXAMPLES / "clinic-source.yaml").read_text(encoding="utf-8")


def test_the_documents_output_is_the_commands() -> None:
    (command,) = [one for block in blocks("bash") for one in block.splitlines() if "check-source docs/examples" in one]
    done = timeloom(*command.split()[2:])
    assert bare(blocks("text")[0]) == bare(done.stdout)


def test_the_documents_first_draft_gives_these_lines(clinic: Clinic) -> None:
    clinic.yaml_with("columns: {left: left}", "columns: {left: arrived}")
    clinic.yaml_with(
        '{column: first_day, formats: "%d.%m.%Y"}', '{column: first_day, formats: ["%d.%m.%Y %H:%M", "%d.%m.%Y"]}'
    )
    clinic.yaml_with("        unit: unit\n", "")
    done = timeloom(clinic.yaml, clinic.folder)
    lines = done.stdout.splitlines()
    assert bare(blocks("text")[1]) == lines[lines.index("suspicious: 3") :]


def test_the_documents_raw_rows_are_the_clinics(clinic: Clinic) -> None:
    shown = [line for block in blocks("csv") for line in block.splitlines() if line and not line.startswith("#")]
    known = {line for path in clinic.folder.glob("*.csv") for line in path.read_text(encoding="utf-8").splitlines()}
    assert len(shown) > 10 and set(shown) <= known


def test_every_check_and_reason_is_in_the_document() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert [name for name in SPOILT.values() if f"`{name}`" not in text] == []
    from extractors.convert import AVAILABILITY, REASONS
    from extractors.values import FLAGS
    from pipelines.conflicts import CONFLICTS

    assert [name for name in (*REASONS, *CONFLICTS, *AVAILABILITY[:3], *FLAGS) if f"`{name}`" not in text] == []


def test_every_key_is_in_the_document() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    whole = schema()
    keys = {name for model in [whole, *whole["$defs"].values()] for name in model["properties"]}
    assert sorted(name for name in keys if f"`{name}`" not in text) == []


def test_describe_tells_small_from_withheld() -> None:
    """A table of twelve rows of which two went to quarantine shows neither, and says that it hides."""
    source = Source.model_validate({"name": "s", "subject": "p", "tables": {"t": {"events": [{"code": "A"}]}}})
    facts = explain(source)
    facts.tables[0].account.raw, facts.tables[0].account.static = 12, 10
    facts.tables[0].account.quarantined["bad_subject_id"] = 2
    assert describe(facts, 10)["tables"][0]["became"] == {"static": "<11", "bad_subject_id": "<11"}


def test_the_documents_events_are_the_runs(tmp_path: Path) -> None:
    """The whole way of the clinic: from its configuration to a release, and what of it the document shows."""
    config = load_config(EXAMPLES / "clinic.yaml")
    with Run(config, EXAMPLES, Layout(tmp_path / "warehouse"), LocalEngine(1)) as run:
        for name, step in run.steps:
            run.carry_out(name, step)
        outcome = run.outcome()
    assert outcome.published and outcome.exit_code == 0
    release = tmp_path / "warehouse" / "current"
    events = pl.read_parquet(str(release / "data" / "*.parquet"))
    stay = events.filter(pl.col("time") == datetime(2024, 6, 9, 15, 35))["visit_id"].item()
    shown = ["time", "available_time", "availability", "code", "numeric_value", "text_value", "value_flag", "unit"]
    rows = events.filter(pl.col("visit_id") == stay).select(shown).rows()
    lines = [f"| {' | '.join(map(cell, row))} |" for row in rows]
    document = [line for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if line.startswith("| 2024-")]
    assert document == lines, "\n".join(lines)
    described = dict(pl.read_parquet(release / "metadata" / "codes.parquet").select("code", "parent_codes").rows())
    assert described["ATC/J01CR02"] == ["ATC/J01CR", "CLINIC_LIST/ANTIBIOTIC_TO_BE_APPROVED"]
    # The hour that comes twice in autumn: 02:30 of summer time, and 03:30 and 04:00 of winter time.
    night = events.filter(pl.col("time") == datetime(2024, 10, 27, 2, 30)).sort("available_time")
    assert night["available_time"].to_list() == [datetime(2024, 10, 27, 3, 30), datetime(2024, 10, 27, 4, 0)]


def cell(value: Any) -> str:
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
