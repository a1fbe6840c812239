"""The nightly flow on a schedule on one machine."""

from collections.abc import Callable
from pathlib import Path

from flows.prefect_server import ensure_server
from pipelines.config import load_config
from warehouse.errors import TimeloomError


def serve_nightly(config: Path, root: Path | None, cron: str, port: int, say: Callable[[str], None]) -> None:
    """Serves until it is stopped.

    Raises:
        TimeloomError: the configuration or the cron expression is invalid, or no server answers.
    """
    load_config(config)
    address = ensure_server(port)
    from prefect.client.schemas.schedules import CronSchedule

    from flows.nightly import nightly

    try:
        CronSchedule(cron=cron)
    except ValueError as error:
        raise TimeloomError(f"`{cron}` is no cron expression", "five fields, as in `0 2 * * *`") from error
    if address:
        say(f"Prefect UI: {address}")
    say(f"`nightly` runs at {cron} (UTC); Ctrl-C ends it")
    parameters = {"config": str(config.resolve()), "root": str(root.resolve()) if root else None}
    nightly.serve(name="nightly", cron=cron, parameters=parameters, global_limit=1, print_starting_message=False)
