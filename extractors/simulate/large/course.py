"""Draws the patients of a range and which visits they have, by columns.

Lengths follow Table A1 of MEHRT (677 tokens on average, 248 in the middle, a quarter beyond 703, the longest 319,477),
at three quarters: some 500 events a patient.
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from extractors.simulate.codes import CANCERS, CONDITIONS
from extractors.simulate.large.library import I64, VARIANTS, Kind, library
from extractors.simulate.record import DAY, FIRST_DAY, LAST_DAY

RANGE = 1_000
"""Patients that are drawn together: a patient is the same whatever the number of patients."""
MEDIAN_EVENTS, SPREAD, MOST_EVENTS = 182.0, 1.42, 250_000
"""Of the log-normal lengths: its mean is 500 events."""
IMAGING_WITH_LENGTH = 0.8
"""How closely having images goes with a long record: imaging patients have some six times the usual median."""
CANCER_SHARE = 0.65
RACES = ("White", "Black", "Asian", "Hispanic", "Other")
_RACE_SHARES = (0.62, 0.14, 0.09, 0.12, 0.03)
_WINDOW = LAST_DAY - FIRST_DAY - 30
_FEWEST_OF_A_VISIT = 6

# By phase of a disease, how often a visit is of which kind, in the order of Kind.
_PHASES = np.asarray(
    [
        # chronic, emergency, acute, intensive, consultation, operation, radiation, first line, later, fever, kidney,
        # follow-up, metastatic, terminal
        (0.70, 0.18, 0.12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),  # before and without a cancer
        (0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0),  # its first consultation
        (0, 0, 0, 0, 0, 0.5, 0.1, 0, 0, 0, 0, 0.4, 0, 0),
        (0.05, 0.02, 0.04, 0, 0, 0, 0.04, 0.64, 0, 0.10, 0.04, 0.07, 0, 0),  # first line
        (0.10, 0.04, 0.05, 0, 0, 0, 0.02, 0, 0.52, 0.10, 0.04, 0.08, 0.05, 0),  # later lines
        (0.25, 0.06, 0.08, 0, 0, 0, 0.01, 0, 0.10, 0.02, 0.03, 0.35, 0.10, 0),  # afterwards
    ]
)
_PHASE_ENDS = np.asarray([0, 1, 2, 12, 24])
"""By visits since the first consultation, where the next phase begins."""
_GAP_DAYS = np.asarray([50.0, 40, 40, 20, 10, 20, 20, 20, 20, 8, 10, 60, 30, 1])
"""Mean days after a visit, in the order of Kind."""


@dataclass(frozen=True)
class Subjects:
    """The patients of a range; `cancer` is -1 where there is none, `death` -1 where it is not known of.

    Attributes:
        number: from 1, over all ranges.
        death: seconds since 1970; `to_the_minute` where the hospital knows the minute.
        last_day: of the last visit.
    """

    number: I64
    female: npt.NDArray[np.bool_]
    birth_year: I64
    race: I64
    cancer: I64
    imaging: npt.NDArray[np.bool_]
    death: I64
    to_the_minute: npt.NDArray[np.bool_]
    last_day: I64

    def __len__(self) -> int:
        return len(self.number)


@dataclass(frozen=True)
class Visits:
    """Visits in order of their patients and days.

    Attributes:
        subject: its row in Subjects.
        order: from 1, within the patient.
        visit: its number in the library.
        start: seconds since 1970 at the midnight that the library's times count from, and some minutes.
    """

    subject: I64
    order: I64
    visit: I64
    start: I64

    def __len__(self) -> int:
        return len(self.subject)


def draw_subjects(draw: np.random.Generator, first: int, imaging_share: float) -> tuple[Subjects, I64]:
    """The RANGE patients from number `first` on, death still unknown, and how many events each is to have."""
    z, other = draw.standard_normal(RANGE), draw.standard_normal(RANGE)
    events = np.clip(MEDIAN_EVENTS * np.exp(SPREAD * z), 4, MOST_EVENTS).astype(np.int64)
    tendency = IMAGING_WITH_LENGTH * z + np.sqrt(1 - IMAGING_WITH_LENGTH**2) * other
    at_least = NormalDist().inv_cdf(1 - imaging_share) if 0 < imaging_share < 1 else np.inf * (0.5 - imaging_share)
    female = draw.random(RANGE) < 0.54
    shares = np.asarray([[c.share * (c.sex in ("", sex)) for c in CANCERS] for sex in ("M", "F")])
    cancer = _chosen(draw.random(RANGE), shares[female.astype(np.int64)])
    subjects = Subjects(
        number=np.arange(first, first + RANGE),
        female=female,
        birth_year=2015 - np.clip(draw.normal(60, 13, RANGE), 20, 92).astype(np.int64),
        race=_chosen(draw.random(RANGE), np.broadcast_to(_RACE_SHARES, (RANGE, len(RACES)))),
        cancer=np.where(draw.random(RANGE) < CANCER_SHARE, cancer, -1),
        imaging=tendency > at_least,
        death=np.full(RANGE, -1),
        to_the_minute=np.zeros(RANGE, dtype=np.bool_),
        last_day=np.zeros(RANGE, dtype=np.int64),
    )
    return subjects, events


def draw_visits(draw: np.random.Generator, subjects: Subjects, events: I64) -> tuple[Subjects, Visits]:
    """The patients' visits, until each has its events, and the patients with their deaths."""
    made = library()
    most = -(-events // _FEWEST_OF_A_VISIT) + 1
    subject, order = _counted(most)
    cancer = subjects.cancer[subject]
    # A short record begins with its cancer, a long one some visits before it.
    begins = np.minimum(draw.geometric(0.3, len(subjects)) - 1, events // 60)
    since = order - begins[subject]
    phase = np.where(cancer < 0, 0, np.where(since < 0, 0, np.searchsorted(_PHASE_ENDS, since, side="right")))
    kind = _chosen(draw.random(len(order)), _PHASES[phase])
    in_intensive_care = np.where(events > 30_000, 0.9, np.where(events > 4_000, 0.2, 0.0))[subject]
    kind[(draw.random(len(order)) < in_intensive_care) & (since > 2)] = Kind.INTENSIVE
    chronic = draw.integers(0, len(CONDITIONS), (len(subjects), 3))[subject, draw.integers(0, 3, len(order))]
    group = np.where(kind == Kind.CHRONIC, chronic, np.maximum(cancer, 0))
    visit = made.first[kind, group] + draw.integers(0, VARIANTS, len(order))
    before = _within(made.events[visit], subject, len(subjects))
    kept = (before + made.events[visit] / 2 < events[subject]) | (order == 0)
    subject, order, visit, kind = subject[kept], order[kept], visit[kept], kind[kept]

    last = np.append(subject[1:] != subject[:-1], True)
    dies = draw.random(len(subjects)) < np.where(subjects.cancer >= 0, 0.18, 0.05)
    in_hospital = dies & (draw.random(len(subjects)) < 0.5)
    ends = np.flatnonzero(last & in_hospital[subject] & (order > 0))
    group = np.where(subjects.cancer >= 0, subjects.cancer, len(CANCERS))[subject[ends]]
    visit[ends] = made.first[Kind.TERMINAL, group] + draw.integers(0, VARIANTS, len(ends))
    kind[ends] = Kind.TERMINAL

    day = _days(draw, subject, kind, made.end[visit] // DAY, len(subjects))
    start = day * DAY + draw.integers(0, 120, len(day)) * 60
    end = (start + made.end[visit])[last]
    in_hospital = kind[last] == Kind.TERMINAL
    later = draw.integers(10, 200, len(subjects)) * DAY + draw.integers(0, 1440, len(subjects)) * 60
    known = Subjects(
        **{
            **vars(subjects),
            "death": np.where(dies, np.where(in_hospital, end, end + later), -1),
            "to_the_minute": in_hospital | (draw.random(len(subjects)) < 0.2),
            "last_day": end // DAY,
        }
    )
    return known, Visits(subject, order + 1, visit, start)


def _days(draw: np.random.Generator, subject: I64, kind: I64, nights: I64, subjects: int) -> I64:
    """The day of each visit: behind the nights of the visits before it and the days between."""
    gaps = draw.exponential(_GAP_DAYS[kind]) + 1
    of_nights, of_gaps = (np.bincount(subject, values, subjects) for values in (nights, gaps))
    # Long records would take more than the hospital's ten years: less lies between their visits.
    gaps *= np.clip((_WINDOW - of_nights) / of_gaps, 0, 1)[subject]
    days = np.floor(_within(nights + gaps, subject, subjects)).astype(np.int64)
    spare = np.floor(_WINDOW - of_nights - np.bincount(subject, gaps, subjects)).astype(np.int64)
    begins = FIRST_DAY + np.where(spare > 0, (draw.random(subjects) * spare).astype(np.int64), spare)
    return np.asarray(begins[subject] + days, dtype=np.int64)


def _counted(counts: I64) -> tuple[I64, I64]:
    """For so many rows each, the number of the row's owner and its own, from 0."""
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)


def _within(values: npt.NDArray[np.generic], owner: I64, owners: int) -> npt.NDArray[np.float64]:
    """The sum of what stands before each row, of the same owner; rows lie together by owner."""
    before = np.cumsum(values) - values
    starts = np.searchsorted(owner, np.arange(owners))
    return np.asarray(before - before[np.minimum(starts, len(before) - 1)][owner], dtype=np.float64)


def _chosen(uniform: npt.NDArray[np.float64], shares: npt.NDArray[np.float64]) -> I64:
    """(n,) what (n,) uniform numbers choose by (n, k) shares, which need not add up to one."""
    ends = np.cumsum(shares, axis=1)
    return np.asarray((uniform[:, None] * ends[:, -1:] >= ends).sum(axis=1), dtype=np.int64)
