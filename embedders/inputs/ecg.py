"""Windows of ECGs as an encoder takes them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from embedders.inputs.common import PHANTOMS
from extractors.ecg.leads import LEADS

if TYPE_CHECKING:
    import torch

PHANTOM_SAMPLES = 2_500
LEAST_DEVIATION = 1e-6  # millivolts; a lead without any swing, as one that was not recorded, stays zeros


@dataclass(frozen=True)
class EcgSpec:
    """Windows of 12 leads in millivolts, in the order that `order` says, filled up with zeros to the encoder's length.

    `rate`, `seconds` and `cleaning` are how the extractor reads: the settings of these names must be the same.
    `standardise`: each lead less its mean, over its deviation, of the samples that there are.
    """

    kind: ClassVar[str] = "EcgSpec"
    form: ClassVar[str] = "signal"

    rate: int = 500
    seconds: float = 10.0
    cleaning: str = "none"
    standardise: bool = False
    order: tuple[str, ...] = LEADS

    @property
    def samples(self) -> int:
        """Samples of a whole window."""
        return round(self.rate * self.seconds)

    @property
    def shape(self) -> tuple[int, ...]:
        """The leads, and a last row of ones where there is signal and zeros where it was filled up."""
        return (len(self.order) + 1, self.samples)

    def working_bytes(self, shape: Sequence[int]) -> int:
        """Memory that `apply` takes for a unit of `shape`."""
        return 4 * 4 * (len(self.order) + 1) * self.samples

    def apply(self, pixels: "torch.Tensor") -> "torch.Tensor":
        """(n, 12, samples) float32 millivolts, or shorter, to (n, 13, samples) float32, on the device of `pixels`."""
        import torch

        if pixels.ndim != 3 or pixels.shape[1] != len(self.order) or not 0 < pixels.shape[2] <= self.samples:
            raise ValueError(
                f"windows are (n, {len(self.order)}, {self.samples}) or shorter, not {tuple(pixels.shape)}"
            )
        length = pixels.shape[2]
        made = torch.zeros((len(pixels), *self.shape), dtype=torch.float32, device=pixels.device)
        leads = pixels.to(torch.float32)
        if self.standardise:
            swing = leads.std(dim=2, keepdim=True, correction=0)
            standard = (leads - leads.mean(dim=2, keepdim=True)) / swing.clamp_min(LEAST_DEVIATION)
            leads = torch.where(swing < LEAST_DEVIATION, 0.0, standard)
        made[:, :-1, :length] = leads
        made[:, -1, :length] = 1.0
        return made

    @staticmethod
    def phantom(side: int = PHANTOM_SAMPLES) -> npt.NDArray[Any]:
        """(3, 12, side) float32 millivolts, in integer arithmetic: the same everywhere and for ever."""
        number, lead, place = np.ogrid[:PHANTOMS, : len(LEADS), :side]
        beat = (place * (3 + number) + 40 * lead) % 1000
        spike = np.where(beat < 40, 20 * beat, np.where(beat < 80, 20 * (80 - beat), 0))
        slow = (place * (1 + lead % 4) // (2 + number)) % 200
        millivolts: npt.NDArray[Any] = ((spike * (1 + lead % 3) + slow) / np.float32(1000)).astype(np.float32)
        return millivolts
