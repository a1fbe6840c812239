"""Runs an encoder over items: units in batches, a running mean per item, vectors into the store by the hundred.

A batch holds units of one item only, so an item's vector has the same bits whatever else is in the run. A bad item ends
with its verdict and stops nobody. What the store holds already is not made again, so a killed run resumes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedders.encoders import Encoder
from extractors.dicom import read_ct_units
from extractors.items import OK, UnitBatch, UnitRequest, VerdictError
from extractors.slides import read_slide_units
from warehouse.embeddings import EmbeddingWriter
from warehouse.errors import TimeloomError

MAX_FAILED_SHARE = 0.1
COMMIT_UNITS = 8_192  # so that some long slides are kept before the hundred are full

# How a modality's units are read: one line per modality.
READERS: Mapping[str, Callable[[UnitRequest, int], Iterator[UnitBatch]]] = {
    "ct": read_ct_units,
    "wsi": read_slide_units,
}


@dataclass(frozen=True)
class ItemToEmbed:
    """An item with verdict ok, de-identified: `item_key` is all that reaches the store."""

    item_key: str
    modality: str
    root: Path
    paths: tuple[str, ...]
    geometry: Mapping[str, Any]
    units_expected: int


@dataclass(frozen=True)
class EmbeddedItem:
    """What became of an item. `units_encoded` stand in the mean; `dim` is None where nothing was stored."""

    item_key: str
    verdict: str
    units_expected: int
    units_encoded: int
    units_failed: int
    dim: int | None


def embed_items(
    items: Sequence[ItemToEmbed],
    encoder: Encoder,
    writer: EmbeddingWriter,
    *,
    batch_size: int = 32,
    commit_every: int = 200,
    progress: Callable[[EmbeddedItem], None] | None = None,
) -> list[EmbeddedItem]:
    """Embeds `items` into the open `writer`, in order, one mean vector (width,) float32 per item.

    Results are the same, field by field, for a run that was killed and started again. Memory: one batch of units, and
    the vectors of one transaction. On the CPU torch runs on one thread meanwhile, so that bits do not depend on the
    number of cores: use a process per core.

    Args:
        batch_size: units per forward pass. It may change the last bits of a vector: keep it the same within a store.
        commit_every: items per transaction; a transaction also ends after `COMMIT_UNITS` units.
        progress: called with each item's result, when it is made, not when it is committed.

    Raises:
        TimeloomError: the store cannot be written, or the encoder does not make what it says.
    """
    results: list[EmbeddedItem] = []
    pending: list[tuple[str, npt.NDArray[Any], int]] = []
    with _one_thread(encoder.device.type == "cpu"):
        for item in items:
            stored = writer.stored_units(item.item_key)
            if stored is not None:
                result = _result(item, stored, encoder.spec.width)
            else:
                result, vector = _embed(item, encoder, batch_size)
                if vector is not None:
                    pending.append((item.item_key, vector, result.units_encoded))
            if len(pending) >= commit_every or sum(units for *_, units in pending) >= COMMIT_UNITS:
                writer.put_many(pending)
                pending = []
            results.append(result)
            if progress is not None:
                progress(result)
        writer.put_many(pending)
    return results


def _result(item: ItemToEmbed, encoded: int, width: int) -> EmbeddedItem:
    failed = max(0, item.units_expected - encoded)
    return EmbeddedItem(item.item_key, OK, item.units_expected, encoded, failed, width)


def _embed(item: ItemToEmbed, encoder: Encoder, batch_size: int) -> tuple[EmbeddedItem, npt.NDArray[np.float32] | None]:
    """The mean over an item's units, summed in float64; or its verdict."""
    total = np.zeros(encoder.spec.width, dtype=np.float64)
    encoded = failed = 0
    try:
        for batch in _units(item, batch_size):
            failed += batch.failed
            if not len(batch.pixels):
                continue
            vectors = encoder.encode(batch.pixels)
            if not np.isfinite(vectors).all():
                raise VerdictError("failed_not_finite")
            total += vectors.sum(axis=0, dtype=np.float64)
            encoded += len(vectors)
        if not encoded or failed > MAX_FAILED_SHARE * item.units_expected:
            raise VerdictError("failed_unreadable")
    except VerdictError as error:
        _still_there(item)
        nothing = EmbeddedItem(item.item_key, error.verdict, item.units_expected, 0, item.units_expected, None)
        return nothing, None
    return _result(item, encoded, encoder.spec.width), (total / encoded).astype(np.float32)


def _units(item: ItemToEmbed, batch_size: int) -> Iterator[UnitBatch]:
    """Batches of an item; whatever its files make a decoder raise is the item's verdict, not the run's end."""
    reader = READERS[item.modality]
    batches = reader(UnitRequest(item.root, item.paths, item.geometry), batch_size)
    while True:
        try:
            batch = next(batches, None)
        except (VerdictError, MemoryError):
            raise
        except Exception as error:
            raise VerdictError("failed_unreadable") from error
        if batch is None:
            return
        yield batch


def _still_there(item: ItemToEmbed) -> None:
    """Tells a damaged image, which stays damaged, from a disk that is away, which must not leave a lasting verdict.

    Raises:
        TimeloomError: a file that was indexed cannot be opened now.
    """
    for path in item.paths:
        try:
            with (item.root / path).open("rb"):
                pass
        except OSError as error:
            raise TimeloomError(
                f"{item.modality} images that were indexed cannot be opened now",
                remedy="see that their disk is mounted and readable, and run again; it resumes",
            ) from error


@contextmanager
def _one_thread(wanted: bool) -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    if wanted:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
