"""Events: data/, the descriptions of its codes, what events say of themselves, and lags."""

import polars as pl

from validation.areas.area import Area, Check, Expectation
from validation.measure.annotations import FAULTS, changed_lags, uncounted_conflicts
from validation.measure.events import annotations, meds_breaks, misplaced_subjects
from validation.measure.measured_release import MeasuredRelease


def measure(release: MeasuredRelease) -> pl.DataFrame:
    """One row: that of `measure_events`, with `conflicts_uncounted` and `lags_changed`."""
    before = release.before
    return release.events.summary.with_columns(
        pl.lit(uncounted_conflicts(release.events.sources, release.ledger)).alias("conflicts_uncounted"),
        pl.lit(changed_lags(release.tree, before) if before else 0).alias("lags_changed"),
    )


def _schemas(release: MeasuredRelease) -> pl.DataFrame:
    files = meds_breaks(release.measures)
    return pl.DataFrame({"file": files, "schema_breaks": [1] * len(files)}, schema_overrides={"file": pl.String})


def _buckets(release: MeasuredRelease) -> pl.DataFrame:
    return pl.DataFrame({"misplaced_subjects": misplaced_subjects(release.event_subjects, release.buckets)})


def _annotations(release: MeasuredRelease) -> pl.DataFrame:
    """One row: FAULTS and `conflicts_uncounted`, without the rest of what is measured of events."""
    sources = annotations(release.measures)
    return sources.select(pl.col(FAULTS).sum()).with_columns(
        pl.lit(uncounted_conflicts(sources, release.ledger)).alias("conflicts_uncounted")
    )


def _lags(release: MeasuredRelease) -> pl.DataFrame:
    """No row where no release before is kept."""
    before = release.before
    known = before is not None and before.lags.is_file()
    changed = [changed_lags(release.tree, before)] if before is not None and known else []
    return pl.DataFrame({"lags_changed": changed}, schema={"lags_changed": pl.Int64})


SCHEMAS = Check("MEDS schemas", _schemas, lambda _: "every file keeps its own", located_by="file")
BUCKETS = Check("buckets", _buckets, lambda _: "every subject is in its bucket alone")
ANNOTATIONS = Check(
    "annotations", _annotations, lambda _: "every availability, flag and conflict is a known one, and counted"
)
LAGS = Check(
    "lags",
    _lags,
    lambda frame: "no release before to compare with" if frame.is_empty() else "as in the release before",
)

AREA = Area(
    "events",
    measure,
    (
        Expectation("rows", "The release holds events.", low=1, high=None),
        Expectation(
            "schema_breaks",
            "Every file of events, codes and splits keeps its MEDS 0.4 schema.",
            kind="number",
            check=SCHEMAS,
            fault="broken",
        ),
        Expectation(
            "misplaced_subjects",
            "Each patient's events lie in one bucket, the one that belongs to the patient.",
            check=BUCKETS,
            fault="subjects outside their bucket, or in several",
        ),
        Expectation("rows_out_of_order", "Each patient's events stand together, in the order of time."),
        Expectation("empty_codes", "Every event says what happened: no code is empty."),
        Expectation("undescribed_codes", "Every code of the events is listed in metadata/codes.parquet."),
        Expectation("repeated_codes", "No code is listed twice in metadata/codes.parquet."),
        Expectation(
            "available_before_time",
            "No fact is available before the moment it describes, whether that is recorded or estimated.",
        ),
        Expectation(
            "unavailable",
            "Every event with a time says when it could be known.",
            check=ANNOTATIONS,
            fault="timed events that do not say when they could be known",
        ),
        Expectation(
            "availability_unknown",
            "Every event with a time says how that is known: recorded, time or estimated.",
            check=ANNOTATIONS,
            fault="availabilities that are unknown",
        ),
        Expectation(
            "availability_of_static",
            "No static fact claims to have become available.",
            check=ANNOTATIONS,
            fault="static facts with an availability",
        ),
        Expectation(
            "value_flag_unknown",
            "Every flag of a value is one of those that are documented.",
            check=ANNOTATIONS,
            fault="flags of values that are unknown",
        ),
        Expectation(
            "value_flag_alone",
            "A flag stands only where number and text of the value both stand.",
            check=ANNOTATIONS,
            fault="flags without the value's number or text",
        ),
        Expectation(
            "conflict_unknown",
            "Every conflict of an event is one of those that are documented.",
            check=ANNOTATIONS,
            fault="conflicts that are unknown",
        ),
        Expectation(
            "conflicts_uncounted",
            "The ledger counts the conflicts that events bear.",
            check=ANNOTATIONS,
            fault="conflicts that the ledger does not count",
        ),
        Expectation(
            "lags_changed",
            "Every usual delay of the release before is kept as it was.",
            kind="number",
            check=LAGS,
            fault="usual delays that differ from the release before",
        ),
        Expectation("unknown_items", "Every image event points at an image that the release lists."),
        Expectation("implausible_times", "No event is dated before 1850 or after the last plausible day.", "warning"),
        Expectation("born_or_dead_twice", "No patient is born twice or dies twice.", "warning"),
    ),
)
