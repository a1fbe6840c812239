"""Visits to draw from: some of each kind, made once as the small hospital makes them, and laid out by columns.

A large hospital repeats these visits with values, days and further codes of its own, so that nothing is made a row at a
time and what follows what is still that of `extractors.simulate.visits`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cache, partial

import numpy as np
import numpy.typing as npt

from extractors.simulate.codes import CANCERS, CONDITIONS, TESTS, Drug
from extractors.simulate.record import DAY, HOUR, Visit, day_number
from extractors.simulate.visits import Clinic

I64 = npt.NDArray[np.int64]

VARIANTS = 8
_DAY = day_number(2019, 1, 7)
_SEED = 20_190_107
FURTHER = {"diagnoses": 3_000, "tests": 600, "drugs": 1_000}
"""How many codes there are besides those of the small hospital: many, most of them rare, as a real vocabulary has."""


class Kind(IntEnum):
    """What a visit is for."""

    CHRONIC = 0
    EMERGENCY = 1
    ACUTE = 2
    INTENSIVE = 3
    CONSULTATION = 4
    OPERATION = 5
    RADIATION = 6
    FIRST_LINE = 7
    LATER_LINE = 8
    FEVER = 9
    KIDNEY = 10
    FOLLOW_UP = 11
    METASTATIC = 12
    TERMINAL = 13


@dataclass(frozen=True)
class Rows:
    """Rows of one table for all visits of the library: those of visit v are `starts[v]` to `starts[v + 1]`."""

    starts: I64
    columns: dict[str, I64]


@dataclass(frozen=True)
class Library:
    """The visits, VARIANTS of each kind and group.

    Attributes:
        first: (kinds, groups) number of a kind's first visit; the group is a cancer, or of CHRONIC a condition.
        start, end: (visits,) seconds from midnight of the visit's day.
        patient_class: (visits,) 0 inpatient, 1 outpatient, 2 emergency.
        events: (visits,) how many events a visit's rows make.
        rows: by table. Codes, drugs and tests are numbers in the lists below; `value` is in the last printed decimal,
            and -1 where `text` says it; `resulted` is -1 where the export lost it.
        texts: results in words.
    """

    first: I64
    start: I64
    end: I64
    patient_class: I64
    events: I64
    rows: dict[str, Rows]
    diagnoses: list[str]
    diagnoses_icd9: I64
    procedures: list[str]
    drugs: list[Drug]
    tests: list[str]
    units: list[str]
    decimals: I64
    texts: list[str]


CLASSES = ("inpatient", "outpatient", "emergency")


class _Numbers:
    """Numbers for names, in the order in which they come."""

    def __init__(self) -> None:
        self.names: dict[str, int] = {}

    def of(self, name: str) -> int:
        return self.names.setdefault(name, len(self.names))


@cache
def library() -> Library:
    """The library; the same in every process."""
    visits, first = _visits()
    diagnoses, procedures, drugs, tests, texts = (_Numbers() for _ in range(5))
    by_rxnorm: dict[str, Drug] = {}
    given: dict[str, list[tuple[int, ...]]] = {name: [] for name in ("diagnoses", "procedures", "medications", "labs")}
    starts: dict[str, list[int]] = {name: [0] for name in given}
    for visit in visits:
        midnight = _DAY * DAY
        given["diagnoses"] += [(diagnoses.of(code),) for code in visit.diagnoses]
        given["procedures"] += [(procedures.of(code), day - _DAY) for code, day in visit.procedures]
        for drug, time in visit.medications:
            by_rxnorm.setdefault(drug.rxnorm, drug)
            given["medications"].append((drugs.of(drug.rxnorm), time - midnight))
        for tube in visit.labs:
            collected = tube.collected - midnight
            resulted = -1 if tube.resulted is None else tube.resulted - midnight
            for loinc, printed, unit in zip(tube.loincs, tube.values, tube.units, strict=True):
                number, text = _value(loinc, printed, texts)
                given["labs"].append((tests.of(loinc), collected, resulted, number, text, int(bool(unit))))
        for name, rows in given.items():
            starts[name].append(len(rows))
    names = {
        "diagnoses": ("code",),
        "procedures": ("code", "day"),
        "medications": ("drug", "given"),
        "labs": ("test", "collected", "resulted", "value", "text", "unit"),
    }
    laid = {
        name: Rows(
            np.asarray(starts[name], dtype=np.int64),
            dict(zip(names[name], np.asarray(given[name], dtype=np.int64).T, strict=True)),
        )
        for name in given
    }
    known = list(diagnoses.names) + [condition.icd9 for condition in CONDITIONS]
    icd9 = np.arange(len(known) + FURTHER["diagnoses"])
    for number, condition in enumerate(CONDITIONS):
        icd9[diagnoses.names[condition.icd10]] = len(diagnoses.names) + number
    further_tests = [f"{80_000 + n}-{n % 10}" for n in range(FURTHER["tests"])]
    return Library(
        first=first,
        start=np.asarray([visit.start - _DAY * DAY for visit in visits]),
        end=np.asarray([visit.end - _DAY * DAY for visit in visits]),
        patient_class=np.asarray([CLASSES.index(visit.kind) for visit in visits]),
        events=np.sum([np.diff(rows.starts) for rows in laid.values()], axis=0) + 3,
        rows=laid,
        diagnoses=known + [_category(n) for n in range(FURTHER["diagnoses"])],
        diagnoses_icd9=icd9,
        procedures=list(procedures.names),
        drugs=[by_rxnorm[code] for code in drugs.names]
        + [Drug(str(900_000 + n), f"drug {n}", 5.0 * (1 + n % 40)) for n in range(FURTHER["drugs"])],
        tests=list(tests.names) + further_tests,
        units=[TESTS[loinc].unit for loinc in tests.names] + ["U/L"] * len(further_tests),
        decimals=np.asarray([TESTS[loinc].decimals for loinc in tests.names] + [1] * len(further_tests)),
        texts=list(texts.names),
    )


def _category(number: int) -> str:
    """A code in the form of ICD-10-CM; none of the chapters that the tasks read (C, D, N, R, Z)."""
    letter, rest = "ABEFGHIJKLMOPQST"[number % 16], number // 16
    return f"{letter}{rest // 10:02d}.{rest % 10}"


def _value(loinc: str, printed: str, texts: _Numbers) -> tuple[int, int]:
    """A result as a whole number of its last decimal and -1, or as -1 and its text's number."""
    try:
        return round(float(printed) * 10 ** TESTS[loinc].decimals), -1
    except ValueError:
        return -1, texts.of(printed)


