"""The cache of what was fetched: bounded, shared by processes, whole files or none."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest

from warehouse.errors import TimeloomError
from warehouse.remote.cache import Cache, NoRoomError

SIZE = 10
HALF = """
import sys, time
from pathlib import Path
from warehouse.remote.cache import Cache

def half(part):
    part.write_bytes(b"12345")
    print("half", flush=True)
    time.sleep(60)

cache = Cache(Path(sys.argv[1]), 25)
cache.hold("used.10", "file", lambda part: part.write_bytes(b"1234567890"))
cache.hold("half.10", "file", half)
"""


def key(name: str) -> str:
    return f"{name}.{SIZE}"


def write(part: Path) -> None:
    part.write_bytes(b"x" * SIZE)


def fetch(cache: Cache, name: str) -> Path:
    """Has a file fetched, used and let go."""
    path = cache.hold(key(name), "file", write)
    cache.let_go(key(name))
    return path


def names(cache: Cache) -> set[str]:
    return {path.name.partition(".")[0] for path in cache.files.iterdir()}


def count(folder: str, log: str, numbers: list[int]) -> None:
    """Fetches files in a process and notes which of them it has made itself."""
    cache = Cache(Path(folder), 1000)
    for number in numbers:

        def make(part: Path, number: int = number) -> None:
            time.sleep(0.02)
            write(part)
            with Path(log).open("a") as file:
                file.write(f"{number}\n")

        assert cache.hold(key(f"n{number}"), "file", make).read_bytes() == b"x" * SIZE


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 35)
    for name in ("a", "b", "c", "a", "d"):
        fetch(cache, name)
    assert names(cache) == {"a", "c", "d"}
    assert cache.bytes == 30


def test_what_is_in_use_stays(tmp_path: Path) -> None:
    cache, other = Cache(tmp_path, 25), Cache(tmp_path, 25)
    held = other.hold(key("a"), "file", write)
    for name in ("b", "c", "d"):
        fetch(cache, name)
    assert held.is_file()
    cache.hold(key("d"), "file", write)
    with pytest.raises(NoRoomError, match="full of files in use"):
        fetch(cache, "e")
    assert names(cache) == {"a", "d"}
    other.let_go(key("a"))
    fetch(cache, "e")
    assert names(cache) == {"d", "e"}


def test_a_file_that_is_held_twice_is_let_go_twice(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 15)
    for _ in range(2):
        cache.hold(key("a"), "file", write)
    cache.let_go(key("a"))
    with pytest.raises(NoRoomError):
        fetch(cache, "b")
    cache.let_go(key("a"))
    assert fetch(cache, "b").is_file()


def test_what_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 100)

    def fails(part: Path) -> None:
        part.write_bytes(b"half")
        raise TimeloomError("gone")

    with pytest.raises(TimeloomError, match="gone"):
        cache.hold(key("a"), "file", fails)
    assert not [*cache.files.rglob("*"), *(tmp_path / "parts").iterdir()]
    assert fetch(cache, "a").read_bytes() == b"x" * SIZE


def test_threads_and_processes_make_each_file_once(tmp_path: Path) -> None:
    numbers, log = list(range(12)), str(tmp_path / "log")
    with ProcessPoolExecutor(3, multiprocessing.get_context("spawn")) as pool:
        orders = [numbers[shift:] + numbers[:shift] for shift in (0, 1, 6)]
        list(pool.map(count, [str(tmp_path / "cache")] * 3, [log] * 3, orders))
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda _: count(str(tmp_path / "cache"), log, numbers), range(2)))
    assert sorted(map(int, Path(log).read_text().split())) == numbers


def test_a_process_that_was_killed_leaves_no_half_file_and_uses_nothing(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HALF, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"half\n"
    cache = Cache(tmp_path, 25)
    with pytest.raises(NoRoomError):
        fetch(cache, "other")  # one file is used, another is being made
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    for name in ("other", "third"):  # there is room for both where the half one does not count any more
        cache.hold(key(name), "file", write)
    assert names(cache) == {"other", "third"}
    assert not list((tmp_path / "parts").iterdir())
    cache.let_go(key("other"))
    assert fetch(cache, "half").read_bytes() == b"x" * SIZE


def test_a_child_keeps_what_its_parent_used(tmp_path: Path) -> None:
    def parent(ready: int, wait: int) -> None:
        """Uses a file, makes a child and ends; the child says so, and waits."""
        Cache(tmp_path, 15).hold(key("a"), "file", write)
        if not os.fork():
            os.write(ready, b"1")
            os.read(wait, 1)
        os._exit(0)

    ready, wait = os.pipe(), os.pipe()
    if not (process := os.fork()):
        parent(ready[1], wait[0])
    os.waitpid(process, 0)
    os.read(ready[0], 1)
    cache = Cache(tmp_path, 15)
    with pytest.raises(NoRoomError):
        fetch(cache, "b")
    os.write(wait[1], b"1")
    until(lambda: fetch(cache, "b").is_file())


def until(done: Callable[[], bool]) -> None:
    for _ in range(200):
        try:
            assert done()
        except NoRoomError:
            time.sleep(0.02)
        else:
            return
    raise AssertionError("it never was")


def test_a_folder_that_cannot_be_made_is_a_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TimeloomError, match=r"the cache .*/file cannot be made or written"):
        Cache(tmp_path / "file", 10)
