"""Patients who are planted for the rules of tasks, one or two a rule, with the answer that is right.

They come on top of the simulated ones, behind every fault, and are drawn from a generator of their own: with them or
without them the other patients are the same bytes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from extractors.simulate.record import DAY, HOUR, MINUTE, TABLES, Row, day_number

# Which task gives which answer to a case; None where the patient has no label.
Answers = dict[str, bool | None]
TRUTH = {"patient_id": pl.String, "case": pl.String, "task": pl.String, "answer": pl.String}

BREAST, LYMPHOMA, ARTHRITIS = "C50.911", "C83.38", "M06.9"
KIDNEY_INJURY, METASTASIS, NEUTROPENIA, FEVER = "N17.9", "C78.7", "D70.1", "R50.81"
CYCLOPHOSPHAMIDE, DOXORUBICIN, PACLITAXEL, METHOTREXATE = "3002", "3639", "56946", "6851"
RED_CELLS, STEM_CELLS = "30233N1", "30233G1"
CREATININE = "2160-0"
ONCOLOGY = ("mortality", "metastasis", "progression_proxy", "aki_icd", "aki_kdigo", "neutropenic_fever", "transfusion")
FOLLOWED = 400  # days after the treatment, on which somebody is seen again


@dataclass
class Patient:
    """A planted patient: rows of the export, on days from the first treatment.

    Attributes:
        index: number among the planted ones.
        start: the second at which day 0 begins.
        age: years on day 0.
    """

    index: int
    start: int
    age: int = 60
    rows: dict[str, list[Row]] = field(default_factory=lambda: {table: [] for table in TABLES})
    visits: int = 0

    @property
    def patient_id(self) -> str:
        return f"T{self.index:06d}"

    def at(self, day: float, seconds: int = 0) -> int:
        """A moment so many days from day 0."""
        return self.start + round(day * DAY) + seconds

    def visit(self, start: int, end: int | None, *diagnoses: str, kind: str = "outpatient") -> str:
        """A visit whose diagnoses become known when it ends; gives its number."""
        self.visits += 1
        encounter = f"ET{self.index:06d}{self.visits:03d}"
        self.rows["encounters"].append((encounter, self.patient_id, kind, start, end, "Private"))
        coded = (start if end is None else end) // DAY
        for sequence, code in enumerate(diagnoses, start=1):
            self.rows["diagnoses"].append((self.patient_id, encounter, sequence, code, "ICD10CM", coded))
        return encounter

    def drug(self, encounter: str, rxnorm: str, time: int) -> None:
        self.rows["medications"].append((self.patient_id, encounter, rxnorm, "drug", time, 100.0, "mg"))

    def creatinine(self, encounter: str, time: int, value: str, resulted: int | None = None) -> None:
        """A creatinine in mg/dL, which is known an hour later unless `resulted` says when."""
        number = f"LT{self.index:06d}{len(self.rows['labs']):04d}"
        lab = (number, self.patient_id, encounter, CREATININE, time, resulted or time + HOUR, value, "mg/dL")
        self.rows["labs"].append(lab)

    def dies(self, time: int, *, to_the_minute: bool = True) -> None:
        self.rows["deaths"].append((self.patient_id, time if to_the_minute else None, time // DAY))

    def treated(self, cancer: str = BREAST, consulted: int = -20) -> None:
        """A consultation and, on day 0 at 10:30, the first treatment."""
        self.visit(self.at(consulted, 9 * HOUR), self.at(consulted, 10 * HOUR), cancer)
        cycle = self.visit(self.at(0, 9 * HOUR), self.at(0, 12 * HOUR), cancer)
        for rxnorm in (CYCLOPHOSPHAMIDE, DOXORUBICIN):
            self.drug(cycle, rxnorm, self.at(0, 10 * HOUR + 30 * MINUTE))

    def seen(self, day: int, *diagnoses: str) -> str:
        """An hour's visit at nine o'clock."""
        return self.visit(self.at(day, 9 * HOUR), self.at(day, 10 * HOUR), *diagnoses)

    def stay(self, day: float, days: float, *diagnoses: str, kind: str = "inpatient") -> str:
        """A stay from eight o'clock on."""
        return self.visit(self.at(day, 8 * HOUR), self.at(day + days, 8 * HOUR), *diagnoses, kind=kind)


Case = Callable[[Patient], Answers]


def _all(answer: bool | None, **others: bool | None) -> Answers:
    return dict.fromkeys(ONCOLOGY, answer) | others


def _followed(patient: Patient) -> Answers:
    patient.treated()
    patient.seen(FOLLOWED)
    return _all(False)


def _positive_and_gone(patient: Patient) -> Answers:
    patient.treated()
    patient.stay(100, 3, KIDNEY_INJURY)
    return _all(None, aki_icd=True)


def _lost_at_two_months(patient: Patient) -> Answers:
    patient.treated()
    patient.seen(60)
    return _all(None)


