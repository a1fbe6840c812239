"""Commands that copy releases into an object store and out of one."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from flows.commands.terminal import StageProgress, say
from flows.debugging import set_debug
from flows.options import Debug, Json, Warehouse

MEGABYTE = 1e6
Address = Annotated[
    str,
    typer.Argument(
        help="Where releases stand: s3://bucket/prefix, file:///folder, or what else fsspec knows. Each root has a "
        "place of its own."
    ),
]


def push(
    address: Address,
    root: Warehouse = Path("timeloom-demo/warehouse"),
    release: Annotated[
        str | None, typer.Option(help="The id of a release; the current one if not given.", show_default=False)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be sent, and send nothing.")] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Read back every object that is there already, and send those again that are damaged."
        ),
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Copy a release into an object store: files, vectors, and last of all the name of the current release.

    Only what the store lacks is sent: an object's name is the hash of what it holds. A push that was killed goes on
    where it was. Nothing that names a patient is part of an object's name. The store's own settings say who you are:
    AWS_PROFILE, AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL, for S3. `timeloom pull` and `Release.open(address, cache=…)`
    read what is there; docs/object-stores.md shows both.

    Exit codes: 0 the release is there, whole; 1 it is not, and one line says why: run the same command again.
    """
    set_debug(debug)
    from warehouse.remote.push import push as send

    with StageProgress(quiet=as_json) as progress:
        done = send(root, address, release, dry_run=dry_run, check=check, progress=progress)
    if as_json:
        print(json.dumps(asdict(done)))
        return
    verb = "would send at most" if dry_run else "sent"
    there = f"{done.already} ({done.already_bytes / MEGABYTE:.1f} MB) were there"
    say(f"release {done.release}: {verb} {done.objects} objects ({done.bytes / MEGABYTE:.1f} MB), {there}")
    if done.mended:
        say(f"{done.mended} objects there were damaged, and {'would be' if dry_run else 'were'} sent again")
    if not dry_run:
        say(f"{done.place} {'names it as current' if done.current else 'has it beside its current release'}")


def pull(
    address: Address,
    root: Annotated[
        Path,
        typer.Option("--root", help="The warehouse to copy into: a new folder, or what an earlier pull has made."),
    ],
    release: Annotated[
        str | None, typer.Option(help="The id of a release; the current one of the store if not given.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Copy a release from an object store into a warehouse, and publish it there as a night does.

    Only what the warehouse lacks is fetched, and each file is compared with the hash that the manifest has of it. A
    reader sees all of the release or nothing; a pull that was killed goes on where it was. With --release, a release
    is put beside the current one.

    Exit codes: 0 the release is there, whole; 1 it is not, and one line says why.
    """
    set_debug(debug)
    from flows.runs.paths import local_folder
    from warehouse.remote.pull import pull as fetch

    with StageProgress(quiet=as_json) as progress:
        done = fetch(local_folder(root, "--root"), address, release, progress=progress)
    if as_json:
        print(json.dumps(asdict(done)))
        return
    fetched = f"fetched {done.files} files and {done.vectors} vectors ({done.bytes / MEGABYTE:.1f} MB)"
    say(f"release {done.release}: {fetched}, {done.linked} files were there")
    say(f"{root}: {'it is current' if done.current else 'it stands beside the current release'}")
