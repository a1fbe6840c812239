"""The files of a release that stands in a place, fetched into a cache when they are needed, and ahead of that."""

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lmdb

from warehouse.embeddings.environments import supply
from warehouse.errors import TimeloomError
from warehouse.files import atomic_write, sha256_file
from warehouse.layout import Layout, bucket_name
from warehouse.manifest import FileEntry, Manifest, read_manifest
from warehouse.remote import shipment as shipments
from warehouse.remote.cache import Cache
from warehouse.remote.place import Place
from warehouse.remote.shipment import BucketVectors, Shipment, is_inside
from warehouse.remote.transfer import fetch_file
from warehouse.remote.vectors import make_store, vectors_name

AHEAD_THREADS = 4
# What a store takes on disk: its entries, the pages of their keys, and some.
STORE_SHARE, STORE_BYTES = 1.1, 1 << 16


@dataclass(frozen=True)
class StoredLayout(Layout):
    """The layout of a release in a place: below `root` stands its manifest; stores stand in the cache.

    Attributes:
        stores: by modality, store and bucket, where the vectors are when they are fetched.
    """

    stores: dict[tuple[str, str, int], Path] = field(default_factory=dict, compare=False)

    def embedding_bucket(self, modality: str, store: str, bucket: int) -> Path:
        found = self.stores.get((modality, store, bucket))
        # A bucket without items has no vectors; whoever asks for some is told so.
        return found or super().embedding_bucket(modality, store, bucket)


class Source:
    """The files of one release of a place.

    Args:
        address: of the place.
        release: its id; the place's current release where None.
        cache: where files are fetched to.

    Raises:
        TimeloomError: the place has no such release or cannot be reached, or its manifest is damaged.
    """

    def __init__(self, address: str, release: str | None, cache: Cache) -> None:
        self.place, self.cache = Place(address), cache
        origin = shipments.origin_at(self.place)
        wanted = release or shipments.current_at(self.place)
        if origin is None or wanted is None:
            if not self.place.exists():
                raise self.place.missing()
            raise TimeloomError(f"nothing was pushed to {self.place}", remedy="run `timeloom push` on a root first")
        self.shipment: Shipment = shipments.read_shipment(self.place, wanted)
        self.manifest = self._manifest()
        self._prepare()

    def __getstate__(self) -> dict[str, Any]:
        return {"place": self.place, "cache": self.cache, "shipment": self.shipment, "manifest": self.manifest}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._prepare()

    def _prepare(self) -> None:
        self._ahead: _Ahead | None = None
        stores: dict[tuple[str, str, int], Path] = {}
        for name, buckets in self.shipment.vectors.items():
            modality, _, store = name.partition("/")
            for bucket, found in buckets.items():
                label = f"{modality}/{store}/{bucket_name(bucket)}.lmdb"
                path = self.cache.path(_store_key(found), label)
                stores[modality, store, bucket] = path
                supply(path, self._supplier(found, label))
        self.layout = StoredLayout(self.view, stores)
        self._stores = {path: (name, bucket) for name, path in stores.items() for bucket in [name[2]]}

    @property
    def view(self) -> Path:
        """Where the manifest stands: a root without files."""
        return self.cache.folder / "releases" / self.shipment.manifest.sha256[:16]

    def _manifest(self) -> Manifest:
        entry = self.shipment.manifest
        path = self.view / "releases" / self.shipment.release_id / "manifest.json"
        if not path.is_file() or sha256_file(path) != entry.sha256:
            with atomic_write(path) as temporary:
                fetch_file(self.place, "manifest.json", entry.sha256, entry.bytes, temporary)
        manifest = read_manifest(path)
        if not all(map(is_inside, manifest.files)):
            raise TimeloomError(f"the manifest of {self.place} is damaged", remedy="push the release again")
        return manifest

    def path(self, name: str, entry: FileEntry) -> Path:
        """Where a file of the release is when it is fetched."""
        return self.cache.path(_key(entry), name)

    def name(self, path: Path) -> str:
        """The name that a file of the cache has in the release."""
        return Path(*path.relative_to(self.cache.files).parts[1:]).as_posix()

    def hold(self, name: str, entry: FileEntry) -> Path:
        """A file of the release, fetched if need be; it stays in the cache until `let_go`.

        Raises:
            TimeloomError: it cannot be fetched, or the cache is full of files in use.
        """

        def make(part: Path) -> None:
            fetch_file(self.place, name, entry.sha256, entry.bytes, part)

        path = self.cache.hold(_key(entry), name, make)
        if self._ahead is not None:
            self._ahead.used(_key(entry))
        return path

    def let_go(self, entry: FileEntry) -> None:
        """A file that was held is not read any more."""
        self.cache.let_go(_key(entry))

    def discard(self, entry: FileEntry) -> None:
        """A file of the cache is damaged: it is fetched anew when it is held next."""
        self.cache.discard(_key(entry))

    def _supplier(self, vectors: BucketVectors, label: str) -> Callable[[], None]:
        return lambda: self._hold_store(vectors, label)

    def _hold_store(self, vectors: BucketVectors, label: str) -> None:
        """Makes the store of a bucket of the packs that it consists of; it stays until the process ends."""
        modality, store, _ = label.split("/")
        name = vectors_name(modality, store, int(Path(label).stem))

        def make(part: Path) -> None:
            with ExitStack() as stack:
                packs = [stack.enter_context(self.cache.scratch(entry.bytes)) for entry in vectors.packs]
                for pack, entry in zip(packs, vectors.packs, strict=True):
                    fetch_file(self.place, name, entry.sha256, entry.bytes, pack)
                make_store(part, packs)

        self.cache.hold(_store_key(vectors), label, make)
        if self._ahead is not None:
            self._ahead.used(_store_key(vectors))

    def expect(self, names: Iterable[str], modalities: Iterable[tuple[str, str]]) -> None:
        """Fetches in threads what will be read next, in that order, as far as half of the cache goes.

        Args:
            names: of files.
            modalities: with their stores, whose vectors will be read beside them.
        """
        self.stop()
        self._ahead = _Ahead(self, list(self._tasks(list(names), set(modalities))))

    def _tasks(self, names: list[str], modalities: set[tuple[str, str]]) -> "Iterator[_Task]":
        files = [self._file_task(name, self.manifest.files[name]) for name in names]
        stores = [
            self._store_task(found, f"{name}/{bucket_name(bucket)}.lmdb")
            for name, buckets in self.shipment.vectors.items()
            if (name.partition("/")[0], name.partition("/")[2]) in modalities
            for bucket, found in buckets.items()
        ]
        # The first batch wants a file, and vectors of most buckets.
        yield from files[:1]
        yield from stores
        yield from files[1:]

    def _file_task(self, name: str, entry: FileEntry) -> "_Task":
        def fetch() -> None:
            self.cache.hold(
                _key(entry), name, lambda part: fetch_file(self.place, name, entry.sha256, entry.bytes, part)
            )
            self.cache.let_go(_key(entry))

        return _Task(_key(entry), entry.bytes, fetch)

    def _store_task(self, vectors: BucketVectors, label: str) -> "_Task":
        def fetch() -> None:
            self._hold_store(vectors, label)
            self.cache.let_go(_store_key(vectors))

        return _Task(_store_key(vectors), _store_bytes(vectors), fetch)

    def stop(self) -> None:
        """Nothing is fetched ahead any more."""
        if self._ahead is not None:
            self._ahead.stop()
            self._ahead = None

    def close(self) -> None:
        """This process reads nothing of the release any more."""
        self.stop()
        self.cache.close()


