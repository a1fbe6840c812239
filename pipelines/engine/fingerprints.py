"""Content hashes of raw files, remembered by path and by what the file system says of a file.

That is its size, the times when its content and its entry changed, and its inode: a program that sets the first time
back, or puts another file of the same size and time in its place, changes one of the others. For the same reason a
folder that was copied or restored is read again; its content decides whether anything is done.
"""

import json
import os
import stat
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from warehouse.errors import TimeloomError
from warehouse.files import sha256_file, sha256_json, write_json


def _said_of(status: os.stat_result) -> list[str | int]:
    """What tells that a file is as it was."""
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


class Fingerprints:
    """A memory of hashes. It lies in the private folder, because raw paths may name patients.

    Args:
        rehash: what was remembered does not count: every file is read once more, and images are indexed again.
    """

    def __init__(self, private: Path, *, rehash: bool = False) -> None:
        self.rehash = rehash
        self._path = private / "fingerprints.json"
        try:
            known: dict[str, list[str | int]] = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            known = {}
        self._known = {} if rehash else known
        self._seen: dict[str, list[str | int]] = {}

    def of(self, path: Path) -> str:
        """SHA-256 of a file; of a database, with what stands in its write-ahead log."""
        log = path.with_name(f"{path.name}.wal")
        return sha256_json([self._of(path), self._of(log)]) if log.is_file() else self._of(path)

    def read_ahead(self, paths: Iterable[Path], readers: int) -> None:
        """Hashes some files, a few at a time, so that `of` knows them; raises what it does."""
        with ThreadPoolExecutor(readers) as pool:
            for _ in pool.map(self.of, paths):
                pass

    def _of(self, path: Path) -> str:
        """SHA-256 of a file.

        Raises:
            TimeloomError: unreadable.
        """
        try:
            status = path.stat()
            key = str(path.resolve())
            known = self._seen.get(key) or self._known.get(key)
            if known is None or known[:-1] != _said_of(status):
                known = [*_said_of(status), sha256_file(path)]
        except OSError as error:
            raise TimeloomError("a raw file cannot be read", remedy="check its permissions and its disk") from error
        self._seen[key] = known
        return str(known[-1])

    @staticmethod
    def of_tree(folder: Path) -> str:
        """A hash over names, and what the file system says of each, of a tree too large to be read every night."""
        listing: list[list[str | int]] = []
        for path in sorted(folder.rglob("*")):
            name = str(path.relative_to(folder))
            try:
                status = path.stat()
            except OSError:  # a link to nowhere, or a file that went meanwhile: part of the listing as such
                listing.append([name, -1, -1])
                continue
            if stat.S_ISREG(status.st_mode):
                listing.append([name, *_said_of(status)])
        return sha256_json(listing)

    def save(self) -> None:
        """Keeps what this run saw."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_json(self._path, self._seen)
