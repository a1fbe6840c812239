"""What a person asks for: a root, an engine, how many processes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from flows.extras import require
from pipelines.engine.beam import DASK, BeamEngine
from pipelines.engine.local import LocalEngine
from pipelines.engine.task import Engine
from pipelines.engine.workers import keep_memory
from warehouse.errors import TimeloomError

if TYPE_CHECKING:
    from pipelines.config import RunConfig

# In the environment of the processes of `timeloom serve`: each says in plain lines how its night ended.
SERVED = "TIMELOOM_SERVED"


@dataclass(frozen=True)
class RunSettings:
    """A run as asked for on a command line or by a deployment.

    Attributes:
        wait: for another run of the root to end; else this one is refused.
    """

    config: Path
    root: Path | None = None
    engine: str = "local"
    runner: str = "FnApiRunner"
    workers: int | None = None
    limit: int | None = None
    accept_loss: tuple[str, ...] = ()
    rehash: bool = False
    beam_options: tuple[str, ...] = ()
    wait: bool = False


def make_engine(settings: RunSettings, config: "RunConfig") -> Engine:
    """The engine by name.

    Raises:
        TimeloomError: unknown.
    """
    workers = settings.workers or config.workers
    if settings.engine == "local":
        return LocalEngine(workers)
    if settings.engine == "beam":
        require("beam", "runs on Beam")
        if settings.runner == DASK:
            require("dask", "runs on Dask")
        return BeamEngine(settings.runner, workers or 1, settings.beam_options)
    raise TimeloomError(f"there is no engine {settings.engine}", remedy="use local or beam")


@contextmanager
def engine_ahead(settings: RunSettings, modules: Sequence[str]) -> Iterator[LocalEngine | None]:
    """The local engine with its workers under way, before the configuration is understood; None for another engine.

    This process is one of the workers: what it imports before this has threads of its own.

    Args:
        modules: what workers import meanwhile.
    """
    if settings.engine != "local":
        yield None
        return
    with LocalEngine(
        settings.workers or _workers_named(settings.config), in_this_process=True, modules=modules
    ) as engine:
        engine.start()
        keep_memory()
        yield engine


def _workers_named(config: Path) -> int | None:
    """The workers that a configuration asks for, if it can be read; what is wrong with it is said when it is loaded."""
    try:
        named = int(yaml.safe_load(config.read_text(encoding="utf-8"))["workers"])
    except (OSError, ValueError, LookupError, TypeError, OverflowError, yaml.YAMLError):
        return None
    return named if named > 0 else None
