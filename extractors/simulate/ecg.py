"""ECGs of the simulated hospital: WFDB records whose ST level and rate tell the class, and a table that names them."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from extractors.simulate.export import Exported, Fault, clock, cut_short, of_items, signal_row, write_table
from extractors.simulate.record import Record, Row
from extractors.simulate.studies import Planned, Study, faults_generator

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
MIMIC_ORDER = ("I", "II", "III", "aVR", "aVF", "aVL", "V1", "V2", "V3", "V4", "V5", "V6")
"""MIMIC-IV-ECG's headers name aVF before aVL: who goes by place exchanges them."""

ST_MV = (0.0, -0.15, 0.2, 0.4)
"""Level of the ST segment in V2 to V5 by class; in I and II it is half of it, in V1 and V6 a quarter."""
RATE_A_MINUTE = (60.0, 72.0, 84.0, 96.0)
"""Beats a minute, by class."""

GAIN = 1000  # digital steps a millivolt
RATES = ((500, 6), (250, 10))  # samples a second, seconds
NOISE_MV, WANDER_MV = 0.012, 0.04

FAULTS = (
    ("ecg_swapped_leads", "the names of I and II are exchanged", "failed_lead_mismatch"),
    ("ecg_flat_lead", "V3 has no signal", "failed_flat_lead"),
    ("ecg_truncated", "the signal's file is cut short", "failed_truncated"),
    ("ecg_wrong_sum", "a sample is another than the one that was summed up", "failed_checksum"),
    ("ecg_uncalibrated", "the header's gain is zero", "failed_uncalibrated"),
    ("ecg_missing_file", "the table names a record that is not there", "failed_missing_file"),
    ("ecg_without_row", "the table does not name the record", "failed_no_subject"),
)
RECORD_LIST = {"patient_id": pl.String, "path": pl.String, "ecg_time": pl.String}

# Waves of a beat: seconds from the R wave, width; the T wave's place is a share of the beat's length.
_WAVES = np.array([(-0.16, 0.022), (-0.03, 0.009), (0.0, 0.011), (0.03, 0.011)])
_T_SHARE, _T_WIDTH = 0.36, 0.035
# Millivolts of P, Q, R, S and T in the eight leads that are independent.
_STORED = ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6")
_HEIGHTS = np.array(
    [
        (0.08, -0.05, 0.70, -0.10, 0.20),
        (0.14, -0.08, 1.10, -0.15, 0.30),
        (0.05, 0.00, 0.20, -0.90, 0.05),
        (0.06, 0.00, 0.45, -1.20, 0.35),
        (0.06, -0.02, 0.80, -0.80, 0.40),
        (0.06, -0.06, 1.30, -0.50, 0.40),
        (0.06, -0.08, 1.30, -0.25, 0.30),
        (0.06, -0.08, 1.00, -0.10, 0.25),
    ]
)
_ST_SHARE = np.array([0.5, 0.5, 0.25, 1.0, 1.0, 1.0, 1.0, 0.25])

Signal = NDArray[np.int16]


def beats(rng: np.random.Generator, image_class: int, rate: int, seconds: int) -> dict[str, Signal]:
    """Twelve leads of a heart of the class by name, each (rate * seconds,) in thousandths of a millivolt."""
    count = rate * seconds
    at = np.arange(count) / rate
    usual = 60 / (RATE_A_MINUTE[image_class] + rng.uniform(-3, 3))
    lengths = usual * (1 + 0.02 * rng.standard_normal(int(seconds / usual) + 4))
    starts = np.cumsum(lengths) - lengths[0] - rng.uniform(0, usual)
    place = np.searchsorted(starts, at + 0.3) - 1
    since, length = at - starts[place], lengths[place]
    centres = np.concatenate([np.broadcast_to(_WAVES[:, :1], (4, count)), _T_SHARE * length[None]])
    widths = np.append(_WAVES[:, 1], _T_WIDTH)[:, None]
    waves = np.exp(-(((since - centres) / widths) ** 2))
    # From the end of the QRS complex until the T wave is over.
    level = 0.25 * (1 + np.tanh((since - 0.055) / 0.008)) * (1 + np.tanh((_T_SHARE * length + 0.02 - since) / 0.02))
    heights = _HEIGHTS * rng.uniform(0.85, 1.15, (len(_STORED), 1))
    signal = heights @ waves + (_ST_SHARE * ST_MV[image_class])[:, None] * level
    signal += WANDER_MV * np.sin(2 * np.pi * (0.25 * at + rng.random((len(_STORED), 1))))
    signal += NOISE_MV * rng.standard_normal(signal.shape)
    leads = dict(zip(_STORED, np.rint(signal * GAIN).astype(np.int16), strict=True))
    first, second = leads["I"].astype(np.int32), leads["II"].astype(np.int32)
    limb = {
        "III": second - first,
        "aVR": -(first + second) // 2,
        "aVL": (2 * first - second) // 2,
        "aVF": (2 * second - first) // 2,
    }
    return {name: leads[name] if name in leads else limb[name].astype(np.int16) for name in LEADS}


