"""A split's shards, opened as they are needed: which pack lies where is known from the manifest alone.

Memory is bounded whatever the number of shards: so many maps of files, so many bytes of decoded small columns, the
least recently used given up first.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from warehouse.arrays import I64
from warehouse.embeddings.addresses import no_marks
from warehouse.embeddings.memory import addresses, plain_reads, rows_at
from warehouse.errors import REPAIR, TimeloomError
from warehouse.manifest import EncoderEntry
from warehouse.modalities import MODALITIES
from warehouse.readers.pinned import PinnedRelease, check_split
from warehouse.remote.cache import NoRoomError
from warehouse.shards.file import MappedRows, MappedShard, open_shard
from warehouse.shards.packs import SmallColumns
from warehouse.vocabulary import hash_of

MAPS = 256  # each holds a file descriptor; processes often may have 1,024
SMALL_BYTES = 256 << 20
IMAGE_BYTES = 32  # of PackColumns.images, an image

# Held while a shelf is made fit for a forked process; a child makes its own, as a thread of its parent may hold this.
_guard = threading.Lock()


def _own_guard() -> None:
    global _guard
    _guard = threading.Lock()


os.register_at_fork(after_in_child=_own_guard)


@dataclass(frozen=True)
class PackColumns:
    """The small columns of one row group, laid out so that one pack's are one slice.

    Attributes:
        segments: (S, 4) int64 as bytes: length, subject, offset, origin in microseconds.
        segment_edges: (P + 1,) where each pack's segments begin.
        images: (I, 4) int64 as bytes: position in the pack, modality, and where its vector was found, which is written
            later (warehouse.embeddings.addresses).
        image_keys: the I keys.
        image_edges: (P + 1,).
    """

    segments: memoryview
    segment_edges: memoryview
    images: memoryview
    image_keys: list[str]
    image_edges: memoryview

    @property
    def nbytes(self) -> int:
        """What it holds, a key taken for a hundred bytes."""
        arrays = (self.segments, self.segment_edges, self.images, self.image_edges)
        return sum(array.nbytes for array in arrays) + 100 * len(self.image_keys)


@dataclass(frozen=True)
class PackMatrices:
    """The matrices of one row group as bytes, mapped: a slice of a memoryview costs a third of an array's row.

    Attributes:
        ids, types, time: row after row.
        id_dtype, time_dtype: of their elements; types are uint8.
        unit_us: microseconds a step of `time`.
    """

    ids: memoryview
    types: memoryview
    time: memoryview
    id_dtype: np.dtype[Any]
    time_dtype: np.dtype[Any]
    unit_us: int


def stacked(parts: Sequence[memoryview], dtype: np.dtype[Any], context: int) -> npt.NDArray[Any]:
    """Rows of `context` elements copied into a writable (n, L): one call, where indexing takes one a row group."""
    return np.frombuffer(bytearray().join(parts), dtype).reshape(len(parts), context)


def narrow(rows: Sequence[memoryview], dtypes: set[np.dtype[Any]], context: int) -> npt.NDArray[Any]:
    """Rows of ids of `dtypes` as one (n, L) of the widest."""
    if len(dtypes) == 1:
        return stacked(rows, next(iter(dtypes)), context)
    # No rows, or shards of a vocabulary that has outgrown 16 bits since.
    by_width = {dtype.itemsize * context: dtype for dtype in dtypes}
    wide = [np.frombuffer(row, by_width[row.nbytes]).astype(np.uint32) for row in rows]
    return np.concatenate([np.empty(0, np.uint32), *wide]).reshape(len(rows), context)


class PackAddress(NamedTuple):
    """One pack in its row group."""

    sheet: PackMatrices
    row: int
    pages: PackColumns


def padding(count: int, beside: Sequence[PackAddress], context: int) -> list[PackAddress]:
    """Packs without a segment, as wide as those that they fill a batch up with: PAD, SPECIAL and no time throughout."""
    like = beside[-1].sheet if beside else None
    id_dtype, time_dtype = (like.id_dtype, like.time_dtype) if like else (np.dtype("<u2"), np.dtype("<i4"))
    time = np.full(context, np.iinfo(time_dtype).min, time_dtype).view(np.uint8).data
    ids, types = memoryview(bytes(context * id_dtype.itemsize)), memoryview(bytes(context))
    sheet = PackMatrices(ids, types, time, id_dtype, time_dtype, like.unit_us if like else 1)
    edges, nothing = np.zeros(2, np.int64).data, memoryview(b"")
    return [PackAddress(sheet, 0, PackColumns(nothing, edges, nothing, [], edges))] * count


def id_bytes(place: PackAddress, context: int) -> memoryview:
    """A pack's ids."""
    width = context * place.sheet.id_dtype.itemsize
    return place.sheet.ids[place.row * width : (place.row + 1) * width]


