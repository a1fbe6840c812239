"""Which of several reconstructions of one scan is taken, and what makes slices one series."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from extractors.ct.index import index_ct
from extractors.ct.reconstructions import ReconstructionConfig
from tests.support.images.ct_trees import usable, verdicts, zipped
from tests.support.images.phantoms import write_series

ALL = ReconstructionConfig(keep="all")


KINDS: dict[str, dict[str, Any]] = {
    "thin soft": {"series": "1", "SliceThickness": 1.0, "ConvolutionKernel": "Br40d"},
    "thick soft": {"series": "2", "SliceThickness": 3.0, "ConvolutionKernel": "Br40d"},
    "thick sharp": {"series": "3", "SliceThickness": 3.0, "ConvolutionKernel": "Br64d"},
}


def study(root: Path, **header: Any) -> None:
    for name, kind in KINDS.items():
        write_series(root / name, 6, **{**kind, **header})


def chosen(root: Path, **config: Any) -> list[str]:
    items = index_ct(root, reconstruction=ReconstructionConfig(**config))
    assert {item.verdict for item in items} <= {"ok", "refused_other_reconstruction"}
    return sorted(item.paths[0].partition("/")[0] for item in items if item.verdict == "ok")


@pytest.mark.parametrize(
    ("config", "kept"),
    [
        ({}, ["thick soft"]),
        ({"thickness_mm": (0.5, 1.5)}, ["thin soft"]),
        ({"prefer_kernels": ("^br6",)}, ["thick sharp"]),
        ({"avoid_kernels": ("br40",)}, ["thick sharp"]),
        ({"keep": "all"}, sorted(KINDS)),
    ],
)
def test_one_reconstruction_is_chosen_as_configured(tmp_path: Path, config: dict[str, Any], kept: list[str]) -> None:
    study(tmp_path)
    assert chosen(tmp_path, **config) == kept
    groups = {item.geometry["reconstruction_group"] for item in index_ct(tmp_path)}
    assert len(groups) == 1 and {item.geometry["kernel"] for item in index_ct(tmp_path)} == {"Br40d", "Br64d"}


@pytest.mark.parametrize(
    "other",
    [
        {"AcquisitionNumber": 2},
        {"AcquisitionTime": "111500"},
        {"StudyInstanceUID": "2.25.7"},
        {"FrameOfReferenceUID": "2.25.8"},
        {"AcquisitionNumber": None, "AcquisitionTime": None, "AcquisitionDate": None},
    ],
)
def test_phases_and_other_studies_are_no_reconstructions(tmp_path: Path, other: dict[str, Any]) -> None:
    write_series(tmp_path / "a", **KINDS["thick soft"])
    write_series(tmp_path / "b", **{**KINDS["thin soft"], **other})
    numberless = {"AcquisitionNumber": None} if other.get("AcquisitionNumber", 1) is None else {}
    if numberless:
        write_series(tmp_path / "a", **{**KINDS["thick soft"], **other})
    assert chosen(tmp_path) == ["a", "b"]


def test_a_reconstruction_of_a_part_gives_way_to_the_whole(tmp_path: Path) -> None:
    write_series(tmp_path / "a", 10, **KINDS["thick sharp"])
    write_series(tmp_path / "b", 4, **KINDS["thick soft"])
    assert chosen(tmp_path) == ["a"]


def test_a_damaged_reconstruction_is_not_chosen(tmp_path: Path) -> None:
    study(tmp_path)
    (tmp_path / "thick soft" / "IM003").write_bytes(b"")
    kept = [item.paths[0] for item in index_ct(tmp_path) if item.verdict == "ok"]
    assert len(kept) == 1 and not kept[0].startswith("thick soft")


def test_a_bad_preference_is_refused() -> None:
    for bad in ({"thickness_mm": (5, 2)}, {"prefer_kernels": ("(",)}, {"kept": "one"}):
        with pytest.raises(ValueError, match=r"range|regular expression|Extra inputs"):
            ReconstructionConfig(**bad)


def test_two_processes_find_what_one_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from extractors.ct import index as dicom

    monkeypatch.setattr(dicom, "_FILES_A_TASK", 3)
    study(tmp_path)
    zipped(tmp_path / "thick sharp", tmp_path / "z.zip")
    (tmp_path / "broken.dcm").write_bytes(b"garbage")
    for name in ("a copy", "y copy"):  # which of two copies is named depends on the order of findings
        shutil.copytree(tmp_path / "thick soft", tmp_path / name)
    write_series(tmp_path / "x", 20, series="9", StudyInstanceUID="2.25.4")
    counts: list[int] = []
    assert index_ct(tmp_path, counts.append, workers=2) == index_ct(tmp_path)
    assert counts == sorted(counts) and counts[-1] == 46


def test_what_leaves_the_private_folder_tells_no_time_of_change(tmp_path: Path) -> None:
    from extractors.ct.settings import CT
    from extractors.deid import DeidConfig, Deidentifier
    from pipelines.index import public_geometry

    study(tmp_path)
    item = usable(tmp_path)
    public = public_geometry(item, Deidentifier(DeidConfig(), b"k" * 32), CT)
    assert "stamps" in item.geometry and not {"stamps", "frames"} & set(public)
    assert public["reconstruction_group"] != item.geometry["reconstruction_group"] and public["kernel"] == "Br40d"


def test_slices_without_a_patient_are_nobodys(tmp_path: Path) -> None:
    write_series(tmp_path, slices=6, per_slice={number: {"PatientID": ""} for number in (1, 4)})
    (item,) = index_ct(tmp_path)
    assert item.verdict == "failed_no_subject"


@pytest.mark.parametrize("folders", [("a", "a"), ("a", "b")])
def test_slices_without_a_series_are_told_apart_by_study_and_folder(tmp_path: Path, folders: tuple[str, str]) -> None:
    for number, folder in enumerate(folders):
        study = {"StudyInstanceUID": f"2.25.6{number}" if folders[0] == folders[1] else "2.25.6"}
        names = f"{number}-{{}}".format
        write_series(
            tmp_path / folder,
            5,
            names=names,
            series=f"{number}",
            PatientID=f"P{number}",
            SeriesInstanceUID=None,
            **study,
        )
    items = index_ct(tmp_path, reconstruction=ALL)
    assert [(item.verdict, item.units_expected, item.raw_subject) for item in items] == [
        ("ok", 5, "P0"),
        ("ok", 5, "P1"),
    ]
    victim = tmp_path / folders[1] / "1-2"
    victim.write_bytes(victim.read_bytes()[:-100])
    found = verdicts(tmp_path, reconstruction=ALL)
    # With two studies in a folder, a damaged file is assigned to none; only the missing slice of its volume shows.
    spoilt = {"ok": 1, "failed_unreadable": 1} | ({"failed_missing_slice": 1} if folders[0] == folders[1] else {})
    assert found == spoilt


def test_a_kernel_that_is_no_kernel_stays_out_of_the_item(tmp_path: Path) -> None:
    write_series(tmp_path / "named", slices=5, ConvolutionKernel="BONEPLUS")
    write_series(tmp_path / "free", slices=5, series="2", ConvolutionKernel="DOE JANE 1950")
    kernels = {item.paths[0].partition("/")[0]: item.geometry["kernel"] for item in index_ct(tmp_path)}
    assert kernels == {"named": "BONEPLUS", "free": ""}
