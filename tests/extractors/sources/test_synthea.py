"""Synthea's CSV export, on made-up rows with its published columns: we have no export of Synthea."""

import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from extractors.source import Source, load_source
from flows.commands.check_source import check
from flows.runs.run import Run
from pipelines.config import parse_config
from pipelines.engine.local import LocalEngine
from tests.support.raw.raw_tables import convert, csv_text
from warehouse.layout import Layout

# Columns as versions 3.x write them.
COLUMNS = {
    "patients": "Id,BIRTHDATE,DEATHDATE,SSN,DRIVERS,PASSPORT,PREFIX,FIRST,MIDDLE,LAST,SUFFIX,MAIDEN,MARITAL,RACE,"
    "ETHNICITY,GENDER,BIRTHPLACE,ADDRESS,CITY,STATE,COUNTY,FIPS,ZIP,LAT,LON,HEALTHCARE_EXPENSES,HEALTHCARE_COVERAGE,"
    "INCOME",
    "encounters": "Id,START,STOP,PATIENT,ORGANIZATION,PROVIDER,PAYER,ENCOUNTERCLASS,CODE,DESCRIPTION,"
    "BASE_ENCOUNTER_COST,TOTAL_CLAIM_COST,PAYER_COVERAGE,REASONCODE,REASONDESCRIPTION",
    "conditions": "START,STOP,PATIENT,ENCOUNTER,SYSTEM,CODE,DESCRIPTION",
    "allergies": "START,STOP,PATIENT,ENCOUNTER,CODE,SYSTEM,DESCRIPTION,TYPE,CATEGORY,REACTION1,DESCRIPTION1,SEVERITY1,"
    "REACTION2,DESCRIPTION2,SEVERITY2",
    "medications": "START,STOP,PATIENT,PAYER,ENCOUNTER,CODE,DESCRIPTION,BASE_COST,PAYER_COVERAGE,DISPENSES,TOTALCOST,"
    "REASONCODE,REASONDESCRIPTION",
    "procedures": "START,STOP,PATIENT,ENCOUNTER,SYSTEM,CODE,DESCRIPTION,BASE_COST,REASONCODE,REASONDESCRIPTION",
    "observations": "DATE,PATIENT,ENCOUNTER,CATEGORY,CODE,DESCRIPTION,VALUE,UNITS,TYPE",
    "immunizations": "DATE,PATIENT,ENCOUNTER,CODE,DESCRIPTION,BASE_COST",
    "careplans": "Id,START,STOP,PATIENT,ENCOUNTER,CODE,DESCRIPTION,REASONCODE,REASONDESCRIPTION",
    "devices": "START,STOP,PATIENT,ENCOUNTER,CODE,DESCRIPTION,UDI",
    "supplies": "DATE,PATIENT,ENCOUNTER,CODE,DESCRIPTION,QUANTITY",
    "imaging_studies": "Id,DATE,PATIENT,ENCOUNTER,SERIES_UID,BODYSITE_CODE,BODYSITE_DESCRIPTION,MODALITY_CODE,"
    "MODALITY_DESCRIPTION,INSTANCE_UID,SOP_CODE,SOP_DESCRIPTION,PROCEDURE_CODE",
    "claims": "Id,PATIENTID,PROVIDERID,PRIMARYPATIENTINSURANCEID,SECONDARYPATIENTINSURANCEID,DEPARTMENTID,"
    "PATIENTDEPARTMENTID,DIAGNOSIS1,DIAGNOSIS2,DIAGNOSIS3,DIAGNOSIS4,DIAGNOSIS5,DIAGNOSIS6,DIAGNOSIS7,DIAGNOSIS8,"
    "REFERRINGPROVIDERID,APPOINTMENTID,CURRENTILLNESSDATE,SERVICEDATE,SUPERVISINGPROVIDERID,STATUS1,STATUS2,STATUSP,"
    "OUTSTANDING1,OUTSTANDING2,OUTSTANDINGP,LASTBILLEDDATE1,LASTBILLEDDATE2,LASTBILLEDDATEP,HEALTHCARECLAIMTYPEID1,"
    "HEALTHCARECLAIMTYPEID2",
    "claims_transactions": "ID,CLAIMID,CHARGEID,PATIENTID,TYPE,AMOUNT,METHOD,FROMDATE,TODATE,PLACEOFSERVICE,"
    "PROCEDURECODE,MODIFIER1,MODIFIER2,DIAGNOSISREF1,DIAGNOSISREF2,DIAGNOSISREF3,DIAGNOSISREF4,UNITS,DEPARTMENTID,"
    "NOTES,UNITAMOUNT,TRANSFEROUTID,TRANSFERTYPE,PAYMENTS,ADJUSTMENTS,TRANSFERS,OUTSTANDING,APPOINTMENTID,LINENOTE,"
    "PATIENTINSURANCEID,FEESCHEDULEID,PROVIDERID,SUPERVISINGPROVIDERID",
    "payer_transitions": "PATIENT,MEMBERID,START_DATE,END_DATE,PAYER,SECONDARY_PAYER,PLAN_OWNERSHIP,OWNER_NAME",
    "payers": "Id,NAME,OWNERSHIP,ADDRESS,CITY,STATE_HEADQUARTERED,ZIP,PHONE",
    "organizations": "Id,NAME,ADDRESS,CITY,STATE,ZIP,LAT,LON,PHONE,REVENUE,UTILIZATION",
    "providers": "Id,ORGANIZATION,NAME,GENDER,SPECIALITY,ADDRESS,CITY,STATE,ZIP,LAT,LON,ENCOUNTERS,PROCEDURES",
    "patient_expenses": "PATIENT_ID,YEAR,PAYER_ID,HEALTHCARE_EXPENSES,INSURANCE_COSTS,COVERED_COSTS",
}
KEEP_DATES = {"mode": "synthetic", "dates": "keep"}
ANNA, BEN = str(uuid.UUID(int=1)), str(uuid.UUID(int=2))
STAY, VISIT, OPEN = (str(uuid.UUID(int=number)) for number in (11, 12, 13))
PAYER = str(uuid.UUID(int=21))
SNOMED = "http://snomed.info/sct"


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


