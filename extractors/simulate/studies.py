"""ECGs, x-rays, notes and CT in NIfTI: who has them, when, and the finding that the class of each plants.

They stand on days of their own, in visits that are added to a finished record, and draw from generators of their own:
tables, CT series and slides are the same with and without them. Each kind is the same whatever others are asked for.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from extractors.simulate.codes import CT_FINDINGS, ECG_FINDINGS, FILM_FINDINGS, NOTE_FINDINGS
from extractors.simulate.course import BLOCK, days_taken, imaging_plan
from extractors.simulate.record import (
    DAY,
    FIRST_DAY,
    HOUR,
    ICD10_DAY,
    LAST_DAY,
    MINUTE,
    Image,
    LabResults,
    Record,
    Row,
    Visit,
)


@dataclass(frozen=True)
class Kind:
    """One kind of study.

    Attributes:
        number: of its generators; never another's.
        share: of the subjects who have it, against the share of those who have images.
        most: studies of one subject, at least one.
        findings: the laboratory code that a study of class 0 to 3 makes the hospital measure.
        unit: of that measurement.
        reason: the diagnosis of the visit.
    """

    number: int
    share: float
    most: int
    findings: tuple[str, str, str, str]
    unit: str
    reason: str


KINDS: Mapping[str, Kind] = {
    "ecg": Kind(4, 1.0, 2, ECG_FINDINGS, "ng/L", "R07.9"),
    "cxr": Kind(5, 1.0, 2, FILM_FINDINGS, "ng/mL", "R06.02"),
    "note": Kind(6, 1.0, 2, NOTE_FINDINGS, "ng/mL", "R53.1"),
    "nifti": Kind(7, 1 / 3, 1, CT_FINDINGS, "U/mL", "R19.00"),
}
# What generators, and identifiers of rows, begin with, so that no other has them.
_PLAN, _FAULTS, _SUBJECT, _CONTENT, _ROWS = 10, 50, 100, 1_000, 8_000


@dataclass
class Study:
    """One study with its visit.

    Attributes:
        number: of its subject's studies of this kind, from 1.
        visit: its encounter, without the finding where that belongs to none.
        finding: the tube of the finding.
        charted: of a note, the day that it is filed under, in seconds; else the study's time.
    """

    kind: str
    number: int
    image: Image
    visit: Visit
    finding: LabResults
    charted: int

    def generator(self, seed: int, record: Record) -> np.random.Generator:
        """What the study's own content is drawn from."""
        return np.random.default_rng(np.random.SeedSequence([seed, record.index, _CONTENT + self.place]))

    def encounter(self, record: Record) -> str:
        """Its visit's identifier, which no other visit of the subject has."""
        return f"E{record.index:06d}{_ROWS + self.place}"

    @property
    def place(self) -> int:
        """Its number among the subject's studies of all kinds."""
        return 100 * KINDS[self.kind].number + self.number

    def night_before(self, days: int) -> int:
        """Three o'clock, some days before the study: nothing else happens then."""
        return (self.image.time // DAY - days) * DAY + 3 * HOUR


Planned = tuple[Record, Study]


def faults_generator(seed: int, kind: str) -> np.random.Generator:
    """What the faulty items of a kind are drawn from."""
    return np.random.default_rng(np.random.SeedSequence([seed, 0, _FAULTS + KINDS[kind].number]))


def studies_plan(seed: int, subjects: int, share: float) -> dict[int, tuple[str, ...]]:
    """Which subjects (1-based index) have which kinds of studies, block by block.

    The subject of a block who has both CT and slides has every kind; the others of a block are drawn.
    """
    blocks = (subjects + BLOCK - 1) // BLOCK
    imaging = imaging_plan(seed, blocks * BLOCK, share)
    plan: dict[int, list[str]] = {}
    for block in range(blocks):
        first = block * BLOCK + 1
        everything = [index for index in range(first, first + BLOCK) if len(imaging.get(index, ())) == 2][:1]
        for name, kind in KINDS.items():
            rng = np.random.default_rng(np.random.SeedSequence([seed, 0, _PLAN + kind.number, block]))
            of_kind = share * kind.share
            wanted = round(BLOCK * (block + 1) * of_kind) - round(BLOCK * block * of_kind)
            drawn = [first + int(place) for place in rng.permutation(BLOCK)]
            for index in list(dict.fromkeys([*everything, *drawn]))[:wanted]:
                if index <= subjects:
                    plan.setdefault(index, []).append(name)
    return {index: tuple(kinds) for index, kinds in plan.items()}


def studies_of(seed: int, record: Record, kinds: Collection[str]) -> list[Study]:
    """The studies of a subject, in the order of KINDS; fewer than planned where the record has no free day left."""
    taken = days_taken(record.visits)
    first = max(min(visit.start for visit in record.visits) // DAY + 2, ICD10_DAY + 1)
    last = min(max(visit.end for visit in record.visits) // DAY, LAST_DAY - 5)
    if record.death is not None:
        last = min(last, record.death // DAY - 12)
    studies: list[Study] = []
    for name, kind in KINDS.items():
        if name not in kinds:
            continue
        rng = np.random.default_rng(np.random.SeedSequence([seed, record.index, _SUBJECT + kind.number]))
        for number in range(1, 1 + int(rng.integers(1, kind.most + 1))):
            image_class, place = int(rng.integers(4)), float(rng.random())
            minutes = rng.integers((0, 20, 10, 5), (120, 50, 45, 30))
            # A note's stay needs two days.
            free = np.flatnonzero(~(taken[:-1] | taken[1:])[first - FIRST_DAY : max(last, first) - FIRST_DAY]) + first
            if not len(free):
                continue
            day = int(free[int(place * len(free))])
            study = _study(name, kind, number, image_class, day, [int(m) * MINUTE for m in minutes])
            taken |= days_taken([study.visit])
            studies.append(study)
    return studies


def _study(name: str, kind: Kind, number: int, image_class: int, day: int, spans: list[int]) -> Study:
    """One study on a free day; `spans` are drawn seconds between what happens."""
    begin, until_taken, until_measured, until_known = spans
    if name == "note":
        # Filed under the day of discharge, written after it: who takes midnight for its time knows it too early.
        start, end = day * DAY + 14 * HOUR + begin, (day + 1) * DAY + 10 * HOUR
        charted, time = (day + 1) * DAY, end + HOUR + until_taken
    else:
        start = day * DAY + 8 * HOUR + begin
        charted = time = start + until_taken
    measured = time + until_measured
    known = measured + until_known
    code = kind.findings[image_class]
    value = f"{10 * (1 + image_class) + (begin + until_taken) // MINUTE % 10}"
    finding = LabResults(measured, known, (code,), [value], [kind.unit])
    if name == "note":
        visit = Visit("inpatient", start, end, diagnoses=[kind.reason])
    else:
        visit = Visit("outpatient", start, known + 30 * MINUTE, diagnoses=[kind.reason])
    return Study(name, number, Image(name, image_class, time, code, measured, known), visit, finding, charted)


def rows_of(record: Record, studies: Collection[Study]) -> dict[str, list[Row]]:
    """What the visits of studies add to tables, under numbers that no other visit of the subject has."""
    rows: dict[str, list[Row]] = {"encounters": [], "diagnoses": [], "labs": []}
    for study in studies:
        encounter, visit, tube = study.encounter(record), study.visit, study.finding
        patient = record.patient_id
        rows["encounters"].append(
            (encounter, patient, visit.kind, visit.start, visit.end, record.insurance(visit.start))
        )
        rows["diagnoses"] += [
            (patient, encounter, sequence, code, "ICD10CM", visit.end // DAY)
            for sequence, code in enumerate(visit.diagnoses, start=1)
        ]
        within = encounter if tube.collected <= visit.end else None
        rows["labs"].append(
            (
                f"L{record.index:06d}{100 * _ROWS + study.place:06d}",
                patient,
                within,
                tube.loincs[0],
                tube.collected,
                tube.resulted,
                tube.values[0],
                tube.units[0] or None,
            )
        )
    return rows
