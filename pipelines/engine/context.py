"""What the stages of a run share, and what each one reports."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from pipelines.engine.task import Engine
from warehouse.progress import Progress

if TYPE_CHECKING:
    from warehouse.manifest import Manifest, TaskEntry


C = TypeVar("C")


def counts_of(entry: "TaskEntry", kind: type[C]) -> C:
    """What a task of a stage counted, as that stage's `Counts`: a key that is renamed is then an error of types."""
    return cast("C", entry.counts)


@dataclass
class StageReport:
    """What a stage did: tasks run, linked from the release before, found finished by a killed run."""

    name: str
    ran: int = 0
    linked: int = 0
    resumed: int = 0
    entries: "dict[str, TaskEntry]" = field(default_factory=dict)

    def total(self, name: str) -> int:
        """The sum of a count over all tasks."""
        return sum(int(entry.counts.get(name, 0)) for entry in self.entries.values())

    def hashes(self) -> dict[str, str]:
        """File to content hash, over all tasks."""
        return {path: file.sha256 for entry in self.entries.values() for path, file in entry.files.items()}


@dataclass(frozen=True)
class Inherited:
    """A file of the release before, which this run's continues."""

    path: Path
    sha256: str


@dataclass
class RunContext:
    """What every stage of a run shares.

    Attributes:
        staging: `work/<run>`; `release/` below it becomes the release.
        previous: manifest and directory of the current release, or None.
    """

    engine: Engine
    staging: Path
    previous: "Manifest | None"
    previous_path: Path | None
    progress: Progress | None = None

    @property
    def damaged(self) -> bool:
        """Whether a file of the current release is not what it was, so that a whole release must replace it."""
        return self._damage.exists()

    def note_damage(self) -> None:
        """Remembers it in the run's folder: a run that takes over must know too."""
        self._damage.touch()

    @property
    def _damage(self) -> Path:
        return self.staging / "damaged"

    def inherited(self, relative: Path) -> Inherited | None:
        """A file of the release before, if there is one."""
        if self.previous is None or self.previous_path is None or str(relative) not in self.previous.files:
            return None
        return Inherited(self.previous_path / relative, self.previous.files[str(relative)].sha256)
