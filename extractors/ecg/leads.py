"""The twelve standard leads: their names as files spell them, and what follows from two of the limb leads.

Einthoven: II = I + III. Goldberger: aVR = -(I + II) / 2, aVL = I - II / 2, aVF = II - I / 2.
"""

import re
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Signal = npt.NDArray[np.float64]

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
_BY_NAME = {name.upper(): name for name in LEADS}
_LEAD = re.compile(r"^(?:ECG[ _-]*)?(?:LEAD[ _-]*)?([A-Z]+[1-6]?)(?: *\(.*\))?$")
# Stored leads may differ from what follows from others by rounding and by filters that were applied lead by lead.
LARGEST_MISMATCH_MV, LARGEST_MISMATCH_SHARE = 0.05, 0.25


def standard_name(name: str) -> str | None:
    """The standard lead of a name in whatever case, or None: `V` and `MCL1` have no fixed place.

    >>> standard_name("AVF"), standard_name("Lead I (Einthoven)"), standard_name("v"), standard_name("MLII")
    ('aVF', 'I', None, None)
    """
    found = _LEAD.match(name.strip().upper())
    return None if found is None else _BY_NAME.get(found[1])


def derived_leads(leads: Mapping[str, Signal]) -> dict[str, Signal]:
    """The limb leads that are not there and follow from two of I, II and III that are."""
    known: dict[str, Signal] = {name: leads[name] for name in ("I", "II", "III") if name in leads}
    if len(known) < 2:
        return {}
    if "I" not in known:
        known["I"] = known["II"] - known["III"]
    if "II" not in known:
        known["II"] = known["I"] + known["III"]
    return {name: signal for name, signal in _from_two(known["I"], known["II"]).items() if name not in leads}


def _from_two(first: Signal, second: Signal) -> dict[str, Signal]:
    return {
        "I": first,
        "II": second,
        "III": second - first,
        "aVR": -(first + second) / 2,
        "aVL": first - second / 2,
        "aVF": second - first / 2,
    }


def contradicting_leads(leads: Mapping[str, Signal]) -> list[str]:
    """Stored limb leads that are not what follows from I and II: names or electrodes were exchanged."""
    if "I" not in leads or "II" not in leads:
        return []
    wrong = []
    for name, expected in _from_two(leads["I"], leads["II"]).items():
        if name in leads:
            mismatch = _rms(leads[name] - expected)
            if mismatch > max(LARGEST_MISMATCH_MV, LARGEST_MISMATCH_SHARE * _rms(expected)):
                wrong.append(name)
    return wrong


def _rms(signal: Signal) -> float:
    """Of a signal's swing round its mean, without samples that are missing."""
    known = signal[np.isfinite(signal)]
    return float(known.std()) if len(known) else 0.0