def id_dtypes(places: Sequence[PackAddress]) -> set[np.dtype[Any]]:
    """The types that packs' ids are stored in, mostly one."""
    return set({id(sheet): sheet.id_dtype for sheet, _, _ in places}.values())


def sheet_of(block: MappedRows, unit_us: int) -> PackMatrices:
    """A mapped row group as a PackMatrices."""
    matrices = (block.input_ids, block.token_type, block.time)
    ids, types, time = (matrix.reshape(-1).view(np.uint8).data for matrix in matrices)
    return PackMatrices(ids, types, time, block.input_ids.dtype, block.time.dtype, unit_us)


class _Opened(NamedTuple):
    """An open shard: its row groups have `each` packs, the last one fewer."""

    shard: MappedShard
    sheets: list[PackMatrices]
    each: int


def _edges(counts: npt.NDArray[Any]) -> I64:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def pages_of(small: SmallColumns) -> PackColumns:
    """The small columns of a row group as PackColumns."""
    columns = (small.segment_length, small.segment_subject, small.segment_offset, small.segment_origin)
    return PackColumns(
        segments=_bytes(columns),
        segment_edges=_edges(small.segments_per_pack).data,
        images=_bytes((small.image_position, small.image_modality, *no_marks(len(small.image_position)).T)),
        image_keys=small.image_key.to_pylist(),
        image_edges=_edges(small.images_per_pack).data,
    )


def _bytes(columns: tuple[npt.NDArray[Any], ...]) -> memoryview:
    return np.stack([column.astype(np.int64) for column in columns], axis=1).reshape(-1).view(np.uint8).data


