"""Encoders: of each one what it was to read, and what became of it. A modality may have several."""

import polars as pl

from validation.areas.area import Area, Expectation
from validation.measure.items import measure_encoders
from validation.measure.measured_release import MeasuredRelease


def measure(release: MeasuredRelease) -> pl.DataFrame:
    """A row per modality and encoder, see `measure_encoders`."""
    return measure_encoders(release.items)


AREA = Area(
    "encoders",
    measure,
    (
        Expectation("items_not_given", "Every encoder of a modality was given every image that can be read."),
        Expectation(
            "encoder_failed_share",
            "Under every encoder, at most 10 % of the images that it was given have failed.",
            "warning",
            "derived",
            high=0.1,
        ),
    ),
)
