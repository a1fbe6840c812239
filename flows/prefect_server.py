"""A Prefect server of our own on the loopback interface, for one run or for `timeloom serve`.

It lives in a session of its own, so that Ctrl-C reaches the run and not the server that the run still reports to, and
it ends with the process that started it, also when that is killed.
"""

import atexit
import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import deque

from warehouse.errors import TimeloomError

START_SECONDS = 120.0
STOP_SECONDS = 30.0
KEPT_LINES = 500
# A server that is named may be starting too.
REACH_SECONDS = 10.0
_PR_SET_PDEATHSIG = 1


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _is_there(url: str) -> bool:
    """Whether anything answers at a Prefect API, be it that it wants a key."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=5):
            return True
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False


# What a server's words mean for whoever started it; the first that fits.
_REMEDIES = (
    ("address already in use|Errno 98|EADDRINUSE", "give `serve` another --port, or `run` --direct"),
    (
        "database is locked",
        "end the other server of this PREFECT_HOME, or set PREFECT_HOME to a folder of this run's own",
    ),
    (
        "readonly database|unable to open database|Permission denied|Read-only file system",
        "set PREFECT_HOME to a folder that can be written, or `run` --direct",
    ),
    ("No space left|disk is full|Disk quota|File too large", "free space where PREFECT_HOME lies, or `run` --direct"),
)
_ERROR = re.compile(r"\w(Error|Exception)\b|Errno|(?i:permission denied|read-only|already in use|no space left)")


def _why(said: str) -> tuple[str, str]:
    """Of what a server said before it ended: its last line that tells of an error, or its last, and the remedy."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    telling = [line for line in lines if _ERROR.search(line)] or lines or ["it said nothing"]
    remedy = next((remedy for words, remedy in _REMEDIES if re.search(words, telling[-1], re.I)), _REMEDIES[0][1])
    return telling[-1][:300], remedy


def _end_with_parent() -> None:
    """Linux ends this process when the one that started it is gone; elsewhere a killed run leaves its server."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def start_server(port: int) -> "subprocess.Popen[bytes]":
    """A Prefect server on that port; waits until it answers.

    Raises:
        TimeloomError: another one answers there, or it does not start.
    """
    if _healthy(f"http://127.0.0.1:{port}/api"):
        raise TimeloomError(
            f"another Prefect server listens on port {port}", "set PREFECT_API_URL, or give another --port"
        )
    environment = os.environ | {
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        # The page asks port 4200 unless told otherwise.
        "PREFECT_SERVER_UI_API_URL": f"http://127.0.0.1:{port}/api",
    }
    server = subprocess.Popen(
        [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=_end_with_parent,
    )
    assert server.stdout is not None, "its words go through a pipe"
    # Read as long as it runs, or it would wait; kept is the end alone.
    said: deque[bytes] = deque(maxlen=KEPT_LINES)
    listener = threading.Thread(target=said.extend, args=(server.stdout,), daemon=True)
    listener.start()
    deadline = time.monotonic() + START_SECONDS
    try:
        while time.monotonic() < deadline and server.poll() is None:
            if _healthy(f"http://127.0.0.1:{port}/api"):
                return server
            time.sleep(0.2)
    except BaseException:
        stop_server(server)
        raise
    stop_server(server)
    listener.join(timeout=STOP_SECONDS)
    why, remedy = _why(b"".join(said).decode(errors="replace"))
    raise TimeloomError(f"the Prefect server did not start on port {port}: {why}", remedy)


def stop_server(server: "subprocess.Popen[bytes]") -> None:
    """Asks the server to end, and ends it if it does not."""
    server.terminate()
    try:
        server.wait(timeout=STOP_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()


def ensure_server(port: int | None = None) -> str | None:
    """Starts a server where PREFECT_API_URL names none; gives its address, or None where there is one already.

    Call it before Prefect is imported: at the end of the process what was registered first is done last, and Prefect
    must have sent its logs before the server goes.

    Args:
        port: where it listens; any free one if None.

    Raises:
        TimeloomError: it does not start, or nothing answers where one is named.
    """
    named = os.environ.get("PREFECT_API_URL")
    if named:
        deadline = time.monotonic() + REACH_SECONDS
        while not _is_there(named):
            if time.monotonic() > deadline:
                raise TimeloomError(
                    "nothing answers at PREFECT_API_URL",
                    "start that server, unset the variable for a server of this run's own, or `run` --direct",
                )
            time.sleep(0.5)
        return None
    if port is None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
    server = start_server(port)
    atexit.register(stop_server, server)
    os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"
    return f"http://127.0.0.1:{port}"
