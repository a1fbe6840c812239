"""How far long items are, beside their bucket's store: LMDB, one entry a span, and for sequences one per stretch of it.

An entry belongs to an item's signature (its files' sizes and times, its geometry): where that has changed, or a byte of
the entry, the span is read again from its start.
"""

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import numpy.typing as npt
import xxhash

from embedders.running.spans import Progress, Span
from warehouse.errors import TimeloomError

MAP_BYTES = 1 << 38  # address space, not disk
_HEAD = struct.Struct("<QI")  # checksum of what follows, length of the JSON that follows


def _packed(fields: Mapping[str, Any], *arrays: npt.NDArray[Any]) -> bytes:
    described = {**fields, "arrays": [[array.dtype.str, array.shape] for array in arrays]}
    text = json.dumps(described).encode()
    rest = text + b"".join(array.tobytes() for array in arrays)
    return _HEAD.pack(xxhash.xxh3_64_intdigest(rest), len(text)) + rest


def _unpacked(found: bytes | memoryview | None) -> tuple[dict[str, Any], list[npt.NDArray[Any]]] | None:
    """None where there is no value, or a byte of it has changed."""
    if found is None or len(found) < _HEAD.size:
        return None
    value = bytes(found)
    checksum, length = _HEAD.unpack_from(value)
    rest = value[_HEAD.size :]
    if xxhash.xxh3_64_intdigest(rest) != checksum:
        return None
    fields = json.loads(rest[:length])
    arrays, offset = [], length
    for dtype, shape in fields["arrays"]:
        count = int(np.prod(shape))
        arrays.append(np.frombuffer(rest, dtype, count, offset).reshape(shape).copy())
        offset += arrays[-1].nbytes
    return fields, arrays


@dataclass
class _Saved:
    """What the file holds of a span: units up to `done`, and of a sequence `blocks` in `parts` entries."""

    done: int
    parts: int = 0
    blocks: int = 0


class Checkpoint:
    """The checkpoint at `path`; the file appears with the first `save` and goes with `remove`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._environment: lmdb.Environment | None = None
        self._saved: dict[tuple[str, int], _Saved] = {}  # by item key and the span's first unit

    def _opened(self) -> lmdb.Environment:
        if self._environment is None:
            self._environment = lmdb.open(str(self.path), subdir=False, map_size=MAP_BYTES, readahead=False)
        return self._environment

    def close(self) -> None:
        if self._environment is not None:
            self._environment.close()
            self._environment = None

    def remove(self) -> None:
        """Nothing is in work any more."""
        self.close()
        self._saved.clear()
        self.path.unlink(missing_ok=True)
        self.path.with_name(f"{self.path.name}-lock").unlink(missing_ok=True)

    def restore(self, progress: Progress) -> int:
        """Fills in what an earlier run finished of an item's spans, and counts those units."""
        if not self.path.is_file():
            return 0
        try:
            with self._opened().begin() as transaction:
                return sum(self._fill(transaction, progress, span) for span in progress.spans)
        except lmdb.Error:  # a damaged checkpoint costs time, nothing else
            self.remove()
            return 0

    def _fill(self, transaction: lmdb.Transaction, progress: Progress, span: Span) -> int:
        identity = (progress.item.item_key, span.start)
        found = _unpacked(transaction.get(_key(*identity)))
        if found is None or found[0]["signature"] != progress.signature or found[1][0].shape != span.total.shape:
            return 0
        fields, (total,) = found
        parts = [_unpacked(transaction.get(_key(*identity, part))) for part in range(fields["parts"])]
        if any(part is None for part in parts):
            return 0
        span.blocks = [part[1][0] for part in parts if part is not None]
        span.places = [part[1][1] for part in parts if part is not None]
        span.done, span.encoded, span.total = fields["done"], fields["encoded"], total
        self._saved[identity] = _Saved(span.done, len(parts), len(parts))
        return span.done - span.start

    def save(self, in_work: Iterable[Progress], ended: Iterable[str] = ()) -> None:
        """Writes what is new of the items in work and drops those that have `ended`, in one transaction.

        Raises:
            TimeloomError: the disk is full or not writable.
        """
        new = [(item, span) for item in in_work for span in item.spans if self._is_new(item, span)]
        dropped = {key for key, _ in self._saved} & set(ended)
        if not new and not dropped:
            return
        try:
            with self._opened().begin(write=True) as transaction:
                for progress, span in new:
                    self._put(transaction, progress, span)
                for key in dropped:
                    self._drop(transaction, key)
        except (lmdb.Error, OSError) as error:
            raise TimeloomError(
                f"the checkpoint of embedding store {self.path.stem} could not be written ({type(error).__name__})",
                remedy="free disk space, or raise `ulimit -f`, and run again; what was stored before stands",
            ) from error

    def _is_new(self, progress: Progress, span: Span) -> bool:
        saved = self._saved.get((progress.item.item_key, span.start))
        return span.event is None and span.done > (saved.done if saved else span.start)

    def _put(self, transaction: lmdb.Transaction, progress: Progress, span: Span) -> None:
        identity = (progress.item.item_key, span.start)
        saved = self._saved.setdefault(identity, _Saved(span.start))
        if span.keep:
            vectors, places = np.concatenate(span.blocks[saved.blocks :]), np.concatenate(span.places[saved.blocks :])
            transaction.put(_key(*identity, saved.parts), _packed({}, vectors, places))
            saved.parts, saved.blocks = saved.parts + 1, len(span.blocks)
        saved.done = span.done
        fields = {"signature": progress.signature, "done": span.done, "encoded": span.encoded, "parts": saved.parts}
        transaction.put(_key(*identity), _packed(fields, span.total))

    def _drop(self, transaction: lmdb.Transaction, item_key: str) -> None:
        prefix = f"{item_key}/".encode("ascii")
        with transaction.cursor() as cursor:
            found = cursor.set_range(prefix)
            while found and bytes(cursor.key()).startswith(prefix):
                found = cursor.delete()
        self._saved = {identity: saved for identity, saved in self._saved.items() if identity[0] != item_key}


def _key(item_key: str, start: int, part: int | None = None) -> bytes:
    return f"{item_key}/{start}{'' if part is None else f'/{part}'}".encode("ascii")
