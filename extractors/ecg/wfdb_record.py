"""WFDB records, of one segment or many, in every storage format that the library wfdb reads.

wfdb fills in what a header leaves out without a word and compares no checksum: both are looked at here. Signals are
read unsmoothed and digital, so that channels of several rates are seen, and become (value - baseline) / gain in the
header's unit.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

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
from extractors.ecg.wfdb_plain import PlainRecord, plain_record

ENDING = ".hea"
GAP = "~"  # a segment in which nothing was recorded
MOST_SEGMENTS = 10_000
HEADER_BYTES = 1 << 22
_RECORD = re.compile(r"^([\w.-]+)(?:/(\d+))?\s+(\d+)(?:\s+(\S+))?(?:\s+(\d+))?(?:\s|$)")
_GAIN = re.compile(r"^([-+]?[\d.]+(?:[eE][-+]?\d+)?)(?:\(-?\d+\))?(?:/(\S+))?$")
# Bytes of a sample, by format; in the others they depend on the signal.
_BYTES = {
    "8": 1.0, "16": 2.0, "24": 3.0, "32": 4.0, "61": 2.0, "80": 1.0, "160": 2.0, "212": 1.5, "310": 4 / 3,
    "311": 4 / 3,
}  # fmt: skip


@dataclass(frozen=True)
class Header:
    """What a header's text says, which a reader of values would fill in.

    Attributes:
        segments: how many, 0 for a record of one.
        names: of its signal files, or of its segments.
        units: of its signals in order, as they are written: the library drops signs that are no ASCII, so that µV
            becomes V. Empty where there is none.
        assumed: what it leaves out.
        text: all of it.
    """

    segments: int
    names: tuple[str, ...]
    units: tuple[str, ...]
    assumed: frozenset[str]
    text: str


def header_of(path: Path) -> Header:
    """A header's text.

    Raises:
        RefusedError: failed_unreadable, it is no header, or names files outside its folder.
    """
    if path.stat().st_size > HEADER_BYTES:
        raise RefusedError("failed_unreadable")
    content = path.read_bytes()
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    found = _RECORD.match(lines[0]) if lines else None
    if found is None:
        raise RefusedError("failed_unreadable")
    segments, signals = int(found[2] or 0), int(found[3])
    assumed = {"rate"} if found[4] is None or _is_zero(found[4]) else set()
    rows = [line.split() for line in lines[1 : 1 + (segments or signals)]]
    if len(rows) < (segments or signals) or segments > MOST_SEGMENTS:
        raise RefusedError("failed_unreadable")
    names = tuple(dict.fromkeys(row[0] for row in rows))
    if any("/" in name or "\\" in name or ".." in name or ":" in name for name in names):
        raise RefusedError("failed_unreadable")
    units: list[str] = []
    if not segments:
        for row in rows:
            gain = _GAIN.match(row[2]) if len(row) > 2 else None
            units.append("" if gain is None else gain[2] or "")
            if gain is None or _is_zero(gain[1]):
                assumed.add("gain")
            elif gain[2] is None:
                assumed.add("units")
    return Header(segments, names, tuple(units), frozenset(assumed), text)


def _is_zero(text: str) -> bool:
    try:
        return float(text.partition("/")[0]) == 0
    except ValueError:
        return False


def read_record(root: Path, relative: str, accept_assumed: tuple[str, ...], checksums: bool) -> Recording:
    """The record whose header is at `relative`.

    Raises:
        RefusedError: a verdict.
        Exception: anything, where a damaged file makes the library raise it.
    """
    path = root / relative
    header = header_of(path)
    folder = relative.rpartition("/")[0]
    beside = f"{folder}/" if folder else ""
    if not header.segments:
        recording = _single(path, header, accept_assumed, checksums)
        return replace(recording, files=(relative, *(beside + name for name in header.names)))
    return _several(path, header, accept_assumed, checksums, relative, beside)


def _library_header(path: Path) -> Any:
    import wfdb

    return wfdb.rdheader(str(path.with_suffix("")))


def _single(path: Path, header: Header, accept_assumed: tuple[str, ...], checksums: bool) -> Recording:
    import wfdb

    refused = header.assumed - set(accept_assumed)
    plain = None if refused else plain_record(path, header.text)
    if plain is not None:
        return _of_plain(plain, header, checksums)
    described = _library_header(path)
    if refused:
        raise RefusedError("failed_no_rate" if "rate" in refused else "failed_uncalibrated", not_stated=sorted(refused))
    _check_sizes(path, described)
    # wfdb 4.3 gives format 61, whose bytes stand the other way round, in physical units alone.
    turned = "61" in described.fmt
    record = wfdb.rdrecord(str(path.with_suffix("")), physical=turned, smooth_frames=False)
    physical = record.e_p_signal if turned else record.dac(expanded=True)
    stored = record.adc(expanded=True) if turned else record.e_d_signal
    digital = [np.asarray(signal, np.int64) for signal in stored]
    facts = _checked_sums(digital, record.checksum) if checksums else {}
    places = [place for place, name in enumerate(record.sig_name) if standard_name(name) is not None]
    a_frame = {record.samps_per_frame[place] for place in places}
    if len(a_frame) > 1:
        raise RefusedError("failed_mixed_rates")
    signals: list[Signal] = [
        in_millivolts(np.asarray(physical[place], np.float64), header.units[place] or "mV") for place in places
    ]
    rate = float(record.fs) * (a_frame.pop() if a_frame else 1)
    moment = _moment(described.base_date, described.base_time)
    return _recording(header, record.sig_name, places, signals, rate, moment, sorted(set(map(str, record.fmt))), facts)


def _of_plain(record: PlainRecord, header: Header, checksums: bool) -> Recording:
    facts = _checked_sums(list(record.digital), list(record.sums)) if checksums else {}
    places = [place for place, name in enumerate(record.names) if standard_name(name) is not None]
    signals: list[Signal] = [in_millivolts(record.physical[place], record.units[place] or "mV") for place in places]
    moment = _moment(record.day, record.clock)
    return _recording(header, record.names, places, signals, record.rate, moment, ["16"], facts)


def _recording(
    header: Header,
    names: Sequence[str],
    places: Sequence[int],
    signals: list[Signal],
    rate: float,
    moment: Moment | None,
    storage: list[str],
    facts: dict[str, Any],
) -> Recording:
    """A record of one segment. `places`: which of its channels are leads, with a signal each."""
    leads, _ = named_leads([names[place] for place in places], signals)
    return Recording(
        leads=leads,
        rate=plausible_rate(rate),
        files=(),
        form="wfdb",
        moment=moment,
        names_subject=False,
        assumed=tuple(sorted(header.assumed)),
        other_channels=len(names) - len(places),
        facts={"storage": storage, **facts},
    )


def _several(
    path: Path, header: Header, accept_assumed: tuple[str, ...], checksums: bool, relative: str, beside: str
) -> Recording:
    """A record of many segments: each read alone, laid one behind the other; what a segment lacks is missing."""
    described = _library_header(path)
    if "rate" in header.assumed and "rate" not in accept_assumed:
        raise RefusedError("failed_no_rate", not_stated=["rate"])
    parts: list[tuple[int, Recording | None]] = []
    files = [relative]
    for name, length in zip(described.seg_name, described.seg_len, strict=True):
        segment = path.with_name(name + ENDING)
        if name == GAP:
            parts.append((int(length), None))
            continue
        files.append(beside + name + ENDING)
        if not length:  # the layout of a record whose segments differ: it has no samples
            continue
        inner = header_of(segment)
        if inner.segments:
            raise RefusedError("failed_unreadable")
        files += [beside + signal for signal in inner.names]
        parts.append((int(length), _single(segment, inner, accept_assumed, checksums)))
    read = [segment_read for _, segment_read in parts if segment_read is not None]
    if not read:
        raise RefusedError("failed_missing_leads")
    rate = read[0].rate
    if any(part.rate != rate for part in read):
        raise RefusedError("failed_mixed_rates")
    scale = round(rate / float(described.fs)) or 1
    total = sum(length for length, _ in parts) * scale
    if total * max(1, len(read[0].leads)) > MOST_SAMPLES:
        raise RefusedError("failed_implausible_size")
    leads: dict[str, Signal] = {}
    at = 0
    for length, part in parts:
        for name, signal in ({} if part is None else part.leads).items():
            if len(signal) < length * scale:
                raise RefusedError("failed_truncated", samples_expected=length * scale, samples_found=len(signal))
            leads.setdefault(name, np.full(total, np.nan))[at : at + length * scale] = signal[: length * scale]
        at += length * scale
    return Recording(
        leads=leads,
        rate=rate,
        files=tuple(dict.fromkeys(files)),
        form="wfdb",
        moment=_moment(described.base_date, described.base_time),
        names_subject=False,
        assumed=tuple(sorted(set().union(*(part.assumed for part in read)))),
        other_channels=max(part.other_channels for part in read),
        facts={
            "segments": len(parts),
            "storage": sorted({form for part in read for form in part.facts["storage"]}),
        },
    )


def _check_sizes(path: Path, described: Any) -> None:
    """Compares each signal file's bytes with the header's number of samples, which the library may pad or reshape.

    Raises:
        RefusedError: failed_missing_file; failed_truncated, with both numbers; failed_implausible_size.
    """
    length, frames = described.sig_len, described.samps_per_frame
    for name in dict.fromkeys(described.file_name):
        file = path.with_name(name)
        if not file.is_file():
            raise RefusedError("failed_missing_file")
        places = [place for place, other in enumerate(described.file_name) if other == name]
        a_sample = _BYTES.get(str(described.fmt[places[0]]))
        if length is None or a_sample is None:
            continue
        a_frame = sum(frames[place] for place in places)
        size = file.stat().st_size - int(described.byte_offset[places[0]] or 0)
        if size < math.floor(length * a_frame * a_sample):
            found = max(0, int(size / (a_frame * a_sample)))
            raise RefusedError("failed_truncated", samples_expected=int(length), samples_found=found)
    if length is not None and length * sum(frames) > MOST_SAMPLES:
        raise RefusedError("failed_implausible_size")


def _checked_sums(digital: list[Any], stated: list[int | None] | None) -> dict[str, Any]:
    """Compares each channel's sum with the header's, modulo 2^16.

    Raises:
        RefusedError: failed_checksum, with how many differ.
    """
    known = [(signal, total) for signal, total in zip(digital, stated or [], strict=False) if total is not None]
    wrong = sum((int(signal.sum(dtype=np.int64)) - total) % (1 << 16) != 0 for signal, total in known)
    if wrong:
        raise RefusedError("failed_checksum", checksums_wrong=wrong)
    return {"checksums": len(known)}


def _moment(day: date | None, clock: time | None) -> Moment | None:
    """The header's start of the recording; without a date there is none."""
    if day is None:
        return None
    if clock is None:
        return Moment(datetime.combine(day, time()), "header", "day")
    return Moment(datetime.combine(day, clock), "header", "us" if clock.microsecond else "s")
