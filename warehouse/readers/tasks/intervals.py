"""How long each interval token stands for: what turns the tokens that a model generates into time.

Source: ETHOS-ARES keeps the mean duration of each token in train; the bounds are those of the token's name.
"""

import re

import numpy as np
import polars as pl

from warehouse.arrays import I64
from warehouse.errors import TimeloomError
from warehouse.hashing import bucket_of
from warehouse.parquet import read_frame
from warehouse.readers.pinned import PinnedRelease
from warehouse.readers.tasks.windows import BucketTokens, spans
from warehouse.tokens import INTERVAL, TokenType

_MINUTE = 60_000_000
_UNITS = {"m": _MINUTE, "h": 60 * _MINUTE, "d": 1440 * _MINUTE, "w": 7 * 1440 * _MINUTE, "mt": 30 * 1440 * _MINUTE}
_PART = re.compile(r"(\d+)(mt|m|h|d|w)")
# A mean of fewer is that of single patients.
LEAST = 11


def interval_table(release: PinnedRelease, profile: str) -> pl.DataFrame:
    """Of each interval token of a profile: token_id, token, lower_us, upper_us, mean_us and count.

    A token lasts from `lower_us` to below `upper_us` (null for one that stands for its length, however often it is
    repeated); `mean_us` is its mean in train, null where train has fewer than 11: take the middle of the bounds then.

    Raises:
        TimeloomError: the profile has no interval tokens.
    """
    release.check_profile(profile)
    vocabulary = read_frame(release.checked(release.files.vocabulary(profile))).sort("token_id")
    tokens = vocabulary.filter(pl.col("token").str.starts_with(f"{INTERVAL}/")).select("token_id", "token")
    if tokens.is_empty():
        raise TimeloomError(f"the profile {profile} has no interval tokens", remedy="see intervals in docs/profiles.md")
    ids = tokens["token_id"].cast(pl.Int64).to_numpy()
    splits = release.splits(release.manifest.profiles[profile].scheme)
    train = splits.filter(pl.col("split") == "train")["subject_id"].to_numpy()
    home = bucket_of(train, release.manifest.buckets)
    total, count = np.zeros(len(ids)), np.zeros(len(ids), np.int64)
    for bucket in np.unique(home).tolist():
        read = BucketTokens.read(release.checked(release.files.timeline(profile, bucket)), None)
        place = read.places(np.sort(train[home == bucket]))
        of_token, lasted = durations(read, place[place >= 0], ids)
        total += np.bincount(of_token, weights=lasted, minlength=len(ids))
        count += np.bincount(of_token, minlength=len(ids))
    mean = [round(whole / many) if many >= LEAST else None for whole, many in zip(total, count.tolist(), strict=True)]
    bounds = [bounds_us(token.removeprefix(f"{INTERVAL}/")) for token in tokens["token"].to_list()]
    return tokens.with_columns(
        pl.Series("lower_us", [lower for lower, _ in bounds], pl.Int64),
        pl.Series("upper_us", [upper for _, upper in bounds], pl.Int64),
        pl.Series("mean_us", mean, pl.Int64),
        pl.Series("count", [many if many >= LEAST else None for many in count.tolist()], pl.Int64),
    )


def durations(tokens: BucketTokens, subjects: I64, ids: I64) -> tuple[I64, I64]:
    """Of each interval token (n,) of some subjects its place among `ids` and the time that it stands for, in µs.

    Args:
        subjects: places of the subjects.
        ids: of interval tokens, ascending.
    """
    places = spans(tokens.starts[subjects], tokens.ends[subjects] - tokens.starts[subjects])
    # An image splits no interval.
    places = places[tokens.types[places] != int(TokenType.IMAGE)]
    interval = np.flatnonzero(tokens.types[places] == int(TokenType.INTERVAL))
    if not len(interval):
        return interval, interval
    # A token that is repeated stands for a share of the gap that the run stands for.
    first = np.flatnonzero(np.append(True, interval[1:] != interval[:-1] + 1))
    size = np.diff(np.append(first, len(interval)))
    begin = interval[first]
    gap = tokens.times[places[begin]] - tokens.times[places[begin - 1]]
    return np.searchsorted(ids, tokens.ids[places[interval]].astype(np.int64)), np.repeat(gap // size, size)


def bounds_us(name: str) -> tuple[int, int | None]:
    """The bounds that an interval's name tells: `45m-1h15m`, or `=6mt` for about so long."""
    lower, _, upper = name.removeprefix("=").partition("-")
    return _length(lower), _length(upper) if upper else None


def _length(text: str) -> int:
    return sum(int(number) * _UNITS[unit] for number, unit in _PART.findall(text))
