"""A push: only what is new, published last and whole, whatever the store does."""

import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.object_store import Store
from tests.warehouse.remote.conftest import SETTINGS, publish_night
from warehouse.embeddings.compact import item_of
from warehouse.errors import TimeloomError
from warehouse.layout import Layout
from warehouse.manifest import read_manifest
from warehouse.publish import current_release, point_at
from warehouse.remote import place as places
from warehouse.remote import shipment as shipments
from warehouse.remote import vectors
from warehouse.remote.place import Place
from warehouse.remote.pull import pull
from warehouse.remote.push import push
from warehouse.sealed import sealed, write_sealed


def objects(address: str) -> dict[str, int]:
    return Place(address).sizes("objects")


def packs(address: str, release: str) -> dict[str, int]:
    """Bytes by hash of the packs of a release."""
    shipment = shipments.read_shipment(Place(address), release)
    found = [bucket for buckets in shipment.vectors.values() for bucket in buckets.values()]
    return {pack.sha256: pack.bytes for bucket in found for pack in bucket.packs}


def refused(root: Path, address: str) -> str:
    """The one line that a push ends with."""
    with pytest.raises(TimeloomError) as caught:
        push(root, address)
    assert "\n" not in str(caught.value)
    assert caught.value.remedy
    return caught.value.message


def test_a_second_push_sends_nothing(root: Path, address: str) -> None:
    would, first, second = push(root, address, dry_run=True), push(root, address), push(root, address)
    assert first.current
    assert second.current
    assert (first.already, second.objects) == (0, 0)
    assert (first.objects, first.bytes) == (second.already, second.already_bytes)
    assert sum(objects(address).values()) == first.bytes <= would.bytes


def test_a_dry_run_writes_nothing(root: Path, address: str, tmp_path: Path) -> None:
    assert push(root, address, dry_run=True).objects > 0
    assert not (tmp_path / "place").exists()


def test_names_are_hashes_and_nothing_else(root: Path, address: str, tmp_path: Path) -> None:
    push(root, address)
    folder = tmp_path / "place"
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    named = {name for name in found if not re.fullmatch(r"objects/([0-9a-f]{2})/\1[0-9a-f]{62}", name)}
    assert named == {"place.json", "current.json", "releases/one.json"}


def test_a_later_night_sends_its_own_vectors_alone(root: Path, address: str) -> None:
    first = push(root, address)
    publish_night(root, "two", subjects=90)
    second = push(root, address)
    before, after = packs(address, "one"), packs(address, "two")
    assert before.items() <= after.items(), "what was sent is used again"
    assert 0 < sum(after.values()) - sum(before.values()) < sum(before.values()) / 2
    assert second.bytes < first.bytes
    assert shipments.current_at(Place(address)) == "two"


def test_the_vectors_of_who_is_gone_are_in_no_pack_of_the_release(root: Path, address: str) -> None:
    publish_night(root, "two", subjects=90)
    push(root, address)
    publish_night(root, "three", subjects=70)
    push(root, address)
    place = Place(address)
    shipment = shipments.read_shipment(place, "three")
    tree = current_release(Layout(root))
    assert tree is not None
    manifest = read_manifest(tree.manifest)
    for name, buckets in shipment.vectors.items():
        for bucket, found in buckets.items():
            items = vectors.items_of(tree, manifest, bucket)[tuple(name.split("/"))]  # type: ignore[index]
            held = {
                item_of(key)
                for pack in found.packs
                for key, _ in vectors.read_pack(Path(address.removeprefix("file://"), _name(pack.sha256)))
            }
            assert held == set(items)


def _name(sha256: str) -> str:
    return shipments.object_name(sha256)


@pytest.mark.whole
def test_many_packs_of_a_bucket_are_put_together(root: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "MOST_PACKS", 2)
    for number, subjects in enumerate(range(79, 90)):
        push(root, address)
        publish_night(root, f"night{number}", subjects=subjects)
    push(root, address)
    shipment = shipments.read_shipment(Place(address), "night10")
    numbers = [len(bucket.packs) for buckets in shipment.vectors.values() for bucket in buckets.values()]
    assert max(numbers) == 2


def test_publication_is_last(root: Path, store: Store) -> None:
    push(root, store.address("last"))
    keys = [key.removeprefix("/hospital/last/") for key, _ in store.faults.sent]
    assert keys[0] == "place.json"
    assert keys[-2:] == ["releases/one.json", "current.json"]
    assert all(key.startswith("objects/") for key in keys[1:-2])


@pytest.mark.parametrize("release", ["two", None])
def test_current_follows_the_root(release: str | None, root: Path, address: str) -> None:
    push(root, address)
    publish_night(root, "two", subjects=80)
    point_at(Layout(root), "one" if release else "two")
    assert push(root, address, release).current == (release is None)
    assert shipments.current_at(Place(address)) == ("one" if release else "two")


@pytest.mark.whole
def test_requests_that_fail_and_answers_that_are_cut_change_nothing(root: Path, store: Store, tmp_path: Path) -> None:
    store.faults.every = 10
    sent = push(root, store.address("faults"))
    got = pull(tmp_path / "copy", store.address("faults"))
    assert store.faults.requests > 100
    store.faults.reset()
    assert len(objects(store.address("faults"))) == sent.objects
    assert push(root, store.address("faults"), check=True).mended == 0
    assert got.current


