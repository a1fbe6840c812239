"""Batches are the same whether rows are read by their addresses or, with TIMELOOM_PLAIN_READS=1, without them."""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tests.support.tokens.markov import fabricate, markov_timelines
from warehouse import Release
from warehouse.embeddings import lookup, memory
from warehouse.embeddings.memory import PLAIN_READS
from warehouse.embeddings.store import EmbeddingStore, close_stores
from warehouse.errors import TimeloomError
from warehouse.readers import open_shards
from warehouse.readers.open_shards import OpenShards

OPTIONS: dict[str, dict[str, Any]] = {
    "ids": {"fields": "ids"},
    "vectors": {},
    "retrieved items": {"items_per_segment": 3},
    "sequences": {"vectors": "sequences"},
}


@pytest.fixture(scope="module", params=[False, True], ids=["one vector an item", "a sequence an item"])
def release(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Release:
    # Seven packs a row group, so that a batch's rows lie in several.
    root = tmp_path_factory.mktemp("plain") / "root"
    return Release.open(fabricate(root, markov_timelines(90, seed=3), row_group_rows=7, sequences=request.param))


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    close_stores()


def plain(value: object) -> object:
    """What a batch's field holds, down to its bits, as something that can be compared."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.numpy().tobytes()
    if isinstance(value, dict):
        return {name: plain(entry) for name, entry in value.items()}
    return value


def batches(release: Release, **options: Any) -> list[dict[str, object]]:
    """Two epochs, as the first one searches for vectors and the second one finds them where they were."""
    dataset = release.shards("mehrt", split="train", seed=7, **options)
    return [
        {field.name: plain(getattr(batch, field.name)) for field in fields(batch)}
        for _ in range(2)
        for batch in dataset.batches(4, prefetch=0)
    ]


class Reads:
    """Counts reads by address, or refuses them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls, self.refused = 0, False
        original = memory.rows_at

        def counting(*arguments: Any) -> npt.NDArray[Any]:
            assert not self.refused, "a row was read by its address"
            self.calls += 1
            return original(*arguments)

        for module in (lookup, open_shards):
            monkeypatch.setattr(module, "rows_at", counting)


@pytest.mark.whole
@pytest.mark.parametrize("name", OPTIONS)
def test_batches_are_the_same(release: Release, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    reads = Reads(monkeypatch)
    by_address = batches(release, **OPTIONS[name])
    assert reads.calls or name == "sequences"
    close_stores()
    monkeypatch.setenv(PLAIN_READS, "1")
    reads.refused = True
    without = batches(release, **OPTIONS[name])
    assert without == by_address
    if name != "ids":
        counts = [sum(map(len, batch["item_keys"].values())) for batch in without]  # type: ignore[attr-defined]
        assert sum(counts) > 100


def test_the_setting_may_change_while_a_release_is_open(release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = release.shards("mehrt", split="train", seed=None)
    epochs = []
    for setting in ("0", "1", "0"):
        monkeypatch.setenv(PLAIN_READS, setting)
        epochs.append([plain(batch.item_vectors) for batch in dataset.batches(4, prefetch=0)])
    assert epochs[0] == epochs[1] == epochs[2]


def test_another_vector_or_another_row_would_be_noticed(release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {name: batches(release, **OPTIONS[name]) for name in ("ids", "vectors")}
    monkeypatch.setenv(PLAIN_READS, "1")
    get_many, narrow = EmbeddingStore.get_many, open_shards.narrow
    with monkeypatch.context() as planted:
        planted.setattr(EmbeddingStore, "get_many", lambda store, keys: get_many(store, keys)[::-1])
        assert batches(release) != expected["vectors"]
    with monkeypatch.context() as planted:
        planted.setattr(open_shards, "narrow", lambda *given: np.roll(narrow(*given), 1, axis=0))
        assert batches(release, fields="ids") != expected["ids"]


def test_a_missing_item_and_another_width_are_errors(release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PLAIN_READS, "1")
    dataset = release.shards("mehrt", split="train", seed=7)

    def absent(store: EmbeddingStore, keys: list[str]) -> list[npt.NDArray[Any]]:
        raise KeyError(keys[0])

    with monkeypatch.context() as planted:
        planted.setattr(EmbeddingStore, "get_many", absent)
        with pytest.raises(TimeloomError, match="lacks an item of the release"):
            list(dataset.batches(4))
    with monkeypatch.context() as planted:
        planted.setattr(EmbeddingStore, "get_many", lambda store, keys: [np.zeros(7, np.float32) for _ in keys])
        with pytest.raises(TimeloomError, match="holds vectors that are not"):
            list(dataset.batches(4))


def test_no_packs_give_no_rows_and_rows_may_be_written_to(release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PLAIN_READS, "1")
    shelf = OpenShards(release, "mehrt", "train", "default", None)
    assert shelf.ids(np.empty(0, np.int64)).shape == (0, shelf.context)
    assert shelf.ids(np.arange(3)).flags.writeable
