"""The networks that encoders are made of: one line a network. A modality with a network of its own adds it here."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import nn


@dataclass(frozen=True)
class Network:
    """One architecture.

    Attributes:
        architecture: its sizes, of a vision transformer keyword arguments of transformers' Dinov2Config, or of its
            ViTConfig where `model_type` is vit; part of the hash that names a store. `hidden_size` is the width of its
            vectors.
        build: `module:name` of a function of an EncoderConfig and an EncoderSpec that gives a torch module.
        pretrained: it takes weights, and its vectors are as wide as its hidden layers.
        form: what it takes, as `embedders.inputs.common.PreprocessSpec.form` says it.
        inputs: fields of the modality's PreprocessSpec that it was made for, where they are not the usual ones.
        inputs_of: `module:name` of a function of an EncoderConfig that gives such fields where its files decide them.
        described_by: `module:name` of a function of a checkpoint's path that gives sizes that only the checkpoint
            knows; they are laid over `architecture`.
        places: the field of the PreprocessSpec that is no larger than the checkpoint's number of places, and where its
            sizes say that.
        tokens: `module:name` of a function of the architecture, the PreprocessSpec, and units (n, ...) or None, that
            gives how many vectors each unit makes where sequences are asked for (n,), or a whole unit (1,). Without it
            a unit makes one.
        plain: `module:name` of a function of the architecture and the input's shape that gives the network without its
            weights, all of its matrix products visible; their FLOPs are counted.
    """

    architecture: Mapping[str, Any]
    build: str
    pretrained: bool = True
    form: str = "image"
    inputs: Mapping[str, Any] = field(default_factory=dict)
    inputs_of: str = ""
    described_by: str = ""
    places: tuple[str, str] | None = None
    tokens: str = ""
    plain: str = "embedders.encoders.heads:plain_transformer"

    def inputs_by(self, config: Any) -> dict[str, Any]:
        """What `inputs_of` gives.

        Raises:
            TimeloomError: the files do not say it.
        """
        return dict(_imported(self.inputs_of)(config)) if self.inputs_of else {}

    def model(self, config: Any, spec: Any) -> "nn.Module":
        """The network with its weights, on the CPU."""
        model: nn.Module = _imported(self.build)(config, spec)
        return model

    def architecture_of(self, checkpoint: Path | None) -> dict[str, Any]:
        """The architecture of a checkpoint.

        Raises:
            TimeloomError: the checkpoint does not say its sizes, or is of another network.
        """
        found = {} if not self.described_by else _imported(self.described_by)(checkpoint)
        return {**self.architecture, **found}

    def without_weights(self, architecture: Mapping[str, Any], shape: tuple[int, ...]) -> "nn.Module":
        """The network that FLOPs are counted of."""
        model: nn.Module = _imported(self.plain)(architecture, shape)
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


def _signal(hidden: int, layers: int, heads: int, **others: Any) -> dict[str, Any]:
    return {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads, **others}


_ECG_VIT: dict[str, Any] = {
    "build": "embedders.encoders.signals:build_ecg_vit",
    "form": "signal",
    "tokens": "embedders.encoders.signals:vit_tokens",
    "plain": "embedders.encoders.signals:plain_ecg_vit",
}
# CSFM takes 250 Hz, cleaned by NeuroKit2 and standardised lead by lead.
_CSFM: dict[str, Any] = {
    "build": "embedders.encoders.csfm:build_csfm",
    "form": "signal",
    "inputs": {"rate": 250, "cleaning": "neurokit", "standardise": True},
    "tokens": "embedders.encoders.csfm:csfm_tokens",
    "plain": "embedders.encoders.csfm:plain_csfm",
}


_BERT: dict[str, Any] = {
    "form": "text",
    "inputs_of": "embedders.inputs.note:vocabulary_of",
    "tokens": "embedders.encoders.bert:bert_tokens",
    "plain": "embedders.encoders.bert:plain_bert",
}
_CHECKPOINT: dict[str, Any] = {
    "described_by": "embedders.encoders.bert:described",
    "places": ("length", "max_position_embeddings"),
}


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
    "ecg-vit-s": Network(_signal(384, 12, 6, patch_size=50, pool="class token"), **_ECG_VIT),
    "ecg-vit-b": Network(_signal(768, 12, 12, patch_size=50, pool="class token"), **_ECG_VIT),
    "ecg-fm": Network(
        _signal(
            768, 12, 12, ffn_size=3072, conv_layers=[[256, 2, 2]] * 4, conv_pos=128, conv_pos_groups=16, pool="mean"
        ),
        "embedders.encoders.ecg_fm:build_ecg_fm",
        form="signal",
        inputs={"seconds": 5.0, "standardise": True},
        tokens="embedders.encoders.ecg_fm:ecg_fm_tokens",
        plain="embedders.encoders.ecg_fm:plain_ecg_fm",
    ),
    "csfm-tiny": Network(_signal(768, 6, 8, ffn_size=1024, patch_size=25, pool="class token"), **_CSFM),
    "csfm-base": Network(_signal(768, 12, 12, ffn_size=3072, patch_size=25, pool="class token"), **_CSFM),
    "csfm-large": Network(_signal(1024, 16, 24, ffn_size=4096, patch_size=25, pool="class token"), **_CSFM),
    "random-ecg": Network(
        _signal(64, 2, 4, patch_size=50, pool="class token, mean and deviation"),
        **{**_ECG_VIT, "build": "embedders.encoders.signals:build_random_ecg"},
        pretrained=False,
    ),
    "bert": Network({"pool": "class token"}, "embedders.encoders.bert:build_bert", **_BERT, **_CHECKPOINT),
    "bert-mean": Network({"pool": "mean"}, "embedders.encoders.bert:build_bert", **_BERT, **_CHECKPOINT),
    "random-bert": Network(
        {
            "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256,
            "vocab_size": 40_000, "max_position_embeddings": 512, "pool": "class token, mean and deviation",
        },
        "embedders.encoders.bert:build_random_bert",
        pretrained=False,
        **_BERT,
    ),
}  # fmt: skip
