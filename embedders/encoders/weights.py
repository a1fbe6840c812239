"""Loading weights: safetensors only, hashed, and refused unless names and shapes are exactly right.

From a local path; from a hub where the configuration allows it, at a fixed commit. Checkpoints in other namings are
renamed on the way in (`embedders.encoders.tensor_names`); pickled ones go through
`python -m embedders.convert_weights` first.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from embedders.encoders.tensor_names import POSITIONS, renamed, renamed_vit, resampled
from warehouse.errors import TimeloomError
from warehouse.files import sha256_file

if TYPE_CHECKING:
    import torch
    from torch import nn

    Names = Callable[[str, torch.Tensor], Iterable[tuple[str, torch.Tensor]]]

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = (".bin", ".pth", ".pt", ".ckpt")
OPTIONAL = {"embeddings.mask_token"}  # used in pre-training only
NAMES_SHOWN = 3


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
        files = [path / name for name in _shards(path / INDEX)]
        absent = [file.name for file in files if not file.is_file()]
        if not absent:
            return files
        raise TimeloomError(
            f"weights {path.name} lack {absent[0]}, which their index names", remedy="copy the whole checkpoint"
        )
    pickled = [path] if path.suffix in PICKLED and path.is_file() else []
    if path.is_dir():
        pickled = sorted(file for file in path.iterdir() if file.suffix in PICKLED)
    if pickled:
        raise TimeloomError(
            f"weights {path.name} are pickled, not safetensors",
            remedy=f"convert them: python -m embedders.convert_weights {pickled[0].name} model.safetensors",
        )
    raise TimeloomError(
        f"weights {path.name} are {'not safetensors' if path.exists() else 'missing'}",
        remedy="give a local .safetensors file, or a folder that holds model.safetensors",
    )


def _shards(index: Path) -> list[str]:
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return sorted({Path(name).name for name in names})
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise TimeloomError(
            f"weights {index.parent.name}: {index.name} is no index of shards", remedy="copy the checkpoint again"
        ) from error


@cache
def hub_snapshot(hub_id: str, revision: str) -> Path:
    """The folder of a hub's checkpoint at a commit: from the local cache, else fetched once. Safetensors and JSON only.

    Raises:
        TimeloomError: it is neither in the cache nor to be had.
    """
    from huggingface_hub import snapshot_download

    wanted = ["*.safetensors", "*.json"]
    for local_only in (True, False):
        try:
            folder = Path(
                snapshot_download(hub_id, revision=revision, allow_patterns=wanted, local_files_only=local_only)
            )
            if not local_only or any(folder.glob("*.safetensors")):
                return folder
        except Exception as error:  # the hub's client raises its own, its HTTP library's and the system's errors
            if not local_only:
                raise TimeloomError(
                    f"the hub does not give {hub_id} at {revision[:12]} ({type(error).__name__})",
                    remedy="see that this machine reaches the hub and may read the model, or copy it and set `weights`",
                ) from error
    raise AssertionError("unreachable")


@cache
def weights_sha256(path: Path) -> str:
    """SHA-256 of a checkpoint: of its file, or over the hashes of its shards. Computed once per process and path."""
    hashes = [sha256_file(file) for file in weight_files(path)]
    return hashes[0] if len(hashes) == 1 else sha256("\n".join(hashes).encode()).hexdigest()


def with_weights(make: "Callable[[], nn.Module]", path: Path | None, names: "Names | None" = None) -> "nn.Module":
    """The network that `make` gives, with the weights of a checkpoint, which a configuration of such a network names.

    Args:
        names: see `load_weights`.
    """
    import torch

    assert path is not None
    with torch.device("meta"):  # takes no memory: the checkpoint's tensors become the parameters
        model = make()
    load_weights(model, path, names)
    return model


def load_weights(model: "nn.Module", path: Path, names: "Names | None" = None) -> None:
    """Makes the checkpoint at `path` the parameters of `model`, as float32; the model may be on the meta device.

    Position embeddings of another grid are resampled to the model's.

    Args:
        names: gives a checkpoint's tensor under the model's names, one, several or none; without it, names of vision
            transformers are known.

    Raises:
        TimeloomError: a tensor is missing, unexpected, given twice, of another shape or type or not finite: the first
            few are named, nothing is loaded.
    """
    import torch

    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if names is None:
        gated = any(".mlp.gate_proj." in name for name in shapes)
        plain = any(name.startswith("layers.") for name in shapes)  # a ViT of transformers, not a DINOv2
        names = renamed_vit if plain else partial(renamed, gated=gated)
    found: dict[str, torch.Tensor] = {}
    faults: dict[str, list[str]] = {"given under two names": [], "of no floating type": [], "not finite": []}
    for name, tensor in ((name, part) for given, value in _tensors(path) for name, part in names(given, value)):
        if name in found:
            faults["given under two names"].append(name)
        if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
            faults["of no floating type"].append(f"{name} ({str(tensor.dtype).removeprefix('torch.')})")
        else:
            tensor = tensor.to(torch.float32)
            if not tensor.isfinite().all():
                faults["not finite"].append(name)
        found[name] = tensor
    if POSITIONS in found and POSITIONS in shapes and found[POSITIONS].shape[2:] == shapes[POSITIONS][2:]:
        with suppress(ValueError):  # refused below, with its shape
            found[POSITIONS] = resampled(found[POSITIONS], round((shapes[POSITIONS][1] - 1) ** 0.5))
    _check(shapes, found, path, faults)
    state = found | {name: torch.zeros(shapes[name]) for name in OPTIONAL & shapes.keys() - found.keys()}
    model.load_state_dict(state, strict=True, assign=True)


def checkpoint_names(path: Path) -> set[str]:
    """The names of a checkpoint's tensors; raises as `load_weights` where it cannot be read."""
    return {name for name, _ in _tensors(path)}


def _tensors(path: Path) -> Iterator[tuple[str, "torch.Tensor"]]:
    from safetensors import SafetensorError, safe_open

    for file in weight_files(path):
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - not a mapping
                    yield name, opened.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise TimeloomError(
                f"weights {path.name}: {file.name} is no readable safetensors file", remedy="copy the checkpoint again"
            ) from error


def _check(
    expected: Mapping[str, tuple[int, ...]],
    found: Mapping[str, "torch.Tensor"],
    path: Path,
    others: dict[str, list[str]],
) -> None:
    missing = sorted(expected.keys() - found.keys() - OPTIONAL)
    unexpected = sorted(found.keys() - expected.keys())
    misshapen = sorted(
        f"{name} {tuple(found[name].shape)} instead of {expected[name]}"
        for name in expected.keys() & found.keys()
        if tuple(found[name].shape) != expected[name]
    )
    named = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen, **others}
    faults = [
        f"{len(names)} {kind}: {', '.join(names[:NAMES_SHOWN])}{', ...' if len(names) > NAMES_SHOWN else ''}"
        for kind, names in named.items()
        if names
    ]
    if faults:
        raise TimeloomError(
            f"weights {path.name} do not fit the encoder ({'; '.join(faults)})",
            remedy="check that the checkpoint is this architecture's, without a head (docs/encoders.md lists namings)",
        )
