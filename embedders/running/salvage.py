"""What can be saved of a damaged store: the vectors whose bytes are right. Carried out by a process of its own, which a
page that points past the file's end may kill."""

from pathlib import Path

import lmdb

from warehouse.embeddings.store import EmbeddingStore, EmbeddingWriter
from warehouse.embeddings.value import BESIDE, Array
from warehouse.errors import TimeloomError

_AT_ONCE = 100


def is_readable(path: Path) -> bool:
    """Whether a store can be opened and walked through; vectors whose bytes have changed do not matter here."""
    try:
        EmbeddingStore.open(path).keys()
    except (TimeloomError, lmdb.Error, UnicodeDecodeError):
        return False
    return True


def salvage(damaged: Path, fresh: Path, keys: list[str]) -> int:
    """Copies the vectors of `keys`, and what stands beside them, that are whole to a new store; counts the vectors."""
    kept: list[tuple[str, Array, int]] = []
    saved = 0
    with EmbeddingWriter(fresh) as writer:
        for key in keys:
            found = _whole(damaged, key)
            saved += bool(found)
            kept += found
            if len(kept) >= _AT_ONCE:
                writer.put_many(kept)
                kept = []
        if kept:
            writer.put_many(kept)
    return saved


def _whole(path: Path, key: str) -> list[tuple[str, Array, int]]:
    """A vector and what stands beside it; nothing where one of them is not what was stored."""
    found = []
    try:
        store = EmbeddingStore.open(path)
        for name in (key, *(key + ending for ending in BESIDE)):
            if name in store:
                found.append((name, store.get(name), store.header(name).n_units))
    except (TimeloomError, lmdb.Error):
        return []
    return found if any(name == key for name, *_ in found) else []
