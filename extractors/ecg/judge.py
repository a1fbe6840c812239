"""Whether a recording is good enough for an encoder, and its twelve leads as the encoder takes them."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from extractors.ecg.leads import LEADS, Signal, contradicting_leads, derived_leads
from extractors.ecg.recording import Recording, RefusedError
from extractors.ecg.settings import EcgSettings

# The swing of the middle lead, from its lowest to its highest thousandth, in millivolts: a heart makes 0.3 to 5. What
# is a thousandfold off lies outside.
PLAUSIBLE_SWING_MV = (0.02, 50.0)
FLAT_SECONDS = 1.0
CLIPPED_RUN = 3  # samples: an extreme is reached once or twice by chance
LARGEST_FACTOR = 2_000  # of the fraction that resampling goes up and down by


@dataclass(frozen=True)
class Judged:
    """A usable recording.

    Attributes:
        leads: (12, n) millivolts at the recording's own rate, finite; leads that are missing and not asked for are 0.
        content: hex; the same for the same signal, whatever stands beside it.
        facts: JSON for the item's geometry.
    """

    leads: Signal
    rate: float
    content: str
    facts: dict[str, Any]


def judge(recording: Recording, settings: EcgSettings, *, known: bool = False) -> Judged:
    """A recording's twelve leads.

    Args:
        known: its content will be compared with that of one that was judged: what a lead's samples are like, and
            whether leads contradict one another, is not asked again.

    Raises:
        RefusedError: a verdict, with what was counted.
    """
    leads = {name: signal for name, signal in recording.leads.items() if np.isfinite(signal).any()}
    facts = described(recording)
    empty = len(recording.leads) - len(leads)
    if empty:
        facts["empty_leads"] = empty
    derived = derived_leads(leads)
    everything = leads | derived
    missing = [name for name in LEADS if name not in everything]
    if derived:
        facts["leads_derived"] = [name for name in LEADS if name in derived]
    if missing:
        facts["leads_missing"] = missing
    if any(name in settings.leads for name in missing):
        raise RefusedError("failed_missing_leads", **facts)
    samples = len(next(iter(leads.values())))
    if samples < settings.least_seconds * recording.rate:
        raise RefusedError("failed_too_short", **facts)
    if not known:
        _check_quality(leads, recording.rate, settings, facts)
    wrong = [] if known else contradicting_leads(leads)
    if wrong:
        raise RefusedError("failed_lead_mismatch", **facts, leads_mismatched=wrong)
    filled = np.zeros((len(LEADS), samples))
    for place, name in enumerate(LEADS):
        if name in everything:
            filled[place] = _filled(everything[name])
    content = xxhash.xxh3_128(np.float64(recording.rate).tobytes() + np.ascontiguousarray(filled).tobytes())
    return Judged(filled, recording.rate, content.hexdigest(), facts)


def described(recording: Recording) -> dict[str, Any]:
    """What of a recording stands in its item's geometry, whatever its verdict."""
    facts: dict[str, Any] = {
        "form": recording.form,
        "rate": recording.rate,
        "samples": max((len(signal) for signal in recording.leads.values()), default=0),
        "units": "mV",
        **recording.facts,
    }
    if recording.assumed:
        facts["assumed"] = list(recording.assumed)
    if recording.other_channels:
        facts["other_channels"] = recording.other_channels
    if recording.moment is not None and recording.moment.utc_offset_minutes is not None:
        facts["utc_offset_minutes"] = recording.moment.utc_offset_minutes
    return facts


def _check_quality(leads: dict[str, Signal], rate: float, settings: EcgSettings, facts: dict[str, Any]) -> None:
    """Raises RefusedError where samples are missing, a lead is flat or clipped, or the gain cannot be."""
    missing = {name: 1 - float(np.isfinite(signal).mean()) for name, signal in leads.items()}
    if any(missing.values()):
        facts["missing_share"] = {name: round(share, 4) for name, share in missing.items() if share}
    if max(missing.values()) > settings.most_missing:
        raise RefusedError("failed_missing_samples", **facts)
    shares = {name: _flat_and_clipped(_filled(signal), rate) for name, signal in leads.items()}
    flat = max(share for share, _ in shares.values())
    clipped = max(share for _, share in shares.values())
    facts |= {"flat_share": round(flat, 4), "clipped_share": round(clipped, 4)}
    if flat > settings.most_flat:
        raise RefusedError("failed_flat_lead", **facts)
    swings = [float(np.ptp(np.percentile(signal[np.isfinite(signal)], (0.1, 99.9)))) for signal in leads.values()]
    if not PLAUSIBLE_SWING_MV[0] <= np.median(swings) <= PLAUSIBLE_SWING_MV[1]:
        raise RefusedError("failed_implausible_gain", **facts)
    if clipped > settings.most_clipped:
        raise RefusedError("failed_clipped_lead", **facts)


def _flat_and_clipped(signal: Signal, rate: float) -> tuple[float, float]:
    """The share of samples in long runs without a change, and of those in runs at the signal's highest or lowest."""
    edges = np.flatnonzero(np.concatenate([[True], signal[1:] != signal[:-1], [True]]))
    lengths, values = np.diff(edges), signal[edges[:-1]]
    flat = lengths >= max(FLAT_SECONDS * rate, 2)
    clipped = ((values == signal.max()) | (values == signal.min())) & (lengths >= CLIPPED_RUN)
    return float(lengths[flat].sum() / len(signal)), float(lengths[clipped].sum() / len(signal))


def _filled(signal: Signal) -> Signal:
    """A signal whose missing samples lie on the line between their neighbours; at the ends they are as the nearest."""
    known = np.isfinite(signal)
    if known.all():
        return signal
    places = np.arange(len(signal))
    return np.interp(places, places[known], signal[known])


def resampled(leads: Signal, rate: float, wanted: int) -> npt.NDArray[np.float32]:
    """Leads (12, n) at `wanted` samples a second, (12, round(n * wanted / rate)) float32.

    scipy's polyphase filter, whose low-pass keeps what lies above the new half rate from folding back.
    """
    from scipy.signal import resample_poly

    if rate == wanted:
        return leads.astype(np.float32)
    factor = Fraction(wanted / rate).limit_denominator(LARGEST_FACTOR)
    length = round(leads.shape[1] * wanted / rate)
    made = resample_poly(leads, factor.numerator, factor.denominator, axis=1, padtype="line")
    if made.shape[1] < length:
        made = np.pad(made, ((0, 0), (0, length - made.shape[1])), mode="edge")
    exact: npt.NDArray[np.float32] = made[:, :length].astype(np.float32)
    return exact


def cleaned(leads: npt.NDArray[np.float32], rate: int) -> npt.NDArray[np.float32]:
    """Leads (12, n) through NeuroKit2's default filters: a Butterworth high-pass of order 5 at 0.5 Hz and a moving mean
    over one period of 50 Hz, both forwards and backwards."""
    from scipy.signal import butter, filtfilt, sosfiltfilt

    smooth = sosfiltfilt(butter(5, 0.5, btype="highpass", output="sos", fs=rate), leads.astype(np.float64), axis=1)
    if rate >= 100:
        period = int(rate / 50)
        smooth = filtfilt(np.ones(period), [period], smooth, axis=1, method="pad")
    made: npt.NDArray[np.float32] = smooth.astype(np.float32)
    return made
