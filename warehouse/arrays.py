"""Types of arrays, the number that stands for "no time", and columns as numbers: said once for all."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

I8 = npt.NDArray[np.int8]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]
U16 = npt.NDArray[np.uint16]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
# What stands for a time that there is none of, before every other.
NO_TIME = np.iinfo(np.int64).min


def numbers_of(column: pa.ChunkedArray, null: float) -> npt.NDArray[Any]:
    """A column's numbers (n,), `null` where there is none."""
    numbers: npt.NDArray[Any] = (column.fill_null(null) if column.null_count else column).to_numpy()
    return numbers
