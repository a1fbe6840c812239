"""CT in NIfTI: the pixels that DICOM gives, whatever the file's axes, numbers and compression; and what is none."""

import gzip
import itertools
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from extractors.ct.index import index_ct, read_ct_units
from extractors.ct.nifti import NiftiConfig
from extractors.items import FoundItem, VerdictError
from tests.support.images.ct_trees import pixels_of, request, usable, verdicts
from tests.support.images.nifti import affine_of, body, edit, image_of, write_dicom, write_nifti

BODY = body()
# Slices (rows to the back, columns to the left) from feet to head.
SLICES = BODY.transpose(2, 1, 0).astype(np.float32)


def only(root: Path, **options: Any) -> FoundItem:
    (item,) = index_ct(root, **options)
    return item


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = None, **header: Any) -> Path:
    image = nib.Nifti1Image(array, affine_of() if affine is None else affine)
    for name, value in header.items():
        image.header[name] = value
    nib.save(image, path)
    return path


# Orientation ---------------------------------------------------------------------------------------------------------


def test_every_storage_order_gives_the_pixels_of_the_dicom(tmp_path: Path) -> None:
    write_dicom(tmp_path / "dicom", BODY)
    expected = pixels_of(usable(tmp_path / "dicom"), tmp_path / "dicom")
    assert np.array_equal(expected, SLICES)
    signs = [("L", "R"), ("P", "A"), ("S", "I")]
    orders = ["".join(letters) for order in itertools.permutations(signs) for letters in itertools.product(*order)]
    assert len(orders) == 48
    identities = set()
    for number, axes in enumerate(orders):
        folder = tmp_path / axes
        write_nifti(folder / f"v.nii{'.gz' if number % 2 else ''}", BODY, axes)
        item = only(folder)
        assert (item.verdict, item.units_expected, item.geometry["axes"]) == ("ok", 20, axes)
        assert np.array_equal(pixels_of(item, folder), expected), axes
        assert (item.geometry["rows"], item.geometry["columns"], item.geometry["gap_mm"]) == (36, 40, 2.0)
        identities.add(item.identity)
    assert len(identities) == 1


@pytest.mark.parametrize("axes", ["LPS", "RAS", "RSA", "SPL"])
def test_pixels_that_are_not_square_are_resampled_as_those_of_dicom(tmp_path: Path, axes: str) -> None:
    spacing = (1.0, 1.25, 2.0)
    write_dicom(tmp_path / "dicom", BODY, spacing)
    write_nifti(tmp_path / "nifti" / "v.nii", BODY, axes, spacing=spacing)
    dicom, nifti = usable(tmp_path / "dicom"), usable(tmp_path / "nifti")
    assert nifti.geometry["spacing_mm"] == [1.25, 1.0]
    assert nifti.geometry["square"] == dicom.geometry["square"] == [45, 40]
    difference = pixels_of(nifti, tmp_path / "nifti") - pixels_of(dicom, tmp_path / "dicom")
    assert np.abs(difference).max() < 1e-3


@pytest.mark.parametrize("axes", ["LPS", "LSP", "SLP"])
def test_spans_give_the_units_of_the_whole(tmp_path: Path, axes: str) -> None:
    write_nifti(tmp_path / "v.nii.gz", BODY, axes)
    item = usable(tmp_path)
    batches = [batch for start in (0, 9) for batch in read_ct_units(request(item, tmp_path, start, start + 9), 4)]
    batches += read_ct_units(request(item, tmp_path, 18), 4)
    assert [len(batch.indices) for batch in batches] == [4, 4, 1, 4, 4, 1, 2]
    assert np.array_equal(np.concatenate([batch.pixels for batch in batches]), SLICES)
    assert np.concatenate([batch.indices for batch in batches]).tolist() == list(range(20))


