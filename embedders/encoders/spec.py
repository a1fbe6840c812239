"""What an encoder is: its configuration, its architecture, and the hash that names the store of its vectors.

Everything that changes a stored byte stands in the hash: another choice fills another store and leaves the old one.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from embedders.encoders.device import wanted_device
from embedders.encoders.registry import NETWORKS
from embedders.encoders.weights import hub_snapshot, weights_sha256
from embedders.inputs.common import PreprocessSpec, spec_hash
from embedders.inputs.registry import SPECS
from extractors.vectors.settings import ImportedConfig
from warehouse.configuration import LocatedPath, Settings
from warehouse.errors import TimeloomError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Precision = Literal["float32", "bf16"]

ARITHMETIC_VERSION = 2  # raise when a change in how weights become vectors changes a bit

BATCH_SIZES: Mapping[str, int] = {"cpu": 32, "cuda": 128}


class EncoderConfig(Settings):
    """Which encoder makes a modality's vectors, and how.

    `alias`: what profiles and readers call it; the name of its network where not given. Nothing stored depends on it.
    `width`: the vectors' length. `weights`: a local .safetensors file or folder, for the real encoders; or `hub_id`
    with `revision`, a full commit, where the site sets `allow_download`. `seed`: of the random encoder's weights.
    `tokenizer`: of networks that read texts, a folder with their vocabulary where it does not lie with the weights.
    `device`: auto takes the GPU where the machine has one, and the CPU for the random encoder. `precision`: auto is
    bf16 on a GPU and float32 on the CPU. `compile`: whether torch.compile is used; auto is yes on a GPU. `output`: one
    mean per item, or its units' vectors: one each, or all tokens of networks that have some. `batch_size`: units of one
    forward pass; 128 on a GPU and 32 on the CPU if not given. `imported`: the vectors were made elsewhere; then it says
    `name` and `width`, only `output` and `store_dtype` may stand beside it, and the type is stored as it was declared.
    """

    name: str
    alias: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_-]{1,64}$")
    width: int = Field(gt=0)
    weights: LocatedPath | None = None
    tokenizer: LocatedPath | None = None
    hub_id: str | None = Field(default=None, pattern=r"^[\w.-]+/[\w.-]+$")
    revision: str | None = Field(default=None, pattern=r"^[0-9a-f]{40}$")
    allow_download: bool = False
    seed: int = 0
    device: Literal["cpu", "cuda", "auto"] = "auto"
    precision: Literal["auto", "float32", "bf16"] = "auto"
    compile: Literal["auto"] | bool = "auto"
    output: Literal["mean", "sequence"] = "mean"
    store_dtype: Literal["float16", "float32"] = "float16"
    batch_size: int | None = Field(default=None, ge=1, le=4096)
    imported: ImportedConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _declared(cls, raw: Any) -> Any:
        """What a declaration of imported vectors says of name, width and type, for those who ask the encoder."""
        imported = raw.get("imported") if isinstance(raw, dict) else None
        if not isinstance(imported, dict):
            return raw
        # Where they lack, the declaration's own error says so.
        said = {"name": imported.get("name", ""), "width": imported.get("width", 1)}
        dtype = "float16" if imported.get("dtype") == "float16" else "float32"
        return {"store_dtype": dtype, **said, **raw}

    @model_validator(mode="after")
    def _fits(self) -> "EncoderConfig":
        if self.imported is not None:
            if (self.name, self.width) != (self.imported.name, self.imported.width):
                raise ValueError("`imported` says name and width: leave them out beside it")
            for key in ("weights", "tokenizer", "hub_id", "revision", "batch_size"):
                if getattr(self, key) is not None:
                    raise ValueError(f"imported vectors take no {key}")
            if self.output == "sequence" and self.imported.shape == "item":
                raise ValueError("an item with one vector has no sequence: leave `output` out")
            return self
        if self.name not in NETWORKS:
            raise ValueError(f"there is no encoder {self.name}; known are {', '.join(NETWORKS)}")
        if not self.pretrained:
            if self.weights is not None or self.hub_id is not None:
                raise ValueError(f"{self.name} takes no weights")
            return self
        if self.hub_id is not None:
            if self.weights is not None:
                raise ValueError("give either `weights` or `hub_id`")
            if not self.allow_download:
                raise ValueError("`hub_id` fetches from the internet: set `allow_download: true`, or give `weights`")
            if self.revision is None:
                raise ValueError("`hub_id` needs `revision`, the full commit, so that its weights never change")
        elif self.weights is None:
            raise ValueError(
                f"{self.name} needs `weights`, a local path: none are shipped and none are fetched unasked"
            )
        hidden_size = NETWORKS[self.name].architecture.get("hidden_size")  # of some the checkpoint says it
        if hidden_size not in (None, self.width):
            raise ValueError(f"{self.name} makes vectors of {hidden_size}")
        return self

    @property
    def called(self) -> str:
        """What profiles and readers call it."""
        return self.alias or self.name

    @property
    def pretrained(self) -> bool:
        """Whether it takes weights; the random encoder's come from its seed."""
        return self.imported is None and NETWORKS[self.name].pretrained

    @property
    def device_kind(self) -> Literal["cpu", "cuda"]:
        """Where this encoder runs on this machine, known without torch. The random one and imports need no GPU."""
        if self.imported is not None:
            return "cpu"
        return "cpu" if not self.pretrained and self.device == "auto" else wanted_device(self.device)

    def checkpoint(self) -> Path | None:
        """The weights' local path; a hub's are fetched the first time. None for the random encoder.

        Raises:
            TimeloomError: the hub does not give them.
        """
        if self.hub_id is not None and self.revision is not None:
            return hub_snapshot(self.hub_id, self.revision)
        return self.weights


