"""What is published, from what, with which verdicts: the figures of the quality report, for a terminal or a program."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from flows.keeping.choice import opened, released
from warehouse.embeddings.bucket_lease import holders, undisturbed
from warehouse.embeddings.store import EmbeddingStore
from warehouse.errors import REPAIR, TimeloomError
from warehouse.layout import Layout, ReleaseLayout
from warehouse.manifest import Manifest, read_manifest
from warehouse.parquet import read_frame
from warehouse.publish import current_release
from warehouse.sealed import read_sealed

Row = dict[str, Any]
_LARGEST_SMALL = 10  # as in the report
# What a column is called here, where its own name would say something else in another table.
HEADINGS = {
    ("table_a1", "tokens"): "tokens without images",
    ("subjects", "known"): "subjects known elsewhere",
    ("subjects", "alone"): "in no other table",
    ("losses", "share"): "lost",
    ("joins", "share"): "missed share",
    ("steps", "cpu_seconds"): "seconds of processors",
}
STEP_COLUMNS = ("step", "ran", "linked", "resumed", "seconds", "cpu_seconds")
# Of the report's tables: what status shows, and which of their columns.
TABLES: dict[str, tuple[str, ...]] = {
    "losses": ("part", "measure", "before", "now", "share", "result"),
    "subjects": ("kind", "name", "known", "alone", "share"),
    "counts": ("table", "raw", "events", "static", "reference", "quarantined", "difference"),
    "quarantine": ("table", "reason", "rows"),
    "partial": (),
    "joins": ("table", "join", "found", "missed", "share"),
    "conflicts": ("conflict", "events", "meaning"),
    "availability": ("table", "recorded", "time", "estimated", "static"),
    "time_formats": (),
    "codes": ("namespace", "codes", "described", "with_parents"),
    "verdicts": ("modality", "verdict", "items", "meaning"),
    "by_encoder": ("modality", "encoder", "usable", "failed", "failed_here_alone"),
    "table_a1": ("split", "subjects", "share", "tokens"),
    "balance": ("scheme", "split", "subjects", "share", "target"),
    "tokenised": ("profile", "clinical", "in_tokens", "share"),
    "shards": ("profile", "plan", "split", "packs", "tokens_shards", "fill", "image_places"),
}


def describe(root: Path, release: str | None = None) -> dict[str, Any]:
    """A release as JSON, the current one where none is named. Small cells are null, and `withheld` names them, as in
    the report.

    Raises:
        TimeloomError: no such root, no such release in it, or its report is gone.
    """
    layout, manifest = opened(root, release)
    current = ReleaseLayout(layout.releases.resolve() / manifest.release_id)
    tables = report_tables(current, manifest)
    return {
        "release": manifest.release_id,
        "parent": manifest.parent,
        "created_at": manifest.created_at,
        "content_hash": manifest.content_hash,
        "deid": manifest.deid.mode,
        "files": len(manifest.files),
        "bytes": sum(entry.bytes for entry in manifest.files.values()),
        "sources": sorted({name.split("/")[0] for name in manifest.sources}),
        "encoders": {
            modality: {entry.name: entry.label for entry in entries} for modality, entries in manifest.encoders.items()
        },
        "profiles": {name: entry.model_dump() for name, entry in manifest.profiles.items()},
        "tables": {name: tables.get(name, {}).get("rows", []) for name in TABLES},
        "steps": _steps(root, manifest.run_id),
        "waiting": _waiting(layout, current, manifest),
        "workers": holders(layout),
        "unmapped_files": _unmapped(root, sorted(manifest.sources)),
        "report": str(current.report),
    }


def _waiting(layout: Layout, release: ReleaseLayout, manifest: Manifest) -> list[Row]:
    """By modality and store, the vectors that the release lacks because they waited, and those made since; as counts
    of items are shown.

    Raises:
        TimeloomError: a file of items is gone or damaged.
    """
    rows = []
    for modality, entries in sorted(manifest.encoders.items()):
        for entry in entries:
            total = entry.verdicts.get("waiting_for_vector", 0)
            if total:
                made = sum(_made(layout, release, modality, entry.store, bucket) for bucket in range(manifest.buckets))
                rows.append({"modality": modality, "store": entry.store} | _counted(total, made, manifest.deid.mode))
    return rows


def _counted(waited: int, made: int, mode: str) -> Row:
    """The two counts, small ones of real patients hidden, and those from which one could be worked out."""
    small = [number for number in (waited, made, waited - made) if 0 < number <= _LARGEST_SMALL]
    if mode == "synthetic" or not small:
        return {"waited": waited, "made_since": made}
    hidden = {"made_since": None, "withheld": "made_since: withheld"}
    if waited > _LARGEST_SMALL:
        return {"waited": waited, **hidden}
    return {"waited": None, **hidden, "withheld": "waited: 1–10; made_since: withheld"}


def _made(layout: Layout, release: ReleaseLayout, modality: str, store: str, bucket: int) -> int:
    path = layout.embedding_bucket(modality, store, bucket)
    if not path.is_file():
        return 0
    items = read_frame(release.items(bucket)).filter(modality=modality, store=store, verdict="waiting_for_vector")
    with undisturbed(path):
        return len(set(items["item_key"]) & set(EmbeddingStore.open(path).keys()))


def _steps(root: Path, run_id: str) -> list[Row]:
    """What each step of the release's run did and took, from its record; the last one, which wrote it, is not there."""
    try:
        return [dict(step) for step in read_sealed(Layout(root).lineage / f"{run_id}.json", older=True)["steps"]]
    except (OSError, ValueError, LookupError, TypeError):  # `timeloom verify` says what is wrong with it
        return []


