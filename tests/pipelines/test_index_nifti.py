"""NIfTI among CT: tied by a crosswalk of paths, beside DICOM that says itself whose it is."""

from pathlib import Path
from typing import Any

import polars as pl

from tests.support.images.indexing import index_images
from tests.support.images.nifti import body, write_dicom, write_nifti


def crosswalk(path: Path, *lines: str, **keys: Any) -> dict[str, Any]:
    path.write_text("\n".join(["match,subject_id,time", *lines]) + "\n", encoding="utf-8")
    return {"file": str(path), "match": "path", **keys}


def mixed(folder: Path) -> Path:
    """Two volumes in NIfTI, one of which nobody lists, and two of DICOM, the second without a patient."""
    write_nifti(folder / "nifti" / "a.nii.gz", body(seed=1))
    write_nifti(folder / "nifti" / "b.nii", body(seed=2))
    write_dicom(folder / "dicom" / "1", body(seed=3), series="1", PatientID="21")
    write_dicom(folder / "dicom" / "2", body(seed=4), series="2", PatientID="", StudyInstanceUID="2.25.97")
    return folder


def rows(items: pl.DataFrame) -> list[tuple[int | None, str, str]]:
    found = items.select("subject_id", "verdict", "time_source").rows()
    return sorted(found, key=lambda row: (row[0] or 0, row[1]))


def test_a_crosswalk_of_paths_ties_nifti_and_leaves_dicom_what_it_says(tmp_path: Path) -> None:
    tree = mixed(tmp_path / "tree")
    lines = [
        "nifti/a.nii.gz,11,2021-05-01 08:00:00",
        "dicom\\2,12,2021-05-02 08:00:00",
        "nifti/away.nii.gz,13,2021-05-03 08:00:00",
    ]
    items, reports = index_images(
        tmp_path, "ct", {"path": str(tree), "crosswalk": crosswalk(tmp_path / "x.csv", *lines, artificial=True)}
    )
    assert rows(items) == [
        (None, "failed_no_subject", ""),
        (11, "ok", "crosswalk"),
        (12, "ok", "crosswalk"),
        (13, "failed_missing_file", "crosswalk"),
        (21, "ok", "AcquisitionDate+AcquisitionTime"),
    ]
    assert items["artificial_link"].all()
    assert not any("nii" in text for text in items["geometry"])
    # Another table ties anew what stands as it did, and reads no file.
    lines[0] = "nifti/b.nii,14,2021-05-01 08:00:00"
    again, reports = index_images(
        tmp_path, "ct", {"path": str(tree), "crosswalk": crosswalk(tmp_path / "x.csv", *lines)}
    )
    assert reports["scan"].ran == 0
    assert [row[0] for row in rows(again)] == [None, 12, 13, 14, 21]


def test_without_a_crosswalk_nobody_knows_whose_they_are(tmp_path: Path) -> None:
    items, _ = index_images(tmp_path, "ct", {"path": str(mixed(tmp_path / "tree"))})
    assert [row[:2] for row in rows(items)] == [(None, "failed_no_subject")] * 3 + [(21, "ok")]


def test_a_line_without_a_time_is_no_time(tmp_path: Path) -> None:
    write_nifti(tmp_path / "tree" / "a.nii", body())
    links = crosswalk(tmp_path / "x.csv", "a.nii,11,")
    items, _ = index_images(tmp_path, "ct", {"path": str(tmp_path / "tree"), "crosswalk": links})
    assert rows(items) == [(11, "failed_no_time", "")]


def test_the_same_volume_of_two_subjects_is_usable_for_neither(tmp_path: Path) -> None:
    write_nifti(tmp_path / "tree" / "a.nii", body(), "LPS")
    write_nifti(tmp_path / "tree" / "b.nii.gz", body(), "RAS")
    links = crosswalk(tmp_path / "x.csv", "a.nii,11,2021-05-01 08:00", "b.nii.gz,12,2021-05-01 08:00")
    items, _ = index_images(tmp_path, "ct", {"path": str(tmp_path / "tree"), "crosswalk": links})
    assert set(items["verdict"]) == {"failed_two_subjects"}


def test_a_new_file_is_read_alone_and_its_copies_are_counted(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    write_nifti(tree / "a.nii", body((64, 60, 40)))
    links = crosswalk(
        tmp_path / "x.csv", *(f"{name},{number},2021-05-01 08:00" for number, name in enumerate(("a.nii", "b.nii"), 11))
    )
    settings = {"path": str(tree), "crosswalk": links}
    index_images(tmp_path, "ct", settings)
    write_nifti(tree / "b.nii", body((64, 60, 40)) + 3)
    items, reports = index_images(tmp_path, "ct", settings)
    assert reports["scan"].total("read") == 1
    assert all('"near_copies": 1' in text for text in items.filter(pl.col("verdict") == "ok")["geometry"])
    assert items.filter(pl.col("verdict") == "ok").height == 2


def test_the_least_number_of_slices_is_judged_without_reading_anew(tmp_path: Path) -> None:
    write_nifti(tmp_path / "tree" / "a.nii", body()[:, :, :12])
    links = crosswalk(tmp_path / "x.csv", "a.nii,11,2021-05-01 08:00")
    settings: dict[str, Any] = {"path": str(tmp_path / "tree"), "crosswalk": links}
    few, _ = index_images(tmp_path, "ct", settings)
    enough, reports = index_images(tmp_path, "ct", settings | {"nifti": {"least_slices": 12}})
    assert (few["verdict"].to_list(), enough["verdict"].to_list()) == (["failed_too_few_slices"], ["ok"])
    assert reports["scan"].ran == 0
