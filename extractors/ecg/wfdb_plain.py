"""The plainest WFDB record, which is nearly every 12-lead ECG that is published: one segment, one file, 16 bits.

The library wfdb parses a header line by line through pandas, which takes most of a reading, each time that it is asked.
Headers of any other kind are the library's, and so is every fault. docs/decisions/wfdb-records.md says more.
"""

import re
from dataclasses import dataclass
from datetime import date, datetime, time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from extractors.ecg.recording import MOST_SAMPLES

NO_SAMPLE = -32768  # of format 16
_NUMBER = r"[-+]?\d+"
_RECORD = re.compile(
    r"(?P<name>[\w-]+) (?P<signals>\d{1,4}) (?P<rate>\d{1,6}(?:\.\d+)?) (?P<length>[1-9]\d{0,9})"
    r"(?: (?P<clock>\d\d:\d\d:\d\d)(?: (?P<day>\d\d/\d\d/\d{4}))?)?\s*"
)
_SIGNAL = re.compile(
    rf"(?P<file>[\w.-]+) 16(?:x1)?(?:\+(?P<offset>\d{{1,9}}))? "
    rf"(?P<gain>\d+(?:\.\d+)?)(?:\((?P<baseline>{_NUMBER})\))?(?:/(?P<unit>[!-~]+))? "
    rf"\d+ (?P<zero>{_NUMBER}) {_NUMBER} (?P<sum>{_NUMBER}) 0 (?P<lead>[!-~]+)\s*"
)


@dataclass(frozen=True)
class PlainRecord:
    """A record's samples as they are stored (signals, n), and what its header says of them.

    `physical` are its values in the header's units (signals, n) float64, NaN where there is no sample.
    """

    digital: npt.NDArray[np.int16]
    physical: npt.NDArray[np.float64]
    names: list[str]
    units: list[str]
    sums: list[int]
    rate: float
    day: date | None
    clock: time | None


def plain_record(path: Path, text: str) -> PlainRecord | None:
    """The record of a header at `path`; None where it is not as plain, or anything is wrong with it.

    Args:
        text: of the header.
    """
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    record = _RECORD.fullmatch(lines[0]) if lines else None
    if record is None or int(record["signals"]) != len(lines) - 1:
        return None
    signals = [found for line in lines[1:] if (found := _SIGNAL.fullmatch(line)) is not None]
    if len(signals) != len(lines) - 1 or not signals:
        return None
    places = {(found["file"], int(found["offset"] or 0)) for found in signals}
    gains = np.array([float(found["gain"]) for found in signals])
    (name, offset), length = next(iter(places)), int(record["length"])
    file, count = path.with_name(name), length * len(signals)
    if len(places) != 1 or not gains.all() or count > MOST_SAMPLES:
        return None
    try:
        clock = time.fromisoformat(record["clock"]) if record["clock"] else None
        day = datetime.strptime(record["day"], "%d/%m/%Y").date() if record["day"] else None
        if not file.is_file() or file.stat().st_size < offset + 2 * count:
            return None
    except (ValueError, OSError):
        return None
    stored = np.fromfile(file, dtype="<i2", count=count, offset=offset)
    if len(stored) != count:
        return None
    digital = np.ascontiguousarray(stored.reshape(length, len(signals)).T)
    baselines = [int(found["baseline"] or found["zero"]) for found in signals]
    physical = (digital - np.array(baselines, dtype=np.float64)[:, None]) / gains[:, None]
    physical[digital == NO_SAMPLE] = np.nan
    return PlainRecord(
        digital=digital,
        physical=physical,
        names=[found["lead"] for found in signals],
        units=[found["unit"] or "" for found in signals],
        sums=[int(found["sum"]) for found in signals],
        rate=float(record["rate"]),
        day=day,
        clock=clock,
    )
