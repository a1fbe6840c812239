"""`timeloom index`: what a tree of images holds, before any encoder is loaded."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.images.nifti import body, write_nifti
from tests.support.images.phantoms import stained, write_series, write_tiff
from tests.support.notes import write_discharge

# In `make test` alone: each test runs the command.
pytestmark = pytest.mark.whole

NAME = "DOE^JANE"


def index(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "flows.cli", "index", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CT volume, one that lacks a slice, a slide, a slide without a pixel size, and a text."""
    folder = tmp_path_factory.mktemp("images") / "tree"
    write_series(folder / "whole", slices=6)
    write_series(folder / "gap", slices=8, series="2")
    (folder / "gap" / "IM004").unlink()
    write_tiff(folder / "slides" / "good.svs", stained(), mpp=0.5)
    write_tiff(folder / "slides" / "blind.svs", stained(), mpp=None)
    (folder / f"{NAME}.txt").write_text("not an image")
    return folder


def groups(tree: Path, *more: object) -> dict[tuple[str, str], dict[str, Any]]:
    done = index(tree, "--json", *more)
    found = json.loads(done.stdout)
    assert done.returncode == found["exit_code"]
    return {(group["modality"], group["verdict"]): group for group in found["groups"]}


def test_items_verdicts_units_times_and_sizes_of_both_modalities(tree: Path) -> None:
    found = groups(tree)
    assert set(found) == {
        ("ct", "ok"), ("ct", "failed_missing_slice"), ("ct", "refused_not_dicom"), ("wsi", "ok"),
        ("wsi", "failed_no_mpp"),
    }  # fmt: skip
    volume = found["ct", "ok"]
    assert (volume["items"], volume["units"], volume["files"]) == (1, 6, 6)
    assert volume["bytes"] == sum(path.stat().st_size for path in (tree / "whole").iterdir())
    assert sum(volume["times"].values()) == 1
    assert "none" not in volume["times"]
    assert found["ct", "failed_missing_slice"]["files"] == 7
    assert found["wsi", "ok"]["units"] > 0
    assert found["wsi", "ok"]["bytes"] == (tree / "slides" / "good.svs").stat().st_size


def test_a_file_of_no_kind_is_counted_where_its_modality_has_items(tree: Path, tmp_path: Path) -> None:
    """And a magnetic resonance image is said although CT has no other item: it is nobody else's."""
    write_tiff(tmp_path / "good.svs", stained(), mpp=0.5)
    write_series(tmp_path / "mr", SOPClassUID="1.2.840.10008.5.1.4.1.1.4", Modality="MR")
    (tmp_path / "a.txt").write_text("not an image")
    found = groups(tmp_path)
    assert found["ct", "refused_not_ct"]["files"] == 6
    assert {modality for modality, _ in found} == {"ct", "cxr", "wsi"}
    assert ("ct", "refused_not_dicom") in groups(tree)


def test_one_modality_only(tree: Path) -> None:
    assert {modality for modality, _ in groups(tree, "--modality", "wsi")} == {"wsi"}


def test_a_tree_where_nothing_fails_ends_with_zero(tree: Path) -> None:
    assert index(tree / "whole").returncode == 0
    assert index(tree / "gap").returncode == 2


def test_the_terminal_names_no_file_and_the_list_is_its_owners(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "items.csv"
    done = index(tree, "--out", out)
    assert "failed_missing_slice" in done.stdout
    assert NAME not in done.stdout + done.stderr
    assert "IM000" not in done.stdout + done.stderr
    rows = list(csv.DictReader(out.open()))
    assert {(row["verdict"], row["first_file"].partition("/")[0]) for row in rows} >= {
        ("ok", "whole"), ("failed_missing_slice", "gap"), ("ok", "slides"), ("failed_no_mpp", "slides"),
    }  # fmt: skip
    assert out.stat().st_mode & 0o077 == 0


def test_the_same_for_any_number_of_workers(tree: Path) -> None:
    assert groups(tree, "--workers", 1) == groups(tree, "--workers", 3)


def test_no_folder_and_an_empty_one_are_one_clear_line(tree: Path, tmp_path: Path) -> None:
    shutil.copytree(tree / "whole", tmp_path / "whole")
    for folder in (tmp_path / "absent", tmp_path / "whole" / "IM000", tmp_path / "empty"):
        if folder.name == "empty":
            folder.mkdir()
        done = index(folder)
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
        assert "Traceback" not in done.stderr


def test_files_that_nobody_reads_are_counted_by_kind_and_nothing_usable_is_two(tree: Path, tmp_path: Path) -> None:
    foreign = tmp_path / NAME
    foreign.mkdir()
    (foreign / "brain.hdr").write_bytes((348).to_bytes(4, "little") + bytes(340) + b"ni1\0")
    for name in ("a", "b"):
        (foreign / name).write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99))
    for name in ("night.edf", "day.edf"):
        (foreign / name).write_bytes(b"0       " + bytes(64))
    found = "Found: 2 EDF, 2 HDF5, 1 NIfTI."
    done = index(foreign)
    assert done.returncode == 2 and found in " ".join(done.stdout.split()) and "CT from DICOM" in done.stdout
    assert "modalities.<name>.encoder: {imported: ...} (docs/imported-vectors.md)." in done.stdout
    assert index(foreign, "--modality", "wsi").returncode == 2, "no slide, and not a folder without files"
    described = json.loads(index(foreign, "--json").stdout)
    assert described["not_read"] == {"EDF": 2, "HDF5": 2, "NIfTI": 1} and described["usable"] == 0
    shutil.copytree(tree / "whole", foreign / "whole")
    done = index(foreign)
    assert done.returncode == 0
    assert "Files of usable items: 6. Of the others: 2 EDF, 2 HDF5, 1 NIfTI." in " ".join(done.stdout.split())
    assert "imported" not in done.stdout


