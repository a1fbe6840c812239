"""Content hashes of raw files, remembered by path and by what the file system says of a file.

That is its size, the times when its content and its entry changed, and its inode: a program that sets the first time
back, or puts another file of the same size and time in its place, changes one of the others. For the same reason a
folder that was copied or restored is read again; its content decides whether anything is done.
"""

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

from extractors.trees import folders_of
from pipelines.engine.task import RawFile
from warehouse.errors import TimeloomError
from warehouse.files import make_folder, sha256_file, sha256_json, signature
from warehouse.sealed import read_sealed, write_sealed


class Fingerprints:
    """A memory of hashes. It lies in the private folder, because raw paths may name patients.

    Args:
        rehash: what was remembered does not count: every file is read once more, and images are indexed again.
    """

    def __init__(self, private: Path, *, rehash: bool = False) -> None:
        self.rehash = rehash
        self._path = private / "fingerprints.json"
        try:
            known: dict[str, list[str | int]] = read_sealed(self._path)
        except (OSError, ValueError):  # damaged, and so not believed
            known = {}
        self._known = {} if rehash else known
        self._seen: dict[str, list[str | int]] = {}
        self._kept = known

    def of(self, path: Path) -> str:
        """SHA-256 of a file; of a database, with what stands in its write-ahead log."""
        log = _log_of(path)
        return sha256_json([self._of(path), self._of(log)]) if log.is_file() else self._of(path)

    def planned(self, path: Path, what: str) -> dict[str, RawFile]:
        """What a task that reads a file, whose hash `of` gave, is held against afterwards; see `Task.raw_files`.

        Args:
            what: the file in words, without its name: a table, say.
        """
        return {
            str(part): RawFile(what=what, signature=[int(number) for number in seen[:-1]] if seen else None)
            for part in (path, _log_of(path))
            if (seen := self._seen.get(str(part.resolve()))) or part != path
        }

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
            # Before it is read: what changes meanwhile has another signature when the task that reads it ends.
            now = signature(path)
            key = str(path.resolve())
            known = self._seen.get(key) or self._known.get(key)
            if known is None or known[:-1] != now:
                known = [*now, sha256_file(path)]
        except OSError as error:
            raise TimeloomError("a raw file cannot be read", remedy="check its permissions and its disk") from error
        self._seen[key] = known
        return str(known[-1])

    @staticmethod
    def of_tree(folder: Path) -> str:
        """A hash over names, and what the file system says of each, of a tree too large to be read every night."""
        digest = sha256()
        for part in folders_of(folder):
            files = [[part.inside(name), *said] for name, said in part.files.items()]
            digest.update(json.dumps([part.beside(), files]).encode())
        return digest.hexdigest()

    def save(self) -> None:
        """Keeps what this run saw, if that is something else than what is kept."""
        if self._seen == self._kept:
            return
        make_folder(self._path.parent, mode=0o700)
        write_sealed(self._path, self._seen)
        self._kept = dict(self._seen)


def _log_of(path: Path) -> Path:
    """Where a database would keep its write-ahead log."""
    return path.with_name(f"{path.name}.wal")