class OpenShards:
    """The packs of one split of one plan, numbered 0 to P - 1 in stored order; opens no file when it is made.

    Args:
        encoders: by modality, the encoder whose vectors are attached; those that the profile names where not given.

    Raises:
        TimeloomError: no such profile, plan, split or budget; a shard is missing, or of another size than it should be.
    """

    def __init__(
        self,
        release: PinnedRelease,
        profile: str,
        split: str,
        plan: str,
        budget: int | None,
        maps: int = MAPS,
        small_bytes: int = SMALL_BYTES,
        encoders: Mapping[str, EncoderEntry] | None = None,
    ) -> None:
        release.check_profile(profile)
        check_split(split)
        entry = release.manifest.profiles[profile].plan(profile, plan)
        if budget is not None and not (split == "train" and 0 <= budget < len(entry.budgets)):
            raise TimeloomError(
                f"plan {plan} of profile {profile} has no budget {budget} for split {split}",
                remedy=f"train has {len(entry.budgets)} budgets, counted from 0; other splits are read without one",
            )
        self.release, self.profile, self.split, self.plan, self.budget = release, profile, split, plan, budget
        self.context = entry.context
        self.numbers = np.arange(entry.files(split, budget), dtype=np.int64)
        paths = [release.files.shard(profile, split, int(number), plan) for number in self.numbers]
        # Packing writes every file of a plan, one without packs too.
        if unlisted := [path for path in paths if release.relative(path) not in release.manifest.files]:
            raise TimeloomError(f"the manifest lacks {release.relative(unlisted[0])}", remedy=REPAIR)
        self.paths = release.present(paths)
        self._edges = _edges(np.array([self._rows(release.relative(path)) for path in self.paths]))
        self._carried = release.manifest.encoders_of(profile)
        # Vectors may be attached where the plan keeps image tokens; the manifest names the stores.
        attached = (encoders or self._carried) if entry.images else {}
        self.stores = {name: encoder.store for name, encoder in attached.items() if name in MODALITIES}
        self.dims = {name: encoder.dim for name, encoder in attached.items() if name in MODALITIES}
        self._prefixes: dict[int, str] = {}
        self._maps_most, self._bytes_most = maps, small_bytes
        self._forget()

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._maps: OrderedDict[int, _Opened] = OrderedDict()
        self._pages: OrderedDict[tuple[int, int], PackColumns] = OrderedDict()
        self._bytes = 0
        self._id_dtypes: set[np.dtype[Any]] = set()
        self._id_address = np.zeros(len(self), np.int64)  # where each pack's ids are mapped, 0 where its file is not
        self._process = os.getpid()  # last: whoever sees it takes the lock

    def _fit_process(self) -> None:
        """After a fork the lock may be held by a thread that is not here, and is made anew, by one thread."""
        if self._process != os.getpid():
            with _guard:
                if self._process != os.getpid():
                    self._forget()

    def __getstate__(self) -> dict[str, Any]:
        # Maps stay with the process that made them; a spawned worker opens its own.
        private = ("_lock", "_maps", "_pages", "_id_address")
        return {name: value for name, value in self.__dict__.items() if name not in private}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def _rows(self, name: str) -> int:
        rows = self.release.manifest.files[name].rows
        if rows is None:
            raise TimeloomError(f"the manifest does not say how many packs {name} has", remedy=REPAIR)
        return rows

    def __len__(self) -> int:
        return int(self._edges[-1])

    @cached_property
    def pack_ids(self) -> I64:
        """(P,) in stored order: the file's number << 32 | its row there."""
        counts = np.diff(self._edges)
        return np.repeat((self.numbers << 32) - self._edges[:-1], counts) + np.arange(len(self), dtype=np.int64)

    def files_of(self, packs: I64) -> list[Path]:
        """The files that packs lie in, in the order in which they are first needed; none is opened."""
        files = np.searchsorted(self._edges, packs, side="right") - 1
        found, first = np.unique(files, return_index=True)
        return [self.paths[file] for file in found[np.argsort(first)].tolist()]

    def places(self, packs: I64) -> list[PackAddress]:
        """Where packs (n,) lie, their files opened and checked before the first use.

        Raises:
            TimeloomError: a file is corrupt, of another vocabulary, profile, plan or store than the manifest says.
        """
        self._fit_process()
        files = np.searchsorted(self._edges, packs, side="right") - 1
        rows = packs - self._edges[files]
        found, current, before = [], -1, (-1, -1)
        with self._lock:
            for file, row in zip(files.tolist(), rows.tolist()):  # noqa: B905
                if file != current:
                    current = file
                    shard, sheets, each = self._open(file)
                number, within = divmod(row, each)
                if (file, number) != before:
                    before = file, number
                    pages = self._small(file, number, shard)
                found.append(PackAddress(sheets[number], within, pages))
        return found

    def ids(self, packs: I64) -> npt.NDArray[Any]:
        """The ids (n, L) of packs (n,), as narrow as they are stored: what `places` finds, by the shortest way."""
        if not plain_reads():
            self._fit_process()
            with self._lock:  # while it is held no map is given up
                where = self._id_address[packs]
                if len(self._maps) < len(self.paths):
                    for file in np.unique(np.searchsorted(self._edges, packs, side="right") - 1).tolist():
                        self._open(file)
                    where = self._id_address[packs]
                if len(self._id_dtypes) == 1 and (len(self._maps) == len(self.paths) or where.all()):
                    return rows_at(where, next(iter(self._id_dtypes)), self.context)
        # Plain reads, no packs, packs in more files than may be mapped, or shards of a vocabulary that has outgrown 16
        # bits since.
        places = self.places(packs)
        return narrow([id_bytes(place, self.context) for place in places], id_dtypes(places), self.context)

    def _open(self, file: int) -> _Opened:
        found = self._maps.get(file)
        if found is None:
            path = self._checked(self.paths[file])
            shard = open_shard(path)
            self._check(self.release.relative(path), shard, int(self._edges[file + 1] - self._edges[file]))
            unit = shard.header.time_unit_us
            sheets = [sheet_of(block, unit) for block in shard.blocks]
            found = self._maps[file] = _Opened(shard, sheets, shard.blocks[0].rows)
            self._id_dtypes |= {block.input_ids.dtype for block in shard.blocks}
            for block in shard.blocks:
                first = int(self._edges[file]) + block.first
                self._id_address[first : first + block.rows] = addresses(block.input_ids)
            while len(self._maps) > self._maps_most:
                self._close_oldest()
        else:
            self._maps.move_to_end(file)
        return found

    def _checked(self, path: Path) -> Path:
        """A file of the release; where it does not fit beside those that are open, the oldest of them are closed."""
        while True:
            try:
                return self.release.checked(path)
            except NoRoomError:
                if not self._maps:
                    raise
                self._close_oldest()

    def _close_oldest(self) -> None:
        closed, opened = self._maps.popitem(last=False)
        self._id_address[self._edges[closed] : self._edges[closed + 1]] = 0
        self.release.let_go(opened.shard.path)

    def _small(self, file: int, number: int, shard: MappedShard) -> PackColumns:
        key = file, number
        pages = self._pages.get(key)
        if pages is None:
            pages = self._pages[key] = pages_of(shard.small(number))
            self._bytes += pages.nbytes
            while self._bytes > self._bytes_most and len(self._pages) > 1:
                self._bytes -= self._pages.popitem(last=False)[1].nbytes
        else:
            self._pages.move_to_end(key)
        return pages

    @property
    def held_bytes(self) -> int:
        """Bytes of decoded small columns held now; at most `small_bytes`, or one row group's."""
        return self._bytes

    @property
    def held_maps(self) -> int:
        """Files mapped now; at most `maps`."""
        return len(self._maps)

    def _vocabulary_hash(self, size: int) -> str:
        # One hash for each prefix that shards name, not one for each shard.
        if size not in self._prefixes:
            whole = self._vocabulary()
            entry = self.release.manifest.profiles[self.profile]
            if hash_of(whole) != entry.vocabulary_hash:
                name = self.release.relative(self.release.files.vocabulary(self.profile))
                raise TimeloomError(f"{name} is not the vocabulary that the manifest names", remedy=REPAIR)
            self._prefixes[size] = hash_of(whole[:size])
        return self._prefixes[size]

    def _vocabulary(self) -> list[tuple[int, str]]:
        # Neither by `read_table`, which imports pandas and so takes longer than the first batch, nor by polars, whose
        # threads are not there in a forked worker.
        path = self.release.checked(self.release.files.vocabulary(self.profile))
        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                table = file.read(["token_id", "token"], use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise TimeloomError(f"{self.release.relative(path)} is corrupt", remedy=REPAIR) from error
        return sorted(zip(table["token_id"].to_pylist(), table["token"].to_pylist(), strict=True))

    def _check(self, name: str, shard: MappedShard, rows: int) -> None:
        header = shard.header
        if self._vocabulary_hash(header.vocabulary_size) != header.vocabulary_hash:
            raise TimeloomError(f"{name} was written with another vocabulary than the manifest names", remedy=REPAIR)
        found = (header.profile, header.split, header.plan, header.context)
        if found != (self.profile, self.split, self.plan, self.context):
            raise TimeloomError(
                f"{name} is of another profile, split, plan or context than its place says", remedy=REPAIR
            )
        if len(shard) != rows:
            raise TimeloomError(f"{name} has another number of packs than the manifest says", remedy=REPAIR)
        if len({block.rows for block in shard.blocks[:-1]}) > 1 or shard.blocks[-1].rows > shard.blocks[0].rows:
            raise TimeloomError(f"{name} has row groups of unequal size", remedy="rebuild it with `timeloom run`")
        for modality, store in header.stores.items():
            encoder = self._carried.get(modality)
            if modality not in MODALITIES or encoder is None or encoder.store != store:
                raise TimeloomError(f"{name} names a {modality} store that the manifest does not", remedy=REPAIR)
