"""Where a store of vectors is written while its own place is on a file system that machines share.

LMDB maps the file that it writes, which such a file system does not always keep in step. Where TIMELOOM_SCRATCH names a
folder of this machine, the store is copied there, written there, and put into its place whole, by one rename.
"""

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from warehouse.embeddings.value import store_name
from warehouse.errors import TimeloomError
from warehouse.files import atomic_write, signature_of
from warehouse.sealed import read_sealed, write_sealed

SCRATCH_VARIABLE = "TIMELOOM_SCRATCH"


def scratch_folder() -> Path | None:
    """The folder for it, if one is named.

    Raises:
        TimeloomError: it is no folder that can be written.
    """
    named = os.environ.get(SCRATCH_VARIABLE)
    if not named:
        return None
    folder = Path(named)
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise TimeloomError(
            f"{SCRATCH_VARIABLE} names no folder that can be written", remedy="name a folder of this machine's own disk"
        )
    return folder


class ScratchCopy:
    """A store at `path` as it is written in a scratch folder. Its writer alone uses it: `sole_writer` sees to that.

    What a process that was killed left there is gone on with, if the store is as it was when the copy was made.

    Attributes:
        path: where the store stands in the end.
        place: where it is written.
    """

    def __init__(self, path: Path, folder: Path) -> None:
        status = path.parent.stat()
        self.path = path
        self._folder = folder / f"timeloom-{status.st_dev:x}-{status.st_ino:x}-{path.stem}"
        self.place = self._folder / path.name
        self._made_of = self._folder / "made_of.json"
        self._goes_on = self._is_known()
        if not self._goes_on:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir(parents=True)
            if path.is_file():
                shutil.copyfile(path, self.place)
            self._note()

    def _now(self) -> list[int] | None:
        try:
            return signature_of(self.path.stat())
        except FileNotFoundError:
            return None

    def _state(self) -> dict[str, Any]:
        # A folder that is new may have the number of one that is gone: the store's name tells them apart.
        return {"store": store_name(self.path), "signature": self._now()}

    def _note(self) -> None:
        write_sealed(self._made_of, self._state())

    def _is_known(self) -> bool:
        try:
            return bool(read_sealed(self._made_of) == self._state())
        except (OSError, ValueError):
            return False

    def put_in_place(self, changed: bool) -> None:
        """The store takes its place, if this writer or one before it has `changed` it; the copy goes.

        Raises:
            TimeloomError: another worker has written the store since the copy was made; that stands.
        """
        if changed or self._goes_on or not self.path.is_file():
            with atomic_write(self.path) as temporary:
                shutil.copyfile(self.place, temporary)
                if not self._is_known():
                    raise TimeloomError(
                        f"embedding store {store_name(self.path)} was written by another worker meanwhile",
                        remedy="run again; what that one stored stands, and the rest is made again",
                    )
        with suppress(OSError):
            shutil.rmtree(self._folder)