def _dies_in_month_five(patient: Patient) -> Answers:
    patient.treated()
    patient.dies(patient.at(150, 14 * HOUR))
    return _all(None, mortality=True, progression_proxy=True)


def _prevalent(patient: Patient) -> Answers:
    patient.seen(-40, KIDNEY_INJURY)
    patient.treated()
    patient.seen(30, KIDNEY_INJURY)
    patient.seen(FOLLOWED)
    return _all(False, aki_icd=None)


def _coded_on_the_day(patient: Patient) -> Answers:
    patient.treated()
    patient.seen(0, KIDNEY_INJURY)
    patient.seen(FOLLOWED)
    return _all(False, aki_icd=None)


def _rises_by(patient: Patient, resulted: int) -> None:
    patient.treated()
    stay = patient.visit(patient.at(-1, 8 * HOUR), patient.at(0, 9 * HOUR), kind="inpatient")
    patient.creatinine(stay, patient.at(-1, 9 * HOUR), "0.9")
    patient.creatinine(stay, patient.at(0, 8 * HOUR), "1.2", resulted)
    patient.seen(FOLLOWED)


def _at_the_index(patient: Patient) -> Answers:
    _rises_by(patient, patient.at(0, 10 * HOUR + 30 * MINUTE))
    return _all(False, aki_kdigo=None)


def _a_second_later(patient: Patient) -> Answers:
    _rises_by(patient, patient.at(0, 10 * HOUR + 30 * MINUTE + 1))
    return _all(False, aki_kdigo=True)


def _methotrexate_without_cancer(patient: Patient) -> Answers:
    patient.drug(patient.seen(0, ARTHRITIS), METHOTREXATE, patient.at(0, 10 * HOUR))
    patient.seen(FOLLOWED)
    return _all(None)


def _cancer_long_ago(patient: Patient) -> Answers:
    patient.treated(ARTHRITIS)
    patient.seen(-500, BREAST)
    patient.seen(FOLLOWED)
    return _all(None)


def _minor(patient: Patient) -> Answers:
    patient.age = 15
    patient.treated()
    patient.seen(FOLLOWED)
    return _all(None)


def _metastasis_in_grace(patient: Patient) -> Answers:
    patient.treated()
    patient.seen(20, METASTASIS)
    patient.seen(FOLLOWED)
    return _all(False, metastasis=None)


def _metastasis(patient: Patient) -> Answers:
    patient.treated()
    patient.seen(100, METASTASIS)
    patient.seen(FOLLOWED)
    return _all(False, metastasis=True, progression_proxy=True)


def _haematologic(patient: Patient) -> Answers:
    patient.treated(LYMPHOMA)
    patient.seen(FOLLOWED)
    return _all(False, metastasis=None)


def _fever_on_two_visits(patient: Patient) -> Answers:
    patient.treated()
    patient.seen(50, NEUTROPENIA)
    patient.seen(52, FEVER)
    patient.seen(FOLLOWED)
    return _all(False, neutropenic_fever=True)


def _fever_too_far(patient: Patient) -> Answers:
    patient.treated()
    patient.seen(50, NEUTROPENIA)
    patient.seen(60, FEVER)
    patient.seen(FOLLOWED)
    return _all(False)


def _creatinine_rises(patient: Patient) -> Answers:
    patient.treated()
    stay = patient.stay(50, 3)
    patient.creatinine(stay, patient.at(50, 9 * HOUR), "0.9")
    patient.creatinine(stay, patient.at(51, 9 * HOUR), "1.2")
    patient.seen(FOLLOWED)
    return _all(False, aki_kdigo=True)


def _creatinine_falls(patient: Patient) -> Answers:
    patient.treated()
    stay = patient.stay(50, 3)
    patient.creatinine(stay, patient.at(50, 9 * HOUR), "1.2")
    patient.creatinine(stay, patient.at(51, 9 * HOUR), "0.9")
    patient.seen(FOLLOWED)
    return _all(False)


def _another_line(patient: Patient) -> Answers:
    patient.treated()
    patient.drug(patient.seen(60), PACLITAXEL, patient.at(60, 9 * HOUR))
    patient.seen(FOLLOWED)
    return _all(False, progression_proxy=True)


def _same_line(patient: Patient) -> Answers:
    patient.treated()
    patient.drug(patient.seen(20), PACLITAXEL, patient.at(20, 9 * HOUR))
    patient.drug(patient.seen(60), PACLITAXEL, patient.at(60, 9 * HOUR))
    patient.seen(FOLLOWED)
    return _all(False)


