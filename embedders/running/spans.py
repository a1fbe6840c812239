"""Items as the runner sees them: cut into spans that decoders take one by one, and summed in an order of their own.

Units are summed in float64 by blocks of `BLOCK`, blocks by spans, spans by items, each in index order. So a mean has
the same bits whoever decoded what, in whichever batch a unit was encoded, and wherever a run was killed and resumed.
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from extractors.items import CUTS, OK, VerdictError, cut_in, file_on_disk
from extractors.modalities import EXTRACTORS
from warehouse.errors import TimeloomError
from warehouse.files import sha256_json

BLOCK = 16
SPAN = 32 * BLOCK
MAX_FAILED_SHARE = 0.1

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ItemToEmbed:
    """An item with verdict ok, de-identified: `item_key` is all that reaches the store."""

    item_key: str
    modality: str
    root: Path
    paths: tuple[str, ...]
    geometry: Mapping[str, Any]
    units_expected: int

    @property
    def units_that_may_fail(self) -> float:
        """A share of the units: what the configuration says of slides, `geometry["max_failed_tiles"]`, or a tenth."""
        return float(self.geometry.get("max_failed_tiles", MAX_FAILED_SHARE)) * self.units_expected

    def cut_in(self, way: str) -> "ItemToEmbed":
        """The item as it is for who takes it cut in one way; an empty name takes it as it is."""
        if not way:
            return self
        return replace(self, geometry=cut_in(self.geometry, way), units_expected=self.geometry[CUTS][way]["units"])


@dataclass(frozen=True)
class EmbeddedItem:
    """What became of an item. `units_encoded` stand in the mean; `dim` is None where nothing was stored."""

    item_key: str
    verdict: str
    units_expected: int
    units_encoded: int
    units_failed: int
    dim: int | None


def stored_item(item_key: str, expected: int, encoded: int, dim: int) -> EmbeddedItem:
    """The outcome of an item whose vector is in the store."""
    return EmbeddedItem(item_key, OK, expected, encoded, max(0, expected - encoded), dim)


def refused_item(item_key: str, expected: int, verdict: str) -> EmbeddedItem:
    """The outcome of an item that left nothing in the store."""
    return EmbeddedItem(item_key, verdict, expected, 0, expected, None)


def signature(item: ItemToEmbed) -> str:
    """Changes with the item's files (size, modification time), its geometry and how it is cut into blocks.

    Raises:
        VerdictError: failed_changed, a file went although the tree that held it is there.
        TimeloomError: the tree is away; that is no verdict of its items.
    """
    digest = sha256()
    for path in item.paths:
        try:
            found = file_on_disk(item.root, path)[0].stat()
        except OSError as error:
            raise _gone(item, error) from error
        digest.update(f"{found.st_size},{found.st_mtime_ns};".encode())
    cut = [item.units_expected, BLOCK, SPAN, dict(item.geometry)]
    return sha256_json([digest.hexdigest(), *cut])[:32]


def still_there(item: ItemToEmbed) -> None:
    """Tells a damaged image, which stays damaged, from one that went and from a disk that is away.

    Raises:
        VerdictError, TimeloomError: as `signature`.
    """
    seen: set[Path] = set()
    for path in item.paths:
        try:
            file = file_on_disk(item.root, path)[0]
            if file not in seen:
                file.open("rb").close()
                seen.add(file)
        except OSError as error:
            raise _gone(item, error) from error


def _gone(item: ItemToEmbed, error: OSError) -> VerdictError | TimeloomError:
    """What an error says that opening a file gave: the item's own matter only where the root can be listed.

    An empty root is a disk that is not mounted; and other errors than these are the disk's, whatever can be listed.
    """
    if isinstance(error, FileNotFoundError | NotADirectoryError | PermissionError):
        with suppress(OSError), os.scandir(item.root) as entries:
            if next(entries, None) is not None:
                return VerdictError("failed_changed")
    return TimeloomError(
        f"{item.modality} images that were indexed cannot be opened now",
        remedy="see that their disk is mounted and readable, and run again; it resumes",
    )


@dataclass
class Span:
    """Units `start` to `stop` of an item, as far as they are encoded.

    Attributes:
        done: units below it are in `total`, or counted in neither `encoded` nor the vectors because they failed. Always
            the end of a block.
        event: the first unit at which this span ended the item, and with which verdict.
        blocks, places: of sequences only, each block's vectors and where its units lie.
    """

    start: int
    stop: int
    width: int
    keep: bool
    may_fail: float
    too_many: str
    done: int = -1
    encoded: int = 0
    total: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    event: tuple[int, str] | None = None
    blocks: list[Vectors] = field(default_factory=list)
    places: list[npt.NDArray[np.int32]] = field(default_factory=list)
    _open: list[tuple[npt.NDArray[Any], ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.done < 0:
            self.done = self.start
            self.total = np.zeros(self.width, dtype=np.float64)

    @property
    def finished(self) -> bool:
        return self.done == self.stop

    @property
    def refused(self) -> bool:
        """Whether every unit before the one that ended the item is encoded, so that nothing can forestall it."""
        return self.event is not None and self.done // BLOCK >= self.event[0] // BLOCK

    def end(self, unit: int, verdict: str) -> None:
        """The item cannot be used: found out at `unit`."""
        if self.event is None or unit < self.event[0]:
            self.event = (unit, verdict)

    def add(
        self,
        upto: int,
        indices: npt.NDArray[np.int64],
        vectors: Vectors,
        places: npt.NDArray[np.int32],
        tokens: npt.NDArray[np.int64] | None = None,
    ) -> None:
        """The next units, in order: all below `upto` that could be read.

        Args:
            vectors: (n, width), or (n, t, width) where a unit makes several.
            tokens: (n,) how many each unit makes, of those the first; what stands behind them is padding.
        """
        self._open.append((indices, vectors, places, *(() if tokens is None else (tokens,))))
        while not self.finished and (end := min((self.done // BLOCK + 1) * BLOCK, self.stop)) <= upto:
            self._close(end)

    def _close(self, end: int) -> None:
        arrays = [np.concatenate(parts) for parts in zip(*self._open, strict=True)]
        inside = int(np.searchsorted(arrays[0], end))
        self._open = [tuple(array[inside:] for array in arrays)]
        vectors, places = arrays[1][:inside], arrays[2][:inside]
        if len(arrays) > 3:
            vectors, places = _flat(vectors, places, arrays[3][:inside])
        if not np.isfinite(vectors).all():
            self.end(self.done, "failed_not_finite")
        self.total += vectors.sum(axis=0, dtype=np.float64)
        self.encoded += inside
        self.done = end
        if self.keep:
            self.blocks.append(vectors.copy())
            self.places.append(places.copy())
        if self.done - self.start - self.encoded > self.may_fail:
            self.end(self.done - 1, self.too_many)


def _flat(
    vectors: Vectors, places: npt.NDArray[np.int32], tokens: npt.NDArray[np.int64]
) -> tuple[Vectors, npt.NDArray[np.int32]]:
    """Units' own vectors (n, t, width) one below the other, without padding; each lies where its unit does (n, k), and
    its number in the unit stands behind that."""
    kept = np.arange(vectors.shape[1]) < tokens[:, None]
    number = np.concatenate([np.arange(count) for count in tokens]) if len(tokens) else np.empty(0)
    return vectors[kept], np.column_stack([np.repeat(places, tokens, axis=0), number]).astype(np.int32)


@dataclass
class Progress:
    """An item in work: its spans, in order."""

    item: ItemToEmbed
    spans: list[Span]
    signature: str
    refused: bool = False  # its verdict is made: what decoders still send of it is ignored

    @classmethod
    def start(cls, item: ItemToEmbed, width: int, *, keep: bool) -> "Progress":
        """Nothing done yet; raises as `signature`.

        Args:
            keep: the item's vectors are stored one by one, not their mean.
        """
        too_many = EXTRACTORS[item.modality].too_many_failed
        starts = range(0, item.units_expected, SPAN)
        spans = [
            Span(start, min(start + SPAN, item.units_expected), width, keep, item.units_that_may_fail, too_many)
            for start in starts
        ]
        return cls(item, spans, signature(item))

    def wants(self, span: Span) -> bool:
        """Whether `span` is to be read: it is not done, and no earlier one has ended the item."""
        earlier = self.spans[: span.start // SPAN + 1]
        return not (self.refused or span.finished or any(span_before.event is not None for span_before in earlier))

    def verdict(self) -> str | None:
        """The item's verdict; None while it is open. It does not depend on which span was read first."""
        for span in self.spans:
            if span.refused and span.event is not None:
                return span.event[1]
            if not span.finished:
                return None
        failed = sum(span.stop - span.start - span.encoded for span in self.spans)
        if failed > self.item.units_that_may_fail or failed == self.item.units_expected:
            return EXTRACTORS[self.item.modality].too_many_failed
        return OK

    @property
    def encoded(self) -> int:
        return sum(span.encoded for span in self.spans)

    def array(self) -> Vectors:
        """(width,) the mean over units, or (units, width) the units or their tokens, in float32.

        Raises:
            VerdictError: failed_not_finite.
        """
        if self.spans[0].keep:
            return np.concatenate([block for span in self.spans for block in span.blocks])
        total = np.zeros(self.spans[0].width, dtype=np.float64)
        for span in self.spans:
            total += span.total
        with np.errstate(over="ignore"):
            mean: Vectors = (total / self.encoded).astype(np.float32)
        if not np.isfinite(mean).all():
            raise VerdictError("failed_not_finite")
        return mean

    def places(self) -> npt.NDArray[np.int32]:
        """(units, k): where each unit of a sequence lies."""
        return np.concatenate([block for span in self.spans for block in span.places])


def rounded(array: npt.NDArray[np.floating[Any]], dtype: str) -> tuple[npt.NDArray[Any], float]:
    """`array` as it is stored, and the relative L2 distance to what it was.

    Raises:
        VerdictError: failed_not_finite, a value is too large for the type.
    """
    with np.errstate(over="ignore"):
        stored = array.astype(dtype)
    if not np.isfinite(stored).all():
        raise VerdictError("failed_not_finite")
    norm = float(np.linalg.norm(array.astype(np.float64)))
    error = float(np.linalg.norm(stored.astype(np.float64) - array.astype(np.float64)))
    return stored, error / norm if norm else 0.0
