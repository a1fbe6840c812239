"""Chest x-rays of a tree: which are usable, whose they are, when and from which side."""

import gzip
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.pixels import apply_modality_lut, apply_voi_lut

from extractors.cxr.read import read_views
from extractors.cxr.settings import CXR, CxrSettings, CxrTable
from extractors.cxr.table import check
from extractors.cxr.views import view_of
from extractors.items import VERDICTS, FoundItem, UnitRequest
from tests.support.images.xrays import CR, DX, DX_RAW, RF, SECONDARY_CAPTURE, chest, write_film, write_image
from warehouse.errors import TimeloomError

# In `make test` alone: films are written and read.
pytestmark = pytest.mark.whole

FILM = chest()
GREY = (FILM >> 4).astype(np.uint8)


def index(folder: Path, workers: int = 1, **settings: Any) -> dict[str, FoundItem]:
    items = CXR.index_items(CxrSettings(path=folder, **settings), None, workers=workers)
    return {item.paths[0] if item.paths else "": item for item in items}


def verdict(folder: Path, **settings: Any) -> str:
    (item,) = index(folder, **settings).values()
    return item.verdict


@pytest.mark.parametrize(
    ("header", "expected", "key"),
    [
        ({"SOPClassUID": CR, "Modality": "CR"}, "ok", {}),
        ({"SOPClassUID": DX}, "ok", {}),
        ({"SOPClassUID": RF, "Modality": "RF"}, "ok", {}),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.2", "Modality": "MG"}, "refused_not_cxr", {}),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2", "Modality": "CT"}, "refused_not_cxr", {}),
        ({"SOPClassUID": DX_RAW}, "refused_for_processing", {"for_processing": True}),
        ({"PresentationIntentType": "FOR PROCESSING"}, "refused_for_processing", {"for_processing": True}),
        ({"SOPClassUID": SECONDARY_CAPTURE}, "refused_secondary_capture", {"secondary_captures": True}),
        ({"SOPClassUID": SECONDARY_CAPTURE, "Modality": "OT"}, "refused_secondary_capture", {}),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "refused_secondary_capture", {}),
        ({"BurnedInAnnotation": "YES"}, "refused_burned_in", {"burned_in": "keep"}),
        ({"BodyPartExamined": "HAND"}, "refused_not_chest", {"body_parts": ("HAND",)}),
        ({"BodyPartExamined": "PORT CHEST"}, "ok", {}),
        ({"BodyPartExamined": None}, "ok", {}),
        ({"ViewPosition": "LL"}, "ok", {}),
        ({"PatientID": ""}, "failed_no_subject", {}),
        ({"AcquisitionDate": None, "StudyDate": None}, "failed_no_time", {}),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "refused_not_grey", {}),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "refused_not_grey", {}),
        ({"Rows": 9000}, "failed_implausible_size", {}),
        ({"Rows": FILM.shape[0] + 1}, "failed_unreadable", {}),
        ({"SOPClassUID": RF, "NumberOfFrames": 2}, "refused_several_frames", {}),
    ],
)
def test_what_a_header_says_decides(tmp_path: Path, header: dict[str, Any], expected: str, key: dict[str, Any]) -> None:
    write_film(tmp_path / "film.dcm", FILM, **header)
    assert verdict(tmp_path) == expected
    if key:
        assert verdict(tmp_path, **key) == "ok"


def test_the_anatomic_region_speaks_where_the_body_part_does_not(tmp_path: Path) -> None:
    region = pydicom.Dataset()
    region.CodeMeaning = "Knee"
    write_film(tmp_path / "film.dcm", FILM, BodyPartExamined=None, AnatomicRegionSequence=[region])
    assert verdict(tmp_path) == "refused_not_chest"


