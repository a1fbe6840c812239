"""What a task would label in the current release, for a terminal or a program; small cells are hidden as elsewhere."""

import json
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from extractors.yaml_files import explain
from pipelines.config import load_config
from pipelines.papers.derive import LISTS, derived_events
from pipelines.papers.labels import label_bucket, what_is_missing
from pipelines.tasks.attrition import NEGATIVE, POSITIVE, START, totals
from pipelines.tasks.definition import PAGE, TaskConfig, load_task
from pipelines.tasks.members import LabelCodes
from pipelines.tasks.settings import LabelsConfig
from validation.report.cells import Cells, Hidden
from validation.report.label_tables import attrition_cells
from validation.report.page import OPEN_MODE
from warehouse.errors import TimeloomError
from warehouse.layout import Layout, ReleaseLayout
from warehouse.manifest import Manifest, read_manifest
from warehouse.parquet import read_frame
from warehouse.progress import Progress
from warehouse.publish import current_release

CLEAN, LACKS = 0, 2
Description = dict[str, Any]
_SCHEMA = "https://json-schema.org/draft/2020-12/schema"
_NAME = "task"


def json_schema() -> str:
    """The JSON schema of a task's YAML, as docs/task.schema.json holds it."""
    schema = {"$schema": _SCHEMA, **TaskConfig.model_json_schema(), "title": "A task of timeloom"}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def check(task: str, root: Path, config: Path | None, progress: Progress) -> Description:
    """Explains a task on the current release, and writes nothing.

    Args:
        task: the name of a built-in one, or a YAML file.
        config: a run's configuration, whose lists of codes, mappings and rules of derived events hold.

    Raises:
        TimeloomError: the task is wrong, or the root has no release.
    """
    settings = LabelsConfig(tasks={}) if config is None else load_config(config).labels
    definition = load_task(task)
    # Whole by now: a definition that it was made of is not asked for again.
    whole = definition.model_dump(exclude={"definition"})
    try:
        known = LabelsConfig.model_validate({**settings.model_dump(exclude={"tasks"}), "tasks": {_NAME: whole}})
    except ValidationError as error:
        raise TimeloomError(f"{Path(task).name}: {explain(error, LabelsConfig)}", f"see {PAGE}") from error
    release = current_release(Layout(root))
    if release is None:
        raise TimeloomError(f"{root.name} has no release yet", "run `timeloom run` or `timeloom demo`")
    manifest = read_manifest(release.manifest)
    return _described(known, release, manifest, progress)


def _described(settings: LabelsConfig, tree: ReleaseLayout, manifest: Manifest, progress: Progress) -> Description:
    definition, read = settings.tasks[_NAME], settings.read_tasks
    codes = LabelCodes.of(tree, settings)
    decisive, further = what_is_missing(read[_NAME], codes)
    tables = _attrition(settings, tree, manifest, codes, [_NAME] if decisive else [], progress)
    cells = Cells(open=manifest.deid.mode == OPEN_MODE)
    summed = totals(tables).group_by("step", "rule", maintain_order=True).agg(pl.col("removed", "left").sum())
    counts = [
        left if rule in (START, POSITIVE, NEGATIVE) else removed
        for rule, removed, left in summed.select("rule", "removed", "left").iter_rows()
    ]
    shown = attrition_cells(summed["rule"].to_list(), counts, cells)
    members = codes.members.group_by("list").agg(pl.col("code").n_unique()).sort("list")
    found = dict(members.iter_rows())
    return {
        "id": definition.id,
        "version": definition.version,
        "title": definition.title,
        "prose": definition.prose,
        "proposal": definition.proposal,
        "rules": definition.rules(),
        "codes": {
            name.rpartition(".")[2]: {"for": purpose, "codes_of_the_release": found.get(name, 0)}
            for name, purpose in read[_NAME].lists().items()
        },
        "release": manifest.release_id,
        "attrition": [
            {"rule": rule, "patients": None if isinstance(cell, Hidden) else cell}
            | ({"withheld": cell.label} if isinstance(cell, Hidden) else {})
            for rule, cell in zip(summed["rule"].to_list(), shown, strict=True)
        ],
        "no_labels_because": decisive,
        "lacks": further,
        "exit_code": LACKS if decisive or further else CLEAN,
    }


def _attrition(
    settings: LabelsConfig,
    tree: ReleaseLayout,
    manifest: Manifest,
    codes: LabelCodes,
    withheld: list[str],
    progress: Progress,
) -> pl.DataFrame:
    splits = read_frame(tree.scheme_subjects(settings.scheme or manifest.split_scheme)).select("subject_id", "split")
    tables = []
    for bucket in range(manifest.buckets):
        progress("buckets", bucket, manifest.buckets)
        derived, _ = derived_events(tree, bucket, codes.members_of(bucket, LISTS), settings.derived)
        made = label_bucket(tree, bucket, settings.read_tasks, codes, splits, derived, withheld)
        tables.append(made[_NAME][1].table(_NAME))
    progress("buckets", manifest.buckets, manifest.buckets)
    return pl.concat(tables)


def print_check(description: Description, console: Console) -> None:
    """The description for a person."""
    console.print(f"[bold]{description['id']}[/bold]  {description['title']}", highlight=False)
    for text in (description["prose"], f"A proposal: {description['proposal']}"):
        console.print(text, highlight=False)
    lists = Table("codes", "for", "in the release", box=None, header_style="bold", pad_edge=False)
    for name, found in description["codes"].items():
        lists.add_row(name, found["for"], f"{found['codes_of_the_release']:,} codes")
    console.print(lists)
    attrition = Table("rule", "left out, or left", box=None, header_style="bold", pad_edge=False)
    for row in description["attrition"]:
        attrition.add_row(row["rule"].replace("_", " "), row.get("withheld") or f"{row['patients']:,}")
    console.print(attrition)
    for line in description["no_labels_because"]:
        console.print(f"no labels: {line}", highlight=False)
    for line in description["lacks"]:
        console.print(f"lacks: {line}", highlight=False)