def end_of(day: str) -> datetime:
    return at(day) + timedelta(days=1) - timedelta(microseconds=1)


class Export:
    """A folder of Synthea tables, and the events that a table of it makes."""

    def __init__(self, work: Path) -> None:
        self.work, self.folder = work, work / "csv"
        self.folder.mkdir(parents=True)
        self.source: Source = load_source("synthea")

    def write(self, table: str, *rows: dict[str, Any], columns: str | None = None) -> None:
        """Writes rows, each by column; columns that a row does not have are empty."""
        names = (columns or COLUMNS[table]).split(",")
        assert all(set(row) <= set(names) for row in rows), "a column that the schema does not have"
        text = csv_text(names, ([row.get(name) for name in names] for row in rows))
        (self.folder / f"{table}.csv").write_text(text, encoding="utf-8")

    def events(self, table: str) -> pl.DataFrame:
        events, account = convert(
            self.work, self.source, table, self.folder / f"{table}.csv", KEEP_DATES, folder=self.folder
        )
        ends = account["events"] + account["static"] + account["reference"] + sum(account["quarantined"].values())
        assert account["raw"] == ends
        return events

    def codes_and_times(self, table: str) -> list[tuple[Any, ...]]:
        """Code, time and time of availability of each event."""
        return sorted(self.events(table).select("code", "time", "available_time").rows(), key=str)


@pytest.fixture
def export(tmp_path: Path) -> Export:
    """Two patients; a stay of three days, a visit of half an hour, and an encounter that has not ended."""
    export = Export(tmp_path)
    export.write(
        "encounters",
        {"Id": STAY, "START": "2020-02-28T22:10:00Z", "STOP": "2020-03-02T09:00:00Z", "PATIENT": ANNA,
         "ENCOUNTERCLASS": "inpatient", "CODE": "185347001", "REASONCODE": "22298006"},
        {"Id": VISIT, "START": "1969-07-20T20:17:40Z", "STOP": "1969-07-20T20:47:40Z", "PATIENT": BEN,
         "ENCOUNTERCLASS": "wellness", "CODE": "162673000"},
        {"Id": OPEN, "START": "2021-05-01T08:00:00Z", "PATIENT": BEN, "CODE": "162673000"},
    )  # fmt: skip
    export.write("payers", {"Id": PAYER, "NAME": "Blue Example"})
    return export


