"""Triplets: they add up, each is of one subject, and nothing that is used lies in two splits."""

import polars as pl

from validation.areas.area import Area, Check, Expectation
from validation.measure.examples.triplets import measure_triplets
from validation.measure.measured_release import MeasuredRelease


def measure(release: MeasuredRelease) -> pl.DataFrame:
    """One row, see `measure_triplets`."""
    return measure_triplets(release.tree, release.buckets, release.measures)


def _right(frame: pl.DataFrame) -> str:
    number = int(frame["triplets"].sum())
    return (
        f"{number:,}, each of one patient; none that is used has a copy in another split"
        if number
        else "there are none"
    )


TRIPLETS = Check("triplets", measure, _right)

AREA = Area(
    "triplets",
    measure,
    (
        Expectation(
            "difference",
            "The steps of the triplets' funnel add up: every study with a text has a rule of its visit and an outcome.",
            kind="number",
            check=TRIPLETS,
            fault="studies that the funnel does not account for",
        ),
        Expectation(
            "foreign",
            "The images, the text and the visits of a triplet are one patient's, and usable.",
            check=TRIPLETS,
            fault="triplets of several patients, or of what is not usable",
        ),
        Expectation(
            "unmasked",
            "A triplet without a visit says so, and has no record; one with a visit has one.",
            check=TRIPLETS,
            fault="triplets whose mask does not fit their record",
        ),
        Expectation(
            "across_splits",
            "No patient, and no copy of a picture or text, is used in two splits.",
            check=TRIPLETS,
            fault="patients or copies that are used in two splits",
        ),
    ),
)