# Values --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["<i2", ">i2", "<i4", "<i8", "<f4", ">f8"])
def test_stored_values_of_every_kind_are_read(tmp_path: Path, dtype: str) -> None:
    image = nib.Nifti1Image(BODY.astype(dtype), affine_of(), dtype=np.dtype(dtype))
    header = nib.Nifti1Header(endianness=dtype[0])
    header.set_data_dtype(np.dtype(dtype))
    image = nib.Nifti1Image(BODY.astype(dtype), affine_of(), header, dtype=np.dtype(dtype))
    nib.save(image, tmp_path / "v.nii")
    item = usable(tmp_path)
    assert np.array_equal(pixels_of(item, tmp_path), SLICES)
    assert item.geometry["stored"] == np.dtype(dtype).name


def test_nifti_2_is_read(tmp_path: Path) -> None:
    nib.save(nib.Nifti2Image(BODY.astype(np.int16), affine_of()), tmp_path / "v.nii.gz")
    assert np.array_equal(pixels_of(usable(tmp_path), tmp_path), SLICES)


@pytest.mark.parametrize(
    ("slope", "intercept", "stored"),
    [
        (1.0, -1024.0, BODY + 1024),
        (2.0, -1024.0, np.rint((BODY + 1024) / 2)),
        (np.nan, np.nan, BODY),
        (0.0, -1024.0, BODY),
        (np.nan, -1024.0, BODY),
        (0.5, 0.0, BODY * 2),
    ],
)
def test_slope_and_intercept_are_applied_once(
    tmp_path: Path, slope: float, intercept: float, stored: np.ndarray
) -> None:
    edit(save(tmp_path / "v.nii", stored.astype(np.int16)), scl_slope=slope, scl_inter=intercept)
    item = usable(tmp_path)
    assert np.abs(pixels_of(item, tmp_path) - SLICES).max() <= (1 if slope == 2 else 0)
    # nibabel, which shows NaN after loading although it applied them, is an independent reading.
    by_nibabel = nib.load(tmp_path / "v.nii").get_fdata(dtype=np.float32).transpose(2, 1, 0)
    assert np.array_equal(pixels_of(item, tmp_path), by_nibabel)


RAW = BODY + 1024


@pytest.mark.parametrize(
    "values",
    [
        RAW,  # the scanner's stored values; air is 0
        BODY + 8192,  # CT-RATE's first version without its table
        BODY - 1024,  # rescaled twice
        (BODY - 1024) * 2 - 1024,
        np.where(BODY < -990, -2000, RAW),  # stored values with padding
        np.clip((BODY + 1350) / 1500, 0, 1) * 255,  # a window's picture
        (np.clip(BODY, -1000, 1000) + 1000) / 2000,  # normalised
        (BODY > -500).astype(np.float64),  # a segmentation
        np.abs(BODY) + 10,  # no negative value: MR, PET
    ],
)
def test_values_that_cannot_be_hounsfield_units_are_refused(tmp_path: Path, values: np.ndarray) -> None:
    save(tmp_path / "v.nii", values.astype(np.float32))
    item = only(tmp_path)
    assert item.verdict == "refused_not_hu"
    assert set(item.geometry["shares"]) == {"soft", "thin", "dense", "padded"}


@pytest.mark.parametrize("slope", [(1.0, np.nan), (1.0, np.inf)])
def test_a_slope_without_an_intercept_is_refused(tmp_path: Path, slope: tuple[float, float]) -> None:
    edit(save(tmp_path / "v.nii", BODY.astype(np.int16)), scl_slope=slope[0], scl_inter=slope[1])
    assert only(tmp_path).verdict == "refused_not_hu"


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        (BODY[:, :, :].clip(-1000, 300), "ok"),
        (BODY[5:30, 8:28], "ok"),  # a crop of the trunk
        (BODY[10:30, 20:34], "ok"),  # no air at all: fat and bone
        (np.zeros_like(BODY), "failed_blank"),
        (np.full_like(BODY, -3024), "failed_blank"),
        (np.full_like(BODY, np.nan), "failed_blank"),
    ],
)
def test_crops_are_ct_and_one_value_is_blank(tmp_path: Path, values: np.ndarray, verdict: str) -> None:
    save(tmp_path / "v.nii", values.astype(np.float32))
    assert only(tmp_path).verdict == verdict


