"""The nightly flow on a schedule on one machine: a Prefect server, if none is configured, and a process that serves."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from pipelines.config import load_config
from warehouse.errors import TimeloomError

START_SECONDS = 120.0


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def start_server(port: int) -> "subprocess.Popen[bytes]":
    """A Prefect server on the loopback interface; waits until it answers.

    Raises:
        TimeloomError: it does not start.
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
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        if _healthy(f"http://127.0.0.1:{port}/api"):
            return server
        time.sleep(0.5)
    server.kill()
    raise TimeloomError(f"the Prefect server did not start on port {port}", "give another --port")


def serve_nightly(config: Path, root: Path | None, cron: str, port: int, say: Callable[[str], None]) -> None:
    """Serves until it is stopped.

    Raises:
        TimeloomError: the configuration or the cron expression is invalid, or no server answers.
    """
    load_config(config)
    server = None
    if not os.environ.get("PREFECT_API_URL"):
        server = start_server(port)
        os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"
        say(f"Prefect UI: http://127.0.0.1:{port}")
    try:
        from flows.nightly import nightly

        say(f"`nightly` runs at {cron} (UTC); Ctrl-C ends it")
        parameters = {"config": str(config.resolve()), "root": str(root.resolve()) if root else None}
        try:
            nightly.serve(
                name="nightly", cron=cron, parameters=parameters, global_limit=1, print_starting_message=False
            )
        except ValueError as error:
            raise TimeloomError(f"`{cron}` is no cron expression", "five fields, as in `0 2 * * *`") from error
    finally:
        if server is not None:
            server.send_signal(signal.SIGTERM)
            try:
                server.wait(timeout=30)
            except subprocess.TimeoutExpired:
                server.kill()
