"""A release copied from an object store into a root, and published there as a night publishes: whole or not at all."""

import shutil
import threading
from dataclasses import dataclass, field
from pathlib import Path

from warehouse.embeddings.store import EmbeddingStore
from warehouse.errors import TimeloomError
from warehouse.files import atomic_write, hash_file, link_or_copy, sha256_file
from warehouse.layout import Layout
from warehouse.manifest import FileEntry, Manifest, read_manifest
from warehouse.progress import Progress
from warehouse.publish import add_staged, complete_publication, current_release, exclusive, point_at, publish_staged
from warehouse.remote import shipment as shipments
from warehouse.remote.place import Place
from warehouse.remote.shipment import BucketVectors, ObjectEntry, Origin, Shipment, is_inside
from warehouse.remote.transfer import fetch_file, in_parallel, read_object
from warehouse.remote.vectors import add_to_store, lacking, read_index, vectors_name
from warehouse.sealed import write_sealed

# Bytes of packs that are fetched before they are written to a store.
HELD_BYTES = 256 << 20


@dataclass
class Pulled:
    """What a pull fetched.

    Attributes:
        current: it is the root's current release now.
        files, bytes: fetched.
        linked: files that other releases of the root have too.
        vectors: entries that were added to stores.
    """

    release: str
    place: str
    current: bool = False
    files: int = 0
    bytes: int = 0
    linked: int = 0
    vectors: int = 0


@dataclass
class _Pull:
    place: Place
    layout: Layout
    shipment: Shipment
    done: Pulled
    progress: Progress | None
    local: dict[str, tuple[Path, FileEntry]] = field(default_factory=dict)
    guard: threading.Lock = field(default_factory=threading.Lock)

    @property
    def work(self) -> Path:
        return self.layout.work / f"pull-{self.shipment.release_id}"

    @property
    def staging(self) -> Path:
        # Not `release`: that is what a night takes over.
        return self.work / "pulled"

    def count(self, **numbers: int) -> None:
        """Adds to what is said in the end."""
        with self.guard:
            for name, number in numbers.items():
                setattr(self.done, name, getattr(self.done, name) + number)

    def manifest(self) -> Manifest:
        """The release's manifest, fetched into the staging tree."""
        path = self.staging / "manifest.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        entry = self.shipment.manifest
        if not path.is_file() or sha256_file(path) != entry.sha256:
            self.fetch(path, "manifest.json", entry)
        manifest = read_manifest(path)
        names = [name for name in manifest.files if not is_inside(name)]
        if names or manifest.release_id != self.shipment.release_id:
            raise TimeloomError(
                f"the manifest of release {self.shipment.release_id} in {self.place} is of something else",
                remedy="push the release again from its root",
            )
        return manifest

    def fetch(self, path: Path, name: str, entry: ObjectEntry) -> None:
        """Fetches an object, compared with its name before the file has its own."""
        with atomic_write(path, sync=False) as temporary:
            fetch_file(self.place, name, entry.sha256, entry.bytes, temporary)
        self.count(files=1, bytes=entry.bytes)

    def file(self, task: tuple[str, FileEntry]) -> None:
        """Puts a file into the staging tree: what a killed pull left, a link to another release's, or fetched."""
        name, entry = task
        path = self.staging / name
        if entry.is_of(path):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        known = self.local.get(entry.sha256)
        if known is not None and known[1].is_of(known[0]):
            link_or_copy(known[0], path)
            self.count(linked=1)
            return
        self.fetch(path, name, ObjectEntry(sha256=entry.sha256, bytes=entry.bytes))
        # A reader compares with this one; the object's name says nothing of it.
        if entry.xxh3 is not None and hash_file(path)[1] != entry.xxh3:
            path.unlink()
            raise TimeloomError(
                f"the manifest of release {self.shipment.release_id} contradicts itself of {name}",
                remedy="run `timeloom verify` on the root that pushed it",
            )

    def know_local(self) -> None:
        """Takes up the files of the releases that the root has."""
        folders = sorted(self.layout.releases.iterdir()) if self.layout.releases.is_dir() else []
        for folder in folders:
            try:
                manifest = read_manifest(folder / "manifest.json")
            except TimeloomError:  # it is of no use to this one
                continue
            self.local |= {entry.sha256: (folder / name, entry) for name, entry in manifest.files.items()}

    def vectors(self, task: tuple[str, int, BucketVectors]) -> None:
        """Adds the entries of a bucket that the root's store lacks."""
        store, bucket, wanted = task
        modality, _, folder = store.partition("/")
        path, name = self.layout.embedding_bucket(modality, folder, bucket), vectors_name(modality, folder, bucket)
        index = read_index(read_object(self.place, name, wanted.index))
        rows = lacking(path, index)
        needed = sorted(set(rows["pack"].to_list()))
        keys = frozenset(rows["key"])
        scratch = self.work / "packs" / store / str(bucket)
        while needed:
            scratch.mkdir(parents=True, exist_ok=True)
            paths, size = list[Path](), 0
            while needed and size < HELD_BYTES:
                entry = wanted.packs[needed.pop(0)]
                paths.append(scratch / entry.sha256)
                fetch_file(self.place, name, entry.sha256, entry.bytes, paths[-1])
                size += entry.bytes
            add_to_store(path, paths, keys)
            self.count(bytes=size)
            shutil.rmtree(scratch)
        self.count(vectors=len(keys))
        if not lacking(path, index).is_empty():
            raise EmbeddingStore(path).lacking()

    def beside(self, name: str, entry: ObjectEntry) -> None:
        """Puts a file that no manifest lists into the root."""
        path = self.layout.root / name
        if not path.is_file() or sha256_file(path) != entry.sha256:
            with atomic_write(path) as temporary:
                fetch_file(self.place, name, entry.sha256, entry.bytes, temporary)


