"""A bucket's events in cells, a row group each."""

from collections.abc import Iterator

import numpy as np
import pyarrow.compute as pc

from pipelines.aligning.bucket_rows import BucketRows, BucketTexts
from warehouse.arrays import I64

# A page of distinct texts has at most 2 GiB; a cell with more than this in its texts becomes several row groups.
TEXT_BYTES = 1 << 26


def row_group_bounds(events: BucketRows, texts: BucketTexts, firsts: I64) -> Iterator[tuple[int, int]]:
    """Where each row group of some events (n,), in the total order, begins and ends.

    Args:
        firsts: the first subject of each cell of the bucket, ascending.
    """
    cell = np.searchsorted(firsts, events.subject, side="right")
    new = np.append(True, cell[1:] != cell[:-1])
    lengths = pc.binary_length(texts.values).to_numpy() if len(texts.values) else np.zeros(1, np.int64)
    of_row = np.append(lengths, 0)[np.minimum(events.text, len(lengths))].astype(np.int64)
    begins = np.flatnonzero(new)
    total = np.cumsum(of_row)
    behind = total - np.repeat(total[begins] - of_row[begins], np.diff(begins, append=len(cell)))
    filled = behind // TEXT_BYTES
    new[1:] |= filled[1:] != filled[:-1]
    begins = np.flatnonzero(new)
    yield from zip(begins.tolist(), [*begins[1:].tolist(), len(cell)], strict=True)
