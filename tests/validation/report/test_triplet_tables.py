"""Tables of triplets and copies: what is told, and that nothing small can be worked out of what is."""

from dataclasses import dataclass
from typing import Any, cast

import polars as pl

from validation.measurements import Measurements
from validation.report.cells import Cells, Hidden
from validation.report.triplet_tables import copies_table, funnel_table

FUNNEL = [
    ("cxr", "images", "taken", 200),
    ("note", "texts", "report", 30),
    ("note", "texts", "of_no_study", 400),
    ("cxr", "text", "report", 30),
    ("cxr", "text", "summary", 3),
    ("cxr", "text", "none", 100),
    ("cxr", "visit", "admission", 18),
    ("cxr", "visit", "none", 15),
    ("cxr", "outcome", "train", 33),
    ("all", "subjects", "triplet", 20),
]


@dataclass
class Counted:
    funnel: pl.DataFrame
    copies: pl.DataFrame


def counted(copies: int = 50) -> Measurements:
    rows = [("cxr", "near", copies, 20, 12, 0), ("note", "exact", 60, 30, 4, 4)]
    names = ["modality", "method", "copies", "groups", "across", "set_aside"]
    funnel = pl.DataFrame(FUNNEL, schema=["source", "step", "rule", "number"], orient="row")
    return cast(Measurements, Counted(funnel, pl.DataFrame(rows, schema=names, orient="row")))


def numbers(measurements: Measurements, *, is_open: bool) -> dict[tuple[Any, Any], Any]:
    table = funnel_table(measurements, Cells(open=is_open))
    return {(row["step"], row["rule"]): row["number"] for row in table.rows}


def test_everything_is_told_of_simulated_patients() -> None:
    found = numbers(counted(), is_open=True)
    assert list(found.values()) == [number for *_, number in FUNNEL]
    assert found["studies, by their text", "summary"] == 3
    assert copies_table(counted(), Cells(open=True)).rows[1]["set_aside"] == 4


def test_a_small_number_of_studies_cannot_be_worked_out() -> None:
    found = numbers(counted(), is_open=False)
    assert isinstance(found["studies, by their text", "summary"], Hidden)
    # 33 outcomes less 30 reports would tell it, and so would 30 texts.
    assert isinstance(found["studies, by their text", "report"], Hidden)
    assert isinstance(found["texts", "report"], Hidden)
    assert found["studies, by their text", "none"] == 100
    assert found["triplets, by split or why they are set aside", "train"] == 33
    rows = copies_table(counted(copies=8), Cells(open=False)).rows
    assert all(isinstance(rows[0][name], Hidden) for name in ("copies", "groups", "across"))
    assert isinstance(rows[1]["across"], Hidden) and rows[1]["copies"] == 60
