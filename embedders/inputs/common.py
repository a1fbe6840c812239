"""From units (slices in HU, RGB tiles) to the tensor an encoder takes. Every choice is in a spec, and specs are hashed.

All work runs in torch on the encoder's device: on the CPU resizing CT slices costs more than reading them.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import sha256
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

CODE_VERSION = 3  # raise when a change here, or in how extractors read units, changes a pixel
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class CtSpec:
    """CT slices to DINOv2 input. There is no standard: these values are this checkpoint's contract.

    Each window (centre, width in HU) becomes one channel. A slice is padded to a square with air, so that its shape
    stays true, then resized (bicubic, antialiased) and normalised with ImageNet's mean and deviation.
    """

    windows: tuple[tuple[float, float], ...] = ((40.0, 400.0), (-600.0, 1500.0), (300.0, 1500.0))
    side: int = 224
    air_hu: float = -1024.0
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

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
        return _normalise(image.clamp(0.0, 1.0), self.mean, self.std)


@dataclass(frozen=True)
class TileSpec:
    """Slide tiles to GigaPath input: 256 px at 0.5 um/px, centre crop of 224, ImageNet's mean and deviation.

    The bicubic resize of GigaPath's recipe happens when tiles are read: they arrive at exactly this scale.
    """

    mpp: float = 0.5
    tile: int = 256
    side: int = 224
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

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
        return _normalise(image.to(torch.float32) / 255.0, self.mean, self.std)


PreprocessSpec = CtSpec | TileSpec


def _normalise(image: "torch.Tensor", mean: tuple[float, ...], std: tuple[float, ...]) -> "torch.Tensor":
    return ((image - _channels(mean, image.device)) / _channels(std, image.device)).contiguous()


@cache
def _channels(values: tuple[float, ...], device: "torch.device") -> "torch.Tensor":
    """One value per channel, kept on the device: copying it anew would make the host wait for each batch."""
    import torch

    return torch.tensor(values, device=device).view(1, -1, 1, 1)


def spec_hash(spec: PreprocessSpec) -> str:
    """SHA-256 of a spec, its kind and the version of this code."""
    described = {"kind": type(spec).__name__, "version": CODE_VERSION, **asdict(spec)}
    return sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
