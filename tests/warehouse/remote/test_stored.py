"""A release that is read from its place through a cache gives what the root gives."""

import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from tests.support.object_store import Store
from tests.warehouse.remote.test_pull import same
from warehouse import Mixture, Release, TimeloomError
from warehouse.embeddings.store import close_stores
from warehouse.readers.release import StoredRelease
from warehouse.remote import source
from warehouse.remote.place import Place
from warehouse.remote.push import push

ENOUGH = 50 << 20


@pytest.fixture(scope="module")
def place(made: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A place with the release."""
    address = f"file://{tmp_path_factory.mktemp('place')}/place"
    push(made, address)
    return address


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The objects that are fetched from now on."""
    found: list[str] = []
    real = Place.fetch

    def fetch(self: Place, name: str, target: Path) -> None:
        found.append(name.rpartition("/")[2])
        real(self, name, target)

    monkeypatch.setattr(Place, "fetch", fetch)
    return found


@pytest.fixture(autouse=True)
def close() -> Iterator[None]:
    yield
    close_stores()


def opened(place: str, cache: Path, size: int = ENOUGH) -> StoredRelease:
    release = Release.open(place, cache=cache, cache_bytes=size)
    assert isinstance(release, StoredRelease)
    return release


def shard_hashes(release: Release, split: str = "train") -> set[str]:
    """Of the shards that have packs."""
    files = release.manifest.files.items()
    return {entry.sha256 for name, entry in files if entry.rows and name.startswith(f"shards/mehrt/{split}")}


def equal(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(left.input_ids, right.input_ids)
        and all(torch.equal(left.item_vectors[name], right.item_vectors[name]) for name in left.item_vectors)
        for left, right in zip(one, other, strict=True)
    )


def test_it_gives_what_the_root_gives(made: Path, place: str, tmp_path: Path) -> None:
    far, near = opened(place, tmp_path), Release.open(made)
    assert same(near, far)
    (key,) = near.items().filter(verdict="ok", modality="ct").head(1).collect()["item_key"]
    assert (far.vector("ct", key) == near.vector("ct", key)).all()
    assert far.vocabulary("mehrt").equals(near.vocabulary("mehrt"))
    assert far.splits().equals(near.splits())
    far.close()


def test_what_is_not_read_is_not_fetched(place: str, tmp_path: Path, fetched: list[str]) -> None:
    far = opened(place, tmp_path)
    assert fetched == [far.source.shipment.manifest.sha256]
    far.vocabulary("mehrt")
    assert len(fetched) == 2
    opened(place, tmp_path).vocabulary("mehrt")
    assert len(fetched) == 2, "the cache has both"
    list(far.shards("mehrt", split="tuning", vectors=False, fields="ids").batches(4))
    assert set(fetched[2:]) == shard_hashes(far, "tuning")


def test_what_comes_next_is_fetched_ahead(place: str, tmp_path: Path, fetched: list[str]) -> None:
    far = opened(place, tmp_path)
    batches = iter(far.shards("mehrt", split="train", seed=1).batches(1, prefetch=0))
    next(batches)
    packs = {
        pack.sha256 for of in far.source.shipment.vectors.values() for bucket in of.values() for pack in bucket.packs
    }
    wanted = shard_hashes(far) | packs
    until = time.monotonic() + 10
    while not wanted <= set(fetched) and time.monotonic() < until:
        time.sleep(0.01)
    assert wanted <= set(fetched)
    assert len(fetched) == len(set(fetched)), "nothing is fetched twice"
    before = len(fetched)
    assert list(batches)
    assert len(fetched) == before


def test_a_cache_smaller_than_the_split_is_enough_for_the_stored_order(
    made: Path, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Files alone: vectors of all buckets stay in use.
    sizes = [path.stat().st_size for path in made.rglob("shards/mehrt/train/*.parquet")]
    vocabulary = next(made.rglob("vocabulary.parquet")).stat().st_size
    most = max(sizes) + vocabulary + 1000
    assert most < sum(sizes)
    far = opened(place, tmp_path, most)
    options: dict[str, Any] = {"split": "train", "seed": None, "vectors": False}
    with pytest.warns(UserWarning, match="the cache holds"):
        batches = list(far.shards("mehrt", **options).batches(4))
    assert equal(batches, list(Release.open(made).shards("mehrt", **options).batches(4)))
    assert far.source.cache.bytes <= most


def test_a_cache_that_is_too_small_for_what_is_in_use_is_a_line(place: str, tmp_path: Path) -> None:
    far = opened(place, tmp_path, 20_000)
    with pytest.raises(TimeloomError, match="is full of files in use") as caught:
        far.events()
    assert caught.value.remedy.startswith("give cache_bytes= ")
    far.close()


def test_a_mixture_is_read(made: Path, place: str, tmp_path: Path) -> None:
    found = []
    for release in (opened(place, tmp_path), Release.open(made)):
        members = [(release.shards("mehrt", split=split), 1.0) for split in ("train", "tuning")]
        found.append([batch for batch, _ in zip(Mixture(members, seed=3).batches(2), range(12), strict=False)])
    assert equal(*found)


@pytest.mark.whole
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_share_a_cache_while_requests_fail(context: str, made: Path, tmp_path: Path, store: Store) -> None:
    address = store.address(f"workers-{context}")
    push(made, address)
    store.faults.every = 10
    far = opened(address, tmp_path)
    stream = far.shards("mehrt", split="train", seed=1).batches(4)
    got = list(DataLoader(stream, batch_size=None, num_workers=2, multiprocessing_context=context))
    store.faults.reset()
    assert equal(got, list(Release.open(made).shards("mehrt", split="train", seed=1).batches(4)))


def test_a_corrupt_object_enters_no_cache(made: Path, tmp_path: Path, store: Store) -> None:
    push(made, store.address("stored"))
    sha256 = Release.open(made).manifest.files["items/0001.parquet"].sha256
    store.faults.flipped = (sha256,)
    far = opened(store.address("stored"), tmp_path)
    with pytest.raises(TimeloomError, match=r"items/0001\.parquet is corrupt in s3://hospital/stored"):
        far.items()
    assert not [path for path in far.source.cache.files.iterdir() if path.name.startswith(sha256)]
    store.faults.flipped = ()
    assert far.items().collect().height > 0
    far.close()


def test_a_file_that_the_cache_lost_bytes_of_is_fetched_anew(place: str, tmp_path: Path, fetched: list[str]) -> None:
    opened(place, tmp_path).vocabulary("mehrt")
    (path,) = (tmp_path / "files").rglob("vocabulary.parquet")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert opened(place, tmp_path).vocabulary("mehrt").height > 0
    assert len(fetched) == 3


def test_a_fetch_ahead_that_fails_is_said_when_the_file_is_read(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = opened(place, tmp_path)

    def fails(*_: object) -> None:
        raise TimeloomError("the store is away")

    monkeypatch.setattr(source, "fetch_file", fails)
    with pytest.raises(TimeloomError, match="the store is away"):
        list(far.shards("mehrt", split="train").batches(4))


@pytest.mark.parametrize(
    ("root", "cache", "said"),
    [
        ("file:///nowhere/x", None, "is read through a cache"),
        (Path("s3://bucket/x"), "cache", "an address is no path"),
        ("file:///nowhere/x", "cache", "there is no bucket or folder for file:///nowhere/x"),
        ("/nowhere", "cache", "needs no cache"),
    ],
)
def test_what_cannot_be_opened_is_a_line(root: Path | str, cache: str | None, said: str, tmp_path: Path) -> None:
    with pytest.raises(TimeloomError, match=said) as caught:
        Release.open(root, cache=None if cache is None else tmp_path / cache)
    assert caught.value.remedy


def test_without_fsspec_a_line_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(TimeloomError) as caught:
        Release.open("s3://bucket/x", cache=tmp_path)
    assert str(caught.value) == "s3:// needs fsspec, which is not installed; pip install 'timeloom[stores]'"


def test_a_release_of_this_machine_hears_of_no_cache(made: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        release = Release.open(made)
        assert not isinstance(release, StoredRelease)
        assert list(release.shards("mehrt", split="tuning").batches(4))
