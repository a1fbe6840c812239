"""CT slices as an encoder takes them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from embedders.inputs.common import IMAGENET_MEAN, IMAGENET_STD, PHANTOM_SIDE, PHANTOMS, normalise

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class CtSpec:
    """CT slices to DINOv2 input. There is no standard: these values are this checkpoint's contract.

    Each window (centre, width in HU) becomes one channel. A slice is padded to a square with air, so that its shape
    stays true, then resized (bicubic, antialiased) and normalised with ImageNet's mean and deviation.
    """

    kind: ClassVar[str] = "CtSpec"
    form: ClassVar[str] = "image"

    windows: tuple[tuple[float, float], ...] = ((40.0, 400.0), (-600.0, 1500.0), (300.0, 1500.0))
    side: int = 224
    air_hu: float = -1024.0
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    @property
    def shape(self) -> tuple[int, ...]:
        """Three channels of a square."""
        return (3, self.side, self.side)

    def working_bytes(self, shape: Sequence[int]) -> int:
        """Memory that `apply` takes for a unit of `shape`: a thin slice becomes a whole square, once a window."""
        return 4 * max(shape) ** 2 * (1 + len(self.windows))

    def apply(self, pixels: "torch.Tensor") -> "torch.Tensor":
        """(n, rows, columns) float32 HU to (n, 3, side, side) float32, on the device of `pixels`."""
        import torch
        from torch.nn import functional

        if pixels.ndim != 3:
            raise ValueError(f"slices are (n, rows, columns), not {tuple(pixels.shape)}")
        hounsfield = pixels[:, None]
        rows, columns = hounsfield.shape[-2:]
        side = max(rows, columns)
        left, top = (side - columns) // 2, (side - rows) // 2
        edges = (left, side - columns - left, top, side - rows - top)
        square = functional.pad(hounsfield, edges, value=self.air_hu)
        channels = [(square - (centre - width / 2)).div_(width).clamp_(0.0, 1.0) for centre, width in self.windows]
        image = torch.cat(channels, dim=1)
        size = (self.side, self.side)
        image = functional.interpolate(image, size=size, mode="bicubic", antialias=True, align_corners=False)
        return normalise(image.clamp(0.0, 1.0), self.mean, self.std)

    @staticmethod
    def phantom(side: int = PHANTOM_SIDE) -> npt.NDArray[Any]:
        """(3, side, side * 9 / 8) float32 HU, in integer arithmetic: the same everywhere and for ever."""
        columns = side + side // 8
        number, y, x = np.ogrid[:PHANTOMS, :side, :columns]
        radius = (2 * y - side) ** 2 + (2 * x - columns) ** 2
        inside = radius * (number + 2) < side * side
        texture = (x * (3 + number) + y * (5 - number) + x * y // (7 + number)) % 400
        hounsfield: npt.NDArray[Any] = np.where(inside, texture - 100 + 300 * number, -1000)
        return hounsfield.astype(np.float32)
