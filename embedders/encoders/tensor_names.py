"""Names of a checkpoint's tensors: from each published naming to that of the transformers version in use.

- transformers, now and before 5 (`attention.attention.query`, `mlp.weights_in`);
- facebookresearch/dinov2 (`blocks.0.attn.qkv`, `ls1.gamma`, `mlp.w12`), also in chunks (`blocks.0.3.`);
- timm (`blocks.0.attn.qkv`, `mlp.fc1`), as GigaPath's tile encoder is published, and facebookresearch/mae;
- open_clip with a timm tower (`visual.trunk.blocks.0.`), as BioMedCLIP is published: its text tower and its projection
  are left out, and so is the decoder of a masked autoencoder.

Packed matrices are cut as their authors' code cuts them: query, key, value; gate before value (timm's GluMlp with
gate_last=False, dinov2's SwiGLUFFN).
"""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from warehouse.errors import TimeloomError

if TYPE_CHECKING:
    import torch

_VIT = (  # inside a block of a plain ViT, of transformers before 5
    (".attention.attention.query.", ".attention.q_proj."),
    (".attention.attention.key.", ".attention.k_proj."),
    (".attention.attention.value.", ".attention.v_proj."),
    (".attention.output.dense.", ".attention.o_proj."),
    (".intermediate.dense.", ".mlp.fc1."),
    (".output.dense.", ".mlp.fc2."),
)
_VIT_ORIGINAL = (
    (".attn.proj.", ".attention.o_proj."),
    (".norm1.", ".layernorm_before."),
    (".norm2.", ".layernorm_after."),
)
_VIT_PREFIXES = ("visual.trunk.", "vit.")
# Other parts of the same checkpoint: a text tower, projections, the decoder of pre-training and its mask.
_VIT_OTHERS = re.compile(r"(?:text\.|visual\.head\.|decoder|logit_scale$|logit_bias$|mask_token$|pooler\.)")
POSITIONS = "embeddings.position_embeddings"
_REGISTERS = ("register_tokens", "reg_token")
_BLOCK = re.compile(r"^blocks\.(?:\d+\.)?(\d+)\.")
_WHOLE = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": POSITIONS,
    "mask_token": "embeddings.mask_token",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
_ORIGINAL = (  # inside a block
    (".attn.proj.", ".attention.o_proj."),
    (".ls1.gamma", ".layer_scale1.lambda1"),
    (".ls2.gamma", ".layer_scale2.lambda1"),
    (".mlp.w3.", ".mlp.down_proj."),
)
_OLDER = (
    (".attention.attention.query.", ".attention.q_proj."),
    (".attention.attention.key.", ".attention.k_proj."),
    (".attention.attention.value.", ".attention.v_proj."),
    (".attention.output.dense.", ".attention.o_proj."),
    (".mlp.weights_out.", ".mlp.down_proj."),
)
_QUERY_KEY_VALUE = tuple(f".attention.{letter}_proj." for letter in "qkv")
_GATE_VALUE = (".mlp.gate_proj.", ".mlp.up_proj.")


def renamed(name: str, tensor: "torch.Tensor", gated: bool) -> Iterator[tuple[str, "torch.Tensor"]]:
    """A checkpoint's tensor under the names that the model has, one or several; unknown names stay as they are.

    Args:
        gated: whether the architecture's MLPs are gated: a timm checkpoint packs gate and value in `mlp.fc1`, the name
            of another matrix elsewhere.

    Raises:
        TimeloomError: the checkpoint has register tokens, which these architectures lack.
    """
    if any(register in name for register in _REGISTERS):
        raise TimeloomError(
            "the weights have register tokens, which this encoder has not",
            remedy="use the checkpoint of the same model without registers",
        )
    name = name.removeprefix("dinov2.")
    name = _WHOLE.get(name, name)
    original = _BLOCK.match(name) is not None
    name = _BLOCK.sub(r"encoder.layer.\1.", name)
    for before, after in _ORIGINAL if original else _OLDER:
        name = name.replace(before, after)
    if original and gated:
        name = name.replace(".mlp.fc1.", ".mlp.w12.").replace(".mlp.fc2.", ".mlp.down_proj.")
    for packed, parts in (
        (".attn.qkv.", _QUERY_KEY_VALUE),
        (".mlp.w12.", _GATE_VALUE),
        (".mlp.weights_in.", _GATE_VALUE),
    ):
        if packed in name and tensor.ndim and len(tensor) % len(parts) == 0:
            for part, rows in zip(parts, tensor.chunk(len(parts)), strict=True):
                yield name.replace(packed, part), rows.contiguous()
            return
    yield name, tensor


def renamed_vit(name: str, tensor: "torch.Tensor") -> Iterator[tuple[str, "torch.Tensor"]]:
    """As `renamed`, for a plain ViT; other parts of its checkpoint are left out."""
    if _VIT_OTHERS.match(name):
        return
    for prefix in _VIT_PREFIXES:
        name = name.removeprefix(prefix)
    if name == "embeddings.mask_token":
        return
    name = _WHOLE.get(name, name)
    original = _BLOCK.match(name) is not None
    name = _BLOCK.sub(r"layers.\1.", name.replace("encoder.layer.", "layers.", 1))
    for before, after in _VIT_ORIGINAL if original else _VIT:
        name = name.replace(before, after)
    if ".attn.qkv." in name and tensor.ndim and len(tensor) % len(_QUERY_KEY_VALUE) == 0:
        for part, rows in zip(_QUERY_KEY_VALUE, tensor.chunk(len(_QUERY_KEY_VALUE)), strict=True):
            yield name.replace(".attn.qkv.", part), rows.contiguous()
        return
    yield name, tensor


def resampled(positions: "torch.Tensor", grid: int) -> "torch.Tensor":
    """Position embeddings (1, 1 + n x n, width) for a grid of `grid` x `grid` patches, as DINOv2 resamples them.

    Its published configuration: bicubic in float32, no antialiasing, scale (grid + 0.1) / n. transformers scales by
    grid / n, so that its vectors differ a little from the authors' own where the grids differ.

    Raises:
        ValueError: the embeddings are no class token and a square grid.
    """
    from torch.nn.functional import interpolate

    count = positions.shape[1] - 1
    side = round(max(count, 0) ** 0.5)
    if positions.ndim != 3 or side < 1 or side * side != count:
        raise ValueError("no class token and square grid")
    if side == grid:
        return positions
    import torch

    patches = positions[:, 1:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    scale = (grid + 0.1) / side
    patches = interpolate(patches, scale_factor=(scale, scale), mode="bicubic", antialias=False)
    return torch.cat([positions[:, :1].float(), patches.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
