"""One fixed order of subjects, every prefix of which has the distribution of the whole.

A night's subjects stand in the ledger by stratum and by their place in the stratum's line, that is by modalities,
length and interval. In each split they are taken from that row as a van der Corput sequence does: whenever one stops,
those taken are spread evenly over it. Who comes in a later night stands behind all earlier ones.
"""

import numpy as np
import numpy.typing as npt
import polars as pl

from pipelines.splitting.ledger import Freeze
from pipelines.splitting.strata import spread
from warehouse.hashing import salt_of, splitmix64
from warehouse.schemas import SPLITS


def order_of(ledger: pl.DataFrame, freeze: Freeze) -> npt.NDArray[np.float64]:
    """The place in the order of each row (n,) of the ledger: night + a fraction below 1. It never changes for a row."""
    night = np.repeat(np.arange(len(freeze.nights), dtype=np.int64), [night_rows.rows for night_rows in freeze.nights])
    split = ledger["split"].replace_strict({name: code for code, name in enumerate(SPLITS)}, return_dtype=pl.Int64)
    group = night * len(SPLITS) + split.to_numpy()
    rows = np.argsort(group, kind="stable")
    sizes = np.bincount(group, minlength=1)
    place = np.empty(len(group), np.int64)
    place[rows] = np.arange(len(group)) - (np.cumsum(sizes) - sizes)[group[rows]]
    salt = salt_of(f"order {freeze.scheme}")
    start = splitmix64(np.arange(len(sizes)), salt).astype(np.uint32)[group]
    # 8 bits of a hash tell subjects of different splits apart; with them a double holds 4,096 nights exactly.
    ties = (splitmix64(ledger["subject_id"].to_numpy(), salt) >> np.uint64(56)).astype(np.float64) / 2**8
    return np.asarray(night + ((spread(place) ^ start) + ties) / 2**32, np.float64)
