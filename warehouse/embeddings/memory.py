"""Rows copied from wherever they are mapped, by one fancy index a batch, into however many files they lie.

With TIMELOOM_PLAIN_READS=1 in its environment a process reads no row by its address: the readers of shards slice the
mapped arrays, and vectors are searched for in their stores each time. Both ways give the same rows.
"""

import os
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from warehouse.arrays import I64

PLAIN_READS = "TIMELOOM_PLAIN_READS"

# A process's own half of a 64-bit address space, without its first page, as numpy takes address 0 for no array.
_FIRST, _ADDRESSES = 4096, 1 << 48


def plain_reads() -> bool:
    """Whether rows are to be read without their addresses."""
    return os.environ.get(PLAIN_READS) == "1"


class _Interface:
    """What numpy makes an array over given addresses of, without touching them."""

    def __init__(self, **interface: Any) -> None:
        self.__array_interface__ = {"version": 3, **interface}


@lru_cache(maxsize=64)
def _space(nbytes: int) -> npt.NDArray[np.void]:
    """An array whose element i is the `nbytes` bytes that begin at address _FIRST + i; elements overlap."""
    whole = _Interface(data=(_FIRST, True), shape=(_ADDRESSES,), strides=(1,), typestr=f"|V{nbytes}")
    return np.asarray(whole)


def addresses(rows: npt.NDArray[Any]) -> I64:
    """(n,) where each row of a contiguous (n, L) begins: what `rows_at` takes, as long as the array's memory is held.

    Raises:
        ValueError: the rows are not contiguous.
    """
    if not rows.flags.c_contiguous:
        raise ValueError("rows are not contiguous")
    start = rows.__array_interface__["data"][0] - _FIRST
    offsets: I64 = np.arange(len(rows), dtype=np.int64) * (rows.shape[1] * rows.itemsize) + start
    return offsets


def address_of(value: bytes | memoryview) -> int:
    """Where a buffer's bytes begin, as `addresses` gives it."""
    start: int = pa.py_buffer(value).address  # a tenth of what numpy takes to tell it
    return start - _FIRST


def rows_at(where: I64, dtype: np.dtype[Any], length: int) -> npt.NDArray[Any]:
    """A copy (n, length) of the rows of `dtype` at `where` (n,), which came from `addresses`."""
    found = _space(length * dtype.itemsize)[where]
    return found.view(dtype).reshape(len(where), length)
