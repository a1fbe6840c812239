"""DICOM waveforms: 12-lead, general and ambulatory ECG objects.

Of a file's groups the rhythm is read, never the median beat: by its label, then the longest. A sample is stored value x
sensitivity x correction factor + baseline, all in the channel's unit (PS3.3 C.10.9.1.4).
"""

from pathlib import Path
from typing import Any

import numpy as np

from extractors.dicom.elements import quiet
from extractors.dicom.time import DATE_TIMES, PAIRS, earliest, moments_of
from extractors.ecg.leads import standard_name
from extractors.ecg.recording import (
    MOST_SAMPLES,
    Moment,
    Recording,
    RefusedError,
    in_millivolts,
    named_leads,
    plausible_rate,
)

ECG_CLASSES = frozenset(
    f"1.2.840.10008.5.1.4.1.1.9.1.{number}" for number in (1, 2, 3, 4)
)  # 12-lead, general, ambulatory, general of 32 bits
_WAVEFORMS = "1.2.840.10008.5.1.4.1.1.9."
MEDIAN = ("MEDIAN", "AVERAGE", "TEMPLATE", "REPRESENTATIVE")
# The last part of a code of SCP-ECG (5.6.3-9-1) and of MDC (2:1), which number leads alike.
_CODES = {
    "1": "I", "2": "II", "3": "V1", "4": "V2", "5": "V3", "6": "V4", "7": "V5", "8": "V6", "61": "III", "62": "aVR",
    "63": "aVL", "64": "aVF",
}  # fmt: skip
_TIMES = [*DATE_TIMES, *(tag for pair in PAIRS for tag in pair), "TimezoneOffsetFromUTC"]


def may_be_waveform(path: Path, head: bytes) -> bool:
    """Whether a file that begins with `head` is a DICOM waveform, or DICOM that does not say at once what it is."""
    import pydicom

    if head[128:132] != b"DICM":
        return False
    try:
        with quiet():
            stated = str(pydicom.filereader.read_file_meta_info(path).get("MediaStorageSOPClassUID", ""))
    except Exception:  # whatever a damaged file makes the parser raise: it is looked at whole
        return True
    return not stated or stated.startswith(_WAVEFORMS)


def read_waveform(root: Path, relative: str, timezone: str | None) -> Recording:
    """The recording of a DICOM file.

    Raises:
        RefusedError: refused_not_ecg where it is another object; a verdict.
        Exception: anything, where a damaged file makes the library raise it.
    """
    import pydicom

    with quiet():
        data = pydicom.dcmread(root / relative, stop_before_pixels=True)
        if str(data.get("SOPClassUID", "")) not in ECG_CLASSES:
            raise RefusedError("refused_not_ecg")
        groups = list(data.get("WaveformSequence") or [])
        place = _rhythm(groups)
        group = groups[place]
        samples, channels = int(group.NumberOfWaveformSamples), int(group.NumberOfWaveformChannels)
        _check_size(group, samples, channels)
        physical = np.asarray(data.waveform_array(place), np.float64)
        physical[_padded(data, place)] = np.nan
        definitions = list(group.ChannelDefinitionSequence)
        names = [_name(channel) for channel in definitions]
        wanted = [number for number, name in enumerate(names) if standard_name(name) is not None]
        signals = [in_millivolts(physical[:, number], _unit(definitions[number])) for number in wanted]
        leads, _ = named_leads([names[number] for number in wanted], signals)
        values = {tag: str(data.get(tag) or "") for tag in _TIMES}
        return Recording(
            leads=leads,
            rate=plausible_rate(float(group.SamplingFrequency)),
            files=(relative,),
            form="dicom",
            subject=str(data.get("PatientID") or "") or None,
            moment=_moment(values, timezone),
            other_channels=channels - len(wanted),
            facts={"groups": len(groups), "bits": int(group.WaveformBitsAllocated)},
        )


def _rhythm(groups: list[Any]) -> int:
    """The place of the group to read: no median beat, called rhythm, the longest."""
    if not groups:
        raise RefusedError("failed_unreadable")
    labels = [str(group.get("MultiplexGroupLabel") or "").upper() for group in groups]
    kept = [place for place, label in enumerate(labels) if not any(word in label for word in MEDIAN)]
    if not kept:
        raise RefusedError("failed_no_rhythm")
    lengths = [
        float(group.get("NumberOfWaveformSamples") or 0) / float(group.get("SamplingFrequency") or 1)
        for group in groups
    ]
    return max(kept, key=lambda place: ("RHYTHM" in labels[place], lengths[place], -place))


def _check_size(group: Any, samples: int, channels: int) -> None:
    """Raises RefusedError: failed_truncated, with both numbers; failed_implausible_size."""
    if samples * channels > MOST_SAMPLES:
        raise RefusedError("failed_implausible_size")
    width = int(group.WaveformBitsAllocated) // 8
    if len(group.WaveformData) < samples * channels * width:
        found = len(group.WaveformData) // max(1, channels * width)
        raise RefusedError("failed_truncated", samples_expected=samples, samples_found=found)


def _padded(data: Any, place: int) -> Any:
    """(samples, channels) whether a stored value stands for no sample."""
    from pydicom.waveforms.numpy_handler import multiplex_array

    stored = multiplex_array(data, place, as_raw=True)
    padding = data.WaveformSequence[place].get("WaveformPaddingValue")
    if not padding:
        return np.zeros(stored.shape, bool)
    return stored == np.frombuffer(bytes(padding)[: stored.dtype.itemsize], stored.dtype.newbyteorder("<"))[0]


def _name(channel: Any) -> str:
    """A channel's lead: by its code, else by the code's meaning, else by its label."""
    source = (channel.get("ChannelSourceSequence") or [{}])[0]
    code, scheme = str(source.get("CodeValue") or ""), str(source.get("CodingSchemeDesignator") or "").upper()
    if scheme in ("SCPECG", "MDC") and code.startswith(("5.6.3-9-", "2:")):
        number = code.rpartition("-")[2] if "-" in code else code.partition(":")[2]
        return _CODES.get(number, code)
    meaning, label = str(source.get("CodeMeaning") or ""), str(channel.get("ChannelLabel") or "")
    return meaning if standard_name(meaning) is not None else label


def _unit(channel: Any) -> str:
    """A channel's unit; RefusedError failed_uncalibrated where it says no sensitivity, or none that is one."""
    sensitivity = channel.get("ChannelSensitivity")
    units = (channel.get("ChannelSensitivityUnitsSequence") or [{}])[0]
    code = str(units.get("CodeValue") or "")
    if sensitivity is None or float(sensitivity) == 0 or not code:
        raise RefusedError("failed_uncalibrated")
    return code


def _moment(values: dict[str, str], timezone: str | None) -> Moment | None:
    found = earliest([moments_of(values, timezone)])
    return None if found is None else Moment(found.time, found.source, found.precision, found.utc_offset_minutes)