def test_the_tables_of_the_mapping_are_those_of_the_exporter(export: Export) -> None:
    assert set(export.source.tables) == set(COLUMNS)
    for table, rule in export.source.tables.items():
        known = {name.lower() for name in COLUMNS[table].split(",")} | {"date", "start_year"}
        assert export.source.needed_columns(table) <= known, table
        assert rule.optional or table == "patients"


def test_patients(export: Export) -> None:
    export.write(
        "patients",
        {"Id": ANNA, "BIRTHDATE": "1948-02-29", "DEATHDATE": "2020-03-02", "FIRST": "Anna1", "LAST": "Bauer2",
         "SSN": "999-11-2222", "MARITAL": "M", "RACE": "white", "ETHNICITY": "nonhispanic", "GENDER": "F",
         "INCOME": "null"},
        {"Id": BEN, "BIRTHDATE": "1969-01-01", "RACE": "asian", "ETHNICITY": "hispanic", "GENDER": "M"},
    )  # fmt: skip
    events = export.events("patients")
    assert events["subject_id"].n_unique() == 2
    anna = events.filter(pl.col("row") == 1)
    assert anna.select("code", "time", "kind").rows() == [
        ("DEMO/SEX/F", None, "clinical"),
        ("DEMO/RACE/WHITE", None, "clinical"),
        ("DEMO/ETHNICITY/NONHISPANIC", None, "clinical"),
        ("MEDS_BIRTH", at("1948-02-29"), "clinical"),
        ("MEDS_DEATH", end_of("2020-03-02"), "death"),
    ]
    assert "MEDS_DEATH" not in events.filter(pl.col("row") == 2)["code"].to_list()
    written = str(events.to_dicts())
    assert not [name for name in ("Anna1", "Bauer2", "999-11", ANNA) if name in written]


def test_subjects_are_the_same_in_every_table(export: Export) -> None:
    export.write("patients", {"Id": ANNA, "BIRTHDATE": "1948-02-29", "GENDER": "F", "RACE": "white", "ETHNICITY": "x"})
    export.write("claims", {"Id": "c", "PATIENTID": ANNA, "DIAGNOSIS1": "1", "LASTBILLEDDATE1": "2020-03-02T09:00:00Z"})
    export.write("immunizations", {"DATE": "2020-02-28T22:30:00Z", "PATIENT": ANNA, "ENCOUNTER": STAY, "CODE": "140"})
    ids = {
        table: export.events(table)["subject_id"].unique().to_list()
        for table in ("patients", "claims", "immunizations")
    }
    assert len({tuple(subjects) for subjects in ids.values()}) == 1
    visits = export.events("encounters").filter(pl.col("row") == 1)["visit_id"].unique().to_list()
    assert visits == export.events("immunizations")["visit_id"].to_list()


def test_encounters_start_and_end_and_have_their_reason_at_the_end(export: Export) -> None:
    start, stop = at("2020-02-28T22:10:00"), at("2020-03-02T09:00:00")
    events = export.events("encounters")
    assert events.filter(pl.col("row") == 1).select("code", "time", "available_time", "kind").rows() == [
        ("ENCOUNTER_START/INPATIENT", start, start, "visit_start"),
        ("SNOMED/185347001", start, start, "clinical"),
        ("ENCOUNTER_REASON/SNOMED/22298006", start, stop, "clinical"),
        ("ENCOUNTER_END/INPATIENT", stop, stop, "visit_end"),
    ]
    assert events.filter(pl.col("row") == 2)["time"].min() == at("1969-07-20T20:17:40"), "before 1970"
    assert events.filter(pl.col("row") == 3)["code"].to_list() == ["ENCOUNTER_START/UNKNOWN", "SNOMED/162673000"]


