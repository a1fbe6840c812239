"""`timeloom check-root`: what a root needs of its file system, a line for each."""

import time
from dataclasses import dataclass
from pathlib import Path

from flows.commands.terminal import say
from flows.runs.paths import local_folder
from warehouse.embeddings.scratch import SCRATCH_VARIABLE, scratch_folder
from warehouse.errors import TimeloomError
from warehouse.file_system import REMEDY, held, is_held, is_of_a_network, kind_of, probe

OK, HINT, FAIL = "ok", "hint", "FAIL"


@dataclass(frozen=True)
class Line:
    """What was tried, how it went (OK, HINT or FAIL), and what a person should know of it."""

    operation: str
    state: str
    detail: str = ""


def check(root: Path) -> list[Line]:
    """Tries every operation on the file system of `root`.

    Raises:
        TimeloomError: it is no folder that can be written.
    """
    folder = local_folder(root, "ROOT")
    lines = []
    for finding in probe(folder):
        state = (FAIL if finding.needed else HINT) if finding.fault else OK
        said = f"the file system of {folder} {finding.fault}" if finding.fault else ""
        lines.append(Line(finding.operation, state, f"{said}; {REMEDY}" if state == FAIL else said))
    kind = kind_of(folder)
    if not is_of_a_network(kind):
        return [*lines, Line("kind", OK, kind)]
    shared = f"{kind}, which machines share: run --hold 60 on one and --beside on another"
    if scratch_folder() is None:
        shared += f"; set {SCRATCH_VARIABLE} to a local folder where vectors are made"
    return [*lines, Line("kind", HINT, shared)]


def beside_another(root: Path) -> list[Line]:
    """Whether the lock that another machine holds keeps this one out.

    Raises:
        TimeloomError: no other machine has begun.
    """
    operation, folder = "flock between two machines", local_folder(root, "ROOT")
    if is_held(folder):
        return [Line(operation, OK)]
    lost = f"the file system of {folder} loses locks: another machine holds one, and this one got it too"
    return [Line(operation, FAIL, f"{lost}; {REMEDY}")]


def hold_for(root: Path, seconds: int) -> None:
    """Holds the lock that `beside_another` looks for.

    Raises:
        TimeloomError: the folder cannot be written.
    """
    folder = local_folder(root, "ROOT")
    try:
        with held(folder):
            say(f"held for {seconds} s; meanwhile on the other machine: timeloom check-root ROOT --beside")
            time.sleep(seconds)
    except OSError as error:
        raise TimeloomError(f"{folder} cannot be written or locked", remedy=REMEDY) from error
