"""The MIMIC-IV demo's events computed a second time, row by row, with the standard library alone.

Written from docs/sources/mimic-iv.md, docs/sources.md and MIMIC's own documentation, for tests to compare with. It has
no code in common with the packages, and is slow and simple on purpose.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import NamedTuple

from tests.support.raw.mimic_raw import NOTHING, SPELT, Moment, Raw, Row, Value, day, moment, read_value, tidy, upper


class Event(NamedTuple):
    """One event, in the columns of a release."""

    subject_id: int
    time: datetime | None
    code: str
    numeric_value: float | None
    text_value: str | None
    available_time: datetime | None
    time_precision: str | None
    kind: str
    unit: str | None
    source: str
    visit_id: int | None
    item_key: str | None
    availability: str | None
    value_flag: str | None


class Draft(NamedTuple):
    """The content of a row, before the usual lag of its code is known.

    `known` is the value of the row's column of availability; if that is empty, `awaits` says that the lag of the
    code's other rows is used.
    """

    subject: int
    code: str
    time: datetime | None
    precision: str | None
    known: datetime | None
    awaits: bool
    number: float | None
    text: str | None
    flag: str | None
    unit: str | None
    kind: str
    visit: int | None


class Demo(Raw):
    """The facts of the tables of a folder."""

    def drafts(self, table: str, subjects: set[int] | None = None) -> Iterator[Draft]:
        make = TABLES[table]
        for row in self.rows(table):
            if subjects is None or int(str(row["subject_id"])) in subjects:
                yield from (draft for draft in make(self, row) if draft is not None)

    def lags(self, table: str) -> dict[str, tuple[int, int]]:
        """By code, and for the whole table under the empty code: the 95th percentile of how much later than its time a
        fact was recorded, in microseconds and whole steps of 5 minutes, at most two weeks; and of how many rows."""
        steps: dict[str, Counter[int]] = defaultdict(Counter)
        for draft in self.drafts(table):
            if draft.awaits and draft.known is not None and draft.time is not None and draft.precision != "day":
                late = max(draft.known - draft.time, timedelta(0)) // timedelta(microseconds=1)
                step = min(-(-late // 300_000_000), 14 * 24 * 12)
                steps[draft.code][step] += 1
                steps[""][step] += 1
        found = {}
        for code, counted in steps.items():
            rows, below = sum(counted.values()), 0
            for step in sorted(counted):
                below += counted[step]
                if below * 100 >= rows * 95:
                    found[code] = (step * 300_000_000, rows)
                    break
        return {code: entry for code, entry in found.items() if code == "" or entry[1] >= 100}

    def events(self, table: str, subjects: set[int] | None = None) -> Iterator[Event]:
        """The table's events of some subjects."""
        lags: dict[str, tuple[int, int]] | None = None
        for draft in self.drafts(table, subjects):
            # A static fact needs no time of availability.
            available, how = draft.time, None if draft.time is None else "time"
            if draft.known is not None and draft.time is not None:
                available, how = max(draft.known, draft.time), "recorded"
            elif draft.awaits and draft.time is not None:
                lags = self.lags(table) if lags is None else lags
                lag = lags.get(draft.code, lags.get(""))
                if lag is not None:
                    available, how = draft.time + timedelta(microseconds=lag[0]), "estimated"
            yield Event(
                draft.subject, draft.time, draft.code, draft.number, draft.text, available, draft.precision, draft.kind,
                draft.unit, table, draft.visit, None, how, draft.flag,
            )  # fmt: skip


def fact(
    row: Row,
    code: str | None,
    when: Moment | None,
    *,
    known: Moment | None = None,
    awaits: bool = False,
    value: Value = NOTHING,
    text: str | None = None,
    unit: str | None = None,
    kind: str = "clinical",
    visit: str | None = None,
) -> Draft | None:
    """A fact with a time, if both its code and its time are there."""
    if code is None or when is None:
        return None
    tidied = tidy(text)
    if value.text is not None and tidied is not None and value.text != tidied:
        tidied = f"{value.text}; {tidied}"
    stay = visit if visit is not None else row.get("hadm_id")
    spelt = tidy(unit)
    return Draft(
        int(str(row["subject_id"])), code, when.time, when.precision, known.time if known else None, awaits,
        value.number, tidied or value.text, value.flag, SPELT.get(spelt, spelt) if spelt else None, kind,
        int(stay) if stay else None,
    )  # fmt: skip


Drafts = Iterator[Draft | None]


