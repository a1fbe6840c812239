"""What a triplet says of its record, and why one is set aside; docs/clinifuse.md has the rules."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

from pipelines.clinifuse.settings import GraphsConfig, TripletsConfig
from pipelines.clinifuse.studies import pair
from pipelines.clinifuse.visits import visits_of
from pipelines.config import parse_config
from pipelines.papers import triplets
from tests.support.visits import at, events_of, items_of, write_events
from warehouse.errors import TimeloomError
from warehouse.layout import ReleaseLayout

FILM, TEXT = {"modality": "cxr"}, {"modality": "note", "tokens": 50}
STAYS: list[dict[str, Any]] = [
    {"subject": 1, "visit": 5, "hours": -200, "code": "HOSPITAL_ADMISSION/A", "kind": "visit_start"},
    {"subject": 1, "visit": 5, "hours": -100, "code": "HOSPITAL_DISCHARGE/A", "kind": "visit_end"},
    {"subject": 1, "visit": 7, "hours": 5, "code": "HOSPITAL_ADMISSION/A", "kind": "visit_start"},
    {"subject": 1, "visit": 7, "hours": 48, "code": "HOSPITAL_DISCHARGE/A", "kind": "visit_end"},
    {"subject": 1, "visit": 7, "hours": 48, "code": "ICD9CM/486", "value": 1},
    {"subject": 1, "visit": 7, "hours": 30, "code": "ICD10CM/A419", "value": 2},
    {"subject": 1, "visit": 7, "hours": 6, "code": "LOINC/1", "value": 0.5},
    {"subject": 1, "visit": 9, "hours": 60, "code": "HOSPITAL_ADMISSION/A", "kind": "visit_start"},
    {"subject": 1, "visit": 9, "hours": 70, "code": "HOSPITAL_DISCHARGE/A", "kind": "visit_end"},
]
ITEMS = [{"subject": 1, "key": "film", "hours": 1, **FILM}, {"subject": 1, "key": "text", "hours": 2, **TEXT}]


def made(folder: Path, parents: dict[str, list[str]] | None = None, **settings: Any) -> dict[str, Any]:
    """The record of the one study, which is four hours before the second of three admissions."""
    config, events, tree = TripletsConfig(**settings), events_of(STAYS), ReleaseLayout(folder)
    write_events(tree, events, parents or {})
    visits = visits_of(events)
    studies = triplets._with_record(pair(items_of(ITEMS), visits, config).studies, visits, config)
    params: Any = {"graphs": GraphsConfig().model_dump(mode="json")}
    return triplets._with_primary(studies, events, tree, params, config).row(0, named=True)


def test_the_record_ends_with_the_studys_own_visit(tmp_path: Path) -> None:
    found = made(tmp_path)
    assert (found["has_ehr"], found["visit_id"], found["visit_ids"]) == (True, 7, [5, 7])
    assert (found["ehr_cutoff_time"], found["triplet_id"]) == (at(1), "filmtext")
    assert made(tmp_path, cutoff="visit")["ehr_cutoff_time"] == at(48)


def test_visits_that_began_behind_the_cut_off_are_not_listed_and_the_own_one_is_last() -> None:
    """A slide of which the day alone is known counts from that day's start; an outpatient visit lies in the stay."""
    rows: list[dict[str, Any]] = [
        {"subject": 1, "visit": 7, "hours": -48, "code": "HOSPITAL_ADMISSION/A", "kind": "visit_start"},
        {"subject": 1, "visit": 7, "hours": 48, "code": "HOSPITAL_DISCHARGE/A", "kind": "visit_end"},
        {"subject": 1, "visit": 8, "hours": -3, "code": "OUTPATIENT", "kind": "visit_start"},
        {"subject": 1, "visit": 9, "hours": 8, "code": "OUTPATIENT", "kind": "visit_start"},
    ]
    items = [{"subject": 1, "key": "film", "hours": 23, "precision": "day", **FILM}, {**ITEMS[1], "hours": 22}]
    config, visits = TripletsConfig(), visits_of(events_of(rows))
    found = triplets._with_record(pair(items_of(items), visits, config).studies, visits, config).row(0, named=True)
    assert (found["ehr_cutoff_time"], found["visit_id"], found["visit_ids"]) == (at(0), 7, [8, 7])