@pytest.mark.parametrize(
    ("position", "meaning", "expected"),
    [
        ("PA", "", ("frontal", "PA")), ("ap", "", ("frontal", "AP")), ("AP LLD", "", ("frontal", "AP LLD")),
        ("LL", "", ("lateral", "LL")), ("RL", "", ("lateral", "RL")), ("LATERAL", "", ("lateral", "LATERAL")),
        ("XTABLE_LATERAL", "", ("lateral", "XTABLE LATERAL")), ("LAO", "", ("other", "LAO")),
        ("", "", ("unknown", "")), ("CHEST", "", ("unknown", "")), ("MRN 12345", "", ("unknown", "")),
        ("", "postero-anterior", ("frontal", "")), ("", "left lateral", ("lateral", "")),
        ("PA", "lateral", ("frontal", "PA")),
    ],
)  # fmt: skip
def test_views_have_three_states_and_one_for_obliques(position: str, meaning: str, expected: Any) -> None:
    assert view_of(position, meaning) == expected


def test_lateral_views_are_items_and_a_key_says_which_are_embedded(tmp_path: Path) -> None:
    for name, view in (("pa", "PA"), ("ll", "LL"), ("none", None), ("lao", "LAO")):
        write_film(tmp_path / f"{name}.dcm", FILM, ViewPosition=view, ImageLaterality="L" if view == "LL" else None)
    found = index(tmp_path)
    assert {path: (item.verdict, item.geometry["view"]) for path, item in found.items()} == {
        "pa.dcm": ("ok", "frontal"), "ll.dcm": ("ok", "lateral"), "none.dcm": ("ok", "unknown"),
        "lao.dcm": ("ok", "other"),
    }  # fmt: skip
    assert found["ll.dcm"].geometry["laterality"] == "L" and found["ll.dcm"].units_expected == 1
    found = index(tmp_path, views=("frontal", "unknown"))
    assert {path: item.verdict for path, item in found.items()} == {
        "pa.dcm": "ok", "none.dcm": "ok", "ll.dcm": "refused_view", "lao.dcm": "refused_view",
    }  # fmt: skip
    with pytest.raises(ValueError, match="name the views"):
        CxrSettings(path=tmp_path, views=())


def test_the_time_is_the_acquisitions_never_the_contents(tmp_path: Path) -> None:
    write_film(tmp_path / "a.dcm", FILM)
    write_film(tmp_path / "b.dcm", FILM, AcquisitionDate=None, AcquisitionTime=None)
    write_film(tmp_path / "c.dcm", FILM, AcquisitionDate=None, AcquisitionTime=None, StudyTime=None)
    write_film(tmp_path / "d.dcm", FILM, AcquisitionDateTime="20210304092030.5-0500", TimezoneOffsetFromUTC="-0500")
    found = index(tmp_path, timezone="Europe/Berlin")
    assert [(item.time, item.time_source, item.time_precision) for item in found.values()] == [
        (datetime(2021, 3, 4, 10, 20, 30), "AcquisitionDate+AcquisitionTime", "s"),
        (datetime(2021, 3, 4, 10, 15), "StudyDate+StudyTime", "s"),
        (datetime(2021, 3, 4), "StudyDate", "day"),
        (datetime(2021, 3, 4, 15, 20, 30, 500_000), "AcquisitionDateTime", "us"),
    ]


def test_the_spacing_is_the_patients_else_the_detectors(tmp_path: Path) -> None:
    write_film(tmp_path / "a.dcm", FILM, PixelSpacing=[0.1, 0.2])
    write_film(tmp_path / "b.dcm", FILM)
    write_film(tmp_path / "c.dcm", FILM, ImagerPixelSpacing=[0, 0])
    spacings = [(item.geometry["spacing_mm"], item.geometry["spacing_source"]) for item in index(tmp_path).values()]
    assert spacings == [([0.1, 0.2], "PixelSpacing"), ([0.14, 0.14], "ImagerPixelSpacing"), (None, "")]


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (np.zeros((300, 300), np.uint8), "failed_blank"),
        (np.full((300, 300), 201, np.uint8), "failed_blank"),
        (np.random.default_rng(0).integers(198, 204, (300, 300)).astype(np.uint8), "failed_blank"),
        (GREY[:223], "refused_too_small"),
        (GREY[:, :100], "refused_too_small"),
        (GREY, "ok"),
        (np.stack([GREY] * 3, axis=2), "ok"),
        (np.stack([GREY, GREY, GREY, np.full_like(GREY, 255)], axis=2), "ok"),
        (np.stack([GREY, GREY, 255 - GREY], axis=2), "refused_not_grey"),
        (GREY > 99, "refused_not_grey"),
        (FILM, "ok"),
    ],
)
def test_what_pixels_say(tmp_path: Path, pixels: Any, expected: str) -> None:
    write_image(tmp_path / "film.png", pixels)
    assert verdict(tmp_path) == expected


