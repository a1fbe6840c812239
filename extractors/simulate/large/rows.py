"""The rows of a range's tables as numbers, and what a night changes of them."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from extractors.simulate.large.course import Subjects, Visits
from extractors.simulate.large.library import FURTHER, I64, VARIANTS, Kind, library
from extractors.simulate.record import DAY, ICD10_DAY

Columns = dict[str, npt.NDArray[np.int64]]
NONE = -1
"""In place of a number that the export does not give."""
_SHARES = {"diagnoses": 0.3, "medications": 0.2, "labs": 0.1}
"""Of rows, how many have a further code; of diagnoses and drugs, those of visits for no cancer alone."""


@dataclass(frozen=True)
class RangeRows:
    """Rows by table: every table's `subject` is the row in `subjects`. Times are seconds since 1970, dates days."""

    subjects: Subjects
    tables: dict[str, Columns]


def draw_rows(draw: np.random.Generator, subjects: Subjects, visits: Visits) -> dict[str, Columns]:
    """The rows of visits, in their order, by table."""
    made = library()
    encounters = {
        "subject": visits.subject,
        "order": visits.order,
        "type": made.patient_class[visits.visit],
        "start": visits.start + made.start[visits.visit],
        "end": visits.start + made.end[visits.visit],
    }
    tables = {"encounters": encounters} | {name: _repeated(name, visits) for name in made.rows}
    plain = np.isin(visits.visit, _plain_visits())
    for name, column in (("diagnoses", "code"), ("medications", "drug"), ("labs", "test")):
        rows = tables[name]
        further = draw.random(len(rows["subject"])) < _SHARES[name]
        if name != "labs":
            further &= plain[rows["at"]]
        rows[column] = np.where(further, _further(draw, name, len(further)), rows[column])
        if name == "labs":
            level = 20 + (rows["test"] * 7919) % 1_000  # of a further test, some usual value
            number = np.where(further, level, rows["value"]) * (1 + 0.1 * draw.standard_normal(len(further)))
            rows["text"] = np.where(further, NONE, rows["text"])
            rows["value"] = np.where(rows["text"] >= 0, NONE, np.clip(np.rint(number), 0, 99_999)).astype(np.int64)
    labs = tables["labs"]
    labs["lab"] = np.arange(len(labs["subject"])) - np.searchsorted(labs["subject"], labs["subject"])
    diagnoses = tables["diagnoses"]
    diagnoses["recorded"] = encounters["end"][diagnoses["at"]] // DAY
    old = diagnoses["recorded"] < ICD10_DAY
    diagnoses["code"] = np.where(old, made.diagnoses_icd9[diagnoses["code"]], diagnoses["code"])
    return tables


def _repeated(name: str, visits: Visits) -> Columns:
    """The library's rows of visits; times are the visits', `at` is the row's visit."""
    laid = library().rows[name]
    first, counts = laid.starts[visits.visit], np.diff(laid.starts)[visits.visit]
    at = np.repeat(np.arange(len(visits)), counts)
    sequence = np.arange(len(at)) - np.repeat(np.cumsum(counts) - counts, counts)
    row = first[at] + sequence
    columns = {column: values[row] for column, values in laid.columns.items()}
    for column in ("collected", "resulted", "given"):
        if column in columns:
            columns[column] = np.where(columns[column] < 0, NONE, columns[column] + visits.start[at])
    if "day" in columns:
        columns["day"] = columns["day"] + visits.start[at] // DAY
    return {"at": at, "subject": visits.subject[at], "order": visits.order[at], "sequence": sequence + 1} | columns


def _plain_visits() -> I64:
    """Visits of the library that are for no cancer."""
    made = library()
    firsts = np.unique(made.first[[Kind.CHRONIC, Kind.EMERGENCY, Kind.ACUTE, Kind.INTENSIVE]])
    return (firsts[:, None] + np.arange(VARIANTS)).ravel()


def _further(draw: np.random.Generator, name: str, number: int) -> I64:
    """Further codes, the n-th about as often as 1 / (n + 20)."""
    made = library()
    kind, known = {
        "diagnoses": ("diagnoses", len(made.diagnoses)),
        "medications": ("drugs", len(made.drugs)),
        "labs": ("tests", len(made.tests)),
    }[name]
    size = FURTHER[kind]
    among = np.floor(20 * (1 + size / 20) ** draw.random(number) - 20).astype(np.int64)
    return np.asarray(known - size + np.clip(among, 0, size - 1), dtype=np.int64)
