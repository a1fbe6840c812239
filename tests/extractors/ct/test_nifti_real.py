"""Real CT as NIfTI: written by nibabel from what pydicom reads, read as the DICOM is."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from extractors.ct.index import index_ct
from tests.support.images.ct_trees import pixels_of, usable

SERIES = ["ct-ibsi-sts/STS_008/CT/image", "ct-ibsi-sts/STS_019/CT/image", "ct-head-series/Philips/S21570/S2010"]


def volume_of(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Hounsfield units by column, row and slice, and NIfTI's affine, by the standard's formula (PS3.3 C.7.6.2.1.1)."""
    files = [pydicom.dcmread(path) for path in folder.iterdir() if path.name != "DIRFILE"]
    slices = [dataset for dataset in files if "ImagePositionPatient" in dataset]
    slices.sort(key=lambda dataset: float(dataset.ImagePositionPatient[2]))
    values = [each.pixel_array * float(each.RescaleSlope) + float(each.RescaleIntercept) for each in slices]
    first, last = slices[0], slices[-1]
    row, column = np.array(first.ImageOrientationPatient, dtype=float).reshape(2, 3)
    affine = np.eye(4)
    affine[:3, 0] = row * float(first.PixelSpacing[1])
    affine[:3, 1] = column * float(first.PixelSpacing[0])
    start, end = (np.array(each.ImagePositionPatient, dtype=float) for each in (first, last))
    affine[:3, 2] = (end - start) / (len(slices) - 1)
    affine[:3, 3] = start
    return np.stack(values).transpose(2, 1, 0), np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


@pytest.mark.parametrize("series", SERIES)
def test_a_real_scan_has_the_pixels_of_its_dicom(real_data: Path, tmp_path: Path, series: str) -> None:
    values, affine = volume_of(real_data / series)
    nib.save(nib.Nifti1Image(values.astype(np.int16), affine), tmp_path / "v.nii.gz")
    item = usable(tmp_path)
    dicom = usable(real_data / series)
    expected = pixels_of(dicom, real_data / series)
    assert np.array_equal(pixels_of(item, tmp_path), np.where(expected < -1500, -1024, expected))
    same = ("rows", "columns", "slices", "gap_mm")
    assert {name: item.geometry[name] for name in same} == {name: dicom.geometry[name] for name in same}
    assert item.geometry["spacing_mm"] == pytest.approx(dicom.geometry["spacing_mm"], rel=1e-5)


def test_its_stored_values_and_values_rescaled_twice_are_refused(real_data: Path, tmp_path: Path) -> None:
    for place, series in enumerate(SERIES):
        values, affine = volume_of(real_data / series)
        for name, shift in (("stored", 1024), ("twice", -1024), ("table", 8192)):
            nib.save(nib.Nifti1Image((values + shift).astype(np.int16), affine), tmp_path / f"{place}-{name}.nii")
    found = {item.paths[0]: item.verdict for item in index_ct(tmp_path)}
    assert len(found) == 9 and set(found.values()) == {"refused_not_hu"}, found
