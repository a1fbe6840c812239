"""Where items' vectors lie in this process's memory, noted when they were found first: an item's mark.

A key is searched for, and its value compared with its checksum, once. From then on a batch's vectors are copied from
where they are mapped, all by one call (`warehouse.embeddings.lookup`). Marks are kept with the row groups of the shards
that name the items, so their number is bounded as that of those is.

A mark is two numbers: the generation of maps it is of, the form of the vector and its address; and the value's
checksum, which the copy is compared with, as a writer may have given the pages to another item since. It is 0 where
nothing is known. The first number is written and read whole, so that no thread sees an address without its generation.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from warehouse.arrays import I64

# Of one vector an item; sequences have no marks.
FORMS: dict[int, np.dtype[np.floating]] = {1: np.dtype("<f4"), 2: np.dtype("<f2")}

_ADDRESS_BITS, _FORM_BITS = 48, 2
_GENERATIONS = 1 << (63 - _ADDRESS_BITS - _FORM_BITS)


class VectorAddresses(Protocol):
    """The marks of a batch's n items; used while no store is closed (`environments.staying_open`)."""

    def of(self, items: I64) -> "VectorAddresses":
        """Those of some items (m,)."""

    def read(self) -> I64:
        """(n, 2), a copy."""

    def write(self, items: Sequence[int], marks: I64) -> None:
        """Notes those (m, 2) of some items."""


class ArrayAddresses:
    """VectorAddresses of the items at `which` (n,) in an array (N, 2)."""

    def __init__(self, array: I64, which: I64) -> None:
        self._array, self._which = array, which

    def of(self, items: I64) -> "ArrayAddresses":
        return ArrayAddresses(self._array, self._which[items])

    def read(self) -> I64:
        return self._array[self._which]

    def write(self, items: Sequence[int], marks: I64) -> None:
        self._array[self._which[items]] = marks


def no_marks(items: int) -> I64:
    """(items, 2) of items that nothing is known of."""
    return np.zeros((items, 2), dtype=np.int64)


def address_limit(generation: int) -> int:
    """Only addresses below it can be marked: none after 8,191 generations."""
    return 1 << _ADDRESS_BITS if generation < _GENERATIONS else 0


def new_marks(generation: int, found: I64) -> I64:
    """(n, 2) of vectors found (n, 3): form, address below `address_limit`, checksum."""
    forms, addresses, checksums = found.T
    return np.stack([(generation << _FORM_BITS | forms) << _ADDRESS_BITS | addresses, checksums], axis=1)


def forms_of(marks: I64, generation: int) -> I64:
    """(n,) the forms that marks (n, 2) name; 0 where they are of another generation."""
    tags = marks[:, 0] >> _ADDRESS_BITS
    return np.where(tags >> _FORM_BITS == generation, tags & ((1 << _FORM_BITS) - 1), 0)


def addresses_of(marks: I64) -> I64:
    """(n,) where the values begin."""
    where: I64 = marks[:, 0] & ((1 << _ADDRESS_BITS) - 1)
    return where
