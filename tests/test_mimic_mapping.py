"""MIMIC-IV's mapping on rows made here from the published schema: every trap field by field, names, and leakage.

No row is of a real patient; tests/test_mimic.py is about real ones.
"""

import csv
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from raw_tables import csv_text

from extractors.deid import SYNTHETIC_KEY, DeidConfig, Deidentifier
from extractors.source import SOURCES, load_source
from flows.run import Run
from pipelines.config import parse_config
from pipelines.engine import LocalEngine
from warehouse.layout import Layout

FIXTURES = Path(__file__).parent / "fixtures"
IN, OUT, DAY = "2150-03-01 08:00:00", "2150-03-05 15:00:00", "2150-03-02"
STAY, EMERGENCY = 20000001, "ed-30000001"
LATE = ("hosp/diagnoses_icd", "hosp/procedures_icd", "hosp/drgcodes", "hosp/hcpcsevents")
KEPT = {"mode": "synthetic", "subject_ids": "keep", "dates": "keep"}
Row = dict[str, Any]

# Published columns of MIMIC-IV 2.2 to 3.1 and MIMIC-IV-ED 2.2, as in the files' headers.
COLUMNS = {
    "hosp/admissions": "subject_id hadm_id admittime dischtime deathtime admission_type admit_provider_id "
    "admission_location discharge_location insurance language marital_status race edregtime edouttime "
    "hospital_expire_flag",
    "hosp/d_hcpcs": "code category long_description short_description",
    "hosp/d_icd_diagnoses": "icd_code icd_version long_title",
    "hosp/d_icd_procedures": "icd_code icd_version long_title",
    "hosp/d_labitems": "itemid label fluid category",
    "hosp/diagnoses_icd": "subject_id hadm_id seq_num icd_code icd_version",
    "hosp/drgcodes": "subject_id hadm_id drg_type drg_code description drg_severity drg_mortality",
    "hosp/emar": "subject_id hadm_id emar_id emar_seq poe_id pharmacy_id enter_provider_id charttime medication "
    "event_txt scheduletime storetime",
    "hosp/emar_detail": "subject_id emar_id emar_seq parent_field_ordinal administration_type pharmacy_id barcode_type "
    "reason_for_no_barcode complete_dose_not_given dose_due dose_due_unit dose_given dose_given_unit "
    "will_remainder_of_dose_be_given product_amount_given product_unit product_code product_description "
    "product_description_other prior_infusion_rate infusion_rate infusion_rate_adjustment "
    "infusion_rate_adjustment_amount infusion_rate_unit route infusion_complete completion_interval new_iv_bag_hung "
    "continued_infusion_in_other_location restart_interval side site non_formulary_visual_verification",
    "hosp/hcpcsevents": "subject_id hadm_id chartdate hcpcs_cd seq_num short_description",
    "hosp/labevents": "labevent_id subject_id hadm_id specimen_id itemid order_provider_id charttime storetime value "
    "valuenum valueuom ref_range_lower ref_range_upper flag priority comments",
    "hosp/microbiologyevents": "microevent_id subject_id hadm_id micro_specimen_id order_provider_id chartdate "
    "charttime spec_itemid spec_type_desc test_seq storedate storetime test_itemid test_name org_itemid org_name "
    "isolate_num quantity ab_itemid ab_name dilution_text dilution_comparison dilution_value interpretation comments",
    "hosp/omr": "subject_id chartdate seq_num result_name result_value",
    "hosp/patients": "subject_id gender anchor_age anchor_year anchor_year_group dod",
    "hosp/pharmacy": "subject_id hadm_id pharmacy_id poe_id starttime stoptime medication proc_type status entertime "
    "verifiedtime route frequency disp_sched infusion_type sliding_scale lockout_interval basal_rate one_hr_max "
    "doses_per_24_hrs duration duration_interval expiration_value expiration_unit expirationdate dispensation "
    "fill_quantity",
    "hosp/poe": "poe_id poe_seq subject_id hadm_id ordertime order_type order_subtype transaction_type "
    "discontinue_of_poe_id discontinued_by_poe_id order_provider_id order_status",
    "hosp/poe_detail": "poe_id poe_seq subject_id field_name field_value",
    "hosp/prescriptions": "subject_id hadm_id pharmacy_id poe_id poe_seq order_provider_id starttime stoptime drug_type "
    "drug formulary_drug_cd gsn ndc prod_strength form_rx dose_val_rx dose_unit_rx form_val_disp form_unit_disp "
    "doses_per_24_hrs route",
    "hosp/procedures_icd": "subject_id hadm_id seq_num chartdate icd_code icd_version",
    "hosp/provider": "provider_id",
    "hosp/services": "subject_id hadm_id transfertime prev_service curr_service",
    "hosp/transfers": "subject_id hadm_id transfer_id eventtype careunit intime outtime",
    "icu/caregiver": "caregiver_id",
    "icu/chartevents": "subject_id hadm_id stay_id caregiver_id charttime storetime itemid value valuenum valueuom "
    "warning",
    "icu/d_items": "itemid label abbreviation linksto category unitname param_type lownormalvalue highnormalvalue",
    "icu/datetimeevents": "subject_id hadm_id stay_id caregiver_id charttime storetime itemid value valueuom warning",
    "icu/icustays": "subject_id hadm_id stay_id first_careunit last_careunit intime outtime los",
    "icu/ingredientevents": "subject_id hadm_id stay_id caregiver_id starttime endtime storetime itemid amount "
    "amountuom rate rateuom orderid linkorderid statusdescription originalamount originalrate",
    "icu/inputevents": "subject_id hadm_id stay_id caregiver_id starttime endtime storetime itemid amount amountuom "
    "rate rateuom orderid linkorderid ordercategoryname secondaryordercategoryname ordercomponenttypedescription "
    "ordercategorydescription patientweight totalamount totalamountuom isopenbag continueinnextdept statusdescription "
    "originalamount originalrate",
    "icu/outputevents": "subject_id hadm_id stay_id caregiver_id charttime storetime itemid value valueuom",
    "icu/procedureevents": "subject_id hadm_id stay_id caregiver_id starttime endtime storetime itemid value valueuom "
    "location locationcategory orderid linkorderid ordercategoryname ordercategorydescription patientweight isopenbag "
    "continueinnextdept statusdescription originalamount originalrate",
    "ed/edstays": "subject_id hadm_id stay_id intime outtime gender race arrival_transport disposition",
    "ed/diagnosis": "subject_id stay_id seq_num icd_code icd_version icd_title",
    "ed/medrecon": "subject_id stay_id charttime name gsn ndc etc_rn etccode etcdescription",
    "ed/pyxis": "subject_id stay_id charttime med_rn name gsn_rn gsn",
    "ed/triage": "subject_id stay_id temperature heartrate resprate o2sat sbp dbp pain acuity chiefcomplaint",
    "ed/vitalsign": "subject_id stay_id charttime temperature heartrate resprate o2sat sbp dbp rhythm pain",
}


