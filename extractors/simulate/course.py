"""One subject's course through the hospital: chronic disease, cancer, treatment, complications, images, death.

Everything is drawn from the subject's own generator, `SeedSequence([seed, index])`, so that a subject is the same
whatever the number of subjects.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from extractors.simulate.codes import (
    CANCERS,
    CISPLATIN,
    CONDITIONS,
    CT_FINDINGS,
    MORTALITY_BY_CLASS,
    SLIDE_FINDINGS,
    Cancer,
)
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
    Visit,
    day_number,
)
from extractors.simulate.visits import Clinic

BLOCK = 20
"""Subjects per block: every block of this many has the same number of imaging subjects and at least one death."""

LAST_IMAGE_DAY = day_number(2023, 6, 30)
CANCER_SHARE = 0.60
RACES = ("WHITE", "BLACK", "ASIAN", "HISPANIC", "OTHER", "UNKNOWN")
RACE_SHARES = (0.58, 0.16, 0.09, 0.10, 0.04, 0.03)


def imaging_plan(seed: int, subjects: int, share: float) -> dict[int, frozenset[str]]:
    """Which subjects (1-based index) have images and of which kinds; block by block, so that growth adds blocks only.

    The first imaging subject of a block has both kinds; over all, 85 % have CT and 60 % slides at a share of 0.15.
    """
    plan: dict[int, frozenset[str]] = {}
    for block in range((subjects + BLOCK - 1) // BLOCK):
        rng = np.random.default_rng(np.random.SeedSequence([seed, 0, 1, block]))
        wanted = round(BLOCK * (block + 1) * share) - round(BLOCK * block * share)
        places = rng.permutation(BLOCK)[:wanted]
        draws = rng.random(wanted)
        for rank, (place, draw) in enumerate(zip(places, draws, strict=True)):
            index = block * BLOCK + int(place) + 1
            if rank == 0 or draw < 0.175:
                kinds = frozenset({"ct", "slide"})
            else:
                kinds = frozenset({"ct"}) if draw < 0.775 else frozenset({"slide"})
            if index <= subjects:
                plan[index] = kinds
    return plan


def simulate_subject(seed: int, index: int, kinds: frozenset[str]) -> Record:
    """The whole record of subject `index` (1-based); `kinds` are the image kinds planned for it."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, index]))
    clinic = Clinic(rng)
    volume = float(rng.lognormal(-0.9, 1.15))
    first_day = _first_day(rng, index, has_images=bool(kinds))
    has_cancer = bool(kinds) or rng.random() < CANCER_SHARE
    cancer = CANCERS[int(rng.choice(len(CANCERS), p=[c.share for c in CANCERS]))]
    age = int(np.clip(rng.normal(61, 13), 19, 93))
    sex = cancer.sex if has_cancer and cancer.sex else ("F" if rng.random() < 0.5 else "M")
    race = RACES[int(rng.choice(len(RACES), p=RACE_SHARES))]
    record = Record(index, sex, 1970 + int(first_day / 365.25) - age, race)

    last_day = min(LAST_DAY - 40, first_day + 120 + int(rng.exponential(650)))
    _chronic(clinic, record, volume, first_day, last_day)
    diagnosis = ""
    if has_cancer:
        start = max(first_day + int(rng.integers(30, 300)), ICD10_DAY + 30)
        diagnosis = cancer.diagnoses[int(rng.integers(len(cancer.diagnoses)))]
        _cancer(clinic, record, cancer, diagnosis, volume, start, max(last_day, start + 120))
        _images(rng, record, kinds, diagnosis, start)
    _death(clinic, record, diagnosis, must_die=index % BLOCK == 7)
    return record


def _first_day(rng: np.random.Generator, index: int, has_images: bool) -> int:
    latest = day_number(2020, 6, 1) if has_images else day_number(2022, 6, 1)
    drawn = int(rng.integers(FIRST_DAY, latest))
    if index % BLOCK == 1:
        return day_number(2016, 2, 29)
    if index % BLOCK in (3, 12):
        return FIRST_DAY + drawn % 240
    return drawn


