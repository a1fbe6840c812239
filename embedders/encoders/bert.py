"""BERT: transformers' BertModel of any size, as a checkpoint's own config.json describes it.

Imports torch at once: import it inside functions.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from embedders.encoders.heads import RandomFeatures
from embedders.encoders.signals import pooled
from extractors.note.read import NO_TOKEN
from warehouse.errors import TimeloomError

if TYPE_CHECKING:
    from embedders.encoders.spec import EncoderConfig, EncoderSpec

POOL = "pool"  # of an architecture: what stands for a whole window
CONFIG = "config.json"
# What of a checkpoint's config.json decides how weights become vectors, and what stands for it where it is not given.
_SIZES: Mapping[str, Any] = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
    "vocab_size": 30_522, "max_position_embeddings": 512, "type_vocab_size": 2, "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
}  # fmt: skip
_HEADS = ("cls.", "pooler.", "classifier.", "qa_outputs.", "embeddings.position_ids")


def described(checkpoint: Path | None) -> dict[str, Any]:
    """The sizes of a BERT, by the config.json beside its weights.

    Raises:
        TimeloomError: it is missing, damaged, or of another network.
    """
    assert checkpoint is not None
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    try:
        said = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        kind = str(said.get("model_type", "bert"))
        positions = str(said.get("position_embedding_type", "absolute"))
        sizes = {name: type(usual)(said.get(name, usual)) for name, usual in _SIZES.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise TimeloomError(
            f"weights {checkpoint.name} have no {CONFIG} that says their sizes", remedy="copy the model's whole folder"
        ) from error
    if kind != "bert" or positions != "absolute":
        found = f"a {kind}" if kind != "bert" else f"a BERT with {positions} positions"
        raise TimeloomError(
            f"weights {checkpoint.name} are of {found}", remedy="give the folder of a BertModel with absolute positions"
        )
    return sizes


def bert(architecture: Mapping[str, Any], attention: str = "sdpa") -> nn.Module:
    """transformers' BertModel of an architecture, without its pooler; untrained weights."""
    from transformers import BertConfig, BertModel

    settings: dict[str, Any] = {name: value for name, value in architecture.items() if name != POOL}
    settings["attn_implementation"] = attention
    return cast("nn.Module", BertModel(BertConfig(**settings), add_pooling_layer=False))


def hidden_states(backbone: nn.Module, windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows (n, 2, length) as `NoteSpec` makes them, to tokens (n, length, hidden) and which are real (n, length)."""
    ids, real = windows[:, 0].long(), windows[:, 1] > 0
    # A whole mask, so that what is computed is the same whether or not another window of the batch is filled up. The
    # first place is always seen: of rows that are filled up altogether nothing would be left.
    seen = real.clone()
    seen[:, 0] = True
    mask = seen[:, None, None, :].expand(-1, 1, ids.shape[1], -1)
    tokens: torch.Tensor = backbone(input_ids=ids, attention_mask=mask).last_hidden_state
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
        tokens: torch.Tensor = self.backbone(input_ids=windows[:, 0].long()).last_hidden_state
        return tokens


def plain_bert(architecture: Mapping[str, Any], shape: tuple[int, ...]) -> nn.Module:
    """The network without weights, its products visible."""
    return _Plain(bert(architecture, attention="eager"))


def build_bert(config: "EncoderConfig", spec: "EncoderSpec") -> nn.Module:
    """BERT with the weights of `config`; its pooler and its heads are left out."""
    from embedders.encoders.weights import with_weights

    backbone = with_weights(lambda: bert(spec.architecture), config.checkpoint(), bert_names)
    # They are no part of a checkpoint.
    embeddings = cast("Any", backbone).embeddings
    embeddings.position_ids = torch.arange(int(spec.architecture["max_position_embeddings"]))[None]
    embeddings.token_type_ids = torch.zeros_like(embeddings.position_ids)
    return Bert(backbone, sequence=spec.output == "sequence", mean=spec.architecture[POOL] == "mean")


def bert_names(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """A checkpoint's tensor under the model's name; of old checkpoints, whose norms have a gamma and a beta, too."""
    name = name.removeprefix("bert.").replace("LayerNorm.gamma", "LayerNorm.weight")
    name = name.replace("LayerNorm.beta", "LayerNorm.bias")
    if not name.startswith(_HEADS):
        yield name, tensor


def build_random_bert(config: "EncoderConfig", spec: "EncoderSpec") -> nn.Module:
    """A small BERT with weights of the seed of `config`, widened to its vectors' length."""
    backbone = bert(spec.architecture)
    return RandomBert(backbone, spec.architecture, config.width, config.seed, spec.output == "sequence")
