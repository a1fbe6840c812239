"""Whether values are Hounsfield units, as far as the values tell; jumps between slices; what a volume looks like.

A DICOM header says what its values are. A NIfTI says a slope at best, and sets are published whose values are the
scanner's stored ones, or were rescaled twice. Nothing is rescaled because of its size: what is implausible is refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

AIR_HU = -1024.0
FAR_BELOW_AIR = -1500.0  # no matter is as thin: padding, as -2000, -3024 and -8192

Pixels = npt.NDArray[np.float32]

SOFT = (-200.0, 300.0)  # fat, water, soft tissue, blood with contrast
LEAST_SOFT = 0.02
THIN = (-1100.0, -20.0)  # air, lung, fat
LEAST_THIN = 0.005
DENSE = 4000.0
MOST_DENSE = 0.05
MOST_SPREAD_BELOW = 0.1  # of all values, those far below air that are not the padding's one value
_DEEPEST = 40_000  # HU further below; 16 bits hold no more
_STEP = 2  # of rows and columns, one in so many is looked at
FIELDS = 8  # along each axis
NEAR_HU = 12.0
_GREY_HU = 8.0
_MOST_HU = 1000.0
_EXTENT_SHARE = 0.1
JUMP, LEAST_JUMP_HU = 4.0, 15.0  # times the middle difference of neighbours, and at least


def without_padding(slices: Pixels) -> Pixels:
    """Slices (n, rows, columns) in which what is far below air became air, in place: no mean and no filter sees it."""
    for plane in slices:
        if plane.min() < FAR_BELOW_AIR:
            np.putmask(plane, plane < FAR_BELOW_AIR, np.float32(AIR_HU))
    return slices


@dataclass
class Measures:
    """What is counted of a volume while its slices pass, from feet to head.

    Attributes:
        values: looked at.
        soft, thin, dense, below: how many of them are soft tissue, thinner, denser than any bone, and far below air.
        depths: of the latter, how many lie so many whole HU below.
        least, most: of all of them that are not far below air.
        grey: means of FIELDS x FIELDS fields, of each slice.
        differences: between neighbours, mean HU.
    """

    values: int = 0
    soft: int = 0
    thin: int = 0
    dense: int = 0
    below: int = 0
    depths: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(_DEEPEST + 1, np.int64))
    least: float = float("inf")
    most: float = float("-inf")
    grey: list[npt.NDArray[np.float64]] = field(default_factory=list)
    differences: list[float] = field(default_factory=list)
    _last: Pixels | None = None

    def add(self, slices: Pixels) -> None:
        """Counts some slices (n, rows, columns), before padding is taken out."""
        sparse = slices[:, ::_STEP, ::_STEP]
        far = sparse < FAR_BELOW_AIR
        self.values += sparse.size
        below = sparse[far]
        self.below += below.size
        depth = np.minimum(FAR_BELOW_AIR - below, _DEEPEST).astype(np.int64)
        self.depths += np.bincount(depth, minlength=_DEEPEST + 1)
        self.soft += int(np.count_nonzero((sparse >= SOFT[0]) & (sparse <= SOFT[1])))
        self.thin += int(np.count_nonzero((sparse >= THIN[0]) & (sparse <= THIN[1])))
        self.dense += int(np.count_nonzero(sparse > DENSE))
        if below.size < sparse.size:
            inside = sparse[~far] if below.size else sparse
            self.least, self.most = min(self.least, float(inside.min())), max(self.most, float(inside.max()))
        seen = np.clip(sparse, AIR_HU, _MOST_HU)
        self.grey += list(_fields(seen))
        with_last = seen if self._last is None else np.concatenate([self._last[None], seen])
        self.differences += np.abs(np.diff(with_last, axis=0)).mean(axis=(1, 2), dtype=np.float64).tolist()
        self._last = seen[-1].copy()

    @property
    def shares(self) -> dict[str, float]:
        """Shares of the values that were looked at."""
        counted = {"soft": self.soft, "thin": self.thin, "dense": self.dense, "padded": self.below}
        return {name: round(number / max(1, self.values), 4) for name, number in counted.items()}

    @property
    def verdict(self) -> str:
        """ok, refused_not_hu, or failed_blank where there is one value, or padding alone."""
        inside = self.values - self.below
        spread = self.below - int(self.depths.max())
        if self.most <= self.least and spread == 0:
            return "failed_blank"
        plausible = (
            self.soft >= LEAST_SOFT * inside
            and self.thin >= LEAST_THIN * inside
            and self.dense <= MOST_DENSE * inside
            and spread <= MOST_SPREAD_BELOW * self.values
        )
        return "ok" if plausible else "refused_not_hu"

    @property
    def jumps(self) -> int:
        """How many neighbours differ as slices do between which others are missing."""
        if not self.differences:
            return 0
        differences = np.array(self.differences)
        return int((differences > max(LEAST_JUMP_HU, JUMP * float(np.median(differences)))).sum())

    @property
    def outline(self) -> str:
        """Means of FIELDS x FIELDS x FIELDS fields of the volume in hex; empty where it has too few slices."""
        if len(self.grey) < FIELDS:
            return ""
        starts, lengths = _cuts(len(self.grey))
        means = np.add.reduceat(np.stack(self.grey), starts, axis=0) / lengths[:, None, None]
        return np.rint((means - AIR_HU) / _GREY_HU).clip(0, 255).astype(np.uint8).tobytes().hex()


def _fields(slices: Pixels) -> npt.NDArray[np.float64]:
    """Means of fields of slices (n, FIELDS, FIELDS); of smaller slices as many fields as there are pixels."""
    (rows, heights), (columns, widths) = _cuts(slices.shape[1]), _cuts(slices.shape[2])
    sums = np.add.reduceat(np.add.reduceat(slices, columns, axis=2, dtype=np.float64), rows, axis=1)
    means: npt.NDArray[np.float64] = sums / (heights[:, None] * widths[None, :])
    return means


def _cuts(length: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Where fields along an axis start, and how long they are."""
    ends = np.linspace(0, length, min(FIELDS, length) + 1).astype(np.int64)
    return ends[:-1], np.diff(ends)


def near_copies(outlines: Sequence[str], extents: Sequence[Sequence[float]]) -> list[int]:
    """Of each volume, how many of the others look like it and are as large.

    Args:
        outlines: of `Measures`; an empty one is near none.
        extents: in mm, along three axes.
    """
    counts = [0] * len(outlines)
    whole = max((len(text) for text in outlines), default=0)
    places = [place for place, text in enumerate(outlines) if text and len(text) == whole]
    if len(places) < 2:
        return counts
    grey = np.array([np.frombuffer(bytes.fromhex(outlines[place]), np.uint8) for place in places], dtype=np.int16)
    sizes = np.array([extents[place] for place in places], dtype=np.float64)
    for start in range(len(places)):
        alike: Any = np.abs(sizes - sizes[start]).max(axis=1) <= _EXTENT_SHARE * sizes[start].max()
        those = np.flatnonzero(alike)
        apart = np.abs(grey[those] - grey[start]).mean(axis=1) * _GREY_HU
        counts[places[start]] = int((apart <= NEAR_HU).sum()) - 1
    return counts
