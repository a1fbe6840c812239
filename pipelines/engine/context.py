"""What the stages of a run share, and what each one reports."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from pipelines.engine.cost import Cost
from pipelines.engine.task import Engine
from warehouse.errors import REPAIR, TimeloomError
from warehouse.layout import ReleaseLayout
from warehouse.progress import Progress

if TYPE_CHECKING:
    from warehouse.manifest import FileEntry, Manifest, TaskEntry


C = TypeVar("C")


def counts_of(entry: "TaskEntry", kind: type[C]) -> C:
    """What a task of a stage counted, as that stage's `Counts`: a key that is renamed is then an error of types."""
    return cast("C", entry.counts)


@dataclass
class StageReport:
    """What a stage did: tasks run, linked from the release before, found finished by a killed run.

    Attributes:
        workers_seconds: processor seconds that its tasks took in other processes than this one.
        cost: the whole of it, planning and looking at what was done included; without the stages that prepare it.
    """

    name: str
    ran: int = 0
    linked: int = 0
    resumed: int = 0
    workers_seconds: float = 0.0
    cost: Cost = field(default_factory=Cost)
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
    entry: "FileEntry"

    @property
    def sha256(self) -> str:
        return self.entry.sha256


@dataclass(frozen=True)
class Standing:
    """A published release."""

    manifest: "Manifest"
    path: Path

    def has_whole(self, relative: str) -> bool:
        """Whether a file is what was published; also where the release has none of that name."""
        entry = self.manifest.files.get(relative)
        return entry is None or entry.is_of(self.path / relative)

    def whole(self, relative: str) -> Path | None:
        """A file of the release, if it has one of that name and that is what was published."""
        entry, path = self.manifest.files.get(relative), self.path / relative
        return path if entry is not None and entry.is_of(path) else None

    def inherited(self, relative: str) -> Inherited | None:
        """A file of the release, if there is one."""
        entry = self.manifest.files.get(relative)
        return Inherited(self.path / relative, entry) if entry is not None else None


@dataclass
class RunContext:
    """What every stage of a run shares.

    Attributes:
        staging: `work/<run>`; `release/` below it becomes the release.
        previous: manifest and directory of the current release, or None.
        notice: takes a line for whoever watches the run.
        older: what a repair may take from where a file of the current release is damaged and cannot be made again, the
            latest release first; None in a night, which stops there.
        taken: by such a file, the release that it was taken from; None where no release has it whole, so that what it
            held is drawn anew.
        whole: files of the current release that were found to be what was published.
        unsound: tasks that left something outside the release, as vectors in a store, which is gone or damaged.
    """

    engine: Engine
    staging: Path
    previous: "Manifest | None"
    previous_path: Path | None
    progress: Progress | None = None
    notice: Callable[[str], None] | None = None
    older: "Sequence[Standing] | None" = None
    taken: dict[str, str | None] = field(default_factory=dict)
    whole: set[str] = field(default_factory=set)
    unsound: list[str] = field(default_factory=list)

    @property
    def former_tree(self) -> ReleaseLayout | None:
        """The current release, whose files may be damaged."""
        return ReleaseLayout(self.previous_path) if self.previous_path is not None else None

    @property
    def damaged(self) -> list[str]:
        """Files of the current release that are not what they were, so that a whole release must replace it."""
        try:
            return sorted(set(self._damage.read_text(encoding="utf-8").splitlines()))
        except FileNotFoundError:
            return []

    def note_damage(self, relative: str) -> None:
        """Remembers a damaged file in the run's folder: a run that takes over must know too."""
        with self._damage.open("a", encoding="utf-8") as file:
            file.write(f"{relative}\n")

    @property
    def _damage(self) -> Path:
        return self.staging / "damaged"

    def inherited(self, *relatives: Path) -> list[Inherited | None]:
        """Files of the release before that this run's continue, all of one release; None for each that it has not.

        Raises:
            TimeloomError: one of them is not what was published, and this is no repair.
        """
        if self.previous is None or self.previous_path is None:
            return [None] * len(relatives)
        names = [str(relative) for relative in relatives]
        current = Standing(self.previous, self.previous_path)
        damaged = [name for name in names if not current.has_whole(name)]
        if not damaged:
            self.whole.update(self.previous.files.keys() & names)
            return [current.inherited(name) for name in names]
        if self.older is None:
            raise TimeloomError(f"{damaged[0]} of the current release is damaged", remedy=REPAIR)
        lender = next((release for release in self.older if all(map(release.has_whole, names))), None)
        for name in names:
            self.taken[name] = lender.manifest.release_id if lender else None
        return [lender.inherited(name) if lender else None for name in names]
