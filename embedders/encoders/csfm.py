"""CSFM: a pre-norm transformer over patches of each lead, as the Cardiac Sensing Foundation Model defines it.

Imports torch at once. Every lead is cut into patches of a tenth of a second, which get their place in time and their
lead; a class token stands before them. 12 leads of 10 s at 250 Hz make 1,200 tokens. Text and the channel of the pulse
(PPG) are not used. Names of tensors are the checkpoint's.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from embedders.encoders.signals import attend, in_heads, vit_tokens

if TYPE_CHECKING:
    from embedders.encoders.spec import EncoderConfig, EncoderSpec

CHANNELS = 13  # twelve leads in the standard order, and the pulse
HEAD_WIDTH = 64
_UNUSED = ("mlp_head.", "text_to_embedding.", "text_type_embedding", "text_pos_embedding", "to_latent.")


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, plain: bool) -> None:
        super().__init__()
        self.heads, self.plain = heads, plain
        self.norm = nn.LayerNorm(width)
        self.to_qkv = nn.Linear(width, 3 * heads * HEAD_WIDTH, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * HEAD_WIDTH, width))

    def forward(self, tokens: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        query, key, value = (in_heads(part, self.heads) for part in self.to_qkv(self.norm(tokens)).chunk(3, dim=-1))
        mixed: torch.Tensor = self.to_out(attend(query, key, value, real, plain=self.plain).transpose(1, 2).flatten(2))
        return mixed


class _FeedForward(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        # Places 3 and 5 are dropout where the network is trained; they keep the names of those between.
        self.net = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, inner), nn.GELU(), nn.Identity(), nn.Linear(inner, width)
        )

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.net(tokens)
        return made


class Csfm(nn.Module):
    """The network. `sequence`: it gives its patch tokens, time by time and in each the leads in order."""

    def __init__(
        self, architecture: Mapping[str, Any], shape: tuple[int, ...], *, sequence: bool = False, plain: bool = False
    ) -> None:
        super().__init__()
        width, heads = int(architecture["hidden_size"]), int(architecture["num_attention_heads"])
        self.patch, self.sequence = int(architecture["patch_size"]), sequence
        inner, depth = int(architecture["ffn_size"]), int(architecture["num_hidden_layers"])
        # Place 0 cuts the signal.
        self.ts_to_patch_embedding = nn.Sequential(
            nn.Identity(), nn.LayerNorm(self.patch), nn.Linear(self.patch, width), nn.LayerNorm(width)
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.ts_channel_type_embedding = nn.Parameter(torch.zeros(1, CHANNELS, width))
        self.ts_pos_embedding = nn.Parameter(torch.zeros(1, shape[1] // self.patch, width))
        layers = nn.ModuleList(
            nn.ModuleList([_Attention(width, heads, plain), _FeedForward(width, inner)]) for _ in range(depth)
        )
        self.transformer = nn.ModuleDict({"norm": nn.LayerNorm(width), "layers": layers})

    def forward(self, signal: torch.Tensor) -> torch.Tensor:
        """(n, 13, samples) to (n, width), or (n, patches x 12, width)."""
        leads, has_signal = signal[:, :-1], signal[:, -1]
        patches = leads.unfold(2, self.patch, self.patch)
        embedded: torch.Tensor = self.ts_to_patch_embedding(patches)  # (n, leads, patches, width)
        count = leads.shape[1]
        embedded = embedded + self.ts_channel_type_embedding[:, :count, None] + self.ts_pos_embedding[:, None]
        whole = has_signal.unfold(1, self.patch, self.patch).amin(dim=2) > 0
        real = functional.pad(whole.repeat(1, count), (1, 0), value=True)
        tokens = torch.cat([self.cls_token.expand(len(signal), -1, -1), embedded.flatten(1, 2)], dim=1)
        for layer in cast(nn.ModuleList, self.transformer["layers"]):
            attention, widening = cast(nn.ModuleList, layer)
            tokens = attention(tokens, real) + tokens
            tokens = widening(tokens) + tokens
        normed: torch.Tensor = self.transformer["norm"](tokens)
        if not self.sequence:
            return normed[:, 0]
        by_lead = normed[:, 1:].reshape(len(signal), count, -1, normed.shape[-1])
        return by_lead.transpose(1, 2).flatten(1, 2)


def csfm_tokens(
    architecture: Mapping[str, Any], preprocess: Any, units: npt.NDArray[Any] | None
) -> npt.NDArray[np.int64]:
    """How many patches units (n, 12, samples) have, of all leads together."""
    return vit_tokens(architecture, preprocess, units) * len(preprocess.order)


def plain_csfm(architecture: Mapping[str, Any], shape: tuple[int, ...]) -> nn.Module:
    """The network without weights, its products visible."""
    return Csfm(architecture, shape, plain=True)


def build_csfm(config: "EncoderConfig", spec: "EncoderSpec") -> nn.Module:
    """CSFM with the weights of `config`; its text's and its classifier's are left out."""
    from embedders.encoders.weights import with_weights

    sequence = spec.output == "sequence"
    return with_weights(
        lambda: Csfm(spec.architecture, spec.preprocess.shape, sequence=sequence), config.checkpoint(), csfm_names
    )


def csfm_names(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """A checkpoint's tensor under the model's name."""
    name = name.removeprefix("encoder.")
    if not name.startswith(_UNUSED):
        yield name, tensor
