"""Labels: their attrition adds up, and each is made of what was known at its prediction time."""

import polars as pl

from validation.areas.area import Area, Check, Expectation
from validation.measure.examples.labels import measure_labels
from validation.measure.measured_release import MeasuredRelease


def measure(release: MeasuredRelease) -> pl.DataFrame:
    """A row per task, see `measure_labels`."""
    return measure_labels(release.labels, release.attrition, release.measures)


def _right(frame: pl.DataFrame) -> str:
    if frame.is_empty():
        return "there are none"
    return f"{frame['labels'].sum():,} of {frame.height} tasks; none holds what was not known at its prediction time"


LABELS = Check("labels", measure, _right)

AREA = Area(
    "labels",
    measure,
    (
        Expectation(
            "unknown_by_then",
            "At each prediction time something of the patient became known: no label looks ahead of its index event.",
            check=LABELS,
            fault="labels whose index event was not known at their prediction time",
        ),
        Expectation(
            "after_death",
            "Nobody is predicted at or after his death.",
            check=LABELS,
            fault="labels at or after death",
        ),
        Expectation(
            "difference",
            "The rows of each attrition table add up: who starts is left out by one rule, or has a label.",
            kind="number",
            check=LABELS,
            fault="candidates that no rule accounts for",
        ),
        Expectation(
            "uncounted",
            "Each task has as many labels as its attrition table says.",
            kind="number",
            check=LABELS,
            fault="labels more or fewer than the attrition says",
        ),
        Expectation(
            "repeated",
            "No patient has two labels of a task at one moment.",
            check=LABELS,
            fault="labels that stand there twice",
        ),
    ),
)