@pytest.mark.parametrize("padding", [-2000, -3024, -8192])
def test_padding_is_air_before_any_mean(tmp_path: Path, padding: int) -> None:
    x, y = np.mgrid[:40, :36]
    outside = (x - 20) ** 2 + (y - 18) ** 2 > 19**2
    padded = np.where(outside[:, :, None], padding, BODY)
    save(tmp_path / "v.nii", padded.astype(np.int16))
    item = usable(tmp_path)
    pixels = pixels_of(item, tmp_path)
    assert (pixels[:, outside.T] == -1024).all()
    assert np.array_equal(pixels[:, ~outside.T], SLICES[:, ~outside.T])
    assert item.geometry["shares"]["padded"] == pytest.approx(outside.mean(), abs=0.03)
    # The same with a scanner's tag, as DICOM.
    write_dicom(tmp_path / "dicom", np.where(outside[:, :, None], -1024.0, BODY))
    assert np.array_equal(pixels, pixels_of(usable(tmp_path / "dicom"), tmp_path / "dicom"))


def test_padding_that_a_gantrys_correction_smeared_is_air_too(tmp_path: Path) -> None:
    padded = np.where((np.arange(40) < 6)[:, None, None], -8192.0, BODY)
    padded[6] = 0.5 * padded[5] + 0.5 * BODY[6]
    save(tmp_path / "v.nii", padded.astype(np.float32))
    pixels = pixels_of(usable(tmp_path), tmp_path)
    assert pixels.min() >= -1500 and (pixels[:, :, :7] == -1024).all()


def test_what_is_no_number_is_air_and_counted(tmp_path: Path) -> None:
    holes = BODY.copy()
    holes[3:5, 4, 2:7] = np.nan
    holes[9, 9, 9] = np.inf
    save(tmp_path / "v.nii", holes.astype(np.float64))
    item = usable(tmp_path)
    assert item.geometry["not_finite"] == 11
    pixels = pixels_of(item, tmp_path)
    assert pixels.dtype == np.float32 and np.isfinite(pixels).all()
    assert (pixels[2:7, 4, 3:5] == -1024).all() and pixels[9, 9, 9] == -1024


@pytest.mark.parametrize("dtype", [np.dtype("c8"), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])])
def test_colours_and_complex_numbers_are_refused(tmp_path: Path, dtype: np.dtype[Any]) -> None:
    save(tmp_path / "v.nii", np.zeros(BODY.shape, dtype=dtype))
    assert only(tmp_path).verdict == "refused_not_hu"


# Place ---------------------------------------------------------------------------------------------------------------


def test_without_a_form_nobody_knows_left_from_right(tmp_path: Path) -> None:
    edit(write_nifti(tmp_path / "v.nii.gz", BODY), sform_code=0, qform_code=0)
    assert only(tmp_path).verdict == "failed_no_orientation"


def test_the_qform_places_what_has_no_sform(tmp_path: Path) -> None:
    image = image_of(BODY, "RAS")
    affine = image.affine.copy()
    image.set_sform(None, 0)
    image.set_qform(affine, 1)
    nib.save(image, tmp_path / "v.nii")
    edit(tmp_path / "v.nii", srow=np.ones((3, 4)))
    item = usable(tmp_path)
    assert item.geometry["form"] == "qform" and item.geometry["form_codes"] == [0, 1]
    assert np.array_equal(pixels_of(item, tmp_path), SLICES)


@pytest.mark.parametrize("fault", ["sign", "axes", "size"])
def test_the_sform_holds_where_the_forms_disagree_and_that_is_said(tmp_path: Path, fault: str) -> None:
    image = image_of(BODY, "LPS")
    other = {
        "sign": np.diag([1.0, -1.0, 2.0, 1.0]),
        "axes": np.diag([-1.0, 1.0, -2.0, 1.0])[[0, 2, 1, 3]],
        "size": np.diag([-0.8, -0.8, 2.0, 1.0]),
    }[fault]
    other[:3, 3] = image.affine[:3, 3]
    image.set_sform(image.affine, 1)
    image.set_qform(other, 1)
    nib.save(image, tmp_path / "v.nii")
    item = usable(tmp_path)
    assert item.geometry["forms_disagree"] is True and item.geometry["form"] == "sform"
    assert np.array_equal(pixels_of(item, tmp_path), SLICES)
    assert only(tmp_path, nifti=NiftiConfig(forms_disagree="refuse")).verdict == "failed_forms_disagree"


