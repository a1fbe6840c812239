"""`timeloom status --why`: what made a file of a release, since when it stands, and what has changed since.

What a task was made of is kept as short hashes with names; no value is, so none can be shown.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from flows.keeping.choice import opened
from flows.runs.paths import root_of
from flows.runs.record import key_hashes
from pipelines.config import RunConfig, load_config
from pipelines.engine.context import RunContext
from pipelines.engine.fingerprints import Fingerprints
from pipelines.engine.local import LocalEngine
from pipelines.night import Night, Stage
from validation.stages import NIGHT
from warehouse.errors import TimeloomError
from warehouse.layout import Layout
from warehouse.manifest import Manifest, TaskEntry, read_manifest

BY_NAME = {stage.name: stage for stage in NIGHT}
# What later releases carry on although no stage of the night made it.
CARRIED = "carried"


def why(root: Path, path: str, release: str | None = None, config: Path | None = None) -> dict[str, Any]:
    """What made a file of a release, as JSON.

    Args:
        path: inside the release, such as data/0007.parquet.
        release: its id; the current one where None.
        config: of a night now: what it would find changed is told too.

    Raises:
        TimeloomError: no such release or file, or the configuration is wrong.
    """
    layout, manifest = opened(root, release)
    entry = manifest.files.get(path)
    if entry is None:
        near = get_close_matches(path, manifest.files, n=1)
        remedy = f"did you mean {near[0]}" if near else "give a path inside the release, such as data/0000.parquet"
        raise TimeloomError(f"release {manifest.release_id} has no file {path}", remedy=remedy)
    found: dict[str, Any] = {
        "path": path,
        "release": manifest.release_id,
        "sha256": entry.sha256,
        "bytes": entry.bytes,
        "rows": entry.rows,
        **_made_by(manifest, path),
        **_since(layout, manifest, path),
    }
    if config is not None:
        loaded = load_config(config)
        if root_of(loaded, root) != layout.root.resolve():
            raise TimeloomError(f"{config.name} is of another root", remedy="give the configuration of its runs")
        found["changed"] = list(_changed(found["stage"], path, manifest, _Now(loaded, config, layout)))
    return found


def _task_of(manifest: Manifest, path: str) -> tuple[str, TaskEntry] | None:
    return next(((key, entry) for key, entry in manifest.tasks.items() if path in entry.files), None)


def _made_by(manifest: Manifest, path: str) -> dict[str, Any]:
    found = _task_of(manifest, path)
    if found is None:
        return {"stage": "validate", "task": "", "version": None, "fingerprint": "", "because": {}, "reads": []}
    key, entry = found
    stage, _, task = key.partition("/")
    reads = BY_NAME[stage].after if stage in BY_NAME else ()
    return {
        "stage": stage,
        "task": task,
        "version": manifest.stages.get(stage),
        "fingerprint": entry.fingerprint,
        "because": entry.because,
        "reads": list(reads),
    }


def _since(layout: Layout, manifest: Manifest, path: str) -> dict[str, Any]:
    """The oldest release of an unbroken line that has the file as it is; whether an older one may have it, which is
    gone; and the parts of its fingerprint that are others than in the release before that one."""
    since, older = manifest, manifest.parent
    while older is not None:
        place = layout.releases / older / "manifest.json"
        if not place.is_file():
            return {"since": since.release_id, "at_least": True, "then": []}
        before = read_manifest(place)
        entry = before.files.get(path)
        if entry is None or entry.sha256 != since.files[path].sha256:
            return {"since": since.release_id, "at_least": False, "then": _other_parts(before, since, path)}
        since, older = before, before.parent
    return {"since": since.release_id, "at_least": False, "then": []}


def _other_parts(before: Manifest, after: Manifest, path: str) -> list[str]:
    old, new = (_task_of(manifest, path) for manifest in (before, after))
    if old is None or new is None:
        return []
    stage = new[0].partition("/")[0]
    other = [name for name, value in new[1].because.items() if old[1].because and old[1].because.get(name) != value]
    return other + ["stage version"] * (before.stages.get(stage) != after.stages.get(stage))


@dataclass
class _Now:
    """A night as it would be now: its configuration, and what is remembered of its raw files."""

    config: RunConfig
    file: Path
    layout: Layout

    def tables(self) -> dict[str, list[str]]:
        """By source and table, the fingerprints of what is read."""
        with tempfile.TemporaryDirectory() as folder:
            night = Night(
                self.config,
                self.file.parent.resolve(),
                _Looking(self.layout.root, Path(folder)),
                RunContext(LocalEngine(1), Path(folder), None, None),
                Fingerprints(self.layout.private),
            )
            tasks = list(BY_NAME["meds"].plan(night))
        found: dict[str, list[str]] = {}
        for task in tasks:
            found.setdefault(f"{task.params['source']['name']}/{task.params['label']}", []).append(task.fingerprint)
        return found

    def stores(self) -> set[str] | None:
        """`modality/store` of every encoder; None where weights are not at hand."""
        from flows.keeping.collect import stores_of

        found = stores_of(self.config)
        return None if found is None else {f"{name}/{store}" for name, stores in found.items() for store in stores}


@dataclass(frozen=True)
class _Looking(Layout):
    """A root at which is only looked: what a plan writes down beside it goes to another folder."""

    scratch: Path

    @property
    def unmapped_files(self) -> Path:
        return self.scratch / "unmapped.json"


def _behind(stage: str) -> dict[str, Stage]:
    """A stage and all that it hangs on."""
    found: dict[str, Stage] = {}
    todo = [stage]
    while todo:
        name = todo.pop()
        if name in BY_NAME and name not in found:
            found[name] = BY_NAME[name]
            todo += BY_NAME[name].after
    return found


def _changed(stage: str, path: str, manifest: Manifest, now: _Now) -> Iterator[dict[str, str]]:
    """What a night now would find other than the release had it, of all that the file hangs on."""
    stages = _behind(stage) if stage in BY_NAME else dict(BY_NAME)
    for name, each in stages.items():
        known = manifest.stages.get(name)
        if known != each.version:
            yield {"kind": "stage", "name": name, "was": str(known), "is": str(each.version)}
    roots = {key for each in stages.values() for key in each.keys}
    profile = next((part for part in Path(path).parts if part.split(".")[0] in manifest.profiles), None)
    new = key_hashes(now.config)
    for key in sorted(manifest.keys.keys() | new.keys()) if manifest.keys else ():
        words = key.split(".")
        of_other = words[0] == "profiles" and profile is not None and words[1] != profile.split(".")[0]
        if manifest.keys.get(key) == new.get(key) or words[0] not in roots or of_other:
            continue
        kind = "task" if key.startswith("labels.tasks.") else "key"
        state = "new" if key not in manifest.keys else "gone" if key not in new else "other"
        yield {"kind": kind, "name": key, "is": state}
    if "meds" in stages:
        old: dict[str, list[str]] = {}
        for label, fingerprint in manifest.sources.items():
            old.setdefault(label.rpartition("/")[0], []).append(fingerprint)
        tables = now.tables()
        for table in sorted(old.keys() | tables.keys()):
            if old.get(table) != tables.get(table):
                state = "new" if table not in old else "gone" if table not in tables else "other"
                yield {"kind": "table", "name": table, "is": state}
    if "embed" in stages:
        had = {f"{name}/{entry.store}" for name, entries in manifest.encoders.items() for entry in entries}
        has = now.stores()
        for store in sorted(had if has is None else had ^ has):
            state = "not known, as weights are not at hand" if has is None else "gone" if store in had else "new"
            yield {"kind": "encoder", "name": store, "is": state}


def print_why(found: dict[str, Any], say: Callable[[str], None]) -> None:
    """The same for a person."""
    rows = "" if found["rows"] is None else f", {found['rows']:,} rows"
    say(f"{found['path']} of release {found['release']}: {found['bytes']:,} bytes{rows}, sha256 {found['sha256'][:16]}")
    if found["stage"] == CARRIED:
        say("carried on from the release before: nothing of this night's configuration made it")
    elif found["fingerprint"]:
        reads = f", which reads {', '.join(found['reads'])}" if found["reads"] else ""
        say(f"made by stage {found['stage']}, version {found['version']}, task {found['task']}{reads}")
        parts = ", ".join(f"{name} {value}" for name, value in found["because"].items())
        say(f"fingerprint {found['fingerprint'][:16]}" + (f" of: {parts}" if parts else ""))
    else:
        say("made when the release was judged: it belongs to the report")
    line = f"unchanged since release {found['since']}"
    say(line + (" at least: the one before it is gone" if found["at_least"] else ""))
    if found["then"]:
        say(f"it was made anew then, because of: {', '.join(found['then'])}")
    for change in found.get("changed", ()):
        was = f"was {change['was']}, is {change['is']}" if "was" in change else f"is {change['is']}"
        say(f"changed since: {change['kind']} {change['name']} {was}")
    if "changed" in found:
        ends = "a night now would look at it anew" if found["changed"] else "nothing that it hangs on has changed"
        say(ends)
