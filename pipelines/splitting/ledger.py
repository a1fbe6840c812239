"""The ledger of a split scheme: append-only, and checksummed over its rows, each night's chained to the one before."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from warehouse.errors import TimeloomError
from warehouse.files import write_json
from warehouse.hashing import salt_of
from warehouse.parquet import empty_frame
from warehouse.schemas import SPLIT_LEDGER

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
        strata: how many subjects each stratum had when it was first seen.
        nights: runs that appended rows, the first one being the freeze itself.
    """

    scheme: str
    fractions: dict[str, float]
    edges: dict[str, list[float]]
    strata: dict[str, int] = field(default_factory=dict)
    nights: list[Night] = field(default_factory=list)

    @property
    def sha256(self) -> str:
        """The checksum of the whole ledger; empty without rows."""
        return self.nights[-1].sha256 if self.nights else ""

    def append(self, rows: pl.DataFrame) -> None:
        """Notes the rows that a run appends, if any."""
        if not rows.is_empty():
            self.nights.append(Night(len(rows), checksum(self.sha256, encoded(rows))))

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


def encoded(rows: pl.DataFrame) -> npt.NDArray[np.int64]:
    """Rows of SPLIT_LEDGER as numbers (n, 4): id, place, and hashes of split and stratum."""

    def hashed(texts: pl.Series) -> pl.Series:
        distinct = texts.unique()
        numbers = pl.Series([salt_of(text) >> 1 for text in distinct.to_list()], dtype=pl.Int64)
        return texts.replace_strict(distinct, numbers, return_dtype=pl.Int64)

    columns = [rows["subject_id"], rows["ordinal"], hashed(rows["split"]), hashed(rows["stratum"])]
    return np.stack([column.to_numpy() for column in columns], axis=1).astype("<i8", order="C")


def checksum(before: str, rows: npt.NDArray[np.int64]) -> str:
    """SHA-256 over the checksum before and encoded rows, in their order."""
    return hashlib.sha256(before.encode() + rows.tobytes()).hexdigest()


def is_whole(ledger: pl.DataFrame, freeze: Freeze) -> bool:
    """Whether the ledger holds the very rows that runs have appended, in their order."""
    if sum(night.rows for night in freeze.nights) != len(ledger):
        return False
    rows = encoded(ledger)
    start, before = 0, ""
    for night in freeze.nights:
        before = checksum(before, rows[start : start + night.rows])
        if before != night.sha256:
            return False
        start += night.rows
    return True


def no_ledger() -> pl.DataFrame:
    """The ledger before the first run."""
    return empty_frame(SPLIT_LEDGER)
