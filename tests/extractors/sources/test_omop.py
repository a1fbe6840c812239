"""OMOP CDM: concepts, values and times, on made-up rows in both versions of the model."""

from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from extractors.events.dictionaries import describe
from extractors.source import raw_columns
from extractors.tables.export import Export
from tests.support.raw.omop_tables import (
    COLUMNS,
    CONDITION,
    OMOP,
    account_and_events,
    codes,
    end_of,
    made,
    table,
    vocabulary,
)
from tests.support.raw.raw_tables import convert
from warehouse.errors import TimeloomError


def test_every_column_of_the_mapping_is_one_of_the_model() -> None:
    for name, rule in OMOP.tables.items():
        if rule.role == "reference":
            continue
        required, others = (set(COLUMNS[name][kind]) for kind in ("required", "others"))
        named = raw_columns(rule, OMOP.subject)
        assert named | {*rule.optional_columns} <= required | others, name
        assert named & others <= {*rule.optional_columns}, f"{name}: what may be null may be absent"
    for name in ("concept", "concept_relationship", "drug_strength"):
        assert OMOP.needed_columns(name) <= {*COLUMNS[name]["required"]}, name


def test_a_concept_is_its_vocabulary_and_code_and_else_what_the_source_said(tmp_path: Path) -> None:
    vocabulary(tmp_path / "cdm")
    account, events = account_and_events(
        tmp_path,
        "condition_occurrence",
        CONDITION | {"condition_concept_id": 201826, "condition_source_concept_id": 35208414},
        CONDITION | {"condition_concept_id": 0, "condition_source_concept_id": 35208414},
        CONDITION | {"condition_concept_id": None, "condition_source_concept_id": 35208414},
        CONDITION | {"condition_concept_id": 77, "condition_source_concept_id": 35208414},
        CONDITION | {"condition_concept_id": 0, "condition_source_concept_id": 78},
        CONDITION | {"condition_concept_id": 0, "condition_source_concept_id": 0, "condition_source_value": "local.1"},
        CONDITION | {"condition_concept_id": None, "condition_source_value": "local.2"},
        CONDITION | {"condition_concept_id": 0},
        CONDITION | {"condition_concept_id": 2000000001},
    )
    assert codes(events) == [
        "SNOMED/44054006",
        "ICD10CM/K922",
        "ICD10CM/K922",
        "OMOP/77",
        "OMOP/78",
        "OMOP_SOURCE/condition_occurrence/local.1",
        "OMOP_SOURCE/condition_occurrence/local.2",
        "OMOP_SOURCE/condition_occurrence/UNKNOWN",
        "ICDO3/8140/3-C50.9",
    ]
    assert (account["raw"], account["events"]) == (9, 9)


def test_without_a_vocabulary_concepts_keep_their_ids(tmp_path: Path) -> None:
    for name, column, day in (
        ("condition_occurrence", "condition_concept_id", "condition_start_date"),
        ("procedure_occurrence", "procedure_concept_id", "procedure_date"),
        ("drug_exposure", "drug_concept_id", "drug_exposure_start_date"),
        ("device_exposure", "device_concept_id", "device_exposure_start_date"),
        ("measurement", "measurement_concept_id", "measurement_date"),
        ("observation", "observation_concept_id", "observation_date"),
        ("specimen", "specimen_concept_id", "specimen_date"),
    ):
        events = made(tmp_path, name, {column: 201826, day: "2020-01-01"}, {column: 0, day: "2020-01-01"})
        assert codes(events) == ["OMOP/201826", f"OMOP_SOURCE/{name}/UNKNOWN"]


def test_icd_codes_lose_their_dots_and_icd9_procedures_are_named_as_everywhere(tmp_path: Path) -> None:
    vocabulary(tmp_path / "cdm")
    row = {"procedure_concept_id": 2108115, "procedure_date": "2020-01-01", "quantity": 2}
    (event,) = made(tmp_path, "procedure_occurrence", row)
    assert (event["code"], event["numeric_value"]) == ("ICD9PCS/4513", 2)


