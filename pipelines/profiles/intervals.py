"""Tokens of the time between consecutive events.

Sources: 13 separators of Renc et al. 2024 (ethos-paper, special_tokens.py), 19 of ETHOS-ARES (Renc et al. 2025,
time_interval.py). A month is 30 days. Below five minutes there is none; from six months on `=6mt` stands
round(interval / 180 days) times.
"""

import numpy as np

from warehouse.arrays import I64
from warehouse.tokens import INTERVAL

MINUTE, HOUR, DAY = 60_000_000, 3_600_000_000, 86_400_000_000
LONGEST = 180 * DAY
SPECIFICATIONS: dict[str, tuple[tuple[str, int], ...]] = {
    "none": (),
    "ethos13": (
        ("5m-15m", 5 * MINUTE), ("15m-1h", 15 * MINUTE), ("1h-2h", HOUR), ("2h-6h", 2 * HOUR), ("6h-12h", 6 * HOUR),
        ("12h-1d", 12 * HOUR), ("1d-3d", DAY), ("3d-1w", 3 * DAY), ("1w-2w", 7 * DAY), ("2w-1mt", 14 * DAY),
        ("1mt-3mt", 30 * DAY), ("3mt-6mt", 90 * DAY), ("=6mt", LONGEST),
    ),
    "ethos19": (
        ("5m-15m", 5 * MINUTE), ("15m-45m", 15 * MINUTE), ("45m-1h15m", 45 * MINUTE), ("1h15m-2h", 75 * MINUTE),
        ("2h-3h", 2 * HOUR), ("3h-5h", 3 * HOUR), ("5h-8h", 5 * HOUR), ("8h-12h", 8 * HOUR), ("12h-18h", 12 * HOUR),
        ("18h-1d", 18 * HOUR), ("1d-2d", DAY), ("2d-4d", 2 * DAY), ("4d-7d", 4 * DAY), ("7d-12d", 7 * DAY),
        ("12d-20d", 12 * DAY), ("20d-30d", 20 * DAY), ("30d-2mt", 30 * DAY), ("2mt-6mt", 60 * DAY), ("=6mt", LONGEST),
    ),
}  # fmt: skip


def interval_tokens(intervals: str) -> list[str]:
    """The tokens of a specification, from short to long."""
    return [f"{INTERVAL}/{name}" for name, _ in SPECIFICATIONS[intervals]]


def between(gaps: I64, intervals: str) -> tuple[I64, I64]:
    """Which token each gap (n,) in µs is told by, as its place in `interval_tokens`, and how many times (n,)."""
    starts = np.array([start for _, start in SPECIFICATIONS[intervals]], np.int64)
    place = np.searchsorted(starts, gaps, side="right") - 1
    halves = (gaps + LONGEST // 2) // LONGEST
    times = np.where(gaps >= LONGEST, halves, (place >= 0).astype(np.int64))
    return place, times
