"""Attention over packs that lets no subject see another: block-diagonal for dense kernels, varlen for long contexts.

A dense mask takes B x L x L numbers; varlen attention takes none, and computes only what segments need.
"""

from typing import Any

import torch

from warehouse.readers.batch import SegmentBatch


def block_diagonal(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, batch: SegmentBatch) -> torch.Tensor:
    """Causal attention inside segments, (B, heads, L, d) each, by torch's scaled_dot_product_attention and a mask."""
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=batch.block_mask())


def varlen(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
    """Causal attention inside segments of T tokens without padding: (T, heads, d) each, gives (T, heads, d).

    A loop over segments, to test by and for small models. On CUDA, flash-attn's `flash_attn_varlen_func` and torch's
    `torch.nn.attention.varlen.varlen_attn` compute the same from the same `cu_seqlens` and `max_seqlen`.

    Args:
        cu_seqlens: (S + 1,) int32, as in a batch; tokens are `tensor[batch.real]`.
    """
    lengths = cu_seqlens.diff().tolist()
    parts = zip(*(torch.split(tensor, lengths) for tensor in (query, key, value)), strict=True)
    return torch.cat([_alone(*part) for part in parts]) if lengths else torch.empty_like(query)


def _alone(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    query, key, value = (tensor.transpose(0, 1) for tensor in (query, key, value))
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(0, 1)


def flex_mask(batch: SegmentBatch) -> Any:
    """A BlockMask for torch's flex_attention: blocks without a pair inside one segment are never computed."""
    from torch.nn.attention.flex_attention import create_block_mask

    segments = batch.segment_ids

    def inside(row: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return (segments[row, query] == segments[row, key]) & (query >= key)

    rows, length = segments.shape
    return create_block_mask(inside, rows, None, length, length, device=str(segments.device))
