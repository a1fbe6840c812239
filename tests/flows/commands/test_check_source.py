"""`timeloom check-source`: what it finds, what it says, and what it never shows."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from extractors.check.explain import explain
from extractors.source import SOURCES, Source, load_source
from extractors.tables.export import Export
from flows.commands.check_source import check, describe
from tests.support.raw.clinic import (
    EXAMPLES,
    SPOILT,
    Clinic,
    spoil_admission,
    spoil_date,
    spoil_further_table,
    spoil_midnight,
    spoil_name_in_code,
    spoil_no_time,
    spoil_optional_join,
    spoil_visit_in_code,
    timeloom,
)
from warehouse.errors import TimeloomError

# In `make test` alone: each test starts the command.
pytestmark = pytest.mark.whole


@pytest.fixture
def clinic(tmp_path: Path) -> Clinic:
    return Clinic(tmp_path)


# Each suspicious choice is found if it is made; the unchanged clinic has none.


def test_the_clinic_as_it_stands_is_clean(clinic: Clinic) -> None:
    description = clinic.check()
    assert description["suspicious"] == []
    assert description["exit_code"] == 0


@pytest.mark.whole
@pytest.mark.parametrize("spoil", SPOILT, ids=lambda spoil: spoil.__name__)
def test_a_suspicious_choice_is_found(clinic: Clinic, spoil: Callable[[Clinic], None]) -> None:
    values = private_values(clinic)
    spoil(clinic)
    description = clinic.check()
    found = [finding for finding in description["suspicious"] if finding["check"] == SPOILT[spoil]]
    assert found
    assert found[0]["what"] and found[0]["remedy"] and "\n" not in found[0]["what"] + found[0]["remedy"]
    assert description["exit_code"] == 2
    assert shown_values(description, values | private_values(clinic)) == set()


@pytest.mark.parametrize(
    "spoil", [spoil_admission, spoil_no_time, spoil_visit_in_code, spoil_name_in_code, spoil_optional_join]
)
def test_some_choices_show_without_an_export(clinic: Clinic, spoil: Callable[[Clinic], None]) -> None:
    assert clinic.found(path=False) == set()
    spoil(clinic)
    assert clinic.found(path=False) == {SPOILT[spoil]}


def test_a_date_that_is_declared_is_no_mistake(clinic: Clinic) -> None:
    spoil_date(clinic)
    clinic.yaml_with('["%d.%m.%Y %H:%M", "%d.%m.%Y"]}', '["%d.%m.%Y %H:%M", "%d.%m.%Y"], anchor: end}')
    assert clinic.found() == set()


def test_midnight_that_is_declared_is_no_mistake(clinic: Clinic) -> None:
    spoil_midnight(clinic)
    clinic.yaml_with(
        '{column: arrived, formats: "%d.%m.%Y %H:%M"}',
        '{column: arrived, formats: "%d.%m.%Y %H:%M", midnight_is_date: true}',
    )
    assert "midnight_as_time" not in clinic.found()


@pytest.mark.whole
def test_an_end_that_is_ahead_is_no_mistake_where_its_start_is_not(clinic: Clinic) -> None:
    """A time of storage between the start and the end of an infusion belongs to the start, and is after it."""
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


# What the description says.


def test_facts_of_a_table(clinic: Clinic) -> None:
    clinic.change("labs", lambda _, row: row | {"device": "x"})
    facts = explain(load_source(str(clinic.yaml)), Export(clinic.folder, load_source(str(clinic.yaml))))
    tables = {table.table: table for table in facts.tables}
    labs = tables["labs"]
    assert (labs.account.raw, labs.account.events, labs.account.static) == (69, 69, 0)
    assert {value.namespace: value.events for value in labs.rules[0].made} == {"LOINC": 55, "CLINIC_LAB": 14}
    assert labs.times[1].formats == {"%Y-%m-%dT%H:%M%z": 67} and labs.times[1].empty == 2
    assert (labs.joins[0].found, labs.joins[0].missed) == (69, 0)
    assert labs.unmapped == ["device"]
    assert tables["patients"].account.static == 0 and tables["patients"].rules[0].made[0].events == 16
    assert tables["prescriptions"].unmapped == ["drug"]
    assert tables["diagnoses"].mapped == ["patient_no", "visit_no", "rank", "icd"]
    assert tables["lab_catalogue"].account.reference == 5
    assert tables["transfusions"].state == "absent, optional"
    assert facts.crosswalks == ["formulary"]


def test_the_converter_itself_makes_the_events(clinic: Clinic) -> None:
    """Reasons of quarantine and their counts equal those of a run."""
    clinic.change(
        "labs", lambda number, row: row | ({"sampled": ""} if number < 20 else {"test": ""} if number < 33 else {})
    )
    facts = clinic.check()
    labs = next(fact for fact in facts["tables"] if fact["table"] == "labs")
    assert labs["became"] == {"events": 36, "missing_time": 20, "missing_code": 13}


def test_a_malformed_row_is_counted(clinic: Clinic) -> None:
    with (clinic.folder / "labs.csv").open("a", encoding="utf-8") as file:
        file.write("one,field,too,few\n" * 12)
    labs = next(table for table in clinic.check()["tables"] if table["table"] == "labs")
    assert labs["became"] == {"events": 69, "malformed_row": 12} and labs["rows"] == 81


@pytest.mark.whole
def test_empty_values_are_counted_and_a_small_rest_is_not_given_away(clinic: Clinic) -> None:
    path = clinic.folder / "labs.csv"
    header, *rows = path.read_text(encoding="utf-8").splitlines()
    place = header.split(",").index("result")
    emptied = [",".join("" if at == place else field for at, field in enumerate(row.split(","))) for row in rows]
    for kept, empty, quarantined in [(20, len(rows) - 20, len(rows) - 20), (2, "withheld", "withheld")]:
        path.write_text("\n".join([header, *rows[:kept], *emptied[kept:]]) + "\n", encoding="utf-8")
        labs = next(table for table in clinic.check()["tables"] if table["table"] == "labs")
        assert labs["empty"] == {"result": empty}
        assert labs["became"]["empty_value"] == quarantined


def test_only_the_first_rows_are_read(clinic: Clinic) -> None:
    tables = {table["table"]: table for table in clinic.check(rows=12)["tables"]}
    assert tables["labs"]["rows"] == tables["visits"]["rows"] == 12
    assert tables["diagnoses"]["joins"][0]["found"] == 12, "a joined table is read whole"


def test_parts_of_a_table(clinic: Clinic) -> None:
    (clinic.folder / "labs").mkdir()
    text = (clinic.folder / "labs.csv").read_text(encoding="utf-8")
    for part in range(2):
        (clinic.folder / "labs" / f"{part}.csv").write_text(text, encoding="utf-8")
    (clinic.folder / "labs.csv").unlink()
    tables = {table["table"]: table for table in clinic.check(rows=100)["tables"]}
    assert tables["labs"]["rows"] == 100


@pytest.mark.whole
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
    labs = next(table for table in description["tables"] if table["table"] == "labs")
    assert (labs["rows"], labs["became"], labs["error"]) == (0, {}, "")
    assert {finding["check"] for finding in description["suspicious"]} == {"join_misses", "no_events"}, (
        "of the diagnoses"
    )


def test_a_missing_table_and_a_missing_column_are_errors(clinic: Clinic) -> None:
    (clinic.folder / "visits.csv").unlink()
    clinic.change("prescriptions", lambda _, row: {name: value for name, value in row.items() if name != "dose"})
    description = clinic.check()
    tables = {table["table"]: table for table in description["tables"]}
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
        for item in value.values() if isinstance(value, dict) else value:
            yield from numbers(item)


def shown_values(description: dict[str, Any], values: set[str]) -> set[str]:
    text = json.dumps(description)
    return {value for value in values if re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text)}


def test_no_value_of_a_patient_and_no_small_count_is_shown(clinic: Clinic) -> None:
    description = clinic.check()
    assert shown_values(description, private_values(clinic)) == set()
    assert not [number for number in numbers(description["tables"]) if 1 <= number <= 10]
    patients = description["tables"][0]
    died = next(patient for patient in patients["times"] if patient["column"] == "died")
    assert died == {"column": "died", "%Y-%m-%d": "<11", "unreadable": 0, "empty": "withheld"}, (
        "16 less 14 tells it too"
    )


def test_a_rare_namespace_is_not_named(clinic: Clinic) -> None:
    clinic.change("labs", lambda number, row: row if number > 3 else row | {"test": f"Muster, Maria {number}"})
    clinic.yaml_with("THEN 'CLINIC_LAB/' || test", "THEN test")
    description = clinic.check()
    assert "Muster" not in json.dumps(description)
    labs = next(table for table in description["tables"] if table["table"] == "labs")
    assert {lab["namespace"] for lab in labs["rules"][0]["made"]} == {"LOINC", "SARS", "{code}"}


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
    spoil_further_table(clinic)
    assert clinic.check()["unmentioned_tables"] == ["appointments_#.csv"]


# The command.


@pytest.mark.whole
def test_the_command(clinic: Clinic) -> None:
    clean = timeloom(clinic.yaml, clinic.folder)
    assert clean.returncode == 0, clean.stderr
    assert "nothing is suspicious" in clean.stdout and "unmapped columns: drug" in clean.stdout
    spoil_admission(clinic)
    suspicious = timeloom(clinic.yaml, clinic.folder, "--json")
    assert suspicious.returncode == 2
    assert json.loads(suspicious.stdout) == clinic.check()
    clinic.yaml_with("subject:", "subjekt:")
    wrong = timeloom(clinic.yaml, clinic.folder)
    assert wrong.returncode == 1 and wrong.stdout == "" and wrong.stderr.count("\n") == 1
    assert "subjekt" in wrong.stderr or "subject" in wrong.stderr


@pytest.mark.whole
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
    assert not [table for table in description["tables"] if table["error"]]
    assert not [number for number in numbers(description["tables"]) if 1 <= number <= 10]
    assert not [finding for finding in description["suspicious"] if finding["check"].startswith("billing_code")]


def test_describe_tells_small_from_withheld() -> None:
    """A table of twelve rows, of which two are quarantined, shows neither number, and says that it hides them."""
    source = Source.model_validate({"name": "s", "subject": "p", "tables": {"t": {"events": [{"code": "A"}]}}})
    facts = explain(source)
    facts.tables[0].account.raw, facts.tables[0].account.static = 12, 10
    facts.tables[0].account.quarantined["bad_subject_id"] = 2
    assert describe(facts, 10)["tables"][0]["became"] == {"static": "<11", "bad_subject_id": "<11"}


def test_a_configuration_says_how_the_site_writes_its_tables(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    days = [f"{day:02}/{month:02}/2020" for month in (1, 2) for day in range(1, 13)]
    rows = "".join(f"{number},{day}\n" for number, day in enumerate(days))
    (tmp_path / "raw" / "t.csv").write_text(f"pid,at\n{rows}")
    formats = '["%m/%d/%Y", "%d/%m/%Y"]'
    (tmp_path / "own.yaml").write_text(
        f"name: own\nsubject: pid\ntables: {{t: {{events: [{{code: X, time: {{column: at, formats: {formats}}}}}]}}}}\n"
    )
    reading = 'reading: {tables: {t: {formats: "%d/%m/%Y"}}}'
    run = tmp_path / "run.yaml"
    run.write_text(f"sources: [{{source: own.yaml, path: raw, {reading}}}]\ndeid: {{mode: synthetic}}\n")
    found = {finding["check"] for finding in check(str(tmp_path / "own.yaml"), tmp_path / "raw")["suspicious"]}
    assert "formats_both_fit" in found
    for name in ("", "own.yaml"):
        description = check(name, config=run)
        (times,) = description["tables"][0]["times"]
        assert times["%d/%m/%Y"] == 24
        assert "formats_both_fit" not in {finding["check"] for finding in description["suspicious"]}
    with pytest.raises(TimeloomError, match=r"run\.yaml has no source omop"):
        check("omop", config=run)