def write_record(
    folder: Path, name: str, leads: dict[str, Signal], rate: int, time: int, order: tuple[str, ...]
) -> Path:
    """A record of format 16; gives its header. The header names no patient, as WFDB has no place for one.

    wfdb.wrsamp writes the same in 39 ms, this in 1 (measured on records of 6 s).

    Args:
        time: of the recording, seconds since 1970.
        order: of the leads in the file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    samples = np.stack([leads[lead] for lead in order], axis=1)
    (folder / f"{name}.dat").write_bytes(samples.astype("<i2").tobytes())
    sums = samples.sum(axis=0, dtype=np.int64) % (1 << 16)
    begun = datetime.fromtimestamp(time, UTC)
    lines = [f"{name} {len(order)} {rate} {len(samples)} {begun:%H:%M:%S} {begun:%d/%m/%Y}"]
    lines += [
        f"{name}.dat 16 {GAIN}(0)/mV 16 0 {first} {total} 0 {lead}"
        for lead, first, total in zip(order, samples[0], sums, strict=True)
    ]
    header = folder / f"{name}.hea"
    header.write_text("\n".join(lines) + "\n", encoding="ascii")
    return header


def export_ecgs(root: Path, seed: int, planned: Mapping[str, Sequence[Planned]], done: Callable[[], None]) -> Exported:
    """Writes `ecg/`: a record for each study, faulty ones of the first subject, and the table that names them."""
    files = root / "ecg" / "files"
    files.mkdir(parents=True)
    rows: list[Row] = []
    signal: list[Row] = []
    other_order: list[Path] = []
    for patient, study in planned["ecg"]:
        rng = study.generator(seed, patient)
        rate, seconds = RATES[int(rng.random() < 0.5)]
        order = MIMIC_ORDER if rng.random() < 0.5 else LEADS
        leads = beats(rng, study.image.image_class, rate, seconds)
        header = write_record(*_place(files, patient, study.number), leads, rate, study.image.time, order)
        study.image.image_id = header.relative_to(root).as_posix()
        rows.append(_row(files, patient, header, study.image.time))
        signal.append(signal_row(patient, study.image))
        other_order += [header] if order is MIMIC_ORDER else []
        done()
    faults, faulty = _faulty(root, files, seed, *planned["ecg"][0]) if planned["ecg"] else ([], [])
    if other_order:
        what = "the header names aVF before aVL, as MIMIC-IV-ECG's do"
        faults.append(of_items(root, "ecg_lead_order", what, other_order, "ok"))
    write_table(root / "ecg" / "record_list.csv", pl.DataFrame(rows + faulty, RECORD_LIST, orient="row"))
    return Exported(signal, faults)


def _place(files: Path, patient: Record, number: int) -> tuple[Path, str]:
    return files / patient.patient_id, f"{patient.index:06d}{number:02d}"


def _row(files: Path, patient: Record, header: Path, time: int) -> Row:
    return patient.patient_id, header.with_suffix("").relative_to(files).as_posix(), clock(time)


def _faulty(root: Path, files: Path, seed: int, patient: Record, study: Study) -> tuple[list[Fault], list[Row]]:
    """Faulty records of one subject, in the nights before its first ECG, and their rows of the table."""
    rng = faults_generator(seed, "ecg")
    rate, seconds = RATES[0]
    headers: list[Path] = []
    rows: list[Row] = []

    def written(leads: dict[str, Signal], listed: bool = True) -> Path:
        number = 90 + len(headers)
        time = study.night_before(len(headers) + 1)
        header = write_record(*_place(files, patient, number), leads, rate, time, LEADS)
        headers.append(header)
        if listed:
            rows.append(_row(files, patient, header, time))
        return header

    def heart() -> dict[str, Signal]:
        return beats(rng, 0, rate, seconds)

    swapped, flat = heart(), heart()
    swapped["I"], swapped["II"] = swapped["II"], swapped["I"]
    flat["V3"] = np.zeros_like(flat["V3"])
    for leads in (swapped, flat, heart(), heart(), heart(), heart()):
        written(leads)
    cut_short(headers[2].with_suffix(".dat"), 0.6)
    changed = np.fromfile(headers[3].with_suffix(".dat"), "<i2")
    changed[100] += 40
    headers[3].with_suffix(".dat").write_bytes(changed.tobytes())
    text = headers[4].read_text(encoding="ascii")
    headers[4].write_text(text.replace(f" {GAIN}(0)/mV", " 0(0)/mV"), encoding="ascii")
    for ending in (".hea", ".dat"):
        headers[5].with_suffix(ending).unlink()
    written(heart(), listed=False)

    return [
        of_items(root, name, what, [header], verdict)
        for header, (name, what, verdict) in zip(headers, FAULTS, strict=True)
    ], rows
