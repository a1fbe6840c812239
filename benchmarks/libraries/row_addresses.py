"""Rows and vectors by address: ours against numpy's indexing and LMDB's search."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from libraries.turns import Ratios, Work, in_turns, versions


def measure_addresses(quick: bool, work: Path, data: Path | None) -> Ratios:
    """Microseconds a batch of rows and of vectors, and rows a second of a release, with addresses and without."""
    del data
    from warehouse.embeddings.memory import addresses, rows_at

    random = np.random.default_rng(0)
    batch, context, groups, each = 64, 4096, 32, 128
    path = work / "ids.bin"
    random.integers(0, 30_000, (groups * each, context), dtype=np.uint16).tofile(path)
    whole = np.memmap(path, np.uint16, "r").reshape(-1, context)
    parts = [np.asarray(whole[first : first + each]) for first in range(0, len(whole), each)]
    where = np.concatenate([addresses(part) for part in parts])
    picks = [random.integers(0, len(whole), batch) for _ in range(200)]
    sheets = [part.reshape(-1).view(np.uint8).data for part in parts]
    step = 2 * context

    def one_array() -> None:
        for rows in picks:
            np.asarray(whole)[rows]

    def by_group() -> None:
        for rows in picks:
            made = np.empty((batch, context), np.uint16)
            group = rows // each
            for number in np.unique(group):
                chosen = group == number
                made[chosen] = parts[number][rows[chosen] % each]

    def joined() -> None:
        for rows in picks:
            slices = [sheets[row // each][row % each * step : row % each * step + step] for row in rows.tolist()]
            np.frombuffer(bytearray().join(slices), np.uint16).reshape(batch, context)

    def by_address() -> None:
        for rows in picks:
            rows_at(where[rows], np.dtype(np.uint16), context)

    rows = picks[0]
    assert np.array_equal(rows_at(where[rows], np.dtype(np.uint16), context), whole[rows])
    ids = in_turns(
        {"one array": one_array, "by group": by_group, "slices joined": joined, "addresses": by_address},
        5 if quick else 15,
    )
    print(f"\nRows by address, one process; versions {versions('numpy', 'lmdb')}")
    print(f"{batch} rows of {context} ids out of {groups} row groups, microseconds a batch:")
    for name, seconds in ids.items():
        print(f"  {name:<44}{1e6 * seconds / len(picks):>9.0f}")
    ratios: Ratios = {
        "addresses_ids_vs_one_array": round(ids["one array"] / ids["addresses"], 2),
        "addresses_ids_vs_numpy_by_group": round(ids["by group"] / ids["addresses"], 2),
        "addresses_ids_vs_slices": round(ids["slices joined"] / ids["addresses"], 2),
    }
    return ratios | _vectors(quick, work) | _epochs(quick, work)


def _vectors(quick: bool, work: Path) -> Ratios:
    """Vectors of items out of the stores of eight buckets."""
    from warehouse.embeddings.addresses import ArrayAddresses, no_marks
    from warehouse.embeddings.environments import reading
    from warehouse.embeddings.lookup import read_vectors
    from warehouse.embeddings.memory import PLAIN_READS
    from warehouse.embeddings.store import EmbeddingStore, EmbeddingWriter, close_stores
    from warehouse.embeddings.value import HEADER_BYTES

    random = np.random.default_rng(1)
    width, buckets, each, count = 1024, 8, 250, 64
    keys = [[f"{bucket:02d}{number:030x}" for number in range(each)] for bucket in range(buckets)]
    stores = [EmbeddingStore(work / "vectors" / f"{bucket}.lmdb") for bucket in range(buckets)]
    for store, names in zip(stores, keys, strict=True):
        if not store.path.is_file():
            with EmbeddingWriter(store.path) as writer:
                writer.put_many([(name, random.standard_normal(width, np.float32), 1) for name in names])
    flat = [name for names in keys for name in names]
    marks = no_marks(len(flat))
    picks = [random.integers(0, len(flat), count) for _ in range(50)]
    loaded = np.concatenate([store.get_many(names) for store, names in zip(stores, keys, strict=True)]).reshape(
        -1, width
    )

    def grouped(items: Any, places: Sequence[int]) -> list[tuple[EmbeddingStore, list[int]]]:
        found: dict[int, list[int]] = {}
        for place in places:
            found.setdefault(int(items[place]) // each, []).append(place)
        return [(stores[bucket], members) for bucket, members in found.items()]

    def read(items: Any, noted: Any) -> Any:
        return read_vectors(
            [flat[item] for item in items], width, ArrayAddresses(noted, items), lambda places: grouped(items, places)
        )

    def by_address() -> None:
        for items in picks:
            read(items, marks)

    def searched() -> None:
        os.environ[PLAIN_READS] = "1"
        try:
            for items in picks:
                read(items, marks)
        finally:
            del os.environ[PLAIN_READS]

    def bare() -> None:
        for items in picks:
            made = np.empty((count, width), np.float32)
            for store, places in grouped(items, range(count)):
                with reading(store.path, store.real) as transaction:
                    for place in places:
                        value = transaction.get(flat[items[place]].encode("ascii"))
                        made[place] = np.frombuffer(value, np.float32, width, HEADER_BYTES)

    def in_memory() -> None:
        for items in picks:
            loaded[items]

    def first_time() -> None:
        for items in picks:
            read(items, no_marks(len(flat)))

    assert np.array_equal(read(picks[0], marks), loaded[picks[0]])
    works: dict[str, Work] = {
        "numpy, all vectors in one array in memory": in_memory,
        "lmdb get, no checksum": bare,
        "TIMELOOM_PLAIN_READS: get, checksum, copy": searched,
        "found for the first time": first_time,
        "found before: addresses": by_address,
    }
    medians = in_turns(works, 5 if quick else 15)
    close_stores()
    print(f"{count} vectors ({width},) float32 out of {buckets} stores, microseconds a batch:")
    for name, seconds in medians.items():
        print(f"  {name:<44}{1e6 * seconds / len(picks):>9.0f}")
    addresses = medians["found before: addresses"]
    return {
        "addresses_vectors_vs_one_array": round(medians["numpy, all vectors in one array in memory"] / addresses, 2),
        "addresses_vectors_vs_lmdb_get": round(medians["lmdb get, no checksum"] / addresses, 2),
        "addresses_vectors_vs_plain_reads": round(medians["TIMELOOM_PLAIN_READS: get, checksum, copy"] / addresses, 2),
    }


def _epochs(quick: bool, work: Path) -> Ratios:
    """Whole epochs of the loader's benchmark, with addresses and with TIMELOOM_PLAIN_READS."""
    import loader_data

    from warehouse import Release
    from warehouse.embeddings.memory import PLAIN_READS

    tokens = 4_000_000 if quick else 20_000_000
    root = work / f"release-{tokens}"
    if not root.is_dir():
        loader_data.make(root, tokens, 4096)
    release = Release.open(root)
    datasets = {
        "ids": release.shards("mehrt", split="train", seed=1, fields="ids"),
        "rows with vectors": release.shards("mehrt", split="train", seed=1),
        "rows with vectors, imaging": release.shards("mehrt", split="train", seed=1, plan="imaging"),
    }

    def epoch(dataset: Any, plain: bool) -> Work:
        def work() -> None:
            os.environ[PLAIN_READS] = "1" if plain else "0"
            for _ in dataset.batches(64, prefetch=0):
                pass

        return work

    works = {(name, plain): epoch(dataset, plain) for name, dataset in datasets.items() for plain in (False, True)}
    medians = in_turns(works, 7 if quick else 15)
    del os.environ[PLAIN_READS]
    print("Epochs, Mtok/s with addresses and with TIMELOOM_PLAIN_READS=1:")
    ratios: Ratios = {}
    for name, dataset in datasets.items():
        fast, slow = (len(dataset.shelf) * 4096 / 1e6 / medians[name, plain] for plain in (False, True))
        print(f"  {name:<30}{fast:>9,.0f}{slow:>9,.0f}")
        ratios[f"addresses_epoch_{name.replace(', ', '_').replace(' ', '_')}_vs_plain_reads"] = round(fast / slow, 2)
    return ratios
