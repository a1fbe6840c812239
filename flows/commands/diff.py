"""`timeloom diff`: what a release has otherwise than another one."""

from pathlib import Path
from typing import Any

from rich.console import Console

from flows.commands.status import Row, table_of
from flows.keeping.choice import opened
from validation.difference import difference
from warehouse.progress import Progress
from warehouse.readers.pinned import PinnedRelease

# Of the difference: what is printed, and which of its columns.
TABLES: dict[str, tuple[str, ...]] = {
    "tables": ("table", "added", "removed"),
    "codes": ("table", "code", "added", "removed"),
    "splits": ("scheme", "split", "added", "withdrawn", "moved_away"),
    "vocabularies": ("profile", "tokens", "added", "gone", "renumbered"),
    "shards": ("plan", "split", "same", "changed", "added", "gone"),
    "items": ("modality", "verdict", "more"),
    "encoders": ("name", "is"),
    "stages": ("name", "is"),
    "keys": ("name", "is"),
}
# A person reads so many lines of a table; --json has all.
LINES = 20


def compare(root: Path, before: str, after: str | None, progress: Progress) -> dict[str, Any]:
    """What a release has otherwise than an earlier one, as JSON.

    Args:
        after: the current release where None.

    Raises:
        TimeloomError: no such release, or a file of one is damaged.
    """
    layout, _ = opened(root, before)
    _, manifest = opened(root, after)
    releases = [PinnedRelease.open(layout.root, name) for name in (before, manifest.release_id)]
    try:
        return difference(releases[0], releases[1], progress)
    finally:
        for release in releases:
            release.close()


def print_difference(found: dict[str, Any], console: Console) -> None:
    """The same for a person."""
    console.print(f"{found['before']} → {found['after']}")
    files = found["files"]
    console.print(
        f"files: {files['same']} the same, {files['changed']} changed, {files['added']} added, {files['gone']} gone"
    )
    if found["same"]:
        console.print("the data of both is the same")
    console.print()
    console.print("patients")
    console.print(table_of("patients", [found["subjects"]], ("added", "withdrawn", "changed")))
    for name, columns in TABLES.items():
        rows: list[Row] = found[name]
        if name == "shards":
            rows = [row for row in rows if row["changed"] or row["added"] or row["gone"]]
        if not rows:
            continue
        console.print()
        console.print(name)
        console.print(table_of(name, _most_changed(rows)[:LINES], columns))
        if len(rows) > LINES:
            console.print(f"and {len(rows) - LINES} more: --json has all")


def _most_changed(rows: list[Row]) -> list[Row]:
    """Rows of events with the most changed first; others as they stand."""
    if not rows or "code" not in rows[0]:
        return rows
    return sorted(rows, key=lambda row: -((row["added"] or 0) + (row["removed"] or 0)))
