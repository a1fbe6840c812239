"""The runner: means that are right, items that do not disturb each other, runs that resume."""

import dataclasses
import random
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from phantoms import disc, stained, write_series, write_tiff

from embedders import runner
from embedders.encoders import Encoder, EncoderConfig, get_encoder
from embedders.runner import EmbeddedItem, ItemToEmbed, embed_items
from extractors.dicom import index_ct, read_volume
from extractors.items import FoundItem, UnitBatch, UnitRequest
from extractors.slides import index_slides
from warehouse.embeddings import EmbeddingStore, EmbeddingWriter, close_stores, content_hash
from warehouse.errors import TimeloomError


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return get_encoder(EncoderConfig(name="random-dinov2", width=1024, device="cpu"), "ct")


def to_embed(found: FoundItem, root: Path) -> ItemToEmbed:
    assert found.verdict == "ok" and found.units_expected is not None
    return ItemToEmbed(found.identity, found.modality, root, found.paths, found.geometry, found.units_expected)


def series(root: Path, count: int, slices: int = 5) -> list[ItemToEmbed]:
    for number in range(count):
        write_series(root / f"{number}", slices, image=lambda i, n=number: disc(48, 20.0 * n + i), series=f"{number}")
    return [to_embed(found, root) for found in index_ct(root)]


def embed(items: list[ItemToEmbed], encoder: Encoder, path: Path, batch_size: int = 2) -> list[EmbeddedItem]:
    with EmbeddingWriter(path) as writer:
        return embed_items(items, encoder, writer, batch_size=batch_size)


def test_the_stored_vector_is_the_mean_over_slices(tmp_path: Path, encoder: Encoder) -> None:
    items = series(tmp_path / "ct", 2, slices=7)
    results = embed(items, encoder, tmp_path / "s.lmdb")
    assert results == [EmbeddedItem(item.item_key, "ok", 7, 7, 0, 1024) for item in items]
    for item in items:
        slices = [encoder.encode(pixels[None])[0] for pixels in read_volume(item.paths, item.root)]
        expected = np.stack(slices).astype(np.float64).mean(axis=0)
        stored = EmbeddingStore.open(tmp_path / "s.lmdb").get(item.item_key)
        assert stored.dtype == np.float32 and np.abs(stored - expected).max() <= 1e-6 * np.abs(expected).max()


def test_a_vector_has_the_same_bits_whatever_else_is_in_the_run(tmp_path: Path, encoder: Encoder) -> None:
    items = series(tmp_path / "ct", 4)
    embed(items, encoder, tmp_path / "all.lmdb")
    random.Random(0).shuffle(items)
    for index, item in enumerate(items):
        embed([item], encoder, tmp_path / f"{index}.lmdb")
        alone = EmbeddingStore.open(tmp_path / f"{index}.lmdb").get(item.item_key)
        assert np.array_equal(alone, EmbeddingStore.open(tmp_path / "all.lmdb").get(item.item_key))
    embed(items, encoder, tmp_path / "shuffled.lmdb")
    assert content_hash(tmp_path / "shuffled.lmdb") == content_hash(tmp_path / "all.lmdb")


def test_shuffled_file_names_give_the_same_vector(tmp_path: Path, encoder: Encoder) -> None:
    names = random.Random(4).sample(range(100), 6)
    write_series(tmp_path / "a")
    write_series(tmp_path / "b", names=lambda index: f"{names[index]:03d}.dcm")
    hashes = []
    for folder in ("a", "b"):
        embed([to_embed(index_ct(tmp_path / folder)[0], tmp_path / folder)], encoder, tmp_path / f"{folder}.lmdb")
        hashes.append(content_hash(tmp_path / f"{folder}.lmdb"))
    assert hashes[0] == hashes[1]