@dataclass(frozen=True)
class StoreSpec:
    """What identifies the vectors of a store, whether they are made or imported."""

    name: str  # of NETWORKS, or as it was declared
    label: str  # for people: releases and reports show it
    store_name: str  # the folder of its vectors: another encoder, weight or preprocessing has another
    spec_hash: str
    width: int
    weights_sha256: str | None
    output: Literal["mean", "sequence"]
    store_dtype: Literal["float16", "float32"]


@dataclass(frozen=True)
class EncoderSpec(StoreSpec):
    """What identifies an encoder's output, known without building it."""

    preprocess: PreprocessSpec
    architecture: Mapping[str, Any]
    precision: Precision  # resolved: never auto
    batch_size: int  # resolved
    compile: bool  # resolved

    @property
    def vector_shape(self) -> tuple[int, ...]:
        """What a whole unit becomes: (width,), or (tokens, width) where its network has tokens and they are stored."""
        counts = self.tokens_of(None)
        return (self.width,) if counts is None else (int(counts[0]), self.width)

    def tokens_of(self, units: "npt.NDArray[Any] | None") -> "npt.NDArray[np.int64] | None":
        """How many vectors each of some units (n, ...) makes (n,), of a whole one (1,); None where each makes one."""
        if self.output != "sequence":
            return None
        return NETWORKS[self.name].tokens_of(self.architecture, self.preprocess, units)


def preprocess_of(name: str, modality: str) -> PreprocessSpec:
    """How the units of a modality become a network's input.

    Raises:
        TimeloomError: the modality has no preprocessing, or the network takes something else.
    """
    preprocess, network = SPECS.get(modality), NETWORKS[name]
    if preprocess is None:
        raise TimeloomError(f"no encoder for modality {modality}", remedy=f"one of {', '.join(sorted(SPECS))}")
    if network.form != preprocess.form:
        fitting = ", ".join(other for other, known in NETWORKS.items() if known.form == preprocess.form)
        raise TimeloomError(
            f"{name} takes {network.form}s, and units of {modality} are {preprocess.form}s", remedy=f"choose {fitting}"
        )
    return replace(preprocess, **network.inputs)


def inputs_of(config: EncoderConfig, modality: str) -> PreprocessSpec:
    """How the units of a modality become an encoder's input, as far as that hangs on no size of its weights.

    Raises:
        TimeloomError: as `preprocess_of`; or the encoder's files do not say what they must.
    """
    return replace(preprocess_of(config.name, modality), **NETWORKS[config.name].inputs_by(config))


def cut_for(config: EncoderConfig, modality: str) -> str:
    """The way in which a modality's items must be cut for an encoder; empty where they are cut in one way alone.

    Raises:
        TimeloomError: as `inputs_of`.
    """
    return "" if config.imported else getattr(inputs_of(config, modality), "cut", "")