def test_conditions_are_known_when_the_encounter_ends(export: Export) -> None:
    export.write(
        "conditions",
        {"START": "2020-02-29", "STOP": "2020-12-01", "PATIENT": ANNA, "ENCOUNTER": STAY, "SYSTEM": SNOMED,
         "CODE": "1"},
        {"START": "2020-02-29", "PATIENT": ANNA, "ENCOUNTER": STAY, "CODE": "2"},
        {"START": "2020-02-29", "PATIENT": ANNA, "ENCOUNTER": STAY, "SYSTEM": "ICD-10-CM", "CODE": "I10"},
        {"START": "1969-07-20", "PATIENT": BEN, "ENCOUNTER": VISIT, "SYSTEM": SNOMED, "CODE": "4"},
        {"START": "2021-05-01", "PATIENT": BEN, "ENCOUNTER": OPEN, "SYSTEM": SNOMED, "CODE": "5"},
    )  # fmt: skip
    day, stop = end_of("2020-02-29"), at("2020-03-02T09:00:00")
    assert export.codes_and_times("conditions") == [
        ("CONDITION_END/SNOMED/1", end_of("2020-12-01"), end_of("2020-12-01")),
        ("ICD10CM/I10", day, stop),
        ("SNOMED/1", day, stop),
        ("SNOMED/2", day, stop),
        ("SNOMED/4", end_of("1969-07-20"), end_of("1969-07-20")),  # the encounter ended on that day
        ("SNOMED/5", end_of("2021-05-01"), end_of("2021-05-01")),
    ]
    known = export.events("conditions").select("code", "availability", "time_precision").rows()
    assert ("SNOMED/1", "recorded", "day") in known and ("SNOMED/5", "time", "day") in known


def test_a_condition_stamped_at_admission_is_caught(export: Export) -> None:
    """The test above fails where the YAML takes the encounter's start."""
    rules = export.source.model_dump()
    rules["tables"]["conditions"]["joins"][0]["columns"] = {"encounter_stop": "start"}
    export.source = Source.model_validate(rules)
    with pytest.raises(AssertionError):
        test_conditions_are_known_when_the_encounter_ends(export)


def test_an_allergy_to_a_drug_is_no_prescription(export: Export) -> None:
    export.write(
        "allergies",
        {"START": "2020-02-29", "PATIENT": ANNA, "ENCOUNTER": STAY, "CODE": "7984", "SYSTEM": "RxNorm",
         "REACTION1": "247472004", "SEVERITY1": "MODERATE"},
        {"START": "2020-02-29", "STOP": "2021-01-01", "PATIENT": ANNA, "ENCOUNTER": STAY, "CODE": "3",
         "SYSTEM": "Unknown"},
    )  # fmt: skip
    events = export.events("allergies")
    assert events.select("code", "text_value").rows() == [
        ("ALLERGY/RXNORM/7984", None),
        ("ALLERGY_REACTION/SNOMED/247472004", "MODERATE"),
        ("ALLERGY/UNKNOWN/3", None),
        ("ALLERGY_END/UNKNOWN/3", None),
    ]
    assert events.filter(pl.col("code").str.starts_with("ALLERGY/"))["available_time"].unique().to_list() == [
        at("2020-03-02T09:00:00")
    ]


def test_what_was_done_in_an_encounter(export: Export) -> None:
    start, later = "2020-02-29T10:00:00Z", "2020-02-29T11:30:00Z"
    who = {"PATIENT": ANNA, "ENCOUNTER": STAY}
    export.write("medications", {"START": start, "STOP": later, "CODE": "860975", "DISPENSES": 12, **who})
    export.write("procedures", {"START": start, "STOP": later, "CODE": "232717009", "SYSTEM": SNOMED, **who})
    export.write("devices", {"START": start, "STOP": None, "CODE": "706004007", "UDI": "(01)1234", **who})
    export.write("immunizations", {"DATE": start, "CODE": "08", **who})
    export.write("careplans", {"Id": "x", "START": "2020-02-29", "CODE": "734163000", **who})
    export.write("supplies", {"DATE": "2020-02-29", "CODE": "337388004", "QUANTITY": 3, **who})
    begun, done, day = at("2020-02-29T10:00:00"), at("2020-02-29T11:30:00"), end_of("2020-02-29")
    assert export.codes_and_times("medications") == [
        ("MEDICATION_END/RXNORM/860975", done, done),
        ("RXNORM/860975", begun, begun),
    ]
    assert export.codes_and_times("procedures") == [
        ("PROCEDURE_END/SNOMED/232717009", done, done),
        ("SNOMED/232717009", begun, done),
    ]
    assert export.codes_and_times("devices") == [("DEVICE_START/SNOMED/706004007", begun, begun)]
    assert export.codes_and_times("immunizations") == [("CVX/08", begun, begun)]
    assert export.codes_and_times("careplans") == [("CAREPLAN_START/SNOMED/734163000", day, day)]
    assert export.codes_and_times("supplies") == [("SUPPLY/SNOMED/337388004", day, day)]
    assert export.events("supplies")["numeric_value"].to_list() == [3.0]
    assert export.events("medications")["numeric_value"].to_list() == [None, None], "what DISPENSES counts comes later"