def test_noise_of_an_exposure_without_a_patient_is_blank_in_dicom_too(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(3000, 8, FILM.shape).astype(np.uint16)
    noise[:9, :9] = 0  # a marker is no picture
    write_film(tmp_path / "film.dcm", noise)
    assert verdict(tmp_path) == "failed_blank" and verdict(tmp_path, least_contrast=0) == "ok"


def test_a_png_of_16_bits_is_scaled_from_its_true_range(tmp_path: Path) -> None:
    write_image(tmp_path / "film.png", FILM)
    item = index(tmp_path)["film.png"]
    (batch,) = read_views(UnitRequest(tmp_path, item.paths, item.geometry), 1)
    assert item.geometry["grey"] == "stretch" and np.corrcoef(batch.pixels.ravel(), FILM.ravel())[0, 1] > 0.999
    assert len(np.unique(batch.pixels)) > 900  # Pillow's own conversion has 256 values, nearly all of them 255


def test_several_frames_of_a_png_are_refused(tmp_path: Path) -> None:
    frames = [Image.fromarray(GREY), Image.fromarray(GREY[::-1].copy())]
    frames[0].save(tmp_path / "film.png", save_all=True, append_images=frames[1:])
    assert verdict(tmp_path) == "refused_several_frames"


@pytest.mark.parametrize("name", ["film.dcm", "film.jpg", "film.png"])
def test_a_file_that_is_cut_is_one_verdict(tmp_path: Path, name: str) -> None:
    if name == "film.dcm":
        write_film(tmp_path / name, FILM)
    else:
        write_image(tmp_path / name, GREY)
    whole = (tmp_path / name).read_bytes()
    for kept in (0, 3, 200, len(whole) // 2, len(whole) - 60):
        (tmp_path / name).write_bytes(whole[:kept])
        assert verdict(tmp_path) == "failed_unreadable", kept
    (tmp_path / name).write_bytes(whole + b"\0")
    assert verdict(tmp_path) == "ok"


def test_a_jpeg_that_was_cut_and_closed_is_seen(tmp_path: Path) -> None:
    """Its decoder makes the rest grey and says nothing."""
    for quality, options in ((90, {}), (75, {"progressive": True}), (90, {"optimize": True})):
        write_image(tmp_path / "film.jpg", GREY, quality=quality, **options)
        whole = (tmp_path / "film.jpg").read_bytes()
        assert verdict(tmp_path) == "ok"
        (tmp_path / "film.jpg").write_bytes(whole[: len(whole) * 2 // 3] + b"\xff\xd9")
        assert verdict(tmp_path) == "failed_unreadable"


def test_a_data_set_without_its_prefix_is_read(tmp_path: Path) -> None:
    write_film(tmp_path / "film.dcm", FILM)
    dataset = pydicom.dcmread(tmp_path / "film.dcm")
    bare = tmp_path / "bare"
    bare.mkdir()
    with (bare / "film").open("wb") as file:
        pydicom.dcmwrite(file, dataset, implicit_vr=True, little_endian=True, force_encoding=True)
    content = (bare / "film").read_bytes()
    (bare / "film").write_bytes(content[content.index(b"\x08\x00\x08\x00") :])
    assert verdict(bare) == "ok"


def test_what_is_neither_is_one_item_and_refused_files_are_one_a_series(tmp_path: Path) -> None:
    for number in range(3):
        write_film(tmp_path / "mg" / f"{number}.dcm", FILM, SOPClassUID="1.2.840.10008.5.1.4.1.1.1.2")
    (tmp_path / "notes.txt").write_text("none of it")
    (tmp_path / "table.csv").write_text("a,b\n")
    found = index(tmp_path)
    assert {path: (item.verdict, item.units_expected) for path, item in found.items()} == {
        "": ("refused_not_image", 2), "mg/0.dcm": ("refused_not_cxr", None),
    }  # fmt: skip
    assert found["mg/0.dcm"].geometry == {"files": 3}


def test_the_same_items_for_any_number_of_workers(tmp_path: Path) -> None:
    for number in range(20):
        write_film(tmp_path / str(number % 3) / f"{number}.dcm", chest(number), PatientID=f"P{number}")
    assert list(index(tmp_path).values()) == list(index(tmp_path, workers=2).values())


def test_no_item_says_what_a_header_says_in_words(tmp_path: Path) -> None:
    secret = {"PatientID": "SECRET", "ViewPosition": "JANE DOE", "BodyPartExamined": "CHEST OF JANE"}
    write_film(tmp_path / "film.dcm", FILM, **secret)
    item = index(tmp_path)["film.dcm"]
    assert item.verdict == "ok" and "JANE" not in str(item.geometry) and "SECRET" not in str(item.geometry)


def test_copies_of_a_film_have_one_identity_and_near_ones_are_only_told(tmp_path: Path) -> None:
    write_film(tmp_path / "a.dcm", FILM, PatientID="A")
    write_film(tmp_path / "b.dcm", FILM, PatientID="B", StudyDate="20190101", SOPClassUID=CR)
    brighter = np.clip(FILM.astype(np.float64) * 0.7 + 600, 0, 4095).astype(np.uint16)
    write_film(tmp_path / "c.dcm", brighter, WindowCenter=2000, WindowWidth=4000)
    write_film(tmp_path / "d.dcm", np.ascontiguousarray(FILM[:, ::-1]))
    write_film(tmp_path / "e.dcm", np.full_like(FILM, 5))
    found = index(tmp_path)
    assert found["a.dcm"].content == found["b.dcm"].content != found["c.dcm"].content
    assert {path: item.geometry["near_copies"] for path, item in found.items()} == {
        "a.dcm": 2, "b.dcm": 2, "c.dcm": 2, "d.dcm": 0, "e.dcm": 0,
    }  # fmt: skip
    assert {item.verdict for path, item in found.items() if path != "e.dcm"} == {"ok"}


MIMIC = (
    "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,StudyTime,"
    "ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,PatientOrientationCodeSequence_CodeMeaning\n"
)
MIMIC_ROWS = (
    "aa-1,10000032,50414267,CHEST (PA AND LAT),PA,260,240,21800506,213014.531000,CHEST,postero-anterior,E\n"
    "aa-2,10000032,50414267,CHEST (PA AND LAT),LATERAL,260,240,21800506,213014.531000,CHEST (PA AND LAT),lateral,E\n"
    "bb-1,10000764,57375967,CHEST (PA AND LAT),,260,240,21320508,32759.0,CHEST (PA AND LAT),antero-posterior,E\n"
    "cc-1,10000898,50771383,CHEST (PORTABLE AP),,260,240,21880803,,CHEST (PORTABLE AP),,E\n"
)


def mimic(folder: Path, rows: str = MIMIC_ROWS) -> dict[str, Any]:
    """MIMIC-CXR-JPG's folders and its metadata table through gzip."""
    for number, path in enumerate(
        ("p10000032/s50414267/aa-1", "p10000032/s50414267/aa-2", "p10000764/s57375967/bb-1", "p10000898/s50771383/cc-1")
    ):
        write_image(folder / "files" / "p10" / f"{path}.jpg", (chest(number) >> 4).astype(np.uint8))
    table = folder / "mimic-cxr-2.0.0-metadata.csv.gz"
    table.write_bytes(gzip.compress((MIMIC + rows).encode()))
    return {"table": {"layout": "mimic-cxr-jpg", "file": table}}


def test_mimic_cxr_jpgs_layout_is_built_in(tmp_path: Path) -> None:
    settings = mimic(tmp_path)
    found = {Path(path).stem: item for path, item in index(tmp_path / "files", **settings).items()}
    assert {name: (item.verdict, item.raw_subject, item.time, item.time_precision) for name, item in found.items()} == {
        "aa-1": ("ok", "10000032", datetime(2180, 5, 6, 21, 30, 14, 531_000), "us"),
        "aa-2": ("ok", "10000032", datetime(2180, 5, 6, 21, 30, 14, 531_000), "us"),
        "bb-1": ("ok", "10000764", datetime(2132, 5, 8, 3, 27, 59), "s"),
        "cc-1": ("ok", "10000898", datetime(2188, 8, 3, 23, 59, 59, 999_999), "day"),
    }
    views = {name: (item.geometry["view"], item.geometry["view_position"]) for name, item in found.items()}
    assert views == {
        "aa-1": ("frontal", "PA"), "aa-2": ("lateral", "LATERAL"), "bb-1": ("frontal", ""), "cc-1": ("unknown", ""),
    }  # fmt: skip
    assert {item.time_source for item in found.values()} == {"table"}
    check(CxrSettings.model_validate({"path": tmp_path / "files", **settings}))


def test_a_table_that_names_files_that_are_not_there_is_one_line(tmp_path: Path) -> None:
    settings = mimic(tmp_path, MIMIC_ROWS + "zz-9,10009999,5,,PA,9,9,21880803,,,,\n")
    configured = CxrSettings.model_validate({"path": tmp_path / "files", **settings})
    with pytest.raises(TimeloomError, match=r"1 of the 5 files that modalities\.cxr\.table\.file names") as caught:
        check(configured)
    assert "zz-9" not in str(caught.value) and "partial: true" in str(caught.value.remedy)
    settings["table"]["partial"] = True
    check(CxrSettings.model_validate({"path": tmp_path / "files", **settings}))
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(TimeloomError, match="none of the 5 files"):
        check(CxrSettings.model_validate({"path": tmp_path / "elsewhere", **settings}))


def test_a_table_without_a_column_is_one_line(tmp_path: Path) -> None:
    mimic(tmp_path)
    (tmp_path / "t.csv").write_text("dicom_id,subject_id\naa-1,1\n")
    table = CxrTable(file=tmp_path / "t.csv", layout="mimic-cxr-jpg")
    with pytest.raises(TimeloomError, match="lacks the column StudyDate"):
        check(CxrSettings(path=tmp_path / "files", table=table))
    with pytest.raises(TimeloomError, match="lacks the column image"):
        check(CxrSettings(path=tmp_path / "files", table=CxrTable(file=tmp_path / "t.csv")))
    with pytest.raises(ValueError, match="leave out the other two"):
        CxrTable(file=tmp_path / "t.csv", layout="mimic-cxr-jpg", match="path")


def test_a_sites_own_table_has_its_own_columns(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png", "d.png", "e.png"):
        write_image(tmp_path / "x" / name, (chest(ord(name[0])) >> 4).astype(np.uint8))
    (tmp_path / "t.csv").write_text(
        "file,mrn,taken,read,view,side,text on it\n"
        "a.png,7,2020-01-02 03:04:05,2020-01-02 08:00:00,AP,R,no\n"
        "b.png,8,not a time,,PA,,yes\n"
        "c.png,8,2020-01-02,,PA,,\n"
        "d.png,8,2020-01-02,,PA,,\n"
        "d.png,9,2020-01-02,,PA,,\n"
    )
    columns = {
        "image": "file", "subject_id": "mrn", "time": "taken", "available_time": "read", "laterality": "side",
        "burned_in": "text on it",
    }  # fmt: skip
    table = {"file": tmp_path / "t.csv", "match": "name", "columns": columns}
    found = index(tmp_path / "x", table=table, burned_in="keep")
    assert {path: (item.verdict, item.raw_subject) for path, item in found.items()} == {
        "a.png": ("ok", "7"), "b.png": ("failed_no_time", "8"), "c.png": ("ok", "8"),
        "d.png": ("failed_two_subjects", "8"), "e.png": ("failed_no_subject", None),
    }  # fmt: skip
    first = found["a.png"]
    assert (first.geometry["laterality"], first.geometry["burned_in"]) == ("R", "no")
    assert first.available_time == datetime(2020, 1, 2, 8) and found["c.png"].time_precision == "day"
    assert index(tmp_path / "x", table=table)["b.png"].verdict == "refused_burned_in"


def test_a_table_wins_over_a_header_and_a_contradiction_is_told(tmp_path: Path) -> None:
    write_film(tmp_path / "x" / "f.dcm", FILM, ViewPosition="LL")
    (tmp_path / "t.csv").write_text("image,subject_id,view\nf.dcm,T1,PA\n")
    item = index(tmp_path / "x", table={"file": tmp_path / "t.csv"})["f.dcm"]
    assert (item.raw_subject, item.geometry["view"], item.geometry["view_source"]) == ("T1", "frontal", "table")
    assert item.geometry["views_disagree"] and item.time == datetime(2021, 3, 4, 10, 20, 30)


def test_without_a_table_images_are_judged_alone(tmp_path: Path) -> None:
    write_image(tmp_path / "film.jpg", GREY)
    item = index(tmp_path)["film.jpg"]
    assert (item.verdict, item.raw_subject, item.time, item.units_expected) == ("ok", None, None, 1)


def test_every_verdict_is_one_of_the_vocabulary() -> None:
    code = sorted((Path(__file__).parents[3] / "extractors" / "cxr").glob("*.py"))
    source = "".join(path.read_text(encoding="utf-8") for path in code)
    named = set(re.findall(r'"((?:refused|failed)_\w+)"', source))
    assert named and named <= VERDICTS.keys()


# Of the public test data: the verdict, when, and what independent readers see.
REAL = {
    "cxr": {
        "": ("refused_not_image", None), "00000001_000.png": ("ok", None), "00027426_000.png": ("ok", None),
    },
}  # fmt: skip


def test_the_real_images_verdicts_times_and_units(real_data: Path) -> None:
    root = real_data / "cxr"
    found = index(root)
    assert {path: (item.verdict, item.time) for path, item in found.items()} == REAL["cxr"]
    for path in sorted(root.glob("*.png")):
        with Image.open(path) as image:
            expected = np.asarray(image.convert("L"))
        item = found[path.name]
        (batch,) = read_views(UnitRequest(root, item.paths, item.geometry), 1)
        assert item.units_expected == 1 and (item.geometry["rows"], item.geometry["columns"]) == expected.shape
        assert np.array_equal(batch.pixels[0], expected * np.uint16(257))


def test_real_dicom_of_all_kinds_has_its_verdict(real_data: Path) -> None:
    root = real_data / "ct-robustness"
    found = index(root, least_side=100)
    usable = {path: item for path, item in found.items() if not item.verdict.startswith("refused_")}
    assert {path: item.verdict for path, item in usable.items()} == {
        "derived-objects/dx_image.dcm": "ok",
        "odd/GH177_D_CLUNIE_CT1_IVRLE_BigEndian_undefined_length.dcm": "failed_unreadable",
    }  # fmt: skip
    item = usable["derived-objects/dx_image.dcm"]
    dataset = pydicom.dcmread(root / item.paths[0])
    assert item.time is not None and item.time.strftime("%Y%m%d%H%M%S.%f").startswith(
        str(dataset.AcquisitionDate) + str(dataset.AcquisitionTime)[:6]
    )
    (batch,) = read_views(UnitRequest(root, item.paths, item.geometry), 1)
    light = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset).astype(np.float64)
    light = 1 - light / (2**dataset.BitsStored - 1)  # MONOCHROME1
    assert item.geometry["inverted"] and np.abs(batch.pixels[0] / 65_535 - light).max() < 1e-3