def test_nifti_is_judged_and_wants_a_crosswalk(tmp_path: Path) -> None:
    folder = tmp_path / "tree"
    write_nifti(folder / f"{NAME}.nii.gz", body())
    write_nifti(folder / "b.nii", body(seed=1), "RAS")
    done = index(folder)
    assert done.returncode == 0 and "Traceback" not in done.stderr
    said = (
        "2 CT items say neither whose they are nor when: a run needs a crosswalk or a table that does (modalities.ct)."
    )
    assert said in " ".join(done.stdout.split())
    assert groups(folder)["ct", "ok"] == {
        "modality": "ct", "verdict": "ok", "items": 2, "units": 40, "files": 2, "times": {"none": 2}, "noted": {},
        "bytes": sum(path.stat().st_size for path in folder.iterdir()),
    }  # fmt: skip
    (folder / "b.nii").write_bytes((folder / "b.nii").read_bytes()[:5000])
    done = index(folder)
    assert done.returncode == 2 and "failed_unreadable" in done.stdout and NAME not in done.stdout + done.stderr


def test_images_of_which_none_is_usable_are_two(tmp_path: Path) -> None:
    write_series(tmp_path / "mr", SOPClassUID="1.2.840.10008.5.1.4.1.1.4", Modality="MR")
    done = index(tmp_path)
    assert done.returncode == 2 and "Nothing is usable. Found: 6 DICOM." in done.stdout
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "elsewhere").symlink_to(tmp_path / "mr")
    done = index(tmp_path / "links")
    assert done.returncode == 2 and "Nothing is usable. Found: no file." in done.stdout


@pytest.mark.parametrize("name", ["=1+1.svs", "+x.svs", "-x.svs", "@x.svs"])
def test_a_spreadsheet_takes_every_cell_for_a_text(tmp_path: Path, name: str) -> None:
    write_tiff(tmp_path / "slides" / name, stained(), mpp=0.5)
    out = tmp_path / "items.csv"
    index(tmp_path / "slides", "--out", out)
    header, *items = csv.reader(out.read_text(encoding="utf-8").splitlines())
    assert f"'{name}" in {item[header.index("first_file")] for item in items}
    assert not any(cell.startswith(("=", "+", "-", "@")) for item in items for cell in item)


def test_x_rays_of_the_public_data_have_their_verdict_and_units(real_data: Path) -> None:
    found = groups(real_data / "cxr", "--modality", "cxr")
    assert {key: (group["items"], group["units"], group["times"]) for key, group in found.items()} == {
        ("cxr", "ok"): (2, 2, {"none": 2}), ("cxr", "refused_not_image"): (1, 1, {"none": 1}),
    }  # fmt: skip


def test_a_table_of_notes_is_one_file_of_many_items_with_times(tmp_path: Path) -> None:
    rows = [
        {"note_id": f"N{number}", "text": f"{NAME} was seen" * number, "storetime": f"2130-05-0{number + 1} 10:00:00"}
        for number in range(6)
    ]
    table = write_discharge(tmp_path / "tree", rows) / "note" / "discharge.csv.gz"
    done = index(tmp_path / "tree", "--modality", "note", "--json", "--out", tmp_path / "items.csv")
    found = {group["verdict"]: group for group in json.loads(done.stdout)["groups"]}
    assert (found["ok"]["items"], found["ok"]["files"], found["ok"]["bytes"]) == (5, 1, table.stat().st_size)
    # Four were stored on the 5th and before, and charted on the 6th; all are of one visit.
    assert found["ok"]["noted"] == {"near_copies": 4, "of_visit": 5, "stored_early": 4}
    assert found["refused_empty"]["items"] == 1 and NAME not in done.stdout + done.stderr
    listed = {row["name"]: row for row in csv.DictReader((tmp_path / "items.csv").open())}
    assert listed["N3"]["time"] == "2130-05-06 23:59:59.999999", "stored two days before the day of its charting"
    assert listed["N5"]["time"] == "2130-05-06 10:00:00" and listed["N5"]["time_precision"] == "s"
    assert NAME not in (tmp_path / "items.csv").read_text()
