"""The releases that a run stands on: the current one, and those that a repair may take from."""

from pathlib import Path, PurePosixPath

from pipelines.engine.context import RunContext, Standing
from warehouse.errors import REPAIR, TimeloomError
from warehouse.files import put_in_place
from warehouse.layout import Layout, ReleaseLayout
from warehouse.manifest import Manifest, read_manifest
from warehouse.publish import current_release
from warehouse.sealed import read_sealed

# What the gate reads of the release before.
COMPARED = ("lags.parquet", "ledger.parquet", "splits/*/ledger.parquet")


def standing_releases(layout: Layout, *, repair: bool = False) -> tuple[Standing | None, list[Standing]]:
    """The current release, and those that it goes back to, the latest first.

    Args:
        repair: where the manifest of the current one is damaged, the latest before it stands in its place.

    Raises:
        TimeloomError: `current` is no link to a release, or its manifest is damaged and this is no repair.
    """
    current = current_release(layout)
    if current is None:
        return None, []
    if not repair:
        return Standing(read_manifest(current.manifest), current.path), []
    found = []
    name: str | None = current.path.name
    seen: set[str] = set()
    while name is not None and name not in seen:
        seen.add(name)
        path = layout.releases.resolve() / name
        try:
            found.append(Standing(read_manifest(path / "manifest.json"), path))
            name = found[-1].manifest.parent
        except TimeloomError:
            name = _before(layout, path.name)
    return (found[0], found[1:]) if found else (None, [])


def _before(layout: Layout, name: str) -> str | None:
    """The parent of a release whose manifest is damaged: as its run's record says; else the one published before it."""
    for path in layout.lineage.glob("*.json"):
        try:
            record = read_sealed(path, older=True)
            if any(output["name"] == name for output in record["outputs"]):
                return None if record["parent"] is None else str(record["parent"])
        except (OSError, ValueError, LookupError, TypeError):
            continue
    return max((path.name for path in layout.releases.iterdir() if path.name < name), default=None)


def put_back(context: RunContext, layout: Layout, tree: ReleaseLayout, made: Manifest) -> None:
    """Reads what no task has read of the current release; what is damaged and was made anew to the same bytes is put
    where it was missing, in every release that shares it. Notes all damage.

    Args:
        made: of the staging tree.
    """
    if context.previous is None or context.previous_path is None:
        return
    for name, entry in context.previous.files.items():
        if name not in context.whole and not entry.is_of(context.previous_path / name):
            context.note_damage(name)
    for name in list(context.taken):
        if name in context.previous.files and context.previous.files[name].sha256 == made.files[name].sha256:
            del context.taken[name]  # what was drawn from older is what the current release had
    known: dict[Path, Manifest] = {}
    for name in context.damaged:
        before, now = context.previous.files.get(name), made.files.get(name)
        if before is None or now is None or before.sha256 != now.sha256:
            continue
        known = known or _manifests(layout)
        for release, manifest in known.items():
            theirs = manifest.files.get(name)
            if theirs is not None and theirs.sha256 == now.sha256 and not theirs.is_of(release / name):
                put_in_place(tree.path / name, release / name)


def _manifests(layout: Layout) -> dict[Path, Manifest]:
    found = {}
    for path in layout.releases.iterdir():
        try:
            found[path] = read_manifest(path / "manifest.json")
        except TimeloomError:
            continue
    return found


def parent_of(context: RunContext) -> Manifest | None:
    """The release that this run continues, which the gate holds it against: the current one; in a repair, the latest
    one that nothing is older of what was taken, and that has whole what is compared.

    Raises:
        TimeloomError: what is compared is damaged in the current release, and this is no repair.
    """
    if context.previous is None or context.previous_path is None:
        return None
    current = Standing(context.previous, context.previous_path)
    if context.older is None:
        if damaged := _damaged_of(current):
            raise TimeloomError(f"{damaged[0]} of the current release is damaged", remedy=REPAIR)
        return current.manifest
    if None in context.taken.values():
        return None
    lenders = set(context.taken.values())
    for release in (current, *context.older):
        lenders.discard(release.manifest.release_id)
        if not lenders and not _damaged_of(release):
            return release.manifest
    return None


def _damaged_of(release: Standing) -> list[str]:
    """Files of a release that the gate compares with, and that are damaged."""
    names = [name for name in release.manifest.files if any(map(PurePosixPath(name).match, COMPARED))]
    return [name for name in names if not release.has_whole(name)]
