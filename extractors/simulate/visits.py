"""The visits that make up a course of disease: what is measured, given and coded, and in which order."""

from collections.abc import Iterable

import numpy as np

from extractors.simulate import codes
from extractors.simulate.codes import PANELS, TESTS, Cancer, Condition, Drug, Regimen
from extractors.simulate.record import DAY, HOUR, ICD10_DAY, MINUTE, LabResults, Visit

RESULT_LOST = 0.02
UNIT_LOST = 0.02


class Clinic:
    """Draws the visits of one subject from that subject's own generator; `drift` carries laboratory trends."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.drift: dict[str, float] = {}

    def chronic_check(self, day: int, condition: Condition) -> Visit:
        """A check of one chronic disease: its code, its panel, its drug."""
        visit = self._outpatient(day, 1 * HOUR)
        visit.diagnoses.append(condition.icd10 if day >= ICD10_DAY else condition.icd9)
        self._tube(visit, visit.start + 10 * MINUTE, (condition.panel,))
        visit.medications.append((condition.drug, visit.start + 40 * MINUTE))
        return visit

    def acute_stay(self, day: int) -> Visit:
        """A short stay for pneumonia, through the emergency room; not before ICD-10."""
        visit = self._stay(day, int(self.rng.integers(2, 6)))
        self._tube(visit, visit.start + 20 * MINUTE, ("blood count", "chemistry", "infection", "virus"))
        visit.medications += [
            (codes.CEFTRIAXONE, visit.start + 2 * HOUR),
            (codes.ACETAMINOPHEN, visit.start + 2 * HOUR),
        ]
        visit.diagnoses += ["J18.9", "R50.9"]
        self._daily_bloods(visit, ("blood count", "renal"), {})
        return visit

    def intensive_stay(self, day: int) -> Visit:
        """A week in intensive care: pneumonia with sepsis, and bloods every two hours."""
        visit = self._stay(day, 7)
        visit.diagnoses += ["J18.9", "A41.9", "J96.01"]
        visit.medications += [(codes.CEFTRIAXONE, visit.start + HOUR + n * DAY) for n in range(6)]
        for collected in range(visit.start + 20 * MINUTE, visit.end - 4 * HOUR, 2 * HOUR):
            self._tube(visit, collected, ("renal", "glucose"))
        self._daily_bloods(visit, ("blood count", "chemistry", "infection"), {})
        return visit

    def emergency_visit(self, day: int) -> Visit:
        """A visit to the emergency room for fever or pain."""
        start = day * DAY + int(self.rng.integers(0, 20 * 60)) * MINUTE
        visit = Visit("emergency", start, start + 3 * HOUR)
        visit.diagnoses.append("R10.9" if day >= ICD10_DAY else "789.00")
        self._tube(visit, start + 15 * MINUTE, ("blood count", "chemistry"))
        visit.medications.append((codes.ACETAMINOPHEN, start + 60 * MINUTE))
        return visit

    def first_consultation(self, day: int, diagnosis: str) -> Visit:
        """The visit at which the malignancy is first coded."""
        visit = self._outpatient(day, 2 * HOUR)
        self._tube(visit, visit.start + 15 * MINUTE, ("blood count", "chemistry", "staging"))
        visit.diagnoses.append(diagnosis)
        return visit

    def operation(self, day: int, cancer: Cancer, diagnosis: str) -> Visit:
        """The stay in which the tumour is removed."""
        visit = self._stay(day, int(self.rng.integers(3, 8)))
        self._tube(visit, visit.start + 30 * MINUTE, ("blood count", "chemistry", "coagulation"))
        visit.procedures.append((cancer.surgery, day))
        visit.medications.append((codes.MORPHINE, visit.start + 6 * HOUR))
        visit.diagnoses += [diagnosis, "Z90.89"]
        self._daily_bloods(visit, ("blood count", "renal"), {codes.HEMOGLOBIN: -2.0})
        return visit

    def radiation(self, day: int, cancer: Cancer, diagnosis: str) -> Visit:
        """One admission for radiation, five daily fractions."""
        visit = self._stay(day, 5)
        visit.procedures += [(cancer.radiation, day + fraction) for fraction in range(5)]
        visit.diagnoses += ["Z51.0", diagnosis]
        self._tube(visit, visit.start + 30 * MINUTE, ("blood count",))
        return visit

    def cycle(self, day: int, regimen: Regimen, diagnosis: str, admitted: bool) -> Visit:
        """One cycle: the same bloods before, the same premedication, then the regimen's drugs at one time."""
        if admitted or regimen.inpatient:
            visit = self._stay(day, 21 if regimen.inpatient else 2)
            visit.procedures.append((codes.CHEMOTHERAPY_PCS[int(regimen.inpatient)], day))
        else:
            visit = self._outpatient(day, 5 * HOUR)
        self._tube(visit, visit.start + 10 * MINUTE, ("blood count", "chemistry"))
        premedication = visit.start + 120 * MINUTE
        visit.medications += [(codes.DEXAMETHASONE, premedication), (codes.ONDANSETRON, premedication)]
        days_of_drug = 5 if regimen.inpatient else 1
        for extra in range(days_of_drug):
            visit.medications += [(drug, premedication + 30 * MINUTE + extra * DAY) for drug in regimen.drugs]
        visit.diagnoses += ["Z51.11", diagnosis]
        if regimen.inpatient:
            self._daily_bloods(visit, ("blood count", "chemistry"), {codes.NEUTROPHILS: -4.3, codes.PLATELETS: -190.0})
            self._transfuse(visit, 0.9)
        self._shift(codes.HEMOGLOBIN, -0.3)
        if codes.CISPLATIN in regimen.drugs:
            self._shift(codes.CREATININE, 0.08)
        return visit

    def neutropenic_fever(self, day: int, diagnosis: str) -> Visit:
        """D70.1 with R50.81 on one stay, antibiotics, growth factor, perhaps a transfusion or kidney injury."""
        visit = self._stay(day, int(self.rng.integers(3, 9)))
        low = {codes.NEUTROPHILS: -4.2, codes.LEUKOCYTES: -6.0, codes.C_REACTIVE_PROTEIN: 120.0}
        self._tube(visit, visit.start + 20 * MINUTE, ("blood count", "chemistry", "infection"), low)
        given = visit.start + 90 * MINUTE
        visit.medications += [(codes.CEFEPIME, given), (codes.FILGRASTIM, given + DAY)]
        if self.rng.random() < 0.4:
            visit.medications.append((codes.VANCOMYCIN, given))
        visit.diagnoses += ["D70.1", "R50.81", diagnosis]
        if self.rng.random() < 0.15:
            visit.diagnoses.append("N17.9")
            low[codes.CREATININE] = 1.6
        self._daily_bloods(visit, ("blood count", "renal"), low)
        self._transfuse(visit, 0.4)
        return visit

    def kidney_injury(self, day: int, diagnosis: str) -> Visit:
        """A stay for acute kidney injury with dehydration."""
        visit = self._stay(day, int(self.rng.integers(2, 6)))
        high = {codes.CREATININE: 1.9, codes.UREA: 30.0, codes.POTASSIUM: 0.8}
        self._tube(visit, visit.start + 20 * MINUTE, ("blood count", "chemistry"), high)
        visit.medications.append((codes.SALINE, visit.start + 60 * MINUTE))
        visit.diagnoses += ["N17.9", "E86.0", diagnosis]
        self._daily_bloods(visit, ("renal",), high)
        self._shift(codes.CREATININE, 0.15)
        return visit

    def follow_up(self, day: int, diagnosis: str, metastasis: str | None, maintenance: Drug | None) -> Visit:
        """A follow-up: bloods that drift, the cancer's code, its metastasis if known, maintenance if any."""
        visit = self._outpatient(day, 1 * HOUR)
        self._tube(visit, visit.start + 10 * MINUTE, ("blood count", "staging"))
        visit.diagnoses.append(diagnosis)
        if metastasis is not None:
            visit.diagnoses.append(metastasis)
            self._shift(codes.ALKALINE_PHOSPHATASE, 25.0)
            self._shift(codes.ALBUMIN, -0.15)
        if maintenance is not None:
            visit.medications.append((maintenance, visit.start + 30 * MINUTE))
        return visit

    def terminal_stay(self, death: int, diagnosis: str) -> Visit:
        """The stay that ends with death, at the minute of death."""
        start = death - int(self.rng.integers(1, 7)) * DAY - 5 * HOUR
        visit = Visit("inpatient", start, death)
        visit.diagnoses += [diagnosis, "R65.21"]
        self._tube(visit, start + 20 * MINUTE, ("blood count", "chemistry"), {codes.ALBUMIN: -1.5})
        visit.medications.append((codes.MORPHINE, start + 2 * HOUR))
        return visit

    def _outpatient(self, day: int, length: int) -> Visit:
        start = day * DAY + 8 * HOUR + int(self.rng.integers(0, 240)) * MINUTE
        return Visit("outpatient", start, start + length)

    def _stay(self, day: int, nights: int) -> Visit:
        start = day * DAY + int(self.rng.integers(0, 16 * 60)) * MINUTE
        end = (day + nights) * DAY + 10 * HOUR + int(self.rng.integers(0, 360)) * MINUTE
        return Visit("inpatient", start, end)

    def _shift(self, loinc: str, by: float) -> None:
        self.drift[loinc] = self.drift.get(loinc, 0.0) + by

    def _daily_bloods(self, visit: Visit, panels: tuple[str, ...], shifts: dict[str, float]) -> None:
        """Bloods at six o'clock on each morning but the first; what `shifts` says fades towards discharge."""
        first, last = visit.start // DAY + 1, visit.end // DAY
        for day in range(first, last + 1):
            left = (last - day) / max(last - first, 1)
            self._tube(visit, day * DAY + 6 * HOUR, panels, {loinc: by * left for loinc, by in shifts.items()})

    def _transfuse(self, visit: Visit, chance: float) -> None:
        if self.rng.random() < chance:
            middle = (visit.start + visit.end) // 2 // DAY
            visit.procedures.append((codes.RED_CELLS_PCS, middle))
            if self.rng.random() < 0.3:
                visit.procedures.append((codes.PLATELETS_PCS, middle))

    def _tube(
        self, visit: Visit, collected: int, panels: Iterable[str], shifts: dict[str, float] | None = None
    ) -> None:
        loincs = tuple(dict.fromkeys(loinc for panel in panels for loinc in PANELS[panel]))
        noise = self.rng.standard_normal(len(loincs))
        lag = int(self.rng.integers(20, 240)) * MINUTE
        lost = self.rng.random() < RESULT_LOST
        unit_kept = self.rng.random(len(loincs)) >= UNIT_LOST
        shifts = shifts or {}
        values = [
            printed(loinc, float(z), self.drift.get(loinc, 0.0) + shifts.get(loinc, 0.0))
            for loinc, z in zip(loincs, noise, strict=True)
        ]
        units = [TESTS[loinc].unit if kept else "" for loinc, kept in zip(loincs, unit_kept, strict=True)]
        visit.labs.append(LabResults(collected, None if lost else collected + lag, loincs, values, units))


def printed(loinc: str, z: float, shift: float) -> str:
    """A result as the laboratory prints it: a number, `<0.1`, `>100`, or NEGATIVE and POSITIVE for cultures."""
    if loinc in (codes.BLOOD_CULTURE, codes.SARS_COV_2):
        return "POSITIVE" if z > 1.5 else "NEGATIVE"
    test = TESTS[loinc]
    value = test.mean + test.sd * z + shift
    if loinc == codes.C_REACTIVE_PROTEIN and value > 100:
        return ">100"
    if value < 0.1:
        return "<0.1"
    return f"{value:.{test.decimals}f}"
