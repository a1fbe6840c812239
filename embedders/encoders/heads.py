"""Vision transformers, and how their tokens become one vector. Imports torch at once: import it inside functions."""

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn


def dinov2(architecture: Mapping[str, Any], attention: str = "sdpa") -> nn.Module:
    """transformers' Dinov2Model of an architecture, by default with scaled-dot-product attention; untrained weights."""
    from transformers import Dinov2Config, Dinov2Model

    settings: dict[str, Any] = {**architecture, "attn_implementation": attention}
    return cast("nn.Module", Dinov2Model(Dinov2Config(**settings)))


def vit(architecture: Mapping[str, Any], attention: str = "sdpa") -> nn.Module:
    """transformers' ViTModel of an architecture, without its pooler and without masks; untrained weights."""
    from transformers import ViTConfig, ViTModel

    settings: dict[str, Any] = {**architecture, "attn_implementation": attention}
    return cast("nn.Module", ViTModel(ViTConfig(**settings), add_pooling_layer=False))


def transformer(architecture: Mapping[str, Any], attention: str = "sdpa") -> nn.Module:
    """The model that an architecture names: `dinov2` where it names none."""
    settings = dict(architecture)
    return (vit if settings.pop("model_type", "dinov2") == "vit" else dinov2)(settings, attention)


def plain_transformer(architecture: Mapping[str, Any], shape: tuple[int, ...]) -> nn.Module:
    """The class token of a vision transformer for images of a shape, with plain attention."""
    return ClassToken(transformer({**architecture, "image_size": shape[-1]}, attention="eager"))


class ClassToken(nn.Module):
    """The class token after the last layer norm: what DINOv2 and GigaPath publish as their embedding."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(n, 3, side, side) to (n, hidden)."""
        tokens: torch.Tensor = self.backbone(pixel_values=pixels).last_hidden_state
        return tokens[:, 0]


class AllTokens(nn.Module):
    """Every token after the last layer norm, the class token first and then the patches row by row."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(n, 3, side, side) to (n, tokens, hidden)."""
        tokens: torch.Tensor = self.backbone(pixel_values=pixels).last_hidden_state
        return tokens


def patch_tokens(
    architecture: Mapping[str, Any], preprocess: Any, units: npt.NDArray[Any] | None
) -> npt.NDArray[np.int64]:
    """The tokens of units (n, ...) (n,), or of any unit (1,): the class token and a square of patches."""
    tokens = 1 + (int(preprocess.side) // int(architecture["patch_size"])) ** 2
    return np.full(1 if units is None else len(units), tokens, np.int64)


class RandomFeatures(nn.Module):
    """A small transformer with random weights, read out so that simple differences of images survive.

    The class token and the mean and standard deviation over patch tokens (brightness and texture) go through one fixed
    Gaussian matrix to the wanted width. The same seed gives the same bits in each process.
    """

    projection: torch.Tensor

    def __init__(self, backbone: nn.Module, hidden: int, width: int, seed: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.register_buffer("projection", torch.empty(3 * hidden, width))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in sorted(self.backbone.named_parameters()):
                if "norm" in name or "layer_scale" in name:
                    parameter.fill_(0.0 if name.endswith("bias") else 1.0)
                elif name.endswith("bias"):
                    parameter.zero_()
                else:
                    inputs = parameter[0].numel()
                    parameter.normal_(0.0, inputs**-0.5 if parameter.ndim > 1 else 1.0, generator=generator)
            self.projection.normal_(0.0, (3 * hidden) ** -0.5, generator=generator)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(n, 3, side, side) to (n, width)."""
        tokens: torch.Tensor = self.backbone(pixel_values=pixels).last_hidden_state
        patches = tokens[:, 1:]
        features = torch.cat([tokens[:, 0], patches.mean(dim=1), patches.std(dim=1)], dim=1)
        return features @ self.projection
