"""Commands that look and leave nothing behind: at a source, at a task, at the file system of a root."""

import json
from pathlib import Path
from typing import Annotated

import typer

from flows.commands.terminal import StageProgress, console, say
from flows.debugging import set_debug
from flows.extras import require
from flows.options import Debug, Json, Warehouse
from warehouse.errors import TimeloomError


def check_source(
    source: Annotated[str, typer.Argument(help="A source's YAML, or the name of a built-in one.")] = "",
    path: Annotated[
        Path | None, typer.Argument(help="Its raw tables: a folder, or a .duckdb file. Without it: the YAML alone.")
    ] = None,
    rows: Annotated[int, typer.Option(help="Rows of each table to read.", min=1)] = 10_000,
    crosswalk: Annotated[
        list[str] | None, typer.Option(help="NAME=FILE: a crosswalk of the source; may be given again.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="A run's configuration: what it says of the source holds, its `reading` above all."),
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of the YAML, for editors.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Explain what a source would make of an export, and name unmapped columns and suspicious choices. Writes nothing.

    Exit codes: 0 clean; 1 the YAML or a table has an error, and a run would stop; 2 something is suspicious.
    """
    set_debug(debug)
    require("pipeline", "checks of sources")
    from flows.commands.check_source import check, json_schema, print_check

    if schema:
        print(json_schema(), end="")
        return
    if not source and config is None:
        raise TimeloomError("check-source needs a source", "give a YAML file, or the name of a built-in one")
    description = check(source, path, rows, crosswalk or (), config)
    if as_json:
        print(json.dumps(description))
    else:
        print_check(description, console)
    raise typer.Exit(description["exit_code"])


def check_task(
    task: Annotated[str, typer.Argument(help="A task's YAML, or the name of a built-in one such as mortality.")] = "",
    root: Warehouse = Path("timeloom-demo/warehouse"),
    config: Annotated[
        Path | None,
        typer.Option(help="A run's configuration: its lists of codes, mappings and rules of derived events hold."),
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of the YAML, for editors.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Explain a task on the current release: its rules, its codes, and how many patients each rule leaves out.

    It writes nothing. Counts of 1 to 10 patients are hidden, as in the report, unless they are simulated.

    Exit codes: 0 the release has all that the task asks for; 1 the YAML has an error, or there is no release; 2 the
    release lacks something, and a line says which mapping would help.
    """
    set_debug(debug)
    require("pipeline", "checks of tasks")
    from flows.commands.check_task import check, json_schema, print_check

    if schema:
        print(json_schema(), end="")
        return
    if not task:
        raise TimeloomError("check-task needs a task", "give a YAML file, or the name of a built-in one")
    with StageProgress(quiet=as_json) as progress:
        description = check(task, root, config, progress)
    if as_json:
        print(json.dumps(description))
    else:
        print_check(description, console)
    raise typer.Exit(description["exit_code"])


def check_root(
    root: Annotated[Path, typer.Argument(help="The folder of a warehouse, or one that is to become it.")],
    hold: Annotated[
        int, typer.Option(help="Hold a lock there for that many seconds, for --beside on another machine.", min=0)
    ] = 0,
    beside: Annotated[
        bool, typer.Option("--beside", help="See whether another machine's --hold is seen here.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Try on a file system what a warehouse needs of it: renames, locks, fsync, maps. It leaves nothing behind.

    Exit code 1 where something fails that a warehouse cannot do without; each line that begins with FAIL names it.
    """
    set_debug(debug)
    from flows.commands.check_root import FAIL, beside_another, check, hold_for

    if hold:
        hold_for(root, hold)
        return
    lines = beside_another(root) if beside else check(root)
    if as_json:
        print(json.dumps([{"check": line.operation, "state": line.state, "detail": line.detail} for line in lines]))
    else:
        for line in lines:
            say(f"{line.state:<4} {line.operation}{': ' + line.detail if line.detail else ''}")
    raise typer.Exit(int(any(line.state == FAIL for line in lines)))
