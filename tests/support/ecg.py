"""Made-up ECGs, and files of every kind that hold them."""

import base64
from datetime import date, time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pydicom
import wfdb
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from extractors.ecg.read import read_ecg_units
from extractors.ecg.settings import ECG
from extractors.items import FoundItem, UnitBatch, UnitRequest

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
TWELVE_LEAD = "1.2.840.10008.5.1.4.1.1.9.1.1"
_SCP = {
    "I": 1, "II": 2, "V1": 3, "V2": 4, "V3": 5, "V4": 6, "V5": 7, "V6": 8, "III": 61, "aVR": 62, "aVL": 63, "aVF": 64,
}  # fmt: skip


def heart(seconds: float = 10.0, rate: int = 500, seed: int = 0) -> dict[str, np.ndarray]:
    """Twelve leads in millivolts, in whole microvolts, limb leads in agreement; no sample repeats for long."""
    random = np.random.default_rng(seed)
    at = np.arange(round(seconds * rate)) / rate
    beat = 0.8 + 0.3 * random.random()
    phase = (at % beat) / beat

    def wave(height: float) -> np.ndarray:
        spike = height * np.exp(-(((phase - 0.3) / 0.02) ** 2)) + 0.2 * height * np.exp(-(((phase - 0.6) / 0.06) ** 2))
        return (
            np.round((spike + 0.05 * np.sin(2 * np.pi * 0.3 * at) + 0.01 * random.standard_normal(len(at))) * 500) / 500
        )

    first, second = wave(0.9), wave(1.3)
    limb = {
        "I": first, "II": second, "III": second - first, "aVR": -(first + second) / 2, "aVL": first - second / 2,
        "aVF": second - first / 2,
    }  # fmt: skip
    return limb | {f"V{number}": wave(0.3 * number) for number in range(1, 7)}


def write_record(
    folder: Path,
    name: str = "a",
    leads: dict[str, np.ndarray] | None = None,
    *,
    rate: float = 500,
    fmt: str = "16",
    gain: float = 1000.0,
    units: str = "mV",
    day: date | None = None,
    clock: time | None = None,
    **options: Any,
) -> Path:
    """A WFDB record as the library writes it; gives its header."""
    folder.mkdir(parents=True, exist_ok=True)
    leads = heart() if leads is None else leads
    count = len(leads)
    options = {"adc_gain": [gain] * count, "baseline": [0] * count, **options}
    digital = np.stack(list(leads.values()), axis=1)
    missing = np.isnan(digital)
    digital = np.round(np.nan_to_num(digital) * gain).astype(np.int64) + np.array(options["baseline"])
    digital[missing] = -(1 << 15)
    wfdb.wrsamp(
        name, fs=rate, units=[units] * count, sig_name=list(leads), d_signal=digital, fmt=[fmt] * count,
        base_date=day, base_time=clock, write_dir=str(folder), **options,
    )  # fmt: skip
    return folder / f"{name}.hea"


def edit(path: Path, *pairs: tuple[str, str]) -> None:
    """Replaces words of a text file; each must be there."""
    text = path.read_text(encoding="utf-8")
    for old, new in pairs:
        assert old in text, old
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")


def channel(name: str, **values: Any) -> Dataset:
    """A DICOM channel of microvolts, by SCP-ECG's code where the lead has one."""
    source, unit, made = Dataset(), Dataset(), Dataset()
    if name in _SCP:
        source.CodeValue, source.CodingSchemeDesignator = f"5.6.3-9-{_SCP[name]}", "SCPECG"
    else:
        source.CodeValue, source.CodingSchemeDesignator = "0", "LOCAL"
    source.CodeMeaning = f"Lead {name}"
    unit.CodeValue, unit.CodingSchemeDesignator, unit.CodeMeaning = values.pop("unit", "uV"), "UCUM", "microvolt"
    made.ChannelSourceSequence, made.ChannelSensitivityUnitsSequence = Sequence([source]), Sequence([unit])
    made.ChannelSensitivity, made.ChannelSensitivityCorrectionFactor, made.ChannelBaseline = "1", "1", "0"
    made.WaveformBitsStored = 16
    for key, value in values.items():
        setattr(made, key, value)
    return made


