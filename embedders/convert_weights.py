"""Pickled weights to safetensors, names unchanged: `python -m embedders.convert_weights IN OUT`.

The one place where a pickle is read, by hand and apart from any run, through torch's restricted reader, which builds
tensors and plain containers and runs no code of the file.
"""

import pickle
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from warehouse.errors import TimeloomError
from warehouse.files import atomic_write, sha256_file

if TYPE_CHECKING:
    import torch

WRAPPERS = ("teacher", "state_dict", "model")  # training checkpoints keep the weights under one of these
PREFIXES = ("module.", "backbone.")


def convert(source: Path, target: Path) -> tuple[int, int]:
    """Writes the tensors of `source` to `target`; gives how many were kept and how many left out.

    Of a training checkpoint the backbone is kept (the teacher's, where there is one): heads and optimiser are left out.

    Raises:
        TimeloomError: missing, no weights, or more than weights.
    """
    import torch
    from safetensors.torch import save_file

    if target.suffix != ".safetensors":
        raise TimeloomError(f"{target.name} does not end in .safetensors", remedy="name the output so")
    try:
        loaded = torch.load(source, map_location="cpu", weights_only=True)
    except OSError as error:
        raise TimeloomError(f"cannot read {source.name}", remedy="give an existing file") from error
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, KeyError, AttributeError) as error:
        raise TimeloomError(
            f"{source.name} holds no weights, or more than weights, which could run code",
            remedy="get the weights alone from their publisher",
        ) from error
    tensors, left_out = _backbone(loaded)
    if not tensors:
        raise TimeloomError(f"{source.name} holds no tensors by name", remedy="give a file of a model's weights")
    with atomic_write(target) as temporary:
        save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, temporary)
    return len(tensors), left_out


def _backbone(loaded: Any) -> "tuple[dict[str, torch.Tensor], int]":
    import torch

    state = loaded
    for wrapper in WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping):
        return {}, 0
    tensors = {str(name): value for name, value in state.items() if isinstance(value, torch.Tensor)}
    for prefix in PREFIXES:
        if any(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    return tensors, len(state) - len(tensors)


def main(arguments: list[str]) -> int:
    """The command; 0 on success, 1 with one line on standard error otherwise."""
    if len(arguments) != 2:
        sys.stderr.write("usage: python -m embedders.convert_weights IN.pth OUT.safetensors\n")
        return 1
    source, target = (Path(argument) for argument in arguments)
    try:
        kept, left_out = convert(source, target)
    except TimeloomError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{target.name}: {kept} tensors, {left_out} left out, sha256 {sha256_file(target)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
