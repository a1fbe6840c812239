"""Rows of a table of notes: whose each is, when it was written, when it could be read first."""

from collections.abc import Iterator

import polars as pl

from extractors.events.times import parse_times
from extractors.ids import known_ids
from extractors.note.settings import NoteSettings
from extractors.note.tables import NoteFile, open_table
from extractors.note_rule import NoteRule
from extractors.reading import TableReading
from extractors.time_rule import TimeRule

_DAY = "1d"


def rows_of(settings: NoteSettings, file: NoteFile) -> Iterator[pl.DataFrame]:
    """A file's notes, some at a time: `content` (the text, or the name of its file), subject, id, visit, kind, parent
    (texts or null), and what `_timed` gives.

    Raises:
        TimeloomError: it cannot be read, or lacks a column.
    """
    rule, reading = file.rule, settings.reading_of(file.table)
    table = open_table(settings, file)
    for block in table.blocks(file.rule.columns):
        if len(block):
            yield _rows(block.frame, rule, reading)


def _rows(frame: pl.DataFrame, rule: NoteRule, reading: TableReading) -> pl.DataFrame:
    def column(name: str | None, *, is_id: bool = False) -> pl.Series:
        if name is None:
            return pl.Series([None], dtype=pl.String).new_from_index(0, len(frame))
        return known_ids(frame[name]) if is_id else frame[name]

    rows = pl.DataFrame(
        {
            "content": column(rule.text or rule.file),
            "subject": column(rule.subject),
            "id": column(rule.id or rule.file, is_id=True),
            "visit": column(rule.visit, is_id=True),
            "kind": column(rule.kind).str.strip_chars(),
            "parent": column(rule.parent, is_id=True),
        }
    )
    return rows.with_columns(_timed(frame, rule, reading))


def _timed(frame: pl.DataFrame, rule: NoteRule, reading: TableReading) -> list[pl.Series]:
    """When notes were written: time, precision and source; when they could be read first (available); whether they were
    stored before they were charted (stored_early), and whether a time could not be read (time_unreadable).

    A date stands at the end of its day. Where only the day of charting is known, a note that was stored on it or later
    is of the moment when it was stored. One that was stored before it was charted counts as stored when it was charted.
    """
    charted, charted_precision, charted_bad = _parsed(frame, rule.time, reading)
    stored, stored_precision, stored_bad = _parsed(frame, rule.available, reading)
    times = pl.DataFrame(
        {"charted": charted, "charted_p": charted_precision, "stored": stored, "stored_p": stored_precision}
    )
    of_a_day = pl.col("charted_p") == "day"
    early = pl.when(of_a_day).then(
        pl.col("stored").dt.truncate(_DAY) < pl.col("charted").dt.truncate(_DAY)
    ).otherwise(pl.col("stored") < pl.col("charted")).fill_null(False)  # fmt: skip
    by_stored = pl.col("stored").is_not_null() & (pl.col("charted").is_null() | (of_a_day & ~early))
    found = times.select(
        pl.when(by_stored).then("stored").otherwise("charted").alias("time"),
        pl.when(by_stored).then("stored_p").otherwise("charted_p").alias("precision"),
        pl.when(by_stored).then(pl.lit("stored")).when(pl.col("charted").is_not_null()).then(pl.lit("charted"))
        .otherwise(pl.lit("")).alias("source"),
        pl.when(~early).then("stored").alias("available"),
        early.alias("stored_early"),
    )  # fmt: skip
    return [*found.get_columns(), (charted_bad | stored_bad).alias("time_unreadable")]


def _parsed(
    frame: pl.DataFrame, rule: TimeRule | None, reading: TableReading
) -> tuple[pl.Series, pl.Series, pl.Series]:
    """Times, their precisions (day where that is a month or a year), and which could not be read."""
    if rule is None:
        nothing = pl.Series([None], dtype=pl.Datetime("us")).new_from_index(0, len(frame))
        return nothing, nothing.cast(pl.String), nothing.is_not_null()
    written = reading.of_column(rule.column[0])
    if written.formats:
        rule = rule.model_copy(update={"formats": written.formats})
    times = parse_times(frame, rule, written.time_zone)
    precision = times.precision.cast(pl.String).replace({"month": "day", "year": "day"})
    return times.time, precision, times.unreadable