def patients(demo: Demo, row: Row) -> Drafts:
    subject = int(str(row["subject_id"]))
    yield Draft(subject, f"DEMO/SEX/{upper(row['gender'])}", None, None, None, False, *[None] * 4, "clinical", None)
    born = datetime(int(str(row["anchor_year"])) - int(str(row["anchor_age"])), 1, 1)
    yield fact(row, "MEDS_BIRTH", Moment(born, "year"))
    stays = demo.found("hosp/admissions", "subject_id", row["subject_id"])
    deaths = sorted(stay["deathtime"] for stay in stays if stay["deathtime"])
    yield fact(row, "MEDS_DEATH", moment(deaths[0]) if deaths else day(row["dod"]), kind="death")


def admissions(demo: Demo, row: Row) -> Drafts:
    start, end = moment(row["admittime"]), moment(row["dischtime"])
    kind, place = upper(row["admission_type"], "UNKNOWN"), upper(row["admission_location"], "UNKNOWN")
    yield fact(row, f"HOSPITAL_ADMISSION/{kind}/{place}", start, kind="visit_start")
    for column, name in {"race": "DEMO/ETHNICITY", "insurance": "INSURANCE", "language": "LANGUAGE"}.items():
        yield fact(row, f"{name}/{upper(row[column])}" if row[column] else None, start)
    yield fact(row, f"MARITAL_STATUS/{upper(row['marital_status'])}" if row["marital_status"] else None, start)
    yield fact(row, "ED_REGISTRATION", moment(row["edregtime"]))
    yield fact(row, "ED_OUT", moment(row["edouttime"]))
    yield fact(row, f"HOSPITAL_DISCHARGE/{upper(row['discharge_location'], 'UNKNOWN')}", end, kind="visit_end")


def transfers(demo: Demo, row: Row) -> Drafts:
    what = f"{upper(row['eventtype'], 'UNKNOWN')}/{upper(row['careunit'], 'UNKNOWN')}"
    yield fact(row, f"TRANSFER/{what}", moment(row["intime"]))
    yield fact(row, f"TRANSFER_END/{what}", moment(row["outtime"]))


def services(demo: Demo, row: Row) -> Drafts:
    yield fact(row, f"SERVICE/{upper(row['curr_service'])}", moment(row["transfertime"]))


def discharged(demo: Demo, row: Row) -> Moment | None:
    stays = demo.found("hosp/admissions", "hadm_id", row["hadm_id"])
    return moment(stays[0]["dischtime"]) if stays else None


def icd(row: Row, kind: str) -> str:
    return f"ICD{row['icd_version']}{kind}/{str(upper(row['icd_code'])).replace('.', '').replace(' ', '')}"


def diagnoses(demo: Demo, row: Row) -> Drafts:
    yield fact(row, icd(row, "CM"), discharged(demo, row), value=read_value(row["seq_num"]))


def procedures(demo: Demo, row: Row) -> Drafts:
    code, end = icd(row, "PCS"), discharged(demo, row)
    yield fact(row, code, day(row["chartdate"]), known=end, value=read_value(row["seq_num"])) if end else None


def drgcodes(demo: Demo, row: Row) -> Drafts:
    end, kind = discharged(demo, row), upper(row["drg_type"])
    yield fact(row, f"DRG/{kind}/{upper(row['drg_code'])}", end)
    for column, name in {"drg_severity": "DRG_SEVERITY", "drg_mortality": "DRG_MORTALITY"}.items():
        yield fact(row, f"{name}/{kind}", end, value=read_value(row[column])) if row[column] else None


def hcpcsevents(demo: Demo, row: Row) -> Drafts:
    code, end = f"HCPCS/{upper(row['hcpcs_cd'])}", discharged(demo, row)
    yield fact(row, code, day(row["chartdate"]), known=end, value=read_value(row["seq_num"])) if end else None


def labevents(demo: Demo, row: Row) -> Drafts:
    comments, remarks = row["comments"], []
    if row["valuenum"] is not None or row["value"] is not None:
        value = read_value(row["valuenum"] if row["valuenum"] is not None else row["value"])
        said = read_value(row["value"])
        if row["valuenum"] is not None and said != value:
            remarks.append(row["value"])
        remarks.append(comments)
    else:
        # The comments begin with the answer, which ends with a full stop and two blanks; a star means abnormal.
        value = read_value(comments.split(".  ")[0].rstrip(".* ") if comments else None)
        remarks.append(comments if comments and ".  " in comments else None)
    yield fact(
        row, f"MIMIC_LAB/{row['itemid']}", moment(row["charttime"]), known=moment(row["storetime"]), awaits=True,
        value=value, text="; ".join(remark for remark in remarks if remark), unit=row["valueuom"],
    )  # fmt: skip


