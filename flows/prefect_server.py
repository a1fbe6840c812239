"""A Prefect server of our own on the loopback interface, for one run or for `timeloom serve`.

It lives in a session of its own, so that Ctrl-C reaches the run and not the server that the run still reports to, and
it ends with the process that started it, also when that is killed.
"""

import atexit
import ctypes
import json
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
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from warehouse.errors import TimeloomError

START_SECONDS = 120.0
STOP_SECONDS = 30.0
KEPT_LINES = 500
# A server that is named may be starting too.
REACH_SECONDS = 10.0
_PR_SET_PDEATHSIG = 1
QUIET = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}  # nothing is told to Prefect's makers


class PortTakenError(TimeloomError):
    """Something else listens where a server was to listen."""


def address(port: int) -> str:
    """The API of the server on that port."""
    return f"http://127.0.0.1:{port}/api"


def _answers(url: str, home: Path | None) -> bool:
    """Whether a Prefect server of that home, or of any, answers at an API of this machine."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
            if answer.status != 200:
                return False
        with urllib.request.urlopen(f"{url}/admin/settings", timeout=2) as answer:
            return home is None or Path(json.load(answer)["home"]).resolve() == home.resolve()
    except urllib.error.HTTPError as error:
        return error.code == 401  # it wants a key, which only its own users have
    except (OSError, ValueError, LookupError, TypeError):
        return False


def is_there(url: str) -> bool:
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
    ("already in use|Errno 98|EADDRINUSE", "give `serve` another --port, or `run` --direct"),
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
    """Of what a server said before it ended: the last line that tells why, or of an error, and the remedy."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    for words, remedy in _REMEDIES:
        # What else fails while it ends may be said last.
        if known := [line for line in lines if re.search(words, line, re.I)]:
            return known[-1][:300], remedy
    telling = [line for line in lines if _ERROR.search(line)] or lines or ["it said nothing"]
    return telling[-1][:300], _REMEDIES[0][1]


@dataclass(frozen=True)
class Server:
    """A Prefect server that this process has started.

    Attributes:
        port: where it listens.
        process: the leader of a session of its own.
        said: the end of what it has printed.
    """

    port: int
    process: "subprocess.Popen[bytes]"
    said: deque[bytes]

    @property
    def url(self) -> str:
        """Of its API."""
        return address(self.port)

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def why(self) -> tuple[str, str]:
        """What it said before it ended that tells most, and the remedy."""
        return _why(b"".join(self.said).decode(errors="replace"))

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """Asks the server to end, and ends it if it does not."""
        stop_session(self.process, seconds)


def stop_session(leader: "subprocess.Popen[bytes]", seconds: float) -> None:
    """Asks a process and all of its session's group to end, and after so many seconds ends those that are left."""
    with suppress(ProcessLookupError):
        os.killpg(leader.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        leader.wait(timeout=seconds)
    with suppress(ProcessLookupError):
        os.killpg(leader.pid, signal.SIGKILL)
    leader.wait()


def _end_with_parent() -> None:
    """Linux ends this process when the one that started it is gone; elsewhere a killed run leaves its server."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def start_server(port: int, home: Path | None = None) -> Server:
    """A Prefect server on that port; waits until it answers.

    Args:
        home: its PREFECT_HOME; this process's where None.

    Raises:
        PortTakenError: something else listens there.
        TimeloomError: it does not start.
    """
    url = address(port)
    if is_there(url):
        raise PortTakenError(
            f"another Prefect server listens on port {port}", "set PREFECT_API_URL, or give another --port"
        )
    environment = (dict(os.environ) if home is None else belonging_to(home)) | {
        **QUIET,
        # The page asks port 4200 unless told otherwise.
        "PREFECT_SERVER_UI_API_URL": url,
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=_end_with_parent,
    )
    assert process.stdout is not None, "its words go through a pipe"
    # Read as long as it runs, or it would wait; kept is the end alone.
    server = Server(port, process, deque(maxlen=KEPT_LINES))
    listener = threading.Thread(target=server.said.extend, args=(process.stdout,), daemon=True)
    listener.start()
    deadline = time.monotonic() + START_SECONDS
    try:
        while time.monotonic() < deadline and not server.ended:
            # Where another has taken the port meanwhile, this one is about to end.
            if _answers(url, home):
                return server
            time.sleep(0.2)
    except BaseException:
        server.stop()
        raise
    server.stop()
    listener.join(timeout=STOP_SECONDS)
    why, remedy = server.why()
    kind = PortTakenError if re.search(_REMEDIES[0][0], why, re.I) else TimeloomError
    raise kind(f"the Prefect server did not start on port {port}: {why}", remedy)


def belonging_to(home: Path) -> dict[str, str]:
    """This process's environment for one that works with a Prefect home: no profile of the account's reaches in."""
    kept = {name: value for name, value in os.environ.items() if name != "PREFECT_PROFILE"}
    return kept | {"PREFECT_HOME": str(home), "PREFECT_PROFILES_PATH": str(home / "profiles.toml")}


def reach_named() -> str:
    """The API that PREFECT_API_URL names, which may be starting too.

    Raises:
        TimeloomError: nothing answers there.
    """
    named = os.environ["PREFECT_API_URL"]
    deadline = time.monotonic() + REACH_SECONDS
    while not is_there(named):
        if time.monotonic() > deadline:
            raise TimeloomError(
                "nothing answers at PREFECT_API_URL",
                "start that server, unset the variable for a server of this run's own, or `run` --direct",
            )
        time.sleep(0.5)
    return named


def ensure_server() -> None:
    """Starts a server for this process where PREFECT_API_URL names none.

    Call it before Prefect is imported: at the end of the process what was registered first is done last, and Prefect
    must have sent its logs before the server goes.

    Raises:
        TimeloomError: it does not start, or nothing answers where one is named.
    """
    if os.environ.get("PREFECT_API_URL"):
        reach_named()
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    server = start_server(port)
    atexit.register(server.stop)
    os.environ["PREFECT_API_URL"] = server.url
