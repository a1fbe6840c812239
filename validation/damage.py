"""Which files of a root are not what was written: the root's own, those of every release, of segments, stores and the
private folder beside it. Bytes alone are looked at; what they mean is for `validation.verify`.

Names are relative to the root, or begin with `private/`; none holds a patient's value.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from embedders.encoders.golden import RECORD
from embedders.running.store_bucket import verdicts_path
from extractors.deid import DeidConfig, Deidentifier, load_key
from pipelines.engine.run_stage import load_record
from pipelines.items import private_paths
from warehouse.errors import REPAIR, TimeloomError
from warehouse.files import hash_file, xxh3_file
from warehouse.layout import Layout, ReleaseLayout
from warehouse.manifest import FileEntry, Manifest, read_manifest
from warehouse.publish import current_release
from warehouse.sealed import is_whole

RESTORE_KEY = "restore deid.key of the private folder from backup"
OLDER = f"{REPAIR}; delete an older release that it cannot mend when nobody needs it any more"


@dataclass(frozen=True)
class Damage:
    """A file that is not what was written.

    Attributes:
        name: relative to the root; of the private folder, behind `private/`.
        missing: it is not there at all.
    """

    name: str
    missing: bool

    @classmethod
    def of(cls, name: str, path: Path) -> "Damage":
        return cls(name, not path.exists())


@dataclass
class Root:
    """A root as it is looked at: its releases, each read once; None where a manifest is damaged.

    Attributes:
        read: by device and inode, checksums of files that were read, as releases share them; SHA-256 is empty where
            XXH3-128 alone was asked for.
    """

    layout: Layout
    read: dict[tuple[int, int], tuple[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.releases: dict[str, Manifest | None] = {}
        if self.layout.releases.is_dir():
            for path in sorted(self.layout.releases.iterdir()):
                self.releases[path.name] = _manifest(path)
        try:
            current = current_release(self.layout)
        except TimeloomError:
            current = None
        self.current = current.path.name if current is not None else None

    @property
    def manifest(self) -> Manifest | None:
        """Of the current release."""
        return self.releases.get(self.current) if self.current is not None else None

    def is_of(self, path: Path, entry: FileEntry, *, fast_alone: bool = False) -> bool:
        """Whether a file is there with an entry's bytes, by both of its checksums or, ten times as fast, by XXH3."""
        if not path.is_file():
            return False
        status = path.stat()
        if status.st_size != entry.bytes:
            return False
        identity = status.st_dev, status.st_ino
        strong, fast = self.read.get(identity, ("", ""))
        if fast_alone and entry.xxh3 is not None:
            if not fast:
                fast = xxh3_file(path)
                self.read[identity] = "", fast
            return fast == entry.xxh3
        if not strong:
            strong, fast = self.read[identity] = hash_file(path)
        return strong == entry.sha256 and entry.xxh3 in (None, fast)


def _manifest(release: Path) -> Manifest | None:
    try:
        return read_manifest(release / "manifest.json")
    except TimeloomError:
        return None


def of_root(root: Root) -> Iterator[Damage]:
    """root.json, and the pointer to the current release."""
    if not is_whole(root.layout.settings, older=True):
        yield Damage.of("root.json", root.layout.settings)
    if root.current is None and root.releases:
        yield Damage("current", not root.layout.current.is_symlink())


def of_current(root: Root) -> Iterator[Damage]:
    """The current release's manifest, and every file that it names."""
    if root.current is not None:
        yield from _of_release(root, root.current)


def of_older(root: Root) -> Iterator[Damage]:
    """The same of every other release, but for its report, and for files that the current one shares with it."""
    for name in root.releases:
        if name == root.current:
            continue
        for damage in _of_release(root, name, fast_alone=True):
            path = root.layout.root / damage.name
            relative = path.relative_to(root.layout.releases / name)
            shared = root.layout.releases / (root.current or "") / relative
            if relative.parts[0] == "quality":
                continue
            if damage.missing or not shared.is_file() or not path.samefile(shared):
                yield damage


def _of_release(root: Root, name: str, *, fast_alone: bool = False) -> Iterator[Damage]:
    folder, manifest = root.layout.releases / name, root.releases[name]
    if manifest is None:
        yield Damage.of(f"releases/{name}/manifest.json", folder / "manifest.json")
        return
    for relative, entry in manifest.files.items():
        if not root.is_of(folder / relative, entry, fast_alone=fast_alone):
            yield Damage.of(f"releases/{name}/{relative}", folder / relative)


def of_lineage(root: Root) -> Iterator[Damage]:
    """The records of runs; that of each release is there."""
    folder = root.layout.lineage
    runs = {manifest.run_id for manifest in root.releases.values() if manifest is not None}
    known = {path.stem for path in folder.glob("*.json")} if folder.is_dir() else set()
    for run in sorted(runs | known):
        if not is_whole(folder / f"{run}.json", older=True):
            yield Damage.of(f"lineage/{run}.json", folder / f"{run}.json")


def of_segments(root: Root) -> Iterator[Damage]:
    """Segments and their records."""
    yield from _of_records(root, root.layout.segments, "segments")