def test_observations_keep_texts_as_texts(export: Export) -> None:
    who = {"DATE": "2020-02-29T10:00:00Z", "PATIENT": ANNA, "ENCOUNTER": STAY}
    export.write(
        "observations",
        {"CODE": "8302-2", "VALUE": "170.5", "UNITS": "cm", "TYPE": "numeric", **who},
        {"CODE": "72166-2", "VALUE": "Never smoked", "UNITS": "{nominal}", "TYPE": "text", **who},
        {"CODE": "44249-1", "VALUE": "5", "TYPE": "text", **who},
        {"CODE": "QALY", "VALUE": "20.1", "UNITS": "a", "TYPE": "numeric", "DATE": who["DATE"], "PATIENT": ANNA},
        {"CODE": "2085-9", "VALUE": "61", "UNITS": "null", "TYPE": "numeric", **who},
    )  # fmt: skip
    assert export.events("observations").select("code", "numeric_value", "text_value", "unit").rows() == [
        ("LOINC/8302-2", 170.5, None, "cm"),
        ("LOINC/72166-2", None, "Never smoked", "{nominal}"),
        ("LOINC/44249-1", None, "5", None),
        ("GBD/QALY", pytest.approx(20.1), None, "a"),
        ("LOINC/2085-9", 61.0, None, None),
    ]
    assert export.events("observations")["visit_id"].null_count() == 1


def test_a_series_of_images_is_one_study_and_its_further_images(export: Export) -> None:
    who = {"DATE": "2020-02-29T10:00:00Z", "PATIENT": ANNA, "ENCOUNTER": STAY, "Id": "s"}
    image = {"BODYSITE_CODE": "51185008", "MODALITY_CODE": "CT", "SERIES_UID": "1.2.3", **who}
    export.write("imaging_studies", *({"INSTANCE_UID": f"1.2.3.{number}", **image} for number in (2, 1, 3)))
    assert export.events("imaging_studies")["code"].to_list() == [
        "IMAGING_FURTHER_IMAGE/CT",
        "IMAGING/CT/51185008",
        "IMAGING_FURTHER_IMAGE/CT",
    ]


def test_claims_are_known_when_the_encounter_ends(export: Export) -> None:
    stop = at("2020-03-02T09:00:00")
    export.write(
        "claims",
        {"Id": "c", "PATIENTID": ANNA, "APPOINTMENTID": STAY, "DIAGNOSIS1": "1", "DIAGNOSIS8": "8",
         "SERVICEDATE": "2020-02-28T22:10:00Z", "LASTBILLEDDATE1": "2020-03-02T09:00:00Z"},
    )  # fmt: skip
    entry = {"CLAIMID": "c", "PATIENTID": ANNA, "APPOINTMENTID": STAY, "FROMDATE": "2020-02-28T22:10:00Z",
             "TODATE": "1970-01-01T00:00:00Z"}  # fmt: skip
    export.write(
        "claims_transactions",
        {"ID": "1", "TYPE": "CHARGE", "AMOUNT": "129.16", **entry},
        {"ID": "2", "TYPE": "PAYMENT", "PAYMENTS": "100.00", **entry},
        {"ID": "3", "TYPE": "TRANSFEROUT", "AMOUNT": None, "TRANSFERS": "29.16", **entry},
    )
    assert export.codes_and_times("claims") == [("CLAIM/SNOMED/1", stop, stop), ("CLAIM/SNOMED/8", stop, stop)]
    money = export.events("claims_transactions")
    assert money.select("code", "numeric_value", "unit").rows() == [
        ("CLAIM_TRANSACTION/CHARGE", pytest.approx(129.16), "USD"),
        ("CLAIM_TRANSACTION/PAYMENT", 100.0, "USD"),
        ("CLAIM_TRANSACTION/TRANSFEROUT", pytest.approx(29.16), "USD"),
    ]
    assert money["time"].unique().to_list() == [at("2020-02-28T22:10:00")]
    assert money["available_time"].unique().to_list() == [stop]


