"""labels: one bucket's events and derived events → each task's labels. Schema out: LABELS and ATTRITION.

A bucket is read once for all tasks. A task whose labels cannot be made, because nothing in the release is its index
event or its outcome, has an empty file, an attrition table that says so, and one line in the run's log.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import polars as pl

from pipelines.carrying.subjects import Changes, carried, reads, splits_of
from pipelines.engine.context import StageReport, counts_of
from pipelines.engine.former import Former
from pipelines.engine.task import Carrying, Result, Task, make_task
from pipelines.night import Night, Stage
from pipelines.papers.derive import label_codes, rules_before, rules_of
from pipelines.split import hashes_of
from pipelines.tasks.attrition import Attrition, mended_tables
from pipelines.tasks.codes import DERIVED, entries_of, systems_of
from pipelines.tasks.definition import BIRTH, TaskConfig
from pipelines.tasks.facts import Facts, read_facts
from pipelines.tasks.labelling import BucketLabels, empty_labels, lists_of
from pipelines.tasks.members import LabelCodes
from pipelines.tasks.notices import missing_of, namespaces_of, older_codes
from warehouse.arrays import I64
from warehouse.files import sha256_json
from warehouse.layout import ReleaseLayout, bucket_name
from warehouse.manifest import LabelsEntry
from warehouse.parquet import read_frame, write_table
from warehouse.schemas import ATTRITION, LABELS

WITHHELD = "withheld"


class Counts(TypedDict):
    """What a task tells: by task of the configuration and rule, how many of all splits are left."""

    left: dict[str, dict[str, int]]


class Params(TypedDict):
    """What a task is given: paths and settings."""

    bucket: int
    tasks: dict[str, dict[str, Any]]
    withheld: list[str]
    codes: dict[str, Any]
    scheme: str


def plan(night: Night) -> list[Task]:
    """One task per bucket, up to date as long as its events, their kinds and its subjects' splits are."""
    config = night.config.labels
    if not config.tasks:
        return []
    events, derived = night.report("align").hashes(), night.report("derive").hashes()
    relative = ReleaseLayout(Path())
    codes = label_codes(night)
    scheme = config.scheme or night.config.primary_scheme
    splits = hashes_of(night, scheme)
    names = lists_of(config.read_tasks)
    rules_of_tasks = {name: task.rules() for name, task in config.read_tasks.items()}
    # Of the buckets' own codes the hash says which list holds them; derived ones are not among those.
    entries = {name: entries_of(name, codes.lists) for name in names}
    of_derived = {name: both for name, both in entries.items() if DERIVED in systems_of(both[0])}
    withheld = sorted(name for name, (decisive, _) in lacking(night).items() if decisive)
    held = [codes.hash_of(bucket, names) for bucket in range(night.config.buckets)]

    def carrying(bucket: int) -> Carrying:
        rules = [rules_of_tasks, withheld, scheme, of_derived]
        before = codes.hash_before(night.context.former_tree, bucket, names)
        return Carrying(
            [*rules, held[bucket], rules_of(night, bucket)],
            [*rules, before, rules_before(night, bucket)],
            [*reads(bucket, scheme=scheme), str(relative.derived(bucket))],
        )

    return [
        make_task(
            STAGE,
            bucket_name(bucket),
            night.context.staging,
            settings=[rules_of_tasks, withheld, scheme, of_derived],
            inputs=[
                events[str(relative.events(bucket))],
                derived[str(relative.derived(bucket))],
                held[bucket],
                splits.get(bucket),
            ],
            carrying=partial(carrying, bucket),
            params=Params(
                bucket=bucket,
                tasks={name: task.model_dump(mode="json") for name, task in config.read_tasks.items()},
                withheld=withheld,
                codes=codes.params,
                scheme=scheme,
            ),
        )
        for bucket in range(night.config.buckets)
    ]


