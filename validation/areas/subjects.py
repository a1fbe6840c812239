"""Subjects: those of one table, or of one modality's images, that no other table knows."""

import polars as pl

from validation.areas.area import Area, Expectation
from validation.measure.contents import ALONE
from validation.measure.measured_release import MeasuredRelease

SCHEMA = {"kind": pl.String, "name": pl.String, "within": pl.String, "subjects": pl.Int64, ALONE: pl.Int64}


def measure(release: MeasuredRelease) -> pl.DataFrame:
    """A row per table with facts and modality: `subjects`, `alone` (of them, known to no other table), `share`.

    `alone_some`, `alone_many`: 1 where the share reaches the limit that warns, that refuses.
    """
    entries = [entry for entry in release.contents if ALONE in entry.counts]
    rows = [(entry.kind, entry.name, entry.within, entry.counts["subjects"], entry.counts[ALONE]) for entry in entries]
    share = pl.col(ALONE) / pl.col("subjects").clip(lower_bound=1)
    limits = release.limits
    reached = {"alone_some": limits.unknown_subjects_warning, "alone_many": limits.unknown_subjects}
    return pl.DataFrame(rows, schema=SCHEMA, orient="row").with_columns(
        share.alias("share"),
        *(((pl.col(ALONE) > 0) & (share >= limit)).cast(pl.Int64).alias(name) for name, limit in reached.items()),
    )


def _words(broken: pl.DataFrame) -> str:
    return "; ".join(
        f"{line[ALONE]} of {line['subjects']} subjects of {line['kind']} {line['name']} are in no other table"
        for line in broken.iter_rows(named=True)
    )


AREA = Area(
    "subjects",
    measure,
    (
        Expectation(
            "alone_many",
            "The patients of every table and modality are those of the other tables.",
            kind="number",
            words=_words,
            remedy=lambda _: "write ids alike with subject_normalise, or raise limits.unknown_subjects",
        ),
        Expectation(
            "alone_some",
            "Few patients of a table or modality are in no other table.",
            "warning",
            kind="number",
        ),
    ),
)