def _transfused(patient: Patient) -> Answers:
    patient.treated()
    stay = patient.stay(50, 3)
    patient.rows["procedures"].append((patient.patient_id, stay, RED_CELLS, patient.at(51) // DAY))
    patient.seen(FOLLOWED)
    return _all(False, transfusion=True)


def _stem_cells(patient: Patient) -> Answers:
    patient.treated()
    stay = patient.stay(50, 3)
    patient.rows["procedures"].append((patient.patient_id, stay, STEM_CELLS, patient.at(51) // DAY))
    patient.seen(FOLLOWED)
    return _all(False)


def _home_again(patient: Patient) -> Answers:
    patient.stay(0, 6)
    patient.stay(1, 2, kind="icu")
    return {"hospital_mortality": False, "icu_mortality": False, "icu_admission": True, "icu_readmission": False}


def _intensive_care_twice(patient: Patient) -> Answers:
    patient.stay(0, 8)
    patient.stay(1, 2, kind="icu")
    patient.stay(5, 1, kind="icu")
    return {"hospital_mortality": False, "icu_admission": True, "icu_readmission": True}


def _dies_in_hospital(patient: Patient) -> Answers:
    patient.stay(0, 3)
    patient.dies(patient.at(3, 8 * HOUR))
    return {"hospital_mortality": True, "icu_admission": True, "icu_mortality": None, "icu_readmission": None}


def _dies_on_the_day_of_discharge(patient: Patient) -> Answers:
    patient.stay(0, 3)
    patient.dies(patient.at(3), to_the_minute=False)
    return {"hospital_mortality": True}


def _stay_inside_a_stay(patient: Patient) -> Answers:
    patient.stay(0, 6)
    patient.stay(2, 1)
    patient.dies(patient.at(6, 8 * HOUR))
    return {"hospital_mortality": True}


def _open_admission(patient: Patient) -> Answers:
    patient.visit(patient.at(0, 8 * HOUR), None, kind="inpatient")
    return {"hospital_mortality": None, "icu_admission": None}


def _ends_before_it_begins(patient: Patient) -> Answers:
    patient.visit(patient.at(2, 8 * HOUR), patient.at(1, 8 * HOUR), kind="inpatient")
    return {"hospital_mortality": None}


def _admitted_after_death(patient: Patient) -> Answers:
    patient.seen(-3)
    patient.dies(patient.at(0, 8 * HOUR))
    patient.visit(patient.at(0, 8 * HOUR + MINUTE), patient.at(1), kind="inpatient")
    return {"hospital_mortality": None}


# In order: the patient behind the open admission dies in hospital, which is no answer to the one before.
CASES: dict[str, Case] = {
    "followed": _followed,
    "positive_and_gone": _positive_and_gone,
    "lost_at_two_months": _lost_at_two_months,
    "dies_in_month_five": _dies_in_month_five,
    "prevalent": _prevalent,
    "coded_on_the_day": _coded_on_the_day,
    "outcome_at_the_index": _at_the_index,
    "outcome_a_second_later": _a_second_later,
    "methotrexate_without_cancer": _methotrexate_without_cancer,
    "cancer_long_ago": _cancer_long_ago,
    "minor": _minor,
    "metastasis_in_grace": _metastasis_in_grace,
    "metastasis": _metastasis,
    "haematologic": _haematologic,
    "fever_on_two_visits": _fever_on_two_visits,
    "fever_too_far": _fever_too_far,
    "creatinine_rises": _creatinine_rises,
    "creatinine_falls": _creatinine_falls,
    "another_line": _another_line,
    "same_line": _same_line,
    "transfused": _transfused,
    "stem_cells": _stem_cells,
    "home_again": _home_again,
    "intensive_care_twice": _intensive_care_twice,
    "open_admission": _open_admission,
    "next_dies_in_hospital": _dies_in_hospital,
    "dies_on_the_day_of_discharge": _dies_on_the_day_of_discharge,
    "stay_inside_a_stay": _stay_inside_a_stay,
    "ends_before_it_begins": _ends_before_it_begins,
    "admitted_after_death": _admitted_after_death,
}


def plant_task_cases(seed: int) -> tuple[dict[str, list[Row]], list[Row]]:
    """Rows of each exported table, with times in seconds and days, and rows of TRUTH."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0, 15]))
    first, last = day_number(2017, 1, 1), day_number(2021, 12, 31)
    rows: dict[str, list[Row]] = {table: [] for table in TABLES}
    truth: list[Row] = []
    for index, (case, plant) in enumerate(CASES.items(), start=1):
        patient = Patient(index, int(rng.integers(first, last)) * DAY)
        sex = "F" if rng.random() < 0.5 else "M"
        answers = plant(patient)
        born = 1970 + int(patient.start / DAY / 365.25) - patient.age
        rows["patients"].append((patient.patient_id, sex, born, "UNKNOWN"))
        for table, of_patient in patient.rows.items():
            rows[table].extend(of_patient)
        truth.extend(_said(patient, case, answers))
    return rows, truth


def _said(patient: Patient, case: str, answers: Answers) -> Iterator[Row]:
    for task, answer in answers.items():
        yield patient.patient_id, case, task, "none" if answer is None else str(answer).lower()
