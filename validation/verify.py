"""`verify`: whether a published release is still what was published, and whether what it points at exists.

Every checksum is computed again and every reference followed, of the root's own files, older releases and the private
folder too. What the gate expects of the release's content is measured again, by all cores, for the checks of the areas,
and is held against what the release says of it. Damage gives findings, never an exception; a finding names files,
counts and checks, and no patient.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import polars as pl

from validation.areas import registry
from validation.areas.area import Area, Check
from validation.damage import PARTS, Root
from validation.measure.anew import measure_anew
from validation.measure.measured_release import MeasuredRelease, published_release
from validation.measure.measures import Measures, differences
from validation.measure.stage import STAGE as MEASURE
from validation.measure.stores import check_store
from warehouse.errors import REPAIR, TimeloomError
from warehouse.layout import Layout, ReleaseLayout
from warehouse.manifest import Manifest, content_hash, read_manifest
from warehouse.progress import Progress
from warehouse.publish import current_release

NAMED = 5  # files that a finding names before it counts the rest
# A release of fewer bytes is measured before other processes have started.
SMALL_BYTES = 32 << 20


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        check: its name.
        ok: nothing is wrong.
        detail: a sentence with counts and file names, no patient's value.
        remedy: what mends it; empty where nothing is wrong, or only the release's meaning is.
    """

    check: str
    ok: bool
    detail: str
    remedy: str = ""


@dataclass(frozen=True)
class _Release:
    root: Root
    layout: Layout
    tree: ReleaseLayout
    manifest: Manifest
    measured: MeasuredRelease
    progress: Progress


def _named(names: Sequence[str]) -> str:
    rest = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _files(release: _Release) -> Finding:
    """Every file of the manifest exists and has its bytes."""
    missing, changed = [], []
    entries = release.manifest.files
    for done, (name, entry) in enumerate(entries.items(), 1):
        path = release.tree.path / name
        if not path.is_file():
            missing.append(name)
        elif not release.root.is_of(path, entry):
            changed.append(name)
        release.progress("files", done, len(entries))
    parts = [f"{what}: {_named(names)}" for what, names in (("missing", missing), ("changed", changed)) if names]
    return Finding(
        "files", not parts, "; ".join(parts) or f"{len(entries)} files have their checksums", REPAIR if parts else ""
    )


def _unlisted(release: _Release) -> Finding:
    """The release has no file that the manifest does not name, but for the report."""
    root = release.tree.path
    found = {path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir()}
    allowed = {"manifest.json"} | {name for name in found if name.startswith("quality/")}
    unlisted = sorted(found - allowed - set(release.manifest.files))
    return Finding("unlisted files", not unlisted, f"not in the manifest: {_named(unlisted)}" if unlisted else "none")


def _content(release: _Release) -> Finding:
    same = content_hash(release.manifest.files) == release.manifest.content_hash
    return Finding("content hash", same, "is that of the files" if same else "the manifest does not add up to its hash")


def _measures(release: _Release) -> Finding:
    """What the release says that was measured is what is measured now."""
    name, version = "measures", release.manifest.stages.get(MEASURE.name)
    if version is None:
        return Finding(name, True, "the release keeps none")
    if version != MEASURE.version:
        return Finding(name, True, f"are those of version {version}, which are not made any more")
    changed = differences(Measures(release.tree), release.measured.measures)
    detail = f"not what is measured now: {_named(changed)}" if changed else "are what is measured now"
    entries = release.manifest.files
    damaged = any(
        not release.root.is_of(release.tree.path / file, entries[file]) for file in changed if file in entries
    )
    return Finding(name, not changed, detail, REPAIR if damaged else "")


def _of_area(release: _Release, area: Area, check: Check) -> Finding:
    """Whether the area's expectations that name the check hold of what it measures."""
    frame = check.measure(release.measured)
    faults = []
    for expectation in area.expectations:
        if expectation.check is not check or frame.is_empty():
            continue
        broken = expectation.broken(frame)
        if broken.is_empty():
            continue
        if check.located_by:
            faults.append(f"{expectation.fault} in {_named(broken[check.located_by].to_list())}")
        else:
            faults.append(f"{broken[expectation.column].sum():,} {expectation.fault}")
    return Finding(check.name, not faults, "; ".join(faults) or check.right(frame))


