"""Quality reports over HTTP, on the loopback interface: a browser refuses `file:` links from the Prefect UI.

`timeloom serve` starts this beside its Prefect server. Served are the reports of published releases and nothing else:
no folder is listed, and no path leads out of `releases/<id>/quality/`.
"""

import os
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from warehouse.layout import Layout, ReleaseLayout

# Where a root's reports are served: set for the processes of `timeloom serve`, or by a site whose web server does it.
REPORTS = "TIMELOOM_REPORTS"
# What a browser calls this machine, also at the end of a tunnel.
NAMES = ("127.0.0.1", "localhost")


def address_of(root: Path) -> str | None:
    """The address of the current release's report; None where nobody serves it."""
    base = os.environ.get(REPORTS)
    if not base:
        return None
    report = ReleaseLayout(Layout(root).current.resolve()).report
    return f"{base.rstrip('/')}/{report.relative_to(Layout(root).releases.resolve()).as_posix()}"


def served_file(layout: Layout, path: str) -> Path | None:
    """The file that an address names; None where that is not served.

    Args:
        path: `/<release>/quality/…`; `/` and `/current/…` lead to the current release.
    """
    parts = PurePosixPath(unquote(urlsplit(path).path)).parts[1:]
    if not parts or parts == ("current",):
        parts = ("current", *ReleaseLayout(Path()).report.parts)
    releases = layout.releases.resolve()
    if parts[0] == "current":
        parts = (layout.current.resolve().name, *parts[1:])
    if len(parts) < 3 or ".." in parts:
        return None
    quality = ReleaseLayout(releases / parts[0]).quality
    try:
        found = releases.joinpath(*parts).resolve()
        return found if found.is_file() and found.is_relative_to(quality) else None
    except (OSError, ValueError):  # no name of a file: too long, or with a sign that none has
        return None


class _Handler(SimpleHTTPRequestHandler):
    """Answers with files of reports."""

    def __init__(self, *arguments: Any, layout: Layout) -> None:
        self._layout = layout
        super().__init__(*arguments)

    def translate_path(self, path: str) -> str:
        found = served_file(self._layout, path)
        # What is not there is answered with "not found".
        return str(found or self._layout.root / "no" / "such" / "file")

    def send_head(self) -> Any:
        # A page from elsewhere may have its own name lead to this machine, to read what it answers.
        if self.headers.get("Host", "").partition(":")[0] not in NAMES:
            self.send_error(403)
            return None
        return super().send_head()

    def list_directory(self, path: Any) -> None:
        self.send_error(404)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Says nothing: the terminal is for nights."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing: a browser that went away is no news."""


class ReportServer:
    """Serves the reports of a root from a thread of this process, at a free port or the one that is asked for."""

    def __init__(self, layout: Layout, port: int = 0) -> None:
        self._server = _Server(("127.0.0.1", port), partial(_Handler, layout=layout))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """Stops answering."""
        self._server.shutdown()
        self._server.server_close()
