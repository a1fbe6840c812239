"""One content tied to two subjects is usable for neither; copies of one subject are one item."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.support.images.indexing import index_images
from tests.support.images.phantoms import disc, stained, write_series, write_tiff

TWO = "failed_two_subjects"


def noise(index: int) -> npt.NDArray[np.float32]:
    """A slice like no other; the same for the same number."""
    return np.random.default_rng(index).integers(-1000, 1000, (32, 32)).astype(np.float32) // 2 * 2


def verdicts(modality: str, work: Path, folder: Path, **settings: Any) -> tuple[dict[int | None, list[str]], int]:
    """By subject the verdicts of its items, and how many findings were of an item that was found already."""
    items, reports = index_images(work, modality, {"path": str(folder), **settings})
    found = items.sort("subject_id", "verdict").group_by("subject_id", maintain_order=True).agg("verdict")
    return dict(found.iter_rows()), reports["index"].total("found_again")


@pytest.mark.parametrize("same_uids", [True, False])
def test_a_copied_ct_folder_under_another_patient_is_usable_for_neither(tmp_path: Path, same_uids: bool) -> None:
    tree = tmp_path / "tree"
    write_series(tree / "a", image=noise, PatientID="1", series="1")
    other: dict[str, Any] = {} if same_uids else {"series": "2", "StudyInstanceUID": "2.25.97", "StudyDate": "20210101"}
    write_series(tree / "b", image=noise, PatientID="2", **{"series": "1"} | other)
    write_series(tree / "c", image=lambda index: noise(index + 50), PatientID="3", series="3")
    found, _ = verdicts("ct", tmp_path, tree)
    assert found[3] == ["ok"]
    # With the same UIDs they are slices of one series already, of whom nobody knows the patient.
    assert found == {3: ["ok"]} | ({None: ["failed_mixed_subjects"]} if same_uids else {1: [TWO], 2: [TWO]})


def test_volumes_that_differ_in_one_pixel_inside_are_two(tmp_path: Path) -> None:
    """Only the ends of each slice's pixels are compared at first, and here they are the same."""

    def large(value: float) -> npt.NDArray[np.float32]:
        image = np.random.default_rng(1).integers(-1000, 1000, (300, 300)).astype(np.float32) // 2 * 2
        image[150, 150] = value
        return image

    tree = tmp_path / "tree"
    for number, value in ((1, 100.0), (2, 102.0)):
        write_series(
            tree / str(number), 4, lambda _, value=value: large(value), PatientID=str(number), series=str(number)
        )
    assert verdicts("ct", tmp_path, tree)[0] == {1: ["ok"], 2: ["ok"]}


def test_phantoms_of_few_values_may_be_equal(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for number in (1, 2):
        write_series(tree / str(number), image=lambda _: disc(), PatientID=str(number), series=str(number))
    assert verdicts("ct", tmp_path, tree)[0] == {1: ["ok"], 2: ["ok"]}


def test_copies_of_one_patient_are_no_fault(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for number in (1, 2):
        write_series(tree / f"same{number}", image=lambda at: noise(at + 50), PatientID="1", series="1")
        write_series(
            tree / f"new{number}", image=noise, PatientID="4", series=str(3 + number), AcquisitionNumber=number
        )
    assert verdicts("ct", tmp_path, tree)[0] == {1: ["ok"], 4: ["ok", "ok"]}


def crosswalk(path: Path, *lines: str) -> dict[str, Any]:
    path.write_text("\n".join(["match,subject_id,time,mpp", *lines]) + "\n", encoding="utf-8")
    return {"file": str(path), "match": "path"}


def test_a_slide_in_two_files_of_two_subjects_is_usable_for_neither(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    write_tiff(tree / "b.svs", stained(seed=2), 0.5)
    (tree / "copy.svs").write_bytes((tree / "b.svs").read_bytes())
    write_tiff(tree / "c.svs", stained(seed=3), 0.5)
    lines = ["b.svs,3,2020-01-01 10:00:00,", "copy.svs,4,2020-01-02 10:00:00,"]
    lines += ["c.svs,5,2020-01-01 10:00:00,", "c.svs,5,2020-01-01 10:00:00,"]
    found, again = verdicts("wsi", tmp_path, tree, crosswalk=crosswalk(tmp_path / "slides.csv", *lines))
    assert found == {3: [TWO], 4: [TWO], 5: ["ok"]}
    assert again == 0  # lines that say the same are one


def test_a_patients_id_in_headers_is_mended_by_the_keys_of_its_block(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for number, patient in enumerate(["0007", "7.0", "P7^^^HOSP", "NULL", "X7"]):
        write_series(tree / str(number), image=noise, PatientID=patient, series=str(number))
    keys = {"subject_normalise": [r"^P?(\w+)\^", "strip_zeros"], "subject_pattern": r"\d+"}
    found, _ = verdicts("ct", tmp_path, tree, **keys)
    assert found == {None: ["failed_no_subject"] * 2, 7: ["ok"] * 3}
