"""Windows of waves as an encoder takes them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from embedders.inputs.common import PHANTOM_SIDE, PHANTOMS

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class WaveSpec:
    """A window's samples as the columns of a picture."""

    kind: ClassVar[str] = "WaveSpec"
    form: ClassVar[str] = "image"

    side: int = 224

    @property
    def shape(self) -> tuple[int, ...]:
        return (3, self.side, self.side)

    def working_bytes(self, shape: Sequence[int]) -> int:
        return 4 * 3 * self.side**2

    def apply(self, pixels: "torch.Tensor") -> "torch.Tensor":
        """(n, window) float32 to (n, 3, side, side) float32."""
        from torch.nn import functional

        columns = functional.interpolate(pixels[:, None], size=self.side)
        return columns[:, :, None].expand(-1, 3, self.side, -1).contiguous()

    @staticmethod
    def phantom(side: int = PHANTOM_SIDE) -> npt.NDArray[Any]:
        number, place = np.ogrid[:PHANTOMS, :side]
        return ((place * (number + 3)) % 17).astype(np.float32) / 8 - 1
