"""The pieces of a bucket as whole columns: each is copied to its place as it is read, so that no row is held twice."""

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from extractors.events.converted import CONVERTED
from warehouse.arrays import I64, NO_TIME, U32, Bools
from warehouse.schemas import TIME

# The number of no text.
NONE_8, NONE_32 = 0xFF, 0xFFFF_FFFF


_TEXT = "text_value"
# What stands where there is nothing; a value that may be any number has its own column of whether it is there.
_ANY = ("numeric_value", "visit_id")
_NOTHING = dict.fromkeys(_ANY, 0) | {
    "time": NO_TIME,
    "available_time": NO_TIME,
    "unit": NONE_32,
    "precision": NONE_8,
    "availability": NONE_8,
    "flag": NONE_8,
}
# Of polars: what pyarrow has for this imports pandas, a fifth of a second in every process.
_TYPES: dict[str, np.dtype[Any]] = {
    column.name: column.to_physical().to_numpy().dtype
    for column in pl.DataFrame(schema=CONVERTED)
    if column.name != _TEXT
}


class PieceColumns:
    """Columns of CONVERTED, filled from above.

    Args:
        rows: how many there are at most.

    Attributes:
        numbers: each column but for the texts (rows,); times are microseconds.
        known: of the columns in which any number may stand, whether one does (rows,).
        text: numbers (rows,) in the texts of `pieces`, NONE_32 for none.
        pieces: the distinct texts of some rows, and which rows these are.
    """

    def __init__(self, rows: int) -> None:
        self.rows = 0
        self.numbers = {name: np.empty(rows, dtype) for name, dtype in _TYPES.items()}
        self.known = {name: np.ones(rows, np.bool_) for name in _ANY}
        self.text = np.full(rows, NONE_32, np.uint32)
        self.pieces: list[tuple[pa.Array, slice]] = []

    def add(self, batch: pa.RecordBatch) -> None:
        """Appends rows, columns CONVERTED."""
        if not batch.num_rows:
            return
        part = slice(self.rows, self.rows + batch.num_rows)
        for name in CONVERTED:
            column = batch.column(name)
            if name == _TEXT:
                self._add_texts(column, part)
                continue
            values = self.numbers[name][part]
            if column.null_count == len(column):
                values[:] = _NOTHING[name]
                if name in self.known:
                    self.known[name][part] = False
                continue
            values[:] = _content(column, values.dtype)
            if name in self.known and column.null_count:
                self.known[name][part] = present(column)
            elif column.null_count:
                _blank(values, present(column), _NOTHING[name])
        self.rows += batch.num_rows

    def _add_texts(self, column: pa.Array, part: slice) -> None:
        if column.null_count == len(column):
            return
        encoded = column.dictionary_encode()
        self.text[part] = _content(encoded.indices, np.dtype(np.int32))
        if column.null_count:
            _blank(self.text[part], present(column), NONE_32)
        self.pieces.append((encoded.dictionary, part))


def _blank(values: npt.NDArray[Any], known: Bools, nothing: int) -> None:
    """Writes `nothing` in place where a value is not known (n,)."""
    if nothing == np.iinfo(values.dtype).max:
        # `nothing` has all bits set. This needs no branch that a processor could predict wrongly: a tenth of the time.
        values |= (known.view(np.int8) - np.int8(1)).astype(f"i{values.itemsize}").view(values.dtype)
    else:
        np.copyto(values, nothing, where=~known)


def _content(column: pa.Array, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """The values of an array (n,), anything where it is null."""
    return np.frombuffer(column.buffers()[1], dtype)[column.offset : column.offset + len(column)]


def present(column: pa.Array) -> Bools:
    """Which values of an array with nulls (n,) are not null."""
    bits = np.frombuffer(column.buffers()[0], np.uint8)
    return np.unpackbits(bits, count=column.offset + len(column), bitorder="little")[column.offset :].view(np.bool_)


def masked(values: npt.NDArray[Any], known: Bools) -> pa.Array:
    """An array of the values (n,), null where they are not known (n,). The values are not copied."""
    bitmap = None if known.all() else pa.py_buffer(np.packbits(known, bitorder="little"))
    kind = TIME if values.dtype.kind == "M" else pa.from_numpy_dtype(values.dtype)
    return pa.Array.from_buffers(kind, len(values), [bitmap, pa.py_buffer(values)])


def occurring(numbers: U32, size: int) -> I64:
    """Which numbers below `size` occur among some (n,), in their order."""
    stands = np.zeros(size + 1, np.bool_)
    stands[np.minimum(numbers, size)] = True
    return np.flatnonzero(stands[:-1])


def renumbered(numbers: U32, size: int, old: I64, new: npt.NDArray[Any]) -> U32:
    """Numbers (n,), below `size` or NONE_32, with new ones (m,) for old ones (m,)."""
    table = np.full(size + 1, NONE_32, np.uint32)
    table[old] = new
    # What is no number is NONE_32, which the end of the table stands for.
    return table.take(numbers, mode="clip")