def test_insurance_starts_with_its_plan(export: Export) -> None:
    plan = {"PATIENT": ANNA, "MEMBERID": "m", "PAYER": PAYER, "OWNER_NAME": "Anna1 Bauer2"}
    export.write(
        "payer_transitions",
        {"START_DATE": "2019-05-01T10:00:00Z", "END_DATE": "2030-05-01T10:00:00Z", **plan},
        {"START_DATE": "2020-05-01T10:00:00Z", **plan, "PAYER": "somebody"},
    )
    assert export.codes_and_times("payer_transitions") == [
        ("INSURANCE/BLUE EXAMPLE", at("2019-05-01T10:00:00"), at("2019-05-01T10:00:00")),
        ("INSURANCE/UNKNOWN", at("2020-05-01T10:00:00"), at("2020-05-01T10:00:00")),
    ]


def test_version_2(export: Export) -> None:
    """It has fewer columns, dates instead of version 3's moments, years instead of dates, and one row for a study."""
    who = {"PATIENT": ANNA, "ENCOUNTER": STAY}
    export.write(
        "conditions",
        {"START": "2020-02-29", "CODE": "1", **who},
        columns="START,STOP,PATIENT,ENCOUNTER,CODE,DESCRIPTION",
    )
    export.write(
        "allergies",
        {"START": "2020-02-29", "CODE": "2", **who},
        columns="START,STOP,PATIENT,ENCOUNTER,CODE,DESCRIPTION",
    )
    export.write(
        "procedures",
        {"DATE": "2020-02-29T10:00Z", "CODE": "3", **who},
        columns="DATE,PATIENT,ENCOUNTER,CODE,DESCRIPTION,BASE_COST,REASONCODE,REASONDESCRIPTION",
    )
    export.write(
        "observations",
        {"DATE": "2020-02-29", "CODE": "8302-2", "VALUE": "170", **who},
        columns="DATE,PATIENT,ENCOUNTER,CODE,DESCRIPTION,VALUE,UNITS",
    )
    export.write(
        "imaging_studies",
        {"DATE": "2020-02-29T10:00:00Z", "MODALITY_CODE": "DX", **who},
        columns="Id,DATE,PATIENT,ENCOUNTER,BODYSITE_CODE,BODYSITE_DESCRIPTION,MODALITY_CODE,MODALITY_DESCRIPTION,SOP_CODE,SOP_DESCRIPTION",
    )
    export.write(
        "payer_transitions",
        {"PATIENT": ANNA, "START_YEAR": "2019", "PAYER": PAYER},
        columns="PATIENT,START_YEAR,END_YEAR,PAYER,OWNERSHIP",
    )
    day, stop, begun = end_of("2020-02-29"), at("2020-03-02T09:00:00"), at("2020-02-29T10:00:00")
    assert export.codes_and_times("conditions") == [("SNOMED/1", day, stop)]
    assert export.codes_and_times("allergies") == [("ALLERGY/SNOMED/2", day, stop)]
    assert export.codes_and_times("procedures") == [("SNOMED/3", begun, begun)]
    assert export.codes_and_times("observations") == [("LOINC/8302-2", day, day)]
    assert export.codes_and_times("imaging_studies") == [("IMAGING/DX/UNKNOWN", begun, begun)]
    assert export.codes_and_times("payer_transitions") == [
        ("INSURANCE/BLUE EXAMPLE", end_of("2019-12-31"), end_of("2019-12-31"))
    ]