def test_forms_that_agree_within_rounding_say_nothing(tmp_path: Path) -> None:
    image = image_of(BODY)
    image.set_sform(image.affine, 1)
    image.set_qform(image.affine, 1)
    nib.save(image, tmp_path / "v.nii")
    assert "forms_disagree" not in only(tmp_path, nifti=NiftiConfig(forms_disagree="refuse")).geometry
    assert usable(tmp_path).geometry["form_codes"] == [1, 1]


def test_a_pixdim_of_0_for_the_sense_of_the_third_axis_is_1(tmp_path: Path) -> None:
    image = image_of(BODY)
    affine = image.affine.copy()
    image.set_sform(None, 0)
    image.set_qform(affine, 1)
    nib.save(image, tmp_path / "v.nii")
    assert nib.load(tmp_path / "v.nii").header["pixdim"][0] == 1
    pixdim = nib.load(tmp_path / "v.nii").header["pixdim"].copy()
    pixdim[0] = 0
    edit(tmp_path / "v.nii", pixdim=pixdim)
    assert np.array_equal(pixels_of(usable(tmp_path), tmp_path), SLICES)


def test_spacing_is_the_affines_and_held_against_pixdim(tmp_path: Path) -> None:
    image = image_of(BODY, spacing=(0.7, 0.7, 3.0))
    nib.save(image, tmp_path / "v.nii")
    assert "spacing_differs" not in usable(tmp_path).geometry
    for pixdim in ([1, 0, 0, 0], [1, 1, 1, 1]):
        edit(tmp_path / "v.nii", pixdim=[*pixdim, 0, 0, 0, 0], qform_code=0)
        geometry = usable(tmp_path).geometry
        assert geometry["spacing_differs"] is True and "spacing_ones" not in geometry
        assert (geometry["spacing_mm"], geometry["gap_mm"]) == ([0.7, 0.7], 3.0)


def test_voxels_of_1_mm_are_kept_and_said(tmp_path: Path) -> None:
    write_nifti(tmp_path / "v.nii", BODY, spacing=(1.0, 1.0, 1.0))
    assert usable(tmp_path).geometry["spacing_ones"] is True


def test_units_of_length_count(tmp_path: Path) -> None:
    image = image_of(BODY, spacing=(0.0007, 0.0007, 0.003))
    image.header.set_xyzt_units("meter")
    nib.save(image, tmp_path / "v.nii")
    geometry = usable(tmp_path).geometry
    assert (geometry["spacing_mm"], geometry["gap_mm"]) == ([0.7, 0.7], 3.0)
    assert "spacing_differs" not in geometry


@pytest.mark.parametrize(
    ("column", "verdict"),
    [([0.0, 0.0, 0.0], "failed_missing_geometry"), ([np.nan, 0.0, 2.0], "failed_missing_geometry")],
)
def test_a_form_that_places_nothing_is_no_geometry(tmp_path: Path, column: list[float], verdict: str) -> None:
    affine = affine_of()
    affine[:3, 2] = column
    edit(write_nifti(tmp_path / "v.nii", BODY), srow=affine[:3], qform_code=0)
    assert only(tmp_path).verdict == verdict


def test_pixels_of_a_size_that_no_scanner_makes(tmp_path: Path) -> None:
    write_nifti(tmp_path / "v.nii", BODY, spacing=(0.001, 0.001, 2.0))
    assert only(tmp_path).verdict == "failed_implausible_pixel_size"


def test_a_tilted_gantry_is_a_shear_of_the_sform_and_another_shear_is_none(tmp_path: Path) -> None:
    tilt = np.deg2rad(15)
    affine = affine_of()
    # Slices turned about x, while the table moves along z.
    affine[:3, 1] = [0, -np.cos(tilt), np.sin(tilt)]
    save(tmp_path / "v.nii", BODY.astype(np.int16), affine)
    edit(tmp_path / "v.nii", qform_code=0)
    item = usable(tmp_path)
    assert item.geometry["tilt_degrees"] == pytest.approx(15, abs=0.1)
    assert only(tmp_path, geometry="strict").verdict == "failed_gantry_tilt"
    affine = affine_of()
    affine[:3, 2] = [0.8, 0, 2]
    edit(tmp_path / "v.nii", srow=affine[:3])
    assert only(tmp_path).verdict == "failed_sheared"


