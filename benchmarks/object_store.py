"""A release to an object store and back, against fsspec copying the same bytes; and what a later night sends.

    python benchmarks/object_store.py [--quick] [--work DIR]

`push`, `pull` and the plain copies go to a folder (`file://`) and to moto's S3 server on this machine, which is slow by
itself: there the ratio says more than the rate. The plain copy sends each file of the release and each store file under
its own name, several at a time, and checks and syncs nothing. A later night has 1 % more items in the first bucket and
0.1 % in the others: its push is counted in bytes, and beside it what the vectors would be as whole store files, or as
the parts of those files that differ, cut at each 64 KiB and each 1 MiB. Rates are the best of three passes, taken in
turns. The last line is JSON.
"""

import argparse
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import loader_data
import numpy as np
import polars as pl
from measure import work_folder

from tests.support.object_store import environment, serving
from tests.support.releases import file_entry
from warehouse.embeddings.store import EmbeddingWriter, close_stores
from warehouse.layout import Layout, ReleaseLayout
from warehouse.manifest import Manifest, read_manifest
from warehouse.publish import current_release, publish
from warehouse.remote.pull import pull
from warehouse.remote.push import push
from warehouse.remote.transfer import AT_ONCE
from warehouse.sealed import write_sealed

PASSES = 3
PARTS = {"64 KiB": 64 << 10, "1 MiB": 1 << 20}


def current(root: Path) -> tuple[ReleaseLayout, Manifest]:
    tree = current_release(Layout(root))
    assert tree is not None
    return tree, read_manifest(tree.manifest)


def files_of(root: Path) -> list[Path]:
    """The release's files and the stores."""
    tree, _ = current(root)
    return [*(path for path in tree.path.rglob("*") if path.is_file()), *root.rglob("*.lmdb")]


def stores(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.lmdb")}


def plain_push(root: Path, address: str) -> None:
    """fsspec's copy of the same files."""
    store, target = fsspec.url_to_fs(address, skip_instance_cache=True)

    def send(path: Path) -> None:
        store.put_file(str(path), f"{target}/{path.relative_to(root)}")

    for folder in {path.parent for path in files_of(root)}:
        store.makedirs(f"{target}/{folder.relative_to(root)}", exist_ok=True)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(send, files_of(root)))


def plain_pull(root: Path, address: str, folder: Path) -> None:
    """fsspec's copy of them into a folder."""
    store, source = fsspec.url_to_fs(address, skip_instance_cache=True)

    def fetch(path: Path) -> None:
        target = folder / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        store.get_file(f"{source}/{path.relative_to(root)}", str(target))

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(fetch, files_of(root)))


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def rates(root: Path, work: Path, address: str, size: int) -> dict[str, float]:
    """MB/s of each way."""
    best: dict[str, float] = {}
    for number in range(PASSES):
        place, plain, copy = f"{address}/ours{number}", f"{address}/plain{number}", work / "copy"
        ways: dict[str, Callable[[], object]] = {
            "push": lambda place=place: push(root, place),  # type: ignore[misc]
            "plain_push": lambda plain=plain: plain_push(root, plain),  # type: ignore[misc]
            "pull": lambda place=place, copy=copy: pull(copy / "ours", place),  # type: ignore[misc]
            "plain_pull": lambda plain=plain, copy=copy: plain_pull(root, plain, copy / "plain"),  # type: ignore[misc]
        }
        for name, way in ways.items():
            best[name] = min(best.get(name, np.inf), seconds(way))
        close_stores()
        shutil.rmtree(copy)
    return {name: round(size / took / 1e6, 1) for name, took in best.items()}


def later_night(root: Path) -> None:
    """A release of the same files but for items: 1 % more in the first bucket, 0.1 % in the others."""
    layout = Layout(root)
    tree, manifest = current(root)
    staging = ReleaseLayout(layout.work / "later" / "release")
    shutil.copytree(tree.path, staging.path, copy_function=os.link)
    random = np.random.default_rng(1)
    files = dict(manifest.files)
    for bucket in range(manifest.buckets):
        path = staging.items(bucket)
        if not path.is_file():
            continue
        items = pl.read_parquet(path)
        usable = items.filter(pl.col("verdict") == "ok")
        more = usable.sample(max(1, len(usable) // (100 if bucket == 0 else 1000)), seed=1).with_columns(
            (pl.col("modality") + pl.col("item_key").hash(seed=1).cast(pl.String)).alias("item_key")
        )
        path.unlink()
        pl.concat([items, more]).write_parquet(path)
        files[f"items/{path.name}"] = file_entry(path)
        for (modality, store), part in more.partition_by("modality", "store", as_dict=True).items():
            dim = manifest.encoder(str(modality)).dim
            with EmbeddingWriter(layout.embedding_bucket(str(modality), str(store), bucket)) as writer:
                writer.put_many([(key, random.random(dim, np.float32), 3) for key in part["item_key"]])
    publish(layout, staging.path, manifest.model_copy(update={"release_id": "later", "files": files}))


def changed_parts(before: dict[str, bytes], after: dict[str, bytes], size: int) -> int:
    """Bytes of the parts of files that are in no file of before, as objects named by their content would be sent."""

    def parts(data: bytes) -> dict[bytes, int]:
        cut = [data[first : first + size] for first in range(0, len(data), size)]
        return {hashlib.sha256(part).digest(): len(part) for part in cut}

    known = {name for data in before.values() for name in parts(data)}
    return sum(size for data in after.values() for name, size in parts(data).items() if name not in known)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--work", type=Path)
    arguments = parser.parse_args()
    found: dict[str, object] = {}
    with work_folder(arguments.work) as work:
        root = work / "root"
        loader_data.make(root, 2_000_000 if arguments.quick else 40_000_000, 2048)
        write_sealed(Layout(root).settings, {"name": "benchmark"})
        size = sum(path.stat().st_size for path in files_of(root))
        found |= {"megabytes": round(size / 1e6, 1), "files": len(files_of(root))}
        found["file"] = rates(root, work, f"file://{work}/place", size)
        with serving() as store:
            os.environ |= environment(store.endpoint)
            found["s3"] = rates(root, work, store.address("rates"), size)
        address = f"file://{work}/nights"
        first = push(root, address)
        again = push(root, address)
        before = stores(root)
        later_night(root)
        close_stores()
        after = stores(root)
        night = push(root, address)
        rows = sum(entry.bytes for name, entry in current(root)[1].files.items() if name.startswith("items/"))
        found |= {
            "first_bytes": first.bytes,
            "again_bytes": again.bytes,
            "night_bytes": night.bytes,
            "night_share": round(night.bytes / first.bytes, 4),
            "night_items_bytes": rows,
            "whole_stores_bytes": sum(len(data) for name, data in after.items() if data != before.get(name)),
        }
        found |= {f"parts_of_{name}_bytes": changed_parts(before, after, part) for name, part in PARTS.items()}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
