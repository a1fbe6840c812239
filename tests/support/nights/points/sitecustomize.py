"""Python loads this in every process of a command that has this folder on its PYTHONPATH: each call that makes
something visible or durable below a folder is written down, and an order says what happens at one of them.

It imports little, and nothing of timeloom. What LMDB, Arrow and other libraries ask of the system is not seen here.
"""

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

# In the environment: the folder that holds the log and perhaps an order, and the folder below which calls count.
NOTES, BELOW = "NIGHT_POINTS", "NIGHT_BELOW"
# Of each call, which of its arguments is the path that it makes, or unmakes; of fsync a descriptor.
CALLS = {"replace": 1, "rename": 1, "link": 1, "symlink": 1, "mkdir": 0, "unlink": 0, "rmdir": 0, "fsync": 0}
RECORD = 256
_NUMBERED, _JOINED = re.compile(r"[^/.~-]*\d[^/.~-]*"), re.compile(r"#(?:[.-]#)+")


def point_of(call: str, path: str) -> str:
    """A call and its path, without what differs from one file of its kind to the next: their numbers and hashes."""
    return f"{call} {_JOINED.sub('#', _NUMBERED.sub('#', path))}"


def _path(call: str, arguments: tuple[Any, ...], names: dict[str, Any]) -> str:
    given = arguments[CALLS[call]]
    if call == "fsync":
        return str(Path(f"/proc/self/fd/{given}").readlink())
    folder = names.get("dst_dir_fd", names.get("dir_fd"))
    path = os.fsdecode(given)
    return path if folder is None else str(Path(f"/proc/self/fd/{folder}").readlink() / path)


def _install(notes: str, below: str) -> None:
    log = os.open(f"{notes}/log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    hits = os.open(f"{notes}/hits", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        wanted, number, when, what = Path(notes, "order").read_text(encoding="utf-8").split("|")
    except FileNotFoundError:
        wanted, number, when, what = "", "0", "", ""

    def noted(descriptor: int, text: str) -> int:
        """How many notes there are, with this one, of all processes."""
        os.write(descriptor, text.encode()[-RECORD + 1 :].ljust(RECORD - 1) + b"\n")
        return os.lseek(descriptor, 0, os.SEEK_CUR) // RECORD

    def happen() -> None:
        if what == "group":
            os.killpg(0, signal.SIGKILL)
        elif what == "process":
            os.kill(os.getpid(), signal.SIGKILL)
        elif what == "told":
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            raise OSError(int(what), os.strerror(int(what)))

    def seen(call: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **names: Any) -> Any:
            path = _path(call, arguments, names)
            if not path.startswith(below):
                return real(*arguments, **names)
            point = point_of(call, path[len(below) :])
            noted(log, point)
            # An error stays, as a full disk does; a kill comes once.
            ours = point == wanted and (noted(hits, point) == int(number) or (what.isdigit() and when == "always"))
            if ours and when != "after":
                happen()
            made = real(*arguments, **names)
            if ours and when == "after":
                happen()
            return made

        return called

    for call in CALLS:
        setattr(os, call, seen(call, getattr(os, call)))


if NOTES in os.environ:
    _install(os.environ[NOTES], os.environ[BELOW])
