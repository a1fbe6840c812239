"""A Prefect server that does not start, or does not answer: its own last line, and the remedy that fits."""

import http.server
import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows import prefect_server
from flows.prefect_server import ensure_server, start_server
from warehouse.errors import TimeloomError

# As Prefect 3 and uvicorn end, without what stands above.
LOCKED = """
sqlalchemy.exc.OperationalError: (sqlite3.OperationalError) database is locked
(Background on this error at: https://sqlalche.me/e/20/e3q8)

ERROR:    Application startup failed. Exiting.
Server stopped!
"""
UNWRITABLE = LOCKED.replace("database is locked", "unable to open database file")
FORBIDDEN = "Traceback (most recent call last):\nPermissionError: [Errno 13] Permission denied: '/srv/prefect'\n"
TAKEN = "ERROR:    [Errno 98] error while attempting to bind on address ('127.0.0.1', 4200): address already in use\n"
BUSY = TAKEN + "AssertionError: Reactive triggers not started\n"
FULL = "OSError: [Errno 28] No space left on device\n"


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.whole
@pytest.mark.parametrize(
    ("said", "line", "remedy"),
    [
        (LOCKED, "database is locked", "end the other server of this PREFECT_HOME"),
        (UNWRITABLE, "unable to open database file", "set PREFECT_HOME to a folder that can be written"),
        (FORBIDDEN, "Permission denied", "set PREFECT_HOME to a folder that can be written"),
        (TAKEN, "address already in use", "give `serve` another --port"),
        (BUSY, "address already in use", "give `serve` another --port"),
        (FULL, "No space left on device", "free space where PREFECT_HOME lies"),
        ("", "it said nothing", "`run` --direct"),
    ],
)
def test_a_server_that_ends_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_port: int, said: str, line: str, remedy: str
) -> None:
    server = tmp_path / "python"
    server.write_text(f"#!{sys.executable}\nimport sys\nsys.stderr.write({said!r})\nsys.exit(3)\n")
    server.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(server))
    with pytest.raises(TimeloomError) as caught:
        start_server(free_port)
    assert f"did not start on port {free_port}: " in caught.value.message
    assert line in caught.value.message
    assert "Application startup failed" not in caught.value.message
    assert remedy in caught.value.remedy
    assert "\n" not in str(caught.value)


def test_an_api_that_is_down_is_said_before_any_work(monkeypatch: pytest.MonkeyPatch, free_port: int) -> None:
    monkeypatch.setattr(prefect_server, "REACH_SECONDS", 0.1)
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{free_port}/api")
    with pytest.raises(TimeloomError, match="nothing answers at PREFECT_API_URL") as caught:
        ensure_server()
    assert "start that server, unset the variable" in caught.value.remedy


class Locked(http.server.BaseHTTPRequestHandler):
    """An API that wants a key."""

    def do_GET(self) -> None:
        self.send_error(401)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def locked_api() -> Iterator[str]:
    with http.server.HTTPServer(("127.0.0.1", 0), Locked) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/api"
        server.shutdown()
        thread.join()


def test_an_api_that_wants_a_key_is_there(monkeypatch: pytest.MonkeyPatch, locked_api: str) -> None:
    monkeypatch.setenv("PREFECT_API_URL", locked_api)
    ensure_server()
    assert os.environ["PREFECT_API_URL"] == locked_api
