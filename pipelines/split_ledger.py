"""The ledger of a split scheme: append-only, and checksummed over its rows, each night's chained to the one before."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from warehouse.errors import TimeloomError
from warehouse.files import write_json
from warehouse.schemas import SPLIT_LEDGER, SPLITS, empty_frame

REMEDY = "point `current` at an older release; a ledger is never edited"
INHERITED = "inherited"  # the stratum of subjects that took the split of one they were merged with


@dataclass(frozen=True)
class Night:
    """Rows that one run appended, and the checksum of the ledger up to them."""

    rows: int
    sha256: str


@dataclass
class Freeze:
    """What was decided when a scheme was first used, and what was appended since: freeze.json.

    Attributes:
        fractions: of train, tuning and held_out.
        edges: of length and of mean interval, between strata.
        strata: per stratum its `size` when first seen, and its `phases` (pipelines.quota).
        nights: runs that appended rows, the first one being the freeze itself.
    """

    scheme: str
    fractions: dict[str, float]
    edges: dict[str, list[float]]
    strata: dict[str, dict[str, Any]] = field(default_factory=dict)
    nights: list[Night] = field(default_factory=list)

    @property
    def sha256(self) -> str:
        """The checksum of the whole ledger; empty without rows."""
        return self.nights[-1].sha256 if self.nights else ""

    def append(self, rows: pl.DataFrame) -> None:
        """Notes the rows that a run appends, if any."""
        if not rows.is_empty():
            self.nights.append(Night(len(rows), checksum(self.sha256, rows)))

    def write(self, path: Path) -> None:
        write_json(path, asdict(self) | {"sha256": self.sha256})


def read_freeze(path: Path) -> Freeze:
    """Reads freeze.json.

    Raises:
        TimeloomError: it is missing, or is no freeze.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        raw.pop("sha256")
        nights = [Night(**night) for night in raw.pop("nights")]
        return Freeze(**raw, nights=nights)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise TimeloomError(f"splits/{path.parent.name}/freeze.json cannot be read", remedy=REMEDY) from error


def checksum(before: str, rows: pl.DataFrame) -> str:
    """SHA-256 over the checksum before and rows of SPLIT_LEDGER, in their order."""
    digest = hashlib.sha256(before.encode())
    texts = rows.select("split", "stratum")
    for column in texts.columns:
        names = texts[column].unique().sort()
        digest.update(json.dumps(names.to_list()).encode())
        digest.update(texts[column].cast(pl.Enum(names)).to_physical().to_numpy().astype("<u4").tobytes())
    for column in ("subject_id", "ordinal"):
        digest.update(np.ascontiguousarray(rows[column].to_numpy(), dtype="<i8").tobytes())
    return digest.hexdigest()


def is_whole(ledger: pl.DataFrame, freeze: Freeze) -> bool:
    """Whether the ledger holds the very rows that runs have appended, in their order."""
    if sum(night.rows for night in freeze.nights) != len(ledger) or not ledger["split"].is_in(list(SPLITS)).all():
        return False
    start, before = 0, ""
    for night in freeze.nights:
        before = checksum(before, ledger[start : start + night.rows])
        if before != night.sha256:
            return False
        start += night.rows
    return True


def no_ledger() -> pl.DataFrame:
    """The ledger before the first run."""
    return empty_frame(SPLIT_LEDGER)
