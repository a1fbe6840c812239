"""`timeloom features`: what models of tables read for a task, as Parquet."""

import json
from pathlib import Path
from typing import Annotated

import typer

from flows.commands.terminal import say
from flows.debugging import set_debug
from flows.options import Debug, Json, Warehouse


def features(
    task: Annotated[str, typer.Argument(help="A task of the release, such as mortality, or with --labels any name.")],
    out: Annotated[Path, typer.Argument(help="A new folder: matrix, rows, columns and one file a modality.")],
    root: Warehouse = Path("timeloom-demo/warehouse"),
    labels: Annotated[
        Path | None, typer.Option(help="MEDS label files, a file or a folder, in place of the release's own labels.")
    ] = None,
    split: Annotated[
        list[str] | None, typer.Option(help="Of train, tuning, held_out; may be given again. All labels if not given.")
    ] = None,
    scheme: Annotated[str | None, typer.Option(help="The split scheme whose train decides which codes count.")] = None,
    least_share: Annotated[
        float, typer.Option(help="Codes of a smaller share of train's subjects are left out.", min=0, max=1)
    ] = 0.01,
    clock: Annotated[str, typer.Option(help="Facts count from their `available_time`, or from their `time`.")] = (
        "available_time"
    ),
    modality: Annotated[
        list[str] | None, typer.Option(help="Whose mean vectors are written; may be given again. All if not given.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the folds and few-shot subsets.")] = 0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a task's features: counts of codes, demographics and mean vectors, as known by each prediction time.

    What is written is data of patients: keep it where the warehouse may lie. docs/probes.md says how to read it.
    """
    set_debug(debug)
    from warehouse.readers.release import Release
    from warehouse.readers.tasks.labels import check_clock

    made = Release.open(root).features(
        labels or task,
        scheme=scheme,
        splits=split,
        least_share=least_share,
        clock=check_clock(clock),
        modalities=modality,
        seed=seed,
    )
    written = made.write(out)
    if as_json:
        print(json.dumps(written))
    else:
        say(f"wrote {out}: {written['rows.parquet']} labels, {written['columns.parquet']} columns")