def microbiologyevents(demo: Demo, row: Row) -> Drafts:
    when = moment(row["charttime"]) or day(row["chartdate"])
    known = moment(row["storetime"]) or day(row["storedate"])
    test, organism = row["test_itemid"] or "UNKNOWN", row["org_itemid"]
    if demo.is_first(row, "micro_specimen_id", "test_itemid"):
        yield fact(row, f"MICROBIOLOGY_SPECIMEN/{test}/{row['spec_itemid']}", when)
    if demo.is_first(row, "micro_specimen_id", "test_itemid", "org_itemid", "isolate_num"):
        code = f"MICROBIOLOGY/{test}/{organism or 'NO_ORGANISM'}"
        yield fact(row, code, when, known=known, awaits=True, text=row["comments"])
    if row["ab_itemid"]:
        code = f"SUSCEPTIBILITY/{organism or 'UNKNOWN'}/{row['ab_itemid']}/{upper(row['interpretation'], 'UNKNOWN')}"
        # MIMIC writes `=>16` for "16 or more".
        dilution = row["dilution_text"].replace("=>", ">=") if row["dilution_text"] else None
        yield fact(row, code, when, known=known, awaits=True, value=read_value(dilution))


def omr(demo: Demo, row: Row) -> Drafts:
    name, result, when = str(row["result_name"]), str(row["result_value"]), day(row["chartdate"])
    units = {"Blood Pressure": "mmHg", "Weight": "lb", "Height": "in", "BMI": "kg/m2"}
    unit = next((unit for start, unit in units.items() if name.startswith(start)), None)
    pressure = re.fullmatch(r"(\d+)/(\d+)", result) if name.startswith("Blood Pressure") else None
    if pressure:
        for part, side in enumerate(("SYSTOLIC", "DIASTOLIC"), 1):
            yield fact(row, f"OMR/{upper(name)}/{side}", when, value=read_value(pressure[part]), unit=unit)
    else:
        yield fact(row, f"OMR/{upper(name)}", when, value=read_value(result), unit=unit)


def prescriptions(demo: Demo, row: Row) -> Drafts:
    ndc = tidy(row["ndc"])
    product = f"DRUG/{upper(row['drug'])}" if ndc is None or set(ndc) == {"0"} else f"NDC/{ndc}"
    entered = [entry["entertime"] for entry in demo.found("hosp/pharmacy", "pharmacy_id", row["pharmacy_id"])]
    known = moment(max((time for time in entered if time), default=None))
    code = f"{upper(row['drug_type'], 'UNKNOWN')}/{product}"
    dose = read_value(row["dose_val_rx"].replace(",", "") if row["dose_val_rx"] else None)
    start, stop = moment(row["starttime"]), moment(row["stoptime"])
    yield fact(
        row, f"PRESCRIPTION_START/{code}", start, known=known, awaits=True, value=dose, text=row["drug"],
        unit=row["dose_unit_rx"],
    )  # fmt: skip
    yield fact(row, f"PRESCRIPTION_END/{code}", stop, known=known, awaits=True)


def pharmacy(demo: Demo, row: Row) -> Drafts:
    name, entered = upper(row["medication"], "UNKNOWN"), moment(row["entertime"])
    directions = " ".join(part for part in (row["route"], row["frequency"]) if part)
    yield fact(row, f"PHARMACY/{name}", moment(row["starttime"]) or entered, known=entered, text=directions)
    yield fact(row, f"PHARMACY_END/{name}", moment(row["stoptime"]), known=entered, text=row["status"])


def poe(demo: Demo, row: Row) -> Drafts:
    order = f"{upper(row['transaction_type'], 'UNKNOWN')}/{upper(row['order_type'])}"
    yield fact(row, f"ORDER/{order}/{upper(row['order_subtype'], 'NONE')}", moment(row["ordertime"]))


def poe_detail(demo: Demo, row: Row) -> Drafts:
    for order in demo.found("hosp/poe", "poe_id", row["poe_id"])[:1]:
        code, when = f"ORDER_DETAIL/{upper(row['field_name'])}", moment(order["ordertime"])
        yield fact(row, code, when, text=row["field_value"], visit=order["hadm_id"])


def emar(demo: Demo, row: Row) -> Drafts:
    code = f"EMAR/{upper(row['event_txt'], 'UNKNOWN')}/{upper(row['medication'], 'UNKNOWN')}"
    yield fact(row, code, moment(row["charttime"]), known=moment(row["storetime"]), awaits=True)


