"""ECG-FM: wav2vec 2.0 over twelve leads, as fairseq-signals defines its `ecg_transformer`. Imports torch at once.

Four convolutions that halve the time each, a layer norm and a projection, positions by a convolution over 128 tokens,
and twelve post-norm blocks. The published embedding is the mean over tokens; 5 s at 500 Hz make 156. Names of tensors
are the checkpoint's.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from embedders.encoders.signals import attend, in_heads, pooled

if TYPE_CHECKING:
    from embedders.encoders.spec import EncoderConfig, EncoderSpec

# Of pre-training alone, and of classifiers.
_HEADS = ("mask_emb", "quantizer.", "project_q.", "final_proj.", "target_glu.", "proj.")
_POSITIONS = "conv_pos.pos_conv.0."
_NORMED = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, plain: bool) -> None:
        super().__init__()
        self.heads, self.plain = heads, plain
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, tokens: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            in_heads(projection(tokens), self.heads) for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed: torch.Tensor = self.out_proj(
            attend(query, key, value, real, plain=self.plain).transpose(1, 2).flatten(2)
        )
        return mixed


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int, inner: int, plain: bool) -> None:
        super().__init__()
        self.self_attn = _Attention(width, heads, plain)
        self.self_attn_layer_norm, self.final_layer_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, tokens: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        tokens = self.self_attn_layer_norm(tokens + self.self_attn(tokens, real))
        normed: torch.Tensor = self.final_layer_norm(tokens + self.fc2(functional.gelu(self.fc1(tokens))))
        return normed


class _Positions(nn.Module):
    """A convolution whose weights are kept as directions and, for each place of the kernel, a length."""

    def __init__(self, width: int, reach: int, groups: int) -> None:
        super().__init__()
        self.groups, self.padding = groups, reach // 2
        self.weight_g = nn.Parameter(torch.ones(1, 1, reach))
        self.weight_v = nn.Parameter(torch.ones(width, width // groups, reach))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        weight = self.weight_v * (self.weight_g / self.weight_v.norm(dim=(0, 1), keepdim=True))
        return functional.conv1d(tokens, weight, self.bias, padding=self.padding, groups=self.groups)


class EcgFm(nn.Module):
    """The network. `sequence`: it gives its tokens, not their mean."""

    def __init__(
        self, architecture: Mapping[str, Any], shape: tuple[int, ...], *, sequence: bool = False, plain: bool = False
    ) -> None:
        super().__init__()
        width, heads = int(architecture["hidden_size"]), int(architecture["num_attention_heads"])
        self.convolutions, self.sequence = [tuple(layer) for layer in architecture["conv_layers"]], sequence
        layers, before = [], shape[0] - 1
        for number, (channels, kernel, stride) in enumerate(self.convolutions):
            norm = nn.GroupNorm(channels, channels) if number == 0 else nn.Identity()
            convolution = nn.Conv1d(before, channels, kernel, stride=stride, bias=False)
            layers.append(nn.Sequential(convolution, nn.Identity(), norm))
            before = channels
        self.feature_extractor = nn.ModuleDict({"conv_layers": nn.ModuleList(layers)})
        self.layer_norm = nn.LayerNorm(before)
        self.post_extract_proj = nn.Linear(before, width)
        reach, groups = int(architecture["conv_pos"]), int(architecture["conv_pos_groups"])
        self.conv_pos = nn.ModuleDict({"pos_conv": nn.ModuleList([_Positions(width, reach, groups)])})
        inner, depth = int(architecture["ffn_size"]), int(architecture["num_hidden_layers"])
        blocks = nn.ModuleList(_Layer(width, heads, inner, plain) for _ in range(depth))
        self.encoder = nn.ModuleDict({"layers": blocks, "layer_norm": nn.LayerNorm(width)})

    @property
    def _convolutional(self) -> nn.ModuleList:
        return cast(nn.ModuleList, self.feature_extractor["conv_layers"])

    @property
    def _positions(self) -> nn.Module:
        return cast(nn.ModuleList, self.conv_pos["pos_conv"])[0]

    @property
    def _blocks(self) -> nn.ModuleList:
        return cast(nn.ModuleList, self.encoder["layers"])

    def tokens(self, signal: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, 13, samples) to tokens (n, t, width), and which of them (n, t) are of signal alone."""
        features = signal[:, :-1]
        for layer in self._convolutional:
            features = functional.gelu(layer(features))
        tokens: torch.Tensor = self.post_extract_proj(self.layer_norm(features.transpose(1, 2)))
        lengths = signal[:, -1].sum(dim=1).long()
        for _, kernel, stride in self.convolutions:
            lengths = torch.div(lengths - kernel, stride, rounding_mode="floor") + 1
        real = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
        positions = self._positions(tokens.transpose(1, 2))
        tokens = tokens + functional.gelu(positions[..., : tokens.shape[1]]).transpose(1, 2)
        tokens = self.encoder["layer_norm"](tokens.masked_fill(~real[..., None], 0.0))
        for block in self._blocks:
            tokens = block(tokens, real)
        return tokens, real

    def forward(self, signal: torch.Tensor) -> torch.Tensor:
        """(n, 13, samples) to (n, width), or (n, t, width)."""
        tokens, real = self.tokens(signal)
        return tokens if self.sequence else pooled(tokens, real)


def ecg_fm_tokens(
    architecture: Mapping[str, Any], preprocess: Any, units: npt.NDArray[Any] | None
) -> npt.NDArray[np.int64]:
    """How many tokens the convolutions make of units (n, 12, samples)."""
    length = preprocess.samples if units is None else units.shape[2]
    for _, kernel, stride in architecture["conv_layers"]:
        length = (length - kernel) // stride + 1
    return np.full(1 if units is None else len(units), length, np.int64)


def plain_ecg_fm(architecture: Mapping[str, Any], shape: tuple[int, ...]) -> nn.Module:
    """The network without weights, its products visible."""
    return EcgFm(architecture, shape, plain=True)


def build_ecg_fm(config: "EncoderConfig", spec: "EncoderSpec") -> nn.Module:
    """ECG-FM with the weights of `config`, pre-trained or fine-tuned; heads of either are left out."""
    from embedders.encoders.weights import checkpoint_names, with_weights

    path, sequence = config.checkpoint(), spec.output == "sequence"
    tuned = path is not None and any(name.startswith("encoder.feature_extractor.") for name in checkpoint_names(path))
    return with_weights(
        lambda: EcgFm(spec.architecture, spec.preprocess.shape, sequence=sequence),
        path,
        partial(ecg_fm_names, prefix="encoder." if tuned else ""),
    )


def ecg_fm_names(name: str, tensor: torch.Tensor, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """A checkpoint's tensor under the model's name; weight norm has either of torch's namings.

    Args:
        prefix: of all names of the network itself, where a classifier stands beside it.
    """
    if not name.startswith(prefix):
        return
    name = name.removeprefix(prefix)
    if name.startswith(_HEADS):
        return
    if name.startswith(_POSITIONS):
        last = name.removeprefix(_POSITIONS)
        name = _POSITIONS + _NORMED.get(last, last)
    yield name, tensor