def at(hour: str, day: str = DAY) -> str:
    return f"{day} {hour}:00"


MICRO: Row = {
    "micro_specimen_id": 7, "chartdate": at("00:00"), "charttime": at("10:00"), "spec_itemid": 70012,
    "spec_type_desc": "BLOOD CULTURE", "test_seq": 1, "storedate": at("00:00", "2150-03-04"),
    "storetime": at("10:00", "2150-03-04"), "test_itemid": 90201, "test_name": "Blood Culture, Routine",
}  # fmt: skip
COLI: Row = {"org_itemid": 80002, "org_name": "ESCHERICHIA COLI", "isolate_num": 1}
INFUSION: Row = {"itemid": 221906, "starttime": at("10:00"), "endtime": at("12:00"), "statusdescription": "Stopped"}
EMERGENCY_ROW: Row = {"hadm_id": None, "stay_id": 30000001}
ORDERED: Row = {"pharmacy_id": 5, "starttime": at("08:00"), "stoptime": at("20:00"), "dose_unit_rx": "mg"}

# Of subject 1 and its stay, unless a row says otherwise.
ROWS: dict[str, list[Row]] = {
    "hosp/patients": [
        {"gender": "F", "anchor_age": 60, "anchor_year": 2150, "anchor_year_group": "2014 - 2016"},
        {"subject_id": 2, "gender": "M", "anchor_age": 91, "anchor_year": 2150},
        {"subject_id": 3, "gender": "M", "anchor_age": 50, "anchor_year": 2150, "dod": "2150-03-05"},
        {"subject_id": 4, "gender": "F", "anchor_age": 40, "anchor_year": 2150, "dod": "2150-06-01"},
    ],
    "hosp/admissions": [
        {"admittime": IN, "dischtime": OUT, "admission_type": "EW EMER.", "admission_location": "EMERGENCY ROOM",
         "discharge_location": "HOME", "insurance": "Medicare", "language": "English", "race": "WHITE",
         "edregtime": at("05:00", "2150-03-01"), "edouttime": at("08:30", "2150-03-01")},
        {"subject_id": 3, "hadm_id": 20000003, "admittime": IN, "dischtime": OUT, "admission_type": "URGENT",
         "deathtime": at("14:30", "2150-03-05"), "discharge_location": "DIED", "hospital_expire_flag": 1},
    ],
    "hosp/transfers": [
        {"transfer_id": 1, "eventtype": "admit", "careunit": "Medicine", "intime": IN, "outtime": OUT},
        {"transfer_id": 2, "eventtype": "discharge", "intime": OUT},
    ],
    "hosp/services": [{"transfertime": IN, "curr_service": "MED"}],
    "hosp/diagnoses_icd": [
        {"seq_num": 1, "icd_code": "C50.911 ", "icd_version": 10},
        {"seq_num": 2, "icd_code": "4019", "icd_version": 9},
    ],
    "hosp/procedures_icd": [{"seq_num": 1, "chartdate": DAY, "icd_code": "02HV33Z", "icd_version": 10}],
    "hosp/drgcodes": [
        {"drg_type": "APR", "drg_code": "720", "description": "SEPTICEMIA", "drg_severity": 3, "drg_mortality": 4},
        {"drg_type": "HCFA", "drg_code": "871", "description": "SEPTICEMIA W MCC"},
    ],
    "hosp/hcpcsevents": [{"seq_num": 1, "chartdate": DAY, "hcpcs_cd": "99219", "short_description": "Observation"}],
    "hosp/labevents": [
        {"itemid": 50912, "charttime": at("08:00"), "storetime": at("09:00"), "value": "1.2", "valuenum": "1.2",
         "valueuom": "mg/dL", "comments": "VERIFIED."},
        {"itemid": 50912, "charttime": at("10:00"), "value": "0.9", "valuenum": "0.9", "valueuom": "mg/dL"},
        {"itemid": 50931, "charttime": at("08:00"), "storetime": at("09:00"), "value": "___", "valuenum": "95"},
        {"itemid": 51514, "charttime": at("08:00"), "storetime": at("09:00"), "value": "___", "comments": "NEG."},
        {"itemid": 51003, "charttime": at("08:00"), "storetime": at("09:00"), "comments": "<0.01."},
        {"itemid": 50889, "charttime": at("08:00"), "storetime": at("09:00"), "value": ">300", "valueuom": "mg/L"},
        {"itemid": 51516, "charttime": at("08:00"), "storetime": at("09:00"), "value": "3-5", "comments": "___"},
        {"itemid": 51009, "charttime": at("08:00"), "storetime": at("09:00"), "hadm_id": None, "value": "___"},
    ],
    "hosp/microbiologyevents": [
        MICRO | COLI | {"ab_itemid": 90004, "ab_name": "AMPICILLIN", "dilution_text": "=>32",
                        "dilution_comparison": "=>        ", "dilution_value": 32, "interpretation": "R",
                        "comments": "FINAL."},
        MICRO | COLI | {"ab_itemid": 90012, "ab_name": "GENTAMICIN", "dilution_text": "<=1",
                        "dilution_comparison": "<=        ", "dilution_value": 1, "interpretation": "S",
                        "comments": "FINAL."},
        MICRO | {"micro_specimen_id": 8, "spec_itemid": 70079, "spec_type_desc": "URINE", "test_itemid": 90039,
                 "test_name": "URINE CULTURE", "charttime": None, "storetime": None, "storedate": None,
                 "comments": "NO GROWTH.  "},
    ],
    "hosp/omr": [
        {"chartdate": DAY, "seq_num": 1, "result_name": "Blood Pressure", "result_value": "111/65"},
        {"chartdate": DAY, "seq_num": 1, "result_name": "Weight (Lbs)", "result_value": "150.5"},
        {"chartdate": DAY, "seq_num": 2, "result_name": "Blood Pressure", "result_value": "refused"},
    ],
    "hosp/pharmacy": [
        {"pharmacy_id": 5, "starttime": at("08:00"), "stoptime": at("20:00"), "medication": "Cisplatin",
         "status": "Expired", "entertime": at("09:00"), "route": "IV", "frequency": "ONCE"},
    ],
    "hosp/prescriptions": [
        ORDERED | {"drug_type": "MAIN", "drug": "CISplatin ", "ndc": "0", "dose_val_rx": "1,500"},
        ORDERED | {"drug_type": "BASE", "drug": "0.9% Sodium Chloride", "ndc": "00338004904", "dose_val_rx": "1-2"},
        ORDERED | {"drug_type": "ADDITIVE", "drug": "Magnesium Sulfate", "dose_val_rx": "4"},
    ],
    "hosp/poe": [{"poe_id": "1-1", "ordertime": at("09:00"), "order_type": "ADT orders", "order_subtype": "Admit",
                  "transaction_type": "D/C", "order_status": "Inactive"}],
    "hosp/poe_detail": [{"poe_id": "1-1", "field_name": "Code status", "field_value": "Resuscitate (Full code)"}],
    "hosp/emar": [
        {"emar_id": "1-1", "charttime": at("10:00"), "storetime": at("10:20"), "medication": "Cisplatin",
         "event_txt": "Administered", "scheduletime": at("10:00")},
        {"emar_id": "1-2", "charttime": at("11:00"), "storetime": at("10:50"), "event_txt": "Not Given"},
    ],
    "hosp/emar_detail": [
        {"emar_id": "1-1", "administration_type": "IV Infusion", "dose_due": "50-100", "dose_due_unit": "mg",
         "infusion_rate": "25", "infusion_rate_unit": "mL/hr", "infusion_rate_adjustment": "Initial Rate"},
        {"emar_id": "1-1", "parent_field_ordinal": "1.1", "dose_given": "75", "dose_given_unit": "MG",
         "product_code": "CISP100", "product_description": "Cisplatin 100mg Vial"},
        {"emar_id": "1-2", "parent_field_ordinal": "1.1", "dose_given": "5", "product_description": "Aspirin 5"},
    ],
    "icu/icustays": [{"stay_id": 30000009, "first_careunit": "MICU", "last_careunit": "SICU",
                      "intime": at("06:00"), "outtime": at("20:00"), "los": "0.58"}],
    "icu/chartevents": [
        {"itemid": 220045, "charttime": at("08:00"), "storetime": at("08:10"), "value": "88", "valuenum": "88",
         "valueuom": "bpm"},
        {"itemid": 220739, "charttime": at("08:00"), "storetime": at("08:10"), "value": "Spontaneously",
         "valuenum": "4"},
        {"itemid": 224054, "charttime": at("09:00"), "value": "No Impairment"},
    ],
    "icu/datetimeevents": [{"itemid": 224288, "charttime": at("08:00"), "storetime": at("08:05"),
                            "value": "2150-02-27 00:00:00", "valueuom": "Date"}],
    "icu/inputevents": [
        INFUSION | {"storetime": at("12:30"), "rate": "0.1", "rateuom": "mcg/kg/min", "amount": "8", "amountuom": "mg"},
        INFUSION | {"starttime": at("14:00"), "endtime": at("14:01"), "storetime": at("13:00"), "amount": "250",
                    "amountuom": "ml", "statusdescription": "FinishedRunning"},
    ],
    "icu/ingredientevents": [INFUSION | {"itemid": 220490, "storetime": at("12:30"), "rate": "50",
                                         "rateuom": "mL/hour", "amount": "100", "amountuom": "ml"}],
    "icu/outputevents": [{"itemid": 226559, "charttime": at("08:00"), "storetime": at("08:30"), "value": "175",
                          "valueuom": "ml"}],
    "icu/procedureevents": [{"itemid": 225792, "starttime": at("08:00"), "endtime": at("10:00"), "value": "120",
                             "storetime": "2150-03-02 10:00:06.517", "valueuom": "min", "location": "Right IJ",
                             "statusdescription": "FinishedRunning"}],
    "ed/edstays": [EMERGENCY_ROW | {"intime": at("02:00"), "outtime": at("06:00"), "race": "ASIAN", "gender": "F",
                                    "arrival_transport": "AMBULANCE", "disposition": "HOME"}],
    "ed/diagnosis": [EMERGENCY_ROW | {"seq_num": 1, "icd_code": "R0789", "icd_version": 10, "icd_title": "PAIN"}],
    "ed/triage": [EMERGENCY_ROW | {"temperature": "98.6", "heartrate": "80.0", "sbp": "120", "dbp": "70",
                                   "pain": "uta", "acuity": "2.0", "chiefcomplaint": "CHEST PAIN"}],
    "ed/vitalsign": [
        EMERGENCY_ROW | {"charttime": at("03:00"), "resprate": "18", "o2sat": "97", "rhythm": "Sinus Rhythm",
                         "pain": "3"},
        EMERGENCY_ROW | {"charttime": at("04:00")},
    ],
    "ed/medrecon": [
        EMERGENCY_ROW | {"charttime": at("02:10"), "name": "aspirin", "gsn": "004380", "ndc": "00904201560",
                         "etc_rn": 1, "etccode": "00000574", "etcdescription": "Salicylates"},
        EMERGENCY_ROW | {"charttime": at("02:10"), "name": "aspirin", "gsn": "004380", "ndc": "00904201560",
                         "etc_rn": 2, "etccode": "00000575", "etcdescription": "Platelet inhibitors"},
        EMERGENCY_ROW | {"charttime": at("02:10"), "name": "garlic", "ndc": "0", "etc_rn": 1},
    ],
    "ed/pyxis": [
        EMERGENCY_ROW | {"charttime": at("02:30"), "med_rn": 1, "name": "Morphine", "gsn_rn": 1, "gsn": "004080"},
        EMERGENCY_ROW | {"charttime": at("02:30"), "med_rn": 1, "name": "Morphine", "gsn_rn": 2, "gsn": "004081"},
    ],
    "hosp/d_labitems": [{"itemid": 50912, "label": "Creatinine", "fluid": "Blood", "category": "Chemistry"}],
    "icu/d_items": [{"itemid": 221906, "label": "Norepinephrine", "category": "Medications"}],
    "hosp/d_icd_diagnoses": [
        {"icd_code": "C50911", "icd_version": 10, "long_title": "Malignant neoplasm of right breast"},
        {"icd_code": "4019", "icd_version": 9, "long_title": "Unspecified essential hypertension"},
    ],
    "hosp/d_icd_procedures": [{"icd_code": "02HV33Z", "icd_version": 10, "long_title": "Insertion into vena cava"}],
    "hosp/d_hcpcs": [{"code": "99219", "short_description": "Hospital observation"}],
    "hosp/provider": [{"provider_id": "P00001"}],
}  # fmt: skip


