"""Histories and features: what a model is given of each label was available at its prediction time."""

import polars as pl

from validation.areas.area import Area, Check, Expectation
from validation.measure.measured_release import MeasuredRelease
from validation.measure.probes.bucket import measure_probes


def measure(release: MeasuredRelease) -> pl.DataFrame:
    """A row for features and for the histories of each profile, see `measure_probes`."""
    return measure_probes(release.profiles, release.labels, release.measures)


def _right(frame: pl.DataFrame) -> str:
    rows = int(frame["rows"].sum())
    return f"{rows:,} rows, none of which holds what was not available by then" if rows else "there are none"


PROBES = Check("histories and features", measure, _right)

AREA = Area(
    "probes",
    measure,
    (
        Expectation(
            "ahead",
            "No history and no feature of a label holds anything that was not available by its prediction time: both "
            "are made as readers make them, and held against the events anew.",
            check=PROBES,
            fault="rows whose history or feature holds what was not available by their prediction time",
        ),
    ),
)
