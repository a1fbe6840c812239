"""Loading weights from a local path: safetensors only, hashed, and refused unless names and shapes are exactly right.

Nothing is ever fetched. A checkpoint in the naming of older transformers versions (facebook/dinov2-large as published)
is renamed on the way in.
"""

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from warehouse.errors import TimeloomError
from warehouse.files import sha256_file

if TYPE_CHECKING:
    import torch
    from torch import nn

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
OPTIONAL = {"embeddings.mask_token"}  # used in pre-training only
NAMES_SHOWN = 3

_RENAMES = (
    (re.compile(r"\.attention\.attention\.(query|key|value)\."), lambda match: f".attention.{match[1][0]}_proj."),
    (re.compile(r"\.attention\.output\.dense\."), lambda match: ".attention.o_proj."),
    (re.compile(r"\.mlp\.weights_out\."), lambda match: ".mlp.down_proj."),
)
_PACKED = ".mlp.weights_in."  # gate and up projection in one matrix, gate first


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a checkpoint: a file, or a folder in Hugging Face's layout, sharded or not.

    Raises:
        TimeloomError: the path is missing, or holds no safetensors.
    """
    if path.is_file() and path.suffix == ".safetensors":
        return [path]
    if path.is_dir() and (path / SINGLE).is_file():
        return [path / SINGLE]
    if path.is_dir() and (path / INDEX).is_file():
        names = sorted(set(json.loads((path / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
        files = [path / Path(name).name for name in names]
        absent = [file.name for file in files if not file.is_file()]
        if not absent:
            return files
        raise TimeloomError(
            f"weights {path.name} lack {absent[0]}, which their index names", remedy="copy the whole checkpoint"
        )
    raise TimeloomError(
        f"weights {path.name} are {'not safetensors' if path.exists() else 'missing'}",
        remedy="give a local .safetensors file, or a folder that holds model.safetensors; pickled weights are refused",
    )


@cache
def weights_sha256(path: Path) -> str:
    """SHA-256 of a checkpoint: of its file, or over the hashes of its shards. Computed once per process and path."""
    hashes = [sha256_file(file) for file in weight_files(path)]
    return hashes[0] if len(hashes) == 1 else sha256("\n".join(hashes).encode()).hexdigest()


def load_weights(model: "nn.Module", path: Path) -> None:
    """Makes the checkpoint at `path` the parameters of `model`, as float32; the model may be on the meta device.

    Raises:
        TimeloomError: a tensor is missing, unexpected or of another shape: the first few are named, nothing is loaded.
    """
    import torch

    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = dict(_tensors(path))
    _check(shapes, found, path)
    state = {name: tensor.to(torch.float32) for name, tensor in found.items()}
    state |= {name: torch.zeros(shapes[name]) for name in OPTIONAL & shapes.keys() - found.keys()}
    model.load_state_dict(state, strict=True, assign=True)


def _tensors(path: Path) -> Iterator[tuple[str, "torch.Tensor"]]:
    from safetensors import SafetensorError, safe_open

    for file in weight_files(path):
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - not a mapping
                    yield from _renamed(name, opened.get_tensor(name))
        except (SafetensorError, OSError) as error:
            raise TimeloomError(
                f"weights {path.name}: {file.name} is no readable safetensors file", remedy="copy the checkpoint again"
            ) from error


def _renamed(name: str, tensor: "torch.Tensor") -> Iterator[tuple[str, "torch.Tensor"]]:
    name = name.removeprefix("dinov2.")
    if _PACKED in name:
        gate, up = tensor.chunk(2, dim=0)
        yield name.replace(_PACKED, ".mlp.gate_proj."), gate
        yield name.replace(_PACKED, ".mlp.up_proj."), up
        return
    for pattern, replacement in _RENAMES:
        name = pattern.sub(replacement, name)
    yield name, tensor


def _check(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, "torch.Tensor"], path: Path) -> None:
    missing = sorted(expected.keys() - found.keys() - OPTIONAL)
    unexpected = sorted(found.keys() - expected.keys())
    misshapen = sorted(
        f"{name} {tuple(found[name].shape)} instead of {expected[name]}"
        for name in expected.keys() & found.keys()
        if tuple(found[name].shape) != expected[name]
    )
    faults = [
        f"{len(names)} {kind}: {', '.join(names[:NAMES_SHOWN])}{', ...' if len(names) > NAMES_SHOWN else ''}"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
        if names
    ]
    if faults:
        raise TimeloomError(
            f"weights {path.name} do not fit the encoder ({'; '.join(faults)})",
            remedy="check that the checkpoint is this architecture's, without a head and in transformers' naming",
        )