def pull(root: Path, address: str, release: str | None = None, *, progress: Progress | None = None) -> Pulled:
    """Copies a release from a place into a root and publishes it there; only what the root lacks is fetched.

    Each file is compared with the manifest's hash before it has a name in the root. A kill at any moment leaves the
    root's releases as they were, and the next pull goes on. The release that the place names as current becomes the
    root's current one; another one, asked for by its id, is put beside it.

    Args:
        release: its id; the place's current one where none is given.

    Raises:
        TimeloomError: the place has no such release, belongs to another root or cannot be reached, an object is
            missing or corrupt, or another run is working on the root.
    """
    place = Place(address)
    origin = shipments.origin_at(place)
    if origin is None:
        if not place.exists():
            raise place.missing()
        raise TimeloomError(f"nothing was pushed to {place}", remedy="run `timeloom push` on a root first")
    wanted = release or shipments.current_at(place)
    if wanted is None:
        raise TimeloomError(f"{place} names no release as current", remedy="a push has not ended: run it again")
    shipment = shipments.read_shipment(place, wanted)
    origin.refuse(Origin.of(shipment.root, origin.name), f"release {wanted} in {place}")
    layout = Layout(root)
    _check_root(layout, origin)
    with exclusive(layout):
        complete_publication(layout)
        if not layout.settings.is_file():
            write_sealed(layout.settings, shipment.root)
        pulling = _Pull(place, layout, shipment, Pulled(wanted, str(place)), progress)
        _pull(pulling, make_current=release is None)
    return pulling.done


def _check_root(layout: Layout, origin: Origin) -> None:
    """Raises TimeloomError where the folder is the root of something else, or no root."""
    if layout.settings.is_file():
        root = Origin.of(shipments.settings_of(layout), layout.root.resolve().name)
        origin.refuse(root, f"the root {layout.root.name}")
    elif layout.root.is_dir() and any(not path.name.startswith(".") for path in layout.root.iterdir()):
        raise TimeloomError(f"{layout.root} is no root, and not empty", remedy="pull into a new folder")


def _pull(pulling: _Pull, *, make_current: bool) -> None:
    layout, shipment = pulling.layout, pulling.shipment
    published = layout.releases / shipment.release_id
    if published.is_dir():
        if sha256_file(published / "manifest.json") != shipment.manifest.sha256:
            raise TimeloomError(
                f"the root has another release {shipment.release_id} than {pulling.place}",
                remedy="pull into a root of its own",
            )
        shutil.rmtree(pulling.work, ignore_errors=True)
    else:
        manifest = pulling.manifest()
        pulling.know_local()
        in_parallel(pulling.file, list(manifest.files.items()), "files", pulling.progress)
    tasks = [(store, bucket, found) for store, of in shipment.vectors.items() for bucket, found in of.items()]
    in_parallel(pulling.vectors, tasks, "vectors", pulling.progress, at_once=4)
    for name, entry in shipment.beside.items():
        pulling.beside(name, entry)
    now = current_release(layout)
    first = now is None
    # A root that has gone on from the release, as the root that pushed it may have, stays where it is.
    make_current = make_current and (now is None or now.path.name <= shipment.release_id)
    if published.is_dir():
        if make_current:
            point_at(layout, shipment.release_id)
    elif make_current or first:
        publish_staged(layout, pulling.staging, shipment.release_id)
    else:
        add_staged(layout, pulling.staging, shipment.release_id)
    pulling.done.current = make_current or first
    shutil.rmtree(pulling.work, ignore_errors=True)
