"""What is saved of a damaged store: whole vectors and nothing else."""

from pathlib import Path

import numpy as np
import pytest

from embedders.running.salvage import is_readable, salvage
from warehouse.embeddings.store import PLACES, EmbeddingStore, EmbeddingWriter, close_stores

KEYS = [f"ct-{number}" for number in range(6)]


def vector(number: int) -> np.ndarray:
    return np.full(1024, number, np.float32)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "0000.lmdb"
    with EmbeddingWriter(path) as writer:
        writer.put_many([(key, vector(number), 3) for number, key in enumerate(KEYS)])
        writer.put_many([(KEYS[0] + PLACES, np.arange(6, dtype=np.int32).reshape(3, 2), 3)])
    return path


def test_all_but_the_changed_vectors_are_saved_with_their_units_and_places(store: Path, tmp_path: Path) -> None:
    data = store.read_bytes()
    at = data.index(vector(2).tobytes()) + 50
    store.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    assert is_readable(store)
    fresh = tmp_path / "fresh.lmdb"
    assert salvage(store, fresh, [*KEYS, "never stored"]) == 5
    close_stores()
    saved = EmbeddingStore.open(fresh)
    assert saved.keys() == [key for key in KEYS if key != KEYS[2]]
    assert np.array_equal(saved.get(KEYS[5]), vector(5))
    assert saved.header(KEYS[5]).n_units == 3
    assert np.array_equal(saved.places(KEYS[0]), np.arange(6).reshape(3, 2))
    close_stores()


@pytest.mark.parametrize("kept", [0, 100, 4096, 12288])
def test_of_a_file_that_is_cut_short_nothing_is_saved(store: Path, tmp_path: Path, kept: int) -> None:
    close_stores()
    with store.open("r+b") as file:
        file.truncate(kept)
    assert not is_readable(store)
    assert salvage(store, tmp_path / "fresh.lmdb", KEYS) == 0
    close_stores()
