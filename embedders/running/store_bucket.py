"""One bucket of one encoder's store while a worker fills it: its lease, its vectors, its checkpoint, its verdicts."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy.typing as npt

from embedders.encoders.build import Encoder, EncoderSpec
from embedders.running.checkpoint import Checkpoint
from embedders.running.spans import (
    EmbeddedItem,
    ItemToEmbed,
    Progress,
    refused_item,
    rounded,
    signature,
    still_there,
    stored_item,
)
from extractors.items import OK, VERDICTS, VerdictError
from warehouse.embeddings.bucket_lease import Lease, LeaseLostError, sole_writer
from warehouse.embeddings.store import PLACES, EmbeddingStore, EmbeddingWriter
from warehouse.sealed import read_sealed, write_sealed

COMMIT_ITEMS = 200
COMMIT_UNITS = 8_192
COMMIT_BYTES = 256 << 20

# Verdicts that another night may undo without any sign of it in the files.
PASSING = frozenset({"failed_changed"})
ABSENT = "absent"  # stands for the signature of files that are not there


@dataclass(frozen=True)
class Bucket:
    """What is to be done in one bucket of one store.

    Attributes:
        encoder: builds the encoder of `spec`, or gives it again.
        lease: of the bucket, where it is taken already; it is given back when the bucket is closed.
    """

    store: Path
    spec: EncoderSpec
    items: Sequence[ItemToEmbed]
    encoder: Callable[[], Encoder]
    lease: Lease | None = None


def verdicts_path(store: Path) -> Path:
    """Where the verdicts of a store's failed items stand, beside it. Without this file they are tried again."""
    return store.with_suffix(".verdicts.json")


