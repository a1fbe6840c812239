"""The ledger: what became of every raw row, and what each outcome means; docs/quality.md has more."""

import polars as pl

from validation.areas.area import Area, Check, Expectation
from validation.measure.annotations import listed_rows, unlisted_rows
from validation.measure.events import annotations
from validation.measure.ledger import balance, measure_ledger
from validation.measure.measured_release import MeasuredRelease

# What the report says of each reason, by outcome.
CONFLICTS = {
    "before_birth": "dated before the patient's birth",
    "after_death": "dated after the patient's death",
    "end_before_start": "the end of a visit, a drug or the like, dated before its start",
    "overlapping_visit": "a visit that starts before an earlier one of its table has ended",
    "unit_differs": "a value that holds another unit than the column of its unit",
    "static_differs": "a fact without a time that another row of the patients' table states otherwise",
    "further_birth_or_death": "a second birth or death of one patient, left out; the first stands",
}
PARTIAL = {
    "unparsable_time": "one of the row's times cannot be read; its other events stand",
    "failed_cast": "a value that an expression takes for a number or a time is none; what hangs on it is empty",
    "unparsable_available_time": "when it became known cannot be read; see availability",
    "unknown_available_time": "when it became known is not recorded; see availability",
    "availability_join_missed": "when it became known stands in another table that lacks it; an estimate instead",
    "unit_or_flag": "a letter behind a number is taken for its unit and may be a flag",
    "invisible_in_subject_id": "characters that nobody sees stood in its patient's id, and were taken off",
    "invisible_in_visit_id": "characters that nobody sees stood in its visit's id, and were taken off",
}
QUARANTINED = {
    "bad_subject_id": "no patient id, or none that can be used",
    "unparsable_time": "its time cannot be read",
    "failed_cast": "a value that an expression takes for a number or a time is none",
    "missing_time": "it has no time",
    "missing_code": "what happened is empty",
    "empty_value": "none of its values holds anything",
    "no_rule_applies": "no rule of the source applies to it",
    "malformed_row": "the row does not have the columns of its table, or text stands behind a closing quote",
    "repeated_header": "the row says what the header says, and is none",
    "unmapped_table": "the source does not name its table",
    "duplicate_row": "equal to an earlier row in every column",
    "further_birth_or_death": "makes nothing but a second birth or death",
    "outside_limit": "its patient is outside this trial run",
}


def measure(release: MeasuredRelease) -> pl.DataFrame:
    """A row per table: that of `measure_ledger`, with `missed_share`, that of its join which misses most."""
    table, rows = pl.col("table"), pl.col("rows")
    missed, asked = rows.filter(pl.col("outcome") == "join_missed").sum(), rows.sum()
    joins = (
        release.ledger.filter(pl.col("outcome").is_in(["join_found", "join_missed"]))
        .group_by("table", "reason")
        .agg((missed / asked).alias("missed_share"), asked.alias("asked"))
        .filter(pl.col("asked") >= release.limits.fewest)
        .group_by(table)
        .agg(pl.col("missed_share").max())
    )
    measured = measure_ledger(release.ledger, annotations(release.measures), listed_rows(release.measures))
    return measured.join(joins, on="table", how="left", maintain_order="left").with_columns(
        pl.col("missed_share").fill_null(0.0)
    )


def _sum_of(tables: pl.DataFrame) -> str:
    return f"raw = events + static + reference + quarantined in {tables.height} tables"


SUM = Check("ledger", lambda release: balance(release.ledger), _sum_of, located_by="table")
QUARANTINE = Check(
    "quarantine",
    lambda release: unlisted_rows(listed_rows(release.measures), release.ledger).sort("table"),
    lambda _: "every row that the ledger counts is listed",
    located_by="table",
)

AREA = Area(
    "ledger",
    measure,
    (
        Expectation("*", "The ledger names at least one raw table.", kind="number", low=1, high=None),
        Expectation(
            "difference",
            "In every table, raw rows are exactly events, static, reference and quarantined rows together.",
            check=SUM,
            fault="rows are missing",
        ),
        Expectation(
            "events_unexplained", "Every table's events are in the release, as many as the ledger says it made."
        ),
        Expectation(
            "quarantined_share",
            "No table has more than 1 % of its rows in quarantine.",
            "warning",
            "derived",
            high=0.01,
        ),
        Expectation(
            "missed_share",
            "In no join more than half of the rows that ask find nothing.",
            "warning",
            "derived",
            high=0.5,
        ),
        Expectation(
            "quarantine_unlisted",
            "quarantine.parquet lists the rows that the ledger counts, reason by reason.",
            check=QUARANTINE,
            fault="not what the ledger counts",
        ),
        Expectation(
            "estimated_share",
            "In no table the availability of more than 5 % of its events is an estimate.",
            "warning",
            "derived",
            high=0.05,
        ),
    ),
)
