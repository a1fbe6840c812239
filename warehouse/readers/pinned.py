"""A release, pinned: its files as the manifest lists them, each compared with its checksum before it is first used."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy.typing as npt

from warehouse.embeddings.store import EmbeddingStore
from warehouse.errors import TimeloomError
from warehouse.files import sha256_file, xxh3_file
from warehouse.layout import Layout, ReleaseLayout
from warehouse.manifest import FileEntry, Manifest, read_manifest
from warehouse.publish import current_release
from warehouse.schemas import SPLITS

REMEDY = "run `timeloom verify`, delete the damaged file and run again"


@dataclass(frozen=True)
class PinnedRelease:
    """The files of one published release, and the manifest that says what they must be."""

    layout: Layout
    files: ReleaseLayout
    manifest: Manifest
    _verified: set[str] = field(default_factory=set, repr=False, compare=False)

    @classmethod
    def open(cls, root: Path | str, release: str | None = None) -> Self:
        """The release that `current` points at now, or the one named.

        Raises:
            TimeloomError: nothing is published, no such release, or its manifest is damaged.
        """
        layout = Layout(Path(root))
        if release is None:
            found = current_release(layout)
            if found is None:
                raise TimeloomError(f"{layout.root.name} has no published release", remedy="run `timeloom run` first")
        else:
            found = ReleaseLayout(layout.releases.resolve() / release)
            if not found.path.is_dir():
                raise TimeloomError(
                    f"there is no release {release}", remedy="see `timeloom status` for those there are"
                )
        return cls(layout, found, read_manifest(found.manifest))

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
            raise TimeloomError(f"{name} is not part of the release", remedy="run `timeloom verify`")
        if not path.is_file():
            raise TimeloomError(f"{name} is missing from the release", remedy=REMEDY)
        if path.stat().st_size != entry.bytes:
            raise TimeloomError(
                f"{name} is truncated or was changed: its size differs from the manifest", remedy=REMEDY
            )
        return entry

    def present(self, paths: list[Path]) -> list[Path]:
        listed = [path for path in paths if self.relative(path) in self.manifest.files]
        for path in listed:
            self._entry(path)
        return listed

    def checked(self, path: Path) -> Path:
        """The path, its content compared with the manifest's checksum the first time: XXH3-128, or SHA-256."""
        name = self.relative(path)
        if name not in self._verified:
            entry = self._entry(path)
            if (sha256_file(path) != entry.sha256) if entry.xxh3 is None else (xxh3_file(path) != entry.xxh3):
                raise TimeloomError(f"{name} is corrupt: its checksum differs from the manifest", remedy=REMEDY)
            self._verified.add(name)
        return path

    def stored_vector(self, modality: str, store: str, bucket: int, key: str) -> npt.NDArray[Any]:
        path = self.layout.embedding_bucket(modality, store, bucket)
        try:
            return EmbeddingStore.open(path).get(key)
        except KeyError:
            name = "/".join(path.parts[-3:])
        raise TimeloomError(f"embedding store {name} lacks an item of the release", remedy="run `timeloom verify`")


def check_split(split: str) -> str:
    if split not in SPLITS:
        raise TimeloomError(f"there is no split called {split}", remedy=f"choose one of {', '.join(SPLITS)}")
    return split
