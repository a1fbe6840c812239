"""Whose an image is: by its header, its issuer, or a crosswalk; and what nobody ties is counted."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pydicom
import pytest

from pipelines.config import RunConfig
from tests.support.images.indexing import index_images
from tests.support.images.phantoms import stained, write_series, write_tiff
from warehouse.errors import TimeloomError


def noise(seed: int) -> Any:
    return lambda place: np.random.default_rng(100 * seed + place).integers(-1000, 1000, (32, 32)).astype(np.float32)


def crosswalk(path: Path, match: str, *lines: str, **keys: Any) -> dict[str, Any]:
    path.write_text("\n".join(["match,subject_id,time", *lines]) + "\n", encoding="utf-8")
    return {"file": str(path), "match": match, **keys}


def tied(work: Path, modality: str, tree: Path, **settings: Any) -> list[tuple[int | None, str]]:
    items, _ = index_images(work, modality, {"path": str(tree), **settings})
    return sorted(items.select("subject_id", "verdict").rows(), key=lambda row: (row[0] or 0, row[1]))


MATCHES = {"study_uid": "2.25.71{0}", "series_uid": "2.25.{0}", "accession_number": "A{0}", "patient_id": "P{0}"}


@pytest.mark.parametrize("match", MATCHES)
def test_ct_is_tied_by_what_its_headers_say(tmp_path: Path, match: str) -> None:
    for number in (1, 2, 3):
        said = {"StudyInstanceUID": f"2.25.71{number}", "AccessionNumber": f"A{number}", "PatientID": f"P{number}"}
        write_series(tmp_path / "tree" / str(number), image=noise(number), series=str(number), **said)
    named = [MATCHES[match].format(number) for number in (1, 2)]
    links = crosswalk(tmp_path / "x.csv", match, f"{named[0]},11,", f"{named[1]},12,2021-05-01 08:00:00")
    found = tied(tmp_path, "ct", tmp_path / "tree", crosswalk=links)
    assert found == [(None, "failed_no_subject"), (11, "ok"), (12, "ok")]


def test_a_crosswalk_ties_what_has_no_patient_and_no_time(tmp_path: Path) -> None:
    bare = {"PatientID": "", "AcquisitionDate": None, "SeriesDate": None, "StudyInstanceUID": "2.25.71"}
    write_series(tmp_path / "tree", image=noise(1), **bare)
    assert tied(tmp_path / "a", "ct", tmp_path / "tree") == [(None, "failed_no_subject")]
    for name, time, verdict in (("b", "2021-05-01 08:00:00", "ok"), ("c", "", "failed_no_time")):
        links = crosswalk(tmp_path / f"{name}.csv", "study_uid", f"2.25.71,11,{time}")
        assert tied(tmp_path / name, "ct", tmp_path / "tree", crosswalk=links) == [(11, verdict)]


def test_dicom_slides_are_tied_by_what_their_headers_say(real_data: Path, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    slide = pydicom.dcmread(real_data / "wsi" / "boxes_0.dcm")
    slide.AccessionNumber = "S-77"
    slide.save_as(tmp_path / "tree" / "a.dcm")
    write_tiff(tmp_path / "tree" / "b.svs", stained(seed=1), 0.5)  # has no header to match
    for match, named in (("series_uid", slide.SeriesInstanceUID), ("accession_number", "S-77")):
        links = crosswalk(tmp_path / f"{match}.csv", match, f"{named},11,2021-05-01 08:00:00")
        found = tied(tmp_path / match, "wsi", tmp_path / "tree", crosswalk=links)
        assert found == [(None, "failed_no_subject"), (11, "failed_no_tissue")]


def test_a_modality_names_what_a_crosswalk_may_match(tmp_path: Path) -> None:
    named = {"file": "x.csv", "match": "study_uid"}
    block = {"path": str(tmp_path), "crosswalk": named, "encoder": {"name": "random-ecg", "width": 1024}}
    with pytest.raises(ValueError, match=r"modalities\.ecg\.crosswalk\.match is study_uid; ecg items are named"):
        RunConfig.model_validate(
            {"sources": [{"source": "simulated-hospital", "path": str(tmp_path)}], "modalities": {"ecg": block}}
        )


def test_slides_that_the_crosswalk_does_not_list_are_counted(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for number in (1, 2, 3):
        write_tiff(tree / "batch one" / f"{number}.svs", stained(seed=number), 0.5)
    # Backslashes part folders, and a file that is not there is another thing than one that is not listed.
    links = crosswalk(
        tmp_path / "x.csv", "path", r".\batch one\1.svs,11,2020-01-01 10:00:00", "gone.svs,12,2020-01-01 10:00:00"
    )
    found = tied(tmp_path, "wsi", tree, crosswalk=links)
    assert found == [(None, "failed_no_subject"), (None, "failed_no_subject"), (11, "ok"), (12, "failed_missing_file")]


def test_a_link_to_nowhere_is_a_slide_that_is_missing(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    for name in ("a.svs", "b.svs"):
        (tmp_path / "tree" / name).symlink_to(tmp_path / "nowhere")
    links = crosswalk(tmp_path / "x.csv", "path", "a.svs,11,2020-01-01 10:00:00")
    found = tied(tmp_path, "wsi", tmp_path / "tree", crosswalk=links)
    assert found == [(None, "failed_no_subject"), (11, "failed_missing_file")]


def test_another_file_of_a_listed_slide_is_listed_too(real_data: Path, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    for name in ("boxes_0.dcm", "boxes_1.dcm"):
        (tmp_path / "tree" / name).write_bytes((real_data / "wsi" / name).read_bytes())
    links = crosswalk(tmp_path / "x.csv", "path", "boxes_1.dcm,11,2020-01-01 10:00:00")
    assert tied(tmp_path, "wsi", tmp_path / "tree", crosswalk=links) == [(11, "failed_no_tissue")]


@pytest.mark.parametrize("modality", ["ct", "wsi"])
def test_folders_that_hide_something_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, modality: str
) -> None:
    tree, beyond = tmp_path / "tree", tmp_path / "beyond"
    write_series(tree / "ct", image=noise(1), PatientID="11")
    write_tiff(tree / "a.svs", stained(seed=1), 0.5)
    write_series(beyond, image=noise(2), series="2", PatientID="12")
    (tree / "linked").symlink_to(beyond)
    (tree / "ct" / "closed").mkdir()
    original = os.scandir

    def denied(path: Any) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(13, "denied", str(path))
        return original(path)

    monkeypatch.setattr(os, "scandir", denied)
    lines = ["a.svs,11,2020-01-01 10:00:00"]
    more = {"crosswalk": crosswalk(tmp_path / "x.csv", "path", *lines)} if modality == "wsi" else {}
    verdicts = [verdict for _, verdict in tied(tmp_path, modality, tree, **more)]
    assert verdicts.count("refused_linked_folder") == verdicts.count("failed_unlisted_folder") == 1
    assert verdicts.count("ok") == 1


def test_a_crosswalks_ids_are_not_mended_by_the_keys_of_headers(tmp_path: Path) -> None:
    write_tiff(tmp_path / "tree" / "a.svs", stained(seed=1), 0.5)
    links = crosswalk(tmp_path / "x.csv", "path", "a.svs,1012,2020-01-01 10:00:00")
    keys = {"subject_normalise": [r"^10(\d+)$"], "subject_pattern": r"\d\d"}
    assert tied(tmp_path / "1", "wsi", tmp_path / "tree", crosswalk=links, **keys) == [(1012, "ok")]
    assert tied(tmp_path / "2", "wsi", tmp_path / "tree", crosswalk=links | keys) == [(12, "ok")]


def test_a_contradiction_stops_the_run_and_names_the_key(tmp_path: Path) -> None:
    write_tiff(tmp_path / "tree" / "a.svs", stained(seed=1), 0.5)
    links = crosswalk(tmp_path / "SECRET.csv", "path", "a.svs,11,", "b.svs,1,", "a.svs,12,")
    with pytest.raises(TimeloomError, match=r"lines 2 and 4 of modalities\.wsi\.crosswalk\.file") as caught:
        tied(tmp_path, "wsi", tmp_path / "tree", crosswalk=links)
    assert "SECRET" not in str(caught.value)


# Issuers --------------------------------------------------------------------------------------------------------------

HASH = {"mode": "expert", "subject_ids": "hash", "dates": "keep"}


def issued(work: Path, tree: Path, **settings: Any) -> pl.DataFrame:
    items, _ = index_images(work, "ct", {"path": str(tree), **settings}, deid=HASH)
    return items


def subjects_by_gap(items: pl.DataFrame) -> dict[float, int | None]:
    return {
        json.loads(geometry)["gap_mm"]: subject for geometry, subject in items.select("geometry", "subject_id").rows()
    }


def test_one_id_of_two_issuers_is_two_subjects(tmp_path: Path) -> None:
    for number, issuer in enumerate(["Hospital", " HOSPITAL ", "Clinic", None], 1):
        write_series(
            tmp_path / "tree" / str(number), image=noise(number), series=str(number), gap=float(number),
            PatientID="P504^^^X", IssuerOfPatientID=issuer,
        )  # fmt: skip
    keys = {"subject_normalise": [r"^P(\d+)\^"]}
    first = subjects_by_gap(issued(tmp_path / "1", tmp_path / "tree", **keys))
    assert first[1] == first[2] != first[3] != first[4] and len(set(first.values())) == 3
    # Whose ids the tables have can be said: then theirs are as in the tables, where no issuer stands.
    second = subjects_by_gap(issued(tmp_path / "1", tmp_path / "tree", issuers=["hospital"], **keys))
    assert second[1] == second[2] == second[4] == first[4] and second[3] == first[3]


def test_an_id_that_one_issuer_gave_is_the_tables(tmp_path: Path) -> None:
    write_series(tmp_path / "a", image=noise(1), gap=1.0, PatientID="504", IssuerOfPatientID="HOSPITAL")
    write_series(tmp_path / "b", image=noise(1), gap=1.0, PatientID="504")
    first, second = (subjects_by_gap(issued(tmp_path / "1", tmp_path / name)) for name in "ab")
    assert first == second and None not in first.values()
