"""The bound on subjects' hashes that makes a trial of a run."""

import numpy as np
import polars as pl

from warehouse.hashing import splitmix64


def within_bound(frame: pl.DataFrame, bound: str | None) -> pl.Series:
    """Whether each row's subject has a hash of at most `bound`; rows without a subject have none."""
    if bound is None:
        return pl.Series([True]).new_from_index(0, len(frame))
    subjects = frame["subject_id"]
    within = splitmix64(subjects.fill_null(0).to_numpy()) <= np.uint64(int(bound, 16))
    return pl.Series(within) & subjects.is_not_null()
