"""Notes' tokens in one file that is mapped into memory: written once, when notes are indexed, read a note at a time.

A table of notes is mostly one gzipped CSV, which can be read from its start alone, and the notes of a bucket lie all
over it. So one pass cuts every text into tokens, and what encoders need of a note is then a slice of a mapped file.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from warehouse.files import atomic_write

FILE = "notes.arrow"
U32 = npt.NDArray[np.uint32]
# One row a note. `ends`: of each window, where its text begins and ends, in letters of the note.
KEPT = pa.schema([("tokens", pa.list_(pa.uint32())), ("spans", pa.list_(pa.int32())), ("text", pa.large_string())])


class KeptWriter:
    """Writes the notes of a folder; what it wrote is there when it is left without an error."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / FILE
        self._batches = 0

    def __enter__(self) -> Self:
        self._atomic = atomic_write(self.path)
        self._writer = pa.ipc.new_file(str(self._atomic.__enter__()), KEPT)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()
        self._atomic.__exit__(kind, error, trace)

    def add(self, tokens: Sequence[U32], spans: Sequence[npt.NDArray[np.int32]], texts: Sequence[str | None]) -> int:
        """Some notes; gives the number of their batch, in which each note's place is its row."""
        columns = [_lists(tokens, pa.uint32()), _lists(spans, pa.int32()), pa.array(texts, pa.large_string())]
        self._writer.write_batch(pa.record_batch(columns, KEPT))
        self._batches += 1
        return self._batches - 1


def _lists(arrays: Sequence[npt.NDArray[np.generic]], kind: pa.DataType) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum([len(array) for array in arrays])]).astype(np.int32)
    flat = np.concatenate(arrays) if len(arrays) else np.empty(0)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat, kind))


class Kept:
    """The notes of a file, by batch and row."""

    def __init__(self, path: Path) -> None:
        self._file = pa.ipc.open_file(pa.memory_map(str(path)))

    @lru_cache(maxsize=64)  # noqa: B019 - of few files, which a process keeps open
    def _batch(self, number: int) -> pa.RecordBatch:
        return self._file.get_batch(number)

    def tokens(self, place: Sequence[int]) -> U32:
        """A note's tokens (n,)."""
        found: U32 = _values(self._batch(place[0]).column(0), place[1])
        return found

    def spans(self, place: Sequence[int]) -> npt.NDArray[np.int32]:
        """(windows, 2): where the text of each window begins and ends."""
        found: npt.NDArray[np.int32] = _values(self._batch(place[0]).column(1), place[1])
        return found.reshape(-1, 2)

    def text(self, place: Sequence[int]) -> str | None:
        """A note's text, where it is kept."""
        found: str | None = self._batch(place[0]).column(2)[place[1]].as_py()
        return found


def _values(lists: pa.ListArray, row: int) -> Any:
    return lists[row].values.to_numpy(zero_copy_only=False)


@lru_cache(maxsize=4)
def open_kept(path: str) -> Kept:
    """A file of notes, opened once in this process.

    Raises:
        OSError: it is away.
    """
    return Kept(Path(path))
