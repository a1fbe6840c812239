"""Vectors ahead of a night, and workers of machines that share a root: what `timeloom embed` and the flow do."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flows.runs.paths import root_of
from flows.runs.root import bind_root, is_used, read_root, with_numbers
from flows.runs.run import open_run
from flows.runs.settings import RunSettings
from pipelines.config import RunConfig, load_config
from pipelines.dealing import LOOK_SECONDS, Unit, params_of, units_of, wanted_of
from pipelines.encode import described
from pipelines.engine.parcel import code_here
from pipelines.filling import Filler
from warehouse.errors import TimeloomError
from warehouse.layout import Layout
from warehouse.progress import Progress

if TYPE_CHECKING:
    from embedders.running.rates import RunFigures

# The stage after which everything that a GPU does is done.
ENCODED = "embed"


def embed_ahead(settings: RunSettings, progress: Progress | None) -> None:
    """Indexes tables and images and makes the vectors; publishes nothing. The next night goes on from there.

    Raises:
        TimeloomError: as a night's stages do; RootBusyError where another run is at work on the root.
    """
    with open_run(settings, progress, encodes=True) as run:
        for name, step in run.steps:
            run.carry_out(name, step)
            if name == ENCODED:
                return


@dataclass
class Worked:
    """What a worker did."""

    items: int = 0
    units: int = 0
    resumed_units: int = 0

    def add(self, figures: "RunFigures") -> None:
        self.items += figures.items
        self.units += figures.units
        self.resumed_units += figures.resumed_units

    def line(self) -> str:
        """The same in words."""
        resumed = f", {self.resumed_units} more taken over from workers that ended" if self.resumed_units else ""
        return f"{self.items} items, {self.units} units encoded{resumed}"


def work(
    settings: RunSettings,
    say: Callable[[str], None],
    *,
    idle_seconds: float | None = None,
    gpu: int | None = None,
) -> Worked:
    """Fills the buckets that runs of a root want, under leases, beside any number of other workers.

    Args:
        say: takes a line for each piece of work.
        idle_seconds: ends after so long without work; None goes on until it is stopped.
        gpu: the number of the GPU; the first one where None. On the CPU it says nothing.

    Raises:
        TimeloomError: this worker's version, key, weights or configuration are others than those of the run that wants
            the vectors; a lease is lost; or as `embed_buckets`.
    """
    config = load_config(settings.config)
    layout = Layout(root_of(config, settings.root))
    base = settings.config.parent.resolve()
    worked, idle_since = Worked(), time.monotonic()
    filler: Filler | None = None
    served = ""
    while True:
        wanted = wanted_of(layout)
        if wanted is not None and wanted["token"] != served:
            _check_root(config, base, layout)
            params = params_of(wanted, config, layout, code_here())
            units = units_of(params, wanted["buckets"])
            filler = Filler(params, units, _embedding(config, units), _device(config, gpu))
            served = wanted["token"]
            say(f"{len(units)} buckets of {len({unit.store.folder for unit in units})} stores are wanted")
        elif wanted is None:
            filler, served = None, ""
        if filler is not None and not filler.is_done:
            idle_since = time.monotonic()
            _fill(filler, layout, served, worked, say)
            if not filler.is_done:  # other workers have the rest
                time.sleep(LOOK_SECONDS)
            continue
        if idle_seconds is not None and time.monotonic() - idle_since >= idle_seconds:
            return worked
        time.sleep(min(LOOK_SECONDS, idle_seconds) if idle_seconds else LOOK_SECONDS)


def _fill(filler: Filler, layout: Layout, served: str, worked: Worked, say: Callable[[str], None]) -> None:
    """One pass over the units that are free, for as long as they are what is wanted."""

    def goes_on() -> bool:
        wanted = wanted_of(layout)
        return wanted is not None and wanted["token"] == served

    try:
        figures = filler.fill_free(goes_on)
    except FileNotFoundError:
        if goes_on():
            raise TimeloomError(
                "this machine lacks files that the wanted vectors are made of",
                remedy="mount the root, and the private folder beside it, where the run has them",
            ) from None
        return  # what it was made of went with the run that wanted it
    worked.add(figures)
    if figures.items:
        say(described({"worker": "", **figures.counts(), "imported": []}).removeprefix("worker : "))


def _check_root(config: RunConfig, base: Path, layout: Layout) -> None:
    """Refuses a worker whose configuration or key are others than the root's."""
    if not layout.settings.is_file() and not is_used(layout):
        raise TimeloomError(f"no run has begun in {layout.root.name}", "start a night")
    fixed = read_root(layout)
    bind_root(layout, with_numbers(config, base, layout), fixed["limit"], new=False)


def _device(config: RunConfig, gpu: int | None) -> int | None:
    encoders = [encoder for block in config.modalities.values() for encoder in block.all_encoders]
    return (gpu or 0) if any(encoder.device_kind == "cuda" for encoder in encoders) else None


def _embedding(config: RunConfig, units: list[Unit]) -> dict[str, object]:
    """How this machine encodes; it serves one worker alone, as far as the configuration does not say otherwise."""
    embedding = config.embedding.model_dump(mode="json")
    if embedding["decoders"] is None:
        cuda = any(unit.store.config.device_kind == "cuda" for unit in units)
        embedding["decoders"] = max(1, len(os.sched_getaffinity(0)) - 1) if cuda else 0
    return embedding
