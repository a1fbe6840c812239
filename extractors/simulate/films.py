"""Chest x-rays of the simulated hospital: a chest whose effusion tells the class, as DICOM and as JPEG."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from PIL import Image
from pydicom.uid import DigitalXRayImageStorageForPresentation

from extractors.simulate.dicom import new_file, uid_of
from extractors.simulate.export import Exported, Fault, clock, cut_short, of_items, signal_row, write_table
from extractors.simulate.record import MINUTE, Record, Row
from extractors.simulate.studies import Planned, Study, faults_generator

EFFUSION = (0.0, 0.25, 0.5, 0.75)
"""How far up both lungs are white, as a share of their height, by class."""
WHITE = 4095
SIDES = (240, 272)
SPACING_MM = 1.4
QUALITY = 85
NOISE = 60.0

FAULTS = (
    ("cxr_truncated_dicom", "the file is cut short in its pixels", "failed_unreadable"),
    ("cxr_blank", "every pixel has the same value", "failed_blank"),
    ("cxr_burned_in", "the header says that names are burned into the pixels", "refused_burned_in"),
    ("cxr_not_chest", "the header says that it is a hand", "refused_not_chest"),
    ("cxr_too_small", "an icon of 128 x 128 pixels", "refused_too_small"),
    ("cxr_truncated_jpeg", "the JPEG is cut short", "failed_unreadable"),
    ("cxr_without_row", "the table does not name the JPEG", "failed_no_subject"),
)
METADATA = {"image": pl.String, "patient_id": pl.String, "study_time": pl.String, "view": pl.String}

_AIR, _LUNG, _BODY, _FLUID, _BONE = 150.0, 900.0, 2500.0, 3000.0, 450.0

Film = NDArray[np.uint16]


@dataclass(frozen=True)
class Header:
    """What the header of one film says; `time` is its acquisition, in seconds since 1970."""

    seed: int
    patient_id: str
    accession: str
    time: int
    view: str = "PA"
    body_part: str = "CHEST"
    burned_in: bool = False
    inverted: bool = False


def chest(rng: np.random.Generator, image_class: int, side: int, lateral: bool = False) -> Film:
    """A chest from the front or from the side; (side, side) of 12 bits, dense parts bright."""
    down, across = (((np.arange(side, dtype=np.float32) + 0.5) / side) for _ in range(2))
    y, x = down[:, None], across[None, :]
    body = ((x - 0.5) / 0.46) ** 4 + ((y - 0.55) / 0.60) ** 4 < 1
    film = np.where(body, np.float32(_BODY), np.float32(_AIR)) + 300 * y
    width, top = rng.uniform(0.155, 0.175), rng.uniform(0.12, 0.16)
    middle, half = (top + 0.78) / 2, (0.78 - top) / 2
    lungs = np.zeros((side, side), bool)
    for centre in (0.5,) if lateral else (0.28, 0.72):
        lungs |= ((x - centre) / (width * (1.6 if lateral else 1))) ** 2 + ((y - middle) / half) ** 2 < 1
    heart = ((x - 0.56) / 0.13) ** 2 + ((y - 0.62) / 0.15) ** 2 < 1
    film[lungs & ~heart] = _LUNG
    # Fluid stands level in both lungs, from below.
    height = EFFUSION[image_class] + (rng.uniform(-0.03, 0.03) if image_class else 0.0)
    film[lungs & (y > middle + half - 2 * half * height)] = _FLUID
    ribs = np.sin(2 * np.pi * (9 * y + 1.2 * np.abs(x - 0.5) + rng.random())) > 0.6
    film += _BONE * (ribs & body)
    film += rng.standard_normal(film.shape, dtype=np.float32) * np.float32(NOISE)
    return np.clip(np.rint(film), 0, WHITE).astype(np.uint16)


def write_dicom(path: Path, film: Film, header: Header) -> Path:
    """A digital x-ray for presentation, of 12 bits in 16."""
    path.parent.mkdir(parents=True, exist_ok=True)
    begun, taken = (datetime.fromtimestamp(t, UTC) for t in (header.time - 5 * MINUTE, header.time))
    uids = [uid_of(header.seed, header.patient_id, header.accession, what) for what in ("study", "series", path.name)]
    dataset = new_file(DigitalXRayImageStorageForPresentation, uids[2])
    dataset.ImageType = ["ORIGINAL", "PRIMARY"]
    dataset.StudyDate, dataset.StudyTime = begun.strftime("%Y%m%d"), begun.strftime("%H%M%S")
    dataset.AcquisitionDate, dataset.AcquisitionTime = taken.strftime("%Y%m%d"), taken.strftime("%H%M%S")
    dataset.AccessionNumber = header.accession
    dataset.Modality, dataset.PresentationIntentType = "DX", "FOR PRESENTATION"
    dataset.PatientName, dataset.PatientID = f"Simulated^{header.patient_id}", header.patient_id
    dataset.BodyPartExamined, dataset.ViewPosition = header.body_part, header.view
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = uids[:2]
    dataset.BurnedInAnnotation = "YES" if header.burned_in else "NO"
    dataset.ImagerPixelSpacing = [SPACING_MM, SPACING_MM]
    dataset.SamplesPerPixel, (dataset.Rows, dataset.Columns) = 1, film.shape
    dataset.PhotometricInterpretation = "MONOCHROME1" if header.inverted else "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation = 0
    stored = WHITE - film if header.inverted else film
    dataset.PixelData = stored.astype("<u2").tobytes()
    dataset.save_as(path, enforce_file_format=True)
    return path


def write_jpeg(path: Path, film: Film) -> Path:
    """The film in 8 bits, which says of nobody that it is his."""
    path.parent.mkdir(parents=True, exist_ok=True)
    grey: NDArray[Any] = (film >> 4).astype(np.uint8)
    Image.fromarray(grey).save(path, quality=QUALITY)
    return path


def export_films(root: Path, seed: int, planned: Mapping[str, Sequence[Planned]], done: Callable[[], None]) -> Exported:
    """Writes `cxr/`: one film or two for each study, faulty ones of the first subject, and the table of the JPEGs."""
    files = root / "cxr" / "files"
    files.mkdir(parents=True)
    rows: list[Row] = []
    signal: list[Row] = []
    inverted: list[Path] = []
    lateral: list[Path] = []
    for patient, study in planned["cxr"]:
        rng = study.generator(seed, patient)
        as_dicom, is_inverted, has_lateral = rng.random(3) < (0.5, 0.4, 0.3)
        side, time = SIDES[int(rng.random() < 0.5)], study.image.time
        views = ["PA" if rng.random() < 0.7 else "AP", *(["LL"] if has_lateral else [])]
        accession = f"X{patient.index:06d}{study.number:02d}"
        for number, view in enumerate(views):
            film = chest(rng, study.image.image_class, side, lateral=view == "LL")
            if as_dicom:
                header = Header(seed, patient.patient_id, accession, time, view, inverted=bool(is_inverted))
                path = write_dicom(files / accession / f"{number + 1}.dcm", film, header)
            else:
                path = write_jpeg(files / accession / f"{number + 1}.jpg", film)
                rows.append(_row(files, path, patient, time, view))
            (lateral if view == "LL" else inverted if as_dicom and is_inverted else []).append(path)
            if not number:
                study.image.image_id = path.relative_to(root).as_posix()
        signal.append(signal_row(patient, study.image))
        done()
    faults, faulty = _faulty(root, files, seed, *planned["cxr"][0]) if planned["cxr"] else ([], [])
    if inverted:
        what = "MONOCHROME1: air is bright in the file"
        faults.append(of_items(root, "cxr_inverted", what, inverted, "ok", inverted=True))
    if lateral:
        faults.append(of_items(root, "cxr_lateral", "a second film from the side", lateral, "refused_view"))
    write_table(root / "cxr" / "metadata.csv", pl.DataFrame(rows + faulty, METADATA, orient="row"))
    return Exported(signal, faults)


def _row(files: Path, path: Path, patient: Record, time: int, view: str) -> Row:
    return path.relative_to(files).as_posix(), patient.patient_id, clock(time), view


def _faulty(root: Path, files: Path, seed: int, patient: Record, study: Study) -> tuple[list[Fault], list[Row]]:
    """Faulty films of one subject, in the nights before its first x-ray, and rows of the JPEGs among them."""
    rng = faults_generator(seed, "cxr")
    paths: list[Path] = []

    def header(**changes: Any) -> Header:
        number = len(paths)
        accession = f"X{patient.index:06d}{90 + number:02d}"
        return Header(seed, patient.patient_id, accession, study.night_before(number + 1), **changes)

    def dicom(film: Film, **changes: Any) -> None:
        said = header(**changes)
        paths.append(write_dicom(files / said.accession / "1.dcm", film, said))

    def film(side: int = SIDES[0]) -> Film:
        return chest(rng, 0, side)

    dicom(film())
    cut_short(paths[0], 0.6)
    dicom(np.full((SIDES[0], SIDES[0]), 700, np.uint16))
    dicom(film(), burned_in=True)
    dicom(film(), body_part="HAND")
    dicom(film(128))
    rows: list[Row] = []
    for listed in (True, False):
        said = header()
        paths.append(write_jpeg(files / said.accession / "1.jpg", film()))
        if listed:
            rows.append(_row(files, paths[-1], patient, said.time, "PA"))
            cut_short(paths[-1], 0.6)
    return [
        of_items(root, name, what, [path], verdict) for path, (name, what, verdict) in zip(paths, FAULTS, strict=True)
    ], rows
