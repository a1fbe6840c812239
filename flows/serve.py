"""`timeloom serve`: the nightly flow on a schedule, on one machine.

This process starts two others and watches them: a Prefect server, and the one that asks it for the nights that are due
(flows.schedule). It waits for neither, and so ends when it is told to. Each root has a deployment, a Prefect home and a
port of its own, so that several roots are served side by side.
"""

import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from zoneinfo import available_timezones

from flows.deployments import deployment_name
from flows.prefect_server import QUIET, Server, belonging_to, is_there, reach_named, stop_session
from flows.reports import REPORTS, ReportServer
from flows.root_server import start_root_server
from flows.runs.paths import configured
from flows.runs.settings import RunSettings
from flows.schedule import Schedule
from warehouse.errors import TimeloomError
from warehouse.layout import Layout
from warehouse.publish import locked

WATCH_SECONDS, SILENT_SECONDS, STOP_SECONDS = 1.0, 90.0, 10.0
# So many restarts within so many seconds are a fault that another restart does not mend.
MOST_RESTARTS, RESTARTS_SECONDS = 5, 1800.0

Say = Callable[[str], None]
Process = subprocess.Popen[bytes]


class _StoppedError(BaseException):
    """This process was told to end."""


@contextmanager
def _until_stopped() -> Iterator[None]:
    """Ends its block where SIGTERM or Ctrl-C comes; a further one does not cut short what the block does to end."""
    signals = (signal.SIGTERM, signal.SIGINT)
    before = {name: signal.getsignal(name) for name in signals}

    def stop(*_: Any) -> None:
        for name in signals:
            signal.signal(name, signal.SIG_IGN)
        raise _StoppedError

    for name in signals:
        signal.signal(name, stop)
    try:
        with suppress(_StoppedError):
            yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def check_times(cron: str, timezone: str) -> None:
    """Raises TimeloomError where there is no such time zone, or the cron expression is none."""
    if timezone not in available_timezones():
        raise TimeloomError(f"there is no time zone {timezone}", "give an IANA name, as in Europe/Vienna, or UTC")
    from prefect.client.schemas.schedules import CronSchedule

    try:
        CronSchedule(cron=cron, timezone=timezone)
    except ValueError as error:
        raise TimeloomError(f"`{cron}` is no cron expression", "five fields, as in `0 2 * * *`") from error


class _Watch:
    """The two processes of a root, started, watched and ended together.

    Args:
        home: of the server; None where PREFECT_API_URL names a server that is not ours.
        asked: the server's port, if one was asked for.
        reports: the address at which the root's reports are served.
    """

    def __init__(self, schedule: Schedule, home: Path | None, asked: int | None, reports: str, say: Say) -> None:
        self.schedule, self.home, self.asked, self.reports, self.say = schedule, home, asked, reports, say
        self.server: Server | None = None
        self.keeper: Process | None = None
        self.restarts = deque[float](maxlen=MOST_RESTARTS)

    def start(self) -> None:
        """Starts what the schedule needs.

        Raises:
            TimeloomError: no server starts, or none answers where one is named.
        """
        if self.home is None:
            self.url = reach_named()
        else:
            self.server = start_root_server(self.home, self.asked)
            self.url = self.server.url
            # What watches it, and who looked at its page, find it where it was.
            self.asked = self.server.port
        self._start_keeper()

    def _start_keeper(self) -> None:
        environment = (belonging_to(self.home) if self.home else dict(os.environ)) | {REPORTS: self.reports}
        self.keeper = subprocess.Popen(
            self.schedule.command(), env=environment | QUIET | {"PREFECT_API_URL": self.url}, start_new_session=True
        )

    def stop(self) -> None:
        """Ends them: the server last, so that what is ended can say so to it."""
        if self.keeper is not None:
            stop_session(self.keeper, STOP_SECONDS)
        if self.server is not None:
            self.server.stop(STOP_SECONDS)

    def watch(self) -> None:
        """Starts again what ends.

        Raises:
            TimeloomError: it ends time and again, or a server that is not ours is gone.
        """
        heard = time.monotonic()
        while True:
            time.sleep(WATCH_SECONDS)
            if is_there(self.url):
                heard = time.monotonic()
            silent = time.monotonic() - heard > SILENT_SECONDS
            if self.server is not None and (self.server.ended or silent):
                self._again("the Prefect server " + ("has ended" if self.server.ended else "does not answer"))
                self.server.stop(STOP_SECONDS)
                self._start_server_again()
                heard = time.monotonic()
            elif self.server is None and silent:
                raise TimeloomError("the Prefect server at PREFECT_API_URL is gone", "start it, then serve again")
            if self.keeper is not None and self.keeper.poll() is not None:
                self._again("what asks the Prefect server for nights has ended")
                stop_session(self.keeper, STOP_SECONDS)
                self._start_keeper()

    def _start_server_again(self) -> None:
        assert self.home is not None and self.asked is not None, "a server of ours has started before"
        self.server = start_root_server(self.home, self.asked)

    def _again(self, what: str) -> None:
        now = time.monotonic()
        if len(self.restarts) == MOST_RESTARTS and now - self.restarts[0] < RESTARTS_SECONDS:
            raise TimeloomError(f"{what}, {MOST_RESTARTS + 1} times", "see what was said above, then serve again")
        self.restarts.append(now)
        self.say(f"{what}; it is started again")


def serve_nightly(config: Path, root: Path | None, cron: str, timezone: str, port: int | None, say: Say) -> None:
    """Serves until it is told to end.

    Raises:
        TimeloomError: the configuration, a path of it, the cron expression or the time zone is invalid; another process
            serves this root; no server answers, or it is gone and cannot be started again.
    """
    _, layout = configured(RunSettings(config, root))
    name = deployment_name(layout.root)
    check_times(cron, timezone)
    schedule = Schedule(name, str(config.resolve()), str(layout.root), cron, timezone)
    home = None if os.environ.get("PREFECT_API_URL") else _home(layout, name)
    busy = TimeloomError(
        f"another `timeloom serve` runs for {layout.root.name}", "end that one first, or serve another --root"
    )
    with locked(layout, layout.serve_lock, busy), _until_stopped():
        reports = ReportServer(layout)
        watch = _Watch(schedule, home, port, os.environ.get(REPORTS, reports.url), say)
        try:
            watch.start()
            if watch.server is not None:
                say(f"Prefect UI: {watch.url.removesuffix('/api')}; reports: {reports.url}")
            say(f"`nightly/{name}` runs at {cron} ({timezone}); Ctrl-C ends it")
            watch.watch()
        finally:
            watch.stop()
            reports.stop()


def _home(layout: Layout, name: str) -> Path:
    """Beside the root, or in PREFECT_HOME, which several roots may have."""
    shared = os.environ.get("PREFECT_HOME")
    return Path(shared).expanduser().resolve() / name if shared else layout.prefect