def test_one_corrupt_item_leaves_the_others_stored(tmp_path: Path, encoder: Encoder) -> None:
    items = series(tmp_path / "ct", 5)
    victim = items[2].root / items[2].paths[3]
    victim.write_bytes(victim.read_bytes()[:-900])
    results = embed(items, encoder, tmp_path / "s.lmdb")
    assert [result.verdict for result in results] == ["ok", "ok", "failed_unreadable", "ok", "ok"]
    assert (results[2].units_encoded, results[2].units_failed, results[2].dim) == (0, 5, None)
    kept = [items[index].item_key for index in (0, 1, 3, 4)]
    assert EmbeddingStore.open(tmp_path / "s.lmdb").keys() == sorted(kept)


def test_a_file_that_went_since_it_was_indexed_is_no_verdict(tmp_path: Path, encoder: Encoder) -> None:
    """A disk that is away would otherwise leave `failed_unreadable` for ever."""
    items = series(tmp_path / "ct", 2)
    (items[1].root / items[1].paths[0]).unlink()
    with pytest.raises(TimeloomError, match="cannot be opened now"):
        embed(items, encoder, tmp_path / "s.lmdb")


def test_a_lack_of_memory_is_no_verdict(tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    items = series(tmp_path / "ct", 1)

    def reader(request: UnitRequest, batch_size: int) -> Iterator[UnitBatch]:
        yield UnitBatch(np.zeros((1, 8, 8), np.float32))
        raise MemoryError

    monkeypatch.setattr(runner, "READERS", {"ct": reader})
    with pytest.raises(MemoryError):
        embed(items, encoder, tmp_path / "s.lmdb")


@pytest.mark.parametrize("error", [RuntimeError("decoder"), KeyError("x"), StopIteration()])
def test_whatever_a_reader_raises_is_that_items_verdict(
    tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    items = series(tmp_path / "ct", 2)

    def reader(request: UnitRequest, batch_size: int) -> Iterator[UnitBatch]:
        if request.paths == items[0].paths:
            yield UnitBatch(np.zeros((1, 8, 8), np.float32))
            raise error
        yield from runner.read_ct_units(request, batch_size)

    monkeypatch.setattr(runner, "READERS", {"ct": reader})
    assert [result.verdict for result in embed(items, encoder, tmp_path / "s.lmdb")] == ["failed_unreadable", "ok"]


def test_a_vector_that_is_not_finite_is_refused(
    tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = series(tmp_path / "ct", 2)
    original = Encoder.encode

    def encode(self: Encoder, pixels: np.ndarray) -> np.ndarray:
        vectors = original(self, pixels)
        if (np.abs(pixels[:, 24, 24] - 4.0) <= 1).any():  # the last slice of the first item alone
            vectors[0, 3] = np.inf
        return vectors

    monkeypatch.setattr(Encoder, "encode", encode)
    results = embed(items, encoder, tmp_path / "s.lmdb")
    assert sorted(result.verdict for result in results) == ["failed_not_finite", "ok"]
    assert len(EmbeddingStore.open(tmp_path / "s.lmdb")) == 1


class Killed(BaseException):
    pass


def test_a_run_killed_between_commits_resumes_to_the_same_content(
    tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = series(tmp_path / "ct", 7)
    undisturbed = embed(items, encoder, tmp_path / "whole.lmdb")
    path = tmp_path / "killed.lmdb"

    class DyingWriter(EmbeddingWriter):
        commits = 0

        def put_many(self, items: list) -> None:  # type: ignore[override, type-arg]
            if self.commits == 2:
                raise Killed
            super().put_many(items)
            self.commits += 1

    with pytest.raises(Killed), DyingWriter(path) as dying:
        embed_items(items, encoder, dying, batch_size=2, commit_every=2)
    assert len(EmbeddingStore.open(path)) == 4
    encoded: list[int] = []
    original = Encoder.encode
    monkeypatch.setattr(Encoder, "encode", lambda self, pixels: encoded.append(len(pixels)) or original(self, pixels))
    assert embed(items, encoder, path) == undisturbed
    assert sum(encoded) == 3 * 5, "only what was missing is encoded"
    assert content_hash(path) == content_hash(tmp_path / "whole.lmdb")
    assert embed(items, encoder, path) == undisturbed and sum(encoded) == 3 * 5


def test_a_damaged_vector_is_made_again(tmp_path: Path, encoder: Encoder) -> None:
    items = series(tmp_path / "ct", 2)
    embed(items, encoder, tmp_path / "s.lmdb")
    before = content_hash(tmp_path / "s.lmdb")
    vector = EmbeddingStore.open(tmp_path / "s.lmdb").get(items[0].item_key)
    close_stores()
    content = bytearray((tmp_path / "s.lmdb").read_bytes())
    content[content.find(vector.tobytes()[:64]) + 5] ^= 4
    (tmp_path / "s.lmdb").write_bytes(content)
    with pytest.raises(TimeloomError):
        EmbeddingStore.open(tmp_path / "s.lmdb").verify()
    embed(items, encoder, tmp_path / "s.lmdb")
    assert content_hash(tmp_path / "s.lmdb") == before


def test_long_items_are_committed_before_the_hundred_are_full(
    tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "COMMIT_UNITS", 10)
    sizes: list[int] = []
    original = EmbeddingWriter.put_many
    monkeypatch.setattr(
        EmbeddingWriter, "put_many", lambda self, items: sizes.append(len(items)) or original(self, items)
    )
    embed(series(tmp_path / "ct", 5), encoder, tmp_path / "s.lmdb")
    assert sizes == [2, 2, 1]


def test_slides_and_volumes_take_the_same_path(tmp_path: Path) -> None:
    write_tiff(tmp_path / "a.svs", stained(), 0.5)
    row = {"path": "a.svs", "raw_subject": "S", "time": datetime(2020, 1, 1), "available_time": None, "mpp": None}
    item = to_embed(index_slides(tmp_path, pl.DataFrame([row]))[0], tmp_path)
    encoder = get_encoder(EncoderConfig(name="random-dinov2", width=1536, device="cpu"), "wsi")
    assert embed([item], encoder, tmp_path / "s.lmdb") == [EmbeddedItem(item.item_key, "ok", 4, 4, 0, 1536)]


def test_failed_tiles_stay_out_of_the_mean_and_are_counted(
    tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = dataclasses.replace(series(tmp_path / "ct", 1)[0], units_expected=20)
    units = np.random.default_rng(0).normal(0, 300, (20, 32, 32)).astype(np.float32)

    def reader(failed: int) -> None:
        batches = [UnitBatch(units[:10]), UnitBatch(units[10 : 20 - failed], failed)]
        monkeypatch.setattr(runner, "READERS", {"ct": lambda request, size: iter(batches)})

    reader(2)
    assert embed([item], encoder, tmp_path / "a.lmdb") == [EmbeddedItem(item.item_key, "ok", 20, 18, 2, 1024)]
    expected = encoder.encode(units[:18]).astype(np.float64).mean(axis=0)
    assert np.allclose(EmbeddingStore.open(tmp_path / "a.lmdb").get(item.item_key), expected, atol=1e-5)
    reader(3)
    assert embed([item], encoder, tmp_path / "b.lmdb")[0].verdict == "failed_unreadable"


def test_the_number_of_threads_is_left_as_it_was(tmp_path: Path, encoder: Encoder) -> None:
    before = torch.get_num_threads()
    seen: list[int] = []
    with EmbeddingWriter(tmp_path / "s.lmdb") as writer:
        items = series(tmp_path / "ct", 1)
        embed_items(items, encoder, writer, progress=lambda result: seen.append(torch.get_num_threads()))
    assert seen == [1] and torch.get_num_threads() == before


def test_real_volumes_are_embedded(real_data: Path, tmp_path: Path, encoder: Encoder) -> None:
    root = real_data / "ct-ibsi-sts"
    items = [to_embed(found, root) for found in index_ct(root) if found.verdict == "ok"]
    results = embed(items, encoder, tmp_path / "s.lmdb", batch_size=32)
    assert [(result.verdict, result.units_encoded) for result in results] == [("ok", n) for n in (51, 47, 47, 49)]
    store = EmbeddingStore.open(tmp_path / "s.lmdb")
    vectors = np.stack([store.get(item.item_key) for item in items])
    assert np.isfinite(vectors).all() and len(np.unique(vectors, axis=0)) == 4
