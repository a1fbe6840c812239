"""What a person asks for: a root, an engine, how many processes."""

from dataclasses import dataclass
from pathlib import Path

from pipelines.config import RunConfig
from pipelines.engine import BeamEngine, Engine, LocalEngine
from warehouse.errors import TimeloomError


@dataclass(frozen=True)
class RunSettings:
    """A run as asked for on a command line or by a deployment."""

    config: Path
    root: Path | None = None
    engine: str = "local"
    runner: str = "FnApiRunner"
    workers: int | None = None
    limit: int | None = None


def root_of(config: RunConfig, root: Path | None) -> Path:
    """The warehouse's folder.

    Raises:
        TimeloomError: neither the command nor the configuration names one.
    """
    chosen = root or config.root
    if chosen is None:
        raise TimeloomError("no root was given", remedy="use --root, or `root:` in the configuration")
    return chosen.expanduser().resolve()


def make_engine(settings: RunSettings, config: RunConfig) -> Engine:
    """The engine by name.

    Raises:
        TimeloomError: unknown.
    """
    workers = settings.workers or config.workers
    if settings.engine == "local":
        return LocalEngine(workers)
    if settings.engine == "beam":
        return BeamEngine(settings.runner, workers or 1)
    raise TimeloomError(f"there is no engine {settings.engine}", remedy="use local or beam")
