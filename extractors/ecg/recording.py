"""What a file's reader gives: leads in millivolts at their own rate, and all that was learned on the way."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np

from extractors.ecg.leads import Signal, standard_name
from extractors.items import TimePrecision, VerdictError

# Millivolts in a unit, by its name in lower case. Both signs for micro occur.
MILLIVOLTS = {
    "mv": 1.0, "millivolt": 1.0, "millivolts": 1.0, "uv": 1e-3, "\u00b5v": 1e-3, "\u03bcv": 1e-3, "microvolt": 1e-3,
    "microvolts": 1e-3, "v": 1e3, "volt": 1e3, "volts": 1e3, "nv": 1e-6, "nanovolt": 1e-6, "nanovolts": 1e-6,
}  # fmt: skip
RATES = (50.0, 50_000.0)
MOST_SAMPLES = 1 << 26  # of all channels; a day of 12 leads at 62 Hz, or an hour at 1,500


class RefusedError(VerdictError):
    """A verdict with what was counted for it, which goes into the item's geometry."""

    def __init__(self, verdict: str, **facts: Any) -> None:
        super().__init__(verdict)
        self.facts = facts


@dataclass(frozen=True)
class Moment:
    """When a recording was made: a naive time, which field said so, and how precisely."""

    time: datetime
    source: str
    precision: TimePrecision
    utc_offset_minutes: int | None = None


@dataclass(frozen=True)
class Recording:
    """One recording.

    Attributes:
        leads: standard lead to its signal in millivolts; NaN where a sample is missing. All of one length.
        rate: samples a second.
        files: paths from the tree's root, the one that names the others first.
        form: `wfdb`, `dicom` or `muse`.
        subject, moment: None where the file does not say.
        names_subject: whether files of this form name their subject at all.
        assumed: what the file left out, so that its format's rule holds.
        other_channels: channels that are no standard lead.
    """

    leads: dict[str, Signal]
    rate: float
    files: tuple[str, ...]
    form: str
    subject: str | None = None
    moment: Moment | None = None
    names_subject: bool = True
    assumed: tuple[str, ...] = ()
    other_channels: int = 0
    facts: dict[str, Any] = field(default_factory=dict)


def in_millivolts(signal: Signal, unit: str) -> Signal:
    """A signal in millivolts, by its unit's name and never by its size.

    Raises:
        RefusedError: failed_wrong_units.
    """
    factor = MILLIVOLTS.get(unit.strip().lower())
    if factor is None:
        raise RefusedError("failed_wrong_units")
    return signal * factor


def named_leads(names: list[str], signals: list[Signal]) -> tuple[dict[str, Signal], int]:
    """Channels by standard lead, and how many are none.

    Raises:
        RefusedError: failed_duplicate_leads.
    """
    leads: dict[str, Signal] = {}
    others = 0
    for name, signal in zip(names, signals, strict=True):
        standard = standard_name(name)
        if standard is None:
            others += 1
        elif standard in leads:
            raise RefusedError("failed_duplicate_leads")
        else:
            leads[standard] = signal
    return leads, others


def plausible_rate(rate: float) -> float:
    """A rate, or RefusedError failed_no_rate."""
    if not (np.isfinite(rate) and RATES[0] <= rate <= RATES[1]):
        raise RefusedError("failed_no_rate")
    return rate
