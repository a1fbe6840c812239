"""A trial: a run on a few subjects, those with the smallest hashes."""

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from warehouse.hashing import splitmix64

if TYPE_CHECKING:
    import polars as pl


def within_limit(frame: pl.DataFrame, limit: str | None) -> pl.Series:
    """Whether each row's subject has a hash of at most `limit`; rows without a subject have none."""
    if limit is None:
        return pl.Series([True]).new_from_index(0, len(frame))
    subjects = frame["subject_id"]
    within = splitmix64(subjects.fill_null(0).to_numpy()) <= np.uint64(int(limit, 16))
    return pl.Series(within) & subjects.is_not_null()


def trial_bound(subjects: "pl.Series", number: int) -> str:
    """The hash of the last of that many subjects, in the order of their hashes."""
    hashes = sorted(splitmix64(subjects.to_numpy()).tolist())
    return f"{hashes[min(number, len(hashes)) - 1]:016x}" if hashes else "0"
