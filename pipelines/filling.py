"""Filling stores under leases: what a process of the night does, and a worker of any machine."""

import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedders.encoders.spec import EncoderSpec, encoder_spec
from pipelines.dealing import LOOK_SECONDS, Unit
from pipelines.stores import Store, StoreParams, to_embed
from warehouse.embeddings.bucket_lease import Lease, take
from warehouse.errors import TimeloomError

if TYPE_CHECKING:
    from embedders.encoders.build import Encoder
    from embedders.running.rates import RunFigures
    from embedders.running.store_bucket import Bucket


def fill(params: StoreParams, units: list[Unit], embedding: Mapping[str, Any], device: int | None) -> "RunFigures":
    """Encodes what units lack until every one of them is done, by this process or by another worker.

    Args:
        embedding: as EmbeddingConfig has it.
        device: the number of the GPU, None for the CPU.

    Raises:
        TimeloomError: as `embed_buckets`; a lease is lost; this machine would make other vectors than are wanted.
    """
    filler = Filler(params, units, embedding, device)
    while True:
        filler.fill_free()
        if filler.is_done:
            return filler.figures
        time.sleep(LOOK_SECONDS)


class Filler:
    """Takes the leases of units that are free, one after the other, and encodes what their stores lack.

    Attributes:
        figures: of all that this process has encoded.
    """

    def __init__(
        self, params: StoreParams, units: list[Unit], embedding: Mapping[str, Any], device: int | None
    ) -> None:
        from embedders.running.rates import RunFigures
        from embedders.running.runner import RunnerSettings

        names = RunnerSettings.__dataclass_fields__.keys() & embedding.keys()
        self._settings = RunnerSettings(**{name: embedding[name] for name in names})
        self._params, self._units, self._lease_seconds = params, units, float(embedding["lease_seconds"])
        self._device = device
        self._encoders: dict[Path, tuple[EncoderSpec, Callable[[], Encoder]]] = {}
        self._done: set[Path] = set()
        self.figures = RunFigures(self._settings.decoders, self._settings.memory_mb if self._settings.decoders else 0)

    @property
    def is_done(self) -> bool:
        """Whether no unit lacks anything that another try would make."""
        return len(self._done) == len(self._units)

    def fill_free(self, goes_on: Callable[[], bool] = lambda: True) -> "RunFigures":
        """Encodes what is lacking in units that no other worker holds; says what it was like.

        Args:
            goes_on: is asked before each unit whether another one is to be taken.
        """
        from embedders.running.runner import embed_buckets

        _, figures = embed_buckets(self._taken(goes_on), self._settings)
        self.figures.add(figures)
        return figures

    def _taken(self, goes_on: Callable[[], bool]) -> "Iterator[Bucket]":
        for unit in self._units:
            if unit.path in self._done:
                continue
            if not goes_on():
                return
            lease = take(unit.path, self._lease_seconds)
            if lease is None:
                continue
            try:
                bucket = self._bucket(unit, lease)
            except BaseException:
                lease.give_back()
                raise
            self._done.add(unit.path)
            yield bucket

    def _bucket(self, unit: Unit, lease: Lease) -> "Bucket":
        """A unit whose lease is taken. What of it is stored, whole, is not made again."""
        from embedders.running.store_bucket import Bucket

        store = unit.store
        if store.folder not in self._encoders:
            self._encoders[store.folder] = _spec(store), _encoder(store, self._device)
        spec, encoder = self._encoders[store.folder]
        items = [item.cut_in(store.cut) for item in to_embed(self._params, store.modality, unit.items)]
        return Bucket(unit.path, spec, items, encoder, lease)


def _spec(store: Store) -> EncoderSpec:
    spec = encoder_spec(store.config, store.modality)
    planned = store.entry.store
    if spec.store_name != planned:
        raise TimeloomError(
            f"the {store.modality} vectors were planned as {planned}, and this worker would make {spec.store_name}",
            remedy=f"set precision and batch_size of modalities.{store.modality}.encoder: auto follows the machine",
        )
    return spec


def _encoder(store: Store, device: int | None) -> "Callable[[], Encoder]":
    """Builds an encoder when the first item needs it, and holds it against its golden vectors."""

    @cache
    def encoder() -> "Encoder":
        from embedders.encoders.build import check_golden, get_encoder

        built = get_encoder(store.config, store.modality, device)
        check_golden(built, store.folder)
        return built

    return encoder
