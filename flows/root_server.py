"""The Prefect server of one root: a home that no other process uses, and a port that stays the same."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path

from flows.prefect_server import PortTakenError, Server, start_server
from warehouse.errors import TimeloomError
from warehouse.files import atomic_write

FIRST_PORT, PORTS = 4200, 100
# A server that has just been ended holds its port for a moment.
FREED_SECONDS = 10.0


def start_root_server(home: Path, asked: int | None) -> Server:
    """Starts the server of a home: at the port that is asked for; else where it was before; else at a free one.

    Raises:
        TimeloomError: the port is taken, the home cannot be written, or the server does not start.
    """
    remembered = home / "port"
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        for port in _ports(remembered, asked):
            try:
                server = start_server(port, home)
            except PortTakenError:
                if asked is not None:
                    raise
                continue  # another program was faster
            with atomic_write(remembered) as temporary:
                temporary.write_text(str(port), encoding="utf-8")
            return server
    except OSError as error:
        raise TimeloomError(
            f"the Prefect home {home} cannot be made or written", "set PREFECT_HOME to a folder that can be written"
        ) from error
    raise TimeloomError(f"no port from {FIRST_PORT} to {FIRST_PORT + PORTS - 1} is free", "give --port")


def _ports(remembered: Path, asked: int | None) -> Iterator[int]:
    """The port that is asked for; else those that are free, the one that is remembered first."""
    if asked is not None:
        freed(asked)
        yield asked
        return
    try:
        before = int(remembered.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = None
    if before is not None and freed(before):
        yield before
    yield from filter(is_free, range(FIRST_PORT, FIRST_PORT + PORTS))


def is_free(port: int) -> bool:
    """Whether nothing listens on a port of this machine."""
    with socket.socket() as probe:
        # As the server binds: a connection that was closed a moment ago is in nobody's way.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def freed(port: int) -> bool:
    """Whether a port is free, or is so in a moment."""
    deadline = time.monotonic() + FREED_SECONDS
    while not is_free(port):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True