def settings_at_odds(config: EncoderConfig, modality: str, settings: Settings) -> str | None:
    """Which of a modality's settings is not what a network was made for, in words; None where all are.

    A field that settings and PreprocessSpec share, as a signal's rate, decides what is read and what is expected.

    Raises:
        TimeloomError: as `preprocess_of`.
    """
    name = config.name
    preprocess = preprocess_of(name, modality)
    if config.tokenizer is not None and not NETWORKS[name].inputs_of:
        return f"{name} reads no texts: leave `tokenizer` of modalities.{modality}.encoder out"
    for key in sorted(preprocess.__dataclass_fields__.keys() & type(settings).model_fields.keys()):
        wanted = getattr(preprocess, key)
        if getattr(settings, key) != wanted:
            return f"{name} takes {key} {wanted}: set modalities.{modality}.{key}: {wanted}, or choose another encoder"
    for key, most in getattr(preprocess, "most", {}).items():
        if getattr(settings, key) > most:
            return f"{name} takes {key} {most} at most: set modalities.{modality}.{key}, or choose another encoder"
    return None


def encoder_spec(config: EncoderConfig, modality: str, _architecture: Mapping[str, Any] | None = None) -> EncoderSpec:
    """Label, store name and hashes of `config` for `modality`; hashes the weights but loads nothing.

    Raises:
        TimeloomError: the modality has no preprocessing; the weights are missing, or are of another width or network.
    """
    path = config.checkpoint()
    return describe(config, modality, None if path is None else weights_sha256(path), _architecture)


def store_spec(config: EncoderConfig, modality: str) -> StoreSpec:
    """What identifies a store, of an encoder as `encoder_spec` says, or of imported vectors as they were declared.

    Where the files lie, and what names their items, is no part of it: files that move fill the same store.
    """
    imported = config.imported
    if imported is None:
        return encoder_spec(config, modality)
    declared = imported.model_dump(mode="json", include={"name", "version", "width", "dtype", "shape", "features"})
    described = {"kind": "imported", **declared, "output": config.output, "store_dtype": config.store_dtype}
    digest = sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    version = f", version {imported.version}" if imported.version else ""
    return StoreSpec(
        name=imported.name,
        label=f"{imported.name}{version}, imported",
        store_name=f"{imported.name}-{digest[:12]}",
        spec_hash=digest,
        width=imported.width,
        weights_sha256=None,
        output=config.output,
        store_dtype=config.store_dtype,
    )


def describe(
    config: EncoderConfig, modality: str, weights: str | None, _architecture: Mapping[str, Any] | None = None
) -> EncoderSpec:
    """As `encoder_spec`, of weights whose hash is known."""
    network, preprocess = NETWORKS[config.name], inputs_of(config, modality)
    architecture = dict(_architecture or network.architecture_of(config.checkpoint()))
    if config.pretrained and architecture["hidden_size"] != config.width:
        raise TimeloomError(
            f"{config.name} with these weights makes vectors of {architecture['hidden_size']}, not of {config.width}",
            remedy=f"set modalities.{modality}.encoder.width: {architecture['hidden_size']}",
        )
    if network.places is not None:
        field, size = network.places
        preprocess = replace(preprocess, **{field: min(getattr(preprocess, field), int(architecture[size]))})
    kind = config.device_kind
    usual: Precision = "bf16" if kind == "cuda" else "float32"
    precision = usual if config.precision == "auto" else config.precision
    batch_size = config.batch_size or BATCH_SIZES[kind]
    compiled = kind == "cuda" if config.compile == "auto" else config.compile
    described = {
        "arithmetic": ARITHMETIC_VERSION,
        "name": config.name,
        "width": config.width,
        "seed": None if config.pretrained else config.seed,
        "architecture": architecture,
        "weights": weights,
        "preprocess": spec_hash(preprocess),
        "precision": precision,
        "compile": compiled,
        "batch_size": batch_size,
        "output": config.output,
        "store_dtype": config.store_dtype,
    }
    digest = sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    label = config.name if weights is None else f"{config.name}, weights {weights[:12]}"
    if not config.pretrained:
        label = f"{config.name}-{config.width}-seed{config.seed}, for demonstration only"
    return EncoderSpec(
        name=config.name,
        label=label,
        store_name=f"{config.name}-{digest[:12]}",
        spec_hash=digest,
        width=config.width,
        weights_sha256=weights,
        preprocess=preprocess,
        architecture=architecture,
        precision=precision,
        batch_size=batch_size,
        compile=compiled,
        output=config.output,
        store_dtype=config.store_dtype,
    )
