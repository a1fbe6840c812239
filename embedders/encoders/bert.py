"""BERT: transformers' BertModel of any size, as a checkpoint's own config.json describes it.

Imports torch at once: import it inside functions.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from embedders.encoders.heads import RandomFeatures
from embedders.encoders.signals import pooled
from extractors.note.read import NO_TOKEN

if TYPE_CHECKING:
    from embedders.encoders.spec import EncoderConfig, EncoderSpec

POOL = "pool"  # of an architecture: what stands for a whole window


def bert(architecture: Mapping[str, Any], attention: str = "sdpa") -> nn.Module:
    """transformers' BertModel of an architecture, without its pooler; untrained weights."""
    from transformers import BertConfig, BertModel

    settings = {name: value for name, value in architecture.items() if name != POOL}
    return cast("nn.Module", BertModel(BertConfig(**settings, attn_implementation=attention), add_pooling_layer=False))


def hidden_states(backbone: nn.Module, windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows (n, 2, length) as `NoteSpec` makes them, to tokens (n, length, hidden) and which are real (n, length)."""
    ids, real = windows[:, 0].long(), windows[:, 1] > 0
    tokens: torch.Tensor = backbone(input_ids=ids, attention_mask=real.long()).last_hidden_state
    return tokens, real


class Bert(nn.Module):
    """A window's tokens; or one vector: the class token's, or the mean over all."""

    def __init__(self, backbone: nn.Module, *, sequence: bool, mean: bool) -> None:
        super().__init__()
        self.backbone, self.sequence, self.mean = backbone, sequence, mean

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """(n, 2, length) to (n, hidden), or (n, length, hidden)."""
        tokens, real = hidden_states(self.backbone, windows)
        if self.sequence:
            return tokens
        return pooled(tokens, real) if self.mean else tokens[:, 0]


class RandomBert(RandomFeatures):
    """`RandomFeatures` of a text: the class token, and the mean and deviation over its tokens."""

    def __init__(
        self, backbone: nn.Module, architecture: Mapping[str, Any], width: int, seed: int, sequence: bool
    ) -> None:
        super().__init__(backbone, int(architecture["hidden_size"]), width, seed)
        self.sequence, self.hidden = sequence, int(architecture["hidden_size"])
        self.vocabulary = int(architecture["vocab_size"])

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(n, 2, length) to (n, width), or (n, length, width); ids beyond its vocabulary begin anew."""
        windows = torch.stack([pixels[:, 0] % self.vocabulary, pixels[:, 1]], dim=1)
        tokens, real = hidden_states(self.backbone, windows)
        if self.sequence:
            return tokens @ self.projection[: self.hidden]
        mean = pooled(tokens, real)
        deviation = pooled((tokens - mean[:, None]) ** 2, real).sqrt()
        return torch.cat([tokens[:, 0], mean, deviation], dim=1) @ self.projection


def bert_tokens(
    architecture: Mapping[str, Any], preprocess: Any, units: npt.NDArray[Any] | None
) -> npt.NDArray[np.int64]:
    """How many tokens windows (n, window) have, their marks included."""
    if units is None:
        return np.array([preprocess.length], np.int64)
    counted: npt.NDArray[np.int64] = (units != NO_TOKEN).sum(axis=1)
    return counted


class _Plain(nn.Module):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        return hidden_states(self.backbone, windows)[0]


def plain_bert(architecture: Mapping[str, Any], shape: tuple[int, ...]) -> nn.Module:
    """The network without weights, its products visible."""
    return _Plain(bert(architecture, attention="eager"))


def build_random_bert(config: "EncoderConfig", spec: "EncoderSpec") -> nn.Module:
    """A small BERT with weights of the seed of `config`, widened to its vectors' length."""
    backbone = bert(spec.architecture)
    return RandomBert(backbone, spec.architecture, config.width, config.seed, spec.output == "sequence")
