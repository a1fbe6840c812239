"""Nights that make graphs, copies and triplets: what a release holds of a small ward, and the contract of every stage.

One rough site shows the contract: shuffled rows, an error and a kill in each stage, and Beam at the end.
"""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from pipelines import stages
from pipelines.engine.beam import BeamEngine
from pipelines.engine.local import LocalEngine
from tests.support.images.xrays import chest, write_image
from tests.support.nights.site import Site
from tests.support.nights.stage_contract import PATIENT, DyingEngine, KilledError, StageContract
from tests.support.notes import write_table
from validation.verify import verify_release
from warehouse import Release, TimeloomError
from warehouse.embeddings.environments import close_stores

# In `make test` alone: whole nights, with encoders.
pytestmark = pytest.mark.whole

OURS = [stage for stage in stages.STAGES if stage.name in ("digests", "duplicates", "triplets", "graphs")]
SUBJECTS, ALIKE = 12, 8
NORMAL = "Heart and lungs are normal in size and shape. There is no effusion. Nothing else was seen today."
SOURCE = {
    "name": "ward",
    "subject": "pid",
    "tables": {
        "visits": {
            "visit": "visit",
            "events": [
                {"code": "HOSPITAL_ADMISSION/{kind}", "time": "begin", "kind": "visit_start"},
                {"code": "HOSPITAL_DISCHARGE/HOME", "time": "end", "kind": "visit_end"},
            ],
        },
        "diagnoses": {"visit": "visit", "events": [{"code": "ICD10CM/{icd:icd}", "time": "coded", "value": "rank"}]},
        "labs": {"visit": "visit", "events": [{"code": "LOINC/{loinc}", "time": "taken", "value": "value"}]},
    },
}


def write_ward(folder: Path, *, shuffled: bool) -> Path:
    """A dozen patients: an admission of four days, two diagnoses, labs, a film and its report. The first eight have one
    report word for word, and one film."""
    order = range(SUBJECTS)[:: -1 if shuffled else 1]
    tables, films = folder / "tables", folder / "films"
    (folder / "ward.yaml").parent.mkdir(parents=True)
    (folder / "ward.yaml").write_text(yaml.safe_dump(SOURCE), encoding="utf-8")
    day = [f"2020-01-{2 + number:02d}" for number in range(SUBJECTS)]
    later = [f"2020-01-{6 + number:02d}" for number in range(SUBJECTS)]
    write_table(
        tables / "visits.csv", ("pid", "visit", "kind", "begin", "end"),
        [(number, 100 + number, "URGENT", f"{day[number]} 08:00:00", f"{later[number]} 12:00:00") for number in order],
    )  # fmt: skip
    diagnoses = [
        (number, 100 + number, icd, rank, f"{later[number]} 12:00:00")
        for number in order
        for icd, rank in (("J18.9", 1), ("A41.9", 2))
    ]
    write_table(tables / "diagnoses.csv", ("pid", "visit", "icd", "rank", "coded"), diagnoses)
    labs = [(number, 100 + number, "718-7", 9 + number, f"{day[number]} 09:00:00") for number in order]
    write_table(tables / "labs.csv", ("pid", "visit", "loinc", "value", "taken"), labs)
    for number in range(SUBJECTS):
        pixels = chest(0 if number < ALIKE else number, top=200)
        # Copies of one film, each a little brighter than the one before: other pixels, the same look.
        write_image(films / f"{number}.png", (pixels + (number if number < ALIKE else 0)).astype(np.uint8))
    taken = [(f"{number}.png", number, f"{day[number]} 10:00:00") for number in order]
    write_table(folder / "films.csv", ("image", "subject_id", "time"), taken)
    texts = [
        NORMAL if number < ALIKE else f"{NORMAL} Seen by doctor {number}. A word of his own: {number**5}."
        for number in range(SUBJECTS)
    ]
    notes = [(f"R{number}", number, f"{day[number]} 11:00:00", texts[number]) for number in order]
    write_table(folder / "notes" / "reports.csv", ("id", "pid", "written", "text"), notes)
    return folder


def site_of(folder: Path, *, shuffled: bool = False) -> Site:
    ward = write_ward(folder, shuffled=shuffled)
    rule = {"text": "text", "id": "id", "subject": "pid", "time": "written"}
    return Site(
        folder,
        {
            "sources": [{"source": "ward.yaml", "path": str(ward / "tables")}],
            "buckets": 2,
            "splits": {"clinifuse": {"train": 0.5, "tuning": 0.25, "held_out": 0.25}},
            "modalities": {
                "cxr": {
                    "path": str(ward / "films"),
                    "table": {"file": str(ward / "films.csv"), "match": "name"},
                    "encoder": {"name": "random-dinov2", "width": 768},
                },
                "note": {
                    "path": str(ward / "notes"),
                    "rules": {"reports": rule},
                    "keep_text": True,
                    "encoder": {"name": "random-bert", "width": 768},
                },
            },
            "graphs": {},
            "duplicates": {},
            "triplets": {},
        },
    )


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Site:
    site = site_of(tmp_path_factory.mktemp("calm") / "site")
    site.night()
    close_stores()
    return site


def release_of(site: Site) -> Release:
    return Release.open(site.layout.root)


