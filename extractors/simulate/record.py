"""One subject's record while it is being simulated: visits, each holding its own rows, and the images.

Times are whole seconds since 1970-01-01 (naive, the hospital's local time); days are whole days since then.
"""

from dataclasses import dataclass, field
from datetime import date

import polars as pl

from extractors.simulate.codes import Drug

DAY = 86_400
HOUR = 3_600
MINUTE = 60

Row = tuple[object, ...]

TABLES: dict[str, dict[str, type[pl.DataType]]] = {
    "patients": {"patient_id": pl.String, "sex": pl.String, "birth_year": pl.Int64, "race": pl.String},
    "encounters": {
        "encounter_id": pl.String,
        "patient_id": pl.String,
        "type": pl.String,
        "start_time": pl.Int64,
        "end_time": pl.Int64,
        "insurance": pl.String,
    },
    "diagnoses": {
        "patient_id": pl.String,
        "encounter_id": pl.String,
        "seq": pl.Int64,
        "code": pl.String,
        "code_system": pl.String,
        "recorded_date": pl.Int64,
    },
    "procedures": {
        "patient_id": pl.String,
        "encounter_id": pl.String,
        "code": pl.String,
        "procedure_date": pl.Int64,
    },
    "medications": {
        "patient_id": pl.String,
        "encounter_id": pl.String,
        "rxnorm": pl.String,
        "name": pl.String,
        "start_time": pl.Int64,
        "dose": pl.Float64,
        "dose_unit": pl.String,
    },
    "labs": {
        "lab_id": pl.String,
        "patient_id": pl.String,
        "encounter_id": pl.String,
        "loinc": pl.String,
        "collected_time": pl.Int64,
        "result_time": pl.Int64,
        "value": pl.String,
        "unit": pl.String,
    },
    "deaths": {"patient_id": pl.String, "death_time": pl.Int64, "death_date": pl.Int64},
}
"""Columns of each exported table; those named `…_time` hold seconds, `…_date` days, until they are written."""


def day_number(year: int, month: int, day: int) -> int:
    """Days from 1970-01-01 to the given date."""
    return (date(year, month, day) - date(1970, 1, 1)).days


FIRST_DAY = day_number(2015, 1, 1)
LAST_DAY = day_number(2024, 12, 31)
ICD10_DAY = day_number(2015, 10, 1)


@dataclass
class LabResults:
    """Tests of one tube: one collection time, one result time (None where the export lost it), printed values."""

    collected: int
    resulted: int | None
    loincs: tuple[str, ...]
    values: list[str]
    units: list[str]


@dataclass
class Visit:
    """One encounter with all of its rows; `end` is later than every clinical fact in it."""

    kind: str
    start: int
    end: int
    diagnoses: list[str] = field(default_factory=list)
    procedures: list[tuple[str, int]] = field(default_factory=list)
    medications: list[tuple[Drug, int]] = field(default_factory=list)
    labs: list[LabResults] = field(default_factory=list)


@dataclass
class Image:
    """One CT series or slide that an encounter produced, with the finding that its class plants."""

    kind: str
    image_class: int
    time: int
    finding: str
    finding_time: int
    finding_result_time: int
    image_id: str = ""
    last: bool = False


@dataclass
class Record:
    """Everything that the hospital knows of one subject."""

    index: int
    sex: str
    birth_year: int
    race: str
    visits: list[Visit] = field(default_factory=list)
    images: list[Image] = field(default_factory=list)
    death: int | None = None
    death_to_the_minute: bool = False

    @property
    def patient_id(self) -> str:
        return f"P{self.index:06d}"

    def rows(self) -> dict[str, list[Row]]:
        """The record as rows of every table, numbered within the subject so that other subjects do not matter."""
        patient = self.patient_id
        rows: dict[str, list[Row]] = {table: [] for table in TABLES}
        rows["patients"].append((patient, self.sex, self.birth_year, self.race))
        if self.death is not None:
            time = self.death if self.death_to_the_minute else None
            rows["deaths"].append((patient, time, self.death // DAY))
        lab_number = 0
        for number, visit in enumerate(sorted(self.visits, key=lambda v: (v.start, v.end, v.kind)), start=1):
            encounter = f"E{self.index:06d}{number:04d}"
            rows["encounters"].append(
                (encounter, patient, visit.kind, visit.start, visit.end, self.insurance(visit.start))
            )
            # A stay's codes are assigned when it ends, an outpatient's on the day.
            coded = visit.end // DAY
            for sequence, code in enumerate(visit.diagnoses, start=1):
                icd9 = code[0].isdigit()
                rows["diagnoses"].append((patient, encounter, sequence, code, "ICD9CM" if icd9 else "ICD10CM", coded))
            rows["procedures"].extend((patient, encounter, code, day) for code, day in visit.procedures)
            rows["medications"].extend(
                (patient, encounter, drug.rxnorm, drug.name, time, float(drug.dose), drug.unit)
                for drug, time in visit.medications
            )
            for tube in visit.labs:
                rows["labs"].extend(
                    (
                        f"L{self.index:06d}{lab_number + k:06d}",
                        patient,
                        encounter,
                        loinc,
                        tube.collected,
                        tube.resulted,
                        value,
                        unit or None,
                    )
                    for k, (loinc, value, unit) in enumerate(zip(tube.loincs, tube.values, tube.units, strict=True))
                )
                lab_number += len(tube.loincs)
        return rows

    def insurance(self, time: int) -> str:
        """Who pays for an encounter that begins at `time`."""
        age = 1970 + time / DAY / 365.25 - self.birth_year
        if age >= 65:
            return "Medicare"
        return "Medicaid" if self.index % 5 == 0 else "Private"
