"""Tiles of slides as an encoder takes them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from embedders.inputs.common import IMAGENET_MEAN, IMAGENET_STD, PHANTOM_SIDE, PHANTOMS, normalise
from extractors.wsi.tissue import MASK

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TileSpec:
    """Slide tiles to GigaPath input: 256 px at 0.5 um/px, centre crop of 224, ImageNet's mean and deviation.

    The bicubic resize of GigaPath's recipe happens when tiles are read: they arrive at exactly this scale. Which tiles
    these are is the mask's choice: its method and version are hashed, so another mask fills another store.
    """

    kind: ClassVar[str] = "TileSpec"
    form: ClassVar[str] = "image"

    mpp: float = 0.5
    tile: int = 256
    side: int = 224
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    mask: str = MASK

    @property
    def shape(self) -> tuple[int, ...]:
        """Three channels of a square."""
        return (3, self.side, self.side)

    def working_bytes(self, shape: Sequence[int]) -> int:
        """Memory that `apply` takes for a unit of `shape`."""
        return 2 * 4 * math.prod(shape)

    def apply(self, pixels: "torch.Tensor") -> "torch.Tensor":
        """(n, tile, tile, 3) uint8 RGB to (n, 3, side, side) float32, on the device of `pixels`."""
        import torch

        if pixels.shape[1:] != (self.tile, self.tile, 3):
            raise ValueError(f"a tile is {self.tile} x {self.tile} x 3, not {tuple(pixels.shape[1:])}")
        margin = (self.tile - self.side) // 2
        inner = slice(margin, margin + self.side)
        image = pixels[:, inner, inner].permute(0, 3, 1, 2)
        return normalise(image.to(torch.float32) / 255.0, self.mean, self.std)

    @staticmethod
    def phantom(side: int = PHANTOM_SIDE) -> npt.NDArray[Any]:
        """(3, side, side, 3) uint8, in integer arithmetic: the same everywhere and for ever."""
        number, y, x, channel = np.ogrid[:PHANTOMS, :side, :side, :3]
        stripes = (x * (1 + number) + y * (2 + channel) + x * y // (16 + 8 * number)) % 128
        colours: npt.NDArray[Any] = stripes + 40 * channel + 20 * number
        return colours.astype(np.uint8)
