"""CT series of the simulated hospital: a body phantom whose lesion tells the class, written as DICOM folders."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import UID, CTImageStorage

from extractors.simulate.dicom import new_file, uid_of
from extractors.simulate.record import MINUTE

FIELD_MM = 360.0
SLICE_MM = 5.0
AIR, WATER, LUNG, BONE = -1000.0, 0.0, -800.0, 700.0

LESION_HU = (-90.0, 20.0, 110.0, 190.0)
"""Mean density of the lesion, by class."""
LESION_PERIOD_MM = (64.0, 45.0, 32.0, 24.0)
"""Wavelength of the lesion's stripes, by class."""
LESION_ANGLE = (0.0, 0.25 * np.pi, 0.5 * np.pi, 0.75 * np.pi)
"""Direction of the lesion's stripes, by class."""
STRIPE_HU = 35.0

Volume = NDArray[np.float32]


@dataclass(frozen=True)
class Series:
    """What the headers of one series say; `time` is the acquisition of its first slice, in seconds since 1970."""

    seed: int
    patient_id: str
    accession: str
    number: int
    time: int
    image_type: tuple[str, ...] = ("ORIGINAL", "PRIMARY", "AXIAL")
    suffix: str = ""
    first_slice_on_top: bool = False
    slope: int = 1

    def uid(self, *what: object) -> UID:
        """A UID that depends on the seed and on what it names."""
        return uid_of(self.seed, self.patient_id, self.accession, *what)


def phantom(rng: np.random.Generator, image_class: int, pixels: int, slices: int) -> Volume:
    """A body of water in air with lungs, a spine and one large lesion of the class; (slices, pixels, pixels) in HU."""
    axis = ((np.arange(pixels) + 0.5) / pixels - 0.5) * FIELD_MM
    y, x = np.meshgrid(axis, axis, indexing="ij")
    z = ((np.arange(slices) + 0.5) / slices - 0.5)[:, None, None]
    width, depth = rng.uniform(150, 168), rng.uniform(112, 130)
    body = _ellipse(x, y, width, depth)
    lungs = _ellipse(x + 0.52 * width, y + 35, 38, 48) | _ellipse(x - 0.52 * width, y + 35, 38, 48)
    spine = _ellipse(x, y - 0.72 * depth, 20, 18)
    volume = np.full((slices, pixels, pixels), AIR, dtype=np.float32)
    volume[:, body] = WATER + 30.0
    volume[:, body & lungs] = LUNG
    volume[:, body & spine] = BONE
    centre_x, centre_y = rng.uniform(-14, 14), rng.uniform(-8, 10)
    # A sphere-like lesion: widest in the middle of the volume, present in every slice.
    radius = rng.uniform(64, 76) * np.sqrt(1.0 - 1.6 * z**2)
    lesion = (x - centre_x) ** 2 + (y - centre_y) ** 2 < radius**2
    angle, period = LESION_ANGLE[image_class], LESION_PERIOD_MM[image_class]
    along = x * np.cos(angle) + y * np.sin(angle)
    stripes = LESION_HU[image_class] + STRIPE_HU * np.sin(2 * np.pi * (along / period + rng.random()))
    np.copyto(volume, stripes.astype(np.float32), where=lesion & body)
    noise = rng.standard_normal(volume.shape, dtype=np.float32) * np.float32(12.0)
    volume += noise * (volume > AIR)
    return volume


def localizer(rng: np.random.Generator, pixels: int) -> Volume:
    """A frontal overview of one slice, which no pipeline may take for a volume."""
    return phantom(rng, int(rng.integers(4)), pixels, 1)


def write_series(folder: Path, series: Series, volume: Volume) -> list[Path]:
    """Writes one file per slice, named by instance number; returns them from bottom to top."""
    folder.mkdir(parents=True)
    slices, pixels, _ = volume.shape
    stored = np.clip(np.rint((volume + 1024.0) / series.slope), 0, 4095).astype("<u2")
    paths = []
    for k in range(slices):
        instance = slices - k if series.first_slice_on_top else k + 1
        path = folder / f"{instance}{series.suffix}"
        dataset = _headers(series, instance, (slices, pixels), k)
        dataset.PixelData = stored[k].tobytes()
        dataset.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def _ellipse(x: NDArray[np.float64], y: NDArray[np.float64], a: float, b: float) -> NDArray[np.bool_]:
    return (x / a) ** 2 + (y / b) ** 2 < 1.0


def _headers(series: Series, instance: int, shape: tuple[int, int], k: int) -> Dataset:
    slices, pixels = shape
    spacing = FIELD_MM / pixels
    corner = -FIELD_MM / 2 + spacing / 2
    study = datetime.fromtimestamp(series.time - 5 * MINUTE, UTC)
    taken = datetime.fromtimestamp(series.time + instance - 1, UTC)
    dataset = new_file(CTImageStorage, series.uid(series.number, instance))
    dataset.ImageType = list(series.image_type)
    dataset.StudyDate, dataset.StudyTime = study.strftime("%Y%m%d"), study.strftime("%H%M%S")
    dataset.SeriesDate, dataset.SeriesTime = dataset.StudyDate, dataset.StudyTime
    dataset.AcquisitionDate, dataset.AcquisitionTime = taken.strftime("%Y%m%d"), taken.strftime("%H%M%S")
    dataset.ContentDate, dataset.ContentTime = dataset.AcquisitionDate, dataset.AcquisitionTime
    dataset.AccessionNumber = series.accession
    dataset.Modality = "CT"
    dataset.Manufacturer = "SIMULATED"
    dataset.PatientName = f"Simulated^{series.patient_id}"
    dataset.PatientID = series.patient_id
    dataset.PatientPosition = "HFS"
    dataset.SliceThickness = SLICE_MM
    dataset.KVP = 120
    dataset.StudyInstanceUID = series.uid("study")
    dataset.SeriesInstanceUID = series.uid(series.number)
    dataset.FrameOfReferenceUID = series.uid("frame")
    dataset.SeriesNumber = series.number
    dataset.AcquisitionNumber = 1
    dataset.InstanceNumber = instance
    if "LOCALIZER" in series.image_type:
        dataset.ImagePositionPatient = [corner, 0, -corner]
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
    else:
        dataset.ImagePositionPatient = [corner, corner, SLICE_MM * (k - slices // 2)]
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows = dataset.Columns = pixels
    dataset.PixelSpacing = [spacing, spacing]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation = 0
    dataset.RescaleIntercept, dataset.RescaleSlope = -1024, series.slope
    dataset.RescaleType = "HU"
    dataset.WindowCenter, dataset.WindowWidth = 40, 400
    return dataset
