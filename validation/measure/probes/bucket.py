"""Whether histories and features of labels hold what was not available at their prediction times.

Both are made as readers make them, and held against the events themselves by other means: what became known when is
read, sorted and counted anew.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa

from validation.measure.measures import Measures
from validation.measure.probes.features import Counting, features_ahead
from validation.measure.probes.histories import Makers, histories_ahead
from validation.measure.probes.known import Asked, Known
from validation.measure.reading import gather, unreadable
from warehouse.arrays import Bools
from warehouse.layout import ReleaseLayout
from warehouse.manifest import LabelsEntry, ProfileEntry
from warehouse.parquet import read_frame
from warehouse.readers.tasks.labels import check_clock
from warehouse.schemas import LABELS

# A row for features by each clock, and for the histories of each profile: labels of one subject and moment are one row.
PROBED = {"of": pl.String, "rows": pl.Int64, "ahead": pl.Int64}
_FEATURES, _HISTORIES = "features by {}", "histories of {}"
_KEYS = ["subject_id", "prediction_time"]


class Probed(NamedTuple):
    """A token profile as far as histories depend on it.

    Attributes:
        order: by which time its tokens stand.
        unknown: attributes that stand as unknown where no value does.
    """

    order: str
    unknown: tuple[str, ...]


def measure_probes(
    profiles: Mapping[str, ProfileEntry], tasks: Mapping[str, LabelsEntry], measures: Measures
) -> pl.DataFrame:
    """A row for features by each clock of the tasks, and for histories of each profile that stands by such a clock.

    Columns: of; rows, the labels that were looked at; ahead, those of them with a fault.

    Raises:
        TimeloomError: a file is damaged.
    """
    clocks = {str(task.rules["clock"]) for task in tasks.values()}
    names = [
        name
        for clock in sorted(clocks)
        for name in (_FEATURES.format(clock), *map(_HISTORIES.format, _of_clock(profiles, clock)))
    ]
    counted = measures.counted("probes", ["rows", "ahead"], of="of")
    wanted = pl.DataFrame({"of": names}, schema={"of": pl.String})
    return wanted.join(counted, on="of", how="left", maintain_order="left").with_columns(pl.col(pl.Int64).fill_null(0))


def _of_clock(profiles: Mapping[str, Probed | ProfileEntry], clock: str) -> list[str]:
    return [name for name, profile in profiles.items() if profile.order == clock]


def probe_bucket(
    tree: ReleaseLayout, bucket: int, profiles: Mapping[str, Probed], clocks: Mapping[str, str]
) -> pl.DataFrame:
    """The rows of one bucket, PROBED.

    Args:
        clocks: by task, the time of events that its predictions are made at.

    Raises:
        TimeloomError: a file is damaged.
    """
    rows: list[tuple[str, int, int]] = []
    for clock in sorted(set(clocks.values())):
        files = [tree.labels(name, bucket) for name in clocks if clocks[name] == clock]
        labels = gather(files, LABELS, _KEYS).unique().sort(_KEYS)
        if labels.is_empty():
            continue
        codes, asked = _codes(tree), Asked.of(labels)
        known = Known.read(tree, bucket, np.unique(asked.subject), check_clock(clock), codes.arrow)
        rows.append(_row(_FEATURES.format(clock), features_ahead(tree, bucket, asked, known, codes.counting)))
        for name in _of_clock(profiles, clock):
            makers = makers_of(tree, name, profiles[name].unknown)
            ahead = histories_ahead(tree, bucket, name, asked, known, makers)
            rows.append(_row(_HISTORIES.format(name), ahead))
    return pl.DataFrame(rows, schema=PROBED, orient="row")


def _row(what: str, ahead: Bools) -> tuple[str, int, int]:
    return what, len(ahead), int(ahead.sum())


@dataclass(frozen=True)
class _Codes:
    """Every code of a release once, in order; `described` with its parents."""

    described: pl.DataFrame
    arrow: pa.Array
    counting: Counting


def _stated(path: Path) -> tuple[Path, int, int]:
    """A file, and what the file system says of it: what is remembered of it is of no other one."""
    stat = path.stat()
    return path, stat.st_ino, stat.st_mtime_ns


def _codes(tree: ReleaseLayout) -> _Codes:
    """Worked out once by a process, for all buckets."""
    try:
        return _read_codes(_stated(tree.codes))
    except OSError as error:
        raise unreadable(tree.codes) from error


@lru_cache(maxsize=1)
def _read_codes(stated: tuple[Path, int, int]) -> _Codes:
    described = read_frame(stated[0]).select("code", "parent_codes").unique("code").sort("code")
    return _Codes(described, described["code"].to_arrow(), Counting.of(described["code"]))


def makers_of(tree: ReleaseLayout, name: str, unknown: tuple[str, ...]) -> Makers:
    """What the tokens of a profile can come from; worked out once by a process, for all buckets.

    Args:
        unknown: attributes that stand as unknown where no value does.

    Raises:
        TimeloomError: the vocabulary or the codes are damaged.
    """
    try:
        return _read_makers(_stated(tree.vocabulary(name)), _stated(tree.codes), unknown)
    except OSError as error:
        raise unreadable(tree.vocabulary(name)) from error


@lru_cache(maxsize=8)
def _read_makers(vocabulary: tuple[Path, int, int], codes: tuple[Path, int, int], unknown: tuple[str, ...]) -> Makers:
    return Makers.of(read_frame(vocabulary[0]), _read_codes(codes).described, unknown)
