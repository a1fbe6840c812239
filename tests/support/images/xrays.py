"""Chest x-rays that tests write themselves."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ExplicitVRLittleEndian

CR, DX = "1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.5.1.4.1.1.1.1"
DX_RAW, RF = "1.2.840.10008.5.1.4.1.1.1.1.1", "1.2.840.10008.5.1.4.1.1.12.2"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
SIDE = (260, 240)


def chest(seed: int = 0, rows: int = SIDE[0], columns: int = SIDE[1], top: int = 4095) -> npt.NDArray[np.uint16]:
    """Two dark lungs and a heart in a bright body, with noise: (rows, columns), 0 to `top`, dense parts bright."""
    y, x = np.mgrid[:rows, :columns]
    down, across = (y - rows / 2) / (rows / 3), (np.abs(x - columns / 2) - columns / 5) / (columns / 8)
    noise = np.random.default_rng(seed).integers(0, top // 20, (rows, columns))
    heart = ((y - rows * 0.6) / (rows / 6)) ** 2 + ((x - columns * 0.62) / (columns / 6)) ** 2 < 1
    body = np.where((down**2 + across**2 < 1) & ~heart, top // 5, top * 3 // 4) + noise + y * top // (12 * rows)
    return body.astype(np.uint16)


def write_film(path: Path, stored: npt.NDArray[Any], encoded: bytes | None = None, **header: Any) -> None:
    """One x-ray of stored values; `header` overrides elements by keyword, None deletes one.

    Args:
        encoded: the pixel data's one fragment, for a compressed `syntax`.
    """
    syntax = header.pop("syntax", ExplicitVRLittleEndian)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = UID(syntax)
    kind = header.get("SOPClassUID", DX)
    meta.MediaStorageSOPClassUID = UID(kind)
    meta.MediaStorageSOPInstanceUID = UID(f"2.25.{abs(hash(str(path))) % 10**12}")
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    values: dict[str, Any] = {
        "SOPClassUID": kind,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "SeriesInstanceUID": UID("2.25.71"),
        "StudyInstanceUID": UID("2.25.72"),
        "Modality": "DX",
        "PatientID": "SECRET-PATIENT",
        "ImageType": ["ORIGINAL", "PRIMARY"],
        "StudyDate": "20210304",
        "StudyTime": "101500",
        "AcquisitionDate": "20210304",
        "AcquisitionTime": "102030",
        "ContentDate": "20251231",
        "ContentTime": "235959",
        "BodyPartExamined": "CHEST",
        "ViewPosition": "PA",
        "BurnedInAnnotation": "NO",
        "ImagerPixelSpacing": [0.14, 0.14],
        "Rows": stored.shape[0],
        "Columns": stored.shape[1],
        "SamplesPerPixel": 1 if stored.ndim == 2 else stored.shape[2],
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": stored.dtype.itemsize * 8,
        "BitsStored": 12 if stored.dtype.itemsize == 2 else 8,
        "PixelRepresentation": int(stored.dtype.kind == "i"),
        **header,
    }
    values.setdefault("HighBit", values["BitsStored"] - 1)
    for name, value in values.items():
        if value is not None:
            setattr(dataset, name, value)
    if encoded is None:
        content = stored.astype(stored.dtype.newbyteorder("<")).tobytes()
        dataset.PixelData = content + b"\0" * (len(content) % 2)
    else:
        dataset.PixelData = encapsulate([encoded])
    dataset["PixelData"].VR = "OW" if stored.dtype.itemsize == 2 and encoded is None else "OB"
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)


def lut(first: int, entries: npt.NDArray[Any], bits: int) -> Dataset:
    """An item of a sequence of tables."""
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(entries) % 65_536, first, bits])
    item.add_new("LUTData", "OW", entries.astype("<u2").tobytes())
    return item


def write_image(path: Path, pixels: npt.NDArray[Any], **options: Any) -> None:
    """A JPEG or PNG file, by the ending of its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
