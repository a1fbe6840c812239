"""Imported vectors: from the files that another program wrote → stores, many buckets at a time, without an encoder.

Files are read in their order, each once for all of its items, and what was read is stored when it is some hundred MiB.
Beside each vector stands the digest of what it was made from: where a file has changed since, its items are made again.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedders.encoders.spec import StoreSpec
from embedders.running.spans import EmbeddedItem, refused_item, rounded
from embedders.running.store_bucket import COMMIT_BYTES, COMMIT_ITEMS, PASSING, read_verdicts, verdicts_path
from extractors.items import OK, VerdictError
from extractors.vectors.files import Held, VectorFile, blocks_of, open_vectors, places_of, units_of
from extractors.vectors.judge import Digest
from extractors.vectors.settings import ImportedConfig
from warehouse.embeddings.bucket_lease import Lease, sole_writers
from warehouse.embeddings.store import PLACES, SOURCE, EmbeddingStore, EmbeddingWriter
from warehouse.errors import TimeloomError
from warehouse.sealed import write_sealed

AT_ONCE = 64  # buckets that are filled together: each has a lock and a file


@dataclass(frozen=True)
class ItemToImport:
    """An item, de-identified, and where its vectors lie.

    Attributes:
        digest: of its vectors when they were found; empty where there are none that could be taken.
        verdict: ok, or why they cannot be taken.
        units_expected: as the modality's index counts them.
        path, member: below the import's folder, and in the file.
    """

    item_key: str
    digest: str
    verdict: str
    units_expected: int
    path: str = ""
    member: str = ""

    @property
    def signature(self) -> str:
        """What a verdict holds for."""
        return self.digest or self.verdict


@dataclass(frozen=True)
class ImportBucket:
    """What is to be done in one bucket of one store."""

    store: Path
    items: Sequence[ItemToImport]


@dataclass
class ImportFigures:
    """What a run did: items that have an outcome now, their units, and errors by the exception's type."""

    items: int = 0
    units: int = 0
    rounding_error: float = 0.0
    errors: dict[str, int] = field(default_factory=dict)


def outcomes(store: Path, items: Iterable[ItemToImport], dim: int) -> dict[str, EmbeddedItem]:
    """What is known of items by their keys, as far as it was made of what their files hold now.

    Raises:
        TimeloomError: the store is damaged.
    """
    known: dict[str, EmbeddedItem] = {}
    reader = EmbeddingStore.open(store) if store.is_file() else None
    stored = set(reader.keys()) if reader is not None else set()
    verdicts = read_verdicts(store)
    for item in items:
        key, found = item.item_key, verdicts.get(item.item_key)
        # A store's truth is its length, for which all of its keys are read.
        if reader is not None and key in stored and item.verdict == OK and _source(reader, key) == item.digest:
            units = reader.header(key).n_units
            known[key] = EmbeddedItem(key, OK, units, units, 0, dim)
        elif found is not None and found["signature"] == item.signature:
            known[key] = refused_item(key, item.units_expected, found["verdict"])
    return known


def _source(store: EmbeddingStore, key: str) -> str:
    """The digest of what a vector was made from; empty where it, or a byte of it, is gone."""
    try:
        return store.get(key + SOURCE).astype("<i4").tobytes().hex()
    except (KeyError, TimeloomError):
        return ""


def import_buckets(buckets: Sequence[ImportBucket], imported: ImportedConfig, spec: StoreSpec) -> ImportFigures:
    """Imports every item of `buckets` that has no outcome yet.

    A mean is taken over the units in float64, whatever type they are stored in, and rounded once.

    Raises:
        TimeloomError: a store cannot be written, or has another writer; the folder of vectors is away.
    """
    figures = ImportFigures()
    for first in range(0, len(buckets), AT_ONCE):
        _import(buckets[first : first + AT_ONCE], imported, spec, figures)
    return figures


def _import(buckets: Sequence[ImportBucket], imported: ImportedConfig, spec: StoreSpec, figures: ImportFigures) -> None:
    with sole_writers([bucket.store for bucket in buckets]) as leases:
        filling = [_Filling(bucket, spec, figures, lease) for bucket, lease in zip(buckets, leases, strict=True)]
        by_file: dict[str, list[tuple[_Filling, ItemToImport]]] = defaultdict(list)
        for target in filling:
            for item in target.todo:
                if item.verdict == OK:
                    by_file[item.path].append((target, item))
                else:
                    target.refuse(item, item.verdict)
        if by_file and not imported.path.exists():
            raise TimeloomError(
                "the imported vectors that were found cannot be opened now",
                remedy="see that their disk is mounted and readable, and run again; it resumes",
            )
        for path in sorted(by_file):
            for target, item, vectors in _read(imported.path / path, by_file[path], imported, spec, figures):
                target.put(item, vectors)
                if sum(each.pending_bytes for each in filling) >= COMMIT_BYTES:
                    for each in filling:
                        each.commit()
        for target in filling:
            target.commit()


@dataclass(frozen=True)
class _Vectors:
    """What is stored of an item, or why nothing is."""

    verdict: str = OK
    array: npt.NDArray[Any] = field(default_factory=lambda: np.empty(0))
    places: npt.NDArray[Any] | None = None
    units: int = 0


