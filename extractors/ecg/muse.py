"""GE MUSE XML: eight stored leads of the rhythm, the other four derived; microvolts per bit stated for each lead."""

import base64
import re
from datetime import datetime
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from extractors.ecg.leads import Signal, standard_name
from extractors.ecg.recording import (
    MOST_SAMPLES,
    Moment,
    Recording,
    RefusedError,
    in_millivolts,
    named_leads,
    plausible_rate,
)

ROOT = b"<RestingECG"
MOST_BYTES = 1 << 28
# Free texts of reports come unescaped: signs that begin neither a reference nor a tag.
_AMPERSAND = re.compile(r"&(?!(?:#\d+|#x[0-9A-Fa-f]+|amp|lt|gt|quot|apos);)")
_BRACKET = re.compile(r"<(?![A-Za-z_/!?])")
_ENCODING = re.compile(rb"<\?xml[^>]*encoding=[\"']([\w.-]+)[\"']")
_MASKED = re.compile(r"[xX*#?]+")


def is_muse(head: bytes) -> bool:
    """Whether a file begins as MUSE's XML does."""
    return ROOT in head


def read_muse(root: Path, relative: str) -> Recording:
    """The recording of a MUSE file.

    Raises:
        RefusedError: a verdict; failed_unreadable where it cannot be parsed although bare signs were escaped.
    """
    path = root / relative
    if path.stat().st_size > MOST_BYTES:
        raise RefusedError("failed_implausible_size")
    document, escaped = _parsed(path.read_bytes())
    rhythm = _rhythm(document)
    rate = plausible_rate(_number(rhythm, "SampleBase") * 10.0 ** (_number(rhythm, "SampleExponent", 0.0)))
    names, signals, channels = [], [], 0
    for lead in rhythm.iter("LeadData"):
        channels += 1
        name = _text(lead, "LeadID")
        if standard_name(name) is not None:
            names.append(name)
            signals.append(_signal(lead))
    leads, _ = named_leads(names, signals)
    if len({len(signal) for signal in leads.values()}) > 1:
        raise RefusedError("failed_mixed_rates")
    subject = _text(document, "PatientDemographics/PatientID")
    return Recording(
        leads=leads,
        rate=rate,
        files=(relative,),
        form="muse",
        subject=None if not subject or _MASKED.fullmatch(subject) else subject,
        moment=_moment(document),
        other_channels=channels - len(names),
        facts={"escaped": escaped} if escaped else {},
    )


def _parsed(content: bytes) -> tuple[ElementTree.Element, int]:
    """The document, and how many bare signs had to be escaped. Documents that define entities are not expanded."""
    if b"<!ENTITY" in content:
        raise RefusedError("failed_unreadable")
    try:
        return ElementTree.fromstring(content), 0
    except ElementTree.ParseError:
        pass
    stated = _ENCODING.search(content)
    text = content.decode(stated[1].decode() if stated else "utf-8", errors="replace")
    text = re.sub(r"^\s*<\?xml[^>]*\?>", "", text.removeprefix("\ufeff"))
    text, ampersands = _AMPERSAND.subn("&amp;", text)
    text, brackets = _BRACKET.subn("&lt;", text)
    try:
        return ElementTree.fromstring(text), ampersands + brackets
    except ElementTree.ParseError:
        raise RefusedError("failed_unreadable") from None


def _rhythm(document: ElementTree.Element) -> ElementTree.Element:
    """The waveform that is named rhythm; median beats often stand before it."""
    for waveform in document.iter("Waveform"):
        if _text(waveform, "WaveformType").upper() == "RHYTHM":
            return waveform
    raise RefusedError("failed_no_rhythm")


def _signal(lead: ElementTree.Element) -> Signal:
    unit, scale = _text(lead, "LeadAmplitudeUnits"), _number(lead, "LeadAmplitudeUnitsPerBit", 0.0)
    if not unit or not scale:
        raise RefusedError("failed_uncalibrated")
    data = base64.b64decode("".join(_text(lead, "WaveFormData").split()), validate=True)
    stated = int(_number(lead, "LeadSampleCountTotal", len(data) // 2))
    if len(data) < 2 * stated:
        raise RefusedError("failed_truncated", samples_expected=stated, samples_found=len(data) // 2)
    if stated > MOST_SAMPLES // 12:
        raise RefusedError("failed_implausible_size")
    raw = np.frombuffer(data, "<i2", stated).astype(np.float64)
    raw[raw == -32768] = np.nan  # no sample, as in every format of 16 bits
    return in_millivolts(raw * scale, unit)


def _moment(document: ElementTree.Element) -> Moment | None:
    day, clock = (_text(document, f"TestDemographics/Acquisition{name}") for name in ("Date", "Time"))
    for form, precision in (("%m-%d-%Y %H:%M:%S", "s"), ("%m-%d-%Y %H:%M", "min")):
        try:
            return Moment(datetime.strptime(f"{day} {clock}", form), "AcquisitionDate+AcquisitionTime", precision)  # type: ignore[arg-type]
        except ValueError:
            continue
    try:
        return Moment(datetime.strptime(day, "%m-%d-%Y"), "AcquisitionDate", "day")
    except ValueError:
        return None


def _text(node: ElementTree.Element, path: str) -> str:
    return (node.findtext(path) or "").strip()


def _number(node: ElementTree.Element, path: str, default: float | None = None) -> float:
    text = _text(node, path)
    if not text and default is not None:
        return default
    try:
        return float(text)
    except ValueError:
        raise RefusedError("failed_no_rate" if path == "SampleBase" else "failed_unreadable") from None
