"""Tells others of a release: the site's own command, and events of the Prefect server.

The command is told of each release at least once: what was announced stands beside the root's releases, so that a run
that was killed between its publication and its announcement leaves the announcement to the next one.
"""

import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from validation.report.cells import Cells
from warehouse.layout import Layout
from warehouse.publish import current_release
from warehouse.sealed import read_sealed, write_sealed

if TYPE_CHECKING:
    from flows.runs.run import Run, RunOutcome

PUBLISHED, UNCHANGED = "timeloom.release.published", "timeloom.night.unchanged"
QUARANTINED = "timeloom.night.quarantined"
# What the command reads of its environment.
RELEASE_VARIABLE, ROOT_VARIABLE = "TIMELOOM_RELEASE", "TIMELOOM_ROOT"


def announce_outcome(run: "Run", outcome: "RunOutcome") -> "RunOutcome":
    """Runs the site's command for what a run has published, once its root is free. Where that fails, the outcome and
    the run's log say so."""
    said: list[str] = []
    announce(run.layout, run.config.on_publish, said.append)
    for line in said:
        run.log.line(line)
    return replace(outcome, unannounced="; ".join(said))


def announce(layout: Layout, command: Sequence[str], say: Callable[[str], None]) -> bool:
    """Runs the site's command for the current release, if it has not been told of it.

    A command that fails is said, and run again by the next night; the release stays what it is.

    Args:
        command: the program and its arguments, run without a shell; nothing is run where there is none.

    Returns:
        Whether the command ran and ended well.
    """
    release = current_release(layout)
    if not command or release is None or _announced(layout) == release.path.name:
        return False
    environment = os.environ | {RELEASE_VARIABLE: str(release.path), ROOT_VARIABLE: str(layout.root)}
    try:
        ended = subprocess.run(
            list(command), env=environment, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
    except OSError as error:
        say(f"on_publish cannot be started ({type(error).__name__}); the next run tries again")
        return False
    if ended.returncode:
        say(f"on_publish ended with exit code {ended.returncode}; the next run tries again")
        return False
    write_sealed(layout.announced, {"release": release.path.name})
    return True


def _announced(layout: Layout) -> str | None:
    try:
        return str(read_sealed(layout.announced)["release"])
    except (OSError, ValueError, LookupError, TypeError):  # none yet, or damaged: told once more
        return None


def emit_events(outcome: "RunOutcome", root: Path, name: str, cells: Cells) -> None:
    """Sends what happened to the Prefect server, for its automations: what was published, or that nothing was, and
    whether anything is quarantined (exit code 2).

    Args:
        name: of the root's deployments.
        cells: how totals are shown.
    """
    from prefect.events import emit_event

    resource = {"prefect.resource.id": f"timeloom.root.{name}", "prefect.resource.name": root.name}
    payload = {
        "release": outcome.release,
        "quarantined": cells.about(outcome.quarantined),
        "exit_code": outcome.exit_code,
        "root": str(root),
    }
    emit_event(PUBLISHED if outcome.published else UNCHANGED, resource, payload=payload)
    if outcome.quarantined:
        emit_event(QUARANTINED, resource, payload=payload)
