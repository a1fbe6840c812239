"""MIMIC-IV's mapping: every table and trap field by field on made-up rows, names and parents of codes, and leakage.

`fixtures/mimic_iv.yaml` holds rows of the published schema and the events that they must become; no row is of a real
patient, which tests/test_mimic.py is about.
"""

import csv
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from raw_tables import KEEP, convert, csv_text

from extractors.deid import SYNTHETIC_KEY, DeidConfig, Deidentifier
from extractors.source import SOURCES, Source, load_source
from flows.run import Run
from pipelines.config import parse_config
from pipelines.engine import LocalEngine
from warehouse.layout import Layout

FIXTURES = Path(__file__).parent / "fixtures"
COLUMNS: dict[str, str] = yaml.safe_load((FIXTURES / "mimic_columns.yaml").read_text(encoding="utf-8"))
EXAMPLES: dict[str, dict[str, list[dict[str, Any]]]] = yaml.safe_load(
    (FIXTURES / "mimic_iv.yaml").read_text(encoding="utf-8")
)
ROWS = {table: example["rows"] for table, example in EXAMPLES.items()}
STAY, DISCHARGE = 20000001, datetime(2150, 3, 5, 15)
EMERGENCY = Deidentifier(DeidConfig.model_validate(KEEP), SYNTHETIC_KEY).visit_ids(pl.Series(["ed-30000001"]))[0]
KNOWN_AT_DISCHARGE = ("hosp/diagnoses_icd", "hosp/procedures_icd", "hosp/drgcodes", "hosp/hcpcsevents")
CROSSWALKS = {
    "loinc": "itemid,loinc\n50912,2160-0\n221906,3-9\n220045,8867-4\n",
    "icd9_icd10cm": "icd9,icd10\n4019,I10\n401.9,I15.8\n80700,S2239XA\n",
    "icd9_icd10pcs": "icd9,icd10\n3893,02HV33Z\n",
    "ndc_rxnorm": "ndc,rxnorm,atc\n00338004904,9863,\n00904201560,1191,B01AC06\n00904201560,1191,N02BA01\n",
    "gsn_rxnorm": "gsn,rxnorm,atc\n004080,7052,N02AA01\n",
    "drug_rxnorm": (FIXTURES / "rxnorm_ingredients.csv").read_text(encoding="utf-8"),
}


def export(folder: Path, rows: dict[str, list[dict[str, Any]]], columns: dict[str, str] = COLUMNS) -> Path:
    """A download as PhysioNet lays it out; rows are of subject 1 and its stay, and numbered in their first column."""
    for table, header in columns.items():
        names = header.split()
        lines = [
            ({names[0]: number} if names[0].endswith("event_id") else {}) | {"subject_id": 1, "hadm_id": STAY} | row
            for number, row in enumerate(rows.get(table, []), 1)
        ]
        path = folder / f"{table}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(csv_text(names, [[line.get(name) for name in names] for line in lines]), encoding="utf-8")
    return folder


@dataclass(frozen=True)
class Release:
    """What a run published."""

    events: pl.DataFrame
    codes: dict[str, tuple[str | None, list[str] | None]]
    ledger: pl.DataFrame

    def table(self, name: str) -> list[dict[str, Any]]:
        """The events of a table, those in which nothing but the columns of an example is of interest."""
        own = self.events.filter(pl.col("source") == name)
        return own.select(
            pl.col("subject_id").alias("subject"), "time", "code", pl.col("available_time").alias("available"),
            "availability", pl.col("time_precision").alias("precision"), pl.col("numeric_value").alias("number"),
            pl.col("text_value").alias("text"), pl.col("value_flag").alias("flag"), "unit",
            pl.col("visit_id").alias("visit"), "kind", "conflict",
        ).to_dicts()  # fmt: skip


