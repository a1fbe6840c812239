"""Chest x-rays as an encoder takes them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from embedders.inputs.common import IMAGENET_MEAN, IMAGENET_STD, PHANTOM_SIDE, PHANTOMS, normalise

if TYPE_CHECKING:
    import torch

WHITE = 65_535


@dataclass(frozen=True)
class CxrSpec:
    """Chest x-rays to the input of a vision transformer, the same grey in each channel.

    `fit`: `crop` makes the shorter side `side` pixels and takes the centre, as RAD-DINO and BioMedCLIP were trained;
    `pad` fills up a square with black, so that all of the picture is seen.
    """

    kind: ClassVar[str] = "CxrSpec"
    form: ClassVar[str] = "image"

    side: int = 224
    fit: Literal["crop", "pad"] = "crop"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    @property
    def shape(self) -> tuple[int, ...]:
        """Three channels of a square."""
        return (3, self.side, self.side)

    def working_bytes(self, shape: Sequence[int]) -> int:
        """Memory that `apply` takes for a unit of `shape`."""
        return 4 * (2 * max(shape) ** 2 + 6 * self.side**2)

    def apply(self, pixels: "torch.Tensor") -> "torch.Tensor":
        """(n, rows, columns) uint16, 0 black, to (n, 3, side, side) float32, on the device of `pixels`."""
        import torch
        from torch.nn import functional

        if pixels.ndim != 3:
            raise ValueError(f"x-rays are (n, rows, columns), not {tuple(pixels.shape)}")
        grey = pixels[:, None].to(torch.float32) / WHITE
        rows, columns = grey.shape[-2:]
        if self.fit == "pad":
            square = max(rows, columns)
            left, top = (square - columns) // 2, (square - rows) // 2
            grey = functional.pad(grey, (left, square - columns - left, top, square - rows - top))
            rows = columns = square
        shorter = min(rows, columns)
        size = [self.side * rows // shorter, self.side * columns // shorter]
        grey = functional.interpolate(grey, size=size, mode="bicubic", antialias=True, align_corners=False)
        top, left = (size[0] - self.side) // 2, (size[1] - self.side) // 2
        grey = grey[..., top : top + self.side, left : left + self.side].clamp(0.0, 1.0)
        return normalise(grey.expand(-1, 3, -1, -1), self.mean, self.std)

    @staticmethod
    def phantom(side: int = PHANTOM_SIDE) -> npt.NDArray[Any]:
        """(3, side, side * 9 / 8) uint16, in integer arithmetic: the same everywhere and for ever."""
        columns = side + side // 8
        number, y, x = np.ogrid[:PHANTOMS, :side, :columns]
        lungs = ((4 * x - columns) ** 2 + (2 * y - side) ** 2) * (number + 3) < side * side * 2
        texture = (x * (7 + number) + y * (3 + number) + x * y // (9 + number)) % 512
        grey: npt.NDArray[Any] = np.where(lungs, 9_000 + 24 * texture, 44_000 - 6_000 * number + 16 * texture)
        return grey.astype(np.uint16)
