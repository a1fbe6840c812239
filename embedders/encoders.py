"""The encoders: real architectures with weights from a local path, and a small random stand-in that says so.

A new encoder is one entry in `_BUILDERS`; a new modality is one preprocessing spec in `_SPECS` and one line in
`embedders.runner.READERS`.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from embedders.preprocess import CtSpec, PreprocessSpec, TileSpec, spec_hash
from embedders.weights import load_weights, weights_sha256
from warehouse.errors import TimeloomError

if TYPE_CHECKING:
    import torch
    from torch import nn

EncoderName = Literal["dinov2-vitl14", "gigapath-tile", "random-dinov2"]

# Architectures, as keyword arguments of transformers' Dinov2Config. GigaPath's tile encoder is a ViT-g of 40 blocks
# with gated MLPs; the random stand-in keeps the shape of the others at a thousandth of their size.
ARCHITECTURES: Mapping[EncoderName, Mapping[str, Any]] = {
    "dinov2-vitl14": {
        "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 14, "image_size": 518,
    },
    "gigapath-tile": {
        "hidden_size": 1536, "num_hidden_layers": 40, "num_attention_heads": 24, "patch_size": 16, "image_size": 224,
        "use_swiglu_ffn": True,
    },
    "random-dinov2": {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 16, "image_size": 224,
    },
}  # fmt: skip

_SPECS: Mapping[str, PreprocessSpec] = {"ct": CtSpec(), "wsi": TileSpec()}


class EncoderConfig(BaseModel):
    """Which encoder makes a modality's vectors.

    `width`: the vectors' length. `weights`: a local .safetensors file or Hugging Face folder, for the real encoders.
    `seed`: of the random encoder's weights.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: EncoderName
    width: int = Field(gt=0)
    weights: Path | None = None
    seed: int = 0
    device: Literal["cpu", "cuda", "auto"] = "auto"

    @model_validator(mode="after")
    def _fits(self) -> "EncoderConfig":
        if self.name == "random-dinov2":
            if self.weights is not None:
                raise ValueError("random-dinov2 takes no weights")
            return self
        if self.weights is None:
            raise ValueError(f"{self.name} needs `weights`, a local path: none are shipped and none are fetched")
        if self.width != ARCHITECTURES[self.name]["hidden_size"]:
            raise ValueError(f"{self.name} makes vectors of {ARCHITECTURES[self.name]['hidden_size']}")
        return self


@dataclass(frozen=True)
class EncoderSpec:
    """What identifies an encoder's output, known without building it."""

    label: str  # for people: releases and reports show it
    store_name: str  # the folder of its vectors: another encoder, weight or preprocessing has another
    spec_hash: str
    width: int
    weights_sha256: str | None
    preprocess: PreprocessSpec
    architecture: Mapping[str, Any]


def encoder_spec(config: EncoderConfig, modality: str, _architecture: Mapping[str, Any] | None = None) -> EncoderSpec:
    """Label, store name and hashes of `config` for `modality`; hashes the weights but loads nothing.

    Raises:
        TimeloomError: the modality has no preprocessing, or the weights are missing.
    """
    preprocess = _SPECS.get(modality)
    if preprocess is None:
        raise TimeloomError(f"no encoder for modality {modality}", remedy=f"one of {', '.join(sorted(_SPECS))}")
    architecture = dict(_architecture or ARCHITECTURES[config.name])
    sha = None if config.weights is None else weights_sha256(config.weights)
    described = {
        "name": config.name,
        "width": config.width,
        "seed": config.seed if config.name == "random-dinov2" else None,
        "architecture": architecture,
        "weights": sha,
        "preprocess": spec_hash(preprocess),
    }
    digest = sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    label = config.name if sha is None else f"{config.name}, weights {sha[:12]}"
    if config.name == "random-dinov2":
        label = f"random-dinov2-{config.width}-seed{config.seed}, for demonstration only"
    return EncoderSpec(label, f"{config.name}-{digest[:12]}", digest, config.width, sha, preprocess, architecture)


class Encoder:
    """Preprocessing and model on one device. `encode` is deterministic on the CPU for equal input and thread count."""

    def __init__(self, spec: EncoderSpec, model: "nn.Module", device: "torch.device") -> None:
        self.spec = spec
        self.device = device
        self._model = model.to(device).eval()

    def encode(self, pixels: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Units (n, ...) as their modality's preprocessing takes them, to vectors (n, width) float32."""
        import torch

        with torch.inference_mode():
            vectors = self._model(self.spec.preprocess.apply(pixels, self.device))
        if vectors.shape != (len(pixels), self.spec.width):
            raise TimeloomError(
                f"encoder {self.spec.label} gave vectors of {vectors.shape[-1]} instead of {self.spec.width}",
                remedy="set `width` to what the encoder makes",
            )
        result: npt.NDArray[np.float32] = vectors.to(torch.float32).cpu().numpy()
        return result


@lru_cache(maxsize=4)
def get_encoder(config: EncoderConfig, modality: str) -> Encoder:
    """The encoder of `config` for `modality`, built once per process.

    Raises:
        TimeloomError: weights that are missing or do not fit; "cuda" where there is none.
    """
    return build_encoder(config, modality)


def build_encoder(config: EncoderConfig, modality: str, _architecture: Mapping[str, Any] | None = None) -> Encoder:
    """As `get_encoder`, uncached. Tests give a small `_architecture` of the same classes."""
    spec = encoder_spec(config, modality, _architecture)
    return Encoder(spec, _BUILDERS[config.name](config, spec), _device(config.device))


def _device(name: str) -> "torch.device":
    import torch

    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise TimeloomError(
            "the configuration asks for device cuda and there is none",
            remedy="set device to auto or cpu, or install a CUDA build of torch",
        )
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def dinov2(architecture: Mapping[str, Any]) -> "nn.Module":
    """transformers' Dinov2Model of an architecture, with scaled-dot-product attention and untrained weights."""
    from transformers import Dinov2Config, Dinov2Model

    settings: dict[str, Any] = {**architecture, "attn_implementation": "sdpa"}
    return cast("nn.Module", Dinov2Model(Dinov2Config(**settings)))


def _build_pretrained(config: EncoderConfig, spec: EncoderSpec) -> "nn.Module":
    import torch

    from embedders.heads import ClassToken

    with torch.device("meta"):  # takes no memory: the checkpoint's tensors become the parameters
        backbone = dinov2(spec.architecture)
    load_weights(backbone, cast("Path", config.weights))
    return ClassToken(backbone)


def _build_random(config: EncoderConfig, spec: EncoderSpec) -> "nn.Module":
    from embedders.heads import RandomFeatures

    return RandomFeatures(dinov2(spec.architecture), int(spec.architecture["hidden_size"]), config.width, config.seed)


_BUILDERS: Mapping[EncoderName, Callable[[EncoderConfig, EncoderSpec], "nn.Module"]] = {
    "dinov2-vitl14": _build_pretrained,
    "gigapath-tile": _build_pretrained,
    "random-dinov2": _build_random,
}
