"""Commands about the releases of a root: which stay, how two differ, how a past one is made again."""

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.commands.terminal import StageProgress, console, say
from flows.debugging import set_debug
from flows.extras import require
from flows.options import Debug, Json, Limit, Root, Warehouse, Workers
from warehouse.errors import TimeloomError


def status(
    root: Warehouse = Path("timeloom-demo/warehouse"),
    release: Annotated[
        str | None, typer.Option(help="The id of a release; the current one if not given.", show_default=False)
    ] = None,
    every: Annotated[bool, typer.Option("--releases", help="Name all releases that are there, and no more.")] = False,
    path: Annotated[
        str | None,
        typer.Option(
            "--why",
            metavar="PATH",
            help="Of a file inside the release, such as data/0007.parquet: what made it of what, and since when it "
            "stands unchanged.",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="With --why: the YAML of the runs. What a night now would find changed is told too; raw files that "
            "changed are read for it.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Say what is published, from what, and with which verdicts; of any release that is there, and of any of its files.

    Writes nothing. No value of a patient is shown, and small counts are hidden as in the report.
    """
    set_debug(debug)
    from flows.commands.status import describe, describe_releases, print_releases, print_status

    if config is not None and path is None:
        raise TimeloomError("--config is for --why", remedy="name a file of the release with --why")
    found: Any
    if path is not None:
        require("pipeline", "what made a file")
        from flows.commands.why import print_why, why

        found = why(root, path, release, config)
        show = partial(print_why, found, say)
    elif every:
        found = describe_releases(root)
        show = partial(print_releases, found, console)
    else:
        found = describe(root, release)
        show = partial(print_status, found, console)
    if as_json:
        print(json.dumps(found))
    else:
        show()


def diff(
    before: Annotated[str, typer.Argument(help="The id of a release; `timeloom status --releases` names them.")],
    after: Annotated[
        str | None, typer.Argument(help="The id of a later one; the current release if not given.")
    ] = None,
    root: Warehouse = Path("timeloom-demo/warehouse"),
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Say how a release differs from another: patients, events by table and code, splits, vocabularies, shards, images,
    encoders, and the keys of the configuration.

    Files that both have are not read. Counts of 1 to 10 are hidden, as in the report, and codes of few events are not
    named, unless patients are simulated. A changed event counts as one that was removed and one that was
    added. Writes nothing.
    """
    set_debug(debug)
    require("pipeline", "comparisons of releases")
    from flows.commands.diff import compare, print_difference

    with StageProgress(quiet=as_json) as progress:
        found = compare(root, before, after, progress)
    if as_json:
        print(json.dumps(found))
    else:
        print_difference(found, console)


def backfill(
    config: Annotated[Path, typer.Argument(help="The YAML of that night's run, over that night's export.")],
    release: Annotated[str, typer.Argument(help="The id of the release, also of one that is gone.")],
    root: Root = None,
    restore: Annotated[
        bool, typer.Option("--restore", help="Put a release that is gone back, where it comes out as it was.")
    ] = False,
    workers: Workers = None,
    limit: Limit = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make a past night again, beside the releases, and hold its data to the hash that it had.

    It reads the raw files of that night; of one that has changed since, the segment that was made of it, as long as
    that is kept (`keep.segments`). It goes on from the release that the night continued, so that one must be there.
    `current` and the releases stay as they are, but for what --restore puts back.

    Exit codes: 0 the data is that of then; 2 it is not, and a line says what differs; 1 it cannot be made, and one line
    says what is missing.
    """
    set_debug(debug)
    require("pipeline", "runs")
    from flows.commands.backfill import backfill as make_again
    from flows.commands.backfill import print_rebuilt
    from flows.runs.settings import RunSettings

    settings = RunSettings(config, root, workers=workers, limit=limit)
    with StageProgress(quiet=as_json) as progress:
        found = make_again(settings, release, restore=restore, progress=progress)
    if as_json:
        print(json.dumps(asdict(found)))
    else:
        print_rebuilt(found, say)
    raise typer.Exit(0 if found.same else 2)


def gc(
    place: Annotated[
        Path, typer.Argument(metavar="ROOT|CONFIG", help="The warehouse's folder, or the YAML of its runs.")
    ] = Path("timeloom-demo/warehouse"),
    root: Root = None,
    daily: Annotated[
        int | None, typer.Option(help="Of so many days with a release, the latest stays.", min=0, show_default="7")
    ] = None,
    weekly: Annotated[
        int | None, typer.Option(help="Of so many weeks with a release, the latest stays.", min=0, show_default="4")
    ] = None,
    monthly: Annotated[
        int | None, typer.Option(help="Of so many months with a release, the latest stays.", min=0, show_default="12")
    ] = None,
    apply: Annotated[
        bool, typer.Option("--yes", "--apply", help="Remove it. Without this, nothing is written.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Say what nobody needs any more, and how much disk it takes; with --yes, remove it.

    Old releases go, and what stood for them alone: segments, folders of killed runs, logs, stores of encoders that no
    release names, vectors of items that no release has. The current release stays, the one before it, those that the
    gate compares the next night with, those that a reader holds open, and those that `keep` of the configuration says:
    daily 7, weekly 4, monthly 12 where it says nothing. The lineage stays whole. It may be killed at any moment: each
    release that stays is whole, and the next call goes on.

    Exit codes: 0 done, or nothing to do; 1 it was stopped, and one line says why: a night is at work, say.
    """
    set_debug(debug)
    require("pipeline", "collecting")
    from flows.commands.gc import carry_out, described, print_collection, read_kept

    kept = read_kept(place, root, {"daily": daily, "weekly": weekly, "monthly": monthly})
    collection = carry_out(kept, apply=apply)
    if as_json:
        print(json.dumps(described(collection)))
    else:
        print_collection(collection, kept, say)
