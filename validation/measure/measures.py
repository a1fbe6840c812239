"""What the stage `measure` left in a release, or what was measured anew beside it: the sum of it is judged."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl

from validation.measure.reading import gather
from validation.measure.tally import added_up, counted
from warehouse.errors import TimeloomError
from warehouse.layout import ReleaseLayout
from warehouse.schemas import MEASURES


@dataclass(frozen=True)
class Measures:
    """Aggregates of a release.

    Attributes:
        place: the tree that has them below `measures/`.
        failed: by area, why it could not be measured; whoever asks for it gets that error.
        folder: that `place` lies in, where it goes with this object.
    """

    place: ReleaseLayout
    failed: Mapping[str, TimeloomError] = field(default_factory=dict)
    folder: "TemporaryDirectory[str] | None" = None

    def of(self, area: str, *folders: str) -> pl.DataFrame:
        """The rows of an area's files, below one another.

        Args:
            area: a key of MEASURES.
            folders: below the area's: a profile, or a plan and a split.

        Raises:
            TimeloomError: a file is damaged, or what it is measured of is.
        """
        if area in self.failed:
            raise self.failed[area]
        folder = self.place.measures(area, *folders, "*").parent
        return gather(sorted(folder.glob("*.parquet")), MEASURES[area], MEASURES[area].names)

    @cached_property
    def counts(self) -> pl.DataFrame:
        """`counts` of all buckets, added up."""
        return added_up([self.of("counts")])

    def counted(self, area: str, columns: list[str] | tuple[str, ...], **named: str) -> pl.DataFrame:
        """Numbers of `counts` as a frame; see `validation.measure.tally.counted`."""
        return counted(self.counts, area, columns, **named)


def differences(stored: Measures, anew: Measures) -> list[str]:
    """The files of `measures/` that are missing, that should not be there, or that hold something else.

    Sums of hashes are left out: they are those of the polars that made them.

    Args:
        anew: measured of the same files. What could not be measured is not compared.
    """
    roots = [measures.place.measured for measures in (stored, anew)]
    names = [{path.relative_to(root) for path in root.rglob("*.parquet")} for root in roots]
    wanted = [name for name in sorted(names[0] | names[1]) if name.parts[0] not in anew.failed]
    return [f"measures/{name}" for name in wanted if not (name in names[0] & names[1] and _alike(name, *roots))]


def _alike(name: Path, stored: Path, anew: Path) -> bool:
    area = name.parts[0]
    if area not in MEASURES:
        return False
    columns = [column for column in MEASURES[area].names if column != "sum"]
    found = [gather([root / name], MEASURES[area], columns) for root in (stored, anew)]
    return found[0].equals(found[1])
