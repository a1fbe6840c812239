"""A tree folder by folder, with what the file system says of each file, so that no more than one folder is held."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from warehouse.files import signature_of


@dataclass(frozen=True)
class Folder:
    """A folder's own files, not those of folders below it.

    Attributes:
        path: from the root, posix; empty for the root itself.
        files: by name, in order, `warehouse.files.signature_of`; empty for what cannot be asked, as a link to nowhere.
        listed: False where the folder cannot be listed.
        links: names of links to folders, which are not followed.
    """

    path: str
    files: dict[str, list[int]]
    listed: bool = True
    links: tuple[str, ...] = ()

    def inside(self, name: str) -> str:
        """The path of one of its files from the root."""
        return f"{self.path}/{name}" if self.path else name

    def beside(self) -> "list[Entry]":
        """What keeps files from being found."""
        closed = [] if self.listed else [Entry(self.path, "closed")]
        return closed + [Entry(self.inside(name), "link") for name in self.links]


class Entry(NamedTuple):
    """A path from the root, and what lies there: a file, a folder that cannot be listed, or a link to a folder."""

    path: str
    kind: Literal["file", "closed", "link"]


def walk(root: Path, *, hidden: bool = True) -> Iterator[Entry]:
    """Every file of a tree, in order, and what keeps others from being found: it is said, and not passed over.

    Args:
        hidden: whether folders whose name begins with a dot are searched.
    """
    for folder in folders_of(root, hidden=hidden):
        yield from folder.beside()
        yield from (Entry(folder.inside(name), "file") for name in folder.files)


def folders_of(root: Path, *, hidden: bool = True) -> Iterator[Folder]:
    """Every folder of a tree, in order; links to folders are not followed.

    A root that is a file is a tree of one folder with one file, whose name is empty: `root / ""` is the file.
    """
    waiting = [""]
    while waiting:
        folder, below = _listed(root, waiting.pop())
        waiting += [folder.inside(name) for name in sorted(below, reverse=True) if hidden or name[0] != "."]
        yield folder


def folder_at(root: Path, path: str) -> Folder:
    """One folder of a tree, as it is now."""
    return _listed(root, path)[0]


def _listed(root: Path, path: str) -> tuple[Folder, list[str]]:
    """A folder, and the names of the folders in it."""
    if not path and root.is_file():
        return Folder("", {"": signature_of(root.stat())}), []
    files: dict[str, list[int]] = {}
    below, links = [], []
    try:
        with os.scandir(root / path) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    below.append(entry.name)
                elif entry.is_dir():
                    links.append(entry.name)
                else:
                    files[entry.name] = _signature(entry)
    except OSError:
        return Folder(path, {}, listed=False), []
    return Folder(path, dict(sorted(files.items())), links=tuple(sorted(links))), below


def _signature(entry: "os.DirEntry[str]") -> list[int]:
    try:
        return signature_of(entry.stat())
    except OSError:
        return []