def _key(entry: FileEntry) -> str:
    return f"{entry.sha256}.{entry.bytes}"


def _store_key(vectors: BucketVectors) -> str:
    return f"{vectors.content}.{_store_bytes(vectors)}"


def _store_bytes(vectors: BucketVectors) -> int:
    return int(vectors.bytes * STORE_SHARE) + STORE_BYTES


@dataclass(frozen=True)
class _Task:
    key: str
    bytes: int
    fetch: Callable[[], None]


class _Ahead:
    """Threads that fetch what is read later: what nobody has used yet of it takes half of the cache at most."""

    def __init__(self, source: Source, tasks: list[_Task]) -> None:
        self._most = source.cache.most // 2
        self._tasks, self._next = tasks, 0
        self._unused: dict[str, int] = {}
        self._used: set[str] = set()
        self._stopped, self._process = False, os.getpid()
        self._changed = threading.Condition()
        for _ in range(min(AHEAD_THREADS, len(tasks))):
            threading.Thread(target=self._work, name="timeloom-ahead", daemon=True).start()

    def _take(self) -> _Task | None:
        with self._changed:
            while not self._stopped and self._next < len(self._tasks):
                task = self._tasks[self._next]
                if task.key in self._used:
                    self._next += 1
                elif not self._unused or sum(self._unused.values()) + task.bytes <= self._most:
                    self._next += 1
                    self._unused[task.key] = task.bytes
                    return task
                else:
                    self._changed.wait()
        return None

    def _work(self) -> None:
        while (task := self._take()) is not None:
            # What cannot be fetched now is fetched, or said, when it is read.
            with suppress(TimeloomError, OSError, lmdb.Error):
                task.fetch()

    def used(self, key: str) -> None:
        """A file is read."""
        if self._process != os.getpid():  # its threads are not here
            return
        with self._changed:
            self._used.add(key)
            if self._unused.pop(key, None) is not None:
                self._changed.notify_all()

    def stop(self) -> None:
        if self._process == os.getpid():
            with self._changed:
                self._stopped = True
                self._changed.notify_all()
