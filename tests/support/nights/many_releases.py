"""A root of many small releases, one a night, with all that a collection looks at: no stage has run for it."""

import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from tests.support.nights.toy_stage import toy_manifest
from warehouse.embeddings.store import EmbeddingStore, EmbeddingWriter, close_stores
from warehouse.files import hash_file
from warehouse.layout import Layout, ReleaseLayout
from warehouse.manifest import EncoderEntry, FileEntry, Manifest, read_manifest, write_manifest
from warehouse.publish import point_at

FIRST = datetime(2024, 1, 1, 2, tzinfo=UTC)
OLD_STORE, STORE = "random-0ld", "random-new"


def name_of(night: int) -> str:
    """The id of the release of a night, counted from 0; a night a day."""
    return (FIRST + timedelta(days=night)).strftime("%Y-%m-%dT%H-%M-%SZ")


def entry_of(path: Path) -> FileEntry:
    strong, fast = hash_file(path)
    return FileEntry(sha256=strong, bytes=path.stat().st_size, xxh3=fast)


def items_of(night: int) -> list[str]:
    """The items of a night: one comes, one goes."""
    return [f"{number:064x}" for number in range(night, night + 3)]


def make_root(folder: Path, nights: Sequence[int]) -> Layout:
    """A root with a release of each of these nights: `shared` is one file of all, `data` each night's own. Each has a
    segment and a finding of its own, and three items with vectors; the first half is of an encoder that went since."""
    layout = Layout(folder / "warehouse")
    for place, night in enumerate(nights):
        store = OLD_STORE if place < len(nights) // 2 else STORE
        release = ReleaseLayout(layout.releases / name_of(night))
        (release.path / "data").mkdir(parents=True)
        release.events(0).write_bytes(bytes([night % 256]) * 1000)
        shared = release.path / "shared.bin"
        if place:
            os.link(layout.releases / name_of(nights[0]) / "shared.bin", shared)
        else:
            shared.write_bytes(b"s" * 10_000)
        write_items(release, store, items_of(night))
        write_vectors(layout, store, items_of(night))
        files = {str(path.relative_to(release.path)): entry_of(path) for path in release.path.rglob("*.*")}
        for record in (layout.segments / f"seg{night}.segment", layout.scanned / f"seg{night}.parquet"):
            record.parent.mkdir(parents=True, exist_ok=True)
            record.write_bytes(b"r" * 100)
            record.with_suffix(".json").write_text("{}")
        encoder = EncoderEntry(name="random", label="random", store=store, dim=4)
        manifest = toy_manifest(files, name_of(night)).model_copy(
            update={
                "parent": name_of(nights[place - 1]) if place else None,
                "run_id": f"run{night:03d}",
                "encoders": {"ct": (encoder,)},
                "records": (f"seg{night}",),
            }
        )
        write_manifest(release.manifest, manifest)
        for path in (layout.logs / f"run{night:03d}.log", layout.lineage / f"run{night:03d}.json"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("said\n")
    point_at(layout, name_of(nights[-1]))
    close_stores()
    return layout


def write_items(release: ReleaseLayout, store: str, keys: Sequence[str]) -> None:
    release.items(0).parent.mkdir(parents=True, exist_ok=True)
    frame = pl.DataFrame({"item_key": keys}).with_columns(
        pl.lit("ct").alias("modality"), pl.lit(store).alias("store"), pl.lit("ok").alias("verdict")
    )
    frame.write_parquet(release.items(0))


def vector_of(key: str) -> np.ndarray:
    return np.full(4, int(key, 16), np.float32)


def write_vectors(layout: Layout, store: str, keys: Iterable[str]) -> None:
    with EmbeddingWriter(layout.embedding_bucket("ct", store, 0)) as writer:
        writer.put_many([(key, vector_of(key), 1) for key in keys])
    (layout.embeddings("ct", store) / "encoder.json").write_text("{}")


def releases(layout: Layout) -> set[str]:
    return {path.name for path in layout.releases.iterdir()}


def check_whole(layout: Layout, names: Iterable[str]) -> None:
    """Every file of these releases is what was published, and each of their items has its vector."""
    for name in names:
        release = ReleaseLayout(layout.releases / name)
        manifest: Manifest = read_manifest(release.manifest)
        for relative, entry in manifest.files.items():
            assert entry.is_of(release.path / relative), (name, relative)
        (encoder,) = manifest.encoders["ct"]
        store = EmbeddingStore.open(layout.embedding_bucket("ct", encoder.store, 0))
        for key in pl.read_parquet(release.items(0))["item_key"]:
            assert store.get(key).tolist() == vector_of(key).tolist()
    close_stores()


def files_of(layout: Layout) -> Mapping[str, int]:
    """Every file under a root and beside it, and its size; locks apart."""
    return {
        str(path.relative_to(layout.root.parent)): path.stat().st_size
        for path in layout.root.parent.rglob("*")
        if path.is_file() and not path.is_symlink() and path.suffix not in (".writer",) and "lock" not in path.name
    }


def disk(layout: Layout) -> int:
    """Bytes of a root, locks apart; files that several releases share count once."""
    found = {}
    for path in layout.root.rglob("*"):
        status = path.lstat()
        if path.is_file() and not path.is_symlink() and "lock" not in path.name:
            found[status.st_dev, status.st_ino] = status.st_size
    return sum(found.values())
