"""Files of a release in an object store, read as those of this machine: fetched into a cache when they are needed."""

import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from warehouse.errors import REPAIR, TimeloomError
from warehouse.layout import ReleaseLayout
from warehouse.manifest import FileEntry
from warehouse.readers.pinned import CHECKERS, PinnedRelease
from warehouse.remote.cache import Cache
from warehouse.remote.source import Source


@dataclass(frozen=True)
class StoredFiles(PinnedRelease):
    """What of a release is otherwise where its files stand in a place."""

    source: Source

    @classmethod
    def fetched(cls, address: Path | str, release: str | None, cache: Path | str | None, cache_bytes: int) -> Self:
        """Opens a release of a place; arguments and errors are those of `Release.open`."""
        if isinstance(address, Path):
            raise TimeloomError("an address is no path", remedy='give it as text: Release.open("s3://…", cache=…)')
        if cache is None:
            raise TimeloomError(
                "a release in an object store is read through a cache",
                remedy="give cache=, a folder on a fast local disk, and cache_bytes=, what it may hold",
            )
        source = Source(address, release, Cache(Path(cache).absolute(), cache_bytes))
        return cls(source.layout, _tree(source), source.manifest, source)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # Where stores are is for each process to say anew.
        self.__dict__["layout"] = self.source.layout

    def close(self) -> None:
        """This process reads the release no more, nor any frame or dataset of it: its files may leave the cache."""
        self.source.close()

    def relative(self, path: Path) -> str:
        if path.is_relative_to(self.source.cache.files):
            return self.source.name(path)
        return super().relative(path)

    def _entry(self, path: Path) -> FileEntry:
        name = self.relative(path)
        entry = self.manifest.files.get(name)
        if entry is None:
            raise TimeloomError(f"{name} is not part of the release", remedy=REPAIR)
        return entry

    def checked(self, path: Path) -> Path:
        """The path of a file in the cache, fetched if need be; it stays there until `let_go`, or this process ends.

        Raises:
            TimeloomError: the file cannot be fetched, or is corrupt in its place; the cache is full of files in use.
        """
        name, entry = self.relative(path), self._entry(path)
        found = self.source.hold(name, entry)
        try:
            return super().checked(found)
        except TimeloomError:  # damaged by this machine's disk, or by a loss of power
            self.source.discard(entry)
            self.source.let_go(entry)
        return super().checked(self.source.hold(name, entry))

    def checked_all(self, paths: Iterable[Path]) -> list[Path]:
        listed = self.present(paths)
        with ThreadPoolExecutor(CHECKERS) as pool:
            return list(pool.map(self.checked, listed))

    def let_go(self, path: Path) -> None:
        self.source.let_go(self._entry(path))

    def expect(self, paths: Callable[[], Iterable[Path]], stores: Iterable[tuple[str, str]]) -> None:
        names = [self.relative(path) for path in paths()]
        size, most = sum(self.manifest.files[name].bytes for name in set(names)), self.source.cache.most
        if size > most:
            warnings.warn(
                f"the shards that will be read have {size} bytes, the cache holds {most}: shuffled packs are fetched "
                "again and again; give more cache_bytes, or seed=None for the stored order",
                stacklevel=2,
            )
        self.source.expect(names, stores)


def _tree(source: Source) -> ReleaseLayout:
    return ReleaseLayout(source.layout.releases / source.shipment.release_id)
