"""What an engine sends to a worker that this process did not start: a task, and what the worker is held to.

Such a worker may have another timeloom, other libraries, the root in another place or no root at all. One that would
make other bytes, or write where nobody looks, refuses the task and says why; it writes nothing.
"""

import json
import os
import re
import socket
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipelines.engine.task import LIBRARIES, Task
from warehouse.errors import TimeloomError

# On a worker: what stands elsewhere there, as /data=/mnt/data; several by `:`.
PATHS_VARIABLE = "TIMELOOM_PATHS"
# The rooms whose code makes bytes.
_ROOMS = ("warehouse", "extractors", "embedders", "pipelines", "validation")
_REFUSED = re.compile(r"<refused:\s(.*?);\s(.*?)>", re.DOTALL)


class WorkerRefusedError(TimeloomError):
    """A worker that may not run the task. Its text is marked, so that it is found in whatever a runner says."""

    def __str__(self) -> str:
        return f"<refused: {self.message}; {self.remedy}>"


def refusal_in(said: str) -> TimeloomError | None:
    """A worker's refusal, where a runner's words hold one."""
    found = _REFUSED.search(said)
    return TimeloomError(*(" ".join(part.split()) for part in found.groups())) if found else None


@cache
def code_here() -> dict[str, str]:
    """What makes a task's bytes on this machine: timeloom, a hash of its code, and libraries, each by its name.

    Worked out once a process; a change of the installed code after that is seen by the next process.
    """
    digest = sha256()
    for room, folder in _folders():
        for path in sorted(path for path in folder.rglob("*") if path.suffix in (".py", ".yaml")):
            digest.update(f"{room}/{path.relative_to(folder).as_posix()}\0".encode())
            digest.update(path.read_bytes())
    libraries = dict(library.split(" ", 1) for library in LIBRARIES)
    return {"timeloom": version("timeloom"), "code of timeloom": digest.hexdigest()[:12], **libraries}


def _folders() -> list[tuple[str, Path]]:
    """The rooms, and where each one lies."""
    specs = [(room, find_spec(room)) for room in _ROOMS]
    return [
        (room, Path(folder))
        for room, spec in specs
        for folder in (spec.submodule_search_locations or () if spec is not None else ())
    ]


def pack(task: Task) -> str:
    """A task as JSON, for a worker anywhere. The folder of its outputs is made, so that a worker can be held to it."""
    base = Path(task.base)
    base.mkdir(parents=True, exist_ok=True)
    return json.dumps({"task": asdict(task), "folder": base.stat().st_ino, "code": code_here()})


def unpack(parcel: str) -> Task:
    """The task, its paths as they are on this machine.

    Raises:
        WorkerRefusedError: this worker has other code, or does not see the files that the task is about.
    """
    sent = json.loads(parcel)
    worker = f"the worker on {socket.gethostname()}"
    for name, planned in sent["code"].items():
        if (found := code_here().get(name)) != planned:
            raise WorkerRefusedError(
                f"{worker} has another {name}, {found or 'none'}, and the run was planned with {planned}".replace(
                    ";", ","
                ),
                "install the same timeloom and the same constraints.txt on every worker, and run again",
            )
    task = Task(**_moved(sent["task"], _places()))
    seen = f"mount it there; where it has another path, set {PATHS_VARIABLE} on the worker, and run again"
    try:
        folder = Path(task.base).stat().st_ino
    except OSError:
        folder = None
    if folder != sent["folder"]:
        raise WorkerRefusedError(f"{worker} does not see the root that the run writes", seen)
    for path, file in task.raw_files.items():
        if file["signature"] is not None and not _is_seen(path):
            raise WorkerRefusedError(f"{worker} does not see {file['what']}", seen)
    return task


def _is_seen(path: str) -> bool:
    """Whether a file is there; an error of the file system would say its path."""
    try:
        return Path(path).exists()
    except OSError:
        return False


def _places() -> list[tuple[str, str]]:
    """By its path where the run was planned, where a folder is on this machine; the longest first.

    Raises:
        WorkerRefusedError: what the variable says is no such list.
    """
    pairs = [pair.split("=") for pair in os.environ.get(PATHS_VARIABLE, "").split(os.pathsep) if pair]
    if any(len(pair) != 2 or not all(part.startswith("/") for part in pair) for pair in pairs):
        raise WorkerRefusedError(
            f"{PATHS_VARIABLE} on {socket.gethostname()} is no list of paths",
            f"write {PATHS_VARIABLE}=/where/planned=/where/here, several by `{os.pathsep}`",
        )
    found = [(planned.rstrip("/"), here.rstrip("/")) for planned, here in pairs]
    return sorted(found, key=lambda pair: -len(pair[0]))


def _moved(value: Any, places: Sequence[tuple[str, str]]) -> Any:
    """JSON with the paths in it, also those that are keys, as they are on this machine."""
    if not places:
        return value
    if isinstance(value, str):
        for planned, here in places:
            if value == planned or value.startswith(f"{planned}/"):
                return here + value[len(planned) :]
        return value
    if isinstance(value, dict):
        return {_moved(key, places): _moved(inner, places) for key, inner in value.items()}
    return [_moved(inner, places) for inner in value] if isinstance(value, list) else value
