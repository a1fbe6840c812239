"""A release, pinned: its files as the manifest lists them, each compared with its checksum before it is first used."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy.typing as npt
import polars as pl

from warehouse import leases
from warehouse.embeddings.store import EmbeddingStore
from warehouse.errors import REPAIR, TimeloomError
from warehouse.layout import Layout, ReleaseLayout
from warehouse.manifest import FileEntry, Manifest, read_manifest
from warehouse.parquet import read_frame
from warehouse.publish import hold_release
from warehouse.schemas import SPLITS

# Threads that read files for their checksums, and how many bytes are worth starting them.
CHECKERS = 8
WORTH_THREADS = 64 << 20

# What this process has compared with its checksum: a file is read once more when another stands in its place, or when
# it was written to. By device and inode, as releases share files: size, time of the last write, the checksum.
_Known = tuple[int, int, str]
_checked: dict[tuple[int, int], _Known] = {}


@dataclass(frozen=True)
class PinnedRelease:
    """The files of one published release, and the manifest that says what they must be."""

    layout: Layout
    files: ReleaseLayout
    manifest: Manifest

    @classmethod
    def open(cls, root: Path | str, release: str | None = None) -> Self:
        """The release that `current` points at now, or the one named: any that is still kept.

        `timeloom gc` leaves it alone until this process ends, or `close` is called.

        Raises:
            TimeloomError: nothing is published, no such release, or its manifest is damaged.
        """
        layout = Layout(Path(root))
        found = hold_release(layout, release)
        return cls(layout, found, read_manifest(found.manifest))

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A process that is handed a release holds it too."""
        self.__dict__.update(state)
        leases.hold(self.path)

    def close(self) -> None:
        """This process reads the release no more, nor any frame or dataset of it: `timeloom gc` may remove it."""
        leases.give_up(self.path)

    @property
    def path(self) -> Path:
        """The release's directory."""
        return self.files.path

    def check_profile(self, profile: str) -> None:
        if profile not in self.manifest.profiles:
            known = ", ".join(self.manifest.profiles) or "none"
            raise TimeloomError(f"the release has no profile {profile}", remedy=f"choose one of: {known}")

    def relative(self, path: Path) -> str:
        return path.relative_to(self.path).as_posix()

    def _entry(self, path: Path) -> FileEntry:
        """The manifest's entry of a file that is there with its size; content unread."""
        name = self.relative(path)
        entry = self.manifest.files.get(name)
        if entry is None:
            raise TimeloomError(f"{name} is not part of the release", remedy=REPAIR)
        if not path.is_file():
            raise TimeloomError(f"{name} is missing from the release", remedy=REPAIR)
        if path.stat().st_size != entry.bytes:
            raise TimeloomError(
                f"{name} is truncated or was changed: its size differs from the manifest", remedy=REPAIR
            )
        return entry

    def present(self, paths: Iterable[Path]) -> list[Path]:
        """Those of `paths` that the manifest lists, there with their sizes; content unread."""
        listed = [path for path in paths if self.relative(path) in self.manifest.files]
        for path in listed:
            self._entry(path)
        return listed

    def checked(self, path: Path) -> Path:
        """The path, its content compared with the manifest's checksum once a process: XXH3-128, or SHA-256.

        Raises:
            TimeloomError: the file is missing, cut short or changed.
        """
        entry = self._entry(path)
        identity, known = _said_of(path, entry)
        if _checked.get(identity) != known:
            if not entry.is_of(path):
                name = self.relative(path)
                raise TimeloomError(f"{name} is corrupt: its checksum differs from the manifest", remedy=REPAIR)
            _checked[identity] = known
        return path

    def checked_all(self, paths: Iterable[Path]) -> list[Path]:
        """Those of `paths` that the manifest lists, each as `checked` gives it; several are read at a time."""
        listed = self.present(paths)
        new = [path for path in listed if not self._is_known(path)]
        if sum(path.stat().st_size for path in new) < WORTH_THREADS:
            return [self.checked(path) for path in listed]
        with ThreadPoolExecutor(CHECKERS) as pool:
            return list(pool.map(self.checked, listed))

    def let_go(self, path: Path) -> None:
        """Nothing reads a file any more that `checked` gave; a release of this machine needs no telling."""

    def expect(self, paths: Callable[[], Iterable[Path]], stores: Iterable[tuple[str, str]]) -> None:
        """What will be read next, in that order, and the vectors of which modalities and stores beside it; on this
        machine everything is there."""

    def _is_known(self, path: Path) -> bool:
        identity, known = _said_of(path, self._entry(path))
        return _checked.get(identity) == known

    def splits(self, scheme: str | None = None) -> pl.DataFrame:
        """subject_id and split of every subject that has one in a scheme; the release's first where not given.

        Raises:
            TimeloomError: no such scheme, or the file is damaged.
        """
        path = self.files.scheme_subjects(scheme or self.manifest.split_scheme)
        if self.relative(path) not in self.manifest.files:
            known = sorted(name.split("/")[1] for name in self.manifest.files if name.endswith("/" + path.name))
            raise TimeloomError(
                f"the release has no split scheme {scheme}", remedy=f"choose one of: {', '.join(known)}"
            )
        return read_frame(self.checked(path)).select("subject_id", "split")

    def stored_vector(self, modality: str, store: str, bucket: int, key: str) -> npt.NDArray[Any]:
        path = self.layout.embedding_bucket(modality, store, bucket)
        try:
            return EmbeddingStore.open(path).get(key)
        except KeyError:
            name = "/".join(path.parts[-3:])
        raise TimeloomError(f"embedding store {name} lacks an item of the release", remedy=REPAIR)


def _said_of(path: Path, entry: FileEntry) -> tuple[tuple[int, int], _Known]:
    """Which file it is, and what must be as it was for a comparison to hold."""
    status = path.stat()
    return (status.st_dev, status.st_ino), (status.st_size, status.st_mtime_ns, entry.xxh3 or entry.sha256)


def check_split(split: str) -> str:
    if split not in SPLITS:
        raise TimeloomError(f"there is no split called {split}", remedy=f"choose one of {', '.join(SPLITS)}")
    return split