def test_an_oblique_volume_is_read_along_its_nearest_axes(tmp_path: Path) -> None:
    turn = np.deg2rad(20)
    rotation = np.array([[np.cos(turn), 0, np.sin(turn)], [0, 1, 0], [-np.sin(turn), 0, np.cos(turn)]])
    affine = affine_of()
    affine[:3, :3] = rotation @ affine[:3, :3]
    save(tmp_path / "v.nii", BODY.astype(np.int16), affine)
    assert np.array_equal(pixels_of(usable(tmp_path), tmp_path), SLICES)


# Axes ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [(1,), (1, 1), (1, 1, 1, 1)])
def test_axes_of_length_1_hold_nothing(tmp_path: Path, more: tuple[int, ...]) -> None:
    save(tmp_path / "v.nii", BODY.astype(np.int16).reshape(*BODY.shape, *more))
    assert np.array_equal(pixels_of(usable(tmp_path), tmp_path), SLICES)


def test_an_empty_time_axis_holds_nothing(tmp_path: Path) -> None:
    save(tmp_path / "v.nii", BODY.astype(np.int16))
    edit(tmp_path / "v.nii", dim=[4, *BODY.shape, 0, 0, 0, 0])
    assert np.array_equal(pixels_of(usable(tmp_path), tmp_path), SLICES)


@pytest.mark.parametrize("shape", [(10, 12, 20, 3), (10, 12, 20, 1, 3), (10, 12, 1, 20)])
def test_several_volumes_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    save(tmp_path / "v.nii.gz", np.zeros(shape, dtype=np.int16))
    assert only(tmp_path).verdict == "refused_several_volumes"


@pytest.mark.parametrize(
    ("slices", "verdict"), [(12, "failed_too_few_slices"), (16, "ok"), (1, "failed_too_few_slices")]
)
def test_a_part_of_a_scan_is_none(tmp_path: Path, slices: int, verdict: str) -> None:
    write_nifti(tmp_path / "v.nii", BODY[:, :, :slices])
    assert only(tmp_path).verdict == verdict
    if slices == 12:
        assert only(tmp_path, nifti=NiftiConfig(least_slices=12)).verdict == "ok"


# Files ---------------------------------------------------------------------------------------------------------------


