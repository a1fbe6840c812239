"""Objects fetched and checked, several at a time."""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TypeVar

from warehouse.files import sha256_file
from warehouse.progress import Progress
from warehouse.remote.place import Place
from warehouse.remote.shipment import ObjectEntry, absent, corrupt, object_name

T = TypeVar("T")
AT_ONCE = 8


def in_parallel(
    work: Callable[[T], None], tasks: Sequence[T], stage: str, progress: Progress | None, at_once: int = AT_ONCE
) -> None:
    """Carries out tasks in threads; the first error ends it, when what is under way is done."""
    done = 0
    with ThreadPoolExecutor(at_once, thread_name_prefix="timeloom-transfer") as pool:
        pending = {pool.submit(work, task) for task in tasks}
        try:
            while pending:
                ended, pending = wait(pending, return_when=FIRST_EXCEPTION, timeout=0.2)
                for future in ended:
                    future.result()
                done += len(ended)
                if progress is not None and ended:
                    progress(stage, done, len(tasks))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def fetch_file(place: Place, name: str, sha256: str, size: int, target: Path) -> None:
    """Copies an object into a file and compares it with its name: once more where it differs, as it may on its way.

    Args:
        name: what an error calls it.

    Raises:
        TimeloomError: there is no such object, or its bytes are others; the file is of no use then.
    """
    for _ in range(2):
        try:
            place.fetch(object_name(sha256), target)
        except FileNotFoundError as error:
            raise absent(place, name, sha256) from error
        if target.stat().st_size == size and sha256_file(target) == sha256:
            return
    raise corrupt(place, name, sha256)


def read_object(place: Place, name: str, entry: ObjectEntry) -> bytes:
    """An object in memory, compared with its name; as `fetch_file`."""
    for _ in range(2):
        data = place.read(object_name(entry.sha256))
        if data is None:
            raise absent(place, name, entry.sha256)
        if hashlib.sha256(data).hexdigest() == entry.sha256:
            return data
    raise corrupt(place, name, entry.sha256)