def export(folder: Path, rows: dict[str, list[Row]], columns: dict[str, str] = COLUMNS) -> Path:
    """A download as PhysioNet lays it out, of these rows; a table without rows has its header alone."""
    for table, header in columns.items():
        path = folder / f"{table}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        names, default = header.split(), {"subject_id": 1, "hadm_id": STAY}
        numbered = enumerate(rows.get(table, []), 1)
        lines = [{names[0]: number} | default | row if names[0].endswith("event_id") else default | row
                 for number, row in numbered]  # fmt: skip
        path.write_text(csv_text(names, [[line.get(name) for name in names] for line in lines]))
    return folder


@dataclass(frozen=True)
class Release:
    """What a run published."""

    events: pl.DataFrame
    codes: pl.DataFrame
    ledger: pl.DataFrame

    def of(self, table: str) -> pl.DataFrame:
        return self.events.filter(pl.col("source") == table)

    def parents(self, code: str) -> list[str] | None:
        found = self.codes.filter(pl.col("code") == code)["parent_codes"].to_list()
        assert len(found) == 1, code
        return sorted(found[0]) if found[0] else None

    def description(self, code: str) -> str | None:
        return dict(self.codes.select("code", "description").iter_rows())[code]


def released(work: Path, folder: Path, source: str = "mimic-iv", **crosswalks: str) -> Release:
    """A whole run; crosswalks are the text of their files."""
    work.mkdir(parents=True, exist_ok=True)
    for name, text in crosswalks.items():
        (work / f"{name}.csv").write_text(text)
    raw = {
        "sources": [{"source": source, "path": str(folder), "crosswalks": {one: f"{one}.csv" for one in crosswalks}}],
        "deid": KEPT,
        "buckets": 1,
        "profiles": {"every": {"namespaces": None, "context": 64}},
    }
    with Run(parse_config(raw, work, "test"), work, Layout(work / "root"), LocalEngine(1)) as run:
        for name, step in run.steps:
            run.carry_out(name, step)
        run.outcome()
    current = work / "root" / "current"
    return Release(
        pl.read_parquet(current / "data" / "*.parquet"),
        pl.read_parquet(current / "metadata" / "codes.parquet"),
        pl.read_parquet(current / "ledger.parquet"),
    )
