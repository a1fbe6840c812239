"""Commands that give nights a schedule: on this machine, or on the work pools of a Prefect server."""

import os
from pathlib import Path
from typing import Annotated

import typer

from flows.commands.terminal import say
from flows.debugging import set_debug
from flows.extras import require
from flows.options import Cron, Debug, Port, Root, Timezone
from warehouse.errors import TimeloomError


def serve(
    config: Annotated[Path, typer.Argument(help="The run's YAML.")],
    root: Root = None,
    cron: Cron = "0 2 * * *",
    timezone: Timezone = "UTC",
    port: Port = None,
    debug: Debug = False,
) -> None:
    """Run the nightly flow on a schedule on this machine, with the Prefect UI to watch it. Ctrl-C ends it.

    One command serves one root: a second one for the same root is refused, others run beside it. Each has a Prefect
    server of its own, in ROOT.prefect, unless PREFECT_API_URL names one. A server that ends is started again; where
    that does not help, the command ends with exit code 1, so that what started it can see it.
    """
    set_debug(debug)
    require("pipeline", "schedules")
    from flows.serve import serve_nightly

    serve_nightly(config, root, cron, timezone, port, say)


def deploy(
    config: Annotated[Path, typer.Argument(help="The run's YAML, at the path that it has on the workers.")],
    root: Root = None,
    cron: Cron = "0 2 * * *",
    timezone: Timezone = "UTC",
    pool: Annotated[str, typer.Option(help="The work pool of nights, made if need be.")] = "cpu",
    gpu_pool: Annotated[str, typer.Option(help="The work pool of the flow `embed`, made if need be.")] = "gpu",
    webhook: Annotated[
        str | None,
        typer.Option(
            help="An address that is called where a night fails or has quarantined items.",
            show_default=False,
        ),
    ] = None,
    file: Annotated[Path, typer.Option("--file", help="What is deployed is written there.")] = Path("prefect.yaml"),
    write_only: Annotated[bool, typer.Option("--write-only", help="Write the file, and apply nothing.")] = False,
    debug: Debug = False,
) -> None:
    """Deploy the flows of a root to the Prefect server of PREFECT_API_URL: nightly on a schedule, and others.

    Writes prefect.yaml, makes the work pools and a queue of one flow run at a time, and applies all of it. Again with
    other options, it replaces what it made. `prefect worker start --pool cpu` serves a pool, on each of its machines.
    """
    set_debug(debug)
    require("pipeline", "deployments")
    from flows.deployments import Deployed, write_file
    from flows.deployments import deploy as apply
    from flows.runs.paths import configured
    from flows.runs.settings import RunSettings
    from flows.serve import check_times

    _, layout = configured(RunSettings(config, root))
    check_times(cron, timezone)
    deployed = Deployed(config.resolve(), layout.root, cron, timezone, pool, gpu_pool, webhook)
    write_file(deployed, file)
    say(f"{file} is written")
    if write_only:
        return
    if not os.environ.get("PREFECT_API_URL"):
        raise TimeloomError(
            "no Prefect server is named", "set PREFECT_API_URL, or give --write-only; `timeloom serve` needs neither"
        )
    from flows.prefect_server import reach_named

    reach_named()
    apply(deployed, file, say)
