"""What a release holds, counted by hand: tables, sources, modalities, namespaces; and subjects that one table knows."""

from pathlib import Path

import polars as pl
import pytest

from tests.support import patients, releases
from validation.measure.contents import Holdings, TableName, contents_of, subjects_alone, table_names
from validation.measure.measured_release import MeasuredRelease
from warehouse.layout import ReleaseLayout
from warehouse.manifest import ContentEntry

NO_IMAGES = pl.DataFrame(schema={"modality": pl.String, "items": pl.Int64, "subjects": pl.Int64, "alone": pl.Int64})


def holdings(sets: dict[str, int], births: str = "", static: str = "") -> Holdings:
    """Subjects by the tables that have them, `a b`; a table of `births` has births, one of `static` timeless facts."""
    labels = sorted({label for names in sets for label in names.split()})
    rows = [(label, "MEDS_BIRTH" if label in births.split() else "LAB", 5, 5 * (label in static)) for label in labels]
    return Holdings(
        pl.DataFrame(rows, schema=["label", "namespace", "events", "static"], orient="row"),
        pl.DataFrame({"labels": [names.split() for names in sets], "subjects": list(sets.values())}),
        NO_IMAGES,
    )


def alone(sets: dict[str, int], births: str = "", static: str = "", **sources: str) -> dict[str, int]:
    named = {label: TableName(sources.get(label, "site"), label) for names in sets for label in names.split()}
    return subjects_alone(holdings(sets, births, static), named)


def test_a_fact_table_whose_ids_are_written_otherwise_is_alone_and_patients_without_facts_are_not() -> None:
    assert alone({"patients": 20, "patients labs": 30, "labs": 2}, births="patients") == {"labs": 2}


def test_fact_tables_that_share_a_wrong_spelling_do_not_excuse_each_other() -> None:
    found = alone({"patients": 50, "labs notes": 50}, births="patients")
    assert found == {"labs": 50, "notes": 50}


def test_without_births_timeless_facts_define_patients_and_without_these_any_other_table_knows_a_subject() -> None:
    assert alone({"register labs": 8, "labs notes": 3}, static="register") == {"labs": 3, "notes": 3}
    assert alone({"labs notes": 8, "notes": 3}) == {"labs": 0, "notes": 3}


def test_a_table_of_another_source_knows_a_subject_too() -> None:
    sets = {"patients labs": 8, "labs scans": 2, "scans": 1}
    assert alone(sets, births="patients", scans="archive") == {"labs": 0, "scans": 1}


def test_of_one_table_with_subjects_nothing_is_said() -> None:
    assert alone({"labs": 8}) == {}


def test_tables_are_named_alike_whether_a_run_has_one_source_or_several() -> None:
    single = table_names(["hospital/labs/0", "hospital/labs/1"])
    several = table_names(["hospital/hospital/labs/0", "archive/archive/scans/0"])
    assert single["labs"] == several["hospital/labs"] == TableName("hospital", "labs")
    assert several["archive/scans"] == TableName("archive", "scans")


def measured(tree: ReleaseLayout) -> dict[tuple[str, str, str], dict[str, int]]:
    release = MeasuredRelease(
        tree=tree,
        buckets=releases.BUCKETS,
        profiles={releases.PROFILE: patients.entry()},
        schemes={releases.SCHEME: releases.FRACTIONS},
        sources=["hospital/patients/0", "hospital/labs/0", "hospital/units/0"],
    )
    return {entry.key: entry.counts for entry in release.contents}


def test_what_a_release_holds_is_counted(tmp_path: Path) -> None:
    """Of forty patients each has a sex and a birth, and 3 + (number mod 4) laboratory values: 40 * 4.5 = 180."""
    held = measured(patients.make_tree(tmp_path / "release"))
    assert held["table", "patients", "hospital"] == {"rows": 40, "events": 80, "subjects": 40}
    assert held["table", "labs", "hospital"] == {"rows": 181, "events": 180, "subjects": 40, "alone": 0}
    assert held["table", "units", "hospital"] == {"rows": 12, "events": 0, "subjects": 0}
    assert held["source", "hospital", ""] == {"rows": 233, "events": 260, "subjects": 40}
    # ct-a and ct-b are usable; the scout of a third patient is none.
    assert held["modality", "ct", ""] == {"items": 2, "subjects": 3, "alone": 0}
    assert held["modality", "wsi", ""] == {"items": 1, "subjects": 1, "alone": 0}
    assert held["namespace", "LOINC", "hospital/labs"] == {"events": 180}
    assert held["namespace", "MEDS_BIRTH", "hospital/patients"] == {"events": 40}


def test_rows_that_stand_twice_count_once_and_a_file_that_no_source_maps_is_no_table() -> None:
    ledger = pl.DataFrame(
        [
            ("labs", "raw", "", 100, 0),
            ("labs", "quarantined", "duplicate_row", 40, 0),
            ("unmapped-1", "raw", "", 9, 0),
            ("unmapped-1", "quarantined", "unmapped_table", 9, 0),
            ("all tables", "conflict", "after_death", 3, 0),
        ],
        schema=["table", "outcome", "reason", "rows", "events"],
        orient="row",
    )
    coverage = pl.DataFrame(
        [("mehrt", "LAB", "train", 10, 2, 5), ("mehrt", "LAB", "tuning", 1, 0, 0), ("mehrt", "NDC", "train", 0, 0, 7)],
        schema=["profile", "namespace", "split", "tokens", "unknown", "dropped"],
        orient="row",
    )
    found = contents_of(holdings({"labs": 7}), ledger, coverage, {})
    assert found == [
        ContentEntry(kind="table", name="labs", counts={"rows": 60, "events": 5, "subjects": 7}),
        ContentEntry(kind="namespace", name="LAB", within="labs", counts={"events": 5}),
        ContentEntry(kind="tokens", name="LAB", within="mehrt", counts={"tokens": 9}),
    ]


@pytest.mark.parametrize(("key", "unknown"), [("ct", 2), ("wsi", 1)])
def test_a_subject_whom_only_images_have_is_counted_though_an_image_failed(
    tmp_path: Path, key: str, unknown: int
) -> None:
    tree = patients.make_tree(tmp_path / "release")
    events = releases.read_all(tree, "events")
    gone = events.filter(~((pl.col("subject_id") < 3) & pl.col("item_key").is_null()))
    releases.write_buckets(tree, gone, "events")
    assert measured(tree)["modality", key, ""]["alone"] == unknown
