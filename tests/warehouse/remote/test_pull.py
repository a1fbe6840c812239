"""A pull: a root that holds what was pushed, or is as it was."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.support.object_store import Store
from tests.warehouse.remote.conftest import SETTINGS, publish_night
from warehouse import Release
from warehouse.embeddings.store import close_stores
from warehouse.errors import TimeloomError
from warehouse.layout import Layout
from warehouse.publish import exclusive
from warehouse.remote import pull as pulling
from warehouse.remote.place import Place
from warehouse.remote.pull import pull
from warehouse.remote.push import push
from warehouse.remote.shipment import object_name
from warehouse.sealed import write_sealed


class Killed(BaseException):
    """Stands for kill -9: nothing after it runs."""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return tmp_path / "copy"


def refused(copy: Path, address: str, release: str | None = None) -> str:
    """The one line that a pull ends with."""
    with pytest.raises(TimeloomError) as caught:
        pull(copy, address, release)
    assert "\n" not in str(caught.value)
    assert caught.value.remedy
    return caught.value.message


def same(one: Release, other: Release) -> bool:
    """Whether two releases give the same events, items and batches with their vectors."""
    assert one.events().collect().equals(other.events().collect())
    assert one.items().collect().equals(other.items().collect())
    batches = zip(*(release.shards("mehrt", split="train", seed=1).batches(4) for release in (one, other)), strict=True)
    count = 0
    for left, right in batches:
        assert torch.equal(left.input_ids, right.input_ids)
        assert all(torch.equal(left.item_vectors[name], right.item_vectors[name]) for name in left.item_vectors)
        count += sum(len(found) for found in left.item_vectors.values())
    return count > 0


def test_a_pulled_release_is_what_was_pushed(root: Path, copy: Path, store: Store) -> None:
    push(root, store.address("pulled"))
    got = pull(copy, store.address("pulled"))
    assert got.current
    assert got.vectors > 0
    assert same(Release.open(root), Release.open(copy))
    manifests = [Release.open(folder).files.manifest.read_bytes() for folder in (root, copy)]
    assert manifests[0] == manifests[1]
    assert (copy / "root.json").read_bytes() == (root / "root.json").read_bytes()
    assert not list((copy / "work").iterdir())


def test_a_second_pull_fetches_what_is_new(root: Path, copy: Path, address: str) -> None:
    push(root, address)
    first = pull(copy, address)
    reader = Release.open(copy)
    again = pull(copy, address)
    assert (again.linked, again.vectors) == (0, 0)
    publish_night(root, "two", subjects=90)
    push(root, address)
    second = pull(copy, address)
    assert second.current
    assert 0 < second.vectors < first.vectors
    assert second.linked > 0
    assert same(Release.open(root), Release.open(copy))
    assert same(Release.open(root, "one"), reader), "who reads the one before is not disturbed"
    close_stores()


def test_a_release_that_is_asked_for_stands_beside_the_current_one(root: Path, copy: Path, address: str) -> None:
    push(root, address)
    publish_night(root, "two", subjects=80)
    push(root, address)
    assert pull(copy, address).release == "two"
    assert not pull(copy, address, "one").current
    assert (copy / "current").resolve().name == "two"
    assert Release.open(copy, "one").events().collect().height > 0
    assert refused(copy, address, "three") == f"there is no release three in {address}"
    assert refused(copy, address, "../place") == f"there is no release ../place in {address}"


def test_a_corrupt_object_is_named_and_enters_no_root(root: Path, copy: Path, store: Store) -> None:
    address = store.address("corrupt")
    push(root, address)
    release = Release.open(root)
    sha256 = release.manifest.files["data/0001.parquet"].sha256
    store.faults.flipped = (sha256,)
    said = f"data/0001.parquet is corrupt in {address}: object {sha256[:16]} is not what its name says"
    assert refused(copy, address) == said
    assert not (copy / "current").exists()
    assert not [path for path in copy.rglob("0001.parquet") if path.parent.name == "data"]
    store.faults.flipped = ()
    assert pull(copy, address).current


@pytest.mark.whole
def test_a_corrupt_pack_enters_no_store(root: Path, copy: Path, store: Store) -> None:
    from tests.warehouse.remote.test_push import packs

    address = store.address("packs")
    push(root, address)
    store.faults.flipped = tuple(packs(address, "one"))
    assert "lmdb is corrupt in s3://hospital/packs: object " in refused(copy, address)
    assert not list(copy.rglob("*.lmdb"))


def test_an_object_that_is_gone_is_named_and_sent_by_the_next_push(root: Path, copy: Path, address: str) -> None:
    push(root, address)
    sha256 = Release.open(root).manifest.files["items/0002.parquet"].sha256
    Path(address.removeprefix("file://"), object_name(sha256)).unlink()
    assert refused(copy, address) == f"items/0002.parquet is missing in {address}: there is no object {sha256[:16]}"
    assert push(root, address).objects == 1
    assert pull(copy, address).current


@pytest.mark.parametrize("point", ["publish_staged", "in_parallel", "point_at"])
def test_a_kill_leaves_the_release_before_and_the_next_pull_goes_on(
    point: str, root: Path, copy: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(root, address)
    pull(copy, address)
    publish_night(root, "two", subjects=90)
    push(root, address)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_in(patch, point)
        pull(copy, address)
    assert Release.open(copy).path.name == "one"
    assert Release.open(copy).events().collect().height > 0
    fetched: list[str] = []
    real = Place.fetch
    monkeypatch.setattr(Place, "fetch", lambda self, name, target: (fetched.append(name), real(self, name, target))[1])
    assert pull(copy, address).current
    assert same(Release.open(root), Release.open(copy))
    assert point == "in_parallel" or not fetched, "what was fetched is not fetched again"


def kill_in(patch: pytest.MonkeyPatch, point: str) -> None:
    owner = __import__("warehouse.publish", fromlist=["publish"]) if point == "point_at" else pulling

    def dies(*_: object, **__: object) -> None:
        raise Killed

    patch.setattr(owner, point, dies)


def test_a_root_of_another_name_is_refused(root: Path, copy: Path, address: str) -> None:
    push(root, address)
    copy.mkdir()
    write_sealed(Layout(copy).settings, SETTINGS | {"name": "elsewhere"})
    assert "the root copy belongs to the root elsewhere" in refused(copy, address)
    Layout(copy).settings.unlink()
    (copy / "notes.txt").touch()
    assert refused(copy, address) == f"{copy} is no root, and not empty"


def test_a_root_at_work_and_a_place_of_nothing_are_a_line(root: Path, copy: Path, address: str, store: Store) -> None:
    assert refused(copy, store.address("empty")) == "nothing was pushed to s3://hospital/empty"
    assert refused(copy, "s3://nowhere/x") == "there is no bucket or folder for s3://nowhere/x"
    push(root, address)
    with exclusive(Layout(copy)):
        assert refused(copy, address) == "another run is working on copy"


@pytest.mark.parametrize("name", ["place.json", "current.json", "releases/one.json"])
def test_a_damaged_name_is_a_line(name: str, root: Path, copy: Path, address: str) -> None:
    push(root, address)
    path = Path(address.removeprefix("file://"), name)
    path.write_bytes(path.read_bytes().replace(b"e", b"f", 1))
    assert refused(copy, address) == f"{name} in {address} is damaged"


def test_a_manifest_that_leads_elsewhere_is_refused(
    root: Path, copy: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(root, address)
    real: Callable[[Path], object] = pulling.read_manifest

    def read(path: Path) -> object:
        manifest = real(path)
        files = {f"../../{name}": entry for name, entry in manifest.files.items()}  # type: ignore[attr-defined]
        return manifest.model_copy(update={"files": files})  # type: ignore[attr-defined]

    monkeypatch.setattr(pulling, "read_manifest", read)
    assert "is of something else" in refused(copy, address)
    shutil.rmtree(copy)
