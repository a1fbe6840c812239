"""Prints of a release Table A3 and whom each rule of a task leaves out, as its report has them.

    python docs/examples/tasks.py ROOT

A number that the rule of small cells hides is a dash.
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", help="a warehouse")
    options = parser.parse_args()
    try:
        quality = Release.open(options.root).path / "quality"
        print("\n".join([*table_a3(quality), "", *attrition(quality)]))
    except TimeloomError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