def test_a_dictionary_describes_codes_and_says_what_they_are_a_kind_of(tmp_path: Path) -> None:
    folder = tmp_path / "cdm"
    vocabulary(folder)
    made_of = ({"drug_concept_id": drug, "ingredient_concept_id": 1125315} for drug in (1127433, 1125315))
    table(folder, "drug_strength", *made_of)
    is_a = {"concept_id_1": 201826, "concept_id_2": 2000000001, "relationship_id": "Is a"}
    table(folder, "concept_relationship", is_a, is_a | {"concept_id_2": 1125315, "relationship_id": "Maps to"})
    wanted = ["RXNORM/313782", "ICD10CM/K922", "ICD9PCS/4513", "DRUG_END/RXNORM/313782", "VISIT_START/VISIT/IP"]
    wanted += ["RXNORM/161", "SNOMED/44054006", "DEMO/RACE/5", "OMOP/77", "NONE/No matching concept"]
    described = describe(pl.Series(wanted), [Export(folder, OMOP)])
    assert described.rows() == [
        ("RXNORM/313782", "name of 1127433", ["OMOP/1127433", "RXNORM/161"]),
        ("ICD10CM/K922", "name of 35208414", ["OMOP/35208414"]),
        ("ICD9PCS/4513", "name of 2108115", ["OMOP/2108115"]),
        ("DRUG_END/RXNORM/313782", "name of 1127433", ["RXNORM/313782"]),
        ("VISIT_START/VISIT/IP", "name of 9201", ["VISIT/IP"]),
        ("RXNORM/161", "name of 1125315", ["OMOP/1125315"]),
        ("SNOMED/44054006", "name of 201826", ["ICDO3/8140/3-C50.9", "OMOP/201826"]),
        ("DEMO/RACE/5", "name of 8527", None),
        ("OMOP/77", None, None),
        ("NONE/No matching concept", None, None),
    ]


def test_a_measurement_keeps_number_sign_answer_and_unit(tmp_path: Path) -> None:
    vocabulary(tmp_path / "cdm")
    row = {"measurement_concept_id": 3004501, "measurement_date": "2020-01-01"}
    events = made(
        tmp_path,
        "measurement",
        row | {"value_as_number": "5.10", "unit_concept_id": 8840, "unit_source_value": "MG/DL"},
        row | {"value_as_number": 5, "operator_concept_id": 4171756, "unit_concept_id": 0, "unit_source_value": "mg"},
        row | {"value_as_number": 5, "value_source_value": "0.05 g/L", "unit_source_value": "mg/dL"},
        row | {"value_as_number": 5, "operator_concept_id": 4171755, "unit_concept_id": 99},
        row | {"value_as_number": -5, "operator_concept_id": 4172703},
        row | {"value_as_concept_id": 45884084, "value_source_value": "pos"},
        row | {"value_as_number": 0.1, "value_as_concept_id": 12},
        row | {"value_as_concept_id": 0, "value_source_value": ">= 7.5 mg/dL"},
        row | {"value_as_concept_id": 45884084},
        row,
    )
    seen = [(event["numeric_value"], event["value_flag"], event["text_value"], event["unit"]) for event in events]
    assert seen == [
        (np.float32("5.10"), None, None, "mg/dL"),
        (5, "<", "<5", "mg"),
        (5, None, None, "mg/dL"),
        (5, ">=", ">=5", "OMOP/99"),
        (-5, None, None, None),
        (None, None, "pos; LOINC/LA6576-8", None),
        (np.float32("0.1"), None, "OMOP/12", None),
        (7.5, ">=", ">= 7.5 mg/dL", "mg/dL"),
        (None, None, "LOINC/LA6576-8", None),
        (None, None, None, None),
    ]
    assert {event["code"] for event in events} == {"LOINC/2345-7"}


def test_an_observation_keeps_whichever_value_stands(tmp_path: Path) -> None:
    vocabulary(tmp_path / "cdm")
    row = {"observation_concept_id": 201826, "observation_date": "2020-01-01"}
    events = made(
        tmp_path,
        "observation",
        row | {"value_as_number": 3, "value_as_string": "three"},
        row | {"value_as_string": "former smoker", "value_as_concept_id": 45884084},
        row | {"value_source_value": "5.4 only"},
    )
    assert [(event["numeric_value"], event["text_value"]) for event in events] == [
        (3, None),
        (None, "former smoker; LOINC/LA6576-8"),
        (None, "5.4 only"),
    ]


