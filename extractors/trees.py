"""A tree folder by folder, with what the file system says of each file, so that no more than one folder is held."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from warehouse.files import signature_of


@dataclass(frozen=True)
class Folder:
    """A folder's own files, not those of folders below it.

    Attributes:
        path: from the root, posix; empty for the root itself.
        files: by name, in order, `warehouse.files.signature_of`; empty for what cannot be asked, as a link to nowhere.
        listed: False where the folder cannot be listed.
    """

    path: str
    files: dict[str, list[int]]
    listed: bool = True

    def inside(self, name: str) -> str:
        """The path of one of its files from the root."""
        return f"{self.path}/{name}" if self.path else name


def folders_of(root: Path) -> Iterator[Folder]:
    """Every folder of a tree, in order; links to folders are not followed."""
    waiting = [""]
    while waiting:
        folder, below = _listed(root, waiting.pop())
        waiting += [folder.inside(name) for name in sorted(below, reverse=True)]
        yield folder


def folder_at(root: Path, path: str) -> Folder:
    """One folder of a tree, as it is now."""
    return _listed(root, path)[0]


def _listed(root: Path, path: str) -> tuple[Folder, list[str]]:
    """A folder, and the names of the folders in it."""
    files: dict[str, list[int]] = {}
    below = []
    try:
        with os.scandir(root / path) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    below.append(entry.name)
                elif not entry.is_dir():
                    files[entry.name] = _signature(entry)
    except OSError:
        return Folder(path, {}, listed=False), []
    return Folder(path, dict(sorted(files.items()))), below


def _signature(entry: "os.DirEntry[str]") -> list[int]:
    try:
        return signature_of(entry.stat())
    except OSError:
        return []
