"""The vectors of a release as objects: packs of entries as stores hold them, and an index a bucket.

Stores are shared by releases and only grow, so a store file is no object: it would be sent whole for each new vector,
with those of releases that are gone. What travels is the entries that the release's items have. A night's new entries
of a bucket make a new pack; older packs stay as they are, as long as the release needs all of their entries. A bucket
of many packs has the smallest put together.

A pack is an Arrow file of `key` and `value`, sorted by key, LZ4: values are padded to whole pages, which it takes away.
An index is one of `key`, `checksum` and `pack`.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import lmdb
import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from warehouse.embeddings.bucket_lease import sole_writer
from warehouse.embeddings.environments import WRITER_MAP_BYTES, not_writable, open_writer, reading
from warehouse.embeddings.environments import close_writer as close
from warehouse.embeddings.store import EmbeddingStore
from warehouse.embeddings.value import BESIDE, CHECKSUM_AT, HEADER_BYTES, StoreDamagedError, check_value, store_name
from warehouse.errors import REPAIR, TimeloomError
from warehouse.files import hash_file, sha256_file
from warehouse.layout import ReleaseLayout
from warehouse.manifest import Manifest
from warehouse.remote.shipment import ObjectEntry

# Bytes of entries in a pack; a larger entry has one of its own.
PACK_BYTES = 32 << 20
MOST_PACKS = 16
# Bytes of entries that are read, or written in one transaction, at a time.
BATCH_BYTES = 8 << 20
COMMIT_BYTES = 64 << 20

_PACK = pa.schema([("key", pa.string()), ("value", pa.large_binary())])
_INDEX = pa.schema([("key", pa.string()), ("checksum", pa.uint64()), ("pack", pa.uint32())])
_LZ4 = pa.ipc.IpcWriteOptions(compression="lz4")


@dataclass(frozen=True)
class Entries:
    """Entries (n,) of a bucket's store by key, sorted.

    Attributes:
        checksums: of the values, as those carry them.
        sizes: bytes of the values.
    """

    keys: list[str]
    checksums: npt.NDArray[np.uint64]
    sizes: npt.NDArray[np.int64]

    @property
    def content(self) -> str:
        """SHA-256 over keys and checksums."""
        digest = hashlib.sha256("\n".join(self.keys).encode("ascii"))
        digest.update(self.checksums.astype("<u8").tobytes())
        return digest.hexdigest()

    @property
    def bytes(self) -> int:
        return int(self.sizes.sum())

    def of(self, which: Sequence[int]) -> "Entries":
        """Some of them."""
        return Entries([self.keys[place] for place in which], self.checksums[which], self.sizes[which])

    def frame(self) -> pl.DataFrame:
        return pl.DataFrame({"key": self.keys, "checksum": self.checksums}, schema_overrides={"checksum": pl.UInt64})


def items_of(tree: ReleaseLayout, manifest: Manifest, bucket: int) -> dict[tuple[str, str], list[str]]:
    """By modality and store, the sorted keys of a bucket's items that have a vector.

    Raises:
        TimeloomError: the file of the items is not what the release's manifest says.
    """
    path = tree.items(bucket)
    name = path.relative_to(tree.path).as_posix()
    if name not in manifest.files:
        return {}
    if not path.is_file() or sha256_file(path) != manifest.files[name].sha256:
        raise TimeloomError(f"{name} of release {tree.path.name} is damaged", remedy=REPAIR)
    items = pl.read_parquet(path, columns=["item_key", "modality", "store", "verdict"])
    usable = items.filter(pl.col("verdict") == "ok", pl.col("store").is_not_null())
    return {
        (str(modality), str(store)): sorted(part["item_key"].unique())
        for (modality, store), part in usable.partition_by("modality", "store", as_dict=True).items()
    }


def entries_of(path: Path, items: Iterable[str]) -> Entries:
    """The entries of items, and what stands beside them, by the beginnings of their values.

    Raises:
        TimeloomError: the store is missing or damaged, or lacks an item.
    """
    keys, checksums, sizes = list[str](), list[int](), list[int]()
    with reading(path) as transaction:
        for item in items:
            for key in sorted((item, *(item + ending for ending in BESIDE))):
                value = transaction.get(key.encode("ascii"))
                if value is None:
                    if key == item:
                        raise EmbeddingStore(path).lacking()
                    continue
                if len(value) < HEADER_BYTES:
                    raise StoreDamagedError(path, "a value is too short")
                keys.append(key)
                checksums.append(int.from_bytes(value[CHECKSUM_AT:HEADER_BYTES], "little"))
                sizes.append(len(value))
    order = sorted(range(len(keys)), key=keys.__getitem__)
    found = Entries(keys, np.array(checksums, np.uint64), np.array(sizes, np.int64))
    return found.of(order)


def lacking(path: Path, index: pl.DataFrame) -> pl.DataFrame:
    """The rows of an index whose entries a store does not hold with that checksum; all of them where there is none."""
    if not path.is_file():
        return index
    with reading(path) as transaction:
        checksums = [
            None if value is None else int.from_bytes(value[CHECKSUM_AT:HEADER_BYTES], "little")
            for value in (transaction.get(key.encode("ascii")) for key in index["key"])
        ]
    found = pl.Series(checksums, dtype=pl.UInt64)
    return index.filter(index["checksum"].ne_missing(found))


@dataclass(frozen=True)
class Plan:
    """How a bucket's entries lie in packs.

    Attributes:
        kept: packs that were sent for an earlier release, whole, each with the entries that it holds.
        new: entries of each pack that is to be made.
    """

    kept: list[tuple[ObjectEntry, Entries]]
    new: list[Entries]


def plan_packs(needed: Entries, packs: Sequence[ObjectEntry], index: pl.DataFrame) -> Plan:
    """Which packs of an earlier release do for the entries that are needed, and what new ones hold.

    A pack with an entry that is not needed does not do: of a patient who was taken out, a release has no vector.

    Args:
        packs: those that are whole in the place; others are None in effect: leave them out of `index` too.
        index: rows of `key`, `checksum`, `pack`, the number in `packs`.
    """
    wanted = needed.frame().with_row_index("place")
    joined = index.join(wanted, on=["key", "checksum"], how="left")
    by_pack = {int(str(number)): part for (number,), part in joined.partition_by("pack", as_dict=True).items()}
    kept = [
        (packs[number], part["place"].sort().to_list())
        for number, part in sorted(by_pack.items())
        if not part["place"].has_nulls()
    ]
    covered = {place for _, places in kept for place in places}
    rest = [place for place in range(len(needed.keys)) if place not in covered]
    if rest and len(kept) >= MOST_PACKS:
        kept.sort(key=lambda pack: pack[0].bytes, reverse=True)
        joined_up = kept[MOST_PACKS // 2 :]
        kept = kept[: MOST_PACKS // 2]
        rest = sorted([*rest, *(place for _, places in joined_up for place in places)])
    return Plan([(pack, needed.of(places)) for pack, places in kept], [needed.of(part) for part in _cut(needed, rest)])


def _cut(needed: Entries, places: Sequence[int]) -> Iterator[list[int]]:
    part, size = list[int](), 0
    for place in places:
        if part and size + int(needed.sizes[place]) > PACK_BYTES:
            yield part
            part, size = [], 0
        part.append(place)
        size += int(needed.sizes[place])
    if part:
        yield part


def pack_bytes(path: Path, entries: Entries) -> bytes:
    """A pack of a store's entries, each compared with its checksum.

    Raises:
        TimeloomError: the store is damaged, or was changed meanwhile.
    """
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, _PACK, options=_LZ4) as file, reading(path) as transaction:
        keys, values, size = list[str](), list[bytes](), 0
        for place, key in enumerate(entries.keys):
            value = transaction.get(key.encode("ascii"))
            if value is None or check_value(value, path) != int(entries.checksums[place]):
                raise StoreDamagedError(path, "an entry is not what it was")
            keys.append(key)
            values.append(bytes(value))
            size += len(value)
            if size >= BATCH_BYTES:
                file.write_batch(_batch(keys, values))
                keys, values, size = [], [], 0
        if keys:
            file.write_batch(_batch(keys, values))
    made: bytes = sink.getvalue().to_pybytes()
    return made


def _batch(keys: list[str], values: list[bytes]) -> pa.RecordBatch:
    return pa.record_batch([pa.array(keys, pa.string()), pa.array(values, pa.large_binary())], schema=_PACK)


def index_bytes(packs: Sequence[Entries]) -> bytes:
    """The index of a bucket: which entries lie in which of its packs, sorted by key."""
    frames = [part.frame().with_columns(pl.lit(number, pl.UInt32).alias("pack")) for number, part in enumerate(packs)]
    table = pl.concat(frames).sort("key").to_arrow().cast(_INDEX)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, _INDEX, options=_LZ4) as file:
        file.write_table(table)
    made: bytes = sink.getvalue().to_pybytes()
    return made


def read_index(data: bytes) -> pl.DataFrame:
    """`key`, `checksum`, `pack` of what `index_bytes` made."""
    with pa.ipc.open_file(pa.BufferReader(data)) as file:
        frame = pl.from_arrow(file.read_all())
    assert isinstance(frame, pl.DataFrame)
    return frame


def read_pack(path: Path) -> Iterator[tuple[bytes, pa.Buffer]]:
    """Keys and values of a pack, in its order; a batch of them is in memory at a time."""
    with pa.memory_map(str(path)) as mapped, pa.ipc.open_file(mapped) as file:
        for number in range(file.num_record_batches):
            batch = file.get_batch(number)
            for key, value in zip(batch.column(0), batch.column(1), strict=True):
                yield key.as_py().encode("ascii"), value.as_buffer()


def add_to_store(path: Path, packs: Iterable[Path], wanted: frozenset[str]) -> None:
    """Writes entries of packs into a root's store, in transactions: a kill leaves it whole, with some of them.

    Args:
        wanted: the keys to write.

    Raises:
        TimeloomError: it cannot be written, or another process writes it.
    """
    with sole_writer(path) as lease, lease.turn():
        environment = open_writer(path)
        try:
            _put(environment, path, (entry for pack in packs for entry in read_pack(pack)), wanted, append=False)
        finally:
            close(path, environment)


def make_store(path: Path, packs: Sequence[Path]) -> None:
    """Makes a store of all entries of packs, in a file that is not there or empty.

    Raises:
        TimeloomError: it cannot be written.
    """
    try:
        environment = lmdb.open(str(path), subdir=False, map_size=WRITER_MAP_BYTES, lock=False, readahead=False)
    except lmdb.Error as error:
        raise not_writable(path, error) from error
    try:
        _put(environment, path, (entry for pack in packs for entry in read_pack(pack)), None, append=len(packs) == 1)
    finally:
        environment.close()


def _put(
    environment: lmdb.Environment,
    path: Path,
    entries: Iterator[tuple[bytes, pa.Buffer]],
    wanted: frozenset[str] | None,
    *,
    append: bool,
) -> None:
    writing, size = environment.begin(write=True), 0
    try:
        for key, value in entries:
            if wanted is not None and key.decode("ascii") not in wanted:
                continue
            view = memoryview(value)
            check_value(view, path)
            writing.put(key, view, append=append)
            size += len(view)
            if size >= COMMIT_BYTES:
                writing.commit()
                writing, size = environment.begin(write=True), 0
        writing.commit()
    except lmdb.Error as error:
        writing.abort()
        raise not_writable(path, error) from error
    except BaseException:
        writing.abort()
        raise


def entry_of(data: bytes) -> ObjectEntry:
    """What an object of these bytes is called."""
    return ObjectEntry(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))


def entry_of_file(path: Path) -> ObjectEntry:
    """The same of a file."""
    return ObjectEntry(sha256=hash_file(path)[0], bytes=path.stat().st_size)


def vectors_name(modality: str, store: str, bucket: int) -> str:
    """What errors call the vectors of a bucket."""
    return store_name(Path("embeddings", modality, store, f"{bucket:04d}.lmdb"))
