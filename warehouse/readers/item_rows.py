"""The items of a release, as readers in any process may read them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from warehouse.manifest import EncoderEntry
from warehouse.readers.pinned import PinnedRelease


def usable_rows(release: PinnedRelease, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """Columns of the rows with a vector; times are microseconds since 1970.

    Raises:
        TimeloomError: a file of the release is gone or damaged.
    """
    files, buckets = release.files, release.manifest.buckets
    for path in release.present([files.items(bucket) for bucket in range(buckets)]):
        # Not by polars, whose threads are not there in a forked worker.
        checked = release.checked(path)
        with pq.ParquetFile(checked, page_checksum_verification=True) as file:
            table = file.read([*columns, "verdict"], use_threads=False)
        release.let_go(checked)
        values = [
            (column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column).to_pylist()
            for column in map(table.column, columns)
        ]
        for verdict, *row in zip(table["verdict"].to_pylist(), *values, strict=True):
            if verdict == "ok":
                yield tuple(row)


def without_vectors(
    release: PinnedRelease, carried: Mapping[str, EncoderEntry], asked: Mapping[str, EncoderEntry]
) -> dict[str, frozenset[str]]:
    """By modality, the keys of items that have a vector of the encoder that tokens carry, and none of the one asked.

    Modalities without such items are left out.

    Raises:
        TimeloomError: a file of the release is gone or damaged.
    """
    stores = {name: (carried[name].store, entry.store) for name, entry in asked.items()}
    others = {name: pair for name, pair in stores.items() if pair[0] != pair[1]}
    if not others:
        return {}
    found: dict[str, tuple[set[str], set[str]]] = {name: (set(), set()) for name in others}
    for modality, store, key in usable_rows(release, ("modality", "store", "item_key")):
        for place, wanted in enumerate(others.get(modality, ())):
            if store == wanted:
                found[modality][place].add(key)
    lacking = {name: frozenset(tokens - vectors) for name, (tokens, vectors) in found.items()}
    return {name: keys for name, keys in lacking.items() if keys}
