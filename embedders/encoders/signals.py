"""A plain vision transformer over the time of twelve leads. Imports torch at once: import it inside functions.

A patch is a stretch of time of all leads, so a window of 10 s at 500 Hz and patches of 50 samples make 100 tokens.
Names of tensors are timm's (`patch_embed.proj`, `blocks.0.attn.qkv`), with one dimension instead of two.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from embedders.encoders.heads import RandomFeatures

if TYPE_CHECKING:
    from embedders.encoders.spec import EncoderConfig, EncoderSpec

EPSILON = 1e-6  # of layer norms, as in timm's vision transformers


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, real: torch.Tensor, *, plain: bool = False
) -> torch.Tensor:
    """Scaled-dot-product attention (n, heads, tokens, width) to the tokens that are `real` (n, tokens) alone.

    Args:
        plain: as separate products, which can be counted.
    """
    mask = real[:, None, None]
    if not plain:
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    scores: torch.Tensor = (query @ key.transpose(-1, -2)) * float(query.shape[-1]) ** -0.5
    return scores.masked_fill(~mask, float("-inf")).softmax(dim=-1) @ value


def in_heads(tokens: torch.Tensor, heads: int) -> torch.Tensor:
    """(n, tokens, width) as (n, heads, tokens, width / heads)."""
    return tokens.reshape(*tokens.shape[:2], heads, -1).transpose(1, 2)


def pooled(tokens: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """The mean over real tokens, (n, width)."""
    weights = real[..., None].to(tokens.dtype)
    return (tokens * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, plain: bool) -> None:
        super().__init__()
        self.heads, self.plain = heads, plain
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, tokens: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        query, key, value = (in_heads(part, self.heads) for part in self.qkv(tokens).chunk(3, dim=-1))
        mixed: torch.Tensor = self.proj(attend(query, key, value, real, plain=self.plain).transpose(1, 2).flatten(2))
        return mixed


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, plain: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=EPSILON), nn.LayerNorm(width, eps=EPSILON)
        self.attn = _Attention(width, heads, plain)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    def forward(self, tokens: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        tokens = tokens + self.attn(self.norm1(tokens), real)
        widened: torch.Tensor = self.mlp["fc2"](functional.gelu(self.mlp["fc1"](self.norm2(tokens))))
        return tokens + widened


class EcgVit(nn.Module):
    """The transformer. `sequence`: it gives patch tokens, not the class token."""

    def __init__(
        self, architecture: Mapping[str, Any], shape: tuple[int, ...], *, sequence: bool = False, plain: bool = False
    ) -> None:
        super().__init__()
        width, heads = int(architecture["hidden_size"]), int(architecture["num_attention_heads"])
        self.patch, self.sequence = int(architecture["patch_size"]), sequence
        patches = shape[1] // self.patch
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv1d(shape[0] - 1, width, self.patch, stride=self.patch)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + patches, width))
        self.blocks = nn.ModuleList(_Block(width, heads, plain) for _ in range(int(architecture["num_hidden_layers"])))
        self.norm = nn.LayerNorm(width, eps=EPSILON)

    def tokens(self, signal: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, 13, samples) to the class token and the patches, (n, 1 + patches, width), and which of them are real."""
        patches: torch.Tensor = self.patch_embed["proj"](signal[:, :-1]).transpose(1, 2)
        whole = signal[:, -1].unfold(1, self.patch, self.patch).amin(dim=2) > 0
        real = functional.pad(whole, (1, 0), value=True)
        tokens = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1) + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens, real)
        return self.norm(tokens), real

    def forward(self, signal: torch.Tensor) -> torch.Tensor:
        """(n, 13, samples) to (n, width), or (n, patches, width)."""
        tokens, _ = self.tokens(signal)
        return tokens[:, 1:] if self.sequence else tokens[:, 0]


class RandomEcg(RandomFeatures):
    """`RandomFeatures` of a signal: the class token, and the mean and deviation over real patches."""

    def __init__(self, backbone: EcgVit, hidden: int, width: int, seed: int) -> None:
        super().__init__(backbone, hidden, width, seed)
        self.hidden = hidden

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(n, 13, samples) to (n, width), or (n, patches, width)."""
        backbone = cast(EcgVit, self.backbone)
        tokens, real = backbone.tokens(pixels)
        patches, real_patches = tokens[:, 1:], real[:, 1:]
        if backbone.sequence:
            return patches @ self.projection[: self.hidden]
        mean = pooled(patches, real_patches)
        deviation = pooled((patches - mean[:, None]) ** 2, real_patches).sqrt()
        return torch.cat([tokens[:, 0], mean, deviation], dim=1) @ self.projection


def vit_tokens(
    architecture: Mapping[str, Any], preprocess: Any, units: npt.NDArray[Any] | None
) -> npt.NDArray[np.int64]:
    """How many whole patches units (n, 12, samples) have."""
    samples = preprocess.samples if units is None else units.shape[2]
    return np.full(1 if units is None else len(units), samples // int(architecture["patch_size"]), np.int64)


def plain_ecg_vit(architecture: Mapping[str, Any], shape: tuple[int, ...]) -> nn.Module:
    """The transformer without weights, its products visible."""
    return EcgVit(architecture, shape, plain=True)


def build_ecg_vit(config: "EncoderConfig", spec: "EncoderSpec") -> nn.Module:
    """The transformer with the weights of `config`."""
    from embedders.encoders.weights import with_weights

    sequence = spec.output == "sequence"
    return with_weights(
        lambda: EcgVit(spec.architecture, spec.preprocess.shape, sequence=sequence), config.checkpoint(), without_head
    )


def without_head(name: str, tensor: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """A tensor of a checkpoint under its own name; none of a classifier's."""
    name = name.removeprefix("module.").removeprefix("encoder.")
    return [] if name.startswith(("head.", "fc_norm.")) else [(name, tensor)]


def build_random_ecg(config: "EncoderConfig", spec: "EncoderSpec") -> nn.Module:
    """A small transformer with weights of the seed of `config`, widened to its vectors' length."""
    backbone = EcgVit(spec.architecture, spec.preprocess.shape, sequence=spec.output == "sequence")
    return RandomEcg(backbone, int(spec.architecture["hidden_size"]), config.width, config.seed)
