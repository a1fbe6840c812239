"""`timeloom embed`: vectors ahead of a night, and workers that make them on any machine that shares the root."""

from pathlib import Path
from typing import Annotated

import typer

from flows.commands.terminal import StageProgress, say
from flows.debugging import set_debug
from flows.extras import require
from flows.options import Debug, Root, Workers
from warehouse.errors import TimeloomError


def embed(
    config: Annotated[Path, typer.Argument(help="The run's YAML, with the paths that this machine has.")],
    root: Root = None,
    worker: Annotated[
        bool, typer.Option("--worker", help="Take the buckets that runs of the root want filled, under leases.")
    ] = False,
    until_empty: Annotated[
        bool, typer.Option("--until-empty", help="With --worker: end as soon as nothing is wanted.")
    ] = False,
    idle: Annotated[
        float | None,
        typer.Option(help="With --worker: end after so many seconds without work.", min=0, show_default=False),
    ] = None,
    gpu: Annotated[
        int | None, typer.Option(help="With --worker: the number of its GPU; the first one if not given.", min=0)
    ] = None,
    workers: Workers = None,
    debug: Debug = False,
) -> None:
    """Make vectors: ahead of a night, or as one of many workers on machines that share the root. Publishes nothing.

    Without --worker it indexes tables and images and encodes them here. With it, it waits for runs of the root that
    want buckets filled, and goes on until it is stopped, or as --until-empty and --idle say. A worker that is killed
    loses what it had not stored yet, at most `embedding.checkpoint_seconds` of work; another one goes on from there.
    """
    set_debug(debug)
    require("pipeline", "vectors")
    require("images", "vectors")
    from flows.runs.embedding import embed_ahead, work
    from flows.runs.settings import RunSettings

    settings = RunSettings(config, root, workers=workers)
    if not worker:
        if until_empty or idle is not None or gpu is not None:
            raise TimeloomError("--until-empty, --idle and --gpu are for --worker", remedy="give --worker too")
        with StageProgress() as progress:
            embed_ahead(settings, progress)
        return
    seconds = 0.0 if until_empty else idle
    say(work(settings, say, idle_seconds=seconds, gpu=gpu).line())
