"""What a run of the embedder was like: rates, how long the device waited, how near its limit it came."""

import time
from dataclasses import dataclass, field
from typing import TypedDict

from embedders.encoders.build import Encoder
from embedders.encoders.device import device_name


@dataclass
class Load:
    """One encoder's part of a run, over a modality's items.

    `busy_seconds`: of the device. `peak_flops`: FLOP/s that the device can make at most, once it was measured.
    """

    modality: str
    encoder: Encoder
    units: int = 0
    busy_seconds: float = 0.0
    peak_flops: float | None = None

    @property
    def flops(self) -> int:
        """What the model needed for the units."""
        return self.units * self.encoder.flops_per_unit


class EncoderCounts(TypedDict):
    """What one encoder did in a run, and on what."""

    modality: str
    label: str
    device: str
    precision: str
    units: int


class RunCounts(TypedDict):
    """`RunFigures` as JSON: rounded, and None where nothing was encoded."""

    items: int
    units: int
    resumed_units: int
    seconds: float
    units_per_second: float | None
    device_idle_share: float | None
    flop_fraction: float | None
    decode_seconds: float
    decoders: int
    memory_mb: int
    rounding_error: float
    errors: dict[str, int]
    encoders: list[EncoderCounts]


@dataclass
class RunFigures:
    """Figures of one worker's run; every count is of this run alone, not of what it found done.

    Attributes:
        items: those whose outcome was made; `units` those that were encoded for them.
        seconds: from when the first encoder was ready, without the building of others.
        busy_seconds: of the device, with preprocessing and model.
        decode_seconds: of all decoders, in their readers.
        rounding_error: the largest relative L2 distance of an item's stored values to what was computed in float32.
        resumed_units: units that an earlier run had encoded of items that it had not finished.
        errors: type of exception to how often a reader raised it; their words may quote a patient's values.
        loads: by the name of the store that it fills, each encoder's part.
    """

    decoders: int = 0
    memory_mb: int = 0
    items: int = 0
    units: int = 0
    seconds: float = 0.0
    busy_seconds: float = 0.0
    decode_seconds: float = 0.0
    rounding_error: float = 0.0
    resumed_units: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    loads: dict[str, Load] = field(default_factory=dict)
    _begun: float | None = None

    def add_encoder(self, store: str, modality: str, encoder: Encoder, building_seconds: float) -> None:
        """The encoder that fills a store is ready."""
        self.loads[store] = Load(modality, encoder)
        self._begun = time.perf_counter() if self._begun is None else self._begun + building_seconds

    def end(self) -> None:
        """The run is over."""
        self.seconds = 0.0 if self._begun is None else time.perf_counter() - self._begun

    def encoded(self, store: str, seconds: float) -> None:
        """A batch for a store took the device so long."""
        self.busy_seconds += seconds
        self.loads[store].busy_seconds += seconds

    def measure_peaks(self) -> None:
        """Measures what the devices can make at most, once per process. Nothing of ours may be at work beside it.

        What another process takes from it while it is measured is given back: a device can do what it did in the run.
        """
        for load in self.loads.values():
            if load.units:
                reached = load.flops / load.busy_seconds if load.busy_seconds else 0.0
                load.peak_flops = max(load.encoder.figures.peak_flops, reached)

    def add(self, other: "RunFigures") -> None:
        """Figures of a further run of the same worker; the time between the two counts in neither."""
        for name in ("items", "units", "seconds", "busy_seconds", "decode_seconds", "resumed_units"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.rounding_error = max(self.rounding_error, other.rounding_error)
        for kind, number in other.errors.items():
            self.errors[kind] = self.errors.get(kind, 0) + number
        for store, load in other.loads.items():
            known = self.loads.setdefault(store, Load(load.modality, load.encoder))
            known.units += load.units
            known.busy_seconds += load.busy_seconds
            known.peak_flops = load.peak_flops or known.peak_flops

    @property
    def device_idle_share(self) -> float | None:
        """The share of the time in which the device had nothing to do; None where nothing was encoded."""
        return None if not self.units or not self.seconds else max(0.0, 1 - self.busy_seconds / self.seconds)

    @property
    def flop_fraction(self) -> float | None:
        """Of the products that the device could have made in the time, those that the models needed; None where
        nothing was encoded, or a peak was not measured."""
        at_work = [load for load in self.loads.values() if load.units]
        if not at_work or not self.seconds or not all(load.peak_flops for load in at_work):
            return None
        return sum(load.flops / load.peak_flops for load in at_work if load.peak_flops) / self.seconds

    def counts(self) -> RunCounts:
        """As JSON, for a stage's record."""
        return {
            "items": self.items,
            "units": self.units,
            "resumed_units": self.resumed_units,
            "seconds": round(self.seconds, 3),
            "units_per_second": round(self.units / self.seconds, 1) if self.seconds else None,
            "device_idle_share": _rounded(self.device_idle_share),
            "flop_fraction": _rounded(self.flop_fraction),
            "decode_seconds": round(self.decode_seconds, 3),
            "decoders": self.decoders,
            "memory_mb": self.memory_mb,
            "rounding_error": float(f"{self.rounding_error:.3g}"),
            "errors": dict(sorted(self.errors.items())),
            "encoders": [
                {
                    "modality": load.modality,
                    "label": load.encoder.spec.label,
                    "device": device_name(load.encoder.device),
                    "precision": load.encoder.spec.precision,
                    "units": load.units,
                }
                for _, load in sorted(self.loads.items())
            ],
        }


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 4)