def _vectors(release: _Release) -> Finding:
    """Every usable item has its vector, whole and of the right width.

    A separate process reads the stores: a page that points past a truncated file's end kills its reader.
    """
    items = release.measured.items.filter(pl.col("verdict") == "ok")
    stores = items.partition_by("modality", "store", "bucket", as_dict=True, maintain_order=True)
    total = {"missing": 0, "damaged": 0, "dim": 0}
    bad: list[str] = []
    pool = _pool()
    for done, ((modality, store, bucket), part) in enumerate(stores.items(), 1):
        path = release.layout.embedding_bucket(str(modality), str(store), int(bucket))
        keys, dims = part["item_key"].to_list(), part["dim"].fill_null(-1).to_list()
        try:
            counts = pool.submit(check_store, path, keys, dims).result()
        except BrokenProcessPool:
            counts = {"missing": 0, "damaged": len(keys), "dim": 0}
            pool = _pool()
        total = {name: total[name] + counts[name] for name in total}
        if any(counts.values()):
            bad.append("/".join(path.parts[-3:]))
        release.progress("vectors", done, len(stores))
    pool.shutdown()
    if not bad:
        usable = items["item_key"].n_unique()
        return Finding("vectors", True, f"{usable:,} usable items have theirs, checksums right")
    words = {"missing": "missing", "damaged": "damaged", "dim": "of another width"}
    counted = ", ".join(f"{count:,} {words[name]}" for name, count in total.items() if count)
    return Finding("vectors", False, f"{counted}; see {_named(bad)}", REPAIR)


def _pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn"))


def _checks() -> Iterator[tuple[str, Callable[[_Release], Finding]]]:
    """Names and checks: of bytes, of every area, of vectors."""
    yield "files", _files
    yield "unlisted files", _unlisted
    yield "content hash", _content
    yield "measures", _measures
    for area in registry.AREAS:
        for check in area.checks:
            yield check.name, partial(_of_area, area=area, check=check)
    yield "vectors", _vectors


def _findings(release: _Release) -> Iterator[Finding]:
    for name, check in _checks():
        release.progress(name, 0, 0)
        try:
            yield check(release)
        except TimeloomError as error:
            yield Finding(name, False, f"could not be checked: {error.message}", error.remedy)
        except (Exception, pl.exceptions.PanicException) as error:  # damaged bytes can raise anything
            yield Finding(name, False, f"could not be checked: {type(error).__name__}", REPAIR)


def _of_part(name: str, root: Root) -> Finding:
    """What is damaged of a part of the root that is no file of the current release."""
    find, remedy = PARTS[name]
    try:
        found = list(find(root))
    except PermissionError:  # the private folder is the site's own
        return Finding(name, True, "not looked at: this user may not read it")
    parts = [
        f"{what}: {_named(names)}"
        for what, missing in (("missing", True), ("changed", False))
        if (names := [damage.name for damage in found if damage.missing is missing])
    ]
    return Finding(name, not parts, "; ".join(parts) or "whole", remedy if parts else "")


def _silent(check: str, done: int, total: int) -> None:
    return None


def verify_release(root: Path, progress: Progress | None = None) -> list[Finding]:
    """Checks the published release under `root`, and changes nothing.

    Args:
        progress: called with the check's name, what is done and of how much; (name, 0, 0) when a check begins.

    Raises:
        TimeloomError: nothing has been published under `root`.
    """
    layout = Layout(root)
    looked_at = Root(layout)
    beside = [name for name in PARTS if name != "files"]
    try:
        tree = current_release(layout)
        if tree is None:
            raise TimeloomError(f"{root.name} holds no release", remedy="run `timeloom run` first")
        manifest = read_manifest(tree.manifest)
    except TimeloomError as error:
        if not looked_at.releases:
            raise
        first = Finding("manifest", False, error.message, error.remedy)
        return [first, *(_of_part(name, looked_at) for name in beside)]
    before = ReleaseLayout(layout.releases / manifest.parent) if manifest.parent else None
    said = progress or _silent
    large = sum(entry.bytes for entry in manifest.files.values()) >= SMALL_BYTES
    facts = published_release(tree, manifest, before).facts
    taken = measure_anew(tree, facts, os.cpu_count() or 1 if large else 1, partial(said, "measures"))
    measured = published_release(tree, manifest, before, taken)
    release = _Release(looked_at, layout, tree, manifest, measured, said)
    return [
        Finding("manifest", True, f"release {manifest.release_id}"),
        *_findings(release),
        *(_of_part(name, looked_at) for name in beside),
    ]
