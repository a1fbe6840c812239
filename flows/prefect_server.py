"""A Prefect server of our own on the loopback interface, for one run or for `timeloom serve`.

It lives in a session of its own, so that Ctrl-C reaches the run and not the server that the run still reports to, and
it ends with the process that started it, also when that is killed.
"""

import atexit
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

from warehouse.errors import TimeloomError

START_SECONDS = 120.0
STOP_SECONDS = 30.0
_PR_SET_PDEATHSIG = 1


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


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
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=_end_with_parent,
    )
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
    raise TimeloomError(
        f"the Prefect server did not start on port {port}", "give `serve` another --port, or `run` --direct"
    )


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
        TimeloomError: it does not start.
    """
    if os.environ.get("PREFECT_API_URL"):
        return None
    if port is None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
    server = start_server(port)
    atexit.register(stop_server, server)
    os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"
    return f"http://127.0.0.1:{port}"
