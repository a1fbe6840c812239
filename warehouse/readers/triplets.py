"""Triplets of images, text and record, and negatives for contrastive losses: of other subjects of the same split."""

import numpy as np
import polars as pl

from warehouse.arrays import I64
from warehouse.errors import TimeloomError
from warehouse.readers.pinned import PinnedRelease, check_split
from warehouse.schemas import FUNNEL, TRIPLETS


class Triplets:
    """The triplets of a release.

    Raises:
        TimeloomError: the release has none.
    """

    def __init__(self, release: PinnedRelease) -> None:
        if release.manifest.triplets is None:
            raise TimeloomError("the release has no triplets", remedy="give `triplets: {}` in the configuration")
        self._release = release

    def frame(self, split: str | None = None, *, every: bool = False) -> pl.DataFrame:
        """Triplets (warehouse.schemas.TRIPLETS) of one split or all, a subject's together.

        Args:
            every: those that are set aside too.

        Raises:
            TimeloomError: there is no such split, or a file of the release is gone or damaged.
        """
        files, buckets = self._release.files, range(self._release.manifest.buckets)
        found = pl.read_parquet(self._release.checked_all(map(files.triplets, buckets))).select(TRIPLETS.names)
        if split is not None:
            found = found.filter(pl.col("split") == check_split(split))
        return found if every else found.filter(pl.col("set_aside").is_null())

    def funnel(self) -> pl.DataFrame:
        """What became of images, studies, texts and subjects: source, step, rule, number.

        Raises:
            TimeloomError: a file of the release is gone or damaged.
        """
        files, buckets = self._release.files, range(self._release.manifest.buckets)
        found = pl.read_parquet(self._release.checked_all(map(files.funnel, buckets)))
        return found.group_by(FUNNEL.names[:3]).agg(pl.col("number").sum()).sort(FUNNEL.names[:3])

    @staticmethod
    def negatives(triplets: pl.DataFrame, number: int, seed: int) -> I64:
        """For each triplet (n,) the rows (n, number) of triplets of other subjects of its split, with replacement.

        The same seed and triplets give the same rows.

        Args:
            triplets: columns `subject_id` and `split`, in any order.

        Raises:
            TimeloomError: a split has triplets of one subject alone.
        """
        if triplets.is_empty():
            return np.empty((0, number), np.int64)
        placed = triplets.select("subject_id", "split").with_row_index("place").sort("split", "subject_id", "place")
        split = placed["split"].rle_id().to_numpy().astype(np.int64)
        subject = placed.select(pl.struct("split", "subject_id").rle_id()).to_series().to_numpy().astype(np.int64)
        begins, first = (np.unique(of, return_index=True)[1] for of in (split, subject))
        of_subject = np.bincount(subject)[subject]
        others = np.bincount(split)[split] - of_subject
        if others.min() == 0:
            raise TimeloomError(
                "a split has triplets of one subject, who has no negatives",
                remedy="leave that split out, or add subjects",
            )
        drawn: I64 = (np.random.default_rng(seed).random((len(placed), number)) * others[:, None]).astype(np.int64)
        # The subject's own rows are stepped over.
        before = (first[subject] - begins[split])[:, None]
        drawn += np.where(drawn >= before, of_subject[:, None], 0)
        place = placed["place"].to_numpy().astype(np.int64)
        rows = np.empty_like(drawn)
        rows[place] = place[begins[split][:, None] + drawn]
        return rows
