"""CT of the simulated hospital that a research archive gives as NIfTI: the same phantoms, in several orientations."""

import gzip
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel.orientations
import numpy as np
import polars as pl

from extractors.simulate.ct import FIELD_MM, SLICE_MM, Volume, phantom
from extractors.simulate.export import Exported, Fault, clock, cut_short, of_items, signal_row, write_table
from extractors.simulate.record import Record, Row
from extractors.simulate.studies import Planned, Study, faults_generator

_nibabel: Any = nibabel  # it has no types

AXES = ("RAS", "LPS", "ASR", "LIA")
"""What the axes of an array run towards: right, left, anterior, posterior, superior, inferior."""
PIXELS, SLICES = 64, 18
SLOPE = 0.5  # half of the volumes are stored in steps of it
FAULTS = (
    ("nifti_several_volumes", "a fourth axis: two phases in a file", "refused_several_volumes"),
    ("nifti_no_orientation", "both form codes are zero", "failed_no_orientation"),
    ("nifti_truncated", "the compressed file is cut short", "failed_unreadable"),
    ("nifti_few_slices", "a part of a scan: 6 slices", "failed_too_few_slices"),
    ("nifti_without_row", "the table does not name the file", "failed_no_subject"),
    ("nifti_missing_file", "the table names a file that is not there", "failed_missing_file"),
)
MANIFEST = {"path": pl.String, "patient_id": pl.String, "scan_time": pl.String}


def image_of(volume: Volume, axes: str, slope: float = 1.0) -> Any:
    """A volume (slices from feet to head, rows to the back, columns to the left) in an orientation, in int16.

    Args:
        slope: Hounsfield units a stored step.
    """
    spacing = FIELD_MM / volume.shape[1]
    stored = np.rint(volume.transpose(2, 1, 0) / slope).astype(np.int16)
    # NIfTI's axes run to the right, to the front and up.
    affine = np.diag([-spacing, -spacing, SLICE_MM, 1.0])
    affine[:3, 3] = FIELD_MM / 2, FIELD_MM / 2, -SLICE_MM * volume.shape[0] / 2
    orientations = _nibabel.orientations
    turn = orientations.ornt_transform(orientations.io_orientation(affine), orientations.axcodes2ornt(tuple(axes)))
    image = _nibabel.Nifti1Image(stored, affine).as_reoriented(turn)
    image.header.set_slope_inter(slope, 0.0)
    image.header.set_xyzt_units("mm", "sec")
    for code in (image.set_sform, image.set_qform):
        code(image.affine, code=1)
    return image


def write_nifti(path: Path, image: Any) -> Path:
    """A compressed file, the same bytes whenever it is written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))
    return path


def export_nifti(root: Path, seed: int, planned: Mapping[str, Sequence[Planned]], done: Callable[[], None]) -> Exported:
    """Writes `ct/nifti/`: a volume for each study and faulty ones, and `nifti/manifest.csv`, which names them."""
    files = root / "ct" / "nifti"
    rows: list[Row] = []
    signal: list[Row] = []
    by_axes: dict[str, list[Path]] = {axes: [] for axes in AXES}
    for patient, study in planned["nifti"]:
        rng = study.generator(seed, patient)
        axes = AXES[int(rng.integers(len(AXES)))]
        volume = phantom(rng, study.image.image_class, PIXELS, SLICES + int(rng.integers(3)))
        image = image_of(volume, axes, SLOPE if rng.random() < 0.5 else 1.0)
        path = write_nifti(_place(files, patient, study.number), image)
        study.image.image_id = path.relative_to(root).as_posix()
        rows.append(_row(path, patient, study.image.time))
        signal.append(signal_row(patient, study.image))
        by_axes[axes].append(path)
        done()
    faults, faulty = _faulty(root, files, seed, *planned["nifti"][0]) if planned["nifti"] else ([], [])
    faults += [
        of_items(root, f"nifti_axes_{axes}", f"its axes run {axes}", paths, "ok", axes=axes)
        for axes, paths in by_axes.items()
        if paths
    ]
    write_table(root / "nifti" / "manifest.csv", pl.DataFrame(rows + faulty, MANIFEST, orient="row"))
    return Exported(signal, faults)


def _place(files: Path, patient: Record, number: int) -> Path:
    return files / f"N{patient.index:06d}{number:02d}.nii.gz"


def _row(path: Path, patient: Record, time: int) -> Row:
    return f"nifti/{path.name}", patient.patient_id, clock(time)


def _faulty(root: Path, files: Path, seed: int, patient: Record, study: Study) -> tuple[list[Fault], list[Row]]:
    """Faulty volumes of one subject, in the nights before its own, and their rows of the table."""
    rng = faults_generator(seed, "nifti")
    paths = [_place(files, patient, 90 + number) for number in range(len(FAULTS))]
    times = [study.night_before(number + 1) for number in range(len(FAULTS))]

    def image(slices: int = SLICES) -> Any:
        return image_of(phantom(rng, 0, PIXELS, slices), "RAS")

    several = image()
    both = np.repeat(np.asanyarray(several.dataobj)[..., None], 2, axis=3).astype(np.int16)
    write_nifti(paths[0], _nibabel.Nifti1Image(both, several.affine))
    lost = image()
    lost.set_sform(None, code=0)
    lost.set_qform(None, code=0)
    write_nifti(paths[1], lost)
    cut_short(write_nifti(paths[2], image()), 0.6)
    write_nifti(paths[3], image(6))
    write_nifti(paths[4], image())
    rows = [_row(path, patient, time) for path, time in zip(paths, times, strict=True) if path != paths[4]]
    return [
        of_items(root, name, what, [path], verdict) for path, (name, what, verdict) in zip(paths, FAULTS, strict=True)
    ], rows