def lacking(night: Night) -> dict[str, tuple[list[str], list[str]]]:
    """By task, what keeps its labels from being made, and what else it lacks."""

    def find() -> dict[str, tuple[list[str], list[str]]]:
        codes = label_codes(night)
        return {name: what_is_missing(task, codes) for name, task in night.config.labels.read_tasks.items()}

    return night.once("lacking labels", find)


def what_is_missing(task: TaskConfig, codes: LabelCodes) -> tuple[list[str], list[str]]:
    """What keeps a task's labels from being made, and what else it lacks; see pipelines.tasks.notices."""
    present = namespaces_of(pl.concat([codes.codes["code"], codes.edges["parent"].rename("code")]))
    decisive, further = missing_of(task, codes.lists, codes.members, present)
    return ([], [*decisive, *further]) if task.absent == "accept" else (decisive, further)


def run(params: Params, base: Path, former: Former | None = None) -> Result:
    """Writes the labels of every task of one bucket, and who was left out."""
    tree, bucket = ReleaseLayout(base), params["bucket"]
    tasks = {name: TaskConfig.model_validate(task) for name, task in params["tasks"].items()}

    codes = LabelCodes.of_params(params["codes"], tree)

    def asked(tree: ReleaseLayout, subjects: I64 | None = None) -> Asked:
        return Asked(tree, splits_of(tree, params["scheme"]), read_frame(tree.derived(bucket)), subjects)

    changes = Changes.of(tree, former.tree, bucket, scheme=params["scheme"]) if former is not None else None
    if former is None or changes is None:
        made = labelled(asked(tree), bucket, tasks, codes, params["withheld"])
        labels = {name: frame for name, (frame, _) in made.items()}
        attrition = pl.concat([each.table(name) for name, (_, each) in made.items()])
    else:
        before = asked(former.tree, changes.before)
        made = labelled(asked(tree, changes.now), bucket, tasks, codes, params["withheld"], before)
        labels = {
            name: carried(read_frame(former.tree.labels(name, bucket)), frame, changes, LABELS.names)
            for name, (frame, _) in made.items()
        }
        of_now, of_before = (
            pl.concat([each.table(name, group) for name, (_, each) in made.items()]) for group in (0, 1)
        )
        attrition = mended_tables(read_frame(former.tree.attrition(bucket)), of_before, of_now)
    files: dict[str, int | None] = {}
    for name, frame in labels.items():
        path = tree.labels(name, bucket)
        files[str(path.relative_to(base))] = write_table(path, frame, LABELS, f"labels of {name}")
    path = tree.attrition(bucket)
    files[str(path.relative_to(base))] = write_table(path, attrition, ATTRITION, "attrition")
    return Result(files, Counts(left=left_by_rule(attrition)))


def left_by_rule(attrition: pl.DataFrame) -> dict[str, dict[str, int]]:
    """By task, how many are left behind each rule, all splits together; of columns of ATTRITION."""
    left: dict[str, dict[str, int]] = {}
    summed = attrition.group_by("task", "step", "rule", maintain_order=True).agg(pl.col("left").sum())
    for task, _, rule, number in summed.iter_rows():
        left.setdefault(task, {})[rule] = number
    return left


@dataclass(frozen=True)
class Asked:
    """Whom labels are made of in a bucket.

    Attributes:
        tree: a release.
        splits: `subject_id`, `split`.
        derived: columns of DERIVED.
        subjects: ids, ascending, of those who are wanted; all where not given.
    """

    tree: ReleaseLayout
    splits: pl.DataFrame
    derived: pl.DataFrame
    subjects: I64 | None = None

    def facts(self, bucket: int, members: pl.DataFrame) -> Facts:
        """What lists hold of their events; `members` are the lists' codes."""
        births = members.filter(pl.col("list") == BIRTH)["code"]
        path = self.tree.events(bucket)
        return read_facts(path, members["code"].unique(), self.derived, births=births, subjects=self.subjects)


