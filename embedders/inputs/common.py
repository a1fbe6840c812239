"""From units (slices in HU, RGB tiles) to the tensor an encoder takes. Every choice is in a spec, and specs are hashed.

All work runs in torch on the encoder's device: on the CPU resizing CT slices costs more than reading them.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from hashlib import sha256
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy.typing as npt

if TYPE_CHECKING:
    import torch

CODE_VERSION = 3  # raise when a change here, or in how extractors read units, changes a pixel
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
PHANTOMS, PHANTOM_SIDE = 3, 256


class PreprocessSpec(Protocol):
    """How the units of a modality become an encoder's input: a frozen dataclass, all of whose fields are hashed.

    Attributes:
        kind: what stands for the class in the hash; it stays when the class is renamed.
        form: what it makes of a unit, by which encoders are chosen: `image`, `signal` or `text`.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    kind: ClassVar[str]
    form: ClassVar[str]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the encoder's input for a unit: an image's is (3, side, side)."""

    def working_bytes(self, shape: Sequence[int]) -> int:
        """Memory that `apply` takes for a unit of `shape`."""

    def apply(self, pixels: "torch.Tensor") -> "torch.Tensor":
        """Units (n, ...) to (n, *shape) float32, on the device of `pixels`; ValueError for another shape."""

    @staticmethod
    def phantom(side: int = PHANTOM_SIDE) -> npt.NDArray[Any]:
        """Units (PHANTOMS, ...) that never change, for golden vectors."""


def normalise(image: "torch.Tensor", mean: tuple[float, ...], std: tuple[float, ...]) -> "torch.Tensor":
    """(n, c, h, w) less `mean`, over `std`, each (c,)."""
    return ((image - _channels(mean, image.device)) / _channels(std, image.device)).contiguous()


@cache
def _channels(values: tuple[float, ...], device: "torch.device") -> "torch.Tensor":
    """One value per channel, kept on the device: copying it anew would make the host wait for each batch."""
    import torch

    return torch.tensor(values, device=device).view(1, -1, 1, 1)


def described(spec: PreprocessSpec) -> dict[str, Any]:
    """A spec's kind and every choice in it."""
    return {"kind": spec.kind, **asdict(spec)}


def spec_hash(spec: PreprocessSpec) -> str:
    """SHA-256 of a spec, its kind and the version of this code."""
    return sha256(json.dumps({"version": CODE_VERSION, **described(spec)}, sort_keys=True).encode()).hexdigest()