def test_triplets_of_the_ward(calm: Site) -> None:
    reader = release_of(calm).triplets()
    every = reader.frame(every=True).sort("image_times")
    assert len(every) == SUBJECTS
    assert every["has_ehr"].all() and set(every["link_rule"]) == {"admission"}
    assert set(every["primary_dx"]) == {"ICD10CM/J189"}
    assert (every["primary_dx_time"] > every["ehr_cutoff_time"]).all()
    assert (every["ehr_cutoff_time"] == every["image_times"].list.first()).all()
    assert every["visit_ids"].list.last().to_list() == every["visit_id"].to_list()
    alike = every.filter(pl.col("segment_ends") == [len(NORMAL)])
    assert len(alike) == ALIKE
    first = alike.row(0, named=True)
    assert first["segment_begins"] == [0]
    pieces = zip(first["sentence_begins"], first["sentence_ends"], strict=True)
    assert [NORMAL[begin:end] for begin, end in pieces] == [f"{part}." for part in NORMAL[:-1].split(". ")]
    funnel = {row[:3]: row[3] for row in reader.funnel().iter_rows()}
    assert funnel["cxr", "text", "report"] == funnel["cxr", "visit", "admission"] == SUBJECTS
    assert funnel["all", "subjects", "triplet"] == SUBJECTS


def test_one_report_in_several_splits_is_used_in_train_alone(calm: Site) -> None:
    release, entry = release_of(calm), calm.manifest.duplicates
    assert entry is not None
    exact, near = entry.found["note"]["exact"], entry.found["note"]["near"]
    assert (exact["groups"], exact["copies"], exact["compared"]) == (1, ALIKE, SUBJECTS)
    assert near["copies"] >= ALIKE
    copies = release.copies()
    aside = copies.filter(modality="note", method="exact").filter("set_aside")
    others = copies.filter(modality="note", method="exact").filter(pl.col("split") != "train")
    assert sorted(aside["item_key"]) == sorted(others["item_key"]) and len(aside)
    triplets = release.triplets().frame(every=True)
    assert set(triplets.filter(pl.col("set_aside") == "duplicate")["text_key"]) >= set(aside["item_key"])
    usable = release.triplets().frame()
    assert not set(usable["text_key"]) & set(aside["item_key"])
    declared = calm.manifest.triplets
    assert declared is not None
    assert sum(declared.triplets.values()) == len(usable)
    assert declared.set_aside == {"duplicate": len(triplets) - len(usable)}


def test_films_that_look_alike_are_told_and_stay(calm: Site) -> None:
    entry = calm.manifest.duplicates
    assert entry is not None
    near = entry.found["cxr"]["near"]
    assert near["copies"] >= ALIKE and near["across_splits"] >= 1 and near["set_aside"] == 0
    assert entry.found["cxr"]["exact"]["copies"] == 0


def test_graphs_of_the_ward(calm: Site) -> None:
    reader = release_of(calm).graphs()
    triplets = release_of(calm).triplets().frame(every=True)
    for subject, cutoff in triplets.select("subject_id", "ehr_cutoff_time").iter_rows():
        (whole,) = reader.of_subject(subject)
        assert whole.num_nodes == {"diagnosis": 2, "procedure": 0, "medication": 0, "lab": 1, "vital": 0, "concept": 2}
        (known,) = reader.of_subject(subject, until=cutoff)
        assert (known.num_nodes["diagnosis"], known.num_nodes["lab"]) == (0, 1), "coded at discharge"
    assert sum(len(visits) for visits in reader) == SUBJECTS


def test_negatives_are_of_other_subjects_of_the_same_split(calm: Site) -> None:
    reader = release_of(calm).triplets()
    triplets = reader.frame(every=True).sort("text_key")
    rows = reader.negatives(triplets, 5, seed=1)
    assert rows.shape == (SUBJECTS, 5)
    assert np.array_equal(rows, reader.negatives(triplets, 5, seed=1))
    split, subject = triplets["split"].to_numpy(), triplets["subject_id"].to_numpy()
    assert (split[rows] == split[:, None]).all() and (subject[rows] != subject[:, None]).all()


def test_verify_is_clean_and_the_next_night_has_nothing_to_do(calm: Site) -> None:
    findings = {finding.check: finding for finding in verify_release(calm.layout.root)}
    assert all(finding.ok for finding in findings.values()), [
        finding for finding in findings.values() if not finding.ok
    ]
    assert findings["graphs"].detail.startswith(f"{SUBJECTS} visits")
    assert findings["triplets"].detail.startswith(f"{SUBJECTS}, each of one patient")
    assert calm.night().published is False
    close_stores()


def test_each_is_declared_whole(calm: Site) -> None:
    for stage in OURS:
        StageContract().test_it_is_declared_whole(stage)
        assert bool(calm.hashes(stage.name)) == stage.in_release


def test_a_rough_site_makes_the_same_release(calm: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = site_of(tmp_path / "site", shuffled=True)

    def fails(*_: object) -> None:
        raise ValueError(PATIENT)

    for stage in OURS:
        module, name = stage.run.split(":")
        with monkeypatch.context() as patched:
            patched.setattr(importlib.import_module(module), name, fails)
            with pytest.raises(TimeloomError) as caught:
                site.night(LocalEngine(1))
        messages = [str(caught.value), json.dumps(getattr(caught.value, "__notes__", []))]
        messages += [path.read_text(errors="ignore") for path in site.layout.logs.glob("*.log")]
        messages += [path.read_text(errors="ignore") for path in site.layout.work.rglob("*.error")]
        assert not any(word in message for word in PATIENT.split() for message in messages)
        close_stores()
        with pytest.raises(KilledError):
            site.night(DyingEngine(stage.name))
        close_stores()
    site.night(BeamEngine())
    close_stores()
    ours: dict[str, Any] = {stage.name: site.hashes(stage.name) for stage in OURS}
    assert ours == {stage.name: calm.hashes(stage.name) for stage in OURS}
