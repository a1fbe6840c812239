"""Losses, patients of one table, missed keys and events in tokens, as the report shows them; small cells hidden."""

from pathlib import Path

import pytest

from tests.support import patients, releases
from tests.validation.gate import around
from validation.measure.losses import Earlier
from validation.measure.measured_release import MeasuredRelease
from validation.measurements import Measurements, measure_release
from validation.report.around_tables import join_table, loss_table, subject_table, tokenised_table
from validation.report.cells import SMALL, WITHHELD, Cells
from warehouse.manifest import ContentEntry

SOURCES = ["hospital/labs/0", "hospital/patients/0"]
DEATHS = ContentEntry(kind="table", name="deaths", within="hospital", counts={"rows": 7})
LABS = ContentEntry(kind="table", name="labs", within="hospital", counts={"rows": 500})
OPEN, CLOSED = Cells(open=True), Cells(open=False)


@pytest.fixture(scope="module")
def measurements(tmp_path_factory: pytest.TempPathFactory) -> Measurements:
    """Labs had 500 rows, seven deaths are gone and agreed to, one of four patients with CT is in no table."""
    tree = patients.make_tree(Path(tmp_path_factory.mktemp("release")))
    around.image_of_a_stranger(tree)
    around.missed_join(tree)
    return measure_release(
        MeasuredRelease(
            tree=tree,
            buckets=releases.BUCKETS,
            profiles={releases.PROFILE: patients.entry()},
            schemes={releases.SCHEME: releases.FRACTIONS},
            sources=SOURCES,
            earlier=[Earlier("2026-11-20", [LABS, DEATHS], {})],
            accepted=["deaths"],
        )
    )


def test_losses_name_the_part_both_numbers_and_what_was_agreed_to(measurements: Measurements) -> None:
    rows = loss_table(measurements, OPEN).rows
    assert [[row[name] for name in ("part", "before", "now", "result")] for row in rows] == [
        ["table deaths of hospital", 7, 0, "agreed to"],
        ["table labs of hospital", 500, 181, "refused"],
    ]
    assert rows[1]["share"] == pytest.approx(319 / 500)
    hidden = loss_table(measurements, CLOSED).rows
    assert [(row["before"], row["now"], row["share"]) for row in hidden] == [(SMALL, 0, 1.0), (500, 180, 0.6)]


def test_patients_of_one_table_are_counted_by_table_and_modality(measurements: Measurements) -> None:
    rows = subject_table(measurements, OPEN).rows
    assert [[row[name] for name in ("kind", "name", "known", "alone", "share")] for row in rows] == [
        ["table", "labs", 40, 0, 0.0],
        ["modality", "ct", 3, 1, 0.25],
        ["modality", "wsi", 1, 0, 0.0],
    ]
    ct = subject_table(measurements, CLOSED).rows[1]
    assert (ct["known"], ct["alone"], ct["share"]) == (SMALL, SMALL, WITHHELD)


def test_missed_keys_are_counted_join_by_join(measurements: Measurements) -> None:
    (row,) = join_table(measurements, OPEN).rows
    assert row == {"table": "labs", "join": "units by unit", "found": 40, "missed": 60, "share": 0.6}


def test_the_share_of_clinical_events_that_became_tokens(measurements: Measurements) -> None:
    """180 laboratory values; births and facts without a time are no clinical events of a time."""
    assert tokenised_table(measurements, OPEN).rows == [
        {"profile": "mehrt", "clinical": 180, "in_tokens": 180, "share": 1.0}
    ]
