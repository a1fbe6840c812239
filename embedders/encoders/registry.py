"""The networks that encoders are made of: one line a network. A modality with a network of its own adds it here."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import nn


@dataclass(frozen=True)
class Network:
    """One architecture.

    Attributes:
        architecture: keyword arguments of transformers' Dinov2Config, or of its ViTConfig where `model_type` is vit;
            part of the hash that names a store.
        build: `module:name` of a function of an EncoderConfig and an EncoderSpec that gives a torch module.
        pretrained: it takes weights, and its vectors are as wide as its hidden layers.
        inputs: fields of the modality's PreprocessSpec that it was made for, where they are not the usual ones.
        tokens: `module:name` of a function of the architecture, the PreprocessSpec, and units (n, ...) or None, that
            gives how many vectors each unit makes where sequences are asked for (n,), or a whole unit (1,). Without it
            a unit makes one.
    """

    architecture: Mapping[str, Any]
    build: str
    pretrained: bool = True
    inputs: Mapping[str, Any] = field(default_factory=dict)
    tokens: str = ""

    def model(self, config: Any, spec: Any) -> "nn.Module":
        """The network with its weights, on the CPU."""
        model: nn.Module = _imported(self.build)(config, spec)
        return model

    def tokens_of(
        self, architecture: Mapping[str, Any], preprocess: Any, units: "npt.NDArray[Any] | None"
    ) -> "npt.NDArray[np.int64] | None":
        """What `tokens` gives; None where a unit makes one vector."""
        if not self.tokens:
            return None
        counts: npt.NDArray[np.int64] = _imported(self.tokens)(architecture, preprocess, units)
        return counts


def _imported(reference: str) -> Callable[..., Any]:
    module, name = reference.split(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found


_VIT_BASE = {
    "model_type": "vit", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
    "intermediate_size": 3072, "patch_size": 16, "image_size": 224,
}  # fmt: skip

# GigaPath's tile encoder is a ViT-g of 40 blocks with gated MLPs. The random stand-in keeps the shape of the others at
# a thousandth of their size.
NETWORKS: dict[str, Network] = {
    "dinov2-vitl14": Network(
        {
            "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 14,
            "image_size": 518,
        },
        "embedders.encoders.build:build_pretrained",
    ),
    "gigapath-tile": Network(
        {
            "hidden_size": 1536, "num_hidden_layers": 40, "num_attention_heads": 24, "patch_size": 16,
            "image_size": 224, "use_swiglu_ffn": True,
        },
        "embedders.encoders.build:build_pretrained",
    ),
    "rad-dino": Network(
        {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "patch_size": 14, "image_size": 518},
        "embedders.encoders.build:build_pretrained",
        inputs={"side": 518, "mean": (0.5307, 0.5307, 0.5307), "std": (0.2583, 0.2583, 0.2583)},
        tokens="embedders.encoders.heads:patch_tokens",
    ),
    "vit-mae": Network(
        {**_VIT_BASE, "layer_norm_eps": 1e-12},
        "embedders.encoders.build:build_pretrained",
        tokens="embedders.encoders.heads:patch_tokens",
    ),
    "biomedclip": Network(
        {**_VIT_BASE, "layer_norm_eps": 1e-6},
        "embedders.encoders.build:build_pretrained",
        inputs={
            "mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711),
        },
        tokens="embedders.encoders.heads:patch_tokens",
    ),
    "random-dinov2": Network(
        {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 16, "image_size": 224},
        "embedders.encoders.build:build_random",
        pretrained=False,
    ),
}  # fmt: skip
