"""Notes' tokens in one file that is mapped into memory: written once, when notes are indexed, read a note at a time.

A table of notes is mostly one gzipped CSV, which can be read from its start alone, and the notes of a bucket lie all
over it. So one pass cuts every text into tokens, and what encoders need of a note is then a slice of a mapped file.
Each vocabulary has columns of its own.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from warehouse.files import atomic_write

FILE = "notes.arrow"
I32 = npt.NDArray[np.int32]
U32 = npt.NDArray[np.uint32]
_TEXT = pa.field("text", pa.large_string())


def _columns_of(vocabulary: str) -> list[pa.Field]:
    """Tokens; and of each window where its text begins and ends, in letters of the note."""
    return [
        pa.field(f"tokens/{vocabulary}", pa.list_(pa.uint32())),
        pa.field(f"spans/{vocabulary}", pa.list_(pa.int32())),
    ]


class KeptWriter:
    """Writes the notes of a folder, a row each; what it wrote is there when it is left without an error.

    Args:
        vocabularies: their names.
    """

    def __init__(self, folder: Path, vocabularies: Sequence[str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / FILE
        self._vocabularies = tuple(vocabularies)
        self._schema = pa.schema([*(field for name in vocabularies for field in _columns_of(name)), _TEXT])
        self._batches = 0

    def __enter__(self) -> Self:
        self._atomic = atomic_write(self.path)
        self._writer = pa.ipc.new_file(str(self._atomic.__enter__()), self._schema)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()
        self._atomic.__exit__(kind, error, trace)

    def add(self, cuts: Mapping[str, tuple[Sequence[U32], Sequence[I32]]], texts: Sequence[str | None]) -> int:
        """Some notes; gives the number of their batch, in which each note's place is its row.

        Args:
            cuts: by vocabulary, the notes' tokens and spans.
            texts: null where they are not kept.
        """
        columns: list[pa.Array] = []
        for name in self._vocabularies:
            tokens, spans = cuts[name]
            columns += [_lists(tokens, pa.uint32()), _lists(spans, pa.int32())]
        self._writer.write_batch(pa.record_batch([*columns, pa.array(texts, _TEXT.type)], self._schema))
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

    def tokens(self, place: Sequence[int], vocabulary: str) -> U32:
        """A note's tokens (n,)."""
        found: U32 = self._values(place, f"tokens/{vocabulary}")
        return found

    def spans(self, place: Sequence[int], vocabulary: str) -> I32:
        """(windows, 2): where the text of each window begins and ends."""
        found: I32 = self._values(place, f"spans/{vocabulary}")
        return found.reshape(-1, 2)

    def text(self, place: Sequence[int]) -> str | None:
        """A note's text, where it is kept."""
        found: str | None = self._batch(place[0]).column(_TEXT.name)[place[1]].as_py()
        return found

    def _values(self, place: Sequence[int], column: str) -> Any:
        return self._batch(place[0]).column(column)[place[1]].values.to_numpy(zero_copy_only=False)


@lru_cache(maxsize=4)
def open_kept(path: str) -> Kept:
    """A file of notes, opened once in this process.

    Raises:
        OSError: it is away.
    """
    return Kept(Path(path))
