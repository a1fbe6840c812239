"""CT indexing: what is a volume, what is not and why, when it was made, and its Hounsfield units."""

import logging
import os
import random
import re
import shutil
import warnings
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extractors.ct.geometry import canonical_axial, judge
from extractors.ct.index import index_ct, read_volume
from extractors.ct.reconstructions import ReconstructionConfig
from extractors.dicom.elements import quiet
from extractors.dicom.time import earliest, moments_of
from extractors.items import VERDICTS, FoundItem, VerdictError
from tests.support.images.phantoms import AIR, disc, write_series, write_slice

TILTED = {"ImageOrientationPatient": [1, 0, 0, 0, 0.9659258, -0.2588190]}


def at(height: float) -> dict[str, Any]:
    return {"ImagePositionPatient": [-16, -16, height]}


def only(items: list[FoundItem]) -> FoundItem:
    assert len(items) == 1, [item.verdict for item in items]
    return items[0]


def volume(root: Path) -> np.ndarray:
    return np.stack(list(read_volume(only(index_ct(root)).paths, root)))


def test_water_and_air_have_their_hounsfield_units(tmp_path: Path) -> None:
    write_series(tmp_path, image=lambda index: disc(inside=0.0), RescaleSlope=1)
    pixels = volume(tmp_path)
    assert pixels.shape == (6, 32, 32) and pixels.dtype == np.float32
    assert np.abs(pixels[:, 16, 16]).max() <= 1 and np.abs(pixels[:, 1, 1] - AIR).max() <= 1


def test_each_slice_is_rescaled_by_its_own_slope(tmp_path: Path) -> None:
    write_series(tmp_path, per_slice={index: {"RescaleSlope": index + 1} for index in range(6)})
    assert np.abs(volume(tmp_path)[:, 16, 16] - 10 * np.arange(6)).max() <= 3


@pytest.mark.parametrize("padding", [-2000, 63536])
def test_padding_is_air_also_where_its_tag_is_unsigned(tmp_path: Path, padding: int) -> None:
    write_series(tmp_path, RescaleSlope=1, PixelPaddingValue=-2000)
    if padding > 0:
        for path in tmp_path.iterdir():  # the same element, (0028,0120), with its VR changed from SS to US
            path.write_bytes(path.read_bytes().replace(b"\x28\x00\x20\x01SS", b"\x28\x00\x20\x01US"))
    pixels = volume(tmp_path)
    assert (pixels[:, 0, 0] == -1024).all() and pixels.min() == -1024


def test_names_and_folders_and_dates_of_files_play_no_part(tmp_path: Path) -> None:
    write_series(tmp_path / "a")
    names = [f"{number}" for number in random.Random(1).sample(range(100), 6)]
    write_series(tmp_path / "b" / "deep", names=lambda index: names[index])
    for path in (tmp_path / "b" / "deep").iterdir():
        os.utime(path, (0, 0))
    first, second = only(index_ct(tmp_path / "a")), only(index_ct(tmp_path / "b"))
    assert first.identity == second.identity and first.verdict == second.verdict == "ok"
    assert np.array_equal(volume(tmp_path / "a"), volume(tmp_path / "b"))
    assert np.abs(volume(tmp_path / "b")[:, 16, 16] - 10 * np.arange(6)).max() <= 1


def test_replaced_content_is_another_item(tmp_path: Path) -> None:
    write_series(tmp_path)
    before = only(index_ct(tmp_path)).identity
    write_slice(tmp_path / "IM003", disc(inside=99.0), 3)
    assert only(index_ct(tmp_path)).identity != before


def test_a_copy_of_a_series_beside_it_changes_nothing(tmp_path: Path) -> None:
    write_series(tmp_path / "a")
    before = only(index_ct(tmp_path))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    after = only(index_ct(tmp_path))
    assert (after.verdict, after.identity, len(after.paths)) == ("ok", before.identity, 6)


def test_slices_come_in_canonical_axial_orientation(tmp_path: Path) -> None:
    """The same head scanned feet first, prone and with rows and columns swapped gives the same pictures."""
    image = np.arange(32 * 32, dtype=np.float32).reshape(32, 32) * 2
    turned = {
        "straight": ([1, 0, 0, 0, 1, 0], image),
        "prone": ([-1, 0, 0, 0, -1, 0], image[::-1, ::-1]),
        "mirrored": ([-1, 0, 0, 0, 1, 0], image[:, ::-1]),
        "swapped": ([0, 1, 0, 1, 0, 0], image.T),
    }
    for name, (orientation, pixels) in turned.items():
        write_series(tmp_path / name, image=lambda _, pixels=pixels: pixels, ImageOrientationPatient=orientation)
        assert np.array_equal(volume(tmp_path / name)[2], image), name


