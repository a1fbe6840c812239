"""FLOPs of a forward pass, counted from the model itself; a multiply-add counts as two."""

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from embedders.encoders.registry import NETWORKS


def flops_per_unit(name: str, architecture: Mapping[str, Any], shape: tuple[int, ...]) -> int:
    """FLOPs of one unit of an input's shape in a network: all matrix products, nothing else.

    Counted on torch's meta device, which computes nothing, with plain attention, whose products are all visible.
    """
    return _count(name, json.dumps(dict(architecture), sort_keys=True), shape)


@cache
def _count(name: str, architecture: str, shape: tuple[int, ...]) -> int:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), torch.inference_mode(), FlopCounterMode(display=False) as counter:
        NETWORKS[name].without_weights(json.loads(architecture), shape)(torch.empty(1, *shape))
    return int(counter.get_total_flops())
