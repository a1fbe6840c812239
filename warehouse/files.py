"""Files that are either whole or absent: every write goes through a temporary name, fsync and os.replace."""

import hashlib
import json
import os
import secrets
import shutil
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from itertools import takewhile
from pathlib import Path
from typing import Any

import xxhash

BLOCK_BYTES = 1 << 20
_SYNCED_AT_ONCE = 16


_SYNCED_LATER: ContextVar[Path | None] = ContextVar("synced later", default=None)


@contextmanager
def synced_later(folder: Path) -> Iterator[None]:
    """What is written below a folder meanwhile is not synced: `sync_tree` does it once for all. A file that a power
    failure damages before then is told by its hash and made again."""
    token = _SYNCED_LATER.set(folder)
    try:
        yield
    finally:
        _SYNCED_LATER.reset(token)


def sync_tree(folder: Path) -> None:
    """Makes every file and folder below a folder durable, several at a time: the disk writes them down together.

    A file that the disk does not take goes: a kernel says so once, and would call it durable when it is asked again.

    Raises:
        OSError: the disk does not take one.
    """
    places = [folder, *folder.rglob("*")]
    with ThreadPoolExecutor(_SYNCED_AT_ONCE) as pool:
        deque(pool.map(_sync_or_remove, (path for path in places if not path.is_symlink())), maxlen=0)


def _sync_or_remove(path: Path) -> None:
    try:
        sync_path(path)
    except OSError:
        if path.is_file():
            path.unlink()
        raise


@contextmanager
def atomic_write(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """Gives a temporary path beside `path`; on success it is synced and takes `path`'s name, on failure it goes.

    Args:
        sync: False for what can be made again and is checked when it is read: a power failure may damage it.
    """
    sync = sync and _SYNCED_LATER.get() not in path.parents
    make_folder(path.parent, sync=sync)
    # Two machines that share a file system may each have a process of one number.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        yield temporary
        if sync:
            sync_path(temporary)
        temporary.replace(path)
    except BaseException:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
        raise
    if sync:
        sync_path(path.parent)


def sync_path(path: Path) -> None:
    """Waits until the disk has a file's content, or a folder's names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Makes a rename inside `path` durable."""
    sync_path(path)


def make_folder(path: Path, *, mode: int = 0o777, sync: bool = True) -> None:
    """Makes a folder, and those above it that are missing; each is synced into the one above it.

    Args:
        mode: of the folder itself, where it is made.
        sync: see `atomic_write`.
    """
    missing = list(takewhile(lambda folder: not folder.exists(), (path, *path.parents)))
    if missing:
        path.mkdir(mode=mode, parents=True, exist_ok=True)
    for folder in missing if sync else ():
        with suppress(PermissionError):  # of a folder that may be entered and not listed
            sync_path(folder.parent)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as JSON with sorted keys, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, sort_keys=True, default=str) + "\n", encoding="utf-8")


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def xxh3_file(path: Path) -> str:
    """XXH3-128 of a file's bytes, hexadecimal: as fast as the file can be read.

    It is read and not mapped: where a disk fails, a mapped file ends the process without a word.
    """
    digest, block = xxhash.xxh3_128(), memoryview(bytearray(BLOCK_BYTES))
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(block):
            digest.update(block[:size])
    return digest.hexdigest()


def hash_file(path: Path) -> tuple[str, str]:
    """SHA-256 and XXH3-128 of a file's bytes, hexadecimal, in one reading."""
    strong, fast = hashlib.sha256(), xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            strong.update(block)
            fast.update(block)
    return strong.hexdigest(), fast.hexdigest()


def sha256_json(value: Any) -> str:
    """SHA-256 of a JSON value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


# Times of change are taken from a clock that moves by up to so much at a time.
_TICK_SECONDS = 0.02


def signature_of(status: os.stat_result) -> list[int]:
    """What tells that a file is as it was: size, times of change of its content and its entry, inode."""
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def seen_of(path: Path) -> tuple[int, ...]:
    """What the file system says of a file, for what a process keeps of it: of another file it is another; () without
    one."""
    try:
        return tuple(signature_of(path.stat()))
    except FileNotFoundError:
        return ()


def signature(path: Path) -> list[int]:
    """A file's `signature_of`, which every later change changes: of a file that has just changed it waits for the clock
    that times of change are taken from."""
    status = path.stat()
    age = time.time() - status.st_ctime
    if 0 <= age < _TICK_SECONDS:
        time.sleep(_TICK_SECONDS - age)
        status = path.stat()
    return signature_of(status)


def put_in_place(source: Path, target: Path) -> None:
    """Gives `target` the bytes of `source`, by one rename: a link where the file system has them, else a copy."""
    with atomic_write(target) as temporary:
        link_or_copy(source, temporary)


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-links `source` to `target`; copies where the file system has no links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
