"""Splits: every patient has one, the one of the append-only ledger, and splits are alike."""

import polars as pl

from validation.areas.area import ITS_LIMIT, Area, Check, Expectation
from validation.measure.cohort.splits import disagreements, measure_splits, read_set_aside
from validation.measure.measured_release import MeasuredRelease


def measure(release: MeasuredRelease) -> pl.DataFrame:
    """A row per scheme and split, see `measure_splits`."""
    tree, primary = release.tree, release.primary_scheme
    frames = [
        measure_splits(
            release.subjects_of_schemes[scheme],
            scheme,
            fractions,
            disagreements(tree, scheme, release.events.subjects, primary=scheme == primary, before=release.before),
            read_set_aside(tree, scheme).height,
        )
        for scheme, fractions in release.schemes.items()
    ]
    return pl.concat(frames)


def _ledgers(release: MeasuredRelease) -> pl.DataFrame:
    """A row per scheme in use, with the counts of `disagreements`."""
    primary = release.primary_scheme
    return pl.DataFrame(
        [
            {"scheme": scheme} | disagreements(release.tree, scheme, release.event_subjects, primary=scheme == primary)
            for scheme in release.schemes
        ]
    )


LEDGERS = Check("splits", _ledgers, lambda _: "every subject has one split, the published one")

AREA = Area(
    "splits",
    measure,
    (
        Expectation(
            "subjects_without_split",
            "Every patient has a split, but for those that are set aside by a merge.",
            check=LEDGERS,
            fault="subjects without a split",
        ),
        Expectation(
            "subjects_in_two_splits",
            "No patient is in two splits.",
            check=LEDGERS,
            fault="subjects in two splits",
        ),
        Expectation(
            "published_differently",
            "The published splits are those of the append-only ledger.",
            check=LEDGERS,
            fault="subjects published in another split",
        ),
        Expectation(
            "ledgers_changed",
            "Every row of a split ledger is as a run has written it, and none is gone.",
            kind="number",
            check=LEDGERS,
            fault="ledgers that are not what runs have written",
        ),
        Expectation("subjects_moved", "Every patient has the split of the release before."),
        Expectation(
            "share_z",
            "Each split has the share of patients that its scheme asks for, within three standard errors.",
            "warning",
            "derived",
            high=3,
            of="standard errors",
        ),
        Expectation(
            "length_ks_ratio",
            "Timelines are as long in every split as in train: the Kolmogorov-Smirnov distance is within its limit "
            "(0.01, or that of alpha 1e-6 where it is more).",
            kind="derived",
            high=1,
            of=ITS_LIMIT,
        ),
        Expectation(
            "length_smd_ratio",
            "The mean log length is as in train: |SMD| is within its limit (0.02, or five standard errors where they "
            "are more).",
            kind="derived",
            high=1,
            of=ITS_LIMIT,
        ),
        Expectation(
            "interval_smd_ratio",
            "The mean interval is as in train: |SMD| is within its limit (0.02, or five standard errors where they are "
            "more).",
            kind="derived",
            high=1,
            of=ITS_LIMIT,
        ),
        Expectation(
            "modality_ratio",
            "Items of each modality are as frequent as in train: the difference is within its limit (0.1 points, or "
            "five standard errors where they are more).",
            kind="derived",
            high=1,
            of=ITS_LIMIT,
        ),
        Expectation(
            "match_ratio",
            "Length and interval are as alike as in MEHRT: |SMD| is within its limit (0.02 from 4,000 patients a split "
            "on, else two standard errors).",
            "warning",
            "derived",
            high=1,
            of=ITS_LIMIT,
        ),
    ),
)