@pytest.mark.parametrize(
    ("verdict", "header", "per_slice", "slices"),
    [
        ("ok", {}, {}, 4),
        ("failed_too_few_slices", {}, {}, 3),
        ("failed_missing_slice", {}, {3: at(8), 4: at(10), 5: at(12)}, 6),
        ("failed_inconsistent_geometry", {}, {5: at(9.5)}, 6),
        ("ok", {}, {5: at(10.09)}, 6),
        ("failed_duplicate_position", {}, {5: at(8)}, 6),
        ("failed_gantry_tilt", TILTED, {}, 6),
        ("refused_not_axial", {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}, {}, 6),
        ("failed_inconsistent_geometry", {"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, {}, 6),
        ("failed_missing_geometry", {}, {2: {"ImagePositionPatient": None}}, 6),
        ("failed_missing_geometry", {"PixelSpacing": None}, {}, 6),
        ("failed_implausible_size", {"Rows": 60000, "Columns": 60000}, {}, 6),
        ("failed_no_subject", {"PatientID": ""}, {}, 6),
        ("failed_mixed_subjects", {}, {2: {"PatientID": "OTHER"}}, 6),
        ("failed_no_time", {"AcquisitionDate": None, "SeriesDate": ""}, {}, 6),
        ("refused_localizer", {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, {}, 6),
        ("refused_secondary_capture", {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, {}, 6),
        ("refused_secondary_capture", {"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, {}, 6),
        ("refused_not_ct", {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.4"}, {}, 6),
        ("failed_missing_geometry", {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2.1"}, {}, 6),
        ("refused_not_hu", {"RescaleType": "US"}, {}, 6),
        ("refused_not_hu", {"RescaleSlope": None}, {}, 6),
        ("refused_not_hu", {"RescaleSlope": 0}, {}, 6),
        ("refused_not_hu", {"RescaleSlope": 1e36}, {}, 6),
        ("refused_not_hu", {"RescaleSlope": "0.00001"}, {}, 6),
        ("refused_not_hu", {"RescaleIntercept": 1e30}, {}, 6),
        ("failed_implausible_pixel_size", {"PixelSpacing": [1e-9, 1e9]}, {}, 6),
        ("failed_implausible_pixel_size", {"PixelSpacing": [0.5, 0.01]}, {}, 6),
        ("failed_implausible_pixel_size", {"PixelSpacing": [-1, 1]}, {}, 6),
        ("ok", {"PixelSpacing": [0.02, 10]}, {}, 6),
        ("failed_inconsistent_geometry", {}, {index: at(index * 1e12) for index in range(6)}, 6),
        ("failed_inconsistent_geometry", {}, {index: at(index * 101.0) for index in range(6)}, 6),
        ("ok", {}, {index: at(index * 100.0) for index in range(6)}, 6),
        ("refused_monochrome1", {"PhotometricInterpretation": "MONOCHROME1"}, {}, 6),
        ("refused_burned_in", {"BurnedInAnnotation": "YES"}, {}, 6),
    ],
)  # fmt: skip
def test_verdict(tmp_path: Path, verdict: str, header: dict[str, Any], per_slice: Any, slices: int) -> None:
    write_series(tmp_path, slices, per_slice=per_slice, **header)
    item = only(index_ct(tmp_path, geometry="strict"))
    assert item.verdict == verdict
    assert len(item.paths) == slices


def test_series_hold_several_volumes(tmp_path: Path) -> None:
    """Two acquisitions at the same positions (a contrast phase), and another matrix of one, under one series UID."""
    write_series(tmp_path / "a", AcquisitionNumber=1)
    write_series(tmp_path / "b", AcquisitionNumber=2, image=lambda _: disc(inside=77.0))
    write_series(tmp_path / "c", PixelSpacing=[0.5, 0.5], image=lambda _: disc(inside=33.0))
    items = index_ct(tmp_path, reconstruction=ReconstructionConfig(keep="all"))
    assert [(item.verdict, item.units_expected) for item in items] == [("ok", 6)] * 3
    assert Counter(item.verdict for item in index_ct(tmp_path)) == {"ok": 2, "refused_other_reconstruction": 1}
    assert len({item.identity for item in items}) == 3


def test_acquisitions_that_number_table_positions_are_one_volume(tmp_path: Path) -> None:
    write_series(tmp_path, per_slice={index: {"AcquisitionNumber": index // 2} for index in range(6)})
    assert only(index_ct(tmp_path)).verdict == "ok"


@pytest.mark.parametrize("keep", [140, 400, 0.9])
def test_one_truncated_file_fails_its_volume(tmp_path: Path, keep: float) -> None:
    """Cut in the file meta information, in the header and in the pixels."""
    write_series(tmp_path)
    victim = tmp_path / "IM005"
    content = victim.read_bytes()
    victim.write_bytes(content[: int(keep * len(content)) if keep < 1 else int(keep)])
    item = only(index_ct(tmp_path))
    assert item.verdict == "failed_unreadable" and set(item.paths) == {f"IM{index:03d}" for index in range(6)}


def test_a_corrupt_file_among_several_series_fails_alone(tmp_path: Path) -> None:
    write_series(tmp_path, names=lambda index: f"a{index}")
    write_series(tmp_path, names=lambda index: f"b{index}", series="2", StudyInstanceUID="2.25.97")
    (tmp_path / "broken.dcm").write_bytes(b"garbage" * 100)
    assert Counter(item.verdict for item in index_ct(tmp_path)) == {"ok": 2, "failed_unreadable": 1}


def test_files_that_are_no_dicom_are_counted_in_one_item(tmp_path: Path) -> None:
    write_series(tmp_path / "ct")
    for name in ("notes.txt", "ct/Thumbs.db", "empty"):
        (tmp_path / name).write_bytes(b"hello" if name != "empty" else b"")
    first, *others = index_ct(tmp_path)
    assert (first.verdict, first.units_expected, first.paths) == ("refused_not_dicom", 3, ())
    assert [item.verdict for item in others] == ["ok"]
    (tmp_path / "empty.dcm").touch()
    assert "failed_unreadable" in {item.verdict for item in index_ct(tmp_path)}


def test_an_empty_tree_has_no_items(tmp_path: Path) -> None:
    assert index_ct(tmp_path) == []


def test_a_file_that_stops_decoding_after_indexing_is_a_verdict(tmp_path: Path) -> None:
    write_series(tmp_path)
    item = only(index_ct(tmp_path))
    path = tmp_path / item.paths[4]
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(VerdictError) as caught:
        list(read_volume(item.paths, tmp_path))
    assert caught.value.verdict == "failed_unreadable"


def test_nothing_of_the_patient_is_logged_or_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    write_series(tmp_path, per_slice={2: {"PatientID": "SECRET-PATIENT" * 9, "PatientName": "SECRET^NAME"}})
    (tmp_path / "x.dcm").write_bytes((tmp_path / "IM002").read_bytes()[:700])
    with caplog.at_level(logging.DEBUG):
        items = index_ct(tmp_path)
    assert "SECRET" not in caplog.text and not [w for w in recwarn if "SECRET" in str(w.message)]
    for item in items:
        assert "SECRET" not in repr((item.identity, item.geometry, item.verdict))


def test_pydicom_says_nothing_while_headers_are_read(
    caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    with quiet():
        logging.getLogger("pydicom").error("SECRET")
        warnings.warn("SECRET", stacklevel=1)
    assert "SECRET" not in caplog.text and not list(recwarn)
    logging.getLogger("pydicom").error("heard again")
    assert "heard again" in caplog.text


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            {"AcquisitionDateTime": "20200102030405.25", "StudyDate": "20191231", "StudyTime": "01"},
            ("2020-01-02T03:04:05.250000", "AcquisitionDateTime", "us"),
        ),
        (
            {"AcquisitionDate": "2020.01.02", "AcquisitionTime": "03:04:05"},
            ("2020-01-02T03:04:05", "AcquisitionDate+AcquisitionTime", "s"),
        ),
        (
            {"AcquisitionDate": "20200102", "SeriesDate": "20200103", "SeriesTime": "0910"},
            ("2020-01-03T09:10:00", "SeriesDate+SeriesTime", "min"),
        ),
        ({"AcquisitionDate": "20200102", "SeriesDate": "20200103"}, ("2020-01-02T00:00:00", "AcquisitionDate", "day")),
        (
            {"AcquisitionDateTime": "20200102", "StudyDate": "20200103", "StudyTime": "1200"},
            ("2020-01-03T12:00:00", "StudyDate+StudyTime", "min"),
        ),
        ({"ContentDate": "20200102", "ContentTime": "101010"}, None),
        ({"StudyDate": "20201341", "StudyTime": "101010"}, None),
        ({"StudyDate": "00010101", "StudyTime": "101010"}, None),
        (
            {"AcquisitionDateTime": "20200102030405+0200", "TimezoneOffsetFromUTC": "+0100"},
            ("2020-01-02T02:04:05", "AcquisitionDateTime", "s"),
        ),
        ({"StudyDate": "20200102", "StudyTime": "235960"}, ("2020-01-02T23:59:59", "StudyDate+StudyTime", "s")),
    ],
)
def test_which_tag_tells_the_time(values: dict[str, str], expected: tuple[str, str, str] | None) -> None:
    moment = earliest([moments_of(values)])
    assert (None if moment is None else (moment.time.isoformat(), moment.source, moment.precision)) == expected


def test_the_earliest_slice_of_the_best_tag_gives_the_time(tmp_path: Path) -> None:
    write_series(tmp_path, TimezoneOffsetFromUTC="+0200")
    item = only(index_ct(tmp_path))
    assert item.time == datetime(2020, 3, 4, 10, 5, 54) and item.time_source == "AcquisitionDate+AcquisitionTime"
    assert item.geometry["utc_offset_minutes"] == 120
    abroad = only(index_ct(tmp_path, site_timezone="America/New_York"))
    assert abroad.time == datetime(2020, 3, 4, 3, 5, 54) and abroad.geometry["utc_offset_minutes"] == -300


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(4, 40), gap=st.floats(0.4, 10), flip=st.booleans(), seed=st.integers(0, 99), drop=st.booleans()
)
def test_any_regular_stack_is_ordered_and_a_gap_is_seen(
    count: int, gap: float, flip: bool, seed: int, drop: bool
) -> None:
    rng = np.random.default_rng(seed)
    heights = np.delete(np.arange(count + 1) * gap, count // 2 if drop else count)
    shuffled = rng.permutation(count)
    positions = np.stack([np.full(count, 3.0), np.full(count, -7.0), heights[shuffled]], axis=1)
    orientation = np.array([1, 0, 0, 0, -1 if flip else 1, 0], dtype=np.float64)
    judgement = judge(orientation, positions)
    assert heights[shuffled][judgement.order].tolist() == heights.tolist()
    # With four slices and one dropped in the middle, the gap is still the odd one out of three.
    assert judgement.verdict == ("failed_missing_slice" if drop else "ok")


@given(st.sampled_from([[1, 0, 0, 0, 1, 0], [-1, 0, 0, 0, 1, 0], [0, 1, 0, -1, 0, 0], [0, -1, 0, -1, 0, 0]]))
def test_turning_keeps_every_pixel(orientation: list[int]) -> None:
    image = np.arange(12.0).reshape(3, 4)
    turned = canonical_axial(image, np.array(orientation, dtype=np.float64))
    assert sorted(turned.ravel()) == sorted(image.ravel())


def test_every_verdict_is_documented() -> None:
    text = (Path(__file__).parents[3] / "docs" / "verdicts.md").read_text(encoding="utf-8")
    assert [verdict for verdict in VERDICTS if f"`{verdict}`" not in text] == []
    assert set(re.findall(r"`((?:refused|failed|waiting)_\w+)`", text)) <= set(VERDICTS)
    with pytest.raises(ValueError, match="no such verdict"):
        VerdictError("failed_somehow")


# Real files ---------------------------------------------------------------------------------------------------------


def test_ibsi_series_are_four_volumes_and_nothing_else(real_data: Path) -> None:
    items = index_ct(real_data / "ct-ibsi-sts")
    good = {item.raw_subject: item.units_expected for item in items if item.verdict == "ok"}
    assert good == {"STS_008": 51, "STS_019": 47, "STS_025": 47, "STS_042": 49}  # slice counts of its README
    rest = Counter(item.verdict for item in items if item.verdict != "ok")
    assert rest == {"refused_not_ct": 8, "refused_not_dicom": 1}  # 6 RTSTRUCT, MR, PET; read-me and licence texts


def test_ibsi_volumes_are_bodies(real_data: Path) -> None:
    root = real_data / "ct-ibsi-sts"
    item = next(item for item in index_ct(root) if item.raw_subject == "STS_008" and item.verdict == "ok")
    pixels = np.stack(list(read_volume(item.paths, root)))
    assert pixels.shape == (51, 137, 141) and -1100 < pixels.min() < -900 and -200 < np.median(pixels) < 200


def test_every_lossless_encoding_gives_the_same_pixels(real_data: Path) -> None:
    folder = real_data / "ct-robustness" / "transfer-syntaxes"
    plain = next(iter(read_volume(["CTImage.dcm"], folder)))
    compared = 0
    for path in sorted(folder.glob("CTImage.dcm_*")):
        if path.name.split(".dcm")[1].startswith(
            ("_JPEGProcess1_", "_JPEGProcess1T", "_JPEGProcess2", "_JPEGProcess6")
        ):
            continue
        if "JPEGProcess10" in path.name:
            continue
        got = next(iter(read_volume([path.name], folder)))
        lossy = 5 if "JPEG2000T" in path.name else 1 if "JPEGLSLossyT" in path.name else 0
        assert np.abs(got - plain).max() <= lossy, path.name
        compared += 1
    assert compared == 11


def test_undecodable_encodings_are_verdicts(real_data: Path) -> None:
    folder = real_data / "ct-robustness" / "transfer-syntaxes"
    name = next(path.name for path in folder.iterdir() if "JPEGProcess6_8" in path.name)
    with pytest.raises(VerdictError) as caught:
        list(read_volume([name], folder))
    assert caught.value.verdict == "failed_unreadable"