def describe_releases(root: Path) -> list[Row]:
    """Every release of a root that can be opened, the latest first.

    Raises:
        TimeloomError: no such root, or no release in it.
    """
    layout, _ = opened(root, None)
    current = current_release(layout)
    found = []
    for name in released(layout):
        manifest = read_manifest(layout.releases / name / "manifest.json")
        found.append(
            {
                "release": name,
                "parent": manifest.parent,
                "created_at": manifest.created_at,
                "content_hash": manifest.content_hash,
                "bytes": sum(entry.bytes for entry in manifest.files.values()),
                "current": current is not None and current.path.name == name,
            }
        )
    return found


def print_releases(rows: list[Row], console: Console) -> None:
    """The same for a person."""
    columns = ("release", "created_at", "content_hash", "bytes", "current")
    shown = [
        row | {"content_hash": row["content_hash"][:16], "current": "current" if row["current"] else ""} for row in rows
    ]
    console.print(table_of("releases", shown, columns))


def _unmapped(root: Path, sources: list[str]) -> list[Row]:
    """The files of the release that no rule mentions, by the names that they have on this machine.

    The release calls them by a hash: nobody chose these names here, and one may be a patient's.
    """
    try:
        names = read_sealed(Layout(root).unmapped_files, older=True)
    except (OSError, ValueError):  # no private folder beside this root, or damaged: the next night writes it anew
        return []
    # A source's key there is its name, the table, and a number.
    tables = {key.partition("/")[2].rpartition("/")[0] for key in sources}
    return [{"table": label, "file": name} for label, name in sorted(names.items()) if label in tables]


def report_tables(release: ReleaseLayout, manifest: Manifest) -> dict[str, Any]:
    """The tables of a release's report, by name; small cells are withheld in them.

    Raises:
        TimeloomError: gone, or not what was published.
    """
    path = release.quality / "tables.json"
    entry = manifest.files.get(path.relative_to(release.path).as_posix())
    try:
        if entry is not None and not entry.is_of(path):
            raise ValueError("its checksum differs from the manifest")
        tables = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TimeloomError("the release's quality/tables.json is gone or damaged", REPAIR) from error
    return dict(tables)


def in_place_of(row: Row, name: str) -> str:
    """What stands in place of a cell of the report that is withheld; empty where it is not."""
    hidden = dict(part.split(": ", 1) for part in row.get("withheld", "").split("; ") if ": " in part)
    return str(hidden.get(name, ""))


def _shown(row: Row, name: str) -> str:
    """A cell for a person: its figure, or what stands in place of a hidden one."""
    value = row.get(name)
    if value is None:
        return in_place_of(row, name) or "–"
    if isinstance(value, float):
        return f"{value:.2%}" if name in ("share", "fill", "target") else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def table_of(table_name: str, rows: list[Row], columns: tuple[str, ...]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        numeric = any(isinstance(row.get(name), int | float) for row in rows)
        heading = HEADINGS.get((table_name, name), name.replace("_", " "))
        table.add_column(heading, no_wrap=name == columns[0], justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*(_shown(row, name) for name in columns))
    return table


def print_status(description: dict[str, Any], console: Console) -> None:
    """The same for a person."""
    console.print(f"release {description['release']} of {description['created_at']}, parent {description['parent']}")
    size = f"{description['files']} files, {description['bytes'] / 1e6:.1f} MB"
    console.print(f"{size}, content {description['content_hash'][:16]}, de-identification: {description['deid']}")
    console.print(f"sources: {', '.join(description['sources'])}")
    for modality, encoders in description["encoders"].items():
        for name, label in encoders.items():
            console.print(f"{modality} vectors: {label}" + (f", called {name}" if len(encoders) > 1 else ""))
    for name, columns in TABLES.items():
        rows = description["tables"][name]
        if rows and columns:
            console.print()
            console.print(table_of(name, rows, columns))
    if description["waiting"]:
        console.print()
        console.print(table_of("waiting", description["waiting"], ("modality", "store", "waited", "made_since")))
    for holder, buckets in description["workers"].items():
        console.print(f"worker {holder} fills {buckets} buckets")
    if description["steps"]:
        console.print()
        console.print(table_of("steps", description["steps"], STEP_COLUMNS))
    if description["unmapped_files"]:
        console.print()
        console.print(table_of("unmapped_files", description["unmapped_files"], ("table", "file")))
    console.print()
    console.print(f"report: {description['report']}")
