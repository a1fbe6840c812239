"""The encoders: real architectures with weights from a local path, and a small random stand-in that says so.

A new network is one entry of `embedders.encoders.registry.NETWORKS`, which names the function that builds it.
"""

from collections.abc import Mapping
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedders.encoders.device import open_device
from embedders.encoders.encoder import Encoder, Figures, Pending
from embedders.encoders.golden import check_golden
from embedders.encoders.registry import NETWORKS
from embedders.encoders.spec import EncoderConfig, EncoderSpec, describe, encoder_spec

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "Encoder", "EncoderConfig", "EncoderSpec", "Figures", "Pending", "build_encoder", "build_untrained",
    "check_golden", "encoder_spec", "get_encoder",
]  # fmt: skip


@lru_cache(maxsize=4)
def get_encoder(config: EncoderConfig, modality: str, device_index: int | None = None) -> Encoder:
    """The encoder of `config` for `modality`, built once per process; `device_index` chooses among several GPUs.

    Raises:
        TimeloomError: weights that are missing or do not fit; a GPU that was asked for, or that the machine has, and
            that torch cannot use.
    """
    return build_encoder(config, modality, device_index=device_index)


def build_encoder(
    config: EncoderConfig,
    modality: str,
    _architecture: Mapping[str, Any] | None = None,
    *,
    device_index: int | None = None,
) -> Encoder:
    """As `get_encoder`, uncached. Tests give a small `_architecture` of the same classes."""
    device = open_device(config.device_kind, config.device, device_index)
    spec = encoder_spec(config, modality, _architecture)
    return Encoder(spec, NETWORKS[config.name].model(config, spec), device)


def build_untrained(
    name: str, modality: str, *, device_index: int | None = None, seed: int = 0, **settings: Any
) -> Encoder:
    """A real architecture with untrained weights: as fast as the real one, for benchmarks; its vectors mean nothing.

    Args:
        settings: of `EncoderConfig`: device, precision, compile, batch_size.
    """
    import torch

    from embedders.encoders.heads import ClassToken, transformer

    width = int(NETWORKS[name].architecture["hidden_size"])
    config = EncoderConfig(name=name, width=width, weights=Path(f"untrained-{seed}"), **settings)
    device = open_device(config.device_kind, config.device, device_index)
    spec = describe(config, modality, sha256(f"untrained {seed}".encode()).hexdigest())
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        with device:
            backbone = transformer({**spec.architecture, "image_size": spec.preprocess.shape[-1]})
    return Encoder(spec, ClassToken(backbone), device)


def build_pretrained(config: EncoderConfig, spec: EncoderSpec) -> "nn.Module":
    """A vision transformer with the weights of `config`."""
    from embedders.encoders.heads import AllTokens, ClassToken, transformer
    from embedders.encoders.weights import with_weights

    architecture = {**spec.architecture, "image_size": spec.preprocess.shape[-1]}
    backbone = with_weights(lambda: transformer(architecture), config.checkpoint())
    return ClassToken(backbone) if spec.tokens_of(None) is None else AllTokens(backbone)


def build_random(config: EncoderConfig, spec: EncoderSpec) -> "nn.Module":
    """A small DINOv2 with weights of the seed of `config`, widened to its vectors' length."""
    from embedders.encoders.heads import RandomFeatures, dinov2

    return RandomFeatures(dinov2(spec.architecture), int(spec.architecture["hidden_size"]), config.width, config.seed)