def _cut(path: Path, keep: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


def _wrong_sum(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-8] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize("keep", [0.001, 0.3, 0.98])
@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz"])
def test_a_file_that_is_cut_short_is_unreadable(tmp_path: Path, name: str, keep: float) -> None:
    _cut(write_nifti(tmp_path / name, BODY), keep)
    item = only(tmp_path)
    assert (item.verdict, item.paths[0].partition("!")[0]) == ("failed_unreadable", name)


def test_a_wrong_checksum_is_found_at_the_end_of_the_stream(tmp_path: Path) -> None:
    _wrong_sum(write_nifti(tmp_path / "v.nii.gz", BODY))
    assert only(tmp_path).verdict == "failed_unreadable"


def test_a_damaged_file_spoils_no_series_beside_it(tmp_path: Path) -> None:
    write_dicom(tmp_path, BODY)
    _cut(write_nifti(tmp_path / "v.nii.gz", BODY), 0.5)
    (tmp_path / "w.nii").write_bytes(b"no volume")
    (tmp_path / "empty.nii.gz").write_bytes(b"")
    assert verdicts(tmp_path) == {"ok": 1, "failed_unreadable": 3}


def test_files_are_known_by_content_not_by_name(tmp_path: Path) -> None:
    plain, packed = write_nifti(tmp_path / "a.nii", BODY), write_nifti(tmp_path / "b.nii.gz", BODY)
    plain.rename(tmp_path / "plain.nii.gz")
    packed.rename(tmp_path / "packed.nii")
    write_nifti(tmp_path / "c" / "c.nii", body(seed=1)).rename(tmp_path / "c" / "no_ending")
    items = index_ct(tmp_path)
    assert [(item.names["path"], item.verdict, item.geometry.get("misnamed")) for item in items] == [
        ("c/no_ending", "ok", None), ("packed.nii", "ok", True), ("plain.nii.gz", "ok", True),
    ]  # fmt: skip
    for item in items[1:]:
        assert np.array_equal(pixels_of(item, tmp_path), SLICES)


@pytest.mark.parametrize(("offset", "verdict"), [(0, "ok"), (40, "failed_unreadable"), (np.nan, "failed_unreadable")])
def test_where_voxels_begin(tmp_path: Path, offset: float, verdict: str) -> None:
    edit(write_nifti(tmp_path / "v.nii", BODY), vox_offset=offset)
    assert only(tmp_path).verdict == verdict


def test_a_file_that_changed_after_the_index_is_no_more_the_item(tmp_path: Path) -> None:
    for name in ("v.nii", "w.nii.gz"):
        write_nifti(tmp_path / name, BODY)
        item = only(tmp_path)
        write_nifti(tmp_path / name, body(seed=1))
        with pytest.raises(VerdictError, match="failed_changed"):
            pixels_of(item, tmp_path)
        (tmp_path / name).unlink()


def test_archives_hold_nifti_too(tmp_path: Path) -> None:
    write_nifti(tmp_path / "in" / "v.nii", BODY)
    shutil.make_archive(str(tmp_path / "set"), "zip", tmp_path / "in")
    shutil.rmtree(tmp_path / "in")
    item = usable(tmp_path)
    assert item.paths == ("set.zip!/v.nii",)
    assert np.array_equal(pixels_of(item, tmp_path), SLICES)


# Several files of one scan -------------------------------------------------------------------------------------------


def test_variants_of_one_scan_are_counted_and_strangers_are_not(tmp_path: Path) -> None:
    large = body((64, 60, 40))
    write_nifti(tmp_path / "s.nii", large)
    write_nifti(tmp_path / "s_Eq.nii", np.roll(large, 1, axis=2), "RAS")
    write_nifti(tmp_path / "sharp.nii", large + np.random.default_rng(5).normal(0, 30, large.shape))
    write_nifti(tmp_path / "other.nii", np.roll(large, 9, axis=0))
    write_nifti(tmp_path / "elsewhere" / "s.nii", large + 1)
    found = {item.names["path"]: item for item in index_ct(tmp_path)}
    assert {item.verdict for item in found.values()} == {"ok"}
    assert {name: item.geometry.get("near_copies", 0) for name, item in found.items()} == {
        "s.nii": 2, "s_Eq.nii": 2, "sharp.nii": 2, "other.nii": 0, "elsewhere/s.nii": 0,
    }  # fmt: skip


def test_slices_that_jump_are_counted_and_kept(tmp_path: Path) -> None:
    long = body((40, 36, 60))
    write_nifti(tmp_path / "a" / "whole.nii", long)
    write_nifti(tmp_path / "b" / "gaps.nii", np.concatenate([long[:, :, :20], np.roll(long, 7, 0)[:, :, 20:]], axis=2))
    whole, gaps = index_ct(tmp_path)
    assert (whole.verdict, whole.geometry.get("jumps")) == ("ok", None)
    assert (gaps.verdict, gaps.geometry.get("jumps")) == ("ok", 1)


def test_a_name_says_nothing(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a" / "CTPA_contrast.nii", BODY)
    write_nifti(tmp_path / "b" / "SECRET.nii", BODY)
    first, second = index_ct(tmp_path)
    assert first.identity == second.identity
    assert {**first.geometry, "stamps": []} == {**second.geometry, "stamps": []}
    assert "SECRET" not in repr(second.geometry)


def test_the_same_in_another_process_and_compressed_otherwise(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a" / "v.nii", BODY)
    for level in (1, 9):
        (tmp_path / f"{level}.nii.gz").write_bytes(gzip.compress(path.read_bytes(), level))
    alone, together = (index_ct(tmp_path, workers=workers) for workers in (1, 2))
    assert alone == together and len({item.identity for item in alone}) == 1
