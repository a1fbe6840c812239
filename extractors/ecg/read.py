"""Reads recordings of every kind, and their windows as an encoder takes them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from extractors.ecg.dicom_waveform import read_waveform
from extractors.ecg.files import Kind, kind_of
from extractors.ecg.judge import Judged, cleaned, judge, resampled
from extractors.ecg.muse import read_muse
from extractors.ecg.recording import Recording, RefusedError
from extractors.ecg.settings import EcgSettings
from extractors.ecg.wfdb_record import read_record
from extractors.items import UnitBatch, UnitRequest, VerdictError

# Settings that decide what is read of a recording; they are kept in its geometry, where its reader finds them.
READING = (
    "rate", "seconds", "least_seconds", "most_windows", "leads", "accept_assumed", "checksums", "most_missing",
    "most_flat", "most_clipped", "cleaning",
)  # fmt: skip


def read_recording(root: Path, path: str, kind: Kind, settings: EcgSettings) -> Recording:
    """The recording of a file.

    Raises:
        RefusedError: a verdict; failed_unreadable for whatever a damaged file made a library raise.
        ImportError, MemoryError: no fault of the file's.
    """
    try:
        if kind == "wfdb":
            return read_record(root, path, settings.accept_assumed, settings.checksums)
        if kind == "dicom":
            return read_waveform(root, path, settings.timezone)
        return read_muse(root, path)
    except (VerdictError, ImportError, MemoryError):
        raise
    except Exception as error:  # parsers raise almost anything on damaged bytes
        raise RefusedError("failed_unreadable") from error


def windows_of(samples: int, rate: float, settings: EcgSettings) -> tuple[int, int]:
    """How many windows of a recording are read, and how many whole ones are left out behind them."""
    length = round(samples * settings.rate / rate)
    whole = max(1, length // settings.samples)
    return min(whole, settings.most_windows), max(0, whole - settings.most_windows)


def window(signal: npt.NDArray[np.float32], number: int, settings: EcgSettings) -> npt.NDArray[np.float32]:
    """Window `number` of a signal (12, n); the only one of a short signal is shorter."""
    start = number * settings.samples
    return signal[:, start : start + settings.samples]


def prepared(judged: Judged, settings: EcgSettings) -> npt.NDArray[np.float32]:
    """A recording's leads (12, n) in millivolts at the encoder's rate."""
    signal = resampled(judged.leads, judged.rate, settings.rate)
    return cleaned(signal, settings.rate) if settings.cleaning == "neurokit" else signal


def read_ecg_units(request: UnitRequest, batch_size: int) -> Iterator[UnitBatch]:
    """Windows [start, stop) of a recording in batches (n, 12, samples) of float32 millivolts, in the order of LEADS.

    `places` holds the sample that each window begins at.

    Raises:
        VerdictError: failed_changed, where the recording is not the one that was indexed.
    """
    settings = _settings(request.root, request.geometry)
    path = request.paths[0]
    try:
        kind = kind_of(request.root, path)
        if kind is None:
            raise VerdictError("failed_changed")
        recording = read_recording(request.root, path, kind, settings)
        judged = judge(recording, settings, known="stamp" in request.geometry)
    except VerdictError:
        raise VerdictError("failed_changed") from None
    if request.geometry.get("stamp", judged.content) != judged.content:
        raise VerdictError("failed_changed")
    signal = prepared(judged, settings)
    count, _ = windows_of(judged.leads.shape[1], judged.rate, settings)
    stop = count if request.stop is None else min(request.stop, count)
    for first in range(request.start, stop, batch_size):
        numbers = np.arange(first, min(first + batch_size, stop), dtype=np.int64)
        units = np.stack([window(signal, int(number), settings) for number in numbers])
        yield UnitBatch(units, numbers, (numbers * settings.samples).astype(np.int32)[:, None])


def _settings(root: Path, geometry: Mapping[str, Any]) -> EcgSettings:
    return EcgSettings.model_validate({"path": root, **geometry.get("reading", {})})
