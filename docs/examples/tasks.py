"""Prints of a release Table A3 and whom each rule of a task leaves out, as its report has them.

    python docs/examples/tasks.py ROOT
    python docs/examples/tasks.py --planted

A number that the rule of small cells hides is a dash. `--planted` prints instead what is right of the patients that
`timeloom simulate --task-cases` plants, one or two a rule.
"""

import argparse
import sys
import textwrap
from pathlib import Path

import polars as pl

from warehouse import Release, TimeloomError


def shown(count: int | None) -> str:
    """A count, or what stands for a hidden one."""
    return "-" if count is None else f"{count:,}"


def table_a3(quality: Path) -> list[str]:
    """A line a task: of each split how many examples are positive."""
    rows = pl.read_parquet(quality / "table_a3.parquet")
    splits = rows["split"].unique(maintain_order=True).to_list()
    lines = ["".join(["Table A3".ljust(20), *(f"{name}, positive of".rjust(24) for name in splits)])]
    for (task,), part in rows.group_by("task", maintain_order=True):
        cells = {row["split"]: f"{shown(row['positive'])} of {shown(row['examples'])}" for row in part.to_dicts()}
        lines.append("".join([str(task).ljust(20), *(cells.get(name, "").rjust(24) for name in splits)]))
    return lines


def attrition(quality: Path) -> list[str]:
    """A paragraph a task: who starts, whom each rule leaves out, and what is left."""
    rows = pl.read_parquet(quality / "attrition.parquet")
    lines = []
    for (task,), part in rows.group_by("task", maintain_order=True):
        rules = ", ".join(f"{rule} {shown(patients)}" for rule, patients in part.select("rule", "patients").iter_rows())
        lines += textwrap.wrap(f"{task}: {rules}", 120, subsequent_indent="    ", break_on_hyphens=False)
    return lines


def planted() -> list[str]:
    """A line a planted patient: the tasks with a label, `+` where it is positive and `-` where it is negative."""
    from extractors.simulate.task_cases import plant_task_cases

    _, truth = plant_task_cases(0)
    answers: dict[str, list[str]] = {}
    for _, case, task, answer in truth:
        sign = {"true": "+", "false": "-"}.get(str(answer))
        answers.setdefault(str(case), []).extend([f"{sign}{task}"] if sign else [])
    wrapped = (
        textwrap.wrap(" ".join(labels) or "no label", 120, initial_indent=f"{case:<30}", subsequent_indent=" " * 30)
        for case, labels in answers.items()
    )
    return [line for lines in wrapped for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", nargs="?", help="a warehouse")
    parser.add_argument("--planted", action="store_true", help="the planted patients' answers")
    options = parser.parse_args()
    if options.planted:
        print("\n".join(planted()))
        return
    if options.root is None:
        parser.error("give the folder of a warehouse, or --planted")
    try:
        quality = Release.open(options.root).path / "quality"
        print("\n".join([*table_a3(quality), "", *attrition(quality)]))
    except TimeloomError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
