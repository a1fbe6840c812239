"""What writers of the export share: clocks, tables, and the truth of what was planted."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from extractors.simulate.record import DAY, Image, Record, Row
from warehouse.files import atomic_write

SIGNAL = {
    "patient_id": pl.String,
    "image_kind": pl.String,
    "image_id": pl.String,
    "image_class": pl.Int64,
    "finding_code": pl.String,
    "image_time": pl.String,
    "finding_time": pl.String,
    "finding_result_time": pl.String,
    "last_image": pl.Boolean,
    "died_within_365_days": pl.Boolean,
}


@dataclass(frozen=True)
class Fault:
    """One planted fault, as truth/faults.json lists it.

    Attributes:
        expect: `verdict` (of an item), `quarantined` (the row makes nothing), `partial` (the row makes events, but a
            column of it failed), or `conflict` (every event stands and the contradiction is counted).
        reason: the verdict under the demo's configuration, the ledger's reason, or the conflict's name.
        where: files below the export, or identifiers of rows of `table`.
        geometry: what the item's geometry says besides, where the verdict is `ok`.
    """

    name: str
    what: str
    count: int
    table: str
    where: tuple[str, ...]
    expect: str
    reason: str
    geometry: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Exported:
    """What a writer of one kind of items wrote: rows of truth/signal.csv, and the faults that it planted."""

    signal: list[Row]
    faults: list[Fault]


def of_items(root: Path, name: str, what: str, paths: Sequence[Path], verdict: str, **geometry: Any) -> Fault:
    """A fault of items that lie at `paths`."""
    where = tuple(path.relative_to(root).as_posix() for path in paths)
    return Fault(name, what, len(where), "", where, "verdict", verdict, geometry)


def clock(seconds: int) -> str:
    """A time as the hospital's export prints it."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def signal_row(record: Record, image: Image) -> Row:
    """The row of truth/signal.csv for an image that was written."""
    return (
        record.patient_id,
        image.kind,
        image.image_id,
        image.image_class,
        image.finding,
        clock(image.time),
        clock(image.finding_time),
        clock(image.finding_result_time),
        image.last,
        record.death is not None and record.death - image.time <= 365 * DAY,
    )


def write_table(path: Path, frame: pl.DataFrame) -> None:
    """A CSV, with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        frame.write_csv(temporary)


def cut_short(path: Path, share: float) -> None:
    """Leaves the first `share` of a file's bytes."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
