"""A worker that has lost its lease: whatever it holds, it stores nothing of it, wherever stores are written."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from embedders.encoders.build import Encoder, EncoderConfig, get_encoder
from embedders.running.runner import ItemToEmbed, RunnerSettings, embed_buckets
from embedders.running.store_bucket import Bucket, OpenBucket, verdicts_path
from extractors.modalities import EXTRACTORS
from tests.support.images import unit_readers
from warehouse.embeddings.bucket_lease import LeaseLostError, lease_path, take
from warehouse.embeddings.store import EmbeddingStore, close_stores

# In `make test` alone: they encode.
pytestmark = pytest.mark.whole

UNITS = 3


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return get_encoder(EncoderConfig(name="random-dinov2", width=64, device="cpu", batch_size=4), "ct")


@pytest.fixture(params=[False, True], ids=["in place", "in a scratch folder"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if request.param:
        (tmp_path / "scratch").mkdir()
        monkeypatch.setenv("TIMELOOM_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setitem(EXTRACTORS, "ct", unit_readers.EXTRACTOR)
    return tmp_path / "ct" / "random-0" / "0000.lmdb"


@pytest.fixture
def item(tmp_path: Path) -> ItemToEmbed:
    return unit_readers.item(tmp_path / "x", 1, UNITS)


def encode(opened: OpenBucket, item: ItemToEmbed) -> None:
    """The item is done; its vector waits for the next commit."""
    progress = opened.begin(item)
    assert progress is not None
    units = np.arange(UNITS)
    progress.spans[0].add(UNITS, units, np.ones((UNITS, 64), np.float32), np.zeros((UNITS, 2), np.int32))
    assert opened.settle(progress) is not None


def stored(store: Path) -> list[str]:
    close_stores()
    return EmbeddingStore.open(store).keys() if store.is_file() else []


@pytest.mark.parametrize("then", [OpenBucket.commit, OpenBucket.finish], ids=["commit", "finish"])
def test_what_it_would_commit_is_not_stored(
    then: Callable[[OpenBucket], object], store: Path, item: ItemToEmbed, encoder: Encoder
) -> None:
    other = None
    with pytest.raises(LeaseLostError), OpenBucket(Bucket(store, encoder.spec, [item], lambda: encoder)) as opened:
        encode(opened, item)
        lease_path(store).unlink()
        other = take(store)
        then(opened)
    assert other is not None
    with other.turn():  # its lease is left alone
        assert stored(store) == []
    other.give_back()
    assert not verdicts_path(store).exists() and not store.with_suffix(".partial").exists()


def test_what_it_committed_does_not_take_the_place_of_anothers(
    store: Path, item: ItemToEmbed, encoder: Encoder, tmp_path: Path
) -> None:
    """In place it stands already; from a scratch folder it does not come any more."""
    with OpenBucket(Bucket(store, encoder.spec, [item], lambda: encoder)) as opened:
        encode(opened, item)
        opened.commit()
        lease_path(store).unlink()
    in_place = not (tmp_path / "scratch").exists()
    assert stored(store) == ([item.item_key] if in_place else [])


def test_whoever_comes_next_makes_it(store: Path, item: ItemToEmbed, encoder: Encoder) -> None:
    with pytest.raises(LeaseLostError), OpenBucket(Bucket(store, encoder.spec, [item], lambda: encoder)) as opened:
        encode(opened, item)
        lease_path(store).unlink()
        opened.commit()
    bucket = Bucket(store, encoder.spec, [item], lambda: encoder, take(store))
    results, _ = embed_buckets([bucket], RunnerSettings())
    assert [result.verdict for result in results[store]] == ["ok"] and stored(store) == [item.item_key]
    assert not lease_path(store).exists()
