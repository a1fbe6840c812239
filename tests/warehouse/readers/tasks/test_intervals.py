"""What interval tokens stand for: bounds from their names, means from train's gaps, worked out by hand."""

import numpy as np
import pyarrow as pa
import pytest

from pipelines.profiles.intervals import SPECIFICATIONS, between
from warehouse.arrays import NO_TIME
from warehouse.readers.tasks.intervals import bounds_us, durations
from warehouse.readers.tasks.windows import BucketTokens
from warehouse.tokens import TokenType

MINUTE = 60_000_000
HALF_YEAR = 180 * 1440 * MINUTE


@pytest.mark.parametrize("specification", ["ethos13", "ethos19"])
def test_a_name_tells_the_bounds_that_the_tokens_are_made_by(specification: str) -> None:
    for place, (name, start) in enumerate(SPECIFICATIONS[specification]):
        lower, upper = bounds_us(name)
        assert lower == start
        if upper is None:
            assert name.startswith("=") and lower == HALF_YEAR
            continue
        of_token, times = between(np.array([lower, upper - 1]), specification)
        assert of_token.tolist() == [place, place] and times.tolist() == [1, 1]


def test_durations_are_the_gaps_that_tokens_stand_for() -> None:
    interval, structured, image = int(TokenType.INTERVAL), int(TokenType.STRUCTURED), int(TokenType.IMAGE)
    # Start, event, 10 minutes, event, an image and 20 minutes to an event, two half-years, event; then another subject.
    tokens = [
        (1, 0, NO_TIME), (9, structured, 0), (20, interval, 10), (9, structured, 10), (4, image, 15),
        (20, interval, 30), (9, structured, 30), (21, interval, 30 + 540_000), (21, interval, 30 + 540_000),
        (9, structured, 30 + 540_000),
        (1, 0, NO_TIME), (9, structured, 5), (20, interval, 12), (9, structured, 12),
    ]  # fmt: skip
    ids, types, times = (np.array(column) for column in zip(*tokens, strict=True))
    bucket = BucketTokens(
        subjects=np.array([1, 2]),
        starts=np.array([0, 10]),
        ends=np.array([10, 14]),
        ids=ids.astype(np.uint32),
        types=types.astype(np.uint8),
        times=np.where(times == NO_TIME, NO_TIME, times * MINUTE),
        image_places=np.array([4]),
        image_keys=pa.array(["ct-1"]),
    )
    of_token, lasted = durations(bucket, np.array([0]), np.array([20, 21]))
    assert of_token.tolist() == [0, 0, 1, 1]
    assert (lasted // MINUTE).tolist() == [10, 20, 270_000, 270_000]
    assert durations(bucket, np.array([1]), np.array([20, 21]))[1].tolist() == [7 * MINUTE]
    assert len(durations(bucket, np.array([], np.int64), np.array([20, 21]))[0]) == 0
