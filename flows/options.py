"""Options of commands."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class EngineName(StrEnum):
    """Where tasks run."""

    local = "local"
    beam = "beam"


Root = Annotated[
    Path | None, typer.Option("--root", help="The warehouse: releases, vectors, segments.", show_default=False)
]


def _local(path: Path) -> Path:
    # Imported where they are needed, so that --help is instant.
    from warehouse.configuration import is_address
    from warehouse.errors import TimeloomError

    if is_address(path):
        raise TimeloomError("--root takes a folder of this machine, and got an address", remedy="mount the store")
    return path


Warehouse = Annotated[Path, typer.Option(help="The warehouse.", callback=_local)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback when something fails.")]
Workers = Annotated[int | None, typer.Option(help="Worker processes; this machine's cores if not given.", min=1)]
Engine = Annotated[EngineName, typer.Option(help="`local` runs processes here; `beam` runs on any Beam runner.")]
Runner = Annotated[str, typer.Option(help="With --engine beam: the Beam runner's name.")]
BeamOption = Annotated[
    list[str] | None,
    typer.Option(
        "--beam-option",
        help="With --engine beam: an option of its pipeline, as --beam-option=--flink_master=HOST:8081; may be given "
        "again.",
        show_default=False,
    ),
]
Limit = Annotated[int | None, typer.Option(help="A trial run on that many subjects only.", min=1)]
AcceptLoss = Annotated[
    list[str] | None,
    typer.Option(
        "--accept-loss",
        help="A table (or source, modality, namespace) of which tonight's release may hold much less than those before;"
        " may be given again.",
        show_default=False,
    ),
]
Modalities = Annotated[
    str | None,
    typer.Option(
        help="What the hospital has besides tables, by commas, of ct, wsi, ecg, cxr, note and nifti (CT in NIfTI): "
        "--modalities ct,ecg. All of them if not given; what is left out changes nothing of the others.",
        show_default=False,
    ),
]
Rehash = Annotated[bool, typer.Option("--rehash", help="Read every raw file again, whatever is remembered of it.")]
Wait = Annotated[
    bool, typer.Option("--wait", help="Wait until another run of this root has ended; else this one is refused.")
]
Direct = Annotated[bool, typer.Option("--direct", help="Without Prefect: starts faster, shows nothing in its UI.")]
Cron = Annotated[str, typer.Option(help="When to run, as a cron expression.")]
Timezone = Annotated[
    str, typer.Option(help="The clock that --cron means, as an IANA name: Europe/Vienna follows its summer time.")
]
Port = Annotated[
    int | None,
    typer.Option(
        help="Where the Prefect UI listens. Where not given: where it did before for this root, or the first free port "
        "from 4200 on.",
        show_default=False,
    ),
]
