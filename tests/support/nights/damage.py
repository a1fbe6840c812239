"""Kinds of file under a root, and ways to harm one."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

_NAMES = (
    (r"releases/[^/]+/", "releases/ID/"),
    (r"quality/data_docs/.*", "quality/data_docs/FILE"),
    (r"quality/[^/.]+\.(parquet|png)$", r"quality/NAME.\1"),
    (r"measures/(lengths|gaps|losses)/\w+/", r"measures/\1/PROFILE/"),
    (r"measures/segments/\w+\.\w+/\w+/", "measures/segments/PROFILE.PLAN/SPLIT/"),
    (r"(shards)/\w+\.\w+/\w+/", r"\1/PROFILE.PLAN/SPLIT/"),
    (r"(shards)/\w+/\w+/", r"\1/PROFILE/SPLIT/"),
    (r"(vocabularies|timelines)/\w+/", r"\1/PROFILE/"),
    (r"subsets/\w+\.\w+\.", "subsets/PROFILE.PLAN."),
    (r"splits/\w+/", "splits/SCHEME/"),
    (r"labels/\w+/", "labels/TASK/"),
    (r"embeddings/\w+/[^/]+/", "embeddings/MODALITY/STORE/"),
    (r"(lineage|logs)/[^/.]+", r"\1/RUN"),
    (r"items-\w+-[0-9a-f]{24}", "items-MODALITY-HASH"),
    (r"\b(ct|wsi|note)-[0-9a-f]{24}", "MODALITY-HASH"),
    (r"[0-9a-f]{24}", "HASH"),
    (r"segments/[0-9a-f]{12}-HASH", "segments/FILE-HASH"),
    (r"digests/\d{4}-[0-9a-f]{12}-", "digests/N-HASH-"),
    (r"\b\d{4}\b", "N"),
)


def kind_of(name: str) -> str:
    """A file's name, with what differs from file to file of its kind left out."""
    for pattern, words in _NAMES:
        name = re.sub(pattern, words, name)
    return name


def files_of(root: Path) -> Iterator[tuple[str, Path]]:
    """Every file of a root and of the folder beside it, by names as `timeloom verify` tells them."""
    private = root.with_name(f"{root.name}.private")
    for top, prefix in ((root, ""), (private, "private/")):
        for path in sorted(top.rglob("*")):
            if path.is_symlink() or path.is_file():
                yield prefix + path.relative_to(top).as_posix(), path


def flip(path: Path) -> None:
    """Changes one byte where it lies, as a disk does: every link to the file sees it."""
    data = path.read_bytes()
    value = data.find(b"TLEV")  # of a store of vectors, whose other bytes may be of no use to anybody
    at = value + 200 if path.suffix == ".lmdb" and value >= 0 else len(data) // 2
    with path.open("r+b") as file:
        file.seek(at)
        file.write(bytes([data[at] ^ 1]))


def cut(path: Path) -> None:
    """The second half is gone."""
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    """Nothing is left in it."""
    os.truncate(path, 0)


def delete(path: Path) -> None:
    """It is gone."""
    path.unlink()


HARMS: dict[str, Callable[[Path], None]] = {"flipped": flip, "cut": cut, "emptied": empty, "deleted": delete}