def _chronic(clinic: Clinic, record: Record, volume: float, first_day: int, last_day: int) -> None:
    rng = clinic.rng
    count = int(np.clip(1 + rng.poisson(1.2), 1, 4))
    conditions = [CONDITIONS[int(k)] for k in rng.choice(len(CONDITIONS), size=count, replace=False)]
    record.visits.append(clinic.chronic_check(first_day, conditions[0]))
    checks = 1 + int(rng.poisson(4 * volume))
    for number, day in enumerate(np.sort(rng.integers(first_day + 1, last_day, size=checks))):
        record.visits.append(clinic.chronic_check(int(day), conditions[number % count]))
    for day in np.sort(rng.integers(first_day, last_day, size=int(rng.poisson(0.6 * volume)))):
        acute = clinic.acute_stay if day >= ICD10_DAY and rng.random() < 0.5 else clinic.emergency_visit
        record.visits.append(acute(int(day)))


def _cancer(
    clinic: Clinic, record: Record, cancer: Cancer, diagnosis: str, volume: float, start: int, last_day: int
) -> None:
    rng, visits = clinic.rng, record.visits
    visits.append(clinic.first_consultation(start, diagnosis))
    day = start + int(rng.integers(10, 22))
    if cancer.surgery and rng.random() < 0.45:
        visits.append(clinic.operation(day, cancer, diagnosis))
        day += int(rng.integers(21, 36))
    metastasis: str | None = None
    lines = 1 + int(volume > 1.0 and len(cancer.regimens) > 1) + int(volume > 2.5 and len(cancer.regimens) > 2)
    for line, regimen in enumerate(cancer.regimens[:lines]):
        if line and cancer.metastases:
            metastasis = metastasis or cancer.metastases[int(rng.integers(len(cancer.metastases)))]
            visits.append(clinic.follow_up(day, diagnosis, metastasis, None))
            day += 7
        admitted = rng.random() < 0.15
        for cycle in range(int(np.clip(round(4.0 * volume), 0 if not line else 2, 9))):
            if day > LAST_DAY - 120:
                break
            visits.append(clinic.cycle(day, regimen, diagnosis, admitted and cycle == 0))
            stay_end = visits[-1].end // DAY
            if rng.random() < regimen.neutropenia:
                visits.append(clinic.neutropenic_fever(max(day + 9, stay_end + 2), diagnosis))
            elif rng.random() < (0.12 if CISPLATIN in regimen.drugs else 0.02):
                visits.append(clinic.kidney_injury(max(day + 6, stay_end + 2), diagnosis))
            day = max(day + regimen.cycle_days, visits[-1].end // DAY + 3)
        day += 14
    if cancer.radiation and rng.random() < 0.35 and day < LAST_DAY - 120:
        visits.append(clinic.radiation(day, cancer, diagnosis))
        day += 30
    if metastasis is None and cancer.metastases and rng.random() < 0.15:
        metastasis = cancer.metastases[int(rng.integers(len(cancer.metastases)))]
    interval = int(rng.integers(80, 100))
    for follow_up in range(day + 60, min(last_day, day + 60 + 6 * interval), interval):
        known = metastasis if follow_up > day + 100 else None
        visits.append(clinic.follow_up(follow_up, diagnosis, known, cancer.maintenance))


def days_taken(visits: Iterable[Visit]) -> NDArray[np.bool_]:
    """By days since FIRST_DAY, whether a visit stands on the day, or ends or begins on one beside it."""
    taken = np.zeros(LAST_DAY + 2 - FIRST_DAY, dtype=bool)
    for visit in visits:
        taken[max(visit.start // DAY - 1 - FIRST_DAY, 0) : visit.end // DAY + 2 - FIRST_DAY] = True
    return taken


def _images(rng: np.random.Generator, record: Record, kinds: frozenset[str], diagnosis: str, start: int) -> None:
    """Imaging visits on days of their own: nothing else happens on the day, the night before or the night after.

    So the finding is the very next structured event after its image, by time and by availability.
    """
    planned: list[str] = []
    if "slide" in kinds:
        planned += ["slide"] * int(rng.integers(1, 3))
    if "ct" in kinds:
        planned += ["ct"] * int(rng.integers(1, 4))
    if not planned:
        return
    taken = days_taken(record.visits)
    # The first image stages the disease, the others follow it for up to two years.
    offsets = np.concatenate([[3], np.sort(rng.integers(25, 640, size=len(planned) - 1))])
    for kind, offset in zip(rng.permutation(planned), offsets, strict=True):
        wanted = min(start + int(offset), LAST_IMAGE_DAY - 60) - FIRST_DAY
        day = int(np.flatnonzero(~taken[wanted:])[0]) + wanted
        taken[day - 1 : day + 2] = True
        _imaging_visit(rng, record, str(kind), day + FIRST_DAY, diagnosis)
    final = max(record.images, key=lambda image: image.time)
    final.last = True


def _imaging_visit(rng: np.random.Generator, record: Record, kind: str, day: int, diagnosis: str) -> None:
    image_class = int(rng.integers(4))
    start = day * DAY + 8 * HOUR + int(rng.integers(0, 120)) * MINUTE
    taken_at = start + int(rng.integers(20, 50)) * MINUTE
    if kind == "ct":
        finding = CT_FINDINGS[image_class]
        measured = taken_at + int(rng.integers(10, 45)) * MINUTE
        resulted = measured + int(rng.integers(5, 30)) * MINUTE
        value, unit = f"{rng.lognormal(2.5, 0.8):.1f}", "ng/mL" if image_class == 0 else "U/mL"
    else:
        finding = SLIDE_FINDINGS[image_class]
        measured = taken_at + int(rng.integers(15, 60)) * MINUTE
        resulted = measured + int(rng.integers(60, 300)) * MINUTE
        value, unit = ("POSITIVE" if rng.random() < 0.6 else "NEGATIVE"), ""
    visit = Visit("outpatient", start, resulted + 30 * MINUTE, diagnoses=[diagnosis])
    visit.labs.append(LabResults(measured, resulted, (finding,), [value], [unit]))
    record.visits.append(visit)
    record.images.append(Image(kind, image_class, taken_at, finding, measured, resulted))


def _death(clinic: Clinic, record: Record, diagnosis: str, must_die: bool) -> None:
    """Decides death; a record ends with it. With images, the class of the last one decides the year after it."""
    rng = clinic.rng
    final = next((image for image in record.images if image.last), None)
    days_left = int(rng.integers(25, 360))
    chance = rng.random()
    if final is not None and chance < MORTALITY_BY_CLASS[final.image_class]:
        record.death = final.time + days_left * DAY
    else:
        if final is not None:
            # Proof of life beyond the year, so that survival is observed and not merely assumed.
            seen = final.time // DAY + 368 + days_left // 4
            record.visits.append(clinic.follow_up(seen, diagnosis, None, None))
        end = max(visit.end for visit in record.visits)
        if must_die:
            record.death = end + 12 * DAY + days_left * MINUTE
        elif final is None and chance < (0.22 if diagnosis else 0.06):
            begin = min(visit.start for visit in record.visits)
            record.death = begin + int((end - begin) * rng.uniform(0.4, 1.0)) + 10 * DAY
    if record.death is None:
        return
    record.death -= record.death % MINUTE
    in_hospital = must_die or rng.random() < 0.5
    record.death_to_the_minute = in_hospital or rng.random() < 0.2
    # Nothing overlaps the last week of life, so that a stay which ends with death can stand there.
    last = record.death - (9 * DAY if in_hospital else DAY)
    record.visits = [visit for visit in record.visits if visit.end < last]
    if in_hospital:
        record.visits.append(clinic.terminal_stay(record.death, diagnosis or "I50.9"))
