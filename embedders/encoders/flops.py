"""FLOPs of a forward pass, counted from the model itself; a multiply-add counts as two."""

import json
from collections.abc import Mapping
from functools import cache
from typing import Any


def flops_per_unit(architecture: Mapping[str, Any], side: int) -> int:
    """FLOPs of one image of `side` pixels: all matrix products of the transformer, nothing else.

    Counted on torch's meta device, which computes nothing, with plain attention, whose products are all visible.
    """
    return _count(json.dumps(dict(architecture), sort_keys=True), side)


@cache
def _count(architecture: str, side: int) -> int:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from embedders.encoders.heads import transformer

    with torch.device("meta"), torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model = transformer({**json.loads(architecture), "image_size": side}, attention="eager")
        model(pixel_values=torch.empty(1, 3, side, side))
    return int(counter.get_total_flops())
