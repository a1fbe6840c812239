"""What is to be encoded, dealt to workers bucket by bucket: those of the night and those of other machines.

A run writes down which buckets of which stores lack vectors (`embeddings/wanted.json`). Each worker takes the lease of
a bucket, encodes what its store lacks, and gives the lease back; how far the embedding is, the stores say.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict, cast
from uuid import uuid4

import polars as pl

from embedders.encoders.spec import cut_for, store_spec
from extractors.items import OK
from pipelines.config import RunConfig
from pipelines.stores import EncoderParams, Store, StoreParams, stores_of, usable_items
from warehouse.embeddings.bucket_lease import holder_of, undisturbed
from warehouse.embeddings.store import EmbeddingStore
from warehouse.errors import TimeloomError
from warehouse.layout import Layout
from warehouse.manifest import EncoderEntry
from warehouse.sealed import NotWholeError, read_sealed, write_sealed

LOOK_SECONDS = 1.0  # between two looks at the buckets that are not done, at least
_TIMES_A_LOOK = 4  # a pause is at least so much longer than the look before it


class WantedStore(TypedDict):
    """A store that lacks vectors: its encoder as the manifest names it, and the way in which its items are cut."""

    entry: dict[str, Any]
    cut: str


class Wanted(TypedDict):
    """What a run wants encoded. It names buckets and stores, and no item.

    Attributes:
        token: tells it from what was wanted before, though that was the same: a store may have gone since.
        made_by: versions of the code, which must be the workers'.
        key: tells the de-identification key from others.
        stores: by modality.
    """

    token: str
    made_by: dict[str, str]
    key: str | None
    trial_bound: str | None
    segments: list[str]
    buckets: list[int]
    stores: dict[str, list[WantedStore]]


def want(layout: Layout, shared: StoreParams, buckets: Sequence[int], made_by: dict[str, str]) -> None:
    """Writes down what is to be encoded; nothing where all vectors are imported.

    Args:
        shared: of the tasks whose buckets these are: all have the same stores.
    """
    imported = shared["tied"].keys()
    stores = {
        modality: [
            WantedStore(entry=each["entry"], cut=each["cut"])
            for each in encoders
            if f"{modality}/{each['entry']['store']}" not in imported
        ]
        for modality, encoders in shared["encoders"].items()
    }
    wanted = Wanted(
        token=uuid4().hex,
        made_by=made_by,
        key=_key_of(layout),
        trial_bound=shared["trial_bound"],
        segments=[Path(path).name for path in shared["segments"]],
        buckets=list(buckets),
        stores={modality: entries for modality, entries in stores.items() if entries},
    )
    if wanted["stores"]:
        write_sealed(layout.wanted, wanted)
    else:
        wants_nothing(layout)


def _key_of(layout: Layout) -> str | None:
    """Which de-identification key the root was made with."""
    try:
        found: str | None = read_sealed(layout.settings, older=True).get("key")
    except (OSError, NotWholeError):
        return None
    return found


def wanted_of(layout: Layout) -> Wanted | None:
    """What is to be encoded; None where nothing is, or where what says so is damaged: the next run writes it anew."""
    try:
        return cast("Wanted", read_sealed(layout.wanted))
    except (OSError, NotWholeError):
        return None


def wants_nothing(layout: Layout) -> None:
    """Every vector is made."""
    layout.wanted.unlink(missing_ok=True)


def params_of(wanted: Wanted, config: RunConfig, layout: Layout, made_by: dict[str, str]) -> StoreParams:
    """What a worker needs to know, by its own configuration: raw files may lie elsewhere on its machine.

    Raises:
        TimeloomError: this worker would not make what is wanted.
    """
    if wanted["made_by"] != made_by:
        raise TimeloomError(
            "the run that wants vectors was made by another version of timeloom",
            remedy="install one version on all machines",
        )
    if wanted["key"] != _key_of(layout):
        raise TimeloomError(
            "what is wanted was written under another de-identification key", remedy="start a night, which writes it"
        )
    encoders: dict[str, list[EncoderParams]] = {}
    for modality, stores in wanted["stores"].items():
        block = config.modalities.get(modality)
        for each in stores:
            entry = EncoderEntry.model_validate(each["entry"])
            found = [encoder for encoder in block.all_encoders if encoder.called == entry.name] if block else []
            if not found:
                raise TimeloomError(
                    f"the {modality} encoder {entry.name} is wanted, and this worker's configuration has none",
                    remedy="give the workers the configuration of the nights",
                )
            made, cut = store_spec(found[0], modality).store_name, cut_for(found[0], modality)
            if (made, cut) != (entry.store, each["cut"]):
                raise TimeloomError(
                    f"the {modality} vectors are wanted as {entry.store}, and this worker would make {made}",
                    remedy=f"give modalities.{modality}.encoder the same weights, precision and batch_size: auto "
                    "follows the machine",
                )
            encoders.setdefault(modality, []).append(
                EncoderParams(config=found[0].model_dump(mode="json"), entry=each["entry"], cut=each["cut"])
            )
    return StoreParams(
        segments=[str(layout.segments / name) for name in wanted["segments"]],
        folders={name: str(block.path) for name, block in config.modalities.items()},
        root=str(layout.root),
        private=str(layout.private),
        trial_bound=wanted["trial_bound"],
        encoders=encoders,
        tied={},
    )


@dataclass(frozen=True)
class Unit:
    """A bucket of a store: what one worker fills at a time."""

    store: Store
    bucket: int
    items: pl.DataFrame

    @property
    def path(self) -> Path:
        return self.store.bucket(self.bucket)

    def lacking(self) -> int:
        """Items that have neither verdict nor vector; once all have one, those whose vector is damaged.

        Raises:
            TimeloomError: the store itself is damaged.
        """
        with undisturbed(self.path):
            known = self.store.outcomes(self.bucket, self.items)
            keys = [outcome.item_key for outcome in known if outcome.verdict == OK]
            lacking = len(self.items) - len(known)
            if lacking or not keys:
                return lacking
            reader = EmbeddingStore.open(self.path)
            return 0 if reader.has_whole(keys) else sum(not reader.has_whole([key]) for key in keys)


def units_of(params: StoreParams, buckets: Sequence[int]) -> list[Unit]:
    """All units of some buckets that an encoder fills; those of one encoder stand together."""
    found = [
        Unit(store, bucket, items)
        for bucket in sorted(buckets)
        for modality, items in usable_items(params, bucket)
        if modality in params["encoders"]
        for store in stores_of(params, modality)
        if store.tied is None
    ]
    return sorted(found, key=lambda unit: (unit.store.modality, unit.store.entry.store, unit.bucket))


@dataclass
class Standing:
    """How far the embedding is, looked at again and again.

    Attributes:
        lacking: of each store that is not done, by bucket, the items without outcome; as they were at the last look.
    """

    units: list[Unit]
    lacking: dict[Path, int] = field(default_factory=dict)
    _done: set[Path] = field(default_factory=set)
    _life: dict[Path, Any] = field(default_factory=dict)

    def look(self) -> bool:
        """Looks at what was not done when it was last looked; whether any worker has shown life since then."""
        alive = False
        for unit in self.units:
            if unit.path in self._done:
                continue
            held = holder_of(unit.path)
            if held is not None:
                alive |= self._life.get(unit.path) not in (None, held)
                self._life[unit.path] = held
                self.lacking.setdefault(unit.path, len(unit.items))
                continue
            before = self.lacking.get(unit.path)
            lacking = unit.lacking()
            alive |= before is not None and lacking < before
            self.lacking[unit.path] = lacking
            if not lacking:
                self._done.add(unit.path)
                del self.lacking[unit.path]
        return alive


def await_workers(
    units: list[Unit],
    timeout: float,
    show: Callable[[int, int], None],
    tell: Callable[[str], None],
    tell_seconds: float = 60.0,
) -> None:
    """Waits until workers of other machines have filled every unit.

    Args:
        timeout: in seconds, for a sign of life of any worker.
        show: takes how many units are done, and how many there are.
        tell: takes a line where no worker has shown life for `tell_seconds`, again and again.

    Raises:
        TimeloomError: no worker has shown life for `timeout`.
    """
    standing = Standing(units)
    silent_since = told_at = time.monotonic()
    while True:
        began = time.monotonic()
        alive = standing.look()
        show(len(units) - len(standing.lacking), len(units))
        if not standing.lacking:
            return
        now = time.monotonic()
        if alive:
            silent_since = told_at = now
        silent = now - silent_since
        if silent >= timeout:
            raise TimeloomError(
                f"no worker has shown life for {timeout:.0f} s, and {len(standing.lacking)} buckets lack vectors",
                remedy="start `timeloom embed --worker` with this configuration, and run again; it resumes",
            )
        if now - told_at >= tell_seconds:
            told_at = now
            tell(
                f"no worker has shown life for {silent:.0f} s; {len(standing.lacking)} buckets lack vectors: start "
                "`timeloom embed --worker`"
            )
        # Looking at many stores takes its time too, and holds up who writes them.
        time.sleep(max(min(LOOK_SECONDS, timeout), _TIMES_A_LOOK * (now - began)))