def _visits() -> tuple[list[Visit], I64]:
    """All visits, and where those of a kind and group begin."""
    groups = max(len(CANCERS) + 1, len(CONDITIONS))
    first = np.zeros((len(Kind), groups), dtype=np.int64)
    made: list[Visit] = []
    clinic = Clinic(np.random.default_rng(_SEED))

    def add(kind: Kind, of_groups: Sequence[int], make: Callable[[], Visit]) -> None:
        first[kind, list(of_groups)] = len(made)
        for _ in range(VARIANTS):
            clinic.drift.clear()
            made.append(make())

    everyone = range(groups)
    death = (_DAY + 7) * DAY + 5 * HOUR
    add(Kind.EMERGENCY, everyone, partial(clinic.emergency_visit, _DAY))
    add(Kind.ACUTE, everyone, partial(clinic.acute_stay, _DAY))
    add(Kind.INTENSIVE, everyone, partial(clinic.intensive_stay, _DAY))
    for group, condition in enumerate(CONDITIONS):
        add(Kind.CHRONIC, [group], partial(clinic.chronic_check, _DAY, condition))
    for group, cancer in enumerate(CANCERS):
        code = cancer.diagnoses[0]
        spread = cancer.metastases[0] if cancer.metastases else None
        add(Kind.CONSULTATION, [group], partial(clinic.first_consultation, _DAY, code))
        add(Kind.FOLLOW_UP, [group], partial(clinic.follow_up, _DAY, code, None, cancer.maintenance))
        add(Kind.METASTATIC, [group], partial(clinic.follow_up, _DAY, code, spread, None))
        add(Kind.FIRST_LINE, [group], partial(clinic.cycle, _DAY, cancer.regimens[0], code, False))
        add(Kind.LATER_LINE, [group], partial(clinic.cycle, _DAY, cancer.regimens[-1], code, False))
        add(Kind.FEVER, [group], partial(clinic.neutropenic_fever, _DAY, code))
        add(Kind.KIDNEY, [group], partial(clinic.kidney_injury, _DAY, code))
        add(Kind.TERMINAL, [group], partial(clinic.terminal_stay, death, code))
        first[[Kind.OPERATION, Kind.RADIATION], group] = first[Kind.FOLLOW_UP, group]
        if cancer.surgery:
            add(Kind.OPERATION, [group], partial(clinic.operation, _DAY, cancer, code))
        if cancer.radiation:
            add(Kind.RADIATION, [group], partial(clinic.radiation, _DAY, cancer, code))
    add(Kind.TERMINAL, [len(CANCERS)], partial(clinic.terminal_stay, death, "I50.9"))
    return made, first
