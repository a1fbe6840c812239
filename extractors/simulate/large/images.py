"""Images of a large hospital, as vectors that another program made: Parquet files, and tables of whose they are."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from extractors.simulate.large.course import Subjects, Visits
from extractors.simulate.large.library import library
from extractors.simulate.large.text import times

_MINUTES_BEHIND = 20


@dataclass(frozen=True)
class Images:
    """Images of one modality.

    Attributes:
        folder: of its files; the table is `<folder>.csv`.
        letter: that their names begin with.
        width: of a vector, as the papers' encoders give it.
        mean: images a patient who has some. Over all patients there are as many as MEHRT's 1.4 M CT and 170,000 slides
            of 2.3 M patients, where 15 % have images.
    """

    folder: str
    letter: str
    width: int
    mean: float


IMAGES = {"ct": Images("ct", "C", 1024, 4.0), "wsi": Images("slides", "S", 1536, 0.5)}
_CHANNELS = 64
"""Of a vector's numbers so many are drawn, and repeated at other levels: drawing is most of the time else."""


@dataclass(frozen=True)
class Drawn:
    """A modality's images of a range: the lines of their table, and their vectors."""

    names: list[str]
    lines: pl.DataFrame
    vectors: npt.NDArray[np.float16]

    def table(self) -> pa.Table:
        """As a file of vectors has them."""
        width = self.vectors.shape[1]
        flat = pa.array(self.vectors.ravel(), type=pa.float16())
        return pa.table({"item": pa.array(self.names), "features": pa.FixedSizeListArray.from_arrays(flat, width)})


def draw_images(draw: np.random.Generator, subjects: Subjects, visits: Visits, kind: Images, total: int) -> Drawn:
    """The images of a range: at visits of their patients, at moments of their own; at least one CT each.

    Args:
        total: patients of the hospital: those beyond have none.
    """
    size = len(subjects)
    number = draw.geometric(1 / kind.mean, size) if kind.mean >= 1 else draw.poisson(kind.mean, size)
    place = draw.random(int(number.sum()))
    owner = np.repeat(np.arange(size), number)
    order = np.arange(len(owner)) - np.repeat(np.cumsum(number) - number, number)
    first = np.searchsorted(visits.subject, np.arange(size))
    count = np.bincount(visits.subject, minlength=size)
    at = first[owner] + np.floor(place * count[owner]).astype(np.int64)
    moment = visits.start[at] + library().start[visits.visit[at]] + (_MINUTES_BEHIND + order) * 60
    vectors = _vectors(draw, len(owner), kind.width)
    kept = (subjects.imaging & (subjects.number <= total))[owner]
    owner, order, moment = owner[kept], order[kept], moment[kept]
    names = [f"{kind.letter}{number:07d}{n:04d}" for number, n in zip(subjects.number[owner], order, strict=True)]
    patients = [f"P{number:07d}" for number in subjects.number[owner]]
    return Drawn(names, pl.DataFrame({"name": names, "patient_id": patients, "time": times(moment)}), vectors[kept])


def _vectors(draw: np.random.Generator, number: int, width: int) -> npt.NDArray[np.float16]:
    channels = draw.standard_normal((number, _CHANNELS)).astype(np.float16)
    levels = np.linspace(0.5, 1.5, width // _CHANNELS, dtype=np.float16)
    return np.asarray((channels[:, None, :] * levels[None, :, None]).reshape(number, width), dtype=np.float16)


HEADER = b"name,patient_id,time\n"
