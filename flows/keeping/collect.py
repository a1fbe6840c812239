"""Collecting what nobody needs any more: old releases, and what stood for them alone outside of releases.

Each step leaves a whole root behind it. A release goes by one rename into `work/collected`, and is deleted there; a
store of vectors is made anew in a file beside it, which takes its place by one rename. What a kill leaves over is
removed by the next collection, and `work/collected` by the next night too.
"""

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from flows.keeping.choice import chosen, lineage_of, released
from pipelines.config import KeepConfig, RunConfig
from pipelines.dealing import wanted_of
from pipelines.engine.run_stage import load_record
from warehouse.embeddings.bucket_lease import dead_leases, take
from warehouse.embeddings.compact import compact, spare_of
from warehouse.errors import REPAIR, TimeloomError
from warehouse.files import sync_directory
from warehouse.layout import Layout, ReleaseLayout
from warehouse.leases import unread
from warehouse.manifest import Manifest, read_manifest

MEGABYTE = 1e6
# What is collected, in the order of a report: by its kind, how it is called when it is counted.
KINDS = {
    "release": "releases",
    "work": "folders of runs that were killed",
    "segment": "segments and findings",
    "store": "stores of encoders",
    "vectors": "vectors",
    "lease": "leases of workers that died",
    "log": "logs",
}
Stores = Mapping[str, Set[str]]
NO_STORES: Stores = {}


@dataclass(frozen=True)
class Gone:
    """Something that goes, or went.

    Attributes:
        kind: a key of KINDS.
        name: a release's id, or a path relative to the root; of the private folder, behind `private/`.
        number: how much it is of its kind.
        bytes: that become free: what other releases share stays.
    """

    kind: str
    name: str
    number: int
    bytes: int


@dataclass
class Collection:
    """What a collection did, or would do.

    Attributes:
        applied: it was done; False where it was only looked at.
        kept: the releases that stay, and why.
        gone: what goes.
        left: what could not be looked at, and why; in words.
    """

    applied: bool
    kept: dict[str, str]
    gone: list[Gone] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.gone)

    def line(self) -> str:
        """The same in a line."""
        counted: Counter[str] = Counter()
        for part in self.gone:
            counted[part.kind] += part.number
        parts = ", ".join(f"{counted[kind]} {name}" for kind, name in KINDS.items() if counted[kind])
        if not parts:
            return f"nothing to collect; {_releases(len(self.kept))}"
        went = "collected" if self.applied else "would collect"
        return f"{went} {parts}: {self.bytes / MEGABYTE:.1f} MB; {_releases(len(self.kept))}"


def _releases(number: int) -> str:
    return "1 release stays" if number == 1 else f"{number} releases stay"


def collected(layout: Layout) -> Path:
    """Where removed releases lie until they are deleted."""
    return layout.work / "collected"


def stores_of(config: RunConfig) -> Stores | None:
    """By modality, the stores that a configuration names; None where its weights are not at hand."""
    from embedders.encoders.spec import store_spec

    try:
        return {
            modality: {store_spec(encoder, modality).store_name for encoder in block.all_encoders}
            for modality, block in config.modalities.items()
        }
    except TimeloomError:
        return None