@pytest.mark.parametrize(
    ("moment", "of_day", "expected", "precision"),
    [
        ("2020-02-29 13:14:15", None, datetime(2020, 2, 29, 13, 14, 15), "s"),
        ("2020-02-29T13:14:15.250", None, datetime(2020, 2, 29, 13, 14, 15, 250000), "us"),
        ("2020-02-29 13:14:15+00:00", None, datetime(2020, 2, 29, 13, 14, 15), "us"),
        ("2020-02-29 00:00:00", None, end_of("2020-02-29"), "day"),
        ("2020-02-29", None, end_of("2020-02-29"), "day"),
        (None, None, end_of("2020-02-29"), "day"),
        (None, "13:14:15", datetime(2020, 2, 29, 13, 14, 15), "s"),
        (None, "13:14", datetime(2020, 2, 29, 13, 14), "min"),
        (None, "2020-02-29", end_of("2020-02-29"), "day"),
        ("2020-02-29 13:14:15", "08:00:00", datetime(2020, 2, 29, 13, 14, 15), "s"),
        ("2020-02-29 13:14:15 UTC", None, datetime(2020, 2, 29, 13, 14, 15), "us"),
        ("2020-02-29 13:14:15.250 UTC", None, datetime(2020, 2, 29, 13, 14, 15, 250000), "us"),
        ("2020-02-29T13:14", None, datetime(2020, 2, 29, 13, 14), "min"),
        ("2020-02-29T13:14Z", None, datetime(2020, 2, 29, 13, 14), "min"),
        ("20200229", None, end_of("2020-02-29"), "day"),
        ("2020-2-9", None, end_of("2020-02-09"), "day"),
        ("2/9/2020 3:04", None, datetime(2020, 2, 9, 3, 4), "min"),
        ("2/9/2020", None, end_of("2020-02-09"), "day"),
    ],
)
def test_a_moment_is_one_only_where_it_says_more_than_its_date(
    tmp_path: Path, moment: str | None, of_day: str | None, expected: datetime, precision: str
) -> None:
    row = {"measurement_concept_id": 1, "measurement_date": "2020-02-29"}
    (event,) = made(tmp_path, "measurement", row | {"measurement_datetime": moment, "measurement_time": of_day})
    assert (event["time"], event["time_precision"]) == (expected, precision)


@pytest.mark.parametrize(
    ("year", "month", "day", "moment", "expected", "precision"),
    [
        (1963, 12, 31, None, "1963-12-31", "day"),
        (1963, 2, None, None, "1963-02-01", "month"),
        (1963, None, None, None, "1963-01-01", "year"),
        (1963, 12, 31, "1963-12-31 05:06:07", "1963-12-31 05:06:07", "s"),
        (1963, 12, 31, "1963-12-31 00:00:00", "1963-12-31", "day"),
        (1963, None, None, "1963-01-01 00:00:00", "1963-01-01", "year"),
        (1963, 5, None, "1963-05-01 00:00:00", "1963-05-01", "month"),
        (1963, 5, None, "1963-05-01", "1963-05-01", "month"),
        (1963, None, None, "1963-05-01 00:00:00", "1963-05-01", "day"),
        (1963, None, None, "19630101", "1963-01-01", "year"),
        (1963, 5, None, "1963-05-01 00:00:00 UTC", "1963-05-01", "month"),
        (1963, 5, None, "5/1/1963 0:00", "1963-05-01", "month"),
        (1963, 5, 1, "5/1/1963", "1963-05-01", "day"),
        (1963, 5, None, "1963-5-1T00:00Z", "1963-05-01", "month"),
        (1963, None, None, "1963-05-17 00:00:00", "1963-05-17", "day"),
        (1963, None, None, "1963-01-01 04:00:00", "1963-01-01 04:00:00", "s"),
        (None, None, None, "1963-05-01 00:00:00", "1963-05-01", "day"),
    ],
)
def test_a_birth_is_as_exact_as_what_is_known_of_it(
    tmp_path: Path, year: int, month: int | None, day: int | None, moment: str | None, expected: str, precision: str
) -> None:
    parts = {"year_of_birth": year, "month_of_birth": month, "day_of_birth": day, "birth_datetime": moment}
    events = made(tmp_path, "person", {"gender_concept_id": 8507} | parts)
    (birth,) = (event for event in events if event["code"] == "MEDS_BIRTH")
    assert (birth["time"], birth["time_precision"]) == (datetime.fromisoformat(expected), precision)