def emar_detail(demo: Demo, row: Row) -> Drafts:
    for given in demo.found("hosp/emar", "emar_id", row["emar_id"])[:1]:
        described = row["product_description"] or row["product_description_other"]
        drug = upper(given["medication"] or described, "UNKNOWN")
        when, known, visit = moment(given["charttime"]), moment(given["storetime"]), given["hadm_id"]
        if row["parent_field_ordinal"] is None:
            yield fact(
                row, f"EMAR_DUE/{drug}", when, known=known, awaits=True, visit=visit,
                value=read_value(row["dose_due"]), text=row["administration_type"], unit=row["dose_due_unit"],
            )  # fmt: skip
        else:
            yield fact(
                row, f"EMAR_DOSE/{upper(given['event_txt'], 'UNKNOWN')}/{drug}", when, known=known, awaits=True,
                visit=visit, value=read_value(row["dose_given"]), unit=row["dose_given_unit"],
                text=": ".join(part for part in (row["product_code"], described) if part),
            )  # fmt: skip
        if row["infusion_rate"]:
            yield fact(
                row, f"EMAR_RATE/{drug}", when, known=known, awaits=True, visit=visit, unit=row["infusion_rate_unit"],
                value=read_value(row["infusion_rate"]), text=row["infusion_rate_adjustment"],
            )  # fmt: skip


def icustays(demo: Demo, row: Row) -> Drafts:
    first, last = upper(row["first_careunit"], "UNKNOWN"), upper(row["last_careunit"], "UNKNOWN")
    yield fact(row, f"ICU_ADMISSION/{first}", moment(row["intime"]), kind="visit_start")
    yield fact(row, f"ICU_DISCHARGE/{last}", moment(row["outtime"]), kind="visit_end")


def datetimeevents(demo: Demo, row: Row) -> Drafts:
    known = moment(row["storetime"])
    yield fact(row, f"CHART_DATETIME/{row['itemid']}", moment(row["charttime"]), known=known, awaits=True)


def given(name: str) -> Callable[[Demo, Row], Drafts]:
    """What is given at a rate from a start to an end, and the amount that has been given at the end."""

    def rows(demo: Demo, row: Row) -> Drafts:
        known, item = moment(row["storetime"]), row["itemid"]
        yield fact(
            row, f"{name}_START/{item}", moment(row["starttime"]), known=known, awaits=True,
            value=read_value(row["rate"]), unit=row["rateuom"],
        )  # fmt: skip
        yield fact(
            row, f"{name}_END/{item}", moment(row["endtime"]), known=known, awaits=True,
            value=read_value(row["amount"]), unit=row["amountuom"], text=row["statusdescription"],
        )  # fmt: skip

    return rows


def outputevents(demo: Demo, row: Row) -> Drafts:
    yield fact(
        row, f"OUTPUT/{row['itemid']}", moment(row["charttime"]), known=moment(row["storetime"]), awaits=True,
        value=read_value(row["value"]), unit=row["valueuom"],
    )  # fmt: skip


def procedureevents(demo: Demo, row: Row) -> Drafts:
    known, item = moment(row["storetime"]), row["itemid"]
    start, end = moment(row["starttime"]), moment(row["endtime"])
    yield fact(row, f"PROCEDURE_START/{item}", start, known=known, awaits=True, text=row["location"])
    yield fact(
        row, f"PROCEDURE_END/{item}", end, known=known, awaits=True, value=read_value(row["value"]),
        unit=row["valueuom"], text=row["statusdescription"],
    )  # fmt: skip


TABLES: dict[str, Callable[[Demo, Row], Drafts]] = {
    "hosp/patients": patients,
    "hosp/admissions": admissions,
    "hosp/transfers": transfers,
    "hosp/services": services,
    "hosp/diagnoses_icd": diagnoses,
    "hosp/procedures_icd": procedures,
    "hosp/drgcodes": drgcodes,
    "hosp/hcpcsevents": hcpcsevents,
    "hosp/labevents": labevents,
    "hosp/microbiologyevents": microbiologyevents,
    "hosp/omr": omr,
    "hosp/prescriptions": prescriptions,
    "hosp/pharmacy": pharmacy,
    "hosp/poe": poe,
    "hosp/poe_detail": poe_detail,
    "hosp/emar": emar,
    "hosp/emar_detail": emar_detail,
    "icu/icustays": icustays,
    "icu/datetimeevents": datetimeevents,
    "icu/inputevents": given("INFUSION"),
    "icu/ingredientevents": given("INGREDIENT"),
    "icu/outputevents": outputevents,
    "icu/procedureevents": procedureevents,
}
