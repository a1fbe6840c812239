"""What a series is: whole scans that look like several, several that look like one, and pixels that are no slices."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import pytest

from extractors.ct.geometry import Corroboration, judge, squared
from extractors.ct.image_type import Derivation, derivation, refusal
from extractors.ct.index import index_ct
from extractors.ct.reconstructions import ReconstructionConfig
from extractors.items import file_fingerprint, identity_of
from tests.support.images.ct_phantoms import write_as, write_enhanced
from tests.support.images.ct_trees import pixels_of, usable, verdicts
from tests.support.images.phantoms import write_series, write_slice

ALL = ReconstructionConfig(keep="all")


def noise(number: int) -> npt.NDArray[np.float32]:
    """A slice like no other; the same for the same number."""
    return np.random.default_rng(number).integers(-1000, 1000, (32, 32)).astype(np.float32) // 2 * 2


def write_at(folder: Path, heights: Sequence[float], first: int = 0, **header: Any) -> None:
    """A slice at each height, with UIDs of its own; headers that are functions are asked with the slice's place."""
    for place, height in enumerate(heights):
        said = {name: value(place) if callable(value) else value for name, value in header.items()}
        position = {"ImagePositionPatient": [-16.0, -16.0, float(height)]}
        write_slice(
            folder / f"{first + place:03d}", noise(first + place), first + place, **{"gap": 5.0, **position, **said}
        )


def sizes(root: Path, **options: Any) -> list[tuple[str, int | None]]:
    found = index_ct(root, reconstruction=ALL, **options)
    return sorted((item.verdict, item.units_expected) for item in found)


def clock(minute: int) -> Callable[[int], str]:
    return lambda place: f"10{minute:02d}{place:02d}"


# Whole first ----------------------------------------------------------------------------------------------------------