def test_what_a_person_is_has_no_time_and_says_where_it_comes_from(tmp_path: Path) -> None:
    vocabulary(tmp_path / "cdm")
    born = {"year_of_birth": 1950}
    people: list[dict[str, Any]] = [
        {"gender_concept_id": 8507, "race_concept_id": 8527, "ethnicity_concept_id": 38003564},
        {"gender_concept_id": 8532, "race_concept_id": 4, "ethnicity_concept_id": 0, "race_source_value": "white"},
        {"gender_concept_id": 0, "race_concept_id": 0, "gender_source_value": "f", "race_source_value": "native"},
        {"gender_concept_id": 8521, "race_concept_id": None, "ethnicity_source_value": "italian"},
        {"gender_concept_id": 0},
    ]
    account, events = account_and_events(tmp_path, "person", *(born | person for person in people))
    static = [(event["row"], event["code"]) for event in events if event["time"] is None]
    assert static == [
        (1, "DEMO/SEX/M"),
        (1, "DEMO/RACE/5"),
        (1, "DEMO/ETHNICITY/Not Hispanic"),
        (2, "DEMO/SEX/F"),
        (2, "DEMO/RACE/OMOP/4"),
        (3, "DEMO/SEX/OMOP_SOURCE/F"),
        (3, "DEMO/RACE/OMOP_SOURCE/NATIVE"),
        (4, "DEMO/SEX/O"),
        (4, "DEMO/ETHNICITY/OMOP_SOURCE/ITALIAN"),
        (5, "DEMO/SEX/U"),
    ]
    assert codes([event for event in events if event["time"] is not None]) == ["MEDS_BIRTH"] * 5
    assert account["events"] == 5


def test_a_person_without_a_birth_is_static(tmp_path: Path) -> None:
    account, events = account_and_events(tmp_path, "person", {"gender_concept_id": 8507})
    assert (account["static"], account["events"], codes(events)) == (1, 0, ["DEMO/SEX/M"])


def test_death_has_a_moment_a_day_and_a_cause(tmp_path: Path) -> None:
    vocabulary(tmp_path / "cdm")
    events = made(
        tmp_path,
        "death",
        {"death_date": "2020-03-01", "death_datetime": "2020-03-01 10:00:00", "cause_concept_id": 201826},
        {"death_date": "2020-03-02", "cause_concept_id": 0, "cause_source_concept_id": 35208414},
        {"death_date": "2020-03-03", "death_datetime": "2020-03-03 00:00:00", "cause_source_value": "old age"},
        {"death_date": "2020-03-04"},
    )
    assert [(event["row"], event["code"], event["time"], event["kind"]) for event in events] == [
        (1, "MEDS_DEATH", datetime(2020, 3, 1, 10), "death"),
        (1, "CAUSE_OF_DEATH/SNOMED/44054006", datetime(2020, 3, 1, 10), "clinical"),
        (2, "MEDS_DEATH", end_of("2020-03-02"), "death"),
        (2, "CAUSE_OF_DEATH/ICD10CM/K922", end_of("2020-03-02"), "clinical"),
        (3, "MEDS_DEATH", end_of("2020-03-03"), "death"),
        (3, "CAUSE_OF_DEATH/OMOP_SOURCE/death/old age", end_of("2020-03-03"), "clinical"),
        (4, "MEDS_DEATH", end_of("2020-03-04"), "death"),
    ]


def test_exposures_have_an_end_where_it_is_not_the_start(tmp_path: Path) -> None:
    vocabulary(tmp_path / "cdm")
    row = {"drug_concept_id": 1127433, "drug_exposure_start_date": "2020-01-01", "quantity": 30}
    events = made(
        tmp_path,
        "drug_exposure",
        row | {"drug_exposure_end_date": "2020-01-15", "sig": "one a day", "dose_unit_source_value": "mg"},
        row | {"drug_exposure_end_date": "2020-01-01"},
        row,
    )
    assert [
        (event["row"], event["code"], event["numeric_value"], event["text_value"], event["unit"]) for event in events
    ] == [
        (1, "RXNORM/313782", 30, "one a day", "mg"),
        (1, "DRUG_END/RXNORM/313782", None, None, None),
        (2, "RXNORM/313782", 30, None, None),
        (3, "RXNORM/313782", 30, None, None),
    ]
    device = {"device_concept_id": 4, "device_exposure_start_date": "2020-01-01", "unit_concept_id": 8840}
    assert codes(made(tmp_path, "device_exposure", device | {"device_exposure_end_date": "2020-01-02"})) == [
        "OMOP/4",
        "DEVICE_END/OMOP/4",
    ]
    procedure = {"procedure_concept_id": 4, "procedure_date": "2020-01-01"}
    assert codes(made(tmp_path, "procedure_occurrence", procedure | {"procedure_end_date": "2020-01-02"})) == [
        "OMOP/4",
        "PROCEDURE_END/OMOP/4",
    ]


