"""CT series and slides that tests write themselves."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

AIR, WATER = -1000.0, 0.0


def disc(side: int = 32, inside: float = WATER, stripes: float = 0.0) -> npt.NDArray[np.float32]:
    """Air with a disc of `inside` HU, optionally with stripes along the columns; (side, side)."""
    y, x = np.mgrid[:side, :side] - side / 2 + 0.5
    value = inside + stripes * np.sign(np.sin(x * np.pi / 2))
    return np.where(x**2 + y**2 < (side / 3) ** 2, value, AIR).astype(np.float32)


def write_slice(
    path: Path, hounsfield: npt.NDArray[np.float32], index: int, series: str = "1", gap: float = 2.0, **header: Any
) -> None:
    """One CT slice at height `index * gap`; `header` overrides elements by keyword, None deletes one."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = UID(f"2.25.{series}.{index + 1}")
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    values: dict[str, Any] = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "SeriesInstanceUID": UID(f"2.25.{series}"),
        "StudyInstanceUID": UID("2.25.99"),
        "FrameOfReferenceUID": UID("2.25.98"),
        "Modality": "CT",
        "PatientID": "SECRET-PATIENT",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "AcquisitionDate": "20200304",
        "AcquisitionTime": f"1005{59 - index % 60:02d}",
        "SeriesDate": "20200304",
        "SeriesTime": "100000",
        "AcquisitionNumber": 1,
        "InstanceNumber": (index * 7) % 5 + 1,
        "ImagePositionPatient": [-16.0, -16.0, index * gap],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PixelSpacing": [1.0, 1.0],
        "SliceThickness": gap,
        "Rows": hounsfield.shape[0],
        "Columns": hounsfield.shape[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 1,
        "RescaleSlope": 2,
        "RescaleIntercept": -1024,
        **header,
    }
    for name, value in values.items():
        if value is not None:
            setattr(dataset, name, value)
    slope, intercept = float(values["RescaleSlope"] or 1), float(values["RescaleIntercept"] or 0)
    stored = np.rint((hounsfield - intercept) / slope).astype("<i2")
    padding = values.get("PixelPaddingValue")
    if padding is not None:
        stored[0, 0] = padding
    dataset.PixelData = stored.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)


def write_series(
    folder: Path,
    slices: int = 6,
    image: Callable[[int], npt.NDArray[np.float32]] = lambda index: disc(inside=10.0 * index),
    names: Callable[[int], str] = "IM{:03d}".format,
    per_slice: Mapping[int, Mapping[str, Any]] | None = None,
    **header: Any,
) -> None:
    """A series of `slices`; `per_slice` gives single slices other headers."""
    for index in range(slices):
        write_slice(folder / names(index), image(index), index, **{**header, **(per_slice or {}).get(index, {})})


def write_tiff(path: Path, image: npt.NDArray[np.uint8], mpp: float | None, levels: int = 2) -> None:
    """A pyramidal JPEG TIFF with Aperio's description, which OpenSlide opens."""
    said = "" if mpp is None else f"|MPP = {mpp}"
    description = f"Aperio Image Library v1\n{image.shape[1]}x{image.shape[0]}|AppMag = 20{said}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path) as tiff:
        for level in range(levels):
            tiff.write(
                image[:: 4**level, :: 4**level],
                tile=(256, 256),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": 90},
                subfiletype=1 if level else 0,
                description=description,
                metadata=None,
            )


def stained(side: int = 1024, colour: tuple[int, int, int] = (180, 90, 150), seed: int = 0) -> npt.NDArray[np.uint8]:
    """A square of noisy tissue in the upper left half of a white slide; (side, side, 3)."""
    rng = np.random.default_rng(seed)
    image = np.full((side, side, 3), 245, dtype=np.uint8)
    half = side // 2
    noise = rng.integers(-20, 20, (half, half, 1))
    image[:half, :half] = np.clip(np.array(colour) + noise, 0, 255)
    return image
