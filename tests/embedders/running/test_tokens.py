"""Units that become several vectors: what is stored of them, and that no kill, batch or neighbour changes it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedders.encoders.build import EncoderConfig, get_encoder
from embedders.running.runner import ItemToEmbed, RunnerSettings, embed_buckets
from embedders.running.spans import Span
from embedders.running.store_bucket import Bucket
from tests.support.ecg import heart, indexed, write_record
from warehouse.embeddings.store import EmbeddingStore, close_stores

# In `make test` alone: each test encodes.
pytestmark = pytest.mark.whole


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[ItemToEmbed]:
    """A recording of two windows, and one of 6 s."""
    folder = tmp_path_factory.mktemp("ecg")
    write_record(folder, "1", heart(20.0, seed=1))
    write_record(folder, "2", heart(6.03, seed=2))
    return [
        ItemToEmbed(f"{number:032x}", "ecg", folder, item.paths, item.geometry, item.units_expected or 0)
        for number, item in enumerate(indexed(folder))
    ]


def stored(items: list[ItemToEmbed], path: Path, batch_size: int = 12, **settings: Any) -> dict[str, Any]:
    config = EncoderConfig(name="random-ecg", width=24, device="cpu", batch_size=batch_size, **settings)
    encoder = get_encoder(config, "ecg")
    results, _ = embed_buckets([Bucket(path, encoder.spec, items, lambda: encoder)], RunnerSettings(0))
    assert [result.verdict for result in results[path]] == ["ok"] * len(items)
    assert [result.units_encoded for result in results[path]] == [item.units_expected for item in items]
    store = EmbeddingStore.open(path)
    found = {item.item_key: store.get(item.item_key) for item in items}
    if settings.get("output") == "sequence":
        found |= {f"{item.item_key} places": store.places(item.item_key) for item in items}
    close_stores()
    return found


def test_a_sequence_has_each_real_patch_and_no_padding(items: list[ItemToEmbed], tmp_path: Path) -> None:
    found = stored(items, tmp_path / "a.lmdb", output="sequence")
    long, short = (item.item_key for item in items)
    assert found[long].shape == (200, 24) and found[short].shape == (60, 24)  # 0.1 s each; 0.03 s are no whole patch
    places = found[f"{long} places"]
    assert places.shape == (200, 2)
    assert places[:, 0].tolist() == [0] * 100 + [5000] * 100 and places[:, 1].tolist() == [*range(100)] * 2
    assert np.isfinite(found[short]).all() and len(np.unique(found[short], axis=0)) == 60


def test_batches_and_neighbours_change_no_bit(items: list[ItemToEmbed], tmp_path: Path) -> None:
    together = stored(items, tmp_path / "a.lmdb", output="sequence")
    alone = stored(items[1:], tmp_path / "b.lmdb", output="sequence")
    for key, array in alone.items():
        np.testing.assert_array_equal(array, together[key])


def test_a_mean_is_one_vector_of_the_windows(items: list[ItemToEmbed], tmp_path: Path) -> None:
    found = stored(items, tmp_path / "a.lmdb")
    assert {array.shape for array in found.values()} == {(24,)}


def test_what_stands_behind_a_units_own_vectors_is_left_out() -> None:
    span = Span(0, 3, 2, keep=True, may_fail=0.0, too_many="failed_unreadable")
    vectors = np.arange(24, dtype=np.float32).reshape(3, 4, 2)
    vectors[1, 2:] = np.nan  # padding may be anything
    span.add(3, np.arange(3), vectors, np.array([[0], [7], [9]], np.int32), np.array([4, 2, 1]))
    assert span.finished and span.event is None and span.encoded == 3
    np.testing.assert_array_equal(span.blocks[0], vectors.reshape(12, 2)[[0, 1, 2, 3, 4, 5, 8]])
    assert span.places[0].tolist() == [[0, 0], [0, 1], [0, 2], [0, 3], [7, 0], [7, 1], [9, 0]]
    bad = Span(0, 3, 2, keep=True, may_fail=0.0, too_many="failed_unreadable")
    bad.add(3, np.arange(3), vectors, np.zeros((3, 1), np.int32), np.array([4, 3, 1]))
    assert bad.event == (0, "failed_not_finite")
