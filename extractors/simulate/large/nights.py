"""What a later export of the same large hospital has: changes spread over all patients, one patient's, or none.

Every table is exported whole. What does not change is the same text, in the same place unless rows come in another
order.
"""

import numpy as np
import numpy.typing as npt

from extractors.simulate.codes import CONDITIONS
from extractors.simulate.large.course import RANGE, Subjects, Visits
from extractors.simulate.large.library import I64, VARIANTS, Kind, library
from extractors.simulate.large.rows import NONE, Columns, RangeRows, draw_rows
from extractors.simulate.record import DAY

NIGHTS = {
    "first": "the hospital as it is first exported",
    "next": "1 % of the patients changed: 6 in 10 have a visit more, 3 a corrected result, 1 lost a row or is gone",
    "one": "one patient has a visit more",
    "reordered": "the same rows in another order",
}
CHANGED_SHARE = 0.01
_SEED = 90
# Of ten changed patients in turn.
_CHANGES = ("visit",) * 6 + ("corrected",) * 3 + ("withdrawn",)
Changes = dict[int, str]
"""By row in Subjects, what becomes of a patient: `visit`, `corrected`, `withdrawn_row` or `withdrawn`."""


def changes_of(night: str, seed: int, index: int, subjects: Subjects, total: int) -> Changes:
    """What a night changes in the range of that index.

    Args:
        total: patients of the hospital: those beyond are not exported.
    """
    if night == "one":
        index_of_one, row = divmod(total // 2, RANGE)
        return {row: "visit"} if index == index_of_one else {}
    if night != "next":
        return {}
    draw = np.random.default_rng([seed, _SEED, index])
    chosen = np.sort(draw.choice(RANGE, round(RANGE * CHANGED_SHARE), replace=False))
    changes: Changes = {}
    for number, row in enumerate(chosen.tolist()):
        change = _CHANGES[number % len(_CHANGES)]
        if change == "visit" and subjects.death[row] >= 0:
            change = "corrected"
        if change == "withdrawn" and (index % 2 or subjects.imaging[row]):
            change = "withdrawn_row"
        changes[row] = change
    return {row: change for row, change in changes.items() if subjects.number[row] <= total}


def changed(rows: RangeRows, changes: Changes, seed: int, index: int) -> RangeRows:
    """The rows as they are after the changes."""
    if not changes:
        return rows
    subjects, tables = rows.subjects, dict(rows.tables)
    labs = tables["labs"] = {name: values.copy() for name, values in tables["labs"].items()}
    numeric = labs["value"] != NONE
    for row in _those(changes, "corrected"):
        result = np.flatnonzero((labs["subject"] == row) & numeric)[0]
        labs["value"][result] += 1
    gone = [np.flatnonzero(labs["subject"] == row)[-1] for row in _those(changes, "withdrawn_row")]
    tables["labs"] = {name: np.delete(values, gone) for name, values in labs.items()}
    tables = _with_visits(np.random.default_rng([seed, _SEED + 1, index]), subjects, tables, _those(changes, "visit"))
    withdrawn = _those(changes, "withdrawn")
    return RangeRows(subjects, {name: _without(columns, withdrawn) for name, columns in tables.items()})


def shuffled(rows: RangeRows, seed: int, index: int) -> RangeRows:
    """The same rows, those of each table in another order."""
    draw = np.random.default_rng([seed, _SEED + 2, index])
    tables = {}
    for name, columns in rows.tables.items():
        order = draw.permutation(len(columns["subject"]))
        tables[name] = {column: values[order] for column, values in columns.items()}
    return RangeRows(rows.subjects, tables)


def order_of_ranges(night: str, seed: int, ranges: int) -> list[int]:
    """In which order the ranges are exported."""
    if night != "reordered":
        return list(range(ranges))
    return [int(index) for index in np.random.default_rng([seed, _SEED + 3]).permutation(ranges)]


def _those(changes: Changes, change: str) -> I64:
    return np.asarray([row for row, what in changes.items() if what == change], dtype=np.int64)


def _without(columns: Columns, subjects: I64) -> Columns:
    kept = ~np.isin(columns["subject"], subjects)
    return {name: values[kept] for name, values in columns.items()}


def _with_visits(
    draw: np.random.Generator, subjects: Subjects, tables: dict[str, Columns], more: I64
) -> dict[str, Columns]:
    """A check of a chronic disease for each of some patients, a month behind their last visit; behind their rows."""
    before = np.bincount(tables["encounters"]["subject"], minlength=len(subjects))
    chronic = library().first[Kind.CHRONIC, draw.integers(0, len(CONDITIONS), len(more))]
    visits = Visits(
        subject=more,
        order=before[more] + 1,
        visit=chronic + draw.integers(0, VARIANTS, len(more)),
        start=(subjects.last_day[more] + 30) * DAY + draw.integers(0, 120, len(more)) * 60,
    )
    added = draw_rows(draw, subjects, visits)
    labs = np.bincount(tables["labs"]["subject"], minlength=len(subjects))
    added["labs"]["lab"] += labs[added["labs"]["subject"]]
    joined = dict(tables)
    for name, columns in added.items():
        both = {column: np.concatenate([tables[name][column], columns[column]]) for column in columns}
        order = np.argsort(both["subject"], kind="stable")
        joined[name] = {column: values[order] for column, values in both.items()}
    return joined


def selected(rows: RangeRows, kept: npt.NDArray[np.bool_]) -> RangeRows:
    """The rows of some patients alone."""
    others = np.flatnonzero(~kept)
    return RangeRows(rows.subjects, {name: _without(columns, others) for name, columns in rows.tables.items()})
