"""The process that `timeloom serve` watches: it asks a Prefect server for the nights that are due, and starts them.

Prefect's runner gives up a server that was away for a minute or two, and may then wait for ever and ignore signals. So
a thread ends this process where the runner has stopped asking, or where `timeloom serve` is gone.
"""

import asyncio
import json
import os
import sys
import threading
import time
import warnings
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from flows.runs.settings import SERVED

if TYPE_CHECKING:
    from prefect.runner import Runner

SILENT_SECONDS = 120.0
WATCH_SECONDS = 1.0


@dataclass(frozen=True)
class Schedule:
    """When nights of one root begin.

    Attributes:
        name: of the deployment; each root has one of its own.
        config, root: absolute paths.
        cron: five fields, by the clock of `timezone`, an IANA name.
    """

    name: str
    config: str
    root: str
    cron: str
    timezone: str

    def command(self) -> list[str]:
        """What starts the process that keeps this schedule."""
        return [sys.executable, "-m", "flows.schedule", json.dumps(asdict(self)), str(os.getpid())]


def _end_when_silent(runner: "Runner", parent: int) -> None:
    polled, heard = runner.last_polled, time.monotonic()
    while os.getppid() == parent:
        # The runner notes the time by a clock that may be set meanwhile: only that it has noted another one counts.
        if runner.last_polled != polled:
            polled, heard = runner.last_polled, time.monotonic()
        if time.monotonic() - heard > SILENT_SECONDS:
            sys.stderr.write("timeloom: the Prefect server was not asked for nights for too long\n")
            break
        time.sleep(WATCH_SECONDS)
    os._exit(1)


def keep(schedule: Schedule, parent: int) -> None:
    """Starts nights when they are due, until this process is told to end."""
    from prefect.runner import Runner
    from prefect.schedules import Cron

    from flows.nightly import nightly

    runner = Runner(name=schedule.name)
    threading.Thread(target=_end_when_silent, args=(runner, parent), daemon=True).start()
    runner.add_flow(
        nightly,
        name=schedule.name,
        schedule=Cron(schedule.cron, timezone=schedule.timezone),
        parameters={"config": schedule.config, "root": schedule.root},
        concurrency_limit=1,
    )
    # Prefect says so of itself whenever it is told to end.
    warnings.filterwarnings("ignore", "coroutine 'Runner.astop' was never awaited", RuntimeWarning)
    asyncio.run(runner.start())


if __name__ == "__main__":
    # Prefect would print a traceback of every night that fails; its UI has it.
    os.environ |= {SERVED: "1", "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL"}
    keep(Schedule(**json.loads(sys.argv[1])), int(sys.argv[2]))
