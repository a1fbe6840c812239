"""Texts of several pieces as one dictionary."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.aligning.columns import NONE_32, occurring, renumbered
from warehouse.arrays import U32


def without_nulls(texts: pa.Array, numbers: U32) -> None:
    """Rows (n,) whose text is null have none, in place."""
    if texts.null_count:
        table = np.arange(len(texts) + 1, dtype=np.uint32)
        table[:-1][texts.is_null().to_numpy(zero_copy_only=False)] = NONE_32
        table[-1] = NONE_32
        numbers[:] = table.take(numbers, mode="clip")


def unite(blocks: list[tuple[pa.Array, U32]], *, in_order: bool) -> pa.Array:
    """Unites the texts that the blocks' rows use; the rows' numbers then count in the united texts.

    Args:
        blocks: each block's own texts, and the numbers of its rows (n,), which are changed in place.
        in_order: whether the texts are sorted.
    """
    used = [occurring(numbers, len(texts)) for texts, numbers in blocks]
    each = [
        texts if len(block) == len(texts) else texts.take(pa.array(block))
        for (texts, _), block in zip(blocks, used, strict=True)
    ]
    # The chunks share one dictionary; those without a text are left out.
    chunks = pa.chunked_array(each, pa.large_string()).dictionary_encode().chunks
    if not chunks:
        return pa.array([], pa.large_string())
    united, start = chunks[0].dictionary, 0
    places = np.concatenate([chunk.indices.to_numpy() for chunk in chunks])
    if in_order:
        order = pc.array_sort_indices(united)
        united, places = united.take(order), np.argsort(order.to_numpy())[places]
    for (texts, numbers), used_numbers in zip(blocks, used, strict=True):
        numbers[:] = renumbered(numbers, len(texts), used_numbers, places[start : start + len(used_numbers)])
        start += len(used_numbers)
    return united
