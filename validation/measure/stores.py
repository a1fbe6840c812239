"""Reads one embedding store to the last vector, in a separate process: it imports little, to start quickly."""

from pathlib import Path

from warehouse.embeddings.store import EmbeddingStore
from warehouse.errors import TimeloomError


def check_store(path: Path, keys: list[str], dims: list[int]) -> dict[str, int]:
    """Reads every key of one store: how many are `missing`, `damaged` or of another `dim`."""
    counts = {"missing": 0, "damaged": 0, "dim": 0}
    store = EmbeddingStore(path)
    if not path.is_file():
        return counts | {"missing": len(keys)}
    for key, dim in zip(keys, dims, strict=True):
        try:
            counts["dim"] += store.get(key).shape[-1:] != (dim,)
        except KeyError:
            counts["missing"] += 1
        except TimeloomError:
            counts["damaged"] += 1
    return counts
