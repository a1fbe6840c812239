"""Items: the images of every modality, their verdicts, and the event that each usable one has."""

import polars as pl

from validation.areas.area import Area, Expectation
from validation.measure.events import item_events
from validation.measure.items import measure_items
from validation.measure.measured_release import MeasuredRelease

VERDICT_PATTERN = r"^(?:ok|(?:refused|failed|waiting)_[a-z0-9_]+)$"


def measure(release: MeasuredRelease) -> pl.DataFrame:
    """A row per modality and verdict, see `measure_items`."""
    return measure_items(release.items, item_events(release.measures))


AREA = Area(
    "items",
    measure,
    (
        Expectation("duplicate_keys", "No two images share a key."),
        Expectation("ok_incomplete", "Every usable image has a patient, a time, a key and the encoder that read it."),
        Expectation("ok_units_off", "Every slice or tile of a usable image is encoded, or counted as one that failed."),
        Expectation("ok_events_off", "Every usable image is one event of its patient, and only one."),
        Expectation(
            "verdict",
            "Every image has a verdict: usable, refused as another kind, failed, or waiting for its vector.",
            kind="text",
            pattern=VERDICT_PATTERN,
            meaning="a known kind of verdict",
        ),
        Expectation(
            "failed_share",
            "In every modality, at most 10 % of the images that should be good have failed.",
            "warning",
            "derived",
            high=0.1,
        ),
        Expectation(
            "waiting_share",
            "In every modality, at most 10 % of the images that should be good wait for their vectors.",
            "warning",
            "derived",
            high=0.1,
        ),
    ),
)
