"""A release copied into an object store: objects that are not there yet, then its shipment, then `current`."""

import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from warehouse.errors import REPAIR, TimeloomError
from warehouse.files import make_folder, sha256_file
from warehouse.layout import Layout, ReleaseLayout
from warehouse.manifest import Manifest, read_manifest
from warehouse.progress import Progress
from warehouse.publish import current_release, hold_release
from warehouse.remote import shipment as shipments
from warehouse.remote.place import Place
from warehouse.remote.shipment import OBJECTS, BucketVectors, ObjectEntry, Origin, Shipment, object_name
from warehouse.remote.transfer import in_parallel, read_object
from warehouse.remote.vectors import (
    Entries,
    Plan,
    entries_of,
    entry_of,
    entry_of_file,
    index_bytes,
    items_of,
    pack_bytes,
    plan_packs,
    read_index,
    vectors_name,
)

# Buckets of vectors whose packs are made beside one another: each holds a pack in memory.
BUCKETS_AT_ONCE = 4


@dataclass
class Pushed:
    """What a push sent, or would send.

    Attributes:
        current: the place names the release as current now.
        objects, bytes: sent.
        already, already_bytes: that the place had.
        mended: of those sent, objects that the place had with other bytes.
        dry: nothing was written; `bytes` counts vectors as they lie in their stores, which is more than is sent.
    """

    release: str
    place: str
    current: bool = False
    objects: int = 0
    bytes: int = 0
    already: int = 0
    already_bytes: int = 0
    mended: int = 0
    dry: bool = False


@dataclass(frozen=True)
class _File:
    name: str
    path: Path
    sha256: str
    bytes: int


@dataclass
class _Push:
    place: Place
    layout: Layout
    tree: ReleaseLayout
    manifest: Manifest
    check: bool
    progress: Progress | None
    done: Pushed
    have: dict[str, int] = field(default_factory=dict)
    before: Shipment | None = None
    guard: threading.Lock = field(default_factory=threading.Lock)

    def count(self, size: int, *, sent: bool) -> None:
        """Adds an object to what is said in the end."""
        with self.guard:
            if sent:
                self.done.objects += 1
                self.done.bytes += size
            else:
                self.done.already += 1
                self.done.already_bytes += size

    def has(self, sha256: str, size: int) -> bool:
        """Whether the place has an object; with `check`, with its bytes."""
        if self.have.get(sha256) != size:
            return False
        if not self.check or self._is_whole(sha256, size):
            return True
        with self.guard:
            self.done.mended += 1
            self.have.pop(sha256, None)  # it is asked for once more
        return False

    def _is_whole(self, sha256: str, size: int) -> bool:
        make_folder(self.layout.work)
        # In the root: what is read back are rows of patients, and nobody empties another folder behind a kill.
        with TemporaryDirectory(prefix="timeloom-check-", dir=self.layout.work) as folder:
            copy = Path(folder, "object")
            try:
                self.place.fetch(object_name(sha256), copy)
            except FileNotFoundError:
                return False
            return copy.stat().st_size == size and sha256_file(copy) == sha256

    def send(self, file: _File) -> None:
        """Sends a file that the place lacks, compared with its hash before."""
        if self.has(file.sha256, file.bytes):
            self.count(file.bytes, sent=False)
            return
        if not self.done.dry:
            if not file.path.is_file() or sha256_file(file.path) != file.sha256:
                raise TimeloomError(f"{file.name} of release {self.tree.path.name} is damaged", remedy=REPAIR)
            self.place.send(object_name(file.sha256), file.path, file.sha256)
        self.count(file.bytes, sent=True)

    def send_bytes(self, data: bytes) -> ObjectEntry:
        """Sends what was made in memory, unless the place has it."""
        entry = entry_of(data)
        sent = not self.has(entry.sha256, entry.bytes)
        if sent:
            self.place.write(object_name(entry.sha256), data, entry.sha256)
        self.count(entry.bytes, sent=sent)
        return entry

    def beside(self, stores: set[tuple[str, str]]) -> Iterator[_File]:
        """Files of the root that its manifest does not list: the record of the run, and what is beside the vectors."""
        layout = self.layout
        paths = [layout.lineage / f"{self.manifest.run_id}.json"]
        for modality, store in sorted(stores):
            folder = layout.embeddings(modality, store)
            paths += [folder / "encoder.json", *sorted(folder.glob("[0-9]*.verdicts.json"))]
        for path in paths:
            if path.is_file():
                name = path.relative_to(layout.root).as_posix()
                entry = entry_of_file(path)
                yield _File(name, path, entry.sha256, entry.bytes)

    def vectors(self, modality: str, store: str, bucket: int, items: list[str]) -> BucketVectors:
        """Sends the vectors of a bucket's items that the place lacks."""
        path = self.layout.embedding_bucket(modality, store, bucket)
        needed = entries_of(path, items)
        before = self._before(modality, store, bucket)
        if before is not None and before.content == needed.content and self._has_all(before):
            for entry in (before.index, *before.packs):
                self.count(entry.bytes, sent=False)
            return before
        plan = self._plan(needed, before, vectors_name(modality, store, bucket))
        for entry, _ in plan.kept:
            self.count(entry.bytes, sent=False)
        if self.done.dry:
            for part in plan.new:
                self.count(part.bytes, sent=True)
            nothing = ObjectEntry(sha256="", bytes=0)
            return BucketVectors(content=needed.content, index=nothing, packs=(), bytes=needed.bytes)
        made = [(self.send_bytes(pack_bytes(path, part)), part) for part in plan.new]
        packs = [*plan.kept, *made]
        index = self.send_bytes(index_bytes([part for _, part in packs]))
        return BucketVectors(
            content=needed.content, index=index, packs=tuple(entry for entry, _ in packs), bytes=needed.bytes
        )

    def _before(self, modality: str, store: str, bucket: int) -> BucketVectors | None:
        return None if self.before is None else self.before.vectors.get(f"{modality}/{store}", {}).get(bucket)

    def _has_all(self, vectors: BucketVectors) -> bool:
        return all(self.has(entry.sha256, entry.bytes) for entry in (vectors.index, *vectors.packs))

    def _plan(self, needed: Entries, before: BucketVectors | None, name: str) -> Plan:
        packs: tuple[ObjectEntry, ...] = ()
        index = read_index(index_bytes([needed.of([])]))
        if before is not None and self.has(before.index.sha256, before.index.bytes):
            packs = before.packs
            there = [number for number, pack in enumerate(packs) if self.has(pack.sha256, pack.bytes)]
            index = read_index(read_object(self.place, name, before.index))
            index = index.filter(index["pack"].is_in(there))
        return plan_packs(needed, packs, index)