def remove(path: Path) -> None:
    """Deletes a file or a folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def recorded_files(layout: Layout) -> Iterator[Path]:
    """What tasks left outside releases: segments, and what stands in the private folder; records before their files,
    so that a kill leaves no record without one."""
    folders = (layout.segments, layout.private / "items", *layout.private_records)
    found = [path for folder in folders for path in sorted(folder.glob("*"))]
    yield from (path for path in found if path.suffix == ".json")
    yield from (path for path in found if path.suffix != ".json")


def records_kept(layout: Layout, keep: KeepConfig) -> set[str]:
    """The records of the latest releases, whose segments stay."""
    names = lineage_of(layout, keep.segments)
    return {record for name in names for record in read_manifest(layout.releases / name / "manifest.json").records}


def collect(
    layout: Layout,
    keep: KeepConfig,
    window: int,
    configured: Stores | None = NO_STORES,
    *,
    apply: bool = False,
    thorough: bool = False,
) -> Collection:
    """Finds what nobody needs, and removes it where `apply` says so; the caller holds the root's lock then.

    Args:
        window: releases that the gate compares the next night with; they stay.
        configured: by modality, stores that the next night may write to: they stay though no release names them. None
            where they are not known; then every store stays.
        thorough: looks for stores and vectors also where no release goes.

    Raises:
        TimeloomError: there is no release, or a manifest or a file of items is damaged, so that it is not known what
            is needed.
    """
    collector = _Collector(layout, keep, Collection(apply, chosen(layout, keep, window)))
    collector.begin()
    collector.releases()
    if collector.went or thorough:
        collector.segments()
        collector.stores(configured)
    collector.work()
    collector.logs()
    collector.end()
    return collector.found


class _Collector:
    """One collection. `went`: manifests of releases that go, `stay`: of those that stay."""

    def __init__(self, layout: Layout, keep: KeepConfig, found: Collection) -> None:
        self.layout, self.keep, self.found = layout, keep, found
        self.aside = collected(layout)
        self.went: list[Manifest] = []
        self.stay: dict[str, Manifest] = {}

    def begin(self) -> None:
        """Takes up what a killed collection left: manifests of releases that it had moved say what they needed."""
        for path in sorted(self.aside.glob("*")):
            self._count("work", path)
            try:
                self.went.append(read_manifest(path / "manifest.json"))
            except TimeloomError:
                self._delete(path)
        if self.found.applied:
            self.aside.mkdir(parents=True, exist_ok=True)
            for left in self.layout.root.glob("embeddings/*/*/.*.part"):
                remove(left)

    def end(self) -> None:
        """Deletes the releases that went, last of all: as long as they are there, it is known what they needed."""
        if self.found.applied:
            shutil.rmtree(self.aside)

    def releases(self) -> None:
        """Moves releases out of the way. A reader that opens one meanwhile has it, or is told that it is gone."""
        moved = []
        # All of them before any is moved: a damaged one stops a collection that has done nothing.
        manifests = {
            name: read_manifest(self.layout.releases / name / "manifest.json") for name in released(self.layout)
        }
        for name, manifest in manifests.items():
            path = self.layout.releases / name
            if name not in self.found.kept and self._move(path):
                self.went.append(manifest)
                moved.append(self.aside / name if self.found.applied else path)
            else:
                self.found.kept.setdefault(name, "held by a reader")
                self.stay[name] = manifest
        if moved and self.found.applied:
            # No file may be deleted of a release that a power failure brings back.
            sync_directory(self.layout.releases)
            sync_directory(self.aside)
        self.found.gone += [Gone("release", path.name, 1, size) for path, size in _freed(moved)]

    def _move(self, release: Path) -> bool:
        """Moves a release out of the way, unless a reader holds it."""
        with unread(release) as free:
            if free and self.found.applied:
                release.rename(self.aside / release.name)
        return free

    def segments(self) -> None:
        """Removes what only releases that went, or older ones, were made of."""
        known = {record for manifest in (*self.went, *self.stay.values()) for record in manifest.records}
        going = known - records_kept(self.layout, self.keep)
        # A night that published nothing may have left a record, which stays: what it goes on from stays too.
        for path in sorted(self.layout.segments.glob("*.json")):
            record = load_record(path) if path.stem not in known else None
            going -= {Path(name).stem for name in record.files} if record is not None else set()
        for path in list(recorded_files(self.layout)):
            if path.stem in going:
                self._count("segment", path, number=int(path.suffix != ".json"))
                self._delete(path)

    def stores(self, configured: Stores | None) -> None:
        """Removes stores that no release names, and vectors of items that no release has."""
        if self._resumable is not None:
            self.found.left.append("vectors stay until the run that was killed has been resumed")
            return
        for path in dead_leases(self.layout):
            self._count("lease", path)
            # Not merely deleted: a worker may have taken the bucket over since.
            if self.found.applied and (lease := take(path.with_suffix(".lmdb"))) is not None:
                lease.give_back()
        wanted = wanted_of(self.layout)
        stores = wanted["stores"].items() if wanted else ()
        filled = {(modality, str(each["entry"]["store"])) for modality, entries in stores for each in entries}
        named = filled | {(modality, store) for modality, stores in (configured or {}).items() for store in stores}
        for manifest in self.stay.values():
            named |= {(modality, entry.store) for modality, each in manifest.encoders.items() for entry in each}
        folders = sorted(path for path in self.layout.root.glob("embeddings/*/*") if path.is_dir())
        unnamed = [folder for folder in folders if (folder.parent.name, folder.name) not in named]
        if unnamed and configured is None:
            self.found.left.append(
                f"{len(unnamed)} stores that no release names stay: which the configuration names is not known, as the "
                "weights of its encoders are not here"
            )
        else:
            for folder in unnamed:
                self._count("store", folder)
                self._delete(folder)
        for bucket in sorted({int(path.stem) for path in self.layout.root.glob("embeddings/*/*/*.lmdb")}):
            # What workers make there is in no release yet.
            spared = filled if wanted and bucket in wanted["buckets"] else set()
            self._vectors(bucket, named - spared, self._needed(bucket))
        if filled:
            self.found.left.append("vectors stay in buckets that workers fill for the next night")

    def _needed(self, bucket: int) -> dict[tuple[str, str], set[str]]:
        """By modality and store, the items of a bucket that a release has a vector of."""
        needed: dict[tuple[str, str], set[str]] = {}
        seen: set[str] = set()
        for name, manifest in self.stay.items():
            path = ReleaseLayout(self.layout.releases / name).items(bucket)
            entry = manifest.files.get(f"items/{path.name}")
            if entry is None or entry.sha256 in seen:
                continue
            if not entry.is_of(path):
                raise TimeloomError(f"items/{path.name} of release {name} is damaged", remedy=REPAIR)
            seen.add(entry.sha256)
            items = pl.read_parquet(path, columns=["item_key", "modality", "store", "verdict"])
            usable = items.filter(pl.col("verdict") == "ok")
            for (modality, store), part in usable.partition_by("modality", "store", as_dict=True).items():
                needed.setdefault((str(modality), str(store)), set()).update(part["item_key"])
        return needed

    def _vectors(self, bucket: int, named: Set[tuple[str, str]], needed: dict[tuple[str, str], set[str]]) -> None:
        for modality, store in sorted(named):
            path = self.layout.embedding_bucket(modality, store, bucket)
            if not path.is_file():
                continue
            keys = needed.get((modality, store), set())
            spare = spare_of(path, keys)
            if not spare.vectors:
                continue
            before = path.stat().st_size
            if self.found.applied:
                compact(path, keys)
            size = before - path.stat().st_size if self.found.applied else spare.bytes
            self.found.gone.append(Gone("vectors", self._name(path), spare.vectors, size))

    @property
    def _resumable(self) -> str | None:
        """The run that the next night takes over."""
        return max((path.parent.name for path in self.layout.work.glob("*/release")), default=None)

    def work(self) -> None:
        """Removes the folders of runs that nobody will take over."""
        for path in sorted(self.layout.work.glob("*")):
            if path.name not in (self._resumable, self.aside.name):
                self._count("work", path)
                self._delete(path)
        if self.layout.past.is_dir():
            self._count("work", self.layout.past)
            self._delete(self.layout.past)

    def logs(self) -> None:
        """Removes the oldest logs. A run's name is the time when it began."""
        logs = sorted(self.layout.logs.glob("*.log"))
        for path in logs[: max(0, len(logs) - self.keep.logs)]:
            self._count("log", path)
            self._delete(path)

    def _name(self, path: Path) -> str:
        private = self.layout.private
        if path.is_relative_to(private):
            return f"private/{path.relative_to(private)}"
        return str(path.relative_to(self.layout.root))

    def _count(self, kind: str, path: Path, number: int = 1) -> None:
        self.found.gone += [Gone(kind, self._name(path), number, size) for _, size in _freed([path])]

    def _delete(self, path: Path) -> None:
        if not self.found.applied:
            return
        if path.is_dir() and path.parent != self.aside:
            # What stands under a folder's name is all of it or nothing, wherever this is killed.
            path = path.rename(self.aside / f"{path.parent.name}-{path.name}")
        remove(path)


def _freed(paths: Sequence[Path]) -> Iterator[tuple[Path, int]]:
    """The bytes that become free with each of some files or folders: those of a file that no other folder shares, with
    the last of these."""
    links: Counter[tuple[int, int]] = Counter()
    for path in paths:
        size = 0
        for file in path.rglob("*") if path.is_dir() else (path,):
            if file.is_dir():
                continue
            status = file.lstat()
            identity = status.st_dev, status.st_ino
            links[identity] += 1
            size += status.st_size if links[identity] == status.st_nlink else 0
        yield path, size