def group(leads: dict[str, np.ndarray], label: str = "RHYTHM", rate: float = 500, **values: Any) -> Dataset:
    """A multiplex group; `leads` are stored values."""
    made = Dataset()
    made.MultiplexGroupLabel = label
    made.WaveformOriginality = "ORIGINAL"
    made.NumberOfWaveformChannels = len(leads)
    made.NumberOfWaveformSamples = len(next(iter(leads.values())))
    made.SamplingFrequency = str(rate)
    made.ChannelDefinitionSequence = Sequence([channel(name, **values) for name in leads])
    made.WaveformBitsAllocated, made.WaveformSampleInterpretation = 16, "SS"
    made.WaveformData = np.stack(list(leads.values()), axis=1).astype("<i2").tobytes()
    return made


def write_dicom(path: Path, groups: list[Dataset], *, sop_class: str = TWELVE_LEAD, **tags: Any) -> Path:
    """A DICOM waveform object."""
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = sop_class, ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = generate_uid()
    made = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    made.SOPClassUID, made.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    made.PatientID, made.AcquisitionDateTime, made.ContentDate = "P1", "20200304050607", "20210101"
    for key, value in tags.items():
        setattr(made, key, value)
    made.WaveformSequence = Sequence(groups)
    pydicom.dcmwrite(path, made, enforce_file_format=True)
    return path


def microvolts(leads: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Leads as stored values of a microvolt each."""
    return {name: np.round(signal * 1000) for name, signal in leads.items()}


def muse_waveform(leads: dict[str, np.ndarray], kind: str = "Rhythm", rate: int = 500, scale: float = 4.88) -> str:
    """A Waveform node; leads in millivolts, stored in steps of `scale` microvolts."""
    parts = [f"<Waveform><WaveformType>{kind}</WaveformType><SampleBase>{rate}</SampleBase>"]
    parts.append("<SampleExponent>0</SampleExponent>")
    for name, signal in leads.items():
        stored = np.round(signal * 1000 / scale).astype("<i2")
        parts.append(
            f"<LeadData><LeadSampleCountTotal>{len(stored)}</LeadSampleCountTotal>"
            f"<LeadAmplitudeUnitsPerBit>{scale}</LeadAmplitudeUnitsPerBit>"
            f"<LeadAmplitudeUnits>MICROVOLTS</LeadAmplitudeUnits><LeadID>{name}</LeadID>"
            f"<WaveFormData>\n{base64.encodebytes(stored.tobytes()).decode()}</WaveFormData></LeadData>"
        )
    return "".join(parts) + "</Waveform>"


def write_muse(path: Path, waveforms: list[str], *, patient: str = "P1", comment: str = "") -> Path:
    """A MUSE file; four of twelve leads are left to be derived where the waveforms lack them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        '<?xml version="1.0" encoding="ISO-8859-1"?>\n<!DOCTYPE RestingECG SYSTEM "restecg.dtd">\n<RestingECG>'
        f"<PatientDemographics><PatientID>{patient}</PatientID><PatientAge>11</PatientAge><AgeUnits>MONTHS</AgeUnits>"
        "</PatientDemographics><TestDemographics><AcquisitionTime>05:06:07</AcquisitionTime>"
        "<AcquisitionDate>03-04-2020</AcquisitionDate></TestDemographics>"
        f"<Diagnosis><Statement>{comment}</Statement></Diagnosis>{''.join(waveforms)}</RestingECG>\n",
        encoding="latin-1",
    )
    return path


def eight(leads: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The leads that MUSE stores."""
    return {name: leads[name] for name in ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6")}


def write_crosswalk(path: Path, subjects: dict[str, str], time: str = "2020-03-04 05:06:07") -> Path:
    """A table of records, each with its subject."""
    rows = ["match,subject_id,time", *(f"{record},{subject},{time}" for record, subject in subjects.items())]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def indexed(folder: Path, links: pl.DataFrame | None = None, **settings: Any) -> list[FoundItem]:
    """The ECG items of a folder, by settings of the modality."""
    made = ECG.settings.model_validate({"path": folder, **settings})
    return ECG.index_items(made, links, workers=1)


def only(folder: Path, **settings: Any) -> FoundItem:
    """The one item of a folder."""
    (item,) = indexed(folder, **settings)
    return item


def units(folder: Path, item: FoundItem, size: int = 4) -> list[UnitBatch]:
    """What an item's reader gives."""
    return list(read_ecg_units(UnitRequest(folder, item.paths, item.geometry), size))
