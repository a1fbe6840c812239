"""The networks that encoders are made of: one line a network. A modality with a network of its own adds it here."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Network:
    """One architecture.

    Attributes:
        architecture: keyword arguments of transformers' Dinov2Config; part of the hash that names a store.
        build: `module:name` of a function of an EncoderConfig and an EncoderSpec that gives a torch module.
        pretrained: it takes weights, and its vectors are as wide as its hidden layers.
    """

    architecture: Mapping[str, Any]
    build: str
    pretrained: bool = True

    def model(self, config: Any, spec: Any) -> "nn.Module":
        """The network with its weights, on the CPU."""
        module, name = self.build.split(":")
        model: nn.Module = getattr(importlib.import_module(module), name)(config, spec)
        return model


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
    "random-dinov2": Network(
        {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 16, "image_size": 224},
        "embedders.encoders.build:build_random",
        pretrained=False,
    ),
}  # fmt: skip
