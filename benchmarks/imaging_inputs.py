"""Inputs of the rows on ECGs, x-rays, CT in NIfTI and notes: made up, of the sizes that public sets have."""

import csv
import shutil
import string
from pathlib import Path
from typing import Any

import numpy as np

LEADS = ("I", "II", "III", "AVR", "AVF", "AVL", "V1", "V2", "V3", "V4", "V5", "V6")  # in MIMIC-IV-ECG's order
WORDS = 8_000


def write_ecgs(folder: Path, count: int) -> list[Path]:
    """WFDB records as MIMIC-IV-ECG's: twelve leads, 10 s at 500 Hz, format 16, 200 a millivolt; their headers."""
    import wfdb

    folder.mkdir(parents=True, exist_ok=True)
    at = np.arange(5_000) / 500
    for number in range(count):
        random = np.random.default_rng(number)
        phase = (at % 0.83) / 0.83
        spike = np.exp(-(((phase - 0.3) / 0.02) ** 2)) + 0.2 * np.exp(-(((phase - 0.6) / 0.06) ** 2))

        def wave(height: float, random: np.random.Generator = random, spike: Any = spike) -> Any:
            return height * spike + 0.05 * np.sin(2 * np.pi * 0.3 * at) + 0.01 * random.standard_normal(len(at))

        first, second = wave(0.9), wave(1.3)
        limb = [first, second, second - first, -(first + second) / 2, second - first / 2, first - second / 2]
        signals = np.column_stack([*limb, *(wave(0.3 * lead) for lead in range(1, 7))])
        wfdb.wrsamp(
            f"{number:05d}", fs=500, units=["mV"] * 12, sig_name=list(LEADS), p_signal=signals, fmt=["16"] * 12,
            adc_gain=[200.0] * 12, baseline=[0] * 12, write_dir=str(folder),
        )  # fmt: skip
    return sorted(folder.glob("*.hea"))


def film(seed: int, rows: int = 2544, columns: int = 3056) -> Any:
    """Lungs in a body, 12 bits: (rows, columns) uint16. MIMIC-CXR's common size."""
    y, x = np.mgrid[:rows, :columns]
    down, across = (y - rows / 2) / (rows / 3), (np.abs(x - columns / 2) - columns / 5) / (columns / 8)
    noise = np.random.default_rng(seed).integers(0, 120, (rows, columns))
    return (np.where(down**2 + across**2 < 1, 800, 3000) + noise + y * 300 // rows).astype(np.uint16)


def write_films(folder: Path, count: int) -> tuple[list[Path], list[Path]]:
    """X-rays as uncompressed DICOM with a window, and as JPEG of 8 bits."""
    from PIL import Image
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian

    dicom, jpeg = [], []
    first = film(0)
    for number in range(count):
        pixels = np.roll(first, 97 * number, axis=1)
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.1.1")
        meta.MediaStorageSOPInstanceUID = UID(f"2.25.{number + 1}")
        path = folder / "dicom" / f"{number}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        dataset = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
        values: dict[str, Any] = {
            "SOPClassUID": meta.MediaStorageSOPClassUID, "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
            "SeriesInstanceUID": UID(f"2.25.9{number}"), "StudyInstanceUID": UID("2.25.8"), "Modality": "DX",
            "PatientID": "1", "AcquisitionDate": "20210304", "AcquisitionTime": "102030", "BodyPartExamined": "CHEST",
            "ViewPosition": "PA", "BurnedInAnnotation": "NO", "Rows": pixels.shape[0], "Columns": pixels.shape[1],
            "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME1", "BitsAllocated": 16, "BitsStored": 12,
            "HighBit": 11, "PixelRepresentation": 0, "WindowCenter": 2048, "WindowWidth": 4096,
            "ImageType": ["DERIVED", "PRIMARY"],
        }  # fmt: skip
        for keyword, value in values.items():
            setattr(dataset, keyword, value)
        dataset.PixelData = pixels.tobytes()
        dataset["PixelData"].VR = "OW"
        dataset.save_as(path, enforce_file_format=True)
        dicom.append(path)
        jpeg.append(folder / "jpeg" / f"{number}.jpg")
        jpeg[-1].parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels >> 4).astype(np.uint8)).save(jpeg[-1], quality=95)
    return dicom, jpeg


def write_volume(folder: Path, slices: int) -> tuple[Path, Path, Path]:
    """One CT in NIfTI: plain and compressed as converters write it, and plain with coronal slices."""
    import nibabel

    y, x, z = np.ogrid[:512, :512, :slices]
    body = np.where((x - 255.5) ** 2 + (1.4 * (y - 255.5)) ** 2 < 230**2, 40, -1000) + 0 * z
    noise = np.random.default_rng(0).normal(0, 12, body.shape)
    image = nibabel.Nifti1Image(np.rint(body + noise).astype(np.int16), np.diag([-0.8, -0.8, 1.5, 1.0]))
    turned = image.as_reoriented(np.array([[0, 1], [2, 1], [1, 1]]))
    paths = folder / "plain" / "v.nii", folder / "packed" / "v.nii.gz", folder / "coronal" / "v.nii"
    for path, stored in zip(paths, (image, image, turned), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(stored, path)
    return paths


def write_notes(folder: Path, count: int) -> tuple[Path, Path]:
    """A table of notes of some 1,500 words, as CSV, and the folder of a WordPiece vocabulary."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "notes").mkdir(parents=True)
    (folder / "vocabulary").mkdir()
    random = np.random.default_rng(0)
    letters = np.array(list(string.ascii_lowercase))
    words = ["".join(letters[random.integers(0, 26, length)]) for length in random.integers(2, 11, WORDS)]
    pieces = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    known = [*marks, *pieces, *(f"##{piece}" for piece in pieces), *words[: WORDS * 3 // 4]]
    vocabulary = folder / "vocabulary" / "vocab.txt"
    vocabulary.write_text("\n".join(dict.fromkeys(known)) + "\n", encoding="utf-8")
    table = folder / "notes" / "notes.csv"
    with table.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["note_id", "subject_id", "charttime", "storetime", "text"])
        for number in range(count):
            chosen = random.integers(0, WORDS, random.integers(800, 2_200))
            lines = [" ".join(words[word] for word in chosen[at : at + 12]) for at in range(0, len(chosen), 12)]
            time = f"2020-01-01 {number % 24:02d}:00:00"
            rows.writerow([f"n{number}", number % 97 + 1, time, time, ".\n".join(lines)])
    return table, folder / "vocabulary"
