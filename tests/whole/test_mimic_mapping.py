"""MIMIC-IV's mapping: every table and trap field by field on made-up rows, names and parents of codes, and leakage.

`fixtures/mimic_iv.yaml` holds rows of the published schema and the events that they must become; no row is of a real
patient, which tests/whole/test_mimic.py is about.
"""

import csv
import gzip
import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from extractors.deid import SYNTHETIC_KEY, DeidConfig, Deidentifier
from extractors.source import SOURCES, Source, load_source
from flows.runs.run import Run
from pipelines.config import parse_config
from pipelines.engine.local import LocalEngine
from tests.support.raw.raw_tables import KEEP, convert, csv_text
from warehouse.layout import Layout

FIXTURES = Path(__file__).parents[1] / "fixtures"
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
    """An export in PhysioNet's layout; rows belong to subject 1 and its stay, and the first column numbers them."""
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
        """The events of a table, with only the columns of an example."""
        events_of_table = self.events.filter(pl.col("source") == name)
        return events_of_table.select(
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
    """An example's event with all columns that it leaves out."""
    known = "recorded" if "available" in event else "time"
    standard = {
        "subject": 1, "available": event["time"], "availability": known if event["time"] else None,
        "precision": "s", "number": None, "text": None, "flag": None, "unit": None, "visit": STAY, "kind": "clinical",
        "conflict": None,
    }  # fmt: skip
    whole = standard | event
    whole["visit"] = EMERGENCY if whole["visit"] == "ed" else whole["visit"]
    whole["number"] = None if whole["number"] is None else float(np.float32(whole["number"]))
    return whole


def in_order(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(
        ({key: event[key] for key in sorted(event)} for event in events),
        key=lambda event: [str(event[key]) for key in event],
    )


@pytest.mark.parametrize("table", [table for table, example in EXAMPLES.items() if "events" in example])
def test_rows_become_exactly_these_events(release: Release, table: str) -> None:
    assert in_order(release.table(table)) == in_order([expected(event) for event in EXAMPLES[table]["events"]])


def test_every_mapped_table_has_an_example() -> None:
    mapped = {name for name, rule in load_source("mimic-iv").tables.items() if rule.role == "events"}
    assert mapped == {table for table, example in EXAMPLES.items() if "events" in example}
    assert set(load_source("mimic-iv").tables) == {*COLUMNS, "demo_subject_id"}


def test_every_row_is_accounted_for(release: Release) -> None:
    """A row of vital signs without any value is the only row without events."""
    rows = {(table, outcome, reason): number for table, outcome, reason, number, _ in release.ledger.iter_rows()}
    quarantined = {key: number for key, number in rows.items() if key[1] == "quarantined" and number}
    assert quarantined == {("ed/vitalsign", "quarantined", "no_rule_applies"): 1}
    for table in COLUMNS:
        outcomes = sum(rows.get((table, outcome, ""), 0) for outcome in ("events", "static", "reference"))
        lost = sum(number for key, number in quarantined.items() if key[0] == table)
        assert rows[table, "raw", ""] == len(ROWS.get(table, [])) == outcomes + lost, table


def test_the_pharmacy_join_does_not_fan_out(release: Release) -> None:
    starts = [event for event in release.table("hosp/prescriptions") if event["code"].startswith("PRESCRIPTION_START/")]
    assert len({row["pharmacy_id"] for row in ROWS["hosp/prescriptions"]}) == 1
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
        # A dose that is due is not a dose that was given.
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
def other(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """The forms of other exports: no crosswalks, chartevents and emergency department; LOINC in d_labitems; the
    capitals of 2.2."""
    columns = {table: names for table, names in COLUMNS.items() if not table.startswith("ed/")}
    del columns["icu/chartevents"]
    columns["hosp/d_labitems"] += " loinc_code"
    plain = "originalamount originalrate"
    columns["icu/procedureevents"] = columns["icu/procedureevents"].replace(plain, plain.upper())
    creatinine = {**ROWS["hosp/d_labitems"][0], "loinc_code": "2160-0"}
    work = tmp_path_factory.mktemp("other")
    return released(work, export(work / "raw", {**ROWS, "hosp/d_labitems": [creatinine]}, columns))


def test_an_export_of_another_shape_makes_the_same_events(release: Release, other: Release) -> None:
    assert "ORIGINALAMOUNT" not in COLUMNS["icu/procedureevents"]
    for table in (*KNOWN_AT_DISCHARGE, "hosp/labevents", "icu/procedureevents"):
        assert other.table(table) == release.table(table)


def test_without_crosswalks_only_the_export_itself_gives_parents(other: Release) -> None:
    parents = {code: parents for code, (_, parents) in other.codes.items() if parents}
    assert parents == {"MIMIC_LAB/50912": ["LOINC/2160-0"]}
    assert other.codes["MIMIC_LAB/50912"][0] == "Creatinine (Blood, Chemistry)"
    assert other.codes["ICD9CM/4019"] == ("Unspecified essential hypertension", None)


def converted(work: Path, folder: Path, table: str, source: Source | None = None) -> pl.DataFrame:
    return convert(work, source or load_source("mimic-iv"), table, folder / f"{table}.csv", folder=folder)[0]


def test_the_emergency_department_of_1_0_has_no_race_transport_or_disposition(tmp_path: Path) -> None:
    columns = {**COLUMNS, "ed/edstays": "subject_id hadm_id stay_id intime outtime"}
    made = converted(tmp_path, export(tmp_path / "raw", ROWS, columns), "ed/edstays")
    assert sorted(made["code"]) == ["ED_ADMISSION/UNKNOWN", "ED_DISCHARGE/UNKNOWN"]


def before_discharge(events: pl.DataFrame, discharged: dict[int, datetime]) -> int:
    """The number of facts of KNOWN_AT_DISCHARGE that are available before the discharge of their stay."""
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
        converted(tmp_path / name, folder, table, mapping) for name, mapping in (("right", None), ("wrong", source))
    )
    assert before_discharge(right, {STAY: DISCHARGE}) == 0
    assert before_discharge(wrong, {STAY: DISCHARGE}) == len(wrong) > 0


def test_what_was_coded_of_an_unknown_stay_is_quarantined(tmp_path: Path) -> None:
    """The discharge is unknown, so the fact must not be available on its own day."""
    rows = {table: [*ROWS[table], {**ROWS[table][0], "hadm_id": 29999999}] for table in KNOWN_AT_DISCHARGE}
    folder = export(tmp_path / "raw", {**ROWS, **rows})
    reasons = ("missing_time", "no_rule_applies", "missing_time", "no_rule_applies")
    for table, reason in zip(KNOWN_AT_DISCHARGE, reasons, strict=True):
        work = tmp_path / table
        made, account = convert(work, load_source("mimic-iv"), table, folder / f"{table}.csv", folder=folder)
        assert set(made["visit_id"]) == {STAY}
        assert {name: number for name, number in account["quarantined"].items() if number} == {reason: 1}


def real_rows(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def demo(real_data: Path) -> Path:
    folder = real_data / "mimic-iv-demo-2.2"
    if not folder.is_dir():
        pytest.skip("no mimic-iv-demo-2.2 in the real data")
    return folder


def of_demo(work: Path, demo: Path, table: str) -> tuple[pl.DataFrame, list[dict[str, str]]]:
    """A real table's events, and its rows as csv reads them."""
    path = demo / f"{table}.csv.gz"
    made, account = convert(work, load_source("mimic-iv"), table, path, folder=demo)
    assert sum(account["quarantined"].values()) == 0
    return made, real_rows(path)


def starting(events: pl.DataFrame, prefix: str) -> pl.DataFrame:
    return events.filter(pl.col("code").str.starts_with(prefix))


def test_of_real_laboratory_rows_each_answer_is_kept(demo: Path, tmp_path: Path) -> None:
    made, rows = of_demo(tmp_path, demo, "hosp/labevents")
    made = made.sort("row")
    assert made["row"].to_list() == list(range(1, len(rows) + 1))
    numbers, texts, flags = (made[name].to_list() for name in ("numeric_value", "text_value", "value_flag"))
    withheld = [place for place, row in enumerate(rows) if row["value"] == "___"]
    assert len(withheld) == 6_823
    assert all(numbers[place] is not None or texts[place] is not None for place in withheld if answer(rows[place]))
    numeric = [place for place, row in enumerate(rows) if row["valuenum"]]
    assert [numbers[place] for place in numeric] == [float(np.float32(rows[place]["valuenum"])) for place in numeric]
    bounds = {
        place: match.groups()
        for place, row in enumerate(rows)
        if not row["valuenum"] and (match := re.fullmatch(r"([<>]=?)\s*([\d.]+)", answer(row)))
    }
    assert len(bounds) > 400
    assert {place: flags[place] for place in bounds} == {place: sign for place, (sign, _) in bounds.items()}
    assert {place: numbers[place] for place in bounds} == {
        place: float(np.float32(bound)) for place, (_, bound) in bounds.items()
    }


def answer(row: dict[str, str]) -> str:
    """The result of a laboratory row, without the remark after it."""
    said = row["value"] if row["value"] != "___" else ""
    return (said or row["valuenum"] or ("" if row["comments"] == "___" else row["comments"].split(".  ")[0])).rstrip(
        ".* "
    )


def test_real_specimens_isolates_and_antibiotics_are_each_one_event(demo: Path, tmp_path: Path) -> None:
    made, rows = of_demo(tmp_path, demo, "hosp/microbiologyevents")
    specimens = {(row["micro_specimen_id"], row["test_itemid"]) for row in rows}
    isolates = {(row["micro_specimen_id"], row["test_itemid"], row["org_itemid"], row["isolate_num"]) for row in rows}
    assert starting(made, "MICROBIOLOGY_SPECIMEN/").height == len(specimens) == 1_893
    assert starting(made, "MICROBIOLOGY/").height == len(isolates) == 1_989
    tried = starting(made, "SUSCEPTIBILITY/")
    assert tried.height == sum(1 for row in rows if row["ab_itemid"]) == 1_036
    assert tried["numeric_value"].count() == sum(1 for row in rows if row["dilution_text"]) == 999


def test_real_prescriptions_and_blood_pressures(demo: Path, tmp_path: Path) -> None:
    made, rows = of_demo(tmp_path / "rx", demo, "hosp/prescriptions")
    starts = starting(made, "PRESCRIPTION_START/")
    assert starts.height == len(rows) == 18_087
    assert starts.filter(pl.col("code").str.contains("/DRUG/")).height == 2_631
    assert starts["numeric_value"].count() == sum(1 for row in rows if row["dose_val_rx"]) == 18_078
    made, rows = of_demo(tmp_path / "omr", demo, "hosp/omr")
    pressures = [row["result_value"].split("/") for row in rows if row["result_name"].startswith("Blood Pressure")]
    for part, name in enumerate(("SYSTOLIC", "DIASTOLIC")):
        found = made.filter(pl.col("code").str.ends_with(f"/{name}"))["numeric_value"]
        assert sorted(found) == sorted(float(pressure[part]) for pressure in pressures)
    assert made["text_value"].count() == 0


@pytest.mark.parametrize("table", KNOWN_AT_DISCHARGE)
def test_nothing_real_that_is_known_at_discharge_is_available_before_it(demo: Path, tmp_path: Path, table: str) -> None:
    stays = real_rows(demo / "hosp" / "admissions.csv.gz")
    discharged = {int(row["hadm_id"]): datetime.fromisoformat(row["dischtime"]) for row in stays}
    made, rows = of_demo(tmp_path, demo, table)
    assert made.height >= len(rows)
    assert before_discharge(made, discharged) == 0