def push(
    root: Path,
    address: str,
    release: str | None = None,
    *,
    dry_run: bool = False,
    check: bool = False,
    progress: Progress | None = None,
) -> Pushed:
    """Copies a release of a root into a place; only what the place lacks is sent.

    What a kill leaves behind is whole objects, which the next push finds there. The shipment and `current` are written
    when the place has every object. `current` follows the root's: another release, or one that the root has gone
    on from meanwhile, is added beside it.

    Args:
        release: its id; the root's current one where none is given.
        dry_run: only says what would be sent.
        check: reads every object back that the place has already, and sends those again whose bytes are others.

    Raises:
        TimeloomError: no such release, a file of it is damaged, the place is another root's or cannot be reached.
    """
    layout = Layout(root)
    tree = hold_release(layout, release)
    manifest = read_manifest(tree.manifest)
    settings = shipments.settings_of(layout)
    origin = Origin.of(settings, root.resolve().name)
    place = Place(address)
    if dry_run:
        shipments.check_claim(place, origin)
    else:
        shipments.claim(place, origin)
    current = shipments.current_at(place)
    pushing = _Push(place, layout, tree, manifest, check, progress, Pushed(tree.path.name, str(place), dry=dry_run))
    pushing.have = place.sizes(OBJECTS)
    with suppress(TimeloomError):  # what is damaged there is no reason not to send the whole
        pushing.before = None if current is None else shipments.read_shipment(place, current)
    made = _send(pushing, settings)
    if dry_run:
        return pushing.done
    _check_sent(place, made, manifest)
    shipments.check_claim(place, origin)
    shipments.write_shipment(place, made)
    now, current = current_release(layout), shipments.current_at(place)
    if current is None or (now is not None and now.path.name == tree.path.name):
        if current != tree.path.name:
            shipments.point_at(place, tree.path.name)
        pushing.done.current = True
    return pushing.done


def _send(pushing: _Push, settings: dict[str, object]) -> Shipment:
    """Sends all objects of a release; gives its shipment."""
    tree, manifest = pushing.tree, pushing.manifest
    by_bucket = [(bucket, items_of(tree, manifest, bucket)) for bucket in range(manifest.buckets)]
    # Those of one bucket do not depend on another's.
    tasks = [(*store, bucket, keys) for bucket, found in by_bucket for store, keys in found.items()]
    listed = entry_of_file(tree.manifest)
    files = {
        entry.sha256: _File(name, tree.path / name, entry.sha256, entry.bytes) for name, entry in manifest.files.items()
    }
    files[listed.sha256] = _File("manifest.json", tree.manifest, listed.sha256, listed.bytes)
    beside = list(pushing.beside({(modality, store) for modality, store, _, _ in tasks}))
    files |= {file.sha256: file for file in beside}
    in_parallel(pushing.send, list(files.values()), "files", pushing.progress)
    vectors: dict[str, dict[int, BucketVectors]] = {}

    def send_vectors(task: tuple[str, str, int, list[str]]) -> None:
        modality, store, bucket, _ = task
        vectors.setdefault(f"{modality}/{store}", {})[bucket] = pushing.vectors(*task)

    in_parallel(send_vectors, tasks, "vectors", pushing.progress, BUCKETS_AT_ONCE)
    return Shipment(
        release_id=manifest.release_id,
        root=dict(settings),
        manifest=listed,
        beside={file.name: ObjectEntry(sha256=file.sha256, bytes=file.bytes) for file in beside},
        vectors={name: dict(sorted(buckets.items())) for name, buckets in sorted(vectors.items())},
    )


def _check_sent(place: Place, made: Shipment, manifest: Manifest) -> None:
    """Raises TimeloomError where the place does not list an object of a release with its size."""
    have = place.sizes(OBJECTS)
    wanted = made.objects() | {entry.sha256: entry.bytes for entry in manifest.files.values()}
    lost = [sha256 for sha256, size in wanted.items() if have.get(sha256) != size]
    if lost:
        raise TimeloomError(
            f"{place} does not list {len(lost)} objects that it has taken, {lost[0][:16]} for one",
            remedy="run the same command again; nothing was published",
        )