def _of_records(root: Root, folder: Path, name: str) -> Iterator[Damage]:
    """Files that tasks left outside releases, and the records that say what they must be."""
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    known: set[str] = set()
    for path in paths:
        if path.suffix != ".json":
            continue
        record = load_record(path)
        if record is None:
            if not is_whole(path, older=True):  # the next night makes a record of an older timeloom anew
                yield Damage.of(f"{name}/{path.name}", path)
            known |= {other.name for other in paths if other.stem == path.stem}
            continue
        for relative, entry in record.files.items():
            # Records of several nights may need one file.
            if relative in known:
                continue
            known.add(relative)
            if not root.is_of(folder / relative, entry):
                yield Damage.of(f"{name}/{relative}", folder / relative)
    # A run that was killed leaves files whose records were never written, or were removed before them.
    unfinished = any(root.layout.work.glob("*"))
    for path in paths:
        if path.suffix in (".segment", ".parquet") and path.name not in known and not unfinished:
            yield Damage(f"{name}/{path.stem}.json", True)


def of_private(root: Root) -> Iterator[Damage]:
    """What stands in the private folder but for the key; nothing where that folder is kept elsewhere."""
    layout = root.layout
    private = layout.private
    if not private.is_dir() or not root.releases:
        return
    for path in (private / "fingerprints.json", layout.unmapped_files):
        if not is_whole(path, older=True):
            yield Damage.of(f"private/{path.name}", path)
    for folder in layout.private_records:
        yield from _of_records(root, folder, f"private/{folder.name}")
    yield from _of_kept(layout.grouped)
    for path in sorted(layout.segments.glob("*-*.json")):
        record = load_record(path)
        places = record.counts.get("places") if record is not None else None
        if places is not None and record is not None:
            found = private_paths(private, path.name)
            if not root.is_of(found, FileEntry.model_validate(places)):
                yield Damage.of(f"private/items/{found.name}", found)


def _of_kept(folder: Path) -> Iterator[Damage]:
    """What an index left for the reader of its items, such as notes' tokens."""
    for path in sorted(folder.glob("*.json")):
        record = load_record(path)
        kept: dict[str, str] = record.counts.get("kept", {}) if record is not None else {}
        for name, checksum in kept.items():
            file = folder / path.stem / name
            if not file.is_file() or xxh3_file(file) != checksum:
                yield Damage.of(f"private/{folder.name}/{path.stem}/{name}", file)


def of_key(root: Root) -> Iterator[Damage]:
    """The de-identification key, against what the current release says of it."""
    manifest, path = root.manifest, root.layout.private / "deid.key"
    if manifest is None or not root.layout.private.is_dir():
        return
    config = DeidConfig.model_validate(manifest.deid.model_dump(include={"mode", "subject_ids", "dates"}))
    try:
        key = load_key(config, root.layout.private)
    except TimeloomError:
        yield Damage.of("private/deid.key", path)
        return
    if Deidentifier(config, key).key_fingerprint != manifest.deid.key_fingerprint:
        yield Damage.of("private/deid.key", path)


def of_stores(root: Root) -> Iterator[Damage]:
    """What stands beside the vectors: the encoder's record, and verdicts of images that failed."""
    top = root.layout.root
    for path in sorted({*top.glob("embeddings/*/*/*.verdicts.json"), *_needed_verdicts(root)}):
        if not is_whole(path, older=True):
            yield Damage.of(path.relative_to(top).as_posix(), path)
    for folder in sorted({path.parent for path in top.glob("embeddings/*/*/*.lmdb")}):
        if not is_whole(folder / RECORD, older=True):
            yield Damage.of((folder / RECORD).relative_to(top).as_posix(), folder / RECORD)


def _needed_verdicts(root: Root) -> Iterator[Path]:
    """The files of verdicts that say of items of the current release why they failed when they were encoded."""
    manifest = root.manifest
    if manifest is None or root.current is None:
        return
    tree = ReleaseLayout(root.layout.releases / root.current)
    for bucket in range(manifest.buckets):
        path = tree.items(bucket)
        entry = manifest.files.get(path.relative_to(tree.path).as_posix())
        if entry is None or not root.is_of(path, entry):
            continue
        failed = pl.read_parquet(path).filter((pl.col("verdict") != "ok") & (pl.col("units_failed") > 0))
        for modality, store in failed.select("modality", "store").unique().iter_rows():
            # Older releases name the store of usable items alone.
            folder = store or manifest.encoder(modality).store
            yield verdicts_path(root.layout.embedding_bucket(modality, folder, bucket))


# By the name under which `verify` tells them: what finds the damage, and what mends it.
PARTS: dict[str, tuple[Callable[[Root], Iterator[Damage]], str]] = {
    "root": (of_root, REPAIR),
    "files": (of_current, REPAIR),
    "older releases": (of_older, OLDER),
    "lineage": (of_lineage, REPAIR),
    "segments": (of_segments, REPAIR),
    "stores": (of_stores, REPAIR),
    "private folder": (of_private, REPAIR),
    "key": (of_key, RESTORE_KEY),
}


def find_damage(layout: Layout) -> list[Damage]:
    """Every file under a root, and beside it, that is not what was written; the values of vectors apart."""
    root = Root(layout)
    return [damage for find, _ in PARTS.values() for damage in find(root)]