def label_bucket(
    tree: ReleaseLayout,
    bucket: int,
    tasks: dict[str, TaskConfig],
    codes: LabelCodes,
    splits: pl.DataFrame,
    derived: pl.DataFrame,
    withheld: list[str],
) -> dict[str, tuple[pl.DataFrame, Attrition]]:
    """By task, the labels of a bucket and who was left out.

    Args:
        splits: `subject_id`, `split`.
        derived: columns of DERIVED.
        withheld: tasks whose labels cannot be made.
    """
    return labelled(Asked(tree, splits, derived), bucket, tasks, codes, withheld)


def labelled(
    asked: Asked,
    bucket: int,
    tasks: dict[str, TaskConfig],
    codes: LabelCodes,
    withheld: list[str],
    before: Asked | None = None,
) -> dict[str, tuple[pl.DataFrame, Attrition]]:
    """By task, the labels of some subjects and who was left out.

    Args:
        withheld: tasks whose labels cannot be made.
        before: who gets no labels, and is counted in a group apart: what is done for few subjects takes as long as what
            is done for fewer.
    """
    names = lists_of(tasks)
    both = [asked] if before is None else [asked, before]
    members = pl.concat([codes.members_of(bucket, names, each.derived["code"].unique(), each.tree) for each in both])
    members = members.unique(maintain_order=True)
    facts, *others = (each.facts(bucket, members) for each in both)
    if before is None:
        bucket_labels = BucketLabels(facts, members, asked.splits)
    else:
        facts = facts.followed_by(others[0])
        bucket_labels = BucketLabels(facts, members, asked.splits, len(others[0].subjects), before.splits)
    made = {}
    for name, task in tasks.items():
        if name in withheld:
            everyone = np.arange(len(facts.subjects))
            attrition = bucket_labels.attrition(everyone)
            attrition.remove(WITHHELD, np.ones(len(everyone), np.bool_))
            attrition.labelled(np.zeros(len(everyone), np.bool_))
            made[name] = empty_labels(), attrition
        else:
            made[name] = bucket_labels.label(task)
    return made


def check(report: StageReport, night: Night) -> None:
    """Says what each task lacks."""
    if not night.config.labels.tasks:
        return
    for name, (decisive, further) in lacking(night).items():
        for line in decisive:
            night.log(f"labels: {name} has no labels: {line}")
        for line in further:
            night.log(f"labels: {name}: {line}")
    codes = label_codes(night)
    named = {entry for name in lists_of(night.config.labels.read_tasks) for entry in entries_of(name, codes.lists)[0]}
    for line in older_codes(systems_of(sorted(named)), codes.codes, codes.edges):
        night.log(f"labels: {line}")


def declare(night: Night) -> dict[str, Any]:
    """Each task of the release, with what its labels are made by."""
    config = night.config.labels
    if not config.tasks:
        return {}
    missing = lacking(night)
    entries = {}
    for name, task in config.tasks.items():
        left = [counts_of(entry, Counts)["left"][name] for entry in night.report(STAGE.name).entries.values()]
        decisive, further = missing[name]
        entries[name] = LabelsEntry(
            id=task.id,
            title=task.title,
            rules=task.rules(),
            rules_hash=sha256_json(task.rules()),
            scheme=config.scheme or night.config.primary_scheme,
            positive=sum(counted["positive"] for counted in left),
            negative=sum(counted["negative"] for counted in left),
            withheld=tuple(decisive),
            lacks=tuple(further),
        )
    return {"labels": entries}


STAGE = Stage(
    "labels",
    version=3,
    run="pipelines.papers.labels:run",
    after=("align", "metadata", "split", "derive"),
    keys=("labels",),
    plan=plan,
    check=check,
    declare=declare,
    settings_are=("tasks", "withheld", "scheme", "derived"),
    inputs_are=("events", "derived events", "members of codes", "splits"),
)