def test_without_encounters_and_payers(export: Export) -> None:
    (export.folder / "encounters.csv").unlink()
    (export.folder / "payers.csv").unlink()
    export.write("conditions", {"START": "2020-02-29", "PATIENT": ANNA, "ENCOUNTER": STAY, "CODE": "1"})
    export.write("payer_transitions", {"START_DATE": "2019-05-01T10:00:00Z", "PATIENT": ANNA, "PAYER": PAYER})
    assert export.codes_and_times("conditions") == [("SNOMED/1", end_of("2020-02-29"), end_of("2020-02-29"))]
    # Nothing says when the encounter was over: an estimate takes the place when a bucket is aligned.
    assert export.events("conditions")["availability"].to_list() == ["missed"]
    assert export.events("payer_transitions")["code"].to_list() == ["INSURANCE/UNKNOWN"]


def test_references_make_no_events(export: Export) -> None:
    export.write("patient_expenses", {"PATIENT_ID": ANNA, "YEAR": "2019-05-01T10:00:00Z", "HEALTHCARE_EXPENSES": "9"})
    assert export.events("patient_expenses").is_empty()


def people(number: int) -> Iterator[tuple[str, str, str, str]]:
    """A patient's id, and an encounter's id, start and stop."""
    for place in range(number):
        start = datetime(2020, 1, 1, 8) + timedelta(days=3 * place)
        stop = start + timedelta(days=1, hours=2)
        yield str(uuid.UUID(int=100 + place)), str(uuid.UUID(int=900 + place)), f"{start:%FT%TZ}", f"{stop:%FT%TZ}"


@pytest.mark.whole
def test_a_release(tmp_path: Path) -> None:
    """From UUIDs to a published release: nothing is lost, and codes have descriptions."""
    export = Export(tmp_path)
    patients = list(people(24))
    export.write(
        "patients",
        *(
            {"Id": patient, "BIRTHDATE": "1950-01-01", "GENDER": "F", "RACE": "white", "ETHNICITY": "x"}
            for patient, *_ in patients
        ),
    )
    export.write(
        "encounters",
        *({"Id": visit, "START": start, "STOP": stop, "PATIENT": patient, "ENCOUNTERCLASS": "inpatient",
           "CODE": "185347001", "DESCRIPTION": "Encounter for problem"} for patient, visit, start, stop in patients),
    )  # fmt: skip
    export.write(
        "conditions",
        *({"START": start[:10], "PATIENT": patient, "ENCOUNTER": visit, "SYSTEM": SNOMED, "CODE": "22298006",
           "DESCRIPTION": "Myocardial infarction"} for patient, visit, start, _ in patients),
    )  # fmt: skip
    export.write("payers", {"Id": PAYER, "NAME": "Blue Example"})
    assert check("synthea", export.folder)["exit_code"] == 0, "nothing is suspicious"
    raw = {
        "sources": [{"source": "synthea", "path": "csv"}],
        "buckets": 2,
        "deid": KEEP_DATES,
        "profiles": {"mehrt": {"context": 64, "namespaces": None}},
    }
    with Run(parse_config(raw, tmp_path, "synthea"), tmp_path, Layout(tmp_path / "warehouse"), LocalEngine(1)) as run:
        for name, step in run.steps:
            run.carry_out(name, step)
        outcome = run.outcome()
    assert outcome.published and outcome.exit_code == 0
    events = pl.read_parquet(str(tmp_path / "warehouse/current/data/*.parquet"))
    assert events["subject_id"].n_unique() == 24
    assert events.height == 24 * (4 + 3 + 1)
    ends = events.filter(pl.col("kind") == "visit_end").select("visit_id", end="time")
    diagnoses = events.filter(pl.col("code") == "SNOMED/22298006").join(ends, on="visit_id")
    assert diagnoses.height == 24 and (diagnoses["available_time"] >= diagnoses["end"]).all()
    codes = pl.read_parquet(tmp_path / "warehouse/current/metadata/codes.parquet")
    described = dict(codes.select("code", "description").rows())
    assert described["SNOMED/22298006"] == "Myocardial infarction"
    assert described["SNOMED/185347001"] == "Encounter for problem"