def test_without_a_visit_there_is_no_record(tmp_path: Path) -> None:
    found = made(tmp_path, admission_hours=1)
    assert (found["has_ehr"], found["link_rule"]) == (False, "none")
    for name in ("ehr_cutoff_time", "visit_id", "visit_ids", "primary_dx", "primary_dx_time"):
        assert found[name] is None


def test_the_primary_diagnosis_is_the_lowest_number_through_its_only_parent(tmp_path: Path) -> None:
    single, several = {"ICD9CM/486": ["ICD10CM/J189", "CCS/122"]}, {"ICD9CM/486": ["ICD10CM/J189", "ICD10CM/J188"]}
    assert made(tmp_path, single)["primary_dx"] == "ICD10CM/J189"
    assert made(tmp_path, single)["primary_dx_time"] == at(48)
    assert made(tmp_path, several)["primary_dx"] == "ICD9CM/486", "nobody can say which of the two"
    assert made(tmp_path, single, primary_system=None)["primary_dx"] == "ICD9CM/486"
    assert made(tmp_path, single, primary="first")["primary_dx"] == "ICD10CM/A419"
    assert made(tmp_path, single, primary="none")["primary_dx"] is None


def test_why_a_triplet_is_set_aside() -> None:
    frame = pl.DataFrame(
        {
            "subject_id": [1, 2, 3, 4, 5],
            "split": ["train", None, "train", "train", "train"],
            "text_key": ["a", "b", "copy", "d", "e"],
            "image_keys": [["i"], ["copy"], ["j"], ["k", "copy"], ["l"]],
        }
    )
    copies, kept_out = pl.Series(["copy"], dtype=pl.String), pl.Series([5], dtype=pl.Int64)
    reasons = frame.select(triplets._reason(copies, kept_out)).to_series().to_list()
    assert reasons == [None, "no_split", "duplicate", "duplicate", "kept_out"]
    nothing = frame.select(triplets._reason(copies.clear(), kept_out.clear())).to_series().to_list()
    assert nothing == [None, "no_split", None, None, None]


@pytest.mark.parametrize("block", [{"duplicates": {"scheme": "other"}}, {"triplets": {"keep_out": ["other"]}}])
def test_a_scheme_that_there_is_not(block: dict[str, Any], tmp_path: Path) -> None:
    raw = {"sources": [{"source": "synthea", "path": "t"}], **block}
    with pytest.raises(TimeloomError, match="names the scheme other, which is not among mehrt"):
        parse_config(raw, tmp_path, "test")


@pytest.mark.parametrize(
    ("splits", "given", "expected"),
    [
        ({"mehrt": None, "clinifuse": None}, {}, ("mehrt",)),  # labels are evaluated on mehrt's held_out
        ({"mehrt": None, "clinifuse": None}, {"triplets": {"keep_out": []}}, ()),
        ({"mehrt": None, "clinifuse": None}, {"triplets": {"keep_out": ["clinifuse"]}}, ("clinifuse",)),
        ({"mehrt": None, "clinifuse": None}, {"labels": {"tasks": {}}}, ()),
        ({"mehrt": None, "clinifuse": None}, {"labels": {"scheme": "clinifuse"}}, ()),
        ({"mehrt": None}, {}, ()),
    ],
)
def test_who_is_evaluated_on_is_kept_out(
    tmp_path: Path, splits: dict[str, None], given: dict[str, Any], expected: tuple[str, ...]
) -> None:
    raw = {"sources": [{"source": "mimic-iv", "path": "raw"}], "splits": splits, "triplets": {}, **given}
    night: Any = SimpleNamespace(config=parse_config(raw, tmp_path, "run.yaml"))
    found = triplets.settings_of(night)
    assert found is not None and found.keep_out == expected