def read_verdicts(store: Path) -> dict[str, dict[str, str]]:
    """Item key to `verdict` and `signature` (what its files were like), of items that failed in this store."""
    try:
        found = read_sealed(verdicts_path(store), older=True)
        return {key: entry for key, entry in found.items() if entry["verdict"] in VERDICTS and entry["signature"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def outcomes(store: Path, expected: dict[str, int], dim: int) -> dict[str, EmbeddedItem]:
    """What is known of items by their keys, from the store and its verdicts, without looking at any image.

    Args:
        expected: item key to units.
        dim: the vectors' length.

    Raises:
        TimeloomError: the store is damaged.
    """
    known: dict[str, EmbeddedItem] = {}
    if store.is_file():
        reader = EmbeddingStore.open(store)
        for key in expected.keys() & set(reader.keys()):
            known[key] = stored_item(key, expected[key], reader.header(key).n_units, dim)
    for key, found in read_verdicts(store).items():
        if key in expected and key not in known:
            known[key] = refused_item(key, expected[key], found["verdict"])
    return known


class OpenBucket:
    """A bucket in work. Use as a context manager: it holds the store's lease.

    Attributes:
        errors: relative L2 distances of what was stored to what was computed, the largest.
        resumed: units that an earlier run had encoded.
    """

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket
        self.results: dict[str, EmbeddedItem] = {}
        self.in_work: dict[str, Progress] = {}
        self.rounding_error = 0.0
        self.resumed = 0
        self._pending: list[tuple[str, npt.NDArray[Any], int]] = []
        self._ended: list[str] = []
        self._held, self._files = ExitStack(), ExitStack()
        self._keep = bucket.spec.output == "sequence"

    def __enter__(self) -> Self:
        store = self.bucket.store
        with ExitStack() as held:
            if self.bucket.lease is None:
                self._lease = held.enter_context(sole_writer(store))
            else:
                self._lease = self.bucket.lease
                held.callback(self._lease.give_back)
            with self._lease.turn(), ExitStack() as files:
                self._writer = files.enter_context(EmbeddingWriter(store))
                self._checkpoint = Checkpoint(store.with_suffix(".partial"))
                files.callback(self._checkpoint.close)
                self._verdicts = read_verdicts(store)
                self._files = files.pop_all()
            self._held = held.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        with self._held:
            try:
                with self._lease.turn():
                    self._files.close()  # a store that was written in a scratch folder takes its place
            except LeaseLostError:  # whoever writes next is told; what is not stored there is made again
                self._writer.abandon()
                self._files.close()

    def begin(self, item: ItemToEmbed) -> Progress | None:
        """Takes an item up, from where an earlier run left it; None where its outcome is known already.

        Raises:
            TimeloomError: the disk with the item's files is away.
        """
        key, spec = item.item_key, self.bucket.spec
        stored = self._stored(key)
        if stored is not None:
            self.results[key] = stored_item(key, item.units_expected, stored, spec.width)
            return None
        found = self._verdicts.get(key)
        try:
            if found is not None and found["verdict"] not in PASSING and found["signature"] == signature(item):
                self.results[key] = refused_item(key, item.units_expected, found["verdict"])
                return None
            progress = Progress.start(item, spec.width, keep=self._keep)
        except VerdictError as error:
            self.results[key] = self._refuse(item, error.verdict, ABSENT)
            self._ended.append(key)
            return None
        with self._lease.turn():
            self.resumed += self._checkpoint.restore(progress)
        self.in_work[key] = progress
        return progress

    def _stored(self, key: str) -> int | None:
        units = self._writer.stored_units(key)
        if units is not None and self._keep and self._writer.stored_units(key + PLACES) is None:
            return None
        return units

    def settle(self, progress: Progress) -> EmbeddedItem | None:
        """Ends an item whose verdict is certain; its vector waits for the next commit. None while it is open.

        Raises:
            TimeloomError: the item failed because a disk is away.
        """
        verdict = progress.verdict()
        if verdict is None or progress.refused:
            return None
        key, expected = progress.item.item_key, progress.item.units_expected
        if verdict == OK:
            try:
                array, error = rounded(progress.array(), self.bucket.spec.store_dtype)
                self.rounding_error = max(self.rounding_error, error)
                self._pending.append((key, array, progress.encoded))
                if self._keep:
                    self._pending.append((key + PLACES, progress.places(), progress.encoded))
                self._verdicts.pop(key, None)
                result = stored_item(key, expected, progress.encoded, self.bucket.spec.width)
            except VerdictError as error_found:
                verdict = error_found.verdict
        if verdict != OK:
            try:
                still_there(progress.item)
            except VerdictError as error_found:
                verdict = error_found.verdict
            progress.refused = True
            result = self._refuse(progress.item, verdict, progress.signature)
        del self.in_work[key]
        self._ended.append(key)
        self.results[key] = result
        if self._full:
            self.commit()
        return result

    def _refuse(self, item: ItemToEmbed, verdict: str, files: str) -> EmbeddedItem:
        self._verdicts[item.item_key] = {"verdict": verdict, "signature": files}
        return refused_item(item.item_key, item.units_expected, verdict)

    @property
    def _full(self) -> bool:
        units = sum(units for key, _, units in self._pending if not key.endswith(PLACES))
        size = sum(array.nbytes for _, array, _ in self._pending)
        return len(self._pending) >= COMMIT_ITEMS or units >= COMMIT_UNITS or size >= COMMIT_BYTES

    def commit(self) -> None:
        """Stores what has ended, vectors first, and how far the others are.

        Raises:
            LeaseLostError: another worker may fill the bucket; nothing is written.
        """
        with self._lease.turn():
            self._commit()

    def _commit(self) -> None:
        if self._pending:
            self._writer.put_many(self._pending)
            self._pending = []
        if self._ended and self._verdicts != read_verdicts(self.bucket.store):
            write_sealed(verdicts_path(self.bucket.store), self._verdicts)
        self._checkpoint.save(self.in_work.values(), self._ended)
        self._ended = []

    def finish(self) -> list[EmbeddedItem]:
        """Every item has its outcome: stores the last of them. In the order of the items."""
        with self._lease.turn():
            self._commit()
            self._checkpoint.remove()
        return [self.results[item.item_key] for item in self.bucket.items]