@pytest.mark.whole
def test_a_store_that_is_down_is_a_line_and_the_next_push_sends_the_rest(
    root: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "TRIES", 2)
    address = store.address("down")
    real = Place.send

    def send(self: Place, name: str, path: Path, sha256: str) -> None:
        store.faults.down = len(store.faults.objects_sent) >= 10
        real(self, name, path, sha256)

    with monkeypatch.context() as patch:
        patch.setattr(Place, "send", send)
        assert re.fullmatch(r"s3://hospital/down could not be written \(\w+\), after 2 tries", refused(root, address))
    store.faults.down = False
    assert shipments.current_at(Place(address)) is None
    assert len(objects(address)) >= 10
    push(root, address)
    sent = store.faults.objects_sent
    assert sorted(sent) == sorted(objects(address)), "each was sent once"


@pytest.mark.whole
def test_bytes_that_change_on_their_way_are_refused_by_the_store_and_sent_again(root: Path, store: Store) -> None:
    store.faults.spoilt.add("/objects/")
    push(root, store.address("spoilt"))
    assert not store.faults.spoilt
    assert push(root, store.address("spoilt"), check=True).mended == 0


def test_check_mends_what_is_damaged_there(root: Path, address: str, tmp_path: Path) -> None:
    push(root, address)
    damaged = sorted((tmp_path / "place" / "objects").rglob("*"))[-1]
    damaged.write_bytes(bytes([damaged.read_bytes()[0] ^ 1]) + damaged.read_bytes()[1:])
    assert push(root, address).objects == 0, "its size is what it was"
    mended = push(root, address, check=True)
    assert (mended.mended, mended.objects) == (1, 1)
    assert push(root, address, check=True).mended == 0


def test_a_damaged_file_or_vector_is_not_sent(root: Path, address: str) -> None:
    tree = current_release(Layout(root))
    assert tree is not None
    events = tree.events(0)
    events.write_bytes(events.read_bytes()[:-1] + b"?")
    assert refused(root, address) == "data/0000.parquet of release one is damaged"
    assert shipments.current_at(Place(address)) is None


def test_another_root_is_refused_by_name(root: Path, address: str) -> None:
    push(root, address)
    write_sealed(Layout(root).settings, SETTINGS | {"name": "elsewhere"})
    for dry_run in (True, False):
        with pytest.raises(TimeloomError, match=r"place belongs to the root clinic \(\w+\), and not to elsewhere \("):
            push(root, address, dry_run=dry_run)
    write_sealed(Layout(root).settings, SETTINGS | {"key": "4567"})
    assert "belongs to another root of the name clinic" in refused(root, address)


@pytest.mark.whole
def test_of_two_that_claim_a_place_at_once_the_first_wins(
    root: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = store.address("claimed")
    real = Place.read

    def read(self: Place, name: str) -> bytes | None:
        # Between the look and the writing, the other root was faster.
        monkeypatch.setattr(Place, "read", real)
        other = shipments.Origin("elsewhere", "0123")
        shipments.claim(Place(address), other)
        return None

    monkeypatch.setattr(Place, "read", read)
    assert "belongs to the root elsewhere (0123)" in refused(root, address)
    assert len(store.faults.sent) == 1


@pytest.mark.whole
def test_two_pushes_of_a_root_at_once(root: Path, store: Store) -> None:
    address = store.address("twice")
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: push(root, address), range(2))
    assert first.current
    assert second.current
    assert push(root, address, check=True).mended == 0


@pytest.mark.whole
def test_a_push_that_was_killed_is_gone_on_with(root: Path, store: Store) -> None:
    address = store.address("killed")
    store.faults.pause = 0.05
    command = [sys.executable, "-m", "flows.cli", "push", address, "--root", str(root)]
    process = subprocess.Popen(command, env=os.environ.copy(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 30
    while len(store.faults.sent) < 12 and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    store.faults.pause = 0.0
    time.sleep(0.2)  # what was under way arrives or does not
    assert shipments.current_at(Place(address)) is None
    before = set(objects(address))
    assert before
    store.faults.sent.clear()
    push(root, address)
    assert not before & set(store.faults.objects_sent)
    assert before | set(store.faults.objects_sent) == set(objects(address))


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("s3://nowhere/prefix", "there is no bucket or folder for s3://nowhere/prefix"),
        ("nothing://bucket", "nothing://bucket is no address of a known store"),
        ("s3://user:secret@nowhere/prefix", "s3://nowhere/prefix is no address of a known store"),
    ],
)
def test_what_is_wrong_with_an_address_is_a_line(address: str, said: str, root: Path, store: Store) -> None:
    assert refused(root, address) == said


def test_no_credentials_are_a_line(root: Path, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert refused(root, store.address("x")) == "there are no credentials for s3://hospital/x (NoCredentialsError)"


def test_a_place_that_another_root_took_meanwhile_gets_no_release(
    root: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Place.send

    def send(self: Place, name: str, path: Path, sha256: str) -> None:
        # As where the store knows no condition, and both wrote their name.
        Place(address).write(shipments.PLACE, sealed({"format_version": 1, "name": "elsewhere", "id": "0123"}))
        real(self, name, path, sha256)

    monkeypatch.setattr(Place, "send", send)
    assert "belongs to the root elsewhere (0123)" in refused(root, address)
    assert shipments.current_at(Place(address)) is None


def test_what_the_store_does_not_list_is_not_published(
    root: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Place.sizes

    def sizes(self: Place, folder: str) -> dict[str, int]:
        return dict(list(real(self, folder).items())[1:])

    monkeypatch.setattr(Place, "sizes", sizes)
    assert "does not list 1 objects that it has taken" in refused(root, address)
    assert shipments.current_at(Place(address)) is None
