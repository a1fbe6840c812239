"""Leases of buckets: one holder, who notices that it has lost its lease, and whose death is noticed."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from warehouse.embeddings import bucket_lease
from warehouse.embeddings.bucket_lease import (
    Held,
    LeaseLostError,
    dead_leases,
    holder_of,
    holders,
    lease_path,
    sole_writer,
    sole_writers,
    take,
)
from warehouse.errors import TimeloomError
from warehouse.layout import Layout


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "embeddings" / "ct" / "random-0" / "0001.lmdb"


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    made = Clock()
    monkeypatch.setattr(bucket_lease, "time", made)
    yield made


def elsewhere(store: Path, beat: int = 0, seconds: float = 8.0) -> None:
    """A lease that a worker of another machine holds."""
    store.parent.mkdir(parents=True, exist_ok=True)
    lease_path(store).write_bytes(Held("other-1", "another machine", "0" * 32, seconds, beat).line())


def test_one_of_many_gets_a_lease(store: Path) -> None:
    barrier = threading.Barrier(16)

    def ask(_: int) -> bool:
        barrier.wait()
        return take(store) is not None

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(ask, range(16))) == 1


def test_a_lease_is_given_back_and_names_no_more_than_a_process(store: Path) -> None:
    lease = take(store)
    assert lease is not None and take(store) is None
    said = json.loads(lease_path(store).read_text())
    assert said.keys() == {"beat", "holder", "machine", "seconds", "token"}
    assert said["holder"].endswith(f"-{os.getpid()}")
    assert holders(Layout(store.parents[3])) == {said["holder"]: 1}
    with lease.turn():
        pass
    lease.give_back()
    assert not lease_path(store).exists()
    again = take(store)
    assert again is not None and again.token != lease.token
    again.give_back()


def test_a_lease_that_was_deleted_or_replaced_is_noticed_and_left_alone(store: Path) -> None:
    lease = take(store)
    assert lease is not None
    lease_path(store).unlink()
    with pytest.raises(LeaseLostError, match=r"the lease of embedding store .*0001\.lmdb is lost"), lease.turn():
        pass
    other = take(store)
    assert other is not None
    with pytest.raises(LeaseLostError), lease.turn():
        pass
    lease.give_back()
    with other.turn():
        pass
    other.give_back()


def test_a_holder_that_was_killed_on_this_machine_is_dead_at_once(store: Path) -> None:
    child = "import os, sys; from pathlib import Path; from warehouse.embeddings.bucket_lease import take; "
    subprocess.run([sys.executable, "-c", child + "take(Path(sys.argv[1])); os._exit(9)", str(store)], check=False)
    assert lease_path(store).exists() and holder_of(store) is None
    assert dead_leases(Layout(store.parents[3])) == [lease_path(store)]
    lease = take(store)
    assert lease is not None
    assert dead_leases(Layout(store.parents[3])) == []
    lease.give_back()


def test_a_worker_elsewhere_loses_its_lease_when_nothing_has_changed_for_as_long_as_it_promised(
    store: Path, clock: Clock
) -> None:
    elsewhere(store)
    assert take(store) is None
    for beat in range(1, 4):  # it lives
        clock.now += 7
        elsewhere(store, beat)
        assert take(store) is None
    for _ in range(3):
        clock.now += 2
        assert take(store) is None
    clock.now += 2
    lease = take(store)
    assert lease is not None
    lease.give_back()


def test_who_was_stopped_itself_does_not_take_another_ones_lease(store: Path, clock: Clock) -> None:
    elsewhere(store)
    assert take(store) is None
    clock.now += 3600
    assert take(store) is None, "an hour in which nobody looked"


def test_a_lease_that_is_cut_short_belongs_to_somebody_for_a_while(store: Path, clock: Clock) -> None:
    store.parent.mkdir(parents=True)
    lease_path(store).write_bytes(b'{"beat": "0000')
    taken = []
    for _ in range(8):
        taken.append(take(store))
        clock.now += bucket_lease.EXPIRES_SECONDS / 4
    assert taken[:4] == [None] * 4
    lease = next(found for found in taken if found is not None)
    lease.give_back()


def test_a_lease_beats_while_it_is_held(store: Path) -> None:
    lease = take(store, seconds=0.3)
    assert lease is not None
    before = Held.read(lease_path(store))
    seen = threading.Event()
    for _ in range(200):
        if Held.read(lease_path(store)) != before:
            seen.set()
            break
        threading.Event().wait(0.02)
    assert seen.is_set()
    with lease.turn():
        pass
    lease.give_back()


def test_a_store_that_is_being_written_is_not_taken(store: Path) -> None:
    store.parent.mkdir(parents=True)
    with store.with_suffix(".writer").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert take(store) is None
    lease = take(store)
    assert lease is not None
    lease.give_back()


def test_a_folder_that_cannot_be_written_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "embeddings").write_text("")
    with pytest.raises(TimeloomError, match="cannot be written"):
        take(tmp_path / "embeddings" / "ct" / "random-0" / "0001.lmdb")


def test_dead_leases_of_another_machine_expire_together_for_who_must_have_them(store: Path, clock: Clock) -> None:
    stores = [store.with_name(f"{number:04d}.lmdb") for number in range(3)]
    for each in stores:
        elsewhere(each, seconds=60.0)
    began = clock.now
    with sole_writers(stores) as leases:
        assert [lease.store for lease in leases] == stores
        assert 60.0 <= clock.now - began < 90.0
    assert not any(lease_path(each).exists() for each in stores)


def test_a_live_worker_of_another_machine_is_not_waited_for_without_end(
    store: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sleep(seconds: float) -> None:
        clock.now += seconds
        elsewhere(store, beat=int(clock.now))

    elsewhere(store)
    monkeypatch.setattr(clock, "sleep", sleep)
    with pytest.raises(TimeloomError, match="another worker is writing"), sole_writer(store):
        pass


def test_a_lease_that_is_stale_on_a_shared_file_system_is_none(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere(store)

    def stale(_path: Path) -> bytes:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(Path, "read_bytes", stale)
    assert Held.read(lease_path(store)) is None