def released(work: Path, folder: Path, **crosswalks: str) -> Release:
    """A whole run over an export; crosswalks are the text of their files."""
    work.mkdir(parents=True, exist_ok=True)
    for name, text in crosswalks.items():
        (work / f"{name}.csv").write_text(text, encoding="utf-8")
    files = {name: f"{name}.csv" for name in crosswalks}
    raw = {
        "sources": [{"source": "mimic-iv", "path": str(folder), "crosswalks": files}],
        "deid": KEEP,
        "buckets": 1,
        "profiles": {"every": {"namespaces": None, "context": 64}},
    }
    with Run(parse_config(raw, work, "test"), work, Layout(work / "root"), LocalEngine(1)) as run:
        for name, step in run.steps:
            run.carry_out(name, step)
        run.outcome()
    current = work / "root" / "current"
    codes = pl.read_parquet(current / "metadata" / "codes.parquet")
    return Release(
        pl.read_parquet(current / "data" / "*.parquet"),
        {code: (description, parents) for code, description, parents in codes.iter_rows()},
        pl.read_parquet(current / "ledger.parquet"),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MIMIC-IV 3.1 and MIMIC-IV-ED 2.2, each table with the rows of its example."""
    return export(tmp_path_factory.mktemp("mimic") / "raw", ROWS)


@pytest.fixture(scope="module")
def release(folder: Path) -> Release:
    return released(folder.parent, folder, **CROSSWALKS)


def expected(event: dict[str, Any]) -> dict[str, Any]:
    """An example's event with everything that it leaves out."""
    standard = {
        "subject": 1, "available": event["time"], "availability": "recorded" if "available" in event else "time",
        "precision": "s", "number": None, "text": None, "flag": None, "unit": None, "visit": STAY, "kind": "clinical",
        "conflict": None,
    }  # fmt: skip
    whole = standard | event
    whole["visit"] = EMERGENCY if whole["visit"] == "ed" else whole["visit"]
    whole["number"] = None if whole["number"] is None else float(np.float32(whole["number"]))
    return whole


def in_order(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(
        ({key: event[key] for key in sorted(event)} for event in events), key=lambda one: [str(one[key]) for key in one]
    )


@pytest.mark.parametrize("table", [table for table, example in EXAMPLES.items() if "events" in example])
def test_rows_become_exactly_these_events(release: Release, table: str) -> None:
    assert in_order(release.table(table)) == in_order([expected(event) for event in EXAMPLES[table]["events"]])


def test_every_mapped_table_has_an_example() -> None:
    mapped = {name for name, rule in load_source("mimic-iv").tables.items() if rule.role == "events"}
    assert mapped == {table for table, example in EXAMPLES.items() if "events" in example}
    assert set(load_source("mimic-iv").tables) == {*COLUMNS, "demo_subject_id"}


def test_every_row_is_accounted_for(release: Release) -> None:
    """A set of vital signs without any is the only row that makes nothing."""
    rows = {(table, outcome, reason): number for table, outcome, reason, number, _ in release.ledger.iter_rows()}
    quarantined = {key: number for key, number in rows.items() if key[1] == "quarantined" and number}
    assert quarantined == {("ed/vitalsign", "quarantined", "no_rule_applies"): 1}
    for table in COLUMNS:
        outcomes = sum(rows.get((table, outcome, ""), 0) for outcome in ("events", "static", "reference"))
        lost = sum(number for key, number in quarantined.items() if key[0] == table)
        assert rows[table, "raw", ""] == len(ROWS.get(table, [])) == outcomes + lost, table


def test_the_pharmacy_join_does_not_fan_out(release: Release) -> None:
    starts = [one for one in release.table("hosp/prescriptions") if one["code"].startswith("PRESCRIPTION_START/")]
    assert len({one["pharmacy_id"] for one in ROWS["hosp/prescriptions"]}) == 1
    assert len(starts) == len(ROWS["hosp/prescriptions"]) == 3


def test_visits_of_the_emergency_department_are_no_admissions(release: Release) -> None:
    emergency = release.events.filter(pl.col("source").str.starts_with("ed/"))["visit_id"]
    assert emergency.unique().to_list() == [EMERGENCY]
    assert EMERGENCY not in (STAY, 30000001)


def test_dictionaries_describe_codes(release: Release) -> None:
    described = {code: release.codes[code][0] for code in release.codes}
    assert described["ICD10CM/C50911"] == "Malignant neoplasm of right breast"
    assert described["ICD9CM/4019"] == "Unspecified essential hypertension"
    assert described["ICD10PCS/02HV33Z"] == "Insertion into vena cava"
    assert described["HCPCS/99219"] == "Hospital observation"
    assert described["DRG/APR/720"] == "SEPTICEMIA"
    assert described["MIMIC_LAB/50912"] == "Creatinine (Blood, Chemistry)"
    assert described["INFUSION_START/221906"] == described["INFUSION_END/221906"] == "Norepinephrine (Medications)"
    assert described["MICROBIOLOGY_SPECIMEN/90039/70079"] == "URINE CULTURE of URINE"
    assert described["MICROBIOLOGY/90039/NO_ORGANISM"] == "URINE CULTURE: no organism"
    assert described["SUSCEPTIBILITY/80002/90004/R"] == "ESCHERICHIA COLI: AMPICILLIN R"
    assert described["HOME_MEDICATION_CLASS/00000574"] == "Salicylates"
    assert described["SERVICE/MED"] is None


@pytest.mark.parametrize(
    ("code", "parents"),
    [
        ("MIMIC_LAB/50912", ["LOINC/2160-0"]),
        ("CHART/220045", ["LOINC/8867-4"]),
        ("INFUSION_START/221906", None),
        # One ICD-9 code with several targets keeps them all, however they are written.
        ("ICD9CM/4019", ["ICD10CM/I10", "ICD10CM/I158"]),
        ("ICD10CM/C50911", None),
        ("PRESCRIPTION_START/BASE/NDC/00338004904", ["RXNORM/9863"]),
        ("HOME_MEDICATION/NDC/00904201560", ["ATC/B01AC06", "ATC/N02BA01", "RXNORM/1191"]),
        ("PRESCRIPTION_END/MAIN/DRUG/CISPLATIN", ["RXNORM/2555"]),
        ("EMAR/ADMINISTERED/CISPLATIN", ["RXNORM/2555"]),
        ("EMAR_DOSE/ADMINISTERED/CISPLATIN", ["RXNORM/2555"]),
        ("PHARMACY/CISPLATIN", ["RXNORM/2555"]),
        # Due is not given.
        ("EMAR_DUE/CISPLATIN", None),
        ("ED_DISPENSED_GSN/004080", ["ATC/N02AA01", "RXNORM/7052"]),
        ("ED_DISPENSED_GSN/004081", None),
    ],
)
def test_crosswalks_give_parents(release: Release, code: str, parents: list[str] | None) -> None:
    found = release.codes[code][1]
    assert (sorted(found) if found else None) == parents


def test_the_fixture_holds_the_57_verified_ingredients() -> None:
    with (FIXTURES / "rxnorm_ingredients.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["drug"] for row in rows}) == len({row["rxnorm"] for row in rows}) == len(rows) == 57
    assert {"CISPLATIN": "2555", "BORTEZOMIB": "358258"}.items() <= {row["drug"]: row["rxnorm"] for row in rows}.items()


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """MIMIC-IV 2.2 without crosswalks, chartevents and the emergency department."""
    columns = {table: names for table, names in COLUMNS.items() if not table.startswith("ed/")}
    del columns["icu/chartevents"]
    columns["icu/procedureevents"] = (
        columns["icu/procedureevents"].replace("originala", "ORIGINALA").replace("originalr", "ORIGINALR")
    )
    work = tmp_path_factory.mktemp("bare")
    return released(work, export(work / "raw", ROWS, columns))


def test_2_2_without_crosswalks_chart_and_emergency_department_makes_the_same_events(
    release: Release, bare: Release
) -> None:
    assert {parents for _, parents in bare.codes.values() if parents} == set()
    assert bare.codes["ICD9CM/4019"] == ("Unspecified essential hypertension", None)
    for table in (*KNOWN_AT_DISCHARGE, "hosp/labevents", "icu/procedureevents"):
        assert bare.table(table) == release.table(table)


def converted(work: Path, folder: Path, table: str, source: Source | None = None) -> pl.DataFrame:
    return convert(work, source or load_source("mimic-iv"), table, folder / f"{table}.csv", folder=folder)[0]


def test_loinc_of_a_release_that_has_it(tmp_path: Path) -> None:
    columns = {**COLUMNS, "hosp/d_labitems": f"{COLUMNS['hosp/d_labitems']} loinc_code"}
    items = [
        {"itemid": 50912, "label": "Creatinine", "fluid": "Blood", "category": "Chemistry", "loinc_code": "2160-0"}
    ]
    found = released(tmp_path, export(tmp_path / "raw", {**ROWS, "hosp/d_labitems": items}, columns))
    assert found.codes["MIMIC_LAB/50912"] == ("Creatinine (Blood, Chemistry)", ["LOINC/2160-0"])


def test_the_emergency_department_of_1_0_has_no_race_transport_or_disposition(tmp_path: Path) -> None:
    columns = {**COLUMNS, "ed/edstays": "subject_id hadm_id stay_id intime outtime"}
    made = converted(tmp_path, export(tmp_path / "raw", ROWS, columns), "ed/edstays")
    assert sorted(made["code"]) == ["ED_ADMISSION/UNKNOWN", "ED_DISCHARGE/UNKNOWN"]


def before_discharge(events: pl.DataFrame, discharged: dict[int, datetime]) -> int:
    """Facts of KNOWN_AT_DISCHARGE that could be read before their stay's discharge."""
    limits = pl.DataFrame({"visit_id": list(discharged), "limit": list(discharged.values())})
    known = events.filter(pl.col("source").is_in(KNOWN_AT_DISCHARGE))
    joined = known.join(limits, on="visit_id", how="left")
    assert joined["limit"].null_count() == 0
    return joined.filter(pl.col("available_time") < pl.col("limit")).height


def test_nothing_known_at_discharge_is_available_before_it(release: Release) -> None:
    assert release.events.filter(pl.col("source").is_in(KNOWN_AT_DISCHARGE)).height == 8
    assert before_discharge(release.events, {STAY: DISCHARGE}) == 0


def leaking(table: str) -> list[dict[str, Any]]:
    """Copies of a table's rule, each with one of its times swapped for an earlier one."""
    rule = yaml.safe_load((SOURCES / "mimic-iv.yaml").read_text(encoding="utf-8"))["tables"][table]
    at_admission = {**rule, "joins": [{**rule["joins"][0], "columns": {"dischtime": "admittime"}}]}
    if "chartdate" not in COLUMNS[table]:
        return [at_admission]
    at_chartdate = {**rule, "events": [{**event, "available": "chartdate"} for event in rule["events"]]}
    nothing = {**rule, "events": [{k: v for k, v in event.items() if k != "available"} for event in rule["events"]]}
    return [at_admission, at_chartdate, nothing]


@pytest.mark.parametrize(
    ("table", "mutation"), [(table, number) for table in KNOWN_AT_DISCHARGE for number in range(len(leaking(table)))]
)
def test_the_check_finds_a_swapped_availability(folder: Path, tmp_path: Path, table: str, mutation: int) -> None:
    raw = load_source("mimic-iv").model_dump()
    source = Source.model_validate(raw | {"tables": {**raw["tables"], table: leaking(table)[mutation]}})
    right, wrong = (
        converted(tmp_path / name, folder, table, one) for name, one in (("right", None), ("wrong", source))
    )
    assert before_discharge(right, {STAY: DISCHARGE}) == 0
    assert before_discharge(wrong, {STAY: DISCHARGE}) == len(wrong) > 0


def test_a_procedure_of_an_unknown_stay_is_not_known_at_once(tmp_path: Path) -> None:
    """Without a discharge, it is taken to be as late as others, never to be known on its day."""
    rows = [*ROWS["hosp/procedures_icd"], {**ROWS["hosp/procedures_icd"][0], "hadm_id": 29999999, "seq_num": 2}]
    found = released(tmp_path, export(tmp_path / "raw", {**ROWS, "hosp/procedures_icd": rows}))
    known, unknown = sorted(found.table("hosp/procedures_icd"), key=lambda one: one["visit"])
    assert (unknown["availability"], unknown["time"]) == ("estimated", known["time"])
    assert abs(unknown["available"] - known["available"]) < timedelta(minutes=5)