def _read(
    path: Path,
    wanted: "Sequence[tuple[_Filling, ItemToImport]]",
    imported: ImportedConfig,
    spec: StoreSpec,
    figures: ImportFigures,
) -> "Iterator[tuple[_Filling, ItemToImport, _Vectors]]":
    """The vectors of a file's items, in the file's order."""
    # Of one member there may be two items: copies that their headers give to two ids of one patient.
    by_member: dict[str, list[tuple[_Filling, ItemToImport]]] = defaultdict(list)
    for target, item in wanted:
        by_member[item.member].append((target, item))
    try:
        with open_vectors(path, imported) as opened:
            for held in opened.held():
                for target, item in by_member.pop(held.member, ()):
                    yield target, item, _vectors(opened, held, item, imported, spec, figures)
    except (MemoryError, TimeloomError):
        raise
    except Exception as error:  # it could be read when it was found
        _count(figures, error)
    for target, item in (each for found in by_member.values() for each in found):
        yield target, item, _Vectors("failed_changed")


def _vectors(
    opened: VectorFile,
    held: Held,
    item: ItemToImport,
    imported: ImportedConfig,
    spec: StoreSpec,
    figures: ImportFigures,
) -> _Vectors:
    """An item's vectors as they are stored; failed_changed where they are not those that were found."""
    digest, kept, errors = Digest(), [], [0.0]
    total = np.zeros(imported.width)
    try:
        for block in blocks_of(opened, held, imported):
            digest.add(block, imported.width)
            if spec.output == "sequence":
                same = block.dtype == spec.store_dtype
                stored, error = (np.array(block), 0.0) if same else rounded(block, spec.store_dtype)
                kept.append(stored)
                errors.append(error)
            else:
                total += block.sum(axis=0, dtype=np.float64)
        units = units_of(held, imported)
        places = places_of(opened, held, units)
        digest.add_places(places)
        if digest.hex != item.digest:
            return _Vectors("failed_changed")
        if spec.output == "mean":
            stored, error = rounded(total / units, spec.store_dtype)
            kept.append(stored)
            errors.append(error)
    except VerdictError as error_found:
        # What the file held when it was found could be taken, but for values that the store's type does not hold.
        return _Vectors(error_found.verdict if error_found.verdict == "failed_not_finite" else "failed_changed")
    except MemoryError:
        raise
    except Exception as error_found:
        _count(figures, error_found)
        return _Vectors("failed_changed")
    figures.rounding_error = max(figures.rounding_error, *errors)
    if spec.output == "mean":
        return _Vectors(OK, kept[0], None, units)
    return _Vectors(OK, np.concatenate(kept), places, units)


def _count(figures: ImportFigures, error: Exception) -> None:
    kind = type(error).__name__
    figures.errors[kind] = figures.errors.get(kind, 0) + 1


class _Filling:
    """A bucket that is being filled; its lease is held by who made this."""

    def __init__(self, bucket: ImportBucket, spec: StoreSpec, figures: ImportFigures, lease: Lease) -> None:
        self._store, self._figures, self._lease = bucket.store, figures, lease
        known = outcomes(bucket.store, bucket.items, spec.width)
        self.todo = [item for item in bucket.items if not self._lasts(known.get(item.item_key))]
        self._verdicts: dict[str, Mapping[str, str]] = dict(read_verdicts(bucket.store))
        self._pending: list[tuple[str, npt.NDArray[Any], int]] = []
        self._changed = not bucket.store.is_file()
        self.pending_bytes = 0

    def _lasts(self, outcome: EmbeddedItem | None) -> bool:
        """Whether an outcome is known that another try would not change, and no byte of its vectors has."""
        if outcome is None or outcome.verdict in PASSING:
            return False
        return outcome.verdict != OK or EmbeddingStore(self._store).has_whole([outcome.item_key])

    def refuse(self, item: ItemToImport, verdict: str) -> None:
        """The item leaves nothing in the store."""
        self._figures.items += 1
        self._verdicts[item.item_key] = {"verdict": verdict, "signature": item.signature}
        self._changed = True

    def put(self, item: ItemToImport, vectors: _Vectors) -> None:
        """The item's vectors, which wait for the next commit."""
        if vectors.verdict != OK:
            self.refuse(item, vectors.verdict)
            return
        self._figures.items += 1
        self._figures.units += vectors.units
        key, source = item.item_key, np.frombuffer(bytes.fromhex(item.digest), "<i4")
        entries = [(key, vectors.array, vectors.units), (key + SOURCE, source, vectors.units)]
        if vectors.places is not None:
            entries.append((key + PLACES, vectors.places, vectors.units))
        self._pending += entries
        self.pending_bytes += sum(array.nbytes for _, array, _ in entries)
        self._changed |= self._verdicts.pop(key, None) is not None
        if len(self._pending) >= 2 * COMMIT_ITEMS:
            self.commit()

    def commit(self) -> None:
        """Stores what waits, vectors first. A bucket without any vector has a store too, which its release names."""
        with self._lease.turn():
            if self._pending or not self._store.is_file():
                with EmbeddingWriter(self._store) as writer:
                    writer.put_many(self._pending)
                self._pending, self.pending_bytes = [], 0
            if self._changed:
                write_sealed(verdicts_path(self._store), self._verdicts)
                self._changed = False