UP = [5.0 * place for place in range(24)]
WHOLE: dict[str, dict[str, Any]] = {
    "six slices a table position": {"AcquisitionNumber": lambda place: place // 6 + 1},
    "two halves": {"AcquisitionNumber": lambda place: 1 + (place >= 12), "AcquisitionTime": clock(5)},
    "half of them without a number": {"AcquisitionNumber": lambda place: None if place < 12 else 3},
    "a number each": {"AcquisitionNumber": lambda place: place},
    "numbers in two spellings": {"AcquisitionNumber": lambda place: "1" if place % 2 else "01"},
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_scan_is_one_volume_however_it_is_numbered(tmp_path: Path, name: str) -> None:
    write_at(tmp_path, UP, **WHOLE[name])
    assert sizes(tmp_path) == [("ok", 24)]


def test_a_hole_between_acquisitions_makes_no_volumes_of_the_rest(tmp_path: Path) -> None:
    heights = [height for height in UP if not 60 <= height < 80]
    write_at(tmp_path, heights, AcquisitionNumber=lambda place: place // 4)
    assert sizes(tmp_path) == [("failed_missing_slice", 20)]


# Phases ---------------------------------------------------------------------------------------------------------------

PHASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "numbers": ({"AcquisitionNumber": 1}, {"AcquisitionNumber": 2}),
    "number of one, and time": (
        {"AcquisitionNumber": 1, "AcquisitionTime": clock(1)},
        {"AcquisitionNumber": None, "AcquisitionTime": clock(9)},
    ),
    "numbers, which half of the second lacks": (
        {"AcquisitionNumber": 1}, {"AcquisitionNumber": lambda place: 2 if place % 2 else None},
    ),
    "acquisition time": ({"AcquisitionTime": clock(1)}, {"AcquisitionTime": clock(3)}),
    "content time": (
        {"AcquisitionTime": "100000", "ContentTime": clock(1)}, {"AcquisitionTime": "100000", "ContentTime": clock(9)},
    ),
    "series time": (
        {"AcquisitionTime": "100000", "SeriesTime": "100100"}, {"AcquisitionTime": "100000", "SeriesTime": "100200"},
    ),
    "tube voltage": ({"KVP": 80}, {"KVP": 140}),
    "detector, in the words of ImageType": (
        {"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL", "DET_A"]},
        {"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL", "DET_B"]},
    ),
    "place in the heart's cycle": ({"TriggerTime": 300}, {"TriggerTime": 700}),
    "numbers of table positions, and time": (
        {"AcquisitionNumber": lambda place: place // 6 + 1, "AcquisitionTime": clock(1)},
        {"AcquisitionNumber": lambda place: place // 6 + 5, "AcquisitionTime": clock(3)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PHASES)
def test_phases_are_volumes_of_their_own(tmp_path: Path, name: str) -> None:
    first, second = ({"AcquisitionTime": "100000"} | header for header in PHASES[name])
    write_at(tmp_path, UP, **first)
    write_at(tmp_path, UP, first=30, **second)
    assert sizes(tmp_path) == [("ok", 24), ("ok", 24)]
    for item in index_ct(tmp_path, reconstruction=ALL):
        numbers = [int(path) for path in item.paths]
        assert max(numbers) - min(numbers) == 23  # no slice of the other phase among them


def test_a_phase_that_begins_where_the_one_before_did_not_come_is_told_by_the_pause(tmp_path: Path) -> None:
    """From the liver up, then, a minute later, from the head of the table down: it returns late to a place."""
    write_at(tmp_path, UP[:10], AcquisitionTime=clock(1))
    write_at(tmp_path, UP[::-1], first=30, AcquisitionTime=clock(2))
    found = index_ct(tmp_path, reconstruction=ALL)
    assert sorted((item.verdict, sorted(item.paths)) for item in found) == [
        ("ok", [f"{number:03d}" for number in range(10)]),
        ("ok", [f"{number:03d}" for number in range(30, 54)]),
    ]


def test_phases_between_each_others_slices_are_not_one_finer_scan(tmp_path: Path) -> None:
    write_at(tmp_path, UP, AcquisitionNumber=1)
    write_at(tmp_path, [height + 2.5 for height in UP], first=30, AcquisitionNumber=2)
    assert sizes(tmp_path) == [("ok", 24), ("ok", 24)]


def test_a_table_that_goes_to_and_fro_makes_a_volume_each_time(tmp_path: Path) -> None:
    """Perfusion: eight slices at each of two table positions, three times, a second between any two."""
    for run in range(6):
        heights = [5.0 * place + 40 * (run % 2) for place in range(8)]
        write_at(tmp_path, heights, first=10 * run, AcquisitionNumber=run + 1, AcquisitionTime=f"1000{run:02d}")
    assert sizes(tmp_path) == [("ok", 16)] * 3


def test_a_table_that_waits_at_each_place_makes_a_volume_each_time_and_place(tmp_path: Path) -> None:
    """Perfusion: three times eight slices at one table position, then at the next; no volume has slices of both."""
    for run in range(6):
        heights = [5.0 * place + 40 * (run // 3) for place in range(8)]
        write_at(tmp_path, heights, first=10 * run, AcquisitionNumber=run // 3, AcquisitionTime=f"1000{run:02d}")
    assert sizes(tmp_path) == [("ok", 8)] * 6


def test_what_no_header_tells_apart_stays_refused(tmp_path: Path) -> None:
    write_at(tmp_path, UP, AcquisitionTime="100000")
    write_at(tmp_path, UP, first=30, AcquisitionTime="100000")
    assert sizes(tmp_path) == [("failed_duplicate_position", 48)]


def test_one_slice_too_many_does_not_part_a_scan(tmp_path: Path) -> None:
    """Another picture of one place, made in the midst of the scan: parted by time, both parts would look whole."""
    write_at(tmp_path, UP, AcquisitionTime=lambda place: f"1000{2 * place:02d}")
    write_at(tmp_path, [60.0], first=40, AcquisitionTime="100025")
    assert sizes(tmp_path) == [("failed_duplicate_position", 25)]


# Copies ---------------------------------------------------------------------------------------------------------------


def resend(path: Path, target: Path, syntax: str | None = None, **changes: Any) -> None:
    if syntax is not None:
        write_as(path, target, syntax)
    dataset = pydicom.dcmread(target if syntax is not None else path)
    dataset.file_meta.SourceApplicationEntityTitle = "OTHERPACS"
    for name, value in changes.items():
        setattr(dataset, name, value)
    dataset.save_as(target)


COPIES: dict[str, dict[str, Any]] = {
    "sent by another node": {},
    "in another acquisition": {"AcquisitionNumber": 7},
    "with another time": {"AcquisitionTime": "230000", "InstanceNumber": 99},
    "lossless JPEG 2000": {"syntax": "1.2.840.10008.1.2.4.90"},
    "big endian": {"syntax": "1.2.840.10008.1.2.2"},
}


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_of_an_instance_counts_once_whatever_its_header_says(tmp_path: Path, name: str) -> None:
    write_at(tmp_path, UP)
    resend(tmp_path / "004", tmp_path / "again", **COPIES[name])
    item = usable(tmp_path)
    assert (item.units_expected, len(item.paths), item.geometry["copies"]) == (24, 24, 1)
    assert np.array_equal(pixels_of(item, tmp_path)[4], noise(4))


def test_a_copy_does_not_hang_on_where_it_lies(tmp_path: Path) -> None:
    for names in (("a", "z"), ("z", "a")):
        tree = tmp_path / names[0]
        write_at(tree / names[0], UP)
        (tree / names[1]).mkdir()
        for place in range(24):
            resend(tree / names[0] / f"{place:03d}", tree / names[1] / f"{place:03d}", InstanceNumber=1)
    first, second = (usable(tmp_path / name) for name in "az")
    assert first.identity == second.identity and first.geometry["copies"] == 24


@pytest.mark.parametrize("change", ["pixels", "patient", "place", "slope"])
def test_what_only_shares_the_uid_is_no_copy(tmp_path: Path, change: str) -> None:
    write_at(tmp_path, UP)
    changes: dict[str, dict[str, Any]] = {
        "pixels": {"PixelData": np.roll(pydicom.dcmread(tmp_path / "004").pixel_array, 1).tobytes()},
        "patient": {"PatientID": "ANOTHER"},
        "place": {"ImagePositionPatient": [-16.0, -16.0, 21.0]},
        "slope": {"RescaleSlope": 1},
    }
    resend(tmp_path / "004", tmp_path / "again", **changes[change])
    assert [verdict for verdict, _ in sizes(tmp_path)] in (
        ["failed_duplicate_position"], ["failed_mixed_subjects"], ["failed_inconsistent_geometry"],
    )  # fmt: skip


def test_copies_of_frames_count_once(tmp_path: Path) -> None:
    write_enhanced(tmp_path / "x", [noise(place) for place in range(6)], range(6))
    write_enhanced(tmp_path / "y", [noise(place) for place in range(6)], range(6), syntax="1.2.840.10008.1.2.4.80")
    item = usable(tmp_path)
    assert (item.units_expected, len(item.paths), item.geometry["copies"]) == (6, 1, 6)


# ImageType ------------------------------------------------------------------------------------------------------------

TYPES = [
    (r"ORIGINAL\PRIMARY\AXIAL", "", Derivation.ORIGINAL),
    (r"ORIGINAL\PRIMARY\AXIAL\CT_SOM5 SPI", "", Derivation.ORIGINAL),
    (r"ORIGINAL\PRIMARY\AXIAL\HELIX", "", Derivation.ORIGINAL),
    (r"ORIGINAL\SECONDARY\AXIAL", "", Derivation.ORIGINAL),
    ("", "", Derivation.UNKNOWN),
    (r"DERIVED\PRIMARY\AXIAL\JP2K LOSSY 6:1", "", Derivation.UNKNOWN),
    (r"DERIVED\PRIMARY\AXIAL\CT_SOM7 SPI DUAL\MIXED", "", Derivation.DERIVED),
    (r"DERIVED\SECONDARY\AXIAL", "", Derivation.SECONDARY),
    (r"DERIVED\SECONDARY\REFORMATTED\AVERAGE", "", Derivation.REFORMATTED),
    (r"DERIVED\SECONDARY\OTHER\CSA MPR", "", Derivation.REFORMATTED),
    (r"ORIGINAL\PRIMARY\AXIAL\MPR", "", Derivation.REFORMATTED),
    (r"DERIVED\PRIMARY\VOLUME\ADDITION", "", Derivation.REFORMATTED),
    (r"DERIVED\PRIMARY\AXIAL\CSA RESAMPLED", "", Derivation.REFORMATTED),
    (r"DERIVED\SECONDARY\MIP", "refused_calculated", None),
    (r"DERIVED\SECONDARY\AXIAL\CSA MIP THIN", "refused_calculated", None),
    (r"ORIGINAL\PRIMARY\AXIAL\MIN_IP", "refused_calculated", None),
    (r"DERIVED\PRIMARY\VOLUME\MAXIMUM", "refused_calculated", None),
    (r"DERIVED\SECONDARY\AXIAL\SUBTRACTION", "refused_calculated", None),
    (r"DERIVED\PRIMARY\PROJECTION IMAGE", "refused_calculated", None),
    (r"DERIVED\SECONDARY\VRT", "refused_calculated", None),
    (r"DERIVED\PRIMARY\PERFUSION\RCBF", "refused_calculated", None),
    (r"ORIGINAL\PRIMARY\LOCALIZER\CT_SOM5 TOP", "refused_localizer", None),
    (r"DERIVED\SECONDARY\SCREEN SAVE", "refused_secondary_capture", None),
]


@pytest.mark.parametrize(("image_type", "verdict", "kind"), TYPES)
def test_image_type_is_read_whole(image_type: str, verdict: str, kind: Derivation | None) -> None:
    values = {"ImageType": image_type}
    assert refusal(values) == verdict
    assert kind is None or derivation(values) is kind


@pytest.mark.parametrize("technique", ["MAX_IP", "MIN_IP", "VOLUME_RENDER", "SURFACE_RENDER"])
def test_a_technique_says_it_where_the_type_does_not(technique: str) -> None:
    said = {"ImageType": r"DERIVED\PRIMARY\VOLUME\NONE", "VolumeBasedCalculationTechnique": technique}
    assert refusal(said) == "refused_calculated"


@pytest.mark.parametrize(
    "words", ["MPR", "AVERAGE", "MIP", "SUBTRACTION", "MIN IP", "PROJECTION", "REFORMATTED", "RESAMPLED", ""]
)
def test_what_was_made_from_slices_never_replaces_them(tmp_path: Path, words: str) -> None:
    """The other one has the thickness and the kernel that are liked best, reaches further and has lost its number."""
    original = {"SliceThickness": 1.0, "ConvolutionKernel": "Br64d", "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"]}
    other = {"SliceThickness": 3.0, "ConvolutionKernel": "Br40d", "AcquisitionNumber": None, "AcquisitionTime": None}
    other["ImageType"] = ["DERIVED", "SECONDARY", "AXIAL", words] if words else ["DERIVED", "SECONDARY"]
    write_series(tmp_path / "original", 10, **original)
    write_series(tmp_path / "other", 14, series="2", **other)
    found = {item.paths[0].partition("/")[0]: item.verdict for item in index_ct(tmp_path)}
    assert found["original"] == "ok" and found["other"].startswith("refused_")


def test_a_reformat_is_taken_where_nothing_else_is_left(tmp_path: Path) -> None:
    write_series(tmp_path, 10, ImageType=["DERIVED", "SECONDARY", "REFORMATTED", "AVERAGE"])
    assert usable(tmp_path).geometry["derivation"] == "reformatted"


def test_an_oblique_resample_that_calls_itself_original_comes_last(tmp_path: Path) -> None:
    turn = np.radians(20)
    normal = np.array([0.0, -np.sin(turn), np.cos(turn)])
    askew = {"ImageOrientationPatient": [1, 0, 0, 0, np.cos(turn), np.sin(turn)], "ConvolutionKernel": "Br40d"}
    write_series(tmp_path / "straight", 8, ConvolutionKernel="Br64d")
    for place in range(8):
        position = [float(round(value, 9)) for value in np.array([-16.0, -16.0, 0.0]) + 2.0 * place * normal]
        askew["ImagePositionPatient"] = position
        write_slice(tmp_path / "askew" / f"{place}", noise(place), place, series="2", **askew)
    found = {item.paths[0].partition("/")[0]: item.verdict for item in index_ct(tmp_path)}
    assert found == {"straight": "ok", "askew": "refused_other_reconstruction"}


# Patients -------------------------------------------------------------------------------------------------------------


def test_one_id_of_two_issuers_is_two_patients(tmp_path: Path) -> None:
    write_series(tmp_path / "a", IssuerOfPatientID="HOSPITAL", ConvolutionKernel="Br40d")
    write_series(tmp_path / "b", series="2", IssuerOfPatientID="CLINIC", ConvolutionKernel="Br64d")
    items = index_ct(tmp_path)
    # They are no reconstructions of one scan either.
    assert [(item.verdict, item.issuer) for item in items] == [("ok", "HOSPITAL"), ("ok", "CLINIC")]
    write_series(tmp_path / "c", series="3", per_slice={2: {"IssuerOfPatientID": "X"}, 4: {"IssuerOfPatientID": "Y"}})
    assert verdicts(tmp_path)["failed_mixed_subjects"] == 1


# Pixels that are not square -------------------------------------------------------------------------------------------


def test_a_body_is_round_also_where_pixels_are_not_square(tmp_path: Path) -> None:
    """A ball of 20 mm in pixels of 0.5 by 1 mm: 40 rows and 20 columns of it become 40 by 40."""
    y, x = np.mgrid[:64, :32]
    ball = np.where((0.5 * (y - 31.5)) ** 2 + (x - 15.5) ** 2 < 10**2, 0, -1000).astype(np.float32)
    for folder, spacing, picture in (("tall", [0.5, 1.0], ball), ("wide", [1.0, 0.5], ball.T)):
        write_series(tmp_path / folder, image=lambda _, picture=picture: picture, PixelSpacing=spacing)
        pixels = pixels_of(usable(tmp_path / folder), tmp_path / folder)
        inside = pixels[0] > -500
        assert pixels.shape == (6, 64, 64)
        assert inside.any(axis=0).sum() == inside.any(axis=1).sum() == 40


def test_resampling_is_linear_between_the_middles_of_pixels() -> None:
    row = np.array([[0.0, 100.0]], dtype=np.float32)
    # Two pixels of 2 mm, four of 1 mm: their middles are at 0.5, 1.5, 2.5, 3.5, those of the two at 1 and 3.
    assert squared(row, np.array([1.0, 2.0])).tolist() == [[0.0, 25.0, 75.0, 100.0]]


@pytest.mark.parametrize(("spacing", "same"), [([1.0, 1.0], True), ([0.5, 1.0], False)])
def test_an_item_is_another_where_its_pixels_are_read_otherwise(
    tmp_path: Path, spacing: list[float], same: bool
) -> None:
    """Square ones keep the identity that they had, and so their vectors."""
    write_series(tmp_path, PixelSpacing=spacing)
    before = (f"2.25.1.{place + 1}:{file_fingerprint(tmp_path / f'IM{place:03d}')}" for place in range(6))
    assert (usable(tmp_path).identity == identity_of(before)) is same


def test_pixels_that_are_square_stay_as_they_are(tmp_path: Path) -> None:
    write_series(tmp_path, PixelSpacing=[0.4296875, 0.429688])
    item = usable(tmp_path)
    assert "square" not in item.geometry and pixels_of(item, tmp_path).shape == (6, 32, 32)


# Gantry and steps -----------------------------------------------------------------------------------------------------


def tilted(degrees: float) -> list[float]:
    return [1, 0, 0, 0, round(float(np.cos(np.radians(degrees))), 9), round(-float(np.sin(np.radians(degrees))), 9)]


def test_a_tilted_gantry_is_taken_slice_by_slice(tmp_path: Path) -> None:
    write_at(tmp_path, UP, ImageOrientationPatient=tilted(15))
    item = usable(tmp_path)
    assert item.geometry["tilt_degrees"] == 15 and item.geometry["gap_mm"] == pytest.approx(
        5 * np.cos(np.radians(15)), abs=1e-4
    )
    assert sizes(tmp_path, geometry="strict") == [("failed_gantry_tilt", 24)]


def steps_of(*steps: tuple[float, int]) -> list[float]:
    """Heights of slices: from 0, each step's gap so many times."""
    return [0.0, *np.cumsum([gap for gap, number in steps for _ in range(number)]).tolist()]


@pytest.mark.parametrize(
    "corroborated",
    [
        {"SliceThickness": lambda place: 2.5 if place <= 10 else 5.0, "InstanceNumber": 1},
        {"AcquisitionNumber": lambda place: 1 if place <= 10 else 2, "InstanceNumber": 1},
        {"InstanceNumber": lambda place: 40 - place},
    ],
)
def test_a_head_in_two_steps_is_one_volume_where_its_header_tells_them(
    tmp_path: Path, corroborated: dict[str, Any]
) -> None:
    write_at(tmp_path, steps_of((2.5, 10), (5.0, 12)), ImageOrientationPatient=tilted(-12), **corroborated)
    item = usable(tmp_path)
    assert item.geometry["steps_mm"] == [
        [pytest.approx(2.5 * np.cos(np.radians(12)), abs=1e-3), 10],
        [pytest.approx(5 * np.cos(np.radians(12)), abs=1e-3), 12],
    ]
    assert Counter(verdict for verdict, _ in sizes(tmp_path, geometry="strict")) == {"failed_gantry_tilt": 1}


@pytest.mark.parametrize(
    ("heights", "header", "verdict"),
    [
        # A slice is missing: of an even scan, of a tilted one, of a step.
        ([height for height in UP if height != 50], {}, "failed_missing_slice"),
        ([height for height in UP if height != 50], {"ImageOrientationPatient": tilted(15)}, "failed_missing_slice"),
        (
            [height for height in steps_of((2.5, 10), (5.0, 12)) if height not in (10.0, 45.0)],
            {"SliceThickness": lambda place: 2.5 if place <= 9 else 5.0},
            "failed_missing_slice",
        ),
        # Where two steps meet a slice is missing, which the numbers alone show.
        (
            steps_of((2.5, 10), (5.0, 12)),
            {
                "SliceThickness": lambda place: 2.5 if place < 10 else 5.0,
                "InstanceNumber": lambda place: place if place <= 10 else place + 1,
            },
            "failed_inconsistent_geometry",
        ),
        # Every second slice of the upper half is missing, as thickness and numbers show.
        (
            steps_of((2.5, 10), (5.0, 12)),
            {"SliceThickness": 2.5, "InstanceNumber": lambda place: place if place <= 10 else 2 * place - 10},
            "failed_inconsistent_geometry",
        ),
        # Slices that drift sideways, which no gantry does.
        (UP, {"ImagePositionPatient": lambda place: [-16.0, -16.0 + 1.5 * place, 5.0 * place]}, "failed_sheared"),
        (
            UP,
            {
                "ImagePositionPatient": lambda place: [-16.0 + 1.5 * place, -16.0, 5.0 * place],
                "ImageOrientationPatient": tilted(15),
            },
            "failed_sheared",
        ),
        (UP, {"ImageOrientationPatient": tilted(42)}, "failed_sheared"),
    ],
)  # fmt: skip
def test_what_lacks_slices_or_is_sheared_stays_refused(
    tmp_path: Path, heights: list[float], header: dict[str, Any], verdict: str
) -> None:
    write_at(tmp_path, heights, **header)
    assert sizes(tmp_path) == [(verdict, len(heights))]


def test_steps_count_only_where_something_tells_them() -> None:
    """Worked out by hand: 0 to 20 by 2.5, then to 50 by 5."""
    heights = np.array(steps_of((2.5, 8), (5.0, 6)))
    positions = np.stack([np.zeros(15), np.zeros(15), heights], axis=1)
    straight = np.array([1.0, 0, 0, 0, 1, 0])
    thickness = [2.5] * 9 + [5.0] * 6
    said = Corroboration(thickness, ["1"] * 15, [None] * 15)
    assert judge(straight, positions, "slices", said).steps == ((2.5, 8), (5.0, 6))
    silent = Corroboration([None] * 15, ["1"] * 15, [None] * 15)
    assert judge(straight, positions, "slices", silent).verdict == "failed_missing_slice"