def test_notes_keep_their_text_and_their_class(tmp_path: Path) -> None:
    vocabulary(tmp_path / "cdm")
    text = 'Seen today.\n"Better", she says.'
    row = {"note_date": "2020-01-01", "note_datetime": "2020-01-01 10:00:00", "note_text": text}
    events = made(
        tmp_path,
        "note",
        row | {"note_class_concept_id": 32676, "note_title": "Mrs X"},
        row | {"note_class_concept_id": 0, "note_title": "Mrs X", "note_source_value": "Mrs X"},
    )
    assert [(event["code"], event["text_value"], event["time"]) for event in events] == [
        ("NOTE/LOINC/11488-4", text, datetime(2020, 1, 1, 10)),
        ("NOTE/OMOP_SOURCE/note/UNKNOWN", text, datetime(2020, 1, 1, 10)),
    ]


def test_periods_episodes_and_payers(tmp_path: Path) -> None:
    vocabulary(tmp_path / "cdm")
    period = {"observation_period_start_date": "2019-01-01", "observation_period_end_date": "2020-12-31"}
    assert [(value["code"], value["time"]) for value in made(tmp_path, "observation_period", period)] == [
        ("OBSERVATION_PERIOD_START", end_of("2019-01-01")),
        ("OBSERVATION_PERIOD_END", end_of("2020-12-31")),
    ]
    episode = {"episode_concept_id": 32531, "episode_object_concept_id": 201826, "episode_start_date": "2020-01-01"}
    events = made(tmp_path, "episode", episode | {"episode_end_date": "2020-06-01"}, episode)
    assert [
        (event["code"], event["available_time"], event["availability"], event["text_value"]) for event in events
    ] == [
        ("EPISODE_START/EPISODE/OMOP4822241", end_of("2020-06-01"), "recorded", "SNOMED/44054006"),
        ("EPISODE_END/EPISODE/OMOP4822241", end_of("2020-06-01"), "time", "SNOMED/44054006"),
        ("EPISODE_START/EPISODE/OMOP4822241", end_of("2020-01-01"), "time", "SNOMED/44054006"),
    ]
    plan = {"payer_plan_period_start_date": "2020-01-01", "payer_plan_period_end_date": "2020-12-31"}
    payers = made(tmp_path, "payer_plan_period", plan | {"payer_concept_id": 289}, plan | {"payer_source_value": "X"})
    assert codes(payers) == [
        "INSURANCE/SOPT/3",
        "INSURANCE_END/SOPT/3",
        "INSURANCE/OMOP_SOURCE/payer_plan_period/X",
        "INSURANCE_END/OMOP_SOURCE/payer_plan_period/X",
    ]


def test_person_ids_may_be_negative_and_of_64_bits(tmp_path: Path) -> None:
    ids = ["-9223372036854775808", "9223372036854775807", "-1", "0", "9223372036854775808", "PERSON_ID", "", "1.5"]
    row = CONDITION | {"condition_concept_id": 201826}
    account, events = account_and_events(
        tmp_path, "condition_occurrence", *(row | {"person_id": person} for person in ids)
    )
    assert [event["subject_id"] for event in events] == [-(2**63), 2**63 - 1, -1, 0]
    assert account["quarantined"] == {"bad_subject_id": 4}


def test_names_may_be_in_capitals(tmp_path: Path) -> None:
    vocabulary(tmp_path)
    (tmp_path / "concept.csv").rename(tmp_path / "CONCEPT.csv")
    upper = tmp_path / "CONDITION_OCCURRENCE.CSV.tmp"
    upper.write_text("PERSON_ID,CONDITION_CONCEPT_ID,CONDITION_START_DATE\n1,201826,2020-01-01\n")
    path = upper.rename(tmp_path / "CONDITION_OCCURRENCE.csv")
    events, _ = convert(tmp_path / "work", OMOP, "condition_occurrence", path)
    assert events["code"].to_list() == ["SNOMED/44054006"]


def test_a_column_that_the_model_requires_is_missed_by_name(tmp_path: Path) -> None:
    path = tmp_path / "condition_occurrence.csv"
    path.write_text("person_id,condition_concept_id\n1,201826\n")
    with pytest.raises(TimeloomError, match="condition_occurrence: lacks the column condition_start_date"):
        convert(tmp_path / "work", OMOP, "condition_occurrence", path)


def test_empty_tables_make_nothing(tmp_path: Path) -> None:
    for name, rule in OMOP.tables.items():
        if rule.role == "events":
            account, events = account_and_events(tmp_path, name)
            assert (account["raw"], events) == (0, []), name


def test_only_the_persons_are_required(tmp_path: Path) -> None:
    table(tmp_path, "person")
    assert set(Export(tmp_path, OMOP).mapped()) == {"person"}
    (tmp_path / "person.csv").unlink()
    with pytest.raises(TimeloomError, match="lacks the table person"):
        Export(tmp_path, OMOP).mapped()
